"""WebDataset shards: the index, the parts, labels and counts, and training on them."""

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from ltlearn.data.datasets import ImageFiles
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.readers import webdataset_index
from ltlearn.data.readers.sources import list_images, source_kind
from ltlearn.data.readers.webdataset import list_shards
from ltlearn.errors import UserError
from ltlearn.inspection.inspect import inspect_path
from tests.callbacks.helpers import make_lt_learner
from tests.data.readers.helpers import encoded, epoch, sentence
from tests.helpers import ltlearn
from tests.training.helpers import check_resumed, stage1

LABELS = [0] * 8 + [1] * 4 + [2] * 3


def sample(i: int, label, side: int = 8) -> dict[str, bytes]:
    return {"png": encoded(i, side), "cls": str(label).encode()}


def write_shard(file, samples, first: int = 0):
    """Write samples, dicts of extension to content, with keys that count from `first`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for i, content in enumerate(samples, first):
            for extension, data in content.items():
                add(archive, f"set/{i:04}.{extension}", data)
    os.utime(file, (1e9, 1e9))  # a file that has just changed is not cached
    return file


def add(archive, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_set(folder, labels=LABELS, shards=3, side=8, name="s", first=0):
    """Write shards s-000.tar ... with the labels, one after another."""
    parts = np.array_split(np.arange(len(labels)), shards)
    for k, index in enumerate(parts):
        content = [sample(first + i, labels[i], side) for i in index]
        write_shard(folder / f"{name}-{k:03}.tar", content, int(index[0]))
    return str(folder / f"{name}-{{000..{shards - 1:03}}}.tar")


def load(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_webdataset(*args, device="cpu", **kwargs)


@pytest.fixture
def as_folder(tmp_path):
    """Write the images of `write_set` into class folders."""
    for i, c in enumerate(LABELS):
        (tmp_path / "files" / str(c)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / str(c) / f"{i:04}.png").write_bytes(encoded(i))
    return tmp_path / "files"


# ---------------------------------------------------------------- the same as files


@pytest.mark.parametrize("in_memory", [True, False])
def test_shards_train_as_the_same_files_do(tmp_path, as_folder, in_memory):
    options = {"device": "cpu", "bs": 4, "size": 8, "in_memory": in_memory}
    files = LTDataLoaders.from_folder(as_folder, **options)
    dls = LTDataLoaders.from_path(write_set(tmp_path), **options)
    assert dls.vocab == files.vocab == ["0", "1", "2"]
    assert dls.shot_counts.tolist() == [8, 4, 3]
    assert (dls.split.train, dls.split.valid) == (files.split.train, files.split.valid)
    assert (dls.split.name, dls.split.dataset) == ("shards", "s")
    for sampler in ("instance", "class_balanced", "progressive"):
        for each in (dls, files):
            each.train.set_sampler(sampler)
            each.train.set_epoch(3, 5)
        for (x, y), (u, v) in zip(epoch(dls.train), epoch(files.train), strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_workers_a_pickle_and_a_later_epoch_draw_the_same(tmp_path):
    pattern = write_set(tmp_path)
    options = {"bs": 4, "size": 8, "in_memory": False, "transform": "crop_flip"}
    want = load(pattern, **options)
    first, second = epoch(want.train), epoch(want.train)
    dls = load(pattern, num_workers=2, **options)
    assert isinstance(dls.train.dataset, ImageFiles)
    again = pickle.loads(pickle.dumps(want))
    again.train.set_epoch(1)
    for got, expected in ((epoch(dls.train), first), (epoch(again.train), second)):
        for (x, y), (u, v) in zip(got, expected, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)
    empty = want.new_empty().train.dataset.data
    assert empty.root is None and len(pickle.dumps(empty)) < 2_000


def test_an_image_names_its_shard_and_its_file(tmp_path):
    dls = load(write_set(tmp_path), size=8, in_memory=False)
    i = dls.valid.dataset.data.paths[0]
    number = int(i)
    name = dls.valid.dataset.name_of(0)
    assert name == f"{tmp_path / f's-{number // 5:03}.tar'}, set/{number:04}.png"


def test_the_index_is_kept_and_made_anew(tmp_path, monkeypatch):
    pattern, passes = write_set(tmp_path), []
    scan = webdataset_index._Scan.index
    monkeypatch.setattr(
        webdataset_index._Scan, "index", lambda self: passes.append(self.file.name) or scan(self)
    )
    list_shards(pattern)
    assert passes == ["s-000.tar", "s-001.tar", "s-002.tar"]
    want = list_shards(pattern).parts["train"].targets.tolist()
    assert len(passes) == 3 and want == LABELS
    # Another shard, other fields, or a damaged index: only what changed is read again.
    write_shard(tmp_path / "s-001.tar", [sample(i, 1) for i in range(5)], 50)
    (tmp_path / "s-002.tar.index.npz").write_bytes(b"PK")
    assert list_shards(pattern).parts["train"].targets.tolist()[5:10] == [1] * 5
    assert passes[3:] == ["s-001.tar", "s-002.tar"]
    (tmp_path / "s-000.tar").touch()
    for _ in range(2):  # it may change again within a tick of the clock
        list_shards(tmp_path / "s-000.tar")
    assert passes[5:] == ["s-000.tar"] * 2


def test_a_damaged_index_is_made_anew(tmp_path):
    file = write_shard(tmp_path / "s.tar", [sample(i, i % 3) for i in range(9)])
    want = list_shards(file).parts["train"].targets.tolist()
    place = tmp_path / "s.tar.index.npz"
    content = place.read_bytes()
    for at in range(0, len(content), 7):
        place.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        listed = list_shards(file)
        assert listed.parts["train"].targets.tolist() == want and listed.classes == ["0", "1", "2"]
        place.write_bytes(content[:at])
        assert list_shards(file).parts["train"].targets.tolist() == want


@pytest.mark.parametrize(
    "change", [{"codes": 7}, {"codes": -1}, {"sizes": 1 << 50}, {"sizes": -1}, {"offsets": 1 << 50}]
)
def test_an_index_that_does_not_fit_its_shard_is_made_anew(tmp_path, change):
    file = write_shard(tmp_path / "s.tar", [sample(i, i % 3) for i in range(9)])
    want = list_shards(file).parts["train"].targets.tolist()
    place = tmp_path / "s.tar.index.npz"
    with np.load(place) as content:
        arrays = dict(content)
    for name, value in change.items():
        arrays[name][3] = value
    np.savez(place, **arrays)
    assert list_shards(file).parts["train"].targets.tolist() == want
    assert load(file, size=8).shot_counts.sum() == len(want)


def test_a_read_only_folder_has_its_index_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
    pattern = write_set(tmp_path / "data")
    replaced = webdataset_index.replaced_file

    def refuse(place):
        if place.parent == tmp_path / "data":
            raise UserError("read-only")
        return replaced(place)

    monkeypatch.setattr(webdataset_index, "replaced_file", refuse)
    list_shards(pattern)
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 3
    monkeypatch.setattr(webdataset_index._Scan, "index", None)
    assert len(list_shards(pattern).parts["train"]) == 15


def test_digests_are_cached_until_a_shard_changes(tmp_path, monkeypatch):
    from ltlearn.data import digests

    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SLOW_S", -1.0)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    pattern = write_set(tmp_path / "data")
    data = list_shards(pattern).parts["train"]
    want = data.digested().digests
    monkeypatch.setattr(digests, "_digest_file", None)
    assert np.array_equal(data.digested().digests, want)
    monkeypatch.undo()
    turned = data.part(np.arange(15)[::-1].copy()).digested().digests
    assert np.array_equal(turned, want[::-1])


# ---------------------------------------------------------------- parts


def test_names_of_shards_or_folders_decide_the_part(tmp_path):
    write_set(tmp_path / "flat", name="my-train")
    write_set(tmp_path / "flat", [2, 1], 1, name="my-val", first=50)
    write_set(tmp_path / "flat", [0, 1], 1, name="my-test", first=60)
    write_set(tmp_path / "deep" / "Train")
    write_set(tmp_path / "deep" / "validation", [0, 2], 1, first=50)
    flat = LTDataLoaders.from_path(tmp_path / "flat", device="cpu")
    assert [flat.train.n, flat.valid.n, flat.test.n] == [15, 2, 2]
    assert flat.valid.dataset.targets.tolist() == [2, 1]
    assert (flat.split.name, flat.split.dataset) == ("shards by part", "flat")
    deep = LTDataLoaders.from_path(tmp_path / "deep", device="cpu")
    assert [deep.train.n, deep.valid.n, deep.test] == [15, 2, None]
    listed = list_images(
        tmp_path / "flat" / "my-train-*.tar",
        valid=str(tmp_path / "flat" / "my-val-000.tar"),
    )
    assert {part: len(data) for part, data in listed.parts.items()} == {"train": 15, "valid": 2}
    files = [tmp_path / "flat" / f"my-train-00{k}.tar" for k in (2, 0)]
    assert len(list_shards(files).parts["train"]) == 10


def test_what_is_a_set_of_shards(tmp_path, write_classes):
    photos = write_classes(tmp_path / "photos", {"ant": 2, "bee": 2})
    (photos / "backup.tar").write_bytes(b"")
    assert source_kind(photos) == "folder"
    write_set(tmp_path / "shards")
    assert source_kind(tmp_path / "shards") == "webdataset"
    assert source_kind(tmp_path / "shards" / "s-{000..002}.tar") == "webdataset"


# ---------------------------------------------------------------- labels and counts


def test_labels_may_be_text_or_in_json(tmp_path):
    words = ["10_cat", "2_ant"]
    as_json = [{"png": encoded(i), "json": json.dumps({"y": i % 2, "label": words[i % 2], "f": 0.5})
                .encode()} for i in range(4)]  # fmt: skip
    file = write_shard(tmp_path / "a.tar", as_json)
    assert list_shards(file).classes == ["2_ant", "10_cat"]
    assert list_shards(file).parts["train"].targets.tolist() == [1, 0, 1, 0]
    assert list_shards(file, label_options("y")).classes == ["0", "1"]
    message = sentence(lambda: list_shards(file, label_options("f")))
    assert f"{file}: the label of the sample 'set/0000' is 0.5" in message
    message = sentence(lambda: list_shards(file, label_options("g")))
    assert f"{file}: the sample 'set/0000' has no label" in message and "'g'" in message
    two = [{"jpg": encoded(i), "png": encoded(i), "species.txt": b"x%d\n" % i} for i in range(2)]
    file = write_shard(tmp_path / "b.tar", two)
    assert "has several images (.jpg, .png, .species.txt)" in sentence(lambda: list_shards(file))
    listed = list_shards(file, label_options("species.txt", "png"))
    assert listed.classes == ["x0", "x1"]


def label_options(label, image=None):
    from ltlearn.data.options import ReadOptions

    return ReadOptions(label_col=label, image_col=image)


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_counts_name_the_classes_and_notice_a_missing_shard(tmp_path, caplog, suffix):
    pattern, file = write_set(tmp_path), tmp_path / f"counts{suffix}"

    def write(counts):
        text = "class,count\n" + "".join(f"{name},{n}\n" for name, n in counts.items())
        file.write_text(json.dumps(counts) if suffix == ".json" else text)

    write({"cat": 8, "ant": 4, "bee": 3, "emu": 0})
    dls = load(pattern, counts=file)
    assert dls.vocab == ["cat", "ant", "bee", "emu"] and dls.shot_counts.tolist() == [8, 4, 3, 0]
    assert "1 class has no training image: emu" in caplog.messages
    write({"cat": 8, "ant": 4, "bee": 5})
    message = sentence(lambda: load(pattern, counts=file))
    assert f"the shards have 3 of 5 images of 'bee' in {file}; fetch the shards" in message
    assert load(pattern, counts=file, skip_bad=True).shot_counts.tolist() == [8, 4, 3]
    write({"cat": 8, "ant": 4})
    message = sentence(lambda: load(pattern, counts=file))
    assert f"{tmp_path / 's-002.tar'}, sample 2: the label '2' is none of the 2 classes" in message
    write({"cat": 8, "ant": -4})
    assert f"{file} has the number -4; " in sentence(lambda: load(pattern, counts=file))
    file.write_text("{" if suffix == ".json" else "a,b\nx,y\n")
    assert f"{file} must map the name of each class" in sentence(lambda: load(pattern, counts=file))
    file.unlink()
    assert f"cannot read {file} (" in sentence(lambda: load(pattern, counts=file))


def test_a_class_that_training_lacks_is_named(tmp_path):
    train = write_set(tmp_path)
    valid = write_set(tmp_path, [0, 7], 1, name="v", first=50)
    message = sentence(lambda: load(train, valid))
    assert "v-000.tar, sample 1: the validation label '7' is not among the training" in message


# ---------------------------------------------------------------- what cannot be used


def test_a_cut_shard_is_noticed_and_its_rest_left_out(tmp_path, caplog):
    file = write_shard(tmp_path / "s.tar", [sample(i, i % 2) for i in range(6)])
    whole = file.read_bytes()
    # A sample takes a header and a block for the image, and the same for the label.
    for end, left in ((4 * 2048 + 700, 4), (4 * 2048 + 1536, 4), (4 * 2048, 4), (100, 0)):
        file.write_bytes(whole[:end])
        message = sentence(lambda: list_shards(file))
        assert f"the shard {file} is damaged" in message and "skip_bad=True" in message
        if left:
            listed = list_images(file, skip_bad=True)
            assert len(listed.parts["train"]) == left
            assert f"the shard {file} is damaged" in caplog.messages[-1]
    broken = bytearray(whole)
    broken[2 * 2048 : 2 * 2048 + 512] = b"\x01" * 512
    file.write_bytes(broken)
    assert "no header at byte 4,096" in sentence(lambda: list_shards(file))
    assert len(list_images(file, skip_bad=True).parts["train"]) == 2
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_truncated_image_is_named_or_left_out(tmp_path, in_memory):
    samples = [sample(i, label, 40) for i, label in enumerate(LABELS)]
    samples[3]["png"] = samples[3]["png"][:300]
    file = write_shard(tmp_path / "s.tar", samples)
    options = {"size": 8, "in_memory": in_memory, "bs": 4}
    message = sentence(lambda: [epoch(dl) for dl in load(file, **options)])
    assert f"cannot read the image {file}, set/0003.png (" in message
    dls = load(file, skip_bad=True, **options)
    assert dls.skipped == [f"{file}, set/0003.png"] and dls.shot_counts.tolist() == [7, 4, 3]


def test_samples_that_cannot_be_used(tmp_path, caplog):
    def one(members) -> object:
        with tarfile.open(tmp_path / "s.tar", "w") as archive:
            for name, data in members:
                add(archive, name, data)
        return tmp_path / "s.tar"

    image, rows = encoded(0), [("b.png", encoded(1)), ("b.cls", b"1")]
    file = one([("a.png", image), ("a.cls", b"0"), *rows, ("a.cls", b"2")])
    assert "the key 'a' occurs twice" in sentence(lambda: list_shards(file))
    file = one([("a.png", image), ("a.PNG", image), ("a.cls", b"0")])
    assert "has two files 'a.PNG'" in sentence(lambda: list_shards(file))
    file = one([("a.png", image), ("a.txt", b"0")])
    assert "'a' has no label (.cls" in sentence(lambda: list_shards(file))
    file = one([("a.png", image), ("a.cls", b" ")])
    assert "'a' has no label" in sentence(lambda: list_shards(file))
    file = one([("a.png", image), ("a.json", b"{")])
    assert "cannot read 'a.json'" in sentence(lambda: list_shards(file))
    file = one([("__info__/x.json", b"{}"), ("a.cls", b"0"), *rows])
    assert "'a' has no image, only .cls" in sentence(lambda: list_shards(file))
    assert len(list_images(file, skip_bad=True).parts["train"]) == 1
    assert "left out: " in caplog.messages[-1]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("https://host/s-{000..002}.tar", "is remote or a pipe"),
        ("pipe:cat s.tar", "is remote or a pipe"),
        ("gone-{0..2}.tar", "there is no gone-0.tar, nor 2 more of the shards"),
        ("*-none.tar", "names no shards"),
        ("${NONE}.tar", "cannot be expanded"),
        ([], "no shards are given"),
    ],
)
def test_names_that_lead_to_no_shards(given, reason):
    assert reason in sentence(lambda: load(given))


def test_shards_that_are_given_twice_or_compressed(tmp_path):
    pattern = write_set(tmp_path)
    file = tmp_path / "s-000.tar"
    assert "1 of the shards" in sentence(lambda: load([file, file]))
    assert f"{file} is given for training and for test" in sentence(
        lambda: load(pattern, test=file)
    )
    (tmp_path / "z.tar").write_bytes(gzip.compress(file.read_bytes()))
    assert "z.tar is compressed" in sentence(lambda: load(tmp_path / "z.tar"))
    write_set(tmp_path / "d", name="train")
    write_set(tmp_path / "d", name="other")
    assert "has none of the words train" in sentence(lambda: load(tmp_path / "d"))
    assert "split_col is for " in sentence(
        lambda: LTDataLoaders.from_path(tmp_path / "s-000.tar", split_col="x")
    )


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    pattern = write_set(tmp_path)
    from ltlearn.utils import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert "pip install 'ltlearn[webdataset]'" in sentence(lambda: load(pattern))


# ---------------------------------------------------------------- training and inspection


def test_a_stopped_fit_goes_on_exactly(tmp_path):
    pattern = write_set(tmp_path / "data", labels=[0] * 12 + [1] * 8 + [2] * 6)

    def make():
        dls = load(pattern, size=8, in_memory=False, bs=4, transform="crop_flip")
        return make_lt_learner(dls)

    check_resumed(stage1, tmp_path / "checkpoints", make)


def test_the_command_line_trains_on_shards(tmp_path):
    pattern = write_set(tmp_path / "data")
    valid = write_set(tmp_path / "data", [0, 1, 2], 1, name="v", first=50)
    (tmp_path / "counts.json").write_text(json.dumps({"cat": 8, "ant": 4, "bee": 3}))
    train = ("train", pattern, "--valid", valid, "--epochs", 1, "--out", "run", "--device", "cpu")
    small = ("--set", "stage2.epochs=1", "--set", "data.counts=counts.json", "--json")
    done = ltlearn(*train, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    values = manifest["values"]
    assert values["data"]["counts"] == str(tmp_path / "counts.json")
    assert values["model"]["arch"] == "resnet32_cifar"  # by the size of the images
    assert manifest["recipe"] == "own-s-000..002" and manifest["classes"] == ["cat", "ant", "bee"]
    done = ltlearn("inspect", pattern, "--json")
    assert json.loads(done.stdout)["counts"] == {"train": [8, 4, 3]}


def test_shards_are_inspected(tmp_path):
    pattern = write_set(tmp_path, shards=1)
    shard = tmp_path / "s-000.tar"
    copies = [sample(0, 0), sample(0, 0), sample(3, 1), sample(4, 1), {"png": b"x", "cls": b"1"}]
    write_shard(shard, copies)
    report = inspect_path(pattern)
    assert report.counts == {"train": [2, 3]} and report.duplicates.copies_within == 1
    assert [image.path for image in report.unreadable] == [f"{shard}, set/0004.png"]
    assert "LTDataLoaders.from_webdataset(" in report.advice.code
    assert repr(pattern) in report.advice.code
