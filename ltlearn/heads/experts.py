"""A classifier of several experts, each a cosine classifier on features of its own. Torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.heads.linear import in_full_precision, logits_dtype, unit_rows, without_rounding

__all__ = ["ExpertHead"]


class ExpertHead(nn.Module):
    """Classifier whose logits are the weighted mean of several cosine classifiers, the experts.

    Each expert has D / E of the features, one expert after the other. The logits of expert
    e are z_ec = scale * cos(w_ec, x_e). The weights of the mean are equal at first.

    With `separate`, the head returns the logits of each expert in training mode, (..., E, C), for a
    loss that trains each expert. In evaluation mode it always returns their mean.

    Args:
        in_features: D, features of all experts together; a multiple of `experts`.
        out_features: C, classes.
        experts: E, at least 1.
        scale: The factor on the cosines, > 0, no unit. It is not trained.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits, in [-scale, scale].

    Raises:
        UserError: If `scale` is not above 0, or the features cannot be divided among the experts.

    Source:
        Wang et al., ICLR 2021, arXiv:2010.01809 (RIDE), as SADE and BalPoE use it.

    Example:
        >>> head = ExpertHead(in_features=3 * 64, out_features=10)
        >>> head.expert_logits(torch.randn(8, 192)).shape
        torch.Size([8, 3, 10])
    """

    cosine_scale: Tensor
    expert_weights: Tensor

    def __init__(self, in_features: int, out_features: int, experts: int = 3, scale: float = 30.0):
        super().__init__()
        check_whole("experts", experts, 1)
        check_number("scale", scale, 0, above=True)
        if in_features % experts:
            raise UserError(
                f"{in_features} features cannot be divided among experts={experts}; give a divisor."
            )
        self.in_features, self.out_features, self.experts = in_features, out_features, experts
        weight = torch.empty(experts, out_features, in_features // experts)
        for own in weight:
            nn.init.xavier_normal_(own)
        self.weight = nn.Parameter(weight)
        # Buffers, so that the head can be rebuilt from its state dict alone.
        self.register_buffer("cosine_scale", torch.tensor(float(scale)))
        self.register_buffer("expert_weights", torch.full((experts,), 1 / experts))
        # It belongs to a training and not to the weights, so the state dict does not hold it.
        self.separate = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (..., C), or (..., E, C) with `separate` in training mode."""
        logits = self.expert_logits(x)
        if self.separate and self.training:
            return logits
        # The mean of rounded logits is rounded only once more.
        return (in_full_precision(logits) * self.expert_weights[:, None]).sum(-2).to(logits.dtype)

    def expert_logits(self, x: Tensor) -> Tensor:
        """Return the logits of each expert.

        Args:
            x: The features.

        Shape:
            x is (..., D); the result is (..., E, C).
        """
        dtype = logits_dtype(x)
        features = unit_rows(in_full_precision(x).unflatten(-1, (self.experts, -1))).to(dtype)
        # Scale the C weight rows of each expert rather than its N x C logits.
        weight = (unit_rows(in_full_precision(self.weight)) * self.cosine_scale).to(dtype)
        pairs = zip(features.unbind(-2), weight.unbind(0), strict=True)
        return torch.stack([F.linear(own, rows) for own, rows in pairs], -2)

    @torch.no_grad()
    def set_weights(self, weights: Tensor | list[float] | None = None) -> None:
        """Set the weights of the experts in the mean; they are divided by their sum.

        Args:
            weights: E numbers, at least 0, not all 0; None weights all experts alike.

        Raises:
            UserError: If the weights are not such a vector.
        """
        values = torch.ones(self.experts) if weights is None else torch.as_tensor(weights)
        values = values.detach().double().cpu()
        is_good = values.shape == (self.experts,) and bool(
            (values.isfinite() & (values >= 0)).all()
        )
        if not is_good or not values.any():
            raise UserError(
                f"weights must be {self.experts} numbers of at least 0, not all 0, got {weights!r}."
            )
        self.expert_weights.copy_(values / values.sum())

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the norm of each class's effective weight, (C,), float32: always the scale."""
        return self.cosine_scale.float().expand(self.out_features).clone()

    def fold(self) -> nn.Linear:
        """Raise: a linear layer cannot compute cosines.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "an ExpertHead cannot be folded into an nn.Linear: it divides the features of each "
            "expert by their length; keep the head, or retrain a linear classifier "
            "(crt, balanced_softmax) on the features of all experts."
        )

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        scale = "?" if self.cosine_scale.is_meta else f"{self.cosine_scale.item():g}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"experts={self.experts}, scale={scale}"
        )

    def _apply(self, fn, recurse=True):
        return super()._apply(without_rounding(fn, self.cosine_scale, self.expert_weights), recurse)
