"""The default learning rate of stage 1."""

__all__ = ["LARGEST_SCALED_BATCH", "usual_rate"]

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
    scaled = min(max(batch, 1), LARGEST_SCALED_BATCH)
    return float(f"{0.1 * scaled / 256 * (0.1 if pretrained else 1):.6g}")
