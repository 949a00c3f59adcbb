"""What heads have in common that stand for a linear layer. Torch alone."""

import torch
from torch import Tensor, nn

__all__ = ["Foldable"]


class Foldable(nn.Module):
    """A head with an effective weight and bias.

    Its class has `in_features`, `out_features`, `weight` (whose dtype the layer gets) and
    `effective()`, which returns weight (C, D) and bias (C,), or None for the bias.
    """

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's effective weight, (C,), float32."""
        return self.effective()[0].float().norm(dim=1)

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return the plain `nn.Linear` with the same logits, in the same dtype, without ltlearn."""
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
