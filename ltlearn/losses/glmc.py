"""The computations of GLMC: its two mixes, its class weights and the terms of its loss."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "cut_box", "glmc_terms", "inside_box", "inverse_power", "mix_globally", "mix_locally",
]  # fmt: skip


def inverse_power(class_counts: Tensor, power: float) -> Tensor:
    """Return n_c ** -power as shares with sum 1; classes without images have 0.

    Args:
        class_counts: Images per class, at least 0, not all 0.
        power: The exponent, at least 0, no unit.

    Shape:
        class_counts is (C,). The result is (C,), float64, on the CPU.
    """
    # As a softmax, so that no power overflows. A class without images needs the exponent -inf.
    log_counts = class_counts.detach().cpu().double().log()
    return (-power * log_counts).masked_fill(log_counts == -math.inf, -math.inf).softmax(0)


def cut_box(height: int, width: int, share: float, centre: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the box that the local mix takes from the other image.

    Args:
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        share: Share of the image outside the box, in [0, 1].
        centre: Row and column of the centre of the box.
    """
    sides = []
    for size, middle in zip((height, width), centre, strict=True):
        half = math.ceil(size * math.sqrt(1 - share)) // 2
        sides.append(slice(max(middle - half, 0), min(middle + half, size)))
    return sides[0], sides[1]


def inside_box(box: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are inside a box, without a wait for the device of the box.

    Args:
        box: First row, end row, first column, end column, in pixels.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.

    Shape:
        box is (4,), integer. The result is (height, width), boolean.
    """
    rows = torch.arange(height, device=box.device)[:, None]
    columns = torch.arange(width, device=box.device)
    return (rows >= box[0]) & (rows < box[1]) & (columns >= box[2]) & (columns < box[3])


def mix_globally(x: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """Return share * x + (1 - share) * other (MixUp).

    Args:
        x: Images.
        other: The images to mix in.
        share: Share of x, in [0, 1].
    """
    return torch.lerp(other, x, share)


def mix_locally(x: Tensor, other: Tensor, box: tuple[slice, slice]) -> Tensor:
    """Copy a box of the other images into x, in place (CutMix).

    Args:
        x: Images, (..., H, W); they are changed.
        other: The images to mix in.
        box: Rows and columns of the box.
    """
    inside = (..., *box)
    x[inside] = other[inside]
    return x


def glmc_terms(
    balanced: Tensor,
    rebalanced: Tensor,
    projected: Tensor,
    predicted: Tensor,
    first: Tensor,
    other: Tensor,
    share: float | Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms of GLMC's loss: balanced, re-balanced, consistency.

    Args:
        balanced: Logits of the balanced head: N rows of the global mixes, then N rows of the local
            mixes, as in the next three arguments.
        rebalanced: Logits of the re-balanced head.
        projected: Outputs of the projection.
        predicted: Outputs of the predictor, which reads the projection.
        first: Class indices of the first batch.
        other: Class indices of the second batch, which is mixed in.
        share: Share of the first batch in the mix, in [0, 1].
        weights: Weight of each class in the re-balanced term.

    Shape:
        Logits are (2N, C), projected and predicted (2N, P), class indices (N,), weights (C,). Half
        precision is computed in float32. Each term is a scalar: a sum over the two mixes of means
        over N.

    Source:
        Du et al., CVPR 2023, arXiv:2305.08661; the local target keeps the drawn share, also where
        the border clips the box, as in the authors' code.
    """
    targets = torch.stack([first, other], 1).repeat(2, 1)
    l_bal = _mixed_cross_entropy(balanced.float(), targets, share)
    l_reb = _mixed_cross_entropy(rebalanced.float(), targets, share, weights)
    # Each mix predicts the projection of the other mix, which gets no gradient.
    projection = projected.detach().float().roll(len(first), 0)
    l_con = -2 * F.cosine_similarity(predicted.float(), projection).mean()
    return l_bal, l_reb, l_con


def _mixed_cross_entropy(
    logits: Tensor, targets: Tensor, share: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    log_probs = logits.log_softmax(1).gather(1, targets)
    if weights is not None:
        # Not divided by the weights of the batch, so a mix of rare classes has a larger loss.
        log_probs = log_probs * weights[targets]
    return -2 * torch.lerp(log_probs[:, 1], log_probs[:, 0], share).mean()
