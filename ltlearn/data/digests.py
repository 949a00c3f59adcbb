"""Digests of labelled images, which make the fingerprint of a set.

The digest of an image depends on its content and its class alone: not on the folder, the size that
it is resized to, or where it is held. Small images count by their pixels, so that a set has one
fingerprint as PNG files, pickles and arrays. Large files count by their bytes, because decoding all
of them would take as long as an epoch.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.opening import check_regular, is_deep, open_image, upright_rgb
from ltlearn.defaults import SMALL_SIDE
from ltlearn.errors import UserError
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.parallel import compute_chunks
from ltlearn.utils.settings import load_settings

__all__ = [
    "DIGEST_BYTES",
    "counts_by_pixels",
    "digest_arrays",
    "digest_files",
    "digest_image",
    "hash_file",
]

_log = logging.getLogger("ltlearn")
DIGEST_BYTES = 32
_CHUNK = 64  # files per task
_SLOW_S = 5.0  # digests that took longer are kept in the cache
_SETTLED_NS = 2_000_000_000  # a file may change again within a tick of the file system's clock


def digest_image(content: bytes, target: int) -> bytes:
    """Return the digest of an image.

    Args:
        content: Its pixels, or the SHA-256 of its file.
        target: Its class index.
    """
    return hashlib.sha256(int(target).to_bytes(4, "little") + content).digest()


def digest_arrays(images: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """Return the digests of decoded images.

    Args:
        images: The images, uint8.
        targets: Class index per image.

    Shape:
        targets is (N,). The result is (N, 32), uint8.
    """
    pairs = zip(images, targets.tolist(), strict=True)
    return _as_rows(b"".join(digest_image(image.tobytes(), t) for image, t in pairs))


def counts_by_pixels(image: Any) -> bool:
    """Return whether an image is small enough to count by its pixels. It is not decoded for this.

    Args:
        image: An open Pillow image.
    """
    # Which 8 of 16 bits are read depends on the other images.
    return max(image.size) <= SMALL_SIDE and not is_deep(image)


def hash_file(file: Any) -> bytes:
    """Return the SHA-256 of a file.

    Args:
        file: A path, or an open file that holds its bytes in memory.
    """
    if hasattr(file, "getvalue"):
        return hashlib.sha256(file.getvalue()).digest()
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def digest_files(
    files: Callable[[int], Any], targets: np.ndarray, root: Any, paths: Sequence[str]
) -> np.ndarray:
    """Return the digests of files, computed in threads, or from the cache if none has changed.

    Args:
        files: Returns the path or open file of an image by its index.
        targets: Class index per image.
        root: Folder of the files; or `Rows` whose `files` hold the images; None if the digests
            cannot be cached.
        paths: The paths relative to `root`, or row numbers.

    Shape:
        targets is (N,). The result is (N, 32), uint8.

    Raises:
        OSError: If a file is missing or cannot be read. The attribute `filename` names it.
    """
    n = len(targets)
    kept = None if root is None else _cache_file(root, paths, targets)
    if kept is not None and (found := _read_cache(kept, n)) is not None:
        return found
    digests = np.empty((n, DIGEST_BYTES), dtype=np.uint8)

    def digest_chunk(start: int, end: int) -> None:
        for i in range(start, end):
            digests[i] = np.frombuffer(_digest_file(files(i), int(targets[i])), dtype=np.uint8)

    began = time.perf_counter()
    compute_chunks(digest_chunk, n, _CHUNK, "fingerprint of the images")
    if kept is not None and time.perf_counter() - began > _SLOW_S:
        _write_cache(kept, digests)
    return digests


def _digest_file(file: Any, target: int) -> bytes:
    try:
        check_regular(file)
    except OSError as e:
        raise OSError(e.errno or 0, e.strerror or str(e), str(file)) from None
    try:
        with open_image(file) as image:
            if counts_by_pixels(image):
                return digest_image(upright_rgb(image, file).tobytes(), target)
    except Exception:  # an image that Pillow cannot read counts by its bytes
        pass
    return digest_image(hash_file(file), target)


def _as_rows(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _cache_file(root: Any, paths: Sequence[str], targets: np.ndarray) -> Path | None:
    """Return the cache file of a set; None if a file changed just now and may change again."""
    newest, in_files = 0, isinstance(root, Path)
    base = os.path.realpath(root) if in_files else ""
    name = hashlib.sha256(os.fsencode(base) + b"\0" + np.ascontiguousarray(targets).tobytes())
    if not in_files:
        name.update(root.identity(paths.numbers))
        paths = [os.path.realpath(file) for file in root.files]
    for path in paths:
        s = os.stat(os.path.join(base, path))
        # A program can set the time of the content, but not the time of the last change.
        newest = max(newest, s.st_mtime_ns, s.st_ctime_ns)
        state = f"\0{s.st_size}\0{s.st_mtime_ns}\0{s.st_ctime_ns}\0{s.st_ino}\0"
        name.update(os.fsencode(path) + state.encode())
    if newest > time.time_ns() - _SETTLED_NS:
        return None
    return load_settings().cache_path / "fingerprints" / name.hexdigest()[:32]


def _read_cache(file: Path, n: int) -> np.ndarray | None:
    """Return the digests in a cache file; None if it is missing, damaged or of another set."""
    try:
        if file.stat().st_size != (n + 1) * DIGEST_BYTES:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    checksum, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return _as_rows(content) if hashlib.sha256(content).digest() == checksum else None


def _write_cache(file: Path, digests: np.ndarray) -> None:
    content = digests.tobytes()
    try:
        with replaced_file(file) as stream:
            stream.write(hashlib.sha256(content).digest() + content)
    except (OSError, UserError) as e:
        _log.debug("the fingerprints are not kept: %s", e)
