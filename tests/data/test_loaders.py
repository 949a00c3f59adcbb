import logging
import multiprocessing
import os
from dataclasses import replace

import fastai.callback.progress  # noqa: F401  (gives a Learner no_bar)
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from PIL import Image
from scipy.stats import chisquare
from torch import nn
from torch.utils.data import WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from ltlearn.data.benchmarks.registry import BENCHMARKS
from ltlearn.data.datasets import ImageFiles, ImagesInMemory
from ltlearn.data.images import ImageSet, read_image
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.readers.folders import list_class_folders
from ltlearn.data.samplers import SAMPLERS, ClassBalancedSampler
from ltlearn.errors import UserError

COUNTS = {"ant": 20, "bee": 10, "cat": 4}


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.WARNING, "ltlearn")


@pytest.fixture
def folder(tmp_path, write_classes):
    return write_classes(tmp_path / "photos", COUNTS)


def from_folder(path, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_folder(path, device="cpu", **kwargs)


def from_arrays(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_arrays(*args, device="cpu", **kwargs)


def batches(dl) -> list[tuple]:
    return [tuple(t.clone() for t in b) for b in dl]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def numbered(n: int, side: int = 4) -> ImageSet:
    """Make images that identify themselves: all pixels of image i are i + 1."""
    images = np.broadcast_to(
        np.arange(1, n + 1, dtype=np.uint8)[:, None, None, None], (n, side, side, 3)
    )
    return ImageSet(np.arange(n) % 3, images=np.ascontiguousarray(images))


def numbers(dl) -> list[int]:
    """Return which images of `numbered` a pass shows, in order."""
    return [int(i) - 1 for x, _ in dl for i in x.amax((1, 2, 3))]


# ---------------------------------------------------------------- from_folder


def test_a_folder_of_class_folders(folder):
    dls = from_folder(folder, valid_pct=0.25)
    assert dls.vocab == ["ant", "bee", "cat"] and dls.c == 3
    assert dls.shot_counts.tolist() == [20, 10, 4]
    assert dls.class_counts.tolist() == [15, 8, 3]
    assert dls.test is None and dls.skipped == []
    assert (dls.split.name, dls.split.valid_from) == ("one folder", "training images")
    assert dls.split.imbalance_factor == 5 and dls.split.dataset == "photos"
    assert dls.size == (8, 8)
    x, y = dls.train.one_batch()
    assert x.dtype == torch.float32 and x.shape == (26, 3, 8, 8) and torch.isfinite(x).all()
    assert y.bincount().tolist() == [15, 8, 3]


@pytest.mark.parametrize("name", ["valid", "val", "validation"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_a_folder_of_parts(tmp_path, write_classes, caplog, name, train):
    caplog.set_level(logging.INFO, "ltlearn")
    write_classes(tmp_path / train, COUNTS)
    write_classes(tmp_path / name, {"ant": 2, "cat": 3})
    write_classes(tmp_path / "test", {"ant": 1, "bee": 1, "cat": 5})
    dls = from_folder(tmp_path)
    assert dls.class_counts.tolist() == dls.shot_counts.tolist() == [20, 10, 4]
    assert dls.valid.dataset.targets.tolist() == [0, 0, 2, 2, 2]
    assert dls.test.n == 7
    assert (dls.split.name, dls.split.valid_from) == ("folders", "validation set")
    assert "not used" not in caplog.text
    paper = from_folder(tmp_path, protocol="paper")
    assert "5 validation images are not used" in caplog.text
    assert paper.split.valid_from == "test set"
    assert paper.class_counts.tolist() == [20, 10, 4] and paper.valid.n == paper.test.n == 7
    assert same(batches(paper.valid), batches(paper.test))


def test_without_a_validation_folder_it_is_carved(tmp_path, write_classes):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path / "test", {"ant": 1})
    dls = from_folder(tmp_path)
    assert dls.valid.n == 7 and dls.test.n == 1
    assert dls.split.valid_from == "training images"


def test_a_class_may_be_called_train_or_test(tmp_path, write_classes):
    # CIFAR-100 has one. Its images lie in it directly; a part has class folders.
    dls = from_folder(write_classes(tmp_path, {"bus": 4, "test": 3, "train": 5}))
    assert dls.vocab == ["bus", "test", "train"] and dls.split.name == "one folder"


def test_large_images_stay_on_disk(tmp_path, write_classes):
    dls = from_folder(write_classes(tmp_path, {"a": 4, "b": 2}, side=100), bs=4)
    assert isinstance(dls.train.dataset, ImageFiles)
    assert dls.train.dataset.transform.name == "resized_crop_flip"
    assert dls.train.one_batch()[0].shape == (4, 3, 224, 224)
    assert from_folder(tmp_path, size=40).train.dataset.shape == (40, 40)
    assert isinstance(from_folder(tmp_path, size=40).train.dataset, ImagesInMemory)
    assert isinstance(from_folder(tmp_path, size=40, in_memory=False).train.dataset, ImageFiles)


def test_mixed_sizes_are_brought_to_one(folder):
    Image.new("RGB", (30, 12)).save(folder / "cat" / "wide.png")
    assert from_folder(folder).size == (224, 224)
    assert from_folder(folder, size=16).train.one_batch()[0].shape[2:] == (16, 16)


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_mode_of_image_is_read(tmp_path, in_memory):
    modes = ["L", "P", "CMYK", "RGBA", "1", "LA", "I;16"]
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for mode in modes:
            image = Image.new(mode, (8, 8), 40 * 256 if mode == "I;16" else None or 0)
            image.save(tmp_path / c / f"{mode[0]}{len(mode)}.{'tif' if mode == 'CMYK' else 'png'}")
    dls = from_folder(tmp_path, size=8, in_memory=in_memory, valid_pct=0.5, transform="none")
    values = torch.cat([x for dl in (dls.train, dls.valid) for x, _ in batches(dl)])
    pixels = values * dls.normalize.std + dls.normalize.mean
    assert sorted(pixels.round().amax((1, 2, 3)).tolist()) == [0] * 10 + [40] * 2 + [255] * 2


def test_unicode_spaces_and_a_hidden_folder(tmp_path, write_classes):
    root = write_classes(tmp_path / "mes été", {"chat noir": 4, "猫": 4, ".hidden": 2})
    dls = from_folder(root, in_memory=False, size=8, num_workers=2)
    assert dls.vocab == ["chat noir", "猫"] and dls.shot_counts.tolist() == [4, 4]
    assert sum(len(y) for _, y in batches(dls.train)) == 6


def test_a_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert from_folder("~/photos").c == 3


def test_a_class_with_one_image_is_trained_on(tmp_path, write_classes, caplog):
    dls = from_folder(write_classes(tmp_path, {"a": 10, "b": 1}))
    assert dls.class_counts.tolist() == [8, 1]
    assert caplog.messages == ["1 class has a single training image: b"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_class_without_images_is_kept_and_harms_nothing(tmp_path, write_classes, caplog, sampler):
    dls = from_folder(write_classes(tmp_path, {"a": 10, "b": 0, "c": 5, "d": 0}), bs=4)
    assert dls.c == 4 and dls.class_counts.tolist() == [8, 0, 4, 0]
    assert caplog.messages == ["2 classes have no training image: b, d"]
    assert dls.split.imbalance_factor == 2
    dls.train.set_sampler(sampler)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    assert np.isfinite(learn.recorder.values).all()
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_folders_that_cannot_be_used(tmp_path, write_classes, folder):
    for path, words in {
        tmp_path / "gone": r"no folder .*gone",
        folder / "ant": r"ant has no class folders",
        write_classes(tmp_path / "empty", {"a": 0, "b": 0}): r"empty .*no images",
        write_classes(tmp_path / "one", {"a": 3}): r"one has only the class 'a'",
        write_classes(tmp_path / "singles", {"a": 1, "b": 1}): r"no class has two",
        write_classes(tmp_path / "parts" / "test", COUNTS).parent: r"parts has test/.*no train/",
        write_classes(tmp_path / "bare", {"train": 3}): r"train has no class folders",
    }.items():
        with pytest.raises(UserError, match=words):
            from_folder(path)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_class_that_training_lacks_is_refused(tmp_path, write_classes, part):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path / part, {"ant": 1, "emu": 1})
    with pytest.raises(UserError, match=rf"{part} .*'emu'.*training"):
        from_folder(tmp_path)


def test_the_paper_protocol_needs_a_test_set(folder, arrays):
    with pytest.raises(UserError, match=r"paper protocol.*test set"):
        from_folder(folder, protocol="paper")
    with pytest.raises(UserError, match=r"paper protocol.*test set"):
        from_arrays(*arrays([4, 4]), protocol="paper")


COMMON = [
    ({"bs": -4}, r"bs.*at least 1, got -4"),
    ({"bs": 2.0}, r"bs.*at least 1, got 2\.0"),
    ({"bs": True}, r"bs.*at least 1, got True"),
    ({"bs": None}, r"bs.*at least 1, got None"),
    ({"valid_pct": 0}, r"valid_pct.*above 0 and below 1, got 0"),
    ({"valid_pct": 1.0}, r"valid_pct.*above 0 and below 1, got 1\.0"),
    ({"valid_pct": "0.2"}, r"valid_pct.*above 0 and below 1, got '0\.2'"),
    ({"protocol": "dirty"}, r"protocol.*clean, paper, got 'dirty'"),
    ({"seed": -1}, r"seed.*at least 0, got -1"),
    ({"seed": 2**32}, r"seed.*below 2\*\*32, got 4294967296"),
]


@pytest.mark.parametrize(("wrong", "words"), COMMON)
def test_values_out_of_range(folder, arrays, wrong, words):
    for make in (
        lambda: from_folder(folder, **wrong),
        lambda: from_arrays(*arrays([4, 4]), **wrong),
        lambda: LTDataLoaders.from_dataset("digits_lt", imbalance_factor=10, **wrong),
    ):
        with pytest.raises(UserError, match=words):
            make()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"transform": "cutout"}, r"transform.*crop_flip, .*, got 'cutout'"),
        ({"size": 0}, r"size.*at least 1, got 0"),
        ({"size": "224"}, r"size.*at least 1, got '224'"),
        ({"num_workers": -1}, r"num_workers.*at least 0, got -1"),
        (
            {"in_memory": True, "transform": "resized_crop_flip"},
            r"transform.*crop_flip, crop, none.*got 'resized_crop_flip'.*in_memory=False",
        ),
    ],
)
def test_values_of_folders_out_of_range(folder, wrong, words):
    with pytest.raises(UserError, match=words):
        from_folder(folder, **wrong)


