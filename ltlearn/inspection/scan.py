"""Read every image once: size, damage, format, hash of the pixels."""

import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ltlearn.data.images import ImageSet, as_rgb
from ltlearn.inspection.report import KINDS
from ltlearn.utils.progress import ProgressLine

__all__ = ["HASH_BYTES", "Scan", "scan_images", "count_threads"]

_CHUNK = 64  # images a task: a future each would take more memory than what is found
HASH_BYTES = 16
_MOST_THREADS = 8


class Scan:
    """What is kept of each image: 48 bytes, whatever its size."""

    def __init__(self, n: int):
        self.good = np.zeros(n, dtype=bool)
        self.width, self.height = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
        self.kinds = np.zeros(n, dtype=np.uint8)
        self.file_hash = np.zeros((n, HASH_BYTES), dtype=np.uint8)
        self.pixel_hash = np.zeros((n, HASH_BYTES), dtype=np.uint8)
        self.formats: Counter = Counter()
        self.bad: dict[int, str] = {}
        self.seconds = 0.0

    def put(self, i: int, size: tuple[int, int], kinds: int = 0) -> None:
        """Record the size of an image."""
        self.good[i], self.kinds[i] = True, kinds
        self.width[i], self.height[i] = size

    def put_hash(self, i: int, file_hash: bytes, pixel_hash: bytes) -> None:
        """Record the hashes of an image."""
        self.file_hash[i] = np.frombuffer(file_hash, dtype=np.uint8)
        self.pixel_hash[i] = np.frombuffer(pixel_hash, dtype=np.uint8)


def scan_images(parts: Mapping[str, ImageSet], quick: bool) -> Scan:
    """Read every image once."""
    total = sum(len(data) for data in parts.values())
    scan, first, chunks = Scan(total), 0, []
    for data in parts.values():
        chunks += [
            (data, start, first + start, min(_CHUNK, len(data) - start))
            for start in range(0, len(data), _CHUNK)
        ]
        first += len(data)

    def look(chunk) -> tuple[int, Counter]:
        data, start, first, n = chunk
        formats = Counter()
        for k in range(n):
            if data.images is not None:
                _look_at_array(scan, first + k, data.images[start + k], quick)
                continue
            try:
                path = os.path.join(data.root, data.paths[start + k])
                formats[_look_at_file(scan, first + k, path, quick)] += 1
            except Exception as e:  # what Pillow raises has no end; one dict entry is atomic
                scan.bad[first + k] = _reason(e)
        return n, formats

    began = time.perf_counter()
    line = ProgressLine("reading headers" if quick else "reading images", total)
    try:
        with ThreadPoolExecutor(count_threads(), "ltlearn-inspect") as pool:
            for n, formats in pool.map(look, chunks):
                scan.formats.update(formats)
                line.advance(n)
    finally:
        line.close()
    scan.seconds = time.perf_counter() - began
    return scan


def count_threads() -> int:
    """Count the threads that read."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MOST_THREADS, cores or 1)


def _look_at_array(scan: Scan, i: int, pixels: np.ndarray, quick: bool) -> None:
    scan.put(i, (pixels.shape[1], pixels.shape[0]))
    if not quick:
        digest = _hash_pixels(pixels.shape[1::-1], np.ascontiguousarray(pixels))
        scan.put_hash(i, digest, digest)


def _look_at_file(scan: Scan, i: int, path: str, quick: bool) -> str:
    """Read an image, put what it is like at `i`, and return its format."""
    from PIL import Image, ImageOps

    # To open a pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        if not quick:
            file_hash = hashlib.file_digest(file, _hasher).digest()
            file.seek(0)
        with Image.open(file) as image:
            # All of this before decoding, which forgets some of it.
            kinds, file_format = _kinds_of(image, quick), image.format or "unknown"
            if quick:
                size = image.size
                if kinds & _ROTATED and _orientation(image, quick) >= 5:
                    size = size[::-1]
            else:
                ImageOps.exif_transpose(image, in_place=True)
                rgb = as_rgb(image)
                size = rgb.size
                scan.put_hash(i, file_hash, _hash_pixels(size, rgb.tobytes()))
    scan.put(i, size, kinds)
    return file_format


def _hasher():
    return hashlib.blake2b(digest_size=HASH_BYTES)


def _hash_pixels(size: Sequence[int], pixels) -> bytes:
    hasher = _hasher()
    hasher.update(f"{size[0]} {size[1]} ".encode())
    hasher.update(pixels)
    return hasher.digest()


_ROTATED = 1 << KINDS.index("EXIF-rotated")


def _kinds_of(image, quick: bool) -> int:
    """Return a bit per kind that the image is of, in the order of `KINDS`."""
    mode = image.mode
    is_16_bit = mode[0] == "I" or any(";16" in str(tile[3]) for tile in image.tile)
    kinds = (
        mode[0] in "1LIF",
        mode in ("P", "PA"),
        mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info,
        mode == "CMYK",
        is_16_bit,
        getattr(image, "is_animated", False),
        _orientation(image, quick) > 1,
    )
    return sum(bool(is_one) << i for i, is_one in enumerate(kinds))


def _orientation(image, quick: bool) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright."""
    # Pillow decodes a PNG to find EXIF behind the pixels, which is not quick.
    if quick and image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(e: Exception) -> str:
    if isinstance(e, FileNotFoundError):
        return "not there"
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    if type(e).__name__ == "UnidentifiedImageError":
        return "not an image Pillow can read"
    return (str(e).splitlines() or [""])[0] or type(e).__name__
