"""Base class of the heads that equal a linear layer. Torch alone."""

import torch
from torch import Tensor, nn

__all__ = ["Foldable"]


class Foldable(nn.Module):
    """Base of a head that can be folded into an `nn.Linear`.

    A subclass has `in_features`, `out_features`, `weight` and a method `effective()`, which returns
    the weight (C, D) and the bias (C,) or None of the equal linear layer.
    """

    in_features: int
    out_features: int
    weight: Tensor

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight (C, D) and the bias (C,) of the equal linear layer."""
        raise NotImplementedError

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's effective weight, (C,), float32."""
        return self.effective()[0].float().norm(dim=1)

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return the plain `nn.Linear` with the same logits and the dtype of `weight`."""
        weight, bias = self.effective()
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias is not None,
            device=weight.device,
            dtype=self.weight.dtype,
        )
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear.train(self.training)
