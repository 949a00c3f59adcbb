"""The nearest-class-mean classifier, as a head. Torch alone."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_whole

__all__ = ["NearestClassMean"]

_MIN_LENGTH = 1e-12  # a feature at the centre itself has no direction, and stays zeros
_FAR = 1e4  # how far beyond the farthest mean a class without images is put


class NearestClassMean(nn.Module):
    """Classifier whose logits are minus the squared distances to the mean of each class.

    z_c = -||phi(x) - m_c||^2 with phi(x) = (x - mu) / ||x - mu||, so that the largest logit is the
    nearest mean's. As logits they are good for that alone: all lie within 4 of one another, and
    their softmax is no calibrated probability (a temperature helps). A class without images is
    never nearest: its logit is finite, and lies more than 10,000 below the lowest of the others.

    It has buffers and no parameter. A new one is empty; `ltlearn.posthoc.nearest_class_mean` makes
    one of features, and the state dict of any other with the same sizes can be loaded.

    Args:
        in_features: D, features an image has, at least 1.
        num_classes: C, at least 1.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits, in float32 or float64, also
        below autocast: the distances lie close together.

    Raises:
        UserError: If a size is not a whole number of at least 1.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217; centred features of unit length are
        the default of the authors' code.
    """

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        check_whole("NearestClassMean: in_features", in_features, 1)
        check_whole("NearestClassMean: num_classes", num_classes, 1)
        self.in_features, self.out_features = int(in_features), int(num_classes)
        self.register_buffer("means", torch.zeros(self.out_features, self.in_features))
        self.register_buffer("centre", torch.zeros(self.in_features))
        self.register_buffer("has_images", torch.zeros(self.out_features, dtype=torch.bool))
        # As a buffer, so that a state dict says all. No centring is a centre of zeros.
        self.register_buffer("normalize", torch.tensor(True))

    def transform(self, x: Tensor) -> Tensor:
        """Return phi(x), (..., D), what the means are means of; float32 or float64."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x - self.centre.to(x.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=_MIN_LENGTH)
        return x / length.where(self.normalize, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        kind = x.device.type
        exact = (
            torch.autocast(kind, enabled=False)
            if torch.is_autocast_enabled(kind)
            else nullcontext()
        )
        with exact:
            phi = self.transform(x)
            means = self.means.to(phi.dtype)
            # -||phi - m||^2 = 2 phi . m - ||m||^2 - ||phi||^2: no (N, C, D) differences
            near = F.linear(phi, 2 * means, -means.square().sum(-1))
            logits = near - phi.square().sum(-1, keepdim=True)
            lowest = logits.amin(-1, keepdim=True)
            return logits.where(self.has_images, lowest - lowest.abs() - _FAR)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's mean, (C,), float32; 0 for a class without images."""
        return self.means.float().norm(dim=1)

    def fold(self) -> nn.Linear:
        """Refuse: what comes before the distances is not linear.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a NearestClassMean head cannot be folded into an nn.Linear: it divides each feature "
            "by its length; keep the head as it is, or take a linear classifier."
        )

    def extra_repr(self) -> str:
        """Say what the head is, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _apply(self, fn, recurse=True):
        # `.half()` and the like move the buffers but do not round them: the means lie close.
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        return super()._apply(move, recurse)