def test_options_of_a_wrong_name_are_refused(folder):
    with pytest.raises(TypeError, match="batch"):
        LTDataLoaders.from_path(folder, batch=4)


# ---------------------------------------------------------------- unreadable images


@pytest.fixture
def spoilt(folder, bad_images):
    for name, content in bad_images.items():
        (folder / "bee" / name).write_bytes(content)
    return folder


def test_an_unreadable_image_is_named_at_once_in_memory(spoilt):
    with pytest.raises(UserError, match=r"cannot read the image .*bee/empty\.jpg \("):
        from_folder(spoilt, size=8)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_on_disk_ends_in_one_sentence(spoilt, num_workers):
    dls = from_folder(spoilt, size=8, in_memory=False, num_workers=num_workers, bs=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss())
    for use in (lambda: batches(dls.train), lambda: learn.fit(1)):
        with pytest.raises(UserError) as e, learn.no_bar(), learn.no_logging():
            use()
        for text in (str(e.value), e.value.message):
            assert text.startswith(f"cannot read the image {spoilt / 'bee'}{os.sep}")
            assert text.endswith("skip_bad=True.") and "\n" not in text
            assert "Traceback" not in text and "worker" not in text
        # A worker that the garbage collector ends takes five seconds.
        assert e.value.__context__ is None and not multiprocessing.active_children()


