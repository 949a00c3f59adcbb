"""One set of images has one fingerprint, however it is read."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ltlearn.data import digests
from ltlearn.data.images import ImageSet
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.readers.folders import list_class_folders
from ltlearn.training.features import FeatureBank


def split_of(folder, **options):
    return LTDataLoaders.from_folder(folder, device="cpu", bs=4, num_workers=0, **options).split


@pytest.mark.parametrize("side", [8, 120])
@pytest.mark.parametrize("suffix", ["bmp", "png", "jpg"])
def test_a_set_has_one_fingerprint_at_any_size(tmp_path, write_classes, side, suffix):
    folder = write_classes(tmp_path / "a", {"a": 4, "b": 3}, side, suffix)
    splits = [
        split_of(folder, **options)
        for options in ({}, {"size": 16}, {"size": 64}, {"in_memory": False, "size": 64},
                        {"in_memory": True, "size": 32}, {"skip_bad": True, "in_memory": False})
    ]  # fmt: skip
    assert all(split == splits[0] for split in splits)
    # Neither the folder nor the names of the files matter.
    moved = tmp_path / "b"
    shutil.copytree(folder, moved)
    (moved / "a" / f"0.{suffix}").rename(moved / "a" / f"00.{suffix}")
    assert split_of(moved).train == splits[0].train


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("side", [8, 120])
def test_other_images_in_files_of_the_same_name_and_size_have_another(
    tmp_path, write_classes, side, in_memory
):
    folder = write_classes(tmp_path, {"a": 4, "b": 3}, side, "bmp")
    options = {"in_memory": in_memory, "size": 16}
    before = split_of(folder, **options).train
    file = folder / "a" / "2.bmp"
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1  # one channel of one pixel, which resizing may hide
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert split_of(folder, **options).train != before


def test_small_images_have_the_fingerprint_of_their_pixels(tmp_path, arrays):
    images, targets = arrays([4, 3])
    name = LTDataLoaders.from_arrays(images, targets, device="cpu").split.train
    for suffix in ("png", "bmp"):
        for i, (image, c) in enumerate(zip(images, targets, strict=True)):
            (tmp_path / suffix / str(c)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / suffix / str(c) / f"{i}.{suffix}")
        assert split_of(tmp_path / suffix, in_memory=False, size=16).train == name


def test_the_order_counts_where_it_decides_which_images_are_taken(tmp_path):
    """A copy with files in the order of the alphabet once had the fingerprint of the original."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 3), ("test", 1)):
        for c in range(10):
            (tmp_path / part / str(c)).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / str(c) / f"{i}.png")

    def cut(**options):
        given = {"imbalance_factor": 3, "n_max": 3, "device": "cpu", **options}
        return LTDataLoaders.from_dataset("cifar10_lt", tmp_path, **given).split

    before = cut(), cut(split="shuffle_seed0")
    assert before[0].order and before[0].order != before[0].train
    assert f"order {before[0].order}" in before[0].images
    # The largest class has all of its images in the subset, now in another order.
    folder = tmp_path / "train" / "0"
    (folder / "0.png").rename(folder / "9.png")
    after = cut()
    assert (after.train, after.test) == (before[0].train, before[0].test)
    assert after.order != before[0].order
    assert cut(split="shuffle_seed0").order != before[1].order
    # In a folder of the user's, all images are taken in any case.
    assert split_of(tmp_path).order is None


