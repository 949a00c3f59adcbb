"""The nearest-class-mean classifier, as a head. Torch alone."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_whole
from ltlearn.heads.linear import unit_rows

__all__ = ["NearestClassMean"]

_FAR = 1e4  # the margin between the lowest logit and the logit of a class without images


class NearestClassMean(nn.Module):
    """Classifier whose logits are minus the squared distances to the mean of each class.

    z_c = -||phi(x) - m_c||^2 with phi(x) = (x - mu) / ||x - mu||, so the nearest mean has the
    largest logit. The logits differ by at most 4, and their softmax is not calibrated (a
    temperature helps). A class without images is never predicted: its logit is finite and more
    than 10,000 below all others.

    The head has buffers and no parameters. A new head is empty: fill it by
    `ltlearn.posthoc.nearest_class_mean`, or load the state dict of a head with the same sizes.

    Args:
        in_features: D, features per image, at least 1.
        num_classes: C, at least 1.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits, float32 or float64, also inside
        autocast, because the distances differ by little.

    Raises:
        UserError: If a size is not a whole number of at least 1.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217; centred features of unit length are
        the default of the authors' code.

    Example:
        >>> head = NearestClassMean(in_features=64, num_classes=10)
        >>> head(torch.randn(8, 64)).shape
        torch.Size([8, 10])
    """

    means: Tensor
    centre: Tensor
    has_images: Tensor
    normalize: Tensor

    def __init__(self, in_features: int, num_classes: int):
        super().__init__()
        check_whole("NearestClassMean: in_features", in_features, 1)
        check_whole("NearestClassMean: num_classes", num_classes, 1)
        self.in_features, self.out_features = int(in_features), int(num_classes)
        self.register_buffer("means", torch.zeros(self.out_features, self.in_features))
        self.register_buffer("centre", torch.zeros(self.in_features))
        self.register_buffer("has_images", torch.zeros(self.out_features, dtype=torch.bool))
        # A buffer, so that the state dict is complete. Without centring, the centre is zeros.
        self.register_buffer("normalize", torch.tensor(True))

    def transform(self, x: Tensor) -> Tensor:
        """Return phi(x), the centred and normalised features, (..., D), float32 or float64."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x - self.centre.to(x.dtype)
        return torch.where(self.normalize, unit_rows(x), x)

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
            # -||phi - m||^2 = 2 phi . m - ||m||^2 - ||phi||^2 avoids an (N, C, D) tensor.
            near = F.linear(phi, 2 * means, -means.square().sum(-1))
            logits = near - phi.square().sum(-1, keepdim=True)
            lowest = logits.amin(-1, keepdim=True)
            return logits.where(self.has_images, lowest - lowest.abs() - _FAR)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's mean, (C,), float32; 0 for a class without images."""
        return self.means.float().norm(dim=1)

    def fold(self) -> nn.Linear:
        """Raise: the normalisation of the features is not linear.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a NearestClassMean head cannot be folded into an nn.Linear: it divides each feature "
            "by its length; keep the head, or use a linear classifier."
        )

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _apply(self, fn, recurse=True):
        # `.half()` and similar calls must not round the buffers: the distances differ by little.
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        return super()._apply(move, recurse)
