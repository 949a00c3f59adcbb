"""Open image files within bounds, and convert them to upright 8-bit RGB."""

import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np

from ltlearn.utils.settings import load_settings

__all__ = [
    "HEIF_INSTALL",
    "HEIF_SUFFIXES",
    "as_rgb",
    "check_regular",
    "is_deep",
    "open_image",
    "upright_rgb",
]

HEIF_SUFFIXES = {".heic", ".heif"}  # formats that need pillow-heif
HEIF_INSTALL = "pip install 'ltlearn[heic]'"
_LARGE_PIXELS = 16_000_000  # images above are decoded one at a time, to bound memory
_CHECKED_PIXELS = 1_000_000  # a PNG above is checked before memory is taken for it
_large = threading.Lock()
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type: channels
# First column, first row, and steps of the seven passes of an interlaced PNG.
_PNG_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip
_DEFLATE_RATIO = 1040  # deflate makes data at most 1,032 times smaller
_READ_BYTES = 1 << 20


def _new_lock() -> None:
    global _large
    _large = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread of the parent may hold the lock at the moment of the fork.
    os.register_at_fork(after_in_child=_new_lock)


def check_regular(path: Any) -> None:
    """Check that a path is a regular file, because opening a pipe waits for ever.

    Args:
        path: The file. An open file, such as the bytes in a row of a dataset, passes.

    Raises:
        OSError: If it is missing, or something else than a regular file.
    """
    if isinstance(path, str | os.PathLike) and not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")


@contextmanager
def open_image(file: Any) -> Iterator[Any]:
    """Open an image with Pillow; refuse one with more pixels than the setting `max_megapixels`.

    Args:
        file: A path or an open file.

    Raises:
        OSError: If the file is missing, no regular file, or no image.
        ValueError: If the image has too many pixels.
    """
    from PIL import Image

    check_regular(file)
    _register_heif()
    with Image.open(file) as image:
        (width, height), most = image.size, _max_megapixels(os.environ.get(_VARIABLE))
        if width * height > most * 1_000_000:
            raise ValueError(
                f"it has {width:,} x {height:,} pixels, more than the {most} million that the "
                f"setting max_megapixels (in settings.ini, or {_VARIABLE}) allows"
            )
        with _large if width * height > _LARGE_PIXELS else nullcontext():
            yield image


_VARIABLE = "LTLEARN_MAX_MEGAPIXELS"


@lru_cache(maxsize=4)
def _max_megapixels(variable: str | None) -> int:
    """Return the setting, which is read once for each value of the environment variable."""
    return load_settings().max_megapixels


@lru_cache(maxsize=1)
def _register_heif() -> None:
    """Let Pillow read HEIC images if pillow-heif is installed."""
    if find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()


def is_deep(image: Any) -> bool:
    """Return whether an image has 16 bits per channel. It must not have been decoded yet.

    Args:
        image: The Pillow image.
    """
    return image.mode[0] == "I" or any(";16" in str(tile[3]) for tile in image.tile)


def upright_rgb(image: Any, file: Any, bits: int = 16) -> Any:
    """Decode an open image into upright 8-bit RGB.

    Args:
        image: The Pillow image, as `open_image` yields it.
        file: Its path or open file.
        bits: Bits that the values of a 16-bit image take, from 8 to 16.

    Raises:
        OSError: If rows are missing.
        ValueError: If its pixels are floats, or have more than 16 bits.
    """
    from PIL import ImageOps

    is_png = image.format == "PNG"
    is_rgb_16 = bits < 16 and image.mode[0] != "I" and is_deep(image)
    if is_png and image.width * image.height > _CHECKED_PIXELS:
        _check_png(file)
    image.load()
    # Missing passes of an interlaced image leave no black rows.
    if is_png and (image.info.get("interlace") or not _has_light_end(image)):
        _check_png(file, count=True)
    if is_rgb_16:
        return _rgb_of_16_bits(image, file, bits)
    if image.info or not is_png:  # a PNG without information has no orientation
        # In place, because a copy takes a sixth of the reading time.
        ImageOps.exif_transpose(image, in_place=True)
    return as_rgb(image, bits)


