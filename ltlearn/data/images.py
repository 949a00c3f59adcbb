"""`ImageSet`: images and targets, and how an image file is read."""

import logging
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.splits import fingerprint
from ltlearn.errors import UserError, spell
from ltlearn.utils.parallel import count_threads
from ltlearn.utils.progress import track

__all__ = [
    "ImageSet",
    "read_image",
    "check_regular",
    "as_rgb",
    "unreadable_error",
    "natural_key",
]

_log = logging.getLogger("ltlearn")
# A fixed list, not the formats of the installed Pillow: an image in a format that Pillow lacks is
# reported instead of ignored.
EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
}  # fmt: skip


@dataclass
class ImageSet:
    """Labelled images, in memory (`images`) or on disk (`paths`, relative to `root`).

    Args:
        targets: Class index per image.
        images: Decoded images; None if they are on disk.
        paths: Image paths relative to `root`; None if the images are in memory.
        root: Folder of the paths.
        skipped: Full paths of unreadable images that were left out.

    Shape:
        targets is (N,), int64. images is (N, H, W, 3), uint8.
    """

    targets: np.ndarray
    images: np.ndarray | None = None
    paths: list[str] | None = None
    root: Path | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: np.ndarray) -> "ImageSet":
        """Return the images at `index`, in that order.

        Args:
            index: Indices into the images.
        """
        return ImageSet(
            self.targets[index],
            None if self.images is None else self.images[index],
            None if self.paths is None else [self.paths[i] for i in index],
            self.root,
            self.skipped,
        )

    def fingerprint(self) -> str:
        """Return the fingerprint of the pixels in memory, or of relative paths and file sizes.

        Raises:
            UserError: If a file is missing.
        """
        if self.images is not None:
            contents = (image.tobytes() for image in self.images)
        else:
            contents = (os.fsencode(f"{p}\0{self._size_of(p)}") for p in self.paths)
        return fingerprint(contents, self.targets)

    def _size_of(self, path: str) -> int:
        try:
            return os.stat(os.path.join(self.root, path)).st_size
        except OSError as e:
            raise unreadable_error(self.root / path, e.strerror) from None

    def load(
        self, size: int | None, skip_bad: bool = False, description: str = "reading images"
    ) -> "ImageSet":
        """Read all images into memory.

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

        def read(path: str) -> np.ndarray | None:
            return read_image(self.root / path, size)

        loaded, good = self._map(read, skip_bad, description)
        odd = next((i for i, im in enumerate(loaded) if im.shape != loaded[0].shape), None)
        if odd is not None:
            (h, w), (first_h, first_w) = loaded[odd].shape[:2], loaded[0].shape[:2]
            raise UserError(
                f"{self.root / self.paths[good[odd]]} is {w} x {h} pixels, others are "
                f"{first_w} x {first_h}; give a size that all are resized to."
            )
        kept = self._keep(good)
        kept.images = np.stack(loaded)
        return kept

    def without_bad(self) -> "ImageSet":
        """Return the images without those that cannot be read, and log a warning for each.

        Raises:
            UserError: If none can be read.
        """
        if self.images is not None:
            return self

        def check(path: str) -> bool:
            read_image(self.root / path)
            return True

        return self._keep(self._map(check, True, "checking images")[1])

    def _map(self, read: Callable, skip_bad: bool, description: str) -> tuple[list, np.ndarray]:
        """Read the paths in threads; return the results and the indices of the good ones."""

        def attempt(path: str):
            try:
                return read(path)
            except UserError as e:
                if not skip_bad:
                    raise
                # The second half of the message advises to skip the image, as happens here.
                _log.warning("left out: %s.", str(e).partition(";")[0])
                return None

        with ThreadPoolExecutor(count_threads()) as pool:
            results = list(track(pool.map(attempt, self.paths), len(self.paths), description))
        good = np.array([i for i, x in enumerate(results) if x is not None], dtype=np.int64)
        if self.paths and not len(good):
            raise UserError(f"no image under {self.root} can be read.")
        return [x for x in results if x is not None], good

    def _keep(self, good: np.ndarray) -> "ImageSet":
        kept = self.take(good)
        bad = np.setdiff1d(np.arange(len(self)), good)
        kept.skipped = self.skipped + [str(self.root / self.paths[i]) for i in bad]
        return kept


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright.

    Greyscale, palette and CMYK images are converted. Transparency is dropped. Images with 16 bits
    per channel keep the upper 8.

    Args:
        path: The file.
        size: Side in pixels that the image is resized to; None keeps its size.

    Raises:
        UserError: If the file is missing, truncated or no image. The message names it.
    """
    from PIL import Image, ImageOps

    try:
        check_regular(path)
        with Image.open(path) as image:
            # In place, because a copy takes a sixth of the reading time.
            ImageOps.exif_transpose(image, in_place=True)
            image = as_rgb(image)
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist.") from None
    except Exception as e:  # Pillow: OSError, SyntaxError, ValueError, DecompressionBombError, ...
        unknown = type(e).__name__ == "UnidentifiedImageError"
        raise unreadable_error(
            path, "not an image Pillow can read" if unknown else str(e)
        ) from None


def check_regular(path: Any) -> None:
    """Check that a path is a regular file, because opening a pipe waits for ever.

    Args:
        path: The file. An open file, such as the bytes in a row of a dataset, passes.

    Raises:
        OSError: If it is missing, or something else than a regular file.
    """
    if isinstance(path, str | os.PathLike) and not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")


def as_rgb(image):
    """Return a Pillow image of any mode as RGB.

    Args:
        image: The Pillow image.

    Raises:
        ValueError: If its pixels are floats, or have more than 16 bits.
    """
    from PIL import Image

    if image.mode[0] == "I":
        # Pillow's conversion clips 16-bit pixels at 255, which turns the image white.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise ValueError("it has more than 16 bits per pixel")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about a direct conversion to RGB
    return image if image.mode == "RGB" else image.convert("RGB")


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
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
