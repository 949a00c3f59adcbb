"""Images as small JPEG or PNG in a data URL."""

import base64
import io

import numpy as np

__all__ = ["SMALL_SIDE", "thumbnail"]

_SIDE = 160  # of a thumbnail in pixels; it is shown at half of that, for sharp screens
SMALL_SIDE = 64  # up to this side an image is stored as it is, without loss
_QUALITY = 78


def thumbnail(pixels: np.ndarray) -> str:
    """Return an image as a data URL, with its longer side at most 160 pixels.

    Args:
        pixels: The image.

    Shape:
        pixels is (H, W, 3), uint8.
    """
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
