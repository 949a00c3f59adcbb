"""Several heads as stacked tensors, so that one product computes the logits of all.

On a device, the step of one small head is a row of kernels, each of which takes longer to start
than to run. Stacked heads start each of them once for all heads.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.samn import EPS, MIN_RAW, SAMNLinear
from ltlearn.heads.scaled import ScaledLinear
from ltlearn.isotonic import pava

__all__ = ["Stack", "StackedHeads", "parts_of", "place_of"]

_KINDS = (nn.Linear, ScaledLinear, CosineLinear, SAMNLinear)
_VECTORS = 3
_MIN_LENGTH = 1e-12  # a row of zeros has no direction; this keeps it zeros


def place_of(head: nn.Module) -> int | None:
    """Return the place of a head's kind in a stack; None if a stack cannot hold the head.

    Args:
        head: A head over features.
    """
    if type(head) not in _KINDS:
        return None
    if not all(p.requires_grad and p.dtype is torch.float32 for p in head.parameters()):
        return None
    if type(head) is SAMNLinear and (head.project != "step" or len(head.on) < 2):
        return None
    return _KINDS.index(type(head))


def parts_of(head: nn.Module) -> list[Tensor | None]:
    """Return the tensors of a head that a stack holds: the weight, then vectors of C numbers.

    Args:
        head: A head of which `place_of` is not None.
    """
    names = {ScaledLinear: ("scales",), SAMNLinear: ("raw_norm_weight", "raw_norm_bias")}
    own = [getattr(head, name) for name in names.get(type(head), ())]
    parts = [head.weight, getattr(head, "bias", None), *own]
    return [*parts, *[None] * (1 + _VECTORS - len(parts))]


class Stack:
    """Tensors of M heads in two tensors; what a head does not have is zeros.

    Attributes: `weight` (M, C, D), `vectors` (3, M, C).

    Args:
        members: The tensors of each head, in the order of `parts_of`.
        like: The weight of a head, for the shape.
    """

    def __init__(self, members: Sequence[Sequence[Tensor | None]], like: Tensor):
        self._members = [[p if p is None else p.detach() for p in parts] for parts in members]
        weights, *vectors = zip(*self._members, strict=True)
        zeros = torch.zeros_like(like, requires_grad=False)
        self.weight = torch.stack([zeros if w is None else w for w in weights])
        rows = [zeros[:, 0] if v is None else v for row in vectors for v in row]
        self.vectors = torch.stack(rows).view(_VECTORS, len(members), -1)

    def write_back(self) -> None:
        """Copy the values into the tensors that the stack was made of."""
        pairs = [
            (part, self.weight[m] if row == 0 else self.vectors[row - 1, m])
            for m, member in enumerate(self._members)
            for row, part in enumerate(member)
            if part is not None
        ]
        # On a device, one kernel copies them all.
        parts, values = zip(*pairs, strict=True)
        torch._foreach_copy_(parts, values)


class StackedHeads(Stack):
    """M heads over features of one width: logits, gradients and projection in closed form.

    The formulas are those of the heads and of `ltlearn.heads.gradient`. No call waits for a device.

    Args:
        heads: The heads, ordered by `place_of`. Each trains all of its parameters.

    Example:
        >>> stacked = StackedHeads([nn.Linear(2, 3), nn.Linear(2, 3)])
        >>> stacked.logits(torch.randn(2, 8, 2)).shape
        torch.Size([2, 8, 3])
    """

    def __init__(self, heads: Sequence[Any]):
        super().__init__([parts_of(head) for head in heads], heads[0].weight)
        kinds = [place_of(head) for head in heads]
        ends = list(accumulate(kinds.count(kind) for kind in range(len(_KINDS))))
        of_kind = [slice(*ends_of) for ends_of in zip([0, *ends], ends, strict=False)]
        _, self._scaled, self._cosine, self._samn = of_kind
        # The kinds whose weight rows are divided by their length, and those with a factor per class
        self._of_length = slice(ends[1], None)
        self._with_factor = slice(ends[0], None)
        self._has_factor, self._has_length = ends[0] < len(heads), ends[1] < len(heads)
        self._has_scaled, self._has_cosine, self._has_samn = (
            part.stop > part.start for part in of_kind[1:]
        )
        self._factor = torch.ones_like(self.vectors[0])
        device = self.weight.device
        slowed = [getattr(head, "head_lr_factor", 1.0) for head in heads]
        self._slow = None
        if any(value != 1 for value in slowed):
            self._slow = torch.tensor(slowed, device=device).unsqueeze(1)
        if self._has_cosine:
            scales = [head.cosine_scale for head in heads[self._cosine]]
            self._cosine_scale = torch.stack(scales).unsqueeze(1)
        if self._has_samn:
            samn = heads[self._samn]
            one = torch.ones((), device=device)
            scales = [one if head.norm_scale is None else head.norm_scale for head in samn]
            self._norm_scale = torch.stack(scales).unsqueeze(1)
            both = (2, len(samn), self.weight.shape[1])
            self._by_rank = torch.stack([head.rank_to_class for head in samn]).expand(both)
            self._by_class = torch.stack([head.class_to_rank for head in samn]).expand(both)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits, (M, N, C).

        Args:
            x: The features of each head, (M, N, D).
        """
        vectors, factor = self.vectors, self._factor
        shift = vectors[0]
        if self._has_factor:
            shift = shift.clone()
        if self._has_length:
            self._length = torch.linalg.vector_norm(self.weight[self._of_length], dim=2)
            self._length.clamp_(min=_MIN_LENGTH)
        if self._has_scaled:
            factor[self._scaled] = vectors[1, self._scaled]
            shift[self._scaled].mul_(vectors[1, self._scaled])
        if self._has_cosine:
            n = self._cosine.stop - self._cosine.start
            torch.div(self._cosine_scale, self._length[:n], out=factor[self._cosine])
            lengths = torch.linalg.vector_norm(x[self._cosine], dim=2, keepdim=True)
            # As in `unit_rows`, features without a length have no logits and no gradient.
            self._per_length = lengths.reciprocal_().masked_fill_(lengths > 1 / _MIN_LENGTH, 0)
        if self._has_samn:
            n = len(self._length) - (self._samn.stop - self._samn.start)
            self._q = vectors[1:, self._samn]
            self._s = F.softplus(self._q).add_(EPS).reciprocal_()
            self._scale = self._s.exp()
            torch.div(self._scale[0], self._length[n:], out=factor[self._samn])
            factor[self._samn].mul_(self._norm_scale)
            shift[self._samn].add_(self._scale[1])
        layer = self.weight * factor.unsqueeze(2) if self._has_factor else self.weight
        logits = torch.baddbmm(shift.unsqueeze(1), x, layer.mT)
        if self._has_cosine:
            logits[self._cosine].mul_(self._per_length)
        return logits

    def gradients(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of `weight` and `vectors`.

        Args:
            x: The features of the last call of `logits`.
            grad: The gradient of the logits; it is changed.
        """
        if self._has_cosine:
            grad[self._cosine].mul_(self._per_length)
        of_weight = torch.bmm(grad.mT, x)
        of_vectors = torch.zeros_like(self.vectors)
        of_bias = torch.sum(grad, 1, out=of_vectors[0])
        if not self._has_factor:
            return of_weight, of_vectors
        first = self._with_factor.start
        along = (of_weight[first:] * self.weight[first:]).sum(2)
        if self._has_scaled:
            part, n = self._scaled, self._scaled.stop - first
            torch.addcmul(along[:n], of_bias[part], self.vectors[0, part], out=of_vectors[1, part])
            of_bias[part].mul_(self._factor[part])
        if self._has_length:
            along = along[self._of_length.start - first :].div_(self._length)
            if self._has_samn:
                # d scale / d q = -scale s^2 sigmoid(q)
                n = len(along) - self._q.shape[1]
                slope = (self._scale * self._s).mul_(self._s).mul_(self._q.sigmoid()).neg_()
                slope[0].mul_(self._norm_scale)
                torch.mul(slope[0], along[n:], out=of_vectors[1, self._samn])
                torch.mul(slope[1], of_bias[self._samn], out=of_vectors[2, self._samn])
            part = self._of_length
            along = (along / self._length).unsqueeze(2)
            of_weight[part].addcmul_(self.weight[part], along, value=-1)
        of_weight[first:].mul_(self._factor[first:].unsqueeze(2))
        if self._slow is not None:
            of_weight.mul_(self._slow.unsqueeze(2))
            of_bias.mul_(self._slow)
        return of_weight, of_vectors

    def project_(self) -> None:
        """Project the raw norms of SAMN's heads, as `SAMNLinear.project_` does on a device."""
        if self._has_samn:
            raws = self.vectors[1:, self._samn]
            fit = pava(raws.gather(2, self._by_rank), check=False).clamp_(min=MIN_RAW)
            raws.copy_(fit.gather(2, self._by_class))
