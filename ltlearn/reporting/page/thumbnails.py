"""Images as small JPEG or PNG in a data URL."""

import base64
import io

import numpy as np

__all__ = ["SMALL_SIDE", "thumbnail"]

_SIDE = 160  # pixels; a page shows it at half of that, for sharp screens
SMALL_SIDE = 64  # up to this side an image is stored as it is, without loss
_QUALITY = 78


def thumbnail(pixels: np.ndarray, side: int = _SIDE) -> str:
    """Return a small image as a data URL.

    Args:
        pixels: The image.
        side: The longest side in pixels, at least `SMALL_SIDE`.

    Shape:
        pixels is (H, W, 3), uint8.
    """
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
