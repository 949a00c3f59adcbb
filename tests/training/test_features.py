import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ltlearn import FeatureBank, UserError
from ltlearn.data.datasets import ImageFiles, NormalizeUint8
from ltlearn.data.images import ImageSet
from ltlearn.data.loader import LTDataLoader
from ltlearn.models.pretrained import create_lt_model
from ltlearn.training.features import Features, _ViewOnDisk, weights_fingerprint
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner


class Counting(nn.Module):
    """A backbone that counts its batches and can fail in one of them."""

    def __init__(self, seed=0, fail_at=None, error=KeyboardInterrupt):
        super().__init__()
        torch.manual_seed(seed)
        self.net = create_lt_model("resnet20_cifar", 3, False, width=4).backbone
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def forward(self, x):
        if self.calls == self.fail_at:
            raise self.error
        self.calls += 1
        return self.net(x)


@pytest.fixture(scope="module")
def dl():
    return make_dls().train


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Note the progress after every other batch."""
    monkeypatch.setattr("ltlearn.training.features._FLUSH_BATCHES", 2)


def folder_of(path):
    (folder,) = path.iterdir()
    return folder


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_are_the_backbones_output(dl, tmp_path, dtype, where):
    bank = FeatureBank(tmp_path if where == "disk" else None, dtype)
    backbone = Counting().train()
    backbone.net.bn1.eval()
    modes = [m.training for m in backbone.modules()]
    features = bank.features(backbone, dl, "data")
    assert [m.training for m in backbone.modules()] == modes
    calls = backbone.calls
    again = bank.features(backbone, dl, "data")
    assert calls == len(dl) and backbone.calls == calls, "the second call computes nothing"

    plain = dl.new(shuffle=False, augment=False)
    x, y = zip(*plain, strict=True)
    with torch.no_grad():
        expected = backbone.eval()(torch.cat(x)).numpy()
    for f in (features, again):
        assert f.views[0].dtype == dtype and f.views[0].shape == (56, 16)
        np.testing.assert_allclose(f.views[0], expected, rtol=1e-3 if dtype == "float16" else 1e-5)
        assert torch.equal(f.targets, torch.cat(y))


def test_memory_holds_one_set_of_weights(dl):
    bank = FeatureBank()
    first = bank.features(Counting(0), dl, "data")
    bank.features(Counting(1), dl, "data")
    bank.features(Counting(1), dl, "other")
    assert len(bank._memory) == 2 and not any(a is first.views[0] for a in bank._memory.values())


def test_the_key_has_all_that_matters(tmp_path):
    dls = make_dls()
    backbone, bank = Counting(), FeatureBank(tmp_path)
    base = {"backbone": backbone, "dl": dls.train, "data": "a", "views": 1, "seed": 0}
    bank.features(**base)

    def runs(bank=bank, **change):
        given = {**base, **change}
        before = given["backbone"].calls
        bank.features(**given)
        return given["backbone"].calls - before

    n = len(dls.train)
    assert runs() == 0
    assert runs(backbone=Counting(1)) == n
    assert runs(data="b") == n
    assert runs(views=0) == n
    assert runs(views=2) == n, "the first view is known, the second is not"
    assert runs(seed=1) == n
    assert runs(dl=make_dls(transform="crop").train) == n
    assert runs(dl=make_dls(pad=3).train) == n
    assert runs(dl=make_dls(stats=([0.5] * 3, [0.5] * 3)).train) == n
    assert runs(bank=FeatureBank(tmp_path, "float32")) == n

    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    bf16.dtype = torch.bfloat16
    assert runs(autocast=bf16) == n
    with torch.no_grad():
        backbone.net.bn1.running_mean[0] += 1
    assert runs() == n, "buffers count"
    assert runs() == 0


def test_networks_that_differ_in_what_has_no_weights(dl, tmp_path):
    bank = FeatureBank(tmp_path)
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    mean = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    most = nn.Sequential(conv, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert weights_fingerprint(mean) == weights_fingerprint(most)
    a, b = (bank.features(m, dl, "data").views[0] for m in (mean, most))
    assert (a < b).all()


def test_views_differ_and_repeat(dl):
    a, b = FeatureBank().features(Counting(), dl, "d", views=2, seed=3).views
    c, d = FeatureBank().features(Counting(), dl, "d", views=2, seed=3).views
    assert np.array_equal(a, c) and np.array_equal(b, d)
    assert not np.array_equal(a, b)


def test_a_training_without_augmentation_has_one_pass():
    plain = make_dls(transform="none").train
    backbone, bank = Counting(), FeatureBank()
    first, second = bank.features(backbone, plain, "d", views=2, seed=3).views
    bank.features(backbone, plain, "d", views=1, seed=4)
    (evaluated,) = bank.features(backbone, plain, "d").views
    assert backbone.calls == len(plain)
    assert np.array_equal(first, second) and np.array_equal(first, evaluated)


# ------------------------------------------------ interruptions


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no")])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_an_extraction_that_was_cut_short_goes_on(dl, tmp_path, views, error, after):
    whole = FeatureBank(None).features(Counting(), dl, "data", views).views
    bank = FeatureBank(tmp_path)
    with pytest.raises(type(error)):
        bank.features(Counting(fail_at=after, error=error), dl, "data", views)
    backbone = Counting()
    views_now = bank.features(backbone, dl, "data", views).views
    assert backbone.calls == len(whole) * len(dl) - after, "nothing is computed twice"
    assert all(np.array_equal(a, b) for a, b in zip(whole, views_now, strict=True))
    for folder in tmp_path.iterdir():
        assert {f.name for f in folder.iterdir()} == {"features.npy", "key.json"}


def kill_in_the_middle(dl, path, monkeypatch, views):
    """Leave what a killed process leaves: the last note it wrote, later rows beyond it."""
    flush = _ViewOnDisk.flush

    def flush_once(self, done):
        if done == 16:
            flush(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(_ViewOnDisk, "flush", flush_once)
        with pytest.raises(KeyboardInterrupt):
            FeatureBank(path).features(Counting(fail_at=3), dl, "data", views)


@pytest.mark.parametrize("views", [0, 1])
@pytest.mark.parametrize(
    "damage", ["none", "no note", "torn note", "a list", "wrong number", "lost rows", "cut", "text"]
)
def test_a_kill_in_the_middle(dl, tmp_path, monkeypatch, views, damage):
    whole = FeatureBank(None).features(Counting(), dl, "data", views).views[0]
    kill_in_the_middle(dl, tmp_path, monkeypatch, views)
    folder = folder_of(tmp_path)
    assert ".part-" in folder.name
    note, partial = folder / "key.json", folder / "features.npy"
    assert json.loads(note.read_text())["images"] == 16
    if damage == "no note":
        note.unlink()
    elif damage == "torn note":
        note.write_text('{"images": 1')
    elif damage == "a list":
        note.write_text("[16]")
    elif damage == "wrong number":
        note.write_text(note.read_text().replace('"images": 16', '"images": 24'))
    elif damage == "lost rows":
        rows = np.load(partial, mmap_mode="r+")
        rows[8:16] = 0
        rows.flush()
    elif damage == "cut":
        partial.write_bytes(partial.read_bytes()[:300])
    elif damage == "text":
        partial.write_text("no array")
    backbone = Counting()
    got = FeatureBank(tmp_path).features(backbone, dl, "data", views).views[0]
    assert np.array_equal(got, whole)
    assert backbone.calls == len(dl) - (2 if damage == "none" else 0)
    assert [f.name for f in tmp_path.iterdir()] == [folder.name.partition(".part-")[0]]


@pytest.mark.parametrize(
    "damage",
    ["cut", "one byte", "other shape", "other dtype", "text", "header", "no key", "other key"],
)
def test_a_damaged_or_foreign_array_is_computed_again(dl, tmp_path, caplog, damage):
    bank = FeatureBank(tmp_path)
    whole = np.array(bank.features(Counting(), dl, "data").views[0])
    file, key = folder_of(tmp_path) / "features.npy", folder_of(tmp_path) / "key.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "one byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "other shape":
        np.save(file, np.zeros((56, 4), dtype=np.float16))
    elif damage == "other dtype":
        np.save(file, whole.astype(np.float64))
    elif damage == "text":
        file.write_text("no array")
    elif damage == "header":  # NumPy's parser raises an error of its own kind
        file.write_bytes(file.read_bytes().replace(b"}", b" ", 1))
    elif damage == "no key":
        key.unlink()
    else:
        key.write_text(key.read_text().replace('"data"', '"atad"'))
    backbone = Counting()
    with caplog.at_level("WARNING", "ltlearn"):
        got = bank.features(backbone, dl, "data").views[0]
    assert backbone.calls == len(dl) and np.array_equal(got, whole)
    assert "are damaged; they are computed again" in caplog.text


# ------------------------------------------------ errors


class Scaled(nn.Module):
    def __init__(self, factor, at=0):
        super().__init__()
        self.factor, self.at, self.seen = nn.Parameter(torch.tensor(factor)), at, 0

    def forward(self, x):
        out = x.mean((2, 3)).sign().abs() + 1
        first = self.at - self.seen
        self.seen += len(x)
        if 0 <= first < len(x):
            out[first] *= self.factor
        return out


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_features_that_do_not_fit(dl, tmp_path, where):
    path = tmp_path if where == "disk" else None
    message = r"features of image 11 reach 8e\+04, .*float16, 6.55e\+04: .*dtype='float32'"
    with pytest.raises(UserError, match=message):
        FeatureBank(path).features(Scaled(40_000.0, 11), dl, "data")
    big = FeatureBank(path, "float32").features(Scaled(40_000.0, 11), dl, "data").views[0]
    assert big.max() == 80_000
    for bad in (float("nan"), float("inf")):
        for dtype in ("float16", "float32"):
            # Another type of numbers would not help.
            with pytest.raises(UserError, match="image 3 are not finite: .* rate.$") as caught:
                FeatureBank(path, dtype).features(Scaled(bad, 3), dl, "data")
            assert "FeatureBank" not in str(caught.value)


def test_a_folder_that_cannot_be_written(dl, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="feature cache .* cannot be written .* set cache_path"):
        FeatureBank(tmp_path / "file" / "cache").features(Counting(), dl, "data")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EFBIG])
@pytest.mark.parametrize("call", ["os.mkdir", "os.posix_fallocate", "os.rename"])
def test_a_cache_that_fails(dl, tmp_path, monkeypatch, code, call):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, fail)
    with pytest.raises(UserError, match=rf"written \({os.strerror(code)}\); set cache_path to"):
        FeatureBank(tmp_path / "cache").features(Counting(), dl, "data")
    monkeypatch.undo()
    FeatureBank(tmp_path / "cache").features(Counting(), dl, "data")


def test_a_forbidden_cache_is_not_taken_for_a_fault_of_ours(dl, tmp_path, monkeypatch):
    """The folder of another user: looking for a file there fails already."""
    bank = FeatureBank(tmp_path)
    bank.features(Counting(), dl, "data")

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for name in ("open", "stat", "mkdir", "read_text"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("ltlearn.training.features.open", refuse, raising=False)
    with pytest.raises(UserError, match=r"\(Permission denied\); set cache_path"):
        bank.features(Counting(), dl, "data")


def test_a_full_disk(dl, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free spa"):
        FeatureBank(tmp_path).features(Counting(), dl, "data")
    monkeypatch.undo()
    FeatureBank(tmp_path).features(Counting(), dl, "data")


def test_an_error_of_the_backbone_is_not_taken_for_one_of_the_disk(dl, tmp_path):
    with pytest.raises(OSError, match="of the image"):
        FeatureBank(tmp_path).features(Counting(fail_at=1, error=OSError("of the image")), dl, "d")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_other_errors(dl):
    with pytest.raises(UserError, match="dtype must be .*, got 'int8'"):
        FeatureBank(dtype="int8")
    with pytest.raises(UserError, match=r"pooled features \(N, D\), got shape \(8, 3, 8, 8\)"):
        FeatureBank().features(nn.Identity(), dl, "data")
    with pytest.raises(UserError, match=r"pooled features \(N, D\), got type tuple"):
        FeatureBank().features(Pair(), dl, "data")


def test_features_are_a_dataset():
    views = [np.full((5, 2), v, dtype=np.float16) for v in (0, 1)]
    data = Features(views, torch.arange(5))
    x, y = data.get_batch([4, 0])
    assert x.dtype == torch.float32 and x.tolist() == [[0, 0], [0, 0]] and y.tolist() == [4, 0]
    drawn = torch.stack([data.get_batch(list(range(5)), seed)[0][:, 0] for seed in range(50)])
    assert 0.35 < drawn.mean() < 0.65 and (drawn.std(0) > 0.3).all()
    assert torch.equal(data.get_batch([1, 2], 7)[0], data.get_batch([1, 2], 7)[0])
    loader = LTDataLoader(data, 2, training=True, augment=True, device=torch.device("cpu"))
    seen = torch.cat([y for _, y in loader]).tolist()
    assert len(set(seen)) == len(seen) >= 4


def test_images_of_two_folders_do_not_share_features(tmp_path):
    """BMP files of one layout have equal sizes, which was all that the key knew of them."""
    names = [f"{i}.bmp" for i in range(3)]

    def write(folder, seed):
        (tmp_path / folder).mkdir(exist_ok=True)
        for i, name in enumerate(names):
            pixels = np.random.default_rng(seed + i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / name)

    def loader(folder):
        data = ImageSet(np.arange(3), paths=names, root=tmp_path / folder)
        normalize = NormalizeUint8([0.5] * 3, [0.25] * 3)
        return LTDataLoader(ImageFiles(data, size=8), bs=3, after_batch=[normalize])

    write("one", 0), write("two", 10)
    bank, backbone = FeatureBank(tmp_path / "bank"), Counting()

    def first(dl):
        return np.array(bank.features(backbone, dl, "data").views[0])

    one, two = first(loader("one")), first(loader("two"))
    assert backbone.calls == 2 and not np.array_equal(one, two)
    assert np.array_equal(one, first(loader("one"))) and backbone.calls == 2
    write("one", 20)
    for name in names:
        os.utime(tmp_path / "one" / name, ns=(1, 1))
    assert not np.array_equal(one, first(loader("one")))


def _file_pages_mib() -> int:
    line = next(x for x in open("/proc/self/status") if x.startswith("RssFile"))
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_a_large_file_of_features_does_not_stay_mapped(tmp_path, monkeypatch):
    """All of it once counted as memory of the process: 1.8 GB for iNaturalist."""
    n, width = 16_384, 2_048
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (n, width))
    array[:, 0] = np.arange(n) % 1000
    array.flush()
    del array
    monkeypatch.setattr("ltlearn.data.feature_rows._LARGE_FILE", 1 << 20)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    features = Features([mapped], torch.zeros(n, dtype=torch.int64))
    before = _file_pages_mib()
    order = np.random.default_rng(0).permutation(n)
    for start in range(0, n, 512):
        x, _ = features.get_batch(order[start : start + 512].tolist())
        assert x[:, 0].tolist() == (order[start : start + 512] % 1000).tolist()
    # Mapped, it would be all 64 MiB.
    assert mapped.nbytes == 64 << 20 and _file_pages_mib() - before < 16
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(UserError, match="end early; remove the file"):
        features.get_batch([n - 1])


def test_the_same_images_in_another_order_do_not_share_features(tmp_path):
    """They have one fingerprint, and their features once stood beside the targets of others."""
    images, targets = make_images([4, 4, 4], seed=1)
    made = []
    for order in (np.arange(12), np.random.default_rng(0).permutation(12), np.arange(12)):
        part = images[order], targets[order]
        dls = make_dls([8, 4, 2], valid=part, test=part)
        learn = make_lt_learner(dls, cache_path=tmp_path)
        cached, plain = learn.predict_logits("valid"), learn.predict_logits("valid", cached=False)
        torch.testing.assert_close(cached, plain)
        made.append((dls.split, learn.dls.valid.dataset.files_name))
    assert made[0] == made[2] and made[0][0] == made[1][0] and made[0][1] != made[1][1]
