"""`ImageSet`: images and targets, and how an image file is read."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.digests import (
    DIGEST_BYTES,
    counts_by_pixels,
    digest_arrays,
    digest_files,
    digest_image,
    hash_file,
)
from ltlearn.data.opening import HEIF_INSTALL, HEIF_SUFFIXES, is_deep, open_image, upright_rgb
from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError, spell
from ltlearn.utils.parallel import compute_chunks

__all__ = [
    "EXTENSIONS",
    "ImageSet",
    "natural_key",
    "read_image",
    "unknown_reason",
    "unreadable_error",
]

_log = logging.getLogger("ltlearn")
# A fixed list, not the formats of the installed Pillow: an image in a format that Pillow lacks is
# reported instead of ignored.
EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
}  # fmt: skip
if find_spec("pillow_heif") is not None:
    EXTENSIONS |= HEIF_SUFFIXES
_CHUNK = 64  # images per task
_CHANNELS = 4  # bytes per pixel in memory; `BatchCropFlip` uses such images without a copy


@dataclass
class ImageSet:
    """Labelled images, in memory (`images`) or on disk (`paths`, relative to `root`).

    Args:
        targets: Class index per image.
        images: Decoded images; None if they are on disk.
        paths: Image paths relative to `root`; None if the images are in memory.
        root: Folder of the paths, or `ltlearn.data.readers.rows.Rows`.
        skipped: Full paths of unreadable images that were left out.
        bits: Bits that the values of 16-bit images on disk take, from 8 to 16.
        digests: Digest of each image; None until they are computed.
        rows: Index into `images` of each image, so that a part of a set needs no copy; None if the
            set has all of them in order.

    Shape:
        targets is (N,), int64. images is (N, H, W, 3), uint8. digests is (N, 32), uint8. rows is
        (N,), integer.
    """

    targets: np.ndarray
    images: np.ndarray | None = None
    paths: Sequence[str] | None = None
    root: Any = None
    skipped: list[str] = field(default_factory=list)
    bits: int = 16
    digests: np.ndarray | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: np.ndarray) -> "ImageSet":
        """Return the images at `index`, in that order.

        Args:
            index: Indices into the images.
        """
        taken = self.part(index)
        if taken.images is not None:
            taken.images, taken.rows = self.images[taken.rows], None
        return taken

    def part(self, index: np.ndarray) -> "ImageSet":
        """Return the images at `index`, in that order, without a copy of images in memory.

        Args:
            index: Indices into the images.
        """
        rows = index if self.rows is None else self.rows[index]
        return replace(
            self,
            targets=self.targets[index],
            paths=None if self.paths is None else [self.paths[i] for i in index],
            digests=None if self.digests is None else self.digests[index],
            rows=None if self.images is None else rows,
        )

    def file(self, i: int) -> Any:
        """Return the path of image i, or the open file of a row of a dataset.

        Args:
            i: Index of the image.
        """
        # Making a `Path` takes longer than opening a small file.
        is_folder = isinstance(self.root, Path)
        return os.path.join(self.root, self.paths[i]) if is_folder else self.root / self.paths[i]

    def fingerprint(self, ordered: bool = False) -> str:
        """Return the fingerprint of the images and their classes.

        Args:
            ordered: Whether the same images in another order have another fingerprint.

        Raises:
            UserError: If a file is missing.
        """
        return fingerprint(self.digested().digests, ordered)

    def digested(self) -> "ImageSet":
        """Return the set with the digest of each image.

        Raises:
            UserError: If a file is missing.
        """
        if self.digests is not None:
            return self
        if self.images is not None:
            images = self.images if self.rows is None else (self.images[i] for i in self.rows)
            return replace(self, digests=digest_arrays(images, self.targets))
        root = self.root if isinstance(self.root, Path) or getattr(self.root, "files", ()) else None
        try:
            return replace(self, digests=digest_files(self.file, self.targets, root, self.paths))
        except OSError as e:
            raise unreadable_error(e.filename, e.strerror) from None

    def load(
        self, size: int | None, skip_bad: bool = False, description: str = "reading images"
    ) -> "ImageSet":
        """Read all images into memory, and take their digests.

        Args:
            size: Side in pixels that each image is resized to; None if all have one size already.
            skip_bad: Leave unreadable images out, with a warning, and list them in `skipped`.
            description: Text before the progress bar.

        Raises:
            UserError: If an image cannot be read (with `skip_bad`, if none can be read), or the
                sizes differ and `size` is None. The message names the image.
        """
        if self.images is not None:
            return self
        shape = (size, size) if size else self._first_shape(skip_bad)
        store = np.zeros((len(self), *shape, _CHANNELS), dtype=np.uint8)
        digests = np.zeros((len(self), DIGEST_BYTES), dtype=np.uint8)

        def put(i: int) -> None:
            pixels, digests[i] = _read_named(self.file(i), size, self.bits, int(self.targets[i]))
            if pixels.shape[:2] != shape:
                raise _OtherSize(
                    f"{self.file(i)} is {pixels.shape[1]} x {pixels.shape[0]} pixels, others are "
                    f"{shape[1]} x {shape[0]}; give a size that all are resized to."
                )
            store[i, :, :, :3] = pixels

        good = self._each(put, skip_bad, description)
        for k in range(0, len(good) if len(good) < len(self) else 0, _CHUNK):
            # In place: `good` is ascending, so no row is overwritten before it is moved.
            rows = good[k : k + _CHUNK]
            store[k : k + len(rows)] = store[rows]
        kept = self._keep(good)
        kept.images, kept.rows, kept.digests = store[: len(good), ..., :3], None, digests[good]
        return kept

    def without_bad(self) -> "ImageSet":
        """Return the images without those that cannot be read, and log a warning for each.

        Raises:
            UserError: If none can be read.
        """
        if self.images is not None:
            return self

        def check(i: int) -> None:
            read_image(self.file(i), None, self.bits)

        return self._keep(self._each(check, True, "checking images"))

    def _first_shape(self, skip_bad: bool) -> tuple[int, int]:
        """Return the height and width of the first image that can be read."""
        for i in range(len(self)):
            try:
                return read_image(self.file(i), None, self.bits).shape[:2]
            except UserError:
                if not skip_bad:
                    raise
        return 0, 0

    def _each(self, do, skip_bad: bool, description: str) -> np.ndarray:
        """Call `do(i)` for each image in threads; return the indices that did not fail."""
        n = len(self)
        good = np.zeros(n, dtype=bool)

        def do_chunk(start: int, end: int) -> None:
            for i in range(start, end):
                try:
                    do(i)
                    good[i] = True
                except UserError as e:
                    if not skip_bad or isinstance(e, _OtherSize):
                        raise
                    # The second half of the message advises to skip the image, as happens here.
                    _log.warning("left out: %s.", str(e).partition(";")[0])

        compute_chunks(do_chunk, n, _CHUNK, description)
        if n and not good.any():
            raise UserError(f"no image under {self.root} can be read.")
        return np.flatnonzero(good)

    def _keep(self, good: np.ndarray) -> "ImageSet":
        if len(good) == len(self):
            return replace(self)
        kept = self.take(good)
        bad = np.setdiff1d(np.arange(len(self)), good)
        kept.skipped = self.skipped + [str(self.file(i)) for i in bad]
        return kept


class _OtherSize(UserError):
    """An image in memory that has another size than the others."""


def read_image(path: Any, size: int | None = None, bits: int | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright.

    Greyscale, palette and CMYK images are converted. Transparency is dropped. Images with 16 bits
    per channel keep the upper 8 of `bits`.

    Args:
        path: The file.
        size: Side in pixels that the image is resized to; None keeps its size.
        bits: Bits that the values of a 16-bit image take, from 8 to 16. None takes 16, and logs a
            warning if the image then comes out nearly black.

    Raises:
        UserError: If the file is missing, truncated or no image, or has more pixels than the
            setting `max_megapixels`. The message names it.
    """
    with _named_errors(path), open_image(path) as image:
        deep = bits is None and is_deep(image)
        pixels = np.array(_resized(upright_rgb(image, path, bits or 16), size))
    if deep and pixels.max() < _NEARLY_BLACK:
        _log.warning(
            "%s has 16 bits per channel, but its values take %d at most, so it is read as nearly "
            "black; give %s to read it brighter.", path, pixels.max().item().bit_length() + 8,
            spell("bits", 12),
        )  # fmt: skip
    return pixels