@pytest.mark.parametrize("in_memory", [True, False])
def test_skip_bad_leaves_unreadable_images_out(spoilt, bad_images, in_memory):
    (spoilt / "cat" / "99.png").write_text("no image")
    dls = from_folder(spoilt, size=8, in_memory=in_memory, skip_bad=True, bs=4)
    assert dls.shot_counts.tolist() == [20, 10, 4]
    want = [str(spoilt / "bee" / n) for n in bad_images] + [str(spoilt / "cat" / "99.png")]
    assert sorted(dls.skipped) == sorted(want)
    assert len(batches(dls.train)) == len(dls.train)


def test_a_class_of_unreadable_images_only_counts_none(folder, caplog):
    for path in (folder / "cat").iterdir():
        path.write_text("no image")
    dls = from_folder(folder, size=8, skip_bad=True)
    assert dls.class_counts.tolist() == [16, 8, 0] and dls.c == 3
    assert "1 class has no training image: cat" in caplog.messages


# ---------------------------------------------------------------- from_arrays


def test_arrays(arrays):
    images, targets = arrays([12, 4])
    dls = from_arrays(images, targets, classes=["cat", "dog"], test=arrays([2, 3], seed=1))
    assert dls.vocab == ["cat", "dog"] and dls.shot_counts.tolist() == [12, 4]
    assert dls.test.n == 5 and dls.split.dataset == "arrays"
    order = np.random.default_rng(0).permutation(16)
    again = from_arrays(torch.from_numpy(images[order]), torch.from_numpy(targets[order]))
    assert again.split.train == dls.split.train
    images[3, 0, 0, 0] ^= 1
    assert from_arrays(images, targets).split.train != dls.split.train


def test_grey_arrays_and_lists(arrays):
    images, targets = arrays([6, 6])
    dls = from_arrays(images[..., 0], targets.tolist())
    x = dls.valid.one_batch()[0] * dls.normalize.std + dls.normalize.mean
    torch.testing.assert_close(x[:, 0], x[:, 2])


def test_a_validation_label_that_training_lacks_counts_none(arrays, caplog):
    dls = from_arrays(*arrays([4, 4]), valid=arrays([1, 1, 1]))
    assert dls.class_counts.tolist() == [4, 4, 0]
    assert caplog.messages == ["1 class has no training image: 2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: {"images": x / 255}, r"training images.*uint8.*got float64"),
        (lambda x, y: {"images": x.transpose(0, 3, 1, 2)}, r"training images.*\(8, 3, 8, 8\)"),
        (lambda x, y: {"images": x[..., :2]}, r"training images.*\(8, 8, 8, 2\)"),
        (lambda x, y: {"images": x[0, 0]}, r"training images.*\(8, 3\)"),
        (lambda x, y: {"images": x[:0], "targets": y[:0]}, r"training images.*\(0, 8, 8, 3\)"),
        (lambda x, y: {"images": [x[0], x[1, :2]]}, r"training images and targets.*arrays"),
        (lambda x, y: {"targets": y[:-1]}, r"training targets.* 8 integers, got int64 \(7,\)"),
        (lambda x, y: {"targets": y[:, None]}, r"training targets.* 8 integers.*\(8, 1\)"),
        (lambda x, y: {"targets": y + 0.5}, r"training targets.* 8 integers, got float64"),
        (lambda x, y: {"targets": y == 1}, r"training targets.* 8 integers, got bool"),
        (lambda x, y: {"targets": y - 1}, r"training targets.*from 0.*got -1"),
        (lambda x, y: {"targets": y * 0}, r"training set has only the class '0'"),
        (lambda x, y: {"classes": ["a"]}, r"train targets.* 1, .* 1 classes"),
        (lambda x, y: {"valid": (x, y + 9), "classes": ["a", "b"]}, r"valid targets.* 10, "),
        (lambda x, y: {"valid": (x[:, :4], y)}, r"valid images.* 4 x 8 .*8 x 8"),
        (lambda x, y: {"test": (x, y - 1)}, r"test targets.*from 0.*got -1"),
        (lambda x, y: {"test": x}, r"test .*\(images, targets\), got ndarray"),
        (lambda x, y: {"transform": "resized_crop_flip"}, r"transform.*crop_flip, crop"),
        (lambda x, y: {"pad": -1}, r"pad.*at least 0, got -1"),
    ],
)
def test_arrays_that_do_not_fit(arrays, change, words):
    images, targets = arrays([4, 4])
    with pytest.raises(UserError, match=words):
        from_arrays(**{"images": images, "targets": targets, **change(images, targets)})


