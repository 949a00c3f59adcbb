import os
import pickle
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fastai.data.external import URLs
from PIL import Image

from ltlearn.data.benchmarks.cifar import load_cifar
from ltlearn.data.benchmarks.digits import load_digits_images
from ltlearn.data.benchmarks.tiny_imagenet import load_tiny_imagenet
from ltlearn.data.datasets import look_at
from ltlearn.data.images import EXTENSIONS, ImageSet, read_image
from ltlearn.data.readers.folders import find_class_folders, list_class_folders
from ltlearn.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def save(path: Path, image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


# ---------------------------------------------------------------- one image


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tif", "ppm", "pnm", "gif", "webp", "jpg", "jfif", "jp2", "avif"]
)
def test_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    out = read_image(save(tmp_path / f"a.{suffix}", RGB, **options))
    assert out.shape == RGB.shape and out.dtype == np.uint8
    if suffix not in ("gif", "jpg", "jfif", "avif"):
        assert (out == RGB).all()
    assert f".{suffix}" in EXTENSIONS


def test_greyscale_and_black_and_white_become_three_equal_channels(tmp_path):
    grey = RGB[..., 0]
    assert (read_image(save(tmp_path / "l.png", grey)) == grey[..., None]).all()
    bits = Image.fromarray(grey).convert("1")
    out = read_image(save(tmp_path / "1.png", bits))
    assert out.shape == RGB.shape and set(np.unique(out)) <= {0, 255}


def test_transparency_is_dropped(tmp_path):
    rgba = np.dstack([RGB, np.arange(30, dtype=np.uint8).reshape(6, 5)])
    assert (read_image(save(tmp_path / "rgba.png", rgba)) == RGB).all()
    la = np.dstack([RGB[..., 0], rgba[..., 3]])
    out = read_image(save(tmp_path / "la.png", Image.fromarray(la, "LA")))
    assert (out == RGB[..., :1]).all()