def as_rgb(image: Any, bits: int = 16) -> Any:
    """Return a Pillow image of any mode as RGB.

    Args:
        image: The Pillow image.
        bits: Bits that the values of a 16-bit greyscale image take, from 8 to 16. Larger values
            become white.

    Raises:
        ValueError: If its pixels are floats, or have more than 16 bits.
    """
    from PIL import Image

    if image.mode[0] == "I":
        # Pillow's conversion clips 16-bit pixels at 255, which turns the image white.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("it has more than 16 bits per pixel")
        image = Image.fromarray(_upper_8_bits(pixels, bits))
    elif image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_8_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    return np.minimum(pixels >> (bits - 8), 255).astype(np.uint8)


def _rgb_of_16_bits(image: Any, file: Any, bits: int) -> Any:
    """Read a colour image with 16 bits per channel, of which Pillow keeps the upper 8."""
    import cv2
    from PIL import Image, ImageOps

    if hasattr(file, "getvalue"):
        encoded = np.frombuffer(file.getvalue(), np.uint8)
    else:
        encoded = np.fromfile(file, np.uint8)
    pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise ValueError(f"its 16 bits per channel cannot be read as {bits}")
    rgb = Image.fromarray(_upper_8_bits(np.ascontiguousarray(pixels[..., 2::-1]), bits))
    rgb.getexif()[0x0112] = image.getexif().get(0x0112, 1)
    return ImageOps.exif_transpose(rgb)


def _has_light_end(image: Any) -> bool:
    """Return whether the last two rows hold a value above zero."""
    width, height = image.size
    last = image.getpixel((width - 1, height - 1))
    if any(last) if isinstance(last, tuple) else last:
        return True
    return image.crop((0, max(height - 2, 0), width, height)).getbbox(alpha_only=False) is not None


def _check_png(file: Any, count: bool = False) -> None:
    """Raise if a PNG has too little data for its size; Pillow reads the missing rows as black.

    Args:
        file: The path or open file.
        count: Whether to decompress the data and count it. Otherwise only a file is refused that
            cannot hold enough.
    """
    with _opened_again(file) as stream:
        header = stream.read(33)
        width, height = (int.from_bytes(header[i : i + 4], "big") for i in (16, 20))
        depth, kind, interlaced = header[24], header[25], header[28]
        passes = _PNG_PASSES if interlaced else ((0, 0, 1, 1),)
        expected = 0
        for left, top, across, down in passes:
            columns, rows = -(-(width - left) // across), -(-(height - top) // down)
            if columns > 0 and rows > 0:
                expected += rows * (1 + -(-columns * _PNG_CHANNELS.get(kind, 1) * depth // 8))
        size = stream.seek(0, os.SEEK_END)
        if expected > size * _DEFLATE_RATIO or (count and _inflated(stream, expected) < expected):
            raise OSError("image file is truncated: rows are missing")


@contextmanager
def _opened_again(file: Any) -> Iterator[BinaryIO]:
    """Open a file once more, or rewind an open one and put its position back afterwards."""
    if not hasattr(file, "seek"):
        with open(file, "rb") as stream:
            yield stream
        return
    position = file.tell()
    try:
        file.seek(0)
        yield file
    finally:
        file.seek(position)


def _inflated(stream: BinaryIO, enough: int) -> int:
    """Count the bytes in the IDAT chunks of a PNG after decompression, up to `enough`."""
    inflater, count = zlib.decompressobj(), 0
    stream.seek(8)
    while len(head := stream.read(8)) == 8 and count < enough:
        left, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind != b"IDAT":
            stream.seek(left + 4, os.SEEK_CUR)
            continue
        while left > 0 and (content := stream.read(min(left, _READ_BYTES))):
            left -= len(content)
            while content and count < enough and not inflater.eof:
                count += len(inflater.decompress(content, _READ_BYTES))
                content = inflater.unconsumed_tail
        stream.seek(4, os.SEEK_CUR)
    return count