# ---------------------------------------------------------------- from_dataset


def test_digits():
    dls = LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, device="cpu")
    want = [int(124 * 20 ** (-c / 9)) for c in range(10)]
    assert dls.shot_counts.tolist() == want
    assert dls.test.n == 500 and dls.size == (8, 8)
    assert dls.split.name == "first_n" and dls.split.imbalance_factor == 20
    assert str(dls.split).startswith("digits_lt split first_n, imbalance factor 20, fingerprint ")
    other = LTDataLoaders.from_dataset(
        "digits_lt", imbalance_factor=20, split="shuffle_seed0", device="cpu"
    )
    assert other.shot_counts.tolist() == want
    assert other.split.train != dls.split.train and other.split.test == dls.split.test
    step = LTDataLoaders.from_dataset(
        "digits_lt", imbalance_factor=4, profile="step", protocol="paper", n_max=40,
        test_per_class=3, device="cpu",
    )  # fmt: skip
    assert step.class_counts.tolist() == [40] * 5 + [10] * 5
    assert step.test.n == step.valid.n == 30


@pytest.mark.parametrize(
    ("name", "factor", "total"), [("cifar10_lt", 100, 12_406), ("cifar100_lt", 100, 10_847)]
)
def test_cifar_has_the_published_counts(monkeypatch, name, factor, total):
    classes = 100 if name == "cifar100_lt" else 10
    calls = []

    def load(data_path, part):
        calls.append((str(data_path), part))
        n = (50_000 if part == "train" else 1_000) // classes
        targets = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), n))
        images = np.zeros((len(targets), 1, 1, 3), dtype=np.uint8)
        return ImageSet(targets, images=images), [str(c) for c in range(classes)]

    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], load=load))
    dls = LTDataLoaders.from_dataset(name, "/somewhere", factor, protocol="paper", device="cpu")
    assert calls == [("/somewhere", "train"), ("/somewhere", "test")]
    assert dls.shot_counts.sum() == dls.train.n == total
    assert dls.train.dataset.augment.pad == 4 and dls.train.dataset.transform == "crop_flip"
    clean = LTDataLoaders.from_dataset(name, "/somewhere", factor, device="cpu")
    assert clean.train.n + clean.valid.n == total and (clean.class_counts > 0).all()


def test_cifar_is_the_same_from_folders_and_from_pickles(tmp_path, write_cifar_pickles):
    names = sorted(f"thing{c}" for c in range(10))
    made = write_cifar_pickles(tmp_path / "tv", 10, names, 8)
    for part, (images, labels) in made.items():
        for i, (image, c) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "cifar10" / part / names[c] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

    def make(root, **kwargs):
        return LTDataLoaders.from_dataset("cifar10_lt", root, 4, n_max=8, device="cpu", **kwargs)

    for split in ("first_n", "shuffle_seed0"):
        one, other = make(tmp_path / "tv", split=split), make(tmp_path, split=split)
        assert one.split == other.split
        assert same(batches(one.train), batches(other.train))
    (tmp_path / "cifar10" / "train" / names[9] / "x.png").write_text("no")
    bad = next((tmp_path / "cifar10" / "train" / names[0]).iterdir())
    bad.write_text("no")
    with pytest.raises(UserError, match="cannot read the image"):
        make(tmp_path)
    assert make(tmp_path, skip_bad=True).skipped == [str(bad)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "imagenet"}, r"dataset.*digits_lt, cifar10_lt, .*, inat2018, got 'imagenet'"),
        ({"imbalance_factor": 0.5}, r"imbalance_factor.*at least 1, got 0\.5"),
        ({"imbalance_factor": 500}, r"imbalance_factor 500 "),
        ({"split": "random"}, r"split.*first_n, shuffle_seed0, got 'random'"),
        ({"profile": "pareto"}, r"profile.*exponential, step, got 'pareto'"),
        ({"n_max": 0}, r"n_max.*at least 1, got 0"),
        ({"n_max": 1000}, r"class 0 has \d+ images.* 1000"),
        ({"size": 32}, r"size.* 8 for digits_lt, or above 96, got 32"),
        ({"size": 0}, r"size.*at least 1, got 0"),
        ({"name": "cifar10_lt", "size": 64}, r"size.* 32 for cifar10_lt, or above 96, got 64"),
        (
            {"name": "tiny_imagenet_lt", "size": 48},
            r"size.*64 or 32.*tiny_imagenet_lt, or above 96, got 48",
        ),
        ({"test_per_class": 0}, r"test_per_class.*at least 1, got 0"),
        ({"test_per_class": 51}, r"class 0 has 50 images.* 51"),
        ({"max_classes": 3}, r"max_classes.*digits_lt"),
        ({"num_workers": 0}, r"num_workers.*digits_lt"),
    ],
)
def test_datasets_that_cannot_be(wrong, words):
    with pytest.raises(UserError, match=words):
        LTDataLoaders.from_dataset(**{"name": "digits_lt", "imbalance_factor": 10, **wrong})