def test_palettes(tmp_path):
    image = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5), "P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tolist())
    want = np.array(image.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(save(tmp_path / "p.png", image)) == want).all()
        transparent = save(tmp_path / "pt.png", image, transparency=bytes(range(30)))
        assert (read_image(transparent) == want).all()


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path, suffix):
    cyan = Image.new("CMYK", (5, 6), (255, 0, 0, 0))
    out = read_image(save(tmp_path / f"c.{suffix}", cyan)).astype(int)
    assert out.shape == (6, 5, 3)
    assert (out[..., 0] < 30).all() and (out[..., 1:] > 200).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    # Pillow clips them at 255 of 65535, which turns an image white.
    deep = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    out = read_image(save(tmp_path / f"deep.{suffix}", deep))
    assert out[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert (out == out[..., :1]).all()


def test_sixteen_bits_of_a_pgm_and_of_big_endian(tmp_path):
    deep = np.array([[0, 256], [32768, 65535]])
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 2 2 65535\n" + deep.astype(">u2").tobytes())
    assert read_image(path)[..., 0].tolist() == [[0, 1], [128, 255]]
    big = Image.frombytes("I;16B", (2, 2), deep.astype(">u2").tobytes())
    assert read_image(save(tmp_path / "b.tif", big))[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    path = save(tmp_path / "wide.tif", np.array([[0, 70_000]], dtype=dtype))
    with pytest.raises(UserError, match=r"cannot read the image .*wide\.tif \(it"):
        read_image(path)


def test_a_turned_photograph_is_set_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.png", RGB, exif=exif)
    assert (read_image(path) == np.rot90(RGB, -1)).all()


def test_resizing(tmp_path):
    assert read_image(save(tmp_path / "a.png", RGB), 3).shape == (3, 3, 3)


def test_a_file_that_is_no_image_is_named(tmp_path, bad_images):
    for name, content in bad_images.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as e:
            read_image(tmp_path / name)
        message = str(e.value)
        assert message.startswith(f"cannot read the image {tmp_path / name} (")
        assert "skip_bad=True" in message and "\n" not in message
        assert e.value.__suppress_context__
    with pytest.raises(UserError, match=r"the image .*gone\.png does not exist\."):
        read_image(tmp_path / "gone.png")


def test_a_pipe_is_refused_instead_of_read_for_ever(tmp_path, write_classes):
    """Opening a pipe waits for a writer that never comes."""
    write_classes(tmp_path / "d", {"a": 2, "b": 2})
    pipe = tmp_path / "d" / "a" / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"pipe\.png.*regular file.*skip_bad=True"):
        read_image(pipe)
    images, _ = list_class_folders(tmp_path / "d")
    assert look_at(images).side is not None
    assert images.without_bad().skipped == [str(pipe)]


# ---------------------------------------------------------------- folders


def test_listing_is_in_natural_order_and_leaves_other_files_out(tmp_path):
    names = ["10_b.png", "2_b.png", "2_a.JPG", "01.png", "1.png", "²3.png", "x.txt", ".2.png"]
    for name in names:
        (tmp_path / "cat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cat" / name).touch()
    for hidden in (".git/a.png", "cat/.ipynb_checkpoints/1.png", "note.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / hidden).touch()
    (tmp_path / "dog" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "dog" / "deep" / "er" / "a.png").touch()
    (tmp_path / "ant").mkdir()
    found, classes = list_class_folders(tmp_path)
    assert classes == ["ant", "cat", "dog"]
    want = ["01.png", "1.png", "2_a.JPG", "2_b.png", "10_b.png", "²3.png"]
    assert found.paths == [f"cat/{n}" for n in want] + ["dog/deep/er/a.png"]
    assert found.targets.tolist() == [1] * 6 + [2]


def test_a_warning_counts_files_that_may_be_images(tmp_path, write_classes, caplog):
    root = write_classes(tmp_path, {"ant": 2, "bee": 1})
    for name in ("a.HEIC", "b.heic", "bare", "notes.txt", "Thumbs.db", ".hidden.heic"):
        (root / "ant" / name).touch()
    assert len(list_class_folders(root)[0]) == 3
    (message,) = caplog.messages
    assert message.startswith(f"{root}: left out 2 .heic, 1 without an extension; ")
    others = Counter()
    list_class_folders(root, others=others)
    assert others == {".heic": 2, "": 1, ".txt": 1, ".db": 1} and len(caplog.messages) == 1


def test_an_error_counts_the_files_that_are_no_images(tmp_path):
    (tmp_path / "ant").mkdir()
    for i in range(8):
        (tmp_path / "ant" / f"{i}.x{i}").touch()
    with pytest.raises(UserError, match=r"hold no images \(.*\), but 1 .x\d, .* 3 others;"):
        list_class_folders(tmp_path)


def test_unicode_and_spaces_and_a_trailing_slash(tmp_path, write_classes):
    root = write_classes(tmp_path / "mes photos été", {"chat noir": 2, "Straße 猫": 1})
    found, classes = list_class_folders(Path(f"{root}/"))
    assert classes == ["Straße 猫", "chat noir"]
    assert found.load(None).images.shape == (3, 8, 8, 3)
    assert found.fingerprint() == list_class_folders(root)[0].fingerprint()


def test_a_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / "a" / "x.png", RGB)
    (tmp_path / "a" / "x.png").rename(tmp_path / "a" / name)
    found, _ = list_class_folders(tmp_path)
    assert len(found.fingerprint()) == 12
    assert found.load(None).images.shape == (1, 6, 5, 3)


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path, write_classes):
    write_classes(tmp_path / "store", {"birds": 2})
    root = write_classes(tmp_path / "root", {"cat": 1})
    (root / "bird").symlink_to(tmp_path / "store" / "birds")
    found, classes = list_class_folders(root)
    assert classes == ["bird", "cat"] and len(found) == 3
    assert [p.name for p in find_class_folders(root)] == classes


@pytest.mark.parametrize("target", ["b", "."])
def test_a_link_that_gives_images_two_labels_is_refused(tmp_path, write_classes, target):
    root = write_classes(tmp_path / "d", {"a": 1, "b": 2, "c": 1})
    (root / "link").symlink_to(target)
    with pytest.raises(UserError, match=r"link is a link to .*remove one of them"):
        list_class_folders(root)


