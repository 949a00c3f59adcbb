"""A head over features of one length, which gives a cosine classifier norms and a bias.

Torch alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, check_number
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.linear import in_full_precision, unit_rows, without_rounding

__all__ = ["NormalizedFeatureHead", "normalized_head_of", "over_normalized_features"]


class NormalizedFeatureHead(nn.Module):
    """Any head over features that are scaled to one length: inner(length * x / ||x||).

    A cosine classifier of scale s has the logits of a linear classifier without bias whose rows
    have length 1, over features of length s. Written so, its classes can get norms and a bias, and
    a method for linear classifiers trains it further (`inner`). The norm of a class is then the
    largest logit that its direction can give: length times the norm of its row.

    Args:
        inner: The head over the scaled features.
        length: Length of the scaled features, above 0, no unit. It is not trained.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits.

    Raises:
        UserError: If `length` is not above 0.

    Example:
        >>> head = NormalizedFeatureHead(nn.Linear(64, 10), length=25.0)
        >>> head(torch.randn(8, 64)).shape
        torch.Size([8, 10])
    """

    inner: Any  # a head has attributes that a plain module lacks
    length: Tensor

    def __init__(self, inner: nn.Module, length: float):
        super().__init__()
        check_number("length", length, 0, above=True)
        self.inner = inner
        # A buffer, so that the head can be rebuilt from its state dict alone.
        self.register_buffer("length", torch.tensor(float(length)))

    @property
    def in_features(self) -> int:
        """Return D."""
        return self.inner.in_features

    @property
    def out_features(self) -> int:
        """Return C."""
        return self.inner.out_features

    def scaled(self, x: Tensor) -> Tensor:
        """Return the features with the length that the inner head gets, in their dtype.

        Args:
            x: The features.
        """
        return (unit_rows(in_full_precision(x)) * self.length).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        return self.inner(self.scaled(x))

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class, (C,), float32: length times the norm of its row."""
        inner = self.inner
        own = inner.weight.float().norm(dim=1) if isinstance(inner, nn.Linear) else inner.norms()
        return own * self.length.float()

    @torch.no_grad()
    def keep_mean_norm(self, mean: Tensor) -> None:
        """Change the length so that the mean norm of the classes is `mean`.

        Args:
            mean: The mean norm, a scalar above 0.
        """
        self.length.mul_(mean / self.norms().mean())

    def fold(self) -> nn.Linear:
        """Raise: the normalisation of the features is not linear.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "a head over normalised features cannot be folded into an nn.Linear: it divides each "
            "feature by its length; keep the head."
        )

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        return f"length={'?' if self.length.is_meta else format(self.length.item(), 'g')}"

    def _apply(self, fn, recurse=True):
        return super()._apply(without_rounding(fn, self.length), recurse)


@torch.no_grad()
def over_normalized_features(head: CosineLinear) -> NormalizedFeatureHead:
    """Return a linear layer over features of one length, with the logits of a cosine classifier.

    Args:
        head: The cosine classifier; it is not changed.
    """
    weight = unit_rows(in_full_precision(head.weight.detach()))
    linear = nn.utils.skip_init(
        nn.Linear, head.in_features, head.out_features, bias=False, device=weight.device,
        dtype=weight.dtype,
    )  # fmt: skip
    linear.weight.copy_(weight)
    new = NormalizedFeatureHead(linear, 1.0)
    new.length = head.cosine_scale.detach().clone()
    return new.train(head.training)


def normalized_head_of(model: nn.Module) -> NormalizedFeatureHead | None:
    """Return the head over normalised features of a model; None if its head is another one.

    Args:
        model: The model.
    """
    found = [m for m in model.modules() if isinstance(m, NormalizedFeatureHead)]
    return found[-1] if found else None