def test_missing_cifar_names_the_commands_that_fetch_it(tmp_path):
    with pytest.raises(UserError, match=r"CIFAR-10 is not under .*untar_data\(URLs\.CIFAR\)"):
        LTDataLoaders.from_dataset("cifar10_lt", tmp_path)
    with pytest.raises(UserError, match=r"CIFAR-100 is not under .*untar_data\(URLs\.CIFAR_100\)"):
        LTDataLoaders.from_dataset("cifar100_lt", tmp_path)


def tiny(root, factor, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_dataset("tiny_imagenet_lt", root, factor, device="cpu", **kwargs)


def test_tiny_imagenet_has_its_counts_and_statistics(monkeypatch):
    full = [500] * 200
    tailed = [int(500 * 10 ** (-c / 199) + 1e-9) for c in range(200)]  # 500 down to 50
    have = full

    def load(data_path, part):
        counts = have if part == "train" else [50] * 200
        targets = np.repeat(np.arange(200), counts)
        images = np.zeros((len(targets), 1, 1, 3), dtype=np.uint8)
        return ImageSet(targets, images=images), [f"n{c:03d}" for c in range(200)]

    row = replace(BENCHMARKS["tiny_imagenet_lt"], load=load)
    monkeypatch.setitem(BENCHMARKS, "tiny_imagenet_lt", row)
    whole = tiny("/somewhere", 100)
    assert whole.shot_counts.tolist() == [int(500 * 100 ** (-c / 199) + 1e-9) for c in range(200)]
    assert whole.shot_counts.sum() == 21_549 and whole.test.n == 10_000
    assert whole.shot_counts[[0, 1, 99, 100, 199]].tolist() == [500, 488, 50, 49, 5]
    assert whole.split.valid_from == "training images"
    assert whole.train.dataset.transform == "crop_flip"
    assert torch.allclose(whole.normalize.mean.flatten() / 255, torch.tensor([0.485, 0.456, 0.406]))
    have = tailed
    assert tiny("/somewhere", 100).split == whole.split
    assert tiny("/somewhere", 10, protocol="paper").train.n == 39_072
    for wrong, words in (
        (
            {"factor": 5},
            r"class n\d+ has 164 .*imbalance factor 5 needs 230; .* factor of 10 .* 500 per class",
        ),
        (
            {"factor": 100, "profile": "step"},
            r"n099 has 159 .*step imbalance factor 100 needs 500; .*n_max=500",
        ),
        (
            {"factor": 100, "split": "shuffle_seed0"},
            r"shuffle_seed0.* n000 has 500 .* n198 has 50; .*first_n",
        ),
    ):
        with pytest.raises(UserError, match=words):
            tiny("/somewhere", **wrong)
    assert tiny("/somewhere", 1, n_max=50).shot_counts.tolist() == [50] * 200


def test_tiny_imagenet_is_the_same_from_every_layout(tmp_path, write_tiny):
    counts = [max(2, 4 - c // 50) for c in range(200)]
    archive = write_tiny(tmp_path / "tiny-imagenet-200", [4] * 200, archive=True)
    folders = write_tiny(tmp_path / "elsewhere", counts)
    one = tiny(tmp_path, 2, n_max=4, size=32)
    other = tiny(folders, 2, n_max=4, size=32)
    assert one.split == other.split and one.vocab == other.vocab
    assert same(batches(one.train), batches(other.train))
    assert same(batches(one.test), batches(other.test))
    assert one.size == (32, 32) and one.train.dataset.augment.pad == 4
    assert one.train.one_batch()[0].shape == (64, 3, 32, 32)
    large = tiny(archive, 2, n_max=2, test_per_class=1)
    assert large.size == (64, 64) and large.train.dataset.augment.pad == 8
    assert large.test.n == 200
    shuffled = tiny(archive, 2, n_max=4, size=32, split="shuffle_seed0")
    assert shuffled.shot_counts.tolist() == one.shot_counts.tolist()
    assert shuffled.split.train != one.split.train and shuffled.split.test == one.split.test
    bad = archive / "train" / one.vocab[0] / "images" / f"{one.vocab[0]}_0.JPEG"
    bad.write_text("no")
    with pytest.raises(UserError, match="cannot read the image"):
        tiny(archive, 2, n_max=4, size=32)
    assert tiny(archive, 2, n_max=4, size=32, skip_bad=True).skipped == [str(bad)]


def test_missing_tiny_imagenet_names_the_file_to_fetch(tmp_path):
    with pytest.raises(UserError, match=r"Tiny-ImageNet is not under .*tiny-imagenet-200\.zip"):
        tiny(tmp_path, 100)


# ---------------------------------------------------------------- order and augmentation


def files(folder, **kwargs) -> LTDataLoader:
    data = list_class_folders(folder)[0]
    return LTDataLoader(ImageFiles(data, "crop_flip", 8, pad=2), 5, training=True, seed=3, **kwargs)


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("instance", "files"), ("progressive", "files"), ("class_balanced", "memory")],
)
def test_workers_change_nothing(folder, sampler, kind):
    def passes(num_workers):
        if kind == "files":
            dl = files(folder, sampler=sampler, num_workers=num_workers)
        else:
            data = ImagesInMemory(list_class_folders(folder)[0].load(None), "crop_flip", 2)
            dl = LTDataLoader(data, 5, True, sampler, seed=3, num_workers=num_workers)
        out = []
        for epoch in (0, 4):
            dl.set_epoch(epoch, 5)
            out.append(batches(dl))
        return out

    own, workers = passes(0), passes(2)
    assert all(same(a, b) for a, b in zip(own, workers, strict=True))
    assert not same(*own)


def test_workers_and_epochs_augment_each_image_anew(tmp_path, write_classes):
    # albumentations alone repeats the same draws in every worker and every epoch.
    folder = write_classes(tmp_path, {"a": 1, "b": 1})
    for c in ("a", "b"):
        for i in range(12):
            (folder / c / f"{i}.png").write_bytes((folder / "a" / "0.png").read_bytes())
    data = list_class_folders(folder)[0]
    dl = LTDataLoader(ImageFiles(data, "crop_flip", 8, pad=3), 4, training=True, num_workers=2)
    seen = [x[i].numpy().tobytes() for _ in range(2) for x, _ in dl for i in range(len(x))]
    # 48 views of one image: draws that workers share would halve them, epochs halve them again.
    assert len(seen) == 48
    assert len(set(seen)) > 28


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_be_made_again(folder, num_workers):
    dl = files(folder, num_workers=num_workers)
    first, second = batches(dl), batches(dl)
    assert not same(first, second)
    dl.set_epoch(0)
    assert same(batches(dl), first)
    torch.manual_seed(1), np.random.seed(1)
    assert same(batches(dl), second)
    assert same(batches(files(folder)), first)
    dl.set_epoch(0)
    dl.seed = 4
    assert not same(batches(dl), first)


def test_an_image_in_memory_and_on_disk_has_the_same_views(tmp_path):
    pixels = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for i in range(500):
            Image.fromarray(pixels).save(tmp_path / c / f"{i}.png")
    data = list_class_folders(tmp_path)[0]

    def views(dataset):
        dl = LTDataLoader(dataset, 32, training=True)
        rows = torch.cat([x.flatten(1) for _ in range(3) for x, _ in dl])
        return torch.unique(rows, dim=0, return_counts=True)

    memory, times = views(ImagesInMemory(data.load(None), "crop_flip", 1))
    disk, disk_times = views(ImageFiles(data, "crop_flip", 3, 1))
    assert len(memory) == 18 and torch.equal(memory, disk)
    assert chisquare(times).pvalue > 1e-3 and chisquare(disk_times).pvalue > 1e-3


def test_evaluation_is_in_order_and_not_augmented(folder):
    data = list_class_folders(folder)[0].load(None)
    dl = LTDataLoader(ImagesInMemory(data, "crop_flip"), 5)
    x, y = (torch.cat(t) for t in zip(*batches(dl), strict=True))
    assert (x.permute(0, 2, 3, 1).numpy() == data.images).all() and (
        y.numpy() == data.targets
    ).all()
    assert same(batches(dl), batches(dl))
    x, y = dl.dataset[3]
    assert (x.permute(1, 2, 0).numpy() == data.images[3]).all() and y == data.targets[3]


# ---------------------------------------------------------------- samplers in the loader


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_the_sampler_is_really_used(kind):
    # fastai's own loader takes sampler= and ignores it.
    data = numbered(40)
    data.targets = np.repeat([0, 1], [36, 4])
    dataset = ImagesInMemory(data) if kind == "memory" else ImageFiles(data, "none", 4)
    shares = {}
    for name in SAMPLERS:
        dl = LTDataLoader(dataset, 8, training=True, sampler=name)
        assert dl.sampler_name == name and isinstance(dl.sampler, SAMPLERS[name])
        shares[name] = np.mean([int(y.sum()) for _ in range(10) for _, y in dl]) / 8
    assert shares["instance"] == pytest.approx(0.1)
    assert 0.4 < shares["class_balanced"] < 0.6
    assert 0.18 < shares["square_root"] < 0.32


def test_a_loader_shows_what_its_sampler_draws():
    dl = LTDataLoader(ImagesInMemory(numbered(20)), 6, True, "class_balanced", seed=7)
    sampler = ClassBalancedSampler(dl.dataset.targets, seed=7)
    for _ in range(2):
        assert numbers(dl) == list(sampler)
    dl.set_sampler("instance")
    assert sorted(numbers(dl)) == list(range(20))


def test_torch_samplers_of_another_length():
    torch.manual_seed(0)
    sampler = WeightedRandomSampler([0.0] * 19 + [1.0], num_samples=11)
    dl = LTDataLoader(ImagesInMemory(numbered(20)), 4, True, sampler)
    assert dl.sampler_name == "WeightedRandomSampler" and len(dl) == 3
    assert numbers(dl) == [19] * 11
    shared = DistributedSampler(range(20), num_replicas=2, rank=0)
    dl.set_sampler(shared)
    dl.set_epoch(1, 3)  # torch's set_epoch takes no number of epochs
    assert shared.epoch == 1 and len(numbers(dl)) == 10 and len(dl) == 3


def test_wrong_samplers_are_refused():
    data = ImagesInMemory(numbered(20))
    with pytest.raises(UserError, match=r"sampler.*instance, .*got 'balanced'"):
        LTDataLoader(data, 4, True, "balanced")
    with pytest.raises(UserError, match=r"sampler.* 3 images.* 20"):
        LTDataLoader(data, 4, True, ClassBalancedSampler([0, 1, 2]))


@pytest.mark.parametrize("bs", [-1, 1.5, True, "8"])
def test_a_wrong_batch_size_is_refused(bs):
    with pytest.raises(UserError, match=r"bs.*at least 1, got"):
        LTDataLoader(ImagesInMemory(numbered(4)), bs)
    with pytest.raises(UserError, match=r"num_workers.*at least 0, got"):
        LTDataLoader(ImagesInMemory(numbered(4)), 2, num_workers=bs or -1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("n", "bs", "training", "sizes"),
    [
        (12, 4, True, [4, 4, 4]),
        (14, 4, True, [4, 4, 4, 2]),
        (13, 4, True, [4, 4, 4]),  # batch normalisation cannot train on one image
        (13, 4, False, [4, 4, 4, 1]),
        (3, 1, True, [1, 1, 1]),
        (1, 4, True, [1]),
        (3, 8, True, [3]),
    ],
)
def test_lengths_and_last_batches(n, bs, training, sizes, num_workers):
    dl = LTDataLoader(ImagesInMemory(numbered(n)), bs, training, num_workers=num_workers)
    assert [len(y) for _, y in dl] == sizes
    assert len(dl) == len(sizes)


# ---------------------------------------------------------------- fastai


class Watch(Callback):
    """Keep the inputs of every training batch."""

    def before_fit(self):
        self.epochs = []

    def before_train(self):
        self.epochs.append([])

    def before_batch(self):
        if self.learn.training:
            self.epochs[-1].append((self.learn.x.clone(), self.learn.y.clone()))


def plain_learner(dls, **kwargs):
    torch.manual_seed(0)
    side = dls.size[0] * dls.size[1] * 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(side, 8), nn.BatchNorm1d(8), nn.Linear(8, dls.c))
    return Learner(dls, model, loss_func=nn.CrossEntropyLoss(), **kwargs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_learner_trains_and_predicts(tmp_path, write_classes, workers):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path / "test", {"ant": 3, "cat": 2})
    dls = from_folder(tmp_path, bs=8, in_memory=workers == 0, size=8, num_workers=workers)
    x, y = dls.one_batch()
    assert x.shape == (8, 3, 8, 8) and y.shape == (8,)
    learn = plain_learner(dls, cbs=Watch())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        first, second = learn.watch.epochs
        assert len(first) == len(second) == len(dls.train)
        assert not same(first, second)
        pixels = [
            sorted(x.flatten(1).sum(1).tolist())
            for x in map(lambda e: torch.cat([b[0] for b in e]), (first, second))
        ]
        assert pixels[0] != pixels[1]  # another augmentation, not only another order
        preds, targets = learn.get_preds()
        assert targets.tolist() == dls.valid.dataset.targets.tolist() and len(preds) == dls.valid.n
        preds, targets = learn.get_preds(dl=dls.test)
        assert targets.tolist() == [0, 0, 0, 2, 2] and preds.shape == (5, 3)
        preds, targets = learn.get_preds(ds_idx=0)
        assert targets.tolist() == dls.train.dataset.targets.tolist()
        learn.validate()