def test_folders_that_cannot_be_used(tmp_path, write_classes):
    with pytest.raises(UserError, match="there is no folder .*gone"):
        list_class_folders(tmp_path / "gone")
    save(tmp_path / "flat" / "a.png", RGB)
    with pytest.raises(UserError, match="flat has no class folders"):
        list_class_folders(tmp_path / "flat")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the class folders of .*empty hold no images \(.*\.png"):
        list_class_folders(tmp_path / "empty")
    root = write_classes(tmp_path / "more", {"cat": 1, "emu": 1})
    with pytest.raises(UserError, match="more has a class 'emu'"):
        list_class_folders(root, ["cat", "dog"])


# ---------------------------------------------------------------- sets


def listed(root) -> ImageSet:
    return list_class_folders(root)[0]


def test_loading_resizes_only_if_a_size_is_given(tmp_path, write_classes):
    root = write_classes(tmp_path, {"a": 2, "b": 1})
    assert listed(root).load(5).images.shape == (3, 5, 5, 3)
    save(root / "b" / "9.png", RGB)
    with pytest.raises(UserError, match=r"b/9\.png is 5 x 6 pixels, others are 8 x 8"):
        listed(root).load(None)
    assert listed(root).load(8).images.shape == (4, 8, 8, 3)


@pytest.mark.parametrize("way", ["load", "without_bad"])
def test_bad_images_are_left_out_and_listed(tmp_path, write_classes, bad_images, caplog, way):
    root = write_classes(tmp_path, {"a": 2, "b": 2})
    for name, content in bad_images.items():
        (root / "a" / name).write_bytes(content)
    (root / "b" / "broken.png").symlink_to(root / "nowhere.png")
    data = listed(root)
    kept = data.load(None, skip_bad=True) if way == "load" else data.without_bad()
    assert kept.paths == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert kept.targets.tolist() == [0, 0, 1, 1]
    bad = {str(root / "a" / n) for n in bad_images} | {str(root / "b" / "broken.png")}
    assert set(kept.skipped) == bad and len(kept.skipped) == len(bad)
    assert all(any(path in m for m in caplog.messages) for path in bad)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_nothing_readable_is_an_error(tmp_path, skip_bad):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no")
    want = "no image under .* can be read" if skip_bad else r"cannot read the image .*a/x\.png"
    with pytest.raises(UserError, match=want):
        listed(tmp_path).load(None, skip_bad)
    with pytest.raises(UserError, match="no image under .* can be read"):
        listed(tmp_path).without_bad()


def test_the_fingerprint_of_a_lost_file_is_an_error(tmp_path, write_classes):
    data = listed(write_classes(tmp_path, {"a": 2}))
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*a/1\.png \(No such file"):
        data.fingerprint()


def test_fingerprints_of_images_in_memory_and_on_disk(tmp_path, write_classes, arrays):
    images, targets = arrays([3, 2])
    name = ImageSet(targets, images=images).fingerprint()
    order = np.array([4, 0, 3, 1, 2])
    assert ImageSet(targets[order], images=images[order]).fingerprint() == name
    changed = images.copy()
    changed[2, 1, 1, 1] ^= 1
    assert ImageSet(targets, images=changed).fingerprint() != name
    relabelled = targets.copy()
    relabelled[0] = 1
    assert ImageSet(relabelled, images=images).fingerprint() != name
    for i, (image, c) in enumerate(zip(images, targets, strict=True)):
        save(tmp_path / str(c) / f"{i}.png", image)
    on_disk = listed(tmp_path)
    assert on_disk.load(None).fingerprint() == name
    assert on_disk.load(4).fingerprint() == on_disk.fingerprint() == name
    assert on_disk.take(order).fingerprint() == name
    assert on_disk.load(4).part(order[:2]).fingerprint() == on_disk.take(order[:2]).fingerprint()
    save(tmp_path / "0" / "0.png", changed[2])
    assert on_disk.fingerprint() != name


# ---------------------------------------------------------------- CIFAR

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = [f"thing_{c:03d}" for c in range(100)]


def write_cifar_folders(root, made, names, superclasses=0, suffix="png"):
    """Write the layout of fastai's archive: the number in 0_frog.png is its place in the file."""
    for part, (images, labels) in made.items():
        for i, (image, c) in enumerate(zip(images, labels, strict=True)):
            folder = root / part
            if superclasses:
                folder = folder / f"super_{(c * 7) % superclasses:02d}"
            save(folder / names[c] / f"{i}_{names[c]}.{suffix}", image, quality=95)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_both_layouts_of_cifar_hold_the_same(tmp_path, write_cifar_pickles, num_classes):
    names = CIFAR10 if num_classes == 10 else CIFAR100
    made = write_cifar_pickles(tmp_path / "tv", num_classes, names, 12 if num_classes == 10 else 2)
    root = tmp_path / "fastai" / ("cifar10" if num_classes == 10 else "cifar100")
    write_cifar_folders(root, made, names, 0 if num_classes == 10 else 20)
    for part in ("train", "test"):
        pickles, vocab = load_cifar(num_classes, tmp_path / "tv", part)
        assert vocab == names
        assert (pickles.images == made[part][0]).all() and (pickles.targets == made[part][1]).all()
        # The set's own folder, and the folder that holds it.
        for place in (root, root.parent):
            folders, vocab = load_cifar(num_classes, place, part)
            assert vocab == names
            folders = folders.load(32)
            assert folders.fingerprint() == pickles.fingerprint()
            for c in range(num_classes):  # the same order inside each class
                assert (
                    folders.images[folders.targets == c] == pickles.images[pickles.targets == c]
                ).all()


def test_cifar_of_jpegs_and_the_pickles_own_folder(tmp_path, write_cifar_pickles):
    made = write_cifar_pickles(tmp_path, 10, CIFAR10, 1)
    own, _ = load_cifar(10, tmp_path / "cifar-10-batches-py", "train")
    assert len(own) == 10
    write_cifar_folders(tmp_path / "jpeg", made, CIFAR10, suffix="jpg")
    jpeg = load_cifar(10, tmp_path / "jpeg", "train")[0].load(32)
    assert jpeg.images.shape == (10, 32, 32, 3)


@pytest.mark.parametrize(
    ("num_classes", "url", "torchvision_name"),
    [(10, "URLs.CIFAR", "CIFAR10"), (100, "URLs.CIFAR_100", "CIFAR100")],
)
def test_the_error_of_a_missing_cifar_has_the_command_that_fetches_it(
    tmp_path, num_classes, url, torchvision_name
):
    import torchvision

    with pytest.raises(UserError) as e:
        load_cifar(num_classes, tmp_path / "no where", "train")
    message = str(e.value)
    assert f"CIFAR-{num_classes} is not under {tmp_path / 'no where'}" in message
    assert f"untar_data({url}))" in message
    assert "data_path" in message
    assert f"torchvision.datasets.{torchvision_name}('{tmp_path / 'no where'}'" in message
    assert hasattr(URLs, url.split(".")[1]) and hasattr(torchvision.datasets, torchvision_name)


def test_a_wrong_number_of_classes_is_refused(tmp_path, write_classes):
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1}, 32)
    with pytest.raises(UserError, match=r"train has 2 class folders; CIFAR-10 has 10\."):
        load_cifar(10, tmp_path, "train")