def test_equal_fingerprints_share_no_features_of_other_pixels(tmp_path, write_classes):
    import torch

    folder = write_classes(tmp_path, {"a": 4, "b": 3})
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    bank = FeatureBank(tmp_path / "cache")
    rows = {}
    for key, options in {
        "8": {"size": 8}, "16": {"size": 16}, "files": {"size": 8, "in_memory": False}
    }.items():  # fmt: skip
        dls = LTDataLoaders.from_folder(folder, device="cpu", bs=4, num_workers=0, **options)
        bank.features(backbone, dls.valid, dls.split.valid)
        rows[key] = len(list((tmp_path / "cache").glob("*")))
    assert rows == {"8": 1, "16": 2, "files": 3}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Keep every digest, and return the folder where they are kept."""
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SLOW_S", -1.0)
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))
    return tmp_path / "cache" / "fingerprints"


def test_slow_digests_are_kept_until_a_file_changes(tmp_path, write_classes, kept, monkeypatch):
    folder = write_classes(tmp_path / "set", {"a": 4, "b": 3})
    data = list_class_folders(folder)[0]
    name = data.fingerprint()
    file = next(kept.iterdir())
    assert file.stat().st_size == 8 * digests.DIGEST_BYTES
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_digest_file", lambda *a: pytest.fail("it is computed again"))
        assert data.fingerprint() == name
    # Other classes, or a changed file, are computed again.
    assert ImageSet(1 - data.targets, paths=data.paths, root=data.root).fingerprint() != name
    Image.new("RGB", (8, 8)).save(folder / "a" / "0.png")
    assert data.fingerprint() != name


@pytest.mark.parametrize("damage", ["bit", "short", "empty", "folder"])
def test_a_damaged_cache_is_not_used(tmp_path, write_classes, kept, damage):
    data = list_class_folders(write_classes(tmp_path / "set", {"a": 4, "b": 3}))[0]
    name = data.fingerprint()
    file = next(kept.iterdir())
    content = bytearray(file.read_bytes())
    content[50] ^= 4
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"bit": content, "short": content[:40], "empty": b""}[damage])
    assert data.fingerprint() == name


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, write_classes, kept):
    (tmp_path / "cache").write_text("a file")
    data = list_class_folders(write_classes(tmp_path / "set", {"a": 4, "b": 3}))[0]
    assert len(data.fingerprint()) == 12


def test_a_file_that_changed_just_now_is_not_kept(tmp_path, write_classes, kept, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 10**12)
    data = list_class_folders(write_classes(tmp_path / "set", {"a": 4, "b": 3}))[0]
    data.fingerprint()
    assert not kept.exists()


def test_images_that_are_also_in_training_are_reported(tmp_path, write_classes, caplog):
    write_classes(tmp_path / "train", {"a": 4, "b": 3})
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, side=9)
    split_of(tmp_path)
    assert "a training image" not in caplog.text
    shutil.copy(tmp_path / "train" / "a" / "1.png", tmp_path / "test" / "a" / "other name.png")
    # The same pixels in another class are a wrong label, and make no result too high.
    shutil.copy(tmp_path / "train" / "a" / "2.png", tmp_path / "test" / "b" / "wrong.png")
    dls = LTDataLoaders.from_folder(tmp_path, size=8, device="cpu")
    assert dls.leaks == {"test": 1}
    assert "1 test image is also a training image of the same class, such as" in caplog.text
    assert "other name.png" in caplog.text


def test_loading_takes_less_than_two_times_the_pixels(tmp_path, write_classes):
    """Training and validation images share one array, and `BatchCropFlip` makes no copy."""
    folder = write_classes(tmp_path, {"a": 8, "b": 4})
    dls = LTDataLoaders.from_folder(folder, device="cpu", bs=4)
    held = [dl.dataset.augment._pixels for dl in (dls.train, dls.valid)]
    assert held[0].untyped_storage().data_ptr() == held[1].untyped_storage().data_ptr()
    assert held[0].untyped_storage().nbytes() <= 2 * 12 * 8 * 8 * 3
    for dl, targets in ((dls.train, dls.train.dataset.targets), (dls.valid, None)):
        x, y = dl.dataset.get_batch(np.arange(dl.n))
        assert len(x) == dl.n and (targets is None or (y == targets).all())


def test_images_that_are_left_out_leave_no_gap(tmp_path, write_classes, bad_images):
    folder = write_classes(tmp_path, {"a": 5, "b": 4})
    (folder / "a" / "2.png").write_bytes(bad_images["text.png"])
    data = list_class_folders(folder)[0]
    kept = data.load(8, skip_bad=True)
    want = [np.asarray(Image.open(folder / path)) for path in kept.paths]
    assert len(kept) == 8 and (kept.images == np.stack(want)).all()
    assert kept.fingerprint() == kept.take(np.arange(8)[::-1]).fingerprint()
    assert kept.digests.shape == (8, 32) and data.without_bad().fingerprint() == kept.fingerprint()