def test_a_fit_is_repeatable(folder):
    def fit():
        learn = plain_learner(from_folder(folder, bs=8, seed=5))
        with learn.no_bar(), learn.no_logging():
            learn.fit(2)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    assert torch.equal(fit(), fit())


def test_one_batch_does_not_move_the_epoch(folder):
    dls = from_folder(folder, bs=8)
    want = batches(from_folder(folder, bs=8).train)
    assert torch.equal(dls.one_batch()[0], want[0][0])
    assert same(batches(dls.train), want)


def test_new_loaders_keep_unchanged_settings(folder):
    dls = from_folder(folder, bs=8, seed=5)
    dls.train.set_sampler("class_balanced")
    new = dls.train.new()
    assert isinstance(new, LTDataLoader)
    assert (new.bs, new.seed, new.sampler_name, new.augment) == (8, 5, "class_balanced", True)
    assert same(batches(new), batches(from_folder_like(dls)))
    assert dls.train.new(bs=4).bs == dls.train.new(batch_size=4).bs == 4
    assert not same(batches(dls.train.new(seed=6)), batches(dls.train.new()))
    still = dls.train.new(shuffle=False)
    assert not still.training and not still.augment and still.sampler is None
    assert sum(len(y) for _, y in still) == dls.train.n
    again = still.new(shuffle=True)
    assert again.training and again.augment
    other = dls.train.new(ImagesInMemory(numbered(9, 8)))
    assert other.n == 9 and other.sampler_name == "class_balanced"
    sampler = WeightedRandomSampler([1.0] * dls.train.n, 3)
    dls.train.set_sampler(sampler)
    assert dls.train.new().sampler is sampler
    assert dls.train.new(ImagesInMemory(numbered(9, 8))).sampler_name == "instance"