class _Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_runs_no_code(tmp_path, write_cifar_pickles, protocol):
    write_cifar_pickles(tmp_path, 10, CIFAR10, 1)
    marker, file = tmp_path / "owned", tmp_path / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(pickle.dumps({"data": _Attack(marker), "labels": []}, protocol=protocol))
    with pytest.raises(UserError, match=r"cannot read .*data_batch_2 as a CIFAR file \(.*system"):
        load_cifar(10, tmp_path, "train")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["load", "ndarray.tofile", "f2py.dtype"])
def test_other_parts_of_numpy_are_refused_too(tmp_path, write_cifar_pickles, name):
    write_cifar_pickles(tmp_path, 10, CIFAR10, 1)
    module, _, attribute = f"numpy.{name}".rpartition(".")
    attack = b"\x80\x04c" + f"{module}\n{attribute}\n".encode() + b"."
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(attack)
    with pytest.raises(
        UserError, match=rf"batches\.meta as a CIFAR file \(numpy\.{re.escape(name)} "
    ):
        load_cifar(10, tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "the file is empty"),
        (b"\x80\x02}.", "no 'data'"),
        (pickle.dumps([1]), "list indices"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, 4), "reshape"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 4), "labels do not"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 5), "labels do not"),
    ],
)
def test_a_damaged_pickle_is_named(tmp_path, write_cifar_pickles, content, reason):
    write_cifar_pickles(tmp_path, 10, CIFAR10, 1)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=rf"data_batch_3 as a CIFAR file \(.*{reason}.*fetch the"):
        load_cifar(10, tmp_path, "train")


