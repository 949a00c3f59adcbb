"""Defaults for images that no recipe describes: size, architecture, epochs. Imports nothing."""

from dataclasses import dataclass

__all__ = [
    "BATCH_SIZE",
    "IMAGENET_STATS",
    "MAX_SIDE",
    "SMALL_SIDE",
    "Defaults",
    "choose_defaults",
]

SMALL_SIDE = 96  # pixels; the loaders hold images in memory up to this side
# Far above any use: a larger side is a slip, or was written to take all memory.
MAX_SIDE = 4096  # of an image, in pixels
BATCH_SIZE = 64
# Mean and standard deviation per channel for pixels in [0, 1].
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LARGE_SIZE = 224
_PRETRAINED_EPOCHS = 30
_SCRATCH_EPOCHS = 90


@dataclass(frozen=True)
class Defaults:
    """How a dataset is trained where its user leaves the choice open.

    Args:
        size: Side of the training images, in pixels.
        arch: Architecture, a name that timm knows.
        pretrained: Whether training starts from pre-trained weights.
        epochs: Epochs of stage 1.
    """

    size: int
    arch: str
    pretrained: bool
    epochs: int

    @property
    def small(self) -> bool:
        """Return whether the images are small enough for a CIFAR network."""
        return self.size <= SMALL_SIDE


def choose_defaults(
    side: int | None, *, size: int | None = None, pretrained: bool | None = None
) -> Defaults:
    """Choose image size, architecture and epochs for a dataset.

    Args:
        side: Side in pixels that all images share; None if they differ, or are large.
        size: Training size that the user has chosen; None derives it from the images.
        pretrained: Whether pre-trained weights are used; None uses them with resnet50 only,
            because resnet32_cifar has none.

    Example:
        >>> choose_defaults(32)
        Defaults(size=32, arch='resnet32_cifar', pretrained=False, epochs=90)
    """
    size = (side or _LARGE_SIZE) if size is None else size
    small = size <= SMALL_SIDE
    pretrained = not small if pretrained is None else pretrained
    epochs = _PRETRAINED_EPOCHS if pretrained else _SCRATCH_EPOCHS
    return Defaults(size, "resnet32_cifar" if small else "resnet50", pretrained, epochs)
