"""What the tests of several readers share."""

import io

import numpy as np
import pytest
from PIL import Image

from ltlearn.errors import UserError

__all__ = ["encoded", "epoch", "sentence"]


def encoded(seed: int, side: int = 8) -> bytes:
    """Return the PNG file of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def epoch(dl) -> list:
    """Return the batches of a pass over a loader."""
    return [tuple(t.clone() for t in batch) for batch in dl]


def sentence(make) -> str:
    """Return the message of the `UserError` that a call raises; it must be one line."""
    with pytest.raises(UserError) as e:
        make()
    assert "\n" not in str(e.value)
    return str(e.value)