# ---------------------------------------------------------------- Tiny-ImageNet


def test_both_layouts_of_tiny_imagenet_hold_the_same(tmp_path, write_tiny):
    counts = [12] + [2] * 199
    archive = write_tiny(tmp_path / "a" / "tiny-imagenet-200", counts, archive=True)
    folders = write_tiny(tmp_path / "b" / "tiny-imagenet-200-lt10", counts)
    for part, n in (("train", 410), ("test", 400)):
        sets = []
        # The set's own folder, and the folder that holds it.
        for place in (archive, archive.parent, folders, folders.parent):
            found, classes = load_tiny_imagenet(place, part)
            assert len(found) == n and classes == sorted(classes) and len(classes) == 200
            sets.append(found.load(16))
        for other in sets[1:]:
            assert (other.images == sets[0].images).all()
            assert (other.targets == sets[0].targets).all()
    found, classes = load_tiny_imagenet(archive, "train")
    first = [f"{classes[0]}/images/{classes[0]}_{i}.JPEG" for i in range(12)]
    assert found.paths[:12] == first  # 10 after 9


def test_the_error_of_a_missing_tiny_imagenet_has_the_archive_and_the_folders(tmp_path):
    (tmp_path / "train").mkdir()  # of some other set
    with pytest.raises(UserError) as e:
        load_tiny_imagenet(tmp_path, "train")
    message = str(e.value)
    assert f"Tiny-ImageNet is not under {tmp_path} (looked for train/ and val/ there" in message
    for words in (
        "tiny-imagenet-200/", "tiny-imagenet-200-lt10/", "data_path",
        "Fetch http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ):  # fmt: skip
        assert words in message


def test_tiny_imagenet_has_200_classes(tmp_path, write_classes):
    write_classes(tmp_path / "train", {"cat": 1, "dog": 1})
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match=r"train has 2 class folders; Tiny-ImageNet has 200\."):
        load_tiny_imagenet(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"val_0.JPEG\tn99999999\t0\t0\t9\t9\n", r"has the line 'val_0.*, which names no image"),
        (b"val_0.JPEG\n", "has the line 'val_0.JPEG', which names no image and training class"),
        (b"\n", "val_annotations.txt names no images"),
        (b"\xff\xfe", r"cannot read .*val_annotations.txt \('utf-8' codec"),
    ],
)
def test_a_damaged_list_of_validation_images_is_named(tmp_path, content, reason):
    for c in range(200):
        (tmp_path / "train" / f"n{c:08d}").mkdir(parents=True)
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "val_annotations.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"{reason}.*; fetch http.*zip again"):
        load_tiny_imagenet(tmp_path, "test")


# ---------------------------------------------------------------- digits


def test_digits():
    train, names = load_digits_images("train")
    test, _ = load_digits_images("test")
    assert names == [str(c) for c in range(10)]
    assert (len(train), len(test)) == (1297, 500)
    assert np.bincount(test.targets).tolist() == [50] * 10
    assert np.bincount(train.targets).min() == 124
    assert train.images.shape == (1297, 8, 8, 3) and train.images.dtype == np.uint8
    assert train.images.max() == 255
    assert len({i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}) == 0