def from_folder_like(dls):
    dl = LTDataLoader(
        dls.train.dataset, dls.train.bs, True, dls.train.sampler_name, seed=dls.train.seed,
        after_batch=[dls.normalize],
    )  # fmt: skip
    return dl


def test_a_new_loader_reads_no_image(spoilt, capsys):
    # fastai's own reads one, and prints two lines where it cannot.
    dls = from_folder(spoilt, size=8, in_memory=False)
    for path in spoilt.rglob("*.png"):
        path.write_text("no image")
    assert dls.valid.new(shuffle=False).n_inp == 1
    assert capsys.readouterr().out == ""


def test_batches_go_to_the_device(folder):
    dls = from_folder(folder).to("cpu")
    assert str(dls.device) == "cpu" and dls.one_batch()[0].device.type == "cpu"
    dls = from_folder(folder).to("meta")
    assert dls.train.device.type == dls.valid.device.type == "meta"
    assert dls.train.one_batch()[0].device.type == "meta"


def test_images_are_normalised(folder):
    stats = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    dls = from_folder(folder, stats=stats)
    raw, _ = dls.valid.dataset.get_batch(range(dls.valid.n))
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) for s in stats)
    torch.testing.assert_close(dls.valid.one_batch()[0], (raw / 255 - mean) / std)
    assert dls.stats_given and not from_folder(folder).stats_given
    assert raw.dtype == torch.uint8
    dls.normalize.set((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.testing.assert_close(dls.valid.one_batch()[0], raw / 255)


def test_plain_fastai_dataloaders_take_our_loaders(folder):
    dls = from_folder(folder, bs=8)
    mixed = DataLoaders(dls.train, dls.valid)
    mixed.c, mixed.size = dls.c, dls.size
    learn = plain_learner(mixed)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)


def test_a_split_is_json(folder):
    import json

    split = from_folder(folder).split
    assert json.loads(json.dumps(split.to_dict()))["train"] == split.train


def test_listing_opens_few_images(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "ltlearn.data.items.read_image", lambda *a: opened.append(a) or read_image(*a)
    )
    monkeypatch.setattr(
        "ltlearn.data.images.read_image", lambda *a: opened.append(a) or read_image(*a)
    )
    from_folder(folder, in_memory=False, size=8)
    assert opened == []


def test_settings_are_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("LTLEARN_NUM_WORKERS", "1")
    monkeypatch.setenv("LTLEARN_DATA_PATH", str(tmp_path / "nowhere"))
    for c in "ab":
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (120, 120)).save(tmp_path / "set" / c / f"{i}.png")
    dls = LTDataLoaders.from_folder(tmp_path / "set")
    assert dls.train.fake_l.num_workers == 1
    assert LTDataLoaders.from_folder(tmp_path / "set", num_workers=0).train.fake_l.num_workers == 0
    with pytest.raises(UserError, match="nowhere"):
        LTDataLoaders.from_dataset("cifar10_lt")


