"""Hugging Face datasets: a look-alike that always runs, and the real ones where installed."""

import importlib.util
import io
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from ltlearn.callbacks.glmc import _InversePowerSampler, _PairLoader
from ltlearn.data import digests
from ltlearn.data.datasets import ImageFiles, ImagesInMemory
from ltlearn.data.loaders import LTDataLoaders
from tests.data.readers.helpers import encoded, epoch, sentence

NAMES = ["ant", "bee", "cat"]
LABELS = [0] * 8 + [1] * 4 + [2] * 3


class Image:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    def __init__(self, names):
        self.names = names


class Value:
    pass


class Fake:
    """The part of `datasets.Dataset` that is used."""

    def __init__(self, columns: dict, features: dict):
        self.columns, self.features, self.reads = columns, features, []

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        self.reads.append(key)
        return {name: self._cell(name, values[key]) for name, values in self.columns.items()}

    def _cell(self, name, value):
        feature = self.features[name]
        if type(feature) is Image and feature.decode:
            raise AssertionError("nothing is to be decoded by the dataset")
        return value

    def with_format(self, kind):
        assert kind is None
        return self

    def select_columns(self, names):
        return Fake({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

    def cast_column(self, name, feature):
        out = Fake(self.columns, {**self.features, name: feature})
        out.reads = self.reads
        return out


def fake(labels=LABELS, first=0, side=8, names=NAMES) -> Fake:
    images = [{"bytes": encoded(first + i, side), "path": f"{i}.png"} for i in range(len(labels))]
    kind = Value() if names is None else ClassLabel(names)
    return Fake({"img": images, "label": list(labels)}, {"img": Image(), "label": kind})


def from_hf(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_hf(*args, device="cpu", **kwargs)


# ---------------------------------------------------------------- the look-alike


def test_small_images_are_held_in_memory():
    dls = from_hf(fake(), bs=4)
    assert isinstance(dls.train.dataset, ImagesInMemory) and dls.size == (8, 8)
    assert dls.vocab == NAMES and dls.shot_counts.tolist() == [8, 4, 3]
    assert (dls.split.name, dls.split.dataset) == ("one dataset", "dataset")
    assert dls.split.valid_from == "training images"


def test_the_same_images_in_a_folder_have_the_same_name(tmp_path):
    for i, c in enumerate(LABELS):
        (tmp_path / NAMES[c]).mkdir(exist_ok=True)
        (tmp_path / NAMES[c] / f"{i}.png").write_bytes(encoded(i))
    folder = LTDataLoaders.from_folder(tmp_path, device="cpu", bs=4)
    dls = from_hf(fake(), bs=4)
    assert dls.split.train == folder.split.train
    for (x, y), (u, v) in zip(epoch(dls.train), epoch(folder.train), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_large_images_are_read_when_they_are_needed():
    data = fake(side=100)
    dls = from_hf(data, bs=4, size=32, in_memory=False)
    rows = dls.train.dataset.data.root.data
    assert isinstance(dls.train.dataset, ImageFiles) and rows is not data
    # Each once for the fingerprint, and a look at their size beforehand.
    assert len(rows.reads) <= 2 * len(LABELS)
    rows.reads.clear()
    x, y = dls.train.one_batch()
    assert x.shape == (4, 3, 32, 32) and len(rows.reads) <= 8
    # In memory, images of the same fingerprint are resized in another way.
    assert dls.train.dataset.files_name.startswith("rows ")
    again = from_hf(data, size=32, in_memory=False)
    assert again.split == dls.split
    assert again.train.dataset.files_name == dls.train.dataset.files_name
    assert from_hf(fake(first=1, side=100), in_memory=False).split.train != dls.split.train


@pytest.mark.parametrize("make", [fake, lambda: real()])
def test_workers_and_views_give_the_same(make):
    if make is not fake:
        pytest.importorskip("datasets")
    options = {"bs": 4, "size": 8, "in_memory": False, "transform": "crop_flip"}
    want = epoch(from_hf(make(), num_workers=0, **options).train)
    dls = from_hf(make(), num_workers=2, **options)
    for (x, y), (u, v) in zip(epoch(dls.train), want, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
    assert not multiprocessing.active_children()
    data = from_hf(make(), num_workers=0, **options).train.dataset
    pairs = dls.train.new(data, cls=_PairLoader, num_workers=0)
    targets = np.asarray(data.targets)
    pairs.use(_InversePowerSampler(targets, 0, 1.0))
    x, y, other = next(iter(pairs))
    assert x.shape == (16, 3, 8, 8) and len(y) == len(other) == 4
    views = data.get_views(2, [None, 5, 5])
    assert torch.equal(views[0], data.get(2)[0]) and torch.equal(views[1], views[2])


def test_a_row_number_takes_eight_bytes():
    data = from_hf(fake(), in_memory=False, size=8).train.dataset.data
    assert data.paths.numbers.nbytes == 8 * len(data)
    assert data.paths[0] == str(data.paths.numbers[0]) and data.paths[:2].numbers.tolist() == [
        int(path) for path in list(data.paths)[:2]
    ]
    again = data.part(np.array([3, 1]))
    assert list(again.paths) == [data.paths[3], data.paths[1]]


def test_export_leaves_the_dataset_behind():
    dls = from_hf(fake(), in_memory=False, size=8)
    empty = dls.new_empty()
    assert len(pickle.dumps(empty.train.dataset.data)) < 2_000
    assert empty.train.dataset.data.root is None


def test_parts_and_their_class_names(caplog):
    parts = {
        "Train": fake(), "validation": fake([2, 1], 50, names=["cat", "ant", "bee"]),
        "test": fake([1, 1], 60), "unsupervised": fake([0], 70),
    }  # fmt: skip
    dls = from_hf(parts)
    assert [dls.train.n, dls.valid.n, dls.test.n] == [15, 2, 2]
    assert dls.valid.dataset.targets.tolist() == [1, 0]
    assert dls.split.name == "dataset splits" and dls.split.valid_from == "validation set"
    assert any("left out the part 'unsupervised'" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([["no", "yes", "Yes 2"][c] for c in LABELS], ["Yes 2", "no", "yes"]),
        ([c * 9 for c in LABELS], ["0", "9", "18"]),
    ],
)
def test_labels_may_be_text_or_integers(labels, classes):
    assert from_hf(fake(labels, names=None)).vocab == classes


def test_a_class_of_the_feature_may_have_no_image(caplog):
    dls = from_hf(fake(names=[*NAMES, "dog"]))
    assert dls.class_counts.tolist()[3] == 0
    assert "1 class has no training image: dog" in caplog.messages


def test_columns_are_found_named_and_missed():
    data = fake()
    data.columns = {"fine": LABELS, "coarse": [0] * 15, "a": data.columns["img"]}
    data.features = {"fine": ClassLabel(NAMES), "coarse": ClassLabel(["x", "y"]), "a": Image()}
    assert from_hf(data, label_col="fine").vocab == NAMES
    assert (
        "dataset has no one column of the labels (label_col); its columns are fine, coarse, a"
        in (sentence(lambda: from_hf(data)))
    )
    assert "no column 'x' (image_col)" in sentence(lambda: from_hf(data, image_col="x"))
    assert "holds int, no encoded" in sentence(
        lambda: from_hf(data, image_col="coarse", label_col="fine", size=8)
    )


def test_images_may_be_bytes_or_paths(tmp_path):
    want = from_hf(fake()).split.train
    contents = [p["bytes"] for p in fake().columns["img"]]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.png").write_bytes(content)
    files = [str(tmp_path / f"{i}.png") for i in range(15)]
    for cells in (contents, files, [{"bytes": None, "path": f} for f in files]):
        kinds = {"image": Value(), "label": ClassLabel(NAMES)}
        data = Fake({"image": cells, "label": LABELS}, kinds)
        assert from_hf(data).split.train == want
        on_demand = from_hf(data, in_memory=False, size=8)
        assert on_demand.split.train == from_hf(fake(), in_memory=False, size=8).split.train
    (tmp_path / "3.png").unlink()
    assert f"cannot read the image {tmp_path / '3.png'} (No such file" in sentence(
        lambda: from_hf(data, in_memory=False, size=8)
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_are_named_or_left_out(bad_images, in_memory):
    data = fake()
    for i, content in enumerate(bad_images.values()):
        data.columns["img"][i] = {"bytes": content, "path": None}
    data.columns["img"][7] = None
    options = {"size": 8, "in_memory": in_memory, "bs": 4}
    reason = sentence(lambda: epoch(from_hf(data, **options).train))
    assert reason.startswith("cannot read the image dataset, row ")
    dls = from_hf(data, skip_bad=True, **options)
    assert dls.shot_counts.tolist() == [3, 4, 3]
    want = [f"dataset, row {i}" for i in range(4)] + ["dataset, row 7 (which is empty)"]
    assert dls.skipped == want


def test_every_mode_of_image_is_read():
    modes = {"L": "PNG", "P": "PNG", "CMYK": "JPEG", "1": "PNG", "I;16": "PNG"}
    cells = []
    for mode, kind in modes.items():
        buffer = io.BytesIO()
        Pillow.new(mode, (8, 8), 40 * 256 if mode == "I;16" else 0).save(buffer, kind)
        cells += [{"bytes": buffer.getvalue(), "path": None}] * 2
    kinds = {"img": Image(), "label": ClassLabel(["a", "b"])}
    dls = from_hf(Fake({"img": cells, "label": [0, 1] * 5}, kinds), transform="none", valid_pct=0.5)
    pixels = torch.cat([x for dl in (dls.train, dls.valid) for x, _ in epoch(dl)])
    values = (pixels * dls.normalize.std + dls.normalize.mean).round().amax((1, 2, 3))
    assert sorted(values.tolist()) == [0] * 6 + [40] * 2 + [255] * 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: 5, "dataset is a int, no dataset; give a datasets.Dataset"),
        (lambda: {"train": [1]}, "dataset['train'] is a list, no dataset"),
        (lambda: {}, "dataset has no part 'train', only"),
        (lambda: {"test": fake()}, "dataset has no part 'train', only 'test'"),
        (lambda: {"val": 1, "valid": 2, "train": fake()}, "has two validation parts"),
        (lambda: fake([]), "dataset has no rows"),
        (lambda: {"train": fake(), "test": fake([])}, "dataset['test'] has no rows"),
        (lambda: fake([0, 1, -1]), "dataset, row 2 has no label (column 'label': -1)"),
        (lambda: fake([0, 3]), "dataset, row 1 has no label (column 'label': 3)"),
        (lambda: fake([0, None]), "dataset, row 1 has no label (column 'label': None)"),
        (lambda: fake(["a", " "], names=None), "dataset, row 1 has no label"),
        (lambda: fake([0.5, 1], names=None), "row 0: the label 0.5 is neither text nor"),
        (lambda: fake(["a", "a"], names=None), "dataset has only the class 'a'"),
        (
            lambda: {"train": fake(), "test": fake([0, 3], names=[*NAMES, "emu"])},
            "dataset['test'], row 1: the test label 'emu' is not among the training labels",
        ),
        (lambda: "no/such/folder", "no/such/folder is no folder that save_to_disk wrote"),
    ],
)
def test_datasets_that_cannot_be_used(make, reason):
    assert reason in sentence(lambda: from_hf(make()))


def test_a_streamed_dataset_is_refused():
    class Streamed:
        features = {"img": Image(), "label": ClassLabel(NAMES)}

        def __iter__(self):
            return iter(())

    assert "dataset is streamed; give" in sentence(lambda: from_hf(Streamed()))


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is there")
def test_without_the_package_the_extra_is_named(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert sentence(lambda: LTDataLoaders.from_path(tmp_path)) == (
        f"reading {tmp_path} needs Hugging Face datasets: pip install 'ltlearn[hf]'."
    )


# ---------------------------------------------------------------- the real ones


def real(labels=LABELS, first=0, names=NAMES):
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    cells = [{"bytes": encoded(first + i), "path": None} for i in range(len(labels))]
    return datasets.Dataset.from_dict(
        {"img": cells, "label": list(labels)}, features=datasets.Features(features)
    )


def test_a_real_dataset_and_one_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    want = from_hf(fake(), in_memory=False, size=8)
    dls = from_hf(real(), in_memory=False, size=8)
    assert dls.split == want.split and dls.vocab == NAMES
    assert from_hf(real()).split == from_hf(fake()).split
    assert from_hf(real().with_format("numpy")).split == from_hf(fake()).split
    both = datasets.DatasetDict(train=real(), test=real([0, 1], 40))
    both.save_to_disk(tmp_path / "both")
    real().save_to_disk(tmp_path / "one")
    for in_memory in (True, False):
        saved = LTDataLoaders.from_path(
            tmp_path / "both", device="cpu", in_memory=in_memory, size=8, num_workers=2, bs=4
        )
        assert saved.split.dataset == "both" and saved.test.n == 2
        assert sum(len(y) for _, y in epoch(saved.train)) in (12, 11)
    one = LTDataLoaders.from_path(tmp_path / "one", device="cpu")
    assert one.split.train == from_hf(fake()).split.train and one.split.dataset == "one"
    (tmp_path / "one" / "state.json").write_text("{")
    assert "cannot read the dataset" in sentence(lambda: from_hf(tmp_path / "one"))


def test_a_saved_dataset_is_mapped_and_its_digests_are_cached(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SLOW_S", -1.0)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    real().save_to_disk(tmp_path / "set")
    want = from_hf(tmp_path / "set", size=8, in_memory=False)
    rows = want.train.dataset.data.root
    assert [file.suffix for file in rows.files] == [".arrow"]
    monkeypatch.setattr(digests, "_digest_file", None)  # no image is opened for the fingerprint
    again = from_hf(tmp_path / "set", size=8, in_memory=False)
    assert again.split == want.split
    # Rows in memory have no files, and a cut dataset shares those of the whole one.
    assert not from_hf(real(), size=8).train.dataset.listed.root.files


def test_a_real_dataset_that_was_shuffled_or_cut_keeps_its_rows():
    pytest.importorskip("datasets")
    dls = from_hf(real().shuffle(seed=1), in_memory=False, size=8)
    assert dls.split.train == from_hf(fake(), in_memory=False, size=8).split.train
    assert from_hf(real().select(range(4, 15))).shot_counts.tolist() == [4, 4, 3]


def test_a_real_streamed_dataset_is_refused():
    pytest.importorskip("datasets")
    assert "is streamed" in sentence(lambda: from_hf(real().to_iterable_dataset()))
