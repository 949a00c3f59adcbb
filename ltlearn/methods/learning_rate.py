"""The default learning rate of stage 1."""

from ltlearn.defaults import BATCH_SIZE

__all__ = ["LARGEST_SCALED_BATCH", "head_rate", "usual_rate"]

# The learning rate grows up to this batch size. If it grew further, training would diverge.
LARGEST_SCALED_BATCH = 1024


def usual_rate(batch: int, pretrained: bool) -> float:
    """Return the default learning rate of stage 1: 0.1 per 256 images in a batch.

    Pre-trained weights take a tenth of it. Batches above 1024 images count as 1024.

    Args:
        batch: Batch size.
        pretrained: Whether the weights are pre-trained.

    Example:
        >>> usual_rate(128, pretrained=False)
        0.05
    """
    return _scaled(0.1 / 256 * (0.1 if pretrained else 1), batch)


def head_rate(rate: float, batch: int) -> float:
    """Return the learning rate of a stage 1 that trains the head alone.

    Args:
        rate: Learning rate of the method, for batches of 64.
        batch: Batch size.

    Example:
        >>> head_rate(4.0, 128)
        8.0
    """
    return _scaled(rate / BATCH_SIZE, batch)


def _scaled(rate: float, batch: int) -> float:
    return float(f"{rate * min(max(batch, 1), LARGEST_SCALED_BATCH):.6g}")
