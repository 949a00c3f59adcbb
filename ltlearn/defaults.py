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
# Side of an image in pixels, and about how long a core of a server trains on it, in seconds:
# resnet50, and for small images resnet32_cifar.
_CORE_SECONDS = {False: (224, 0.5), True: (32, 0.01)}


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

    def training_hours(self, images: int, cores: int) -> float:
        """Return about how long stage 1 takes on a CPU, in hours.

        Args:
            images: Number of training images.
            cores: Cores of the CPU, at least 1.
        """
        side, seconds = _CORE_SECONDS[self.small]
        return images * self.epochs * seconds * (self.size / side) ** 2 / cores / 3600

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
