"""Bounds on images, rows that are missing, and images of 12 bits."""

import io
import logging
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ltlearn.data.images import EXTENSIONS, natural_key, read_image
from ltlearn.data.items import pixels_of
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.opening import open_image
from ltlearn.errors import UserError
from ltlearn.inspection import inspect_path

RAMP = np.tile(np.linspace(0, 4095, 16).astype(np.uint16), (16, 1))


def png(width, height, content, depth=8, kind=2, interlaced=0) -> bytes:
    """Return a PNG with the given content of its rows, compressed."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write(path, content: bytes):
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- bounds


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    file = write(tmp_path / "d.png", png(1, 10**8, bytes(2000), depth=1, kind=0))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(UserError, match=r"d\.png .*1 x 100,000,000 pixels.*64 million.*max_megapi"):
        read_image(file)
    (tmp_path / "set" / "a").mkdir(parents=True)
    file.rename(tmp_path / "set" / "a" / "d.png")
    monkeypatch.undo()
    for i in range(2):
        (tmp_path / "set" / "b").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "b" / f"{i}.png")
    for quick in (True, False):
        found = inspect_path(tmp_path / "set", quick=quick)
        assert [image.path[-5:] for image in found.unreadable] == ["d.png"]
        assert "max_megapixels" in found.unreadable[0].reason


def test_the_setting_bounds_the_pixels(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.new("L", (1500, 1000)).save(file)
    assert read_image(file).shape == (1000, 1500, 3)
    monkeypatch.setenv("LTLEARN_MAX_MEGAPIXELS", "1")
    with pytest.raises(UserError, match=r"1,500 x 1,000 pixels.*1 million"):
        read_image(file)
    monkeypatch.setenv("LTLEARN_MAX_MEGAPIXELS", "0")
    with pytest.raises(UserError, match="max_megapixels = '0'"):
        read_image(file)


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ltlearn.data.opening._LARGE_PIXELS", 10)
    file = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(file)
    inside, most = [], []

    def read():
        with open_image(file) as image:
            inside.append(1)
            most.append(len(inside))
            image.load()
            inside.pop()

    threads = [threading.Thread(target=read) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(most) == 8 and max(most) == 1


# ---------------------------------------------------------------- missing rows


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (6, 4)])
def test_a_png_without_its_last_rows_is_no_image(tmp_path, kind, channels, interlaced):
    # Columns and rows of each pass; the last pass of the interlaced image has half of the pixels.
    passes = [(2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8)] if interlaced else [(16, 16)]
    rows = [b"\0" + b"\x80" * columns * channels for columns, n in passes for _ in range(n)]
    options = {"kind": kind, "interlaced": interlaced}
    whole = png(16, 16, b"".join(rows), **options)
    assert (read_image(write(tmp_path / "a.png", whole)) == 0x80).all()
    file = write(tmp_path / "a.png", png(16, 16, b"".join(rows[:-4]), **options))
    with pytest.raises(UserError, match=r"a\.png \(.*truncated.*rows are missing"):
        read_image(file)
    with pytest.raises(UserError, match="rows are missing"):
        read_image(io.BytesIO(file.read_bytes()))


def test_a_large_png_without_data_is_refused_at_once(tmp_path, monkeypatch):
    file = write(tmp_path / "a.png", png(4000, 4000, bytes(2000)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(UserError, match="rows are missing"):
        read_image(file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (9, 16), (64, 3)])
def test_a_black_png_is_an_image(tmp_path, mode, size):
    Image.new(mode, size).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()
    bits = {"1": 1, "I;16": 16}.get(mode, 8)
    kind = {"P": 3, "RGB": 2, "RGBA": 6, "LA": 4}.get(mode, 0)
    if kind != 3:
        # All passes of an interlaced image, black.
        content = b"\0" * (size[0] * size[1] * 8 + 64) if bits == 16 else None
        if content:
            write(tmp_path / "b.png", png(*size, content, bits, kind, interlaced=1))
            assert not read_image(tmp_path / "b.png").any()


# ---------------------------------------------------------------- 12 bits


def save_deep(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        assert cv2.imwrite(str(path), pixels[..., ::-1])
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_decide_the_brightness(tmp_path, suffix, bits):
    ramp = (RAMP.astype(np.int64) * (2**bits - 1) // 4095).astype(np.uint16)
    file = save_deep(tmp_path / f"a.{suffix}", ramp)
    assert (read_image(file, None, bits)[..., 0] == ramp >> (bits - 8)).all()
    assert read_image(file, None, bits).max() == 255


def test_colour_images_of_12_bits(tmp_path):
    colour = np.stack([RAMP, RAMP // 2, RAMP.T], axis=2)
    file = save_deep(tmp_path / "a.png", colour)
    assert (read_image(file, None, 12) == colour >> 4).all()
    assert (read_image(file) == colour >> 8).all()


def test_colour_images_of_12_bits_that_pillow_has_opened(tmp_path):
    """Pillow keeps 8 of 16 bits, so that the image was nearly black, unlike its path."""
    file = save_deep(tmp_path / "a.png", np.stack([RAMP, RAMP // 2, RAMP // 4], 2))
    expected = read_image(file, None, 12)
    assert expected.max() == 255
    with Image.open(file) as lazy:
        assert (pixels_of(lazy, 12) == expected).all()
    assert (pixels_of(Image.open(io.BytesIO(file.read_bytes())), 12) == expected).all()
    with Image.open(file) as decoded:
        decoded.load()
        with pytest.raises(UserError, match=r"a\.png.*16 bits.*path"):
            pixels_of(decoded, 12)
        assert pixels_of(decoded, 16).max() == 15
    other = Image.fromarray(expected)
    assert (pixels_of(other, 12) == expected).all()


def test_values_above_the_bits_are_white(tmp_path):
    file = save_deep(tmp_path / "a.png", np.array([[0, 1023, 4096, 65535]], np.uint16))
    assert read_image(file, None, 10)[0, :, 0].tolist() == [0, 255, 255, 255]


def test_one_image_that_would_be_black_is_reported(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ltlearn")
    file = save_deep(tmp_path / "a.png", RAMP)
    assert read_image(file).max() == 15
    assert "a.png" in caplog.text and "12 at most" in caplog.text and "bits=12" in caplog.text
    caplog.clear()
    read_image(file, None, 16), read_image(save_deep(tmp_path / "b.png", RAMP * 16))
    Image.new("L", (4, 4)).save(tmp_path / "c.png")
    read_image(tmp_path / "c.png")
    assert not caplog.messages


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_set_of_12_bits_is_read_with_12(tmp_path, in_memory, caplog):
    caplog.set_level(logging.WARNING, "ltlearn")
    for c, k in (("a", 1), ("b", 2)):
        for i in range(4):
            save_deep(tmp_path / c / f"{i}.png", np.minimum(RAMP // k + i, 4095).astype(np.uint16))

    def load(**options):
        return LTDataLoaders.from_folder(
            tmp_path, device="cpu", bs=2, in_memory=in_memory, size=16, transform="none", **options
        )

    def brightest(dls):
        return max(dls.valid.dataset[i][0].max().item() for i in range(dls.valid.n))

    dls = load()
    assert dls.bits == 12 and brightest(dls) == 255
    assert "12 bits" in caplog.text and "bits=16" in caplog.text
    caplog.clear()
    plain = load(bits=16)
    assert plain.bits == 16 and brightest(plain) == 15 and not caplog.messages
    # The same images, but not the same pixels: cached features must not be mixed up.
    assert plain.split == dls.split
    assert plain.train.dataset.files_name != dls.train.dataset.files_name
    text = dict(inspect_path(tmp_path).rows())["stored as"]
    assert "12 bits" in text
    with pytest.raises(UserError, match="bits.*17"):
        load(bits=17)


def test_bright_images_of_16_bits_are_read_with_16(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ltlearn")
    for c in "ab":
        for i in range(3):
            save_deep(tmp_path / c / f"{i}.png", RAMP * 16 + np.uint16(i))
    dls = LTDataLoaders.from_folder(tmp_path, device="cpu", bs=2)
    assert dls.bits == 16 and not caplog.messages


# ---------------------------------------------------------------- names


def test_numbers_of_any_length_are_sorted():
    names = ["9" * 5000, "10", "2", "02", "a10", "a9", "٣", "٢"]
    in_order = sorted(names, key=natural_key)
    assert in_order[-1] == "a10" and in_order.index("2") < in_order.index("10")
    assert in_order.index("02") < in_order.index("2") and in_order.index("٢") < in_order.index("٣")
    assert in_order.index("9" * 5000) == len(names) - 3


def test_heic_is_read_where_it_is_installed(tmp_path, write_classes, caplog):
    write_classes(tmp_path / "set", {"a": 3, "b": 3})
    file = tmp_path / "set" / "a" / "x.HEIC"
    if ".heic" not in EXTENSIONS:
        file.write_bytes(b"x")
        dls = LTDataLoaders.from_folder(tmp_path / "set", device="cpu", bs=2)
        assert dls.shot_counts.tolist() == [3, 3] and "ltlearn[heic]" in caplog.text
        with pytest.raises(UserError, match=r"x\.HEIC .*ltlearn\[heic\]"):
            read_image(file)
        return
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 40, 40))).save(file, quality=95)
    dls = LTDataLoaders.from_folder(tmp_path / "set", device="cpu", bs=2, size=8)
    assert dls.shot_counts.tolist() == [4, 3]
    assert np.abs(read_image(file).mean((0, 1)) - [200, 40, 40]).max() < 8
