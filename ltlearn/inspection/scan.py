"""Read every image once: its size, damage, format and the hash of its pixels."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ltlearn.data.images import ImageSet, unknown_reason
from ltlearn.data.opening import is_deep, open_image, upright_rgb
from ltlearn.utils.parallel import count_threads
from ltlearn.utils.progress import ProgressLine

__all__ = ["HASH_BYTES", "KINDS", "Scan", "scan_images"]

# How an image may be stored.
KINDS = ("greyscale", "palette", "alpha", "CMYK", "16 bit", "animated", "EXIF-rotated")
HASH_BYTES = 16
_CHUNK = 64  # images per task; one future per image would take more memory than its result


class Scan:
    """The results for each image, in 48 bytes.

    Args:
        n: Number of images.
    """

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
        """Record the size of an image, and a bit per kind in `KINDS`.

        Args:
            i: Index of the image.
            size: (width, height) in pixels.
            kinds: The bits of its kinds.
        """
        self.good[i], self.kinds[i] = True, kinds
        self.width[i], self.height[i] = size

    def put_hash(self, i: int, file_hash: bytes, pixel_hash: bytes) -> None:
        """Record the hashes of an image.

        Args:
            i: Index of the image.
            file_hash: Hash of the file.
            pixel_hash: Hash of the decoded pixels.
        """
        self.file_hash[i] = np.frombuffer(file_hash, dtype=np.uint8)
        self.pixel_hash[i] = np.frombuffer(pixel_hash, dtype=np.uint8)


def scan_images(parts: Mapping[str, ImageSet], quick: bool) -> Scan:
    """Read every image once, in threads.

    Args:
        parts: The images by part; their order decides the index of each image.
        quick: Read only the headers, and no hashes.
    """
    total = sum(len(data) for data in parts.values())
    scan, first, chunks = Scan(total), 0, []
    for data in parts.values():
        chunks += [
            (data, start, first + start, min(_CHUNK, len(data) - start))
            for start in range(0, len(data), _CHUNK)
        ]
        first += len(data)

    def read_chunk(chunk) -> tuple[int, Counter]:
        data, start, first, n = chunk
        formats = Counter()
        for k in range(n):
            if data.images is not None:
                _read_array(scan, first + k, data.images[start + k], quick)
                continue
            path = data.file(start + k)
            try:
                formats[_read_file(scan, first + k, path, quick, data.bits)] += 1
            except Exception as e:  # Pillow raises many types of exception
                scan.bad[first + k] = _reason(e, path)
        return n, formats

    began = time.perf_counter()
    line = ProgressLine("reading headers" if quick else "reading images", total)
    try:
        with ThreadPoolExecutor(count_threads(), "ltlearn-inspect") as pool:
            for n, formats in pool.map(read_chunk, chunks):
                scan.formats.update(formats)
                line.advance(n)
    finally:
        line.close()
    scan.seconds = time.perf_counter() - began
    return scan


def _read_array(scan: Scan, i: int, pixels: np.ndarray, quick: bool) -> None:
    scan.put(i, (pixels.shape[1], pixels.shape[0]))
    if not quick:
        digest = _hash_pixels(pixels.shape[1::-1], np.ascontiguousarray(pixels))
        scan.put_hash(i, digest, digest)


def _read_file(scan: Scan, i: int, path: str, quick: bool, bits: int) -> str:
    """Read an image, record the results at `i`, and return its format."""
    with open_image(path) as image:
        # Decoding removes some of these attributes.
        kinds, file_format = _kinds_of(image, quick), image.format or "unknown"
        if quick:
            size = image.size
            if kinds & _ROTATED and _orientation(image, quick) >= 5:
                size = size[::-1]
        else:
            rgb = upright_rgb(image, path, bits)
            size = rgb.size
            is_row = hasattr(path, "getbuffer")  # in a row of a dataset or in a shard
            with nullcontext(path) if is_row else open(path, "rb") as file:
                file_hash = hashlib.file_digest(file, _hasher).digest()
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
    """Return a bit for each kind in `KINDS` that fits the image."""
    mode = image.mode
    kinds = (
        mode[0] in "1LIF",
        mode in ("P", "PA"),
        mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info,
        mode == "CMYK",
        is_deep(image),
        getattr(image, "is_animated", False),
        _orientation(image, quick) > 1,
    )
    return sum(bool(is_one) << i for i, is_one in enumerate(kinds))


def _orientation(image, quick: bool) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright."""
    # Pillow would decode the whole PNG to find EXIF data after the pixels.
    if quick and image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(e: Exception, path: Path) -> str:
    if isinstance(e, FileNotFoundError):
        return "not there"
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    if type(e).__name__ == "UnidentifiedImageError":
        return unknown_reason(path)
    return (str(e).splitlines() or [""])[0] or type(e).__name__
