"""The model that leaves: a copy on the CPU in float32, with a folded head if it folds."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError
from ltlearn.exporting.source import ExportSource, Preprocessing
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.registry import as_linear_over_features

__all__ = [
    "PortableModel",
    "check_logits",
    "copy_for_export",
    "fold_if_possible",
    "portable_model",
]

_TOLERANCE = 1e-3  # relative to the largest logit; an export beyond it is refused
_SEED = 0


class PortableModel(nn.Module):
    """A model with a folded head, and with the normalisation inside if asked.

    Args:
        model: Backbone and head.
        preprocessing: The statistics of the images.
        normalize: Whether the input is pixels in [0, 1]. Else it is normalised already.

    Shape:
        Input (N, 3, H, W), float32, RGB. Output (N, C) logits, float32.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, normalize: bool):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.normalize = normalize
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch."""
        if self.normalize:
            images = (images - self.mean) / self.std
        return self.head(self.backbone(images))


def copy_for_export(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU, in float32 and evaluation mode.

    Args:
        model: The model; it is not changed.
    """
    # Copied first: `to` would move the learner's own model.
    model = copy.deepcopy(model).to("cpu", torch.float32)
    # Channels-last weights cannot be written as they are.
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def fold_if_possible(head: nn.Module) -> nn.Module:
    """Return the linear layer that equals a head, or the head itself if there is none.

    Args:
        head: The head.
    """
    try:
        # A cosine classifier has as small a graph as a layer over scaled features.
        return head if isinstance(head, CosineLinear) else as_linear_over_features(head)
    except UserError:
        return head


def portable_model(source: ExportSource, normalize: bool) -> PortableModel:
    """Return the model that leaves as one file.

    Args:
        source: The model.
        normalize: Whether it takes pixels in [0, 1] and normalises them itself.
    """
    model = copy_for_export(source.model)
    model.head = fold_if_possible(model.head)
    return PortableModel(model, source.preprocessing, normalize).eval()


@torch.no_grad()
def check_logits(
    source: ExportSource,
    classify: Callable[[Tensor], Tensor],
    normalized: bool,
    batches: Sequence[int] = (2, 1, 5),
) -> float:
    """Return the largest difference between the logits of an export and those of its source.

    Args:
        source: The model that was exported.
        classify: Runs the exported model on a batch.
        normalized: Whether it takes normalised images, not pixels in [0, 1].
        batches: Sizes of the batches to try.

    Raises:
        UserError: If the logits differ by more than rounding.
    """
    reference = copy_for_export(source.model)
    steps = source.preprocessing
    whole = PortableModel(reference, steps, normalize=True)
    generator = torch.Generator().manual_seed(_SEED)
    largest = scale = 0.0
    for n in batches:
        images = torch.rand(n, 3, *steps.size, generator=generator)
        expected = whole(images)
        if not expected.isfinite().all():
            raise UserError(
                "the model gives no finite logits, so there is nothing to export: the training "
                "diverged; train again with a lower learning rate."
            )
        if normalized:
            images = (images - whole.mean) / whole.std
        found = classify(images)
        if found.shape != expected.shape:
            raise UserError(
                f"the exported model gives logits of shape {tuple(found.shape)} for {n} images, "
                f"not {tuple(expected.shape)}; this architecture cannot be exported so."
            )
        difference = (found.double() - expected.double()).abs().max()
        # `max` of Python would drop a NaN.
        largest = float(torch.tensor([largest, difference]).max())
        scale = max(scale, float(expected.abs().max()))
    if not largest <= _TOLERANCE * max(1.0, scale):
        raise UserError(
            f"the logits of the exported model differ by {largest:.2g}, more than rounding; this "
            "architecture cannot be exported so."
        )
    return largest