_NEARLY_BLACK = 16  # upper 8 bits of 2 ** 12


def _read_named(file: Any, size: int | None, bits: int, target: int) -> tuple:
    """Return the pixels of an image, resized, and its digest."""
    with _named_errors(file), open_image(file) as image:
        by_pixels = counts_by_pixels(image)
        rgb = upright_rgb(image, file, bits)
        resized = _resized(rgb, size)
        pixels = np.asarray(resized)
        if not by_pixels:
            content = hash_file(file)
        else:
            content = (pixels if resized is rgb else np.asarray(rgb)).tobytes()
        return pixels, np.frombuffer(digest_image(content, target), dtype=np.uint8)


def _resized(image: Any, size: int | None) -> Any:
    from PIL import Image

    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


@contextmanager
def _named_errors(path: Any) -> Iterator[None]:
    """Turn what Pillow raises into a `UserError` that names the image."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist.") from None
    except Exception as e:  # Pillow: OSError, SyntaxError, ValueError, DecompressionBombError, ...
        unknown = type(e).__name__ == "UnidentifiedImageError"
        raise unreadable_error(path, unknown_reason(path) if unknown else str(e)) from None


def unknown_reason(path: Any) -> str:
    """Return why Pillow does not recognise a file as an image.

    Args:
        path: The file.
    """
    if os.path.splitext(str(path))[1].lower() in HEIF_SUFFIXES - EXTENSIONS:
        return f"a HEIC image needs pillow-heif: {HEIF_INSTALL}"
    return "not an image Pillow can read"


def unreadable_error(path: Path, reason: str) -> UserError:
    """Return the error for an unreadable image.

    Args:
        path: The image.
        reason: Why it cannot be read.
    """
    return UserError(
        f"cannot read the image {path} ({reason}); repair or remove it, or leave such images "
        f"out with {spell('skip_bad', True)}."
    )


def natural_key(name: str) -> tuple:
    """Return a sort key that puts 2_cat.png before 10_cat.png.

    Args:
        name: A file name.
    """
    # The parts at odd positions are numbers. The name itself decides between 1.png and 01.png.
    parts = re.split(r"(\d+)", name)
    return [_number_key(part) if i % 2 else part for i, part in enumerate(parts)], name


def _number_key(digits: str) -> tuple[int, str]:
    """Return a sort key of a whole number; Python converts no more than 4,300 digits."""
    if not digits.isascii():
        digits = "".join(str(unicodedata.decimal(c)) for c in digits)
    digits = digits.lstrip("0")
    return len(digits), digits