def test_a_folder_above_the_data_is_pointed_out(tmp_path):
    for c in "ab":
        (tmp_path / "set" / "train" / c).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "train" / c / "1.png")
    (tmp_path / "set" / "val" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mean .*set\?"):
        LTDataLoaders.from_folder(tmp_path)


def test_a_learner_saves_nothing_among_the_images(folder):
    assert str(from_folder(folder).path) == "."


@pytest.mark.parametrize("in_memory", [True, False])
def test_new_empty_keeps_everything_but_the_images(folder, in_memory):
    dls = from_folder(folder, in_memory=in_memory, num_workers=0)
    empty = dls.new_empty()
    assert [len(dl.dataset) for dl in empty.loaders] == [0] * len(dls.loaders)
    assert empty.vocab == dls.vocab and empty.size == dls.size and empty.split == dls.split
    assert len(dls.train.dataset) > 0 and len(batches(dls.train))


def test_files_are_named_by_folder_and_time(tmp_path, write_classes):
    first = list_class_folders(write_classes(tmp_path / "a", COUNTS))[0]
    second = list_class_folders(write_classes(tmp_path / "b", COUNTS))[0]
    assert first.fingerprint() == second.fingerprint()
    names = [ImageFiles(data, size=8).files_name for data in (first, first, second)]
    assert names[0] == names[1] != names[2] and len(names[0]) == 16
    os.utime(first.root / first.paths[0], ns=(1, 1))
    assert ImageFiles(first, size=8).files_name != names[0]
    assert ImageFiles(numbered(3), size=4).files_name == ""
