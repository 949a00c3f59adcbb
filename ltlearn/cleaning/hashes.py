"""A perceptual hash and a thumbnail of each image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ltlearn.cleaning.images import LoadedImages
from ltlearn.errors import UserError
from ltlearn.utils.parallel import compute_chunks

__all__ = ["Hashes", "hash_images"]

SIDE = 16  # of the thumbnails, in pixels
_CHUNK = 64  # images per task


@dataclass(frozen=True)
class Hashes:
    """The hashes of N images.

    Args:
        codes: Perceptual hash of 64 bits.
        thumbnails: Grey values of the image at 16 x 16 pixels.
        small: Whether the image is smaller than its thumbnail.
        unreadable: Number of an image to the reason why it cannot be read.

    Shape:
        codes is (N,), uint64; thumbnails is (N, 256), uint8; small is (N,), bool.
    """

    codes: np.ndarray
    thumbnails: np.ndarray
    small: np.ndarray
    unreadable: dict[int, str]


def hash_images(images: LoadedImages) -> Hashes:
    """Read every image once, in threads, and hash it.

    Args:
        images: The images.
    """
    import imagehash

    n = len(images)
    codes, small = np.zeros(n, np.uint64), np.zeros(n, bool)
    thumbnails, unreadable = np.zeros((n, SIDE * SIDE), np.uint8), {}

    def hash_chunk(start: int, end: int) -> None:
        for i in range(start, end):
            try:
                image = Image.fromarray(images.pixels(i)).convert("L")
            except UserError as e:
                unreadable[i] = str(e)
                continue
            bits = imagehash.phash(image).hash
            codes[i] = np.packbits(bits).view(np.uint64)[0]
            small[i] = min(image.size) < SIDE
            thumbnail = image.resize((SIDE, SIDE), Image.Resampling.BOX)
            thumbnails[i] = np.asarray(thumbnail).ravel()

    compute_chunks(hash_chunk, n, _CHUNK, "reading images")
    return Hashes(codes, thumbnails, small, unreadable)
