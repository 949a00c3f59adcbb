"""Classifier heads. Torch alone (and `pava`), so that they serve in any PyTorch loop."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError
from ltlearn.isotonic import pava

__all__ = ["SAMNLinear"]

# exp(1 / softplus(q)) overflows float32 for q < -4.5. Raw norms are held above the value that gives
# a norm of exp(10) = 22,026: finite in float16 too, and thousands of times the largest norm seen in
# training (4.23).
_MAX_LOG_NORM = 10.0
_EPS = 2e-6  # the authors' code adds 1e-6 to the softplus and again to the denominator
_MIN_RAW = math.log(math.expm1(1 / _MAX_LOG_NORM - _EPS))


class SAMNLinear(nn.Module):
    """Linear classifier whose weight norms and bias shifts are monotone from head to tail.

    Logit of class c: z_c = exp(s_c) * (W_c / ||W_c||) . x + b_c + exp(s'_c), with s = 1 /
    softplus(q) and q the projection of a free vector onto the vectors that do not decrease with
    class frequency. The tail therefore always has the largest norm. Use `from_linear`, and call
    `project_()` after each optimiser step.

    Args:
        in_features: D, features a picture has.
        class_counts: Training images per class; any scale, larger means nearer to the head.
        order: What the norms are ordered by. "frequency" takes `class_counts`; a vector of C
            numbers takes their place, both for the order and for the starting norms ("stage1_norm"
            needs a trained
            classifier: see `from_linear`).
        on: Which parts are rescaled, any of "weight" and "bias". The other part is a plain linear
            layer's.
        project: "step" keeps the raw vectors themselves monotone: `project_()` projects them after
            each optimiser step. "forward" leaves them free and projects, differentiably, in each
            forward pass, as the authors' code does; `project_()` then only keeps them from
            overflowing.
        bias: Whether there is a free bias. A bias rescaled with `on` needs one.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits.

    Raises:
        UserError: If a count is negative or not finite, a vector has the wrong length, or an option
            is unknown.

    Source:
        Zhang, Li, Zhu, "SAMN", CVPR 2026, arXiv:2606.02526, as the authors' code computes it.
        Departures: raw norms are kept from overflowing; `project="step"` (the authors project in
            the forward pass).
    """

    def __init__(
        self,
        in_features: int,
        class_counts: Tensor | Sequence[float],
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
        bias: bool = True,
    ):
        super().__init__()
        if project not in ("step", "forward"):
            raise UserError(f"SAMNLinear: project must be 'step' or 'forward', got {project!r}.")
        self.on = tuple(p for p in ("weight", "bias") if p in on)
        if isinstance(on, str) or not self.on or set(on) - {"weight", "bias"}:
            raise UserError(f"SAMNLinear: on must hold 'weight', 'bias' or both, got {on!r}.")
        counts = _vector(class_counts, "class_counts")
        if isinstance(order, str):
            if order != "frequency":
                raise UserError(
                    f"SAMNLinear: order must be 'frequency' or a vector of {len(counts)} numbers "
                    f"('stage1_norm' only in from_linear), got {order!r}."
                )
            key = counts
        else:
            key = _vector(order, "order")
            if len(key) != len(counts):
                raise UserError(
                    f"SAMNLinear: order has {len(key)} numbers for {len(counts)} classes."
                )
        self.in_features, self.out_features = in_features, len(counts)
        self._project_known: bool | None = None
        self.weight = nn.Parameter(torch.empty(self.out_features, in_features))
        nn.init.normal_(self.weight, std=0.02)
        has_bias = bias or "bias" in self.on
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if has_bias else None
        # Rarest first; ties keep the order of the classes.
        perm = torch.argsort(key, stable=True)
        span = key.max() - key.min()
        raw = ((key - key.min()) / span if span > 0 else torch.zeros_like(key)) + 1e-6
        for part in ("weight", "bias"):
            start = nn.Parameter(raw.float().clone()) if part in self.on else None
            self.register_parameter(f"raw_norm_{part}", start)
        # Buffers, so that a state dict says all that is needed to build the head again.
        self.register_buffer("project_in_forward", torch.tensor(project == "forward"))
        # As integers where they are, so that `.half()` and `.bfloat16()` leave them exact.
        whole = bool((counts == counts.round()).all()) and counts.max() < 2**53
        self.register_buffer("class_counts", counts.long() if whole else counts.float())
        self.register_buffer("rank_to_class", perm)
        self.register_buffer("class_to_rank", torch.argsort(perm))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        class_counts: Tensor | Sequence[float],
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
    ) -> "SAMNLinear":
        """Build the head from a trained linear classifier, keeping its directions and its bias.

        Args:
            linear: The classifier. Only the norms of its rows are replaced; it is left as it is.
            class_counts: Training images per class, C of them.
            order: "frequency", "stage1_norm" (the norms of `linear`, a larger one counting as
                nearer to the head), or a vector of C numbers.
            on: Parts to rescale, any of "weight" and "bias".
            project: "step" or "forward".

        Raises:
            UserError: If the lengths differ, an option is unknown, or a row of `linear` is zero or
                not finite.
        """
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"SAMNLinear.from_linear needs an nn.Linear, got {type(linear).__name__}."
            )
        counts = _vector(class_counts, "class_counts")
        if len(counts) != linear.out_features:
            raise UserError(
                f"SAMNLinear: {len(counts)} class counts for a classifier of "
                f"{linear.out_features} classes."
            )
        weight = linear.weight.detach()
        norms = weight.float().norm(dim=1)
        bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"SAMNLinear: the weights of class {', '.join(map(str, bad[:5]))}"
                f"{' ...' if len(bad) > 5 else ''} are all zero or not finite, so they have no "
                "direction; train the classifier first."
            )
        if isinstance(order, str) and order == "stage1_norm":
            order = norms
        head = cls(linear.in_features, counts, order, on, project, bias=linear.bias is not None)
        head = head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        with torch.no_grad():
            head.weight.copy_(weight)
            if linear.bias is not None:
                head.bias.copy_(linear.bias)
        return head.train(linear.training)

    @property
    def project(self) -> str:
        """Return where the raw norms are projected, "step" or "forward"."""
        return "forward" if self._forward_mode() else "step"

    def _forward_mode(self) -> bool:
        # Read once: on a device each look at the buffer would wait for it.
        if self._project_known is None:
            self._project_known = bool(self.project_in_forward)
        return self._project_known

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._project_known = None

    def _monotone(self, raw: Tensor) -> Tensor:
        """Project a raw vector, in class order, onto the monotone ones."""
        ranked = raw[self.rank_to_class]
        try:
            fit = pava(ranked)
        except ValueError as e:
            raise UserError(
                "SAMNLinear: the raw norms are not finite any more, so training has diverged; "
                "lower the learning rate."
            ) from e
        if fit.requires_grad:
            # Classes that are equal without having been pooled, such as those of one count at the
            # start, each keep a gradient of their own, or they would never part.
            run = F.pad(fit.detach().diff() != 0, (1, 0)).cumsum(0)
            moved = torch.zeros_like(fit).index_add_(0, run, (fit != ranked).to(fit.dtype))
            fit = torch.where(moved[run] == 0, ranked, fit)
        return fit[self.class_to_rank]

    def _log_scale(self, raw: Tensor) -> Tensor:
        """Turn a raw vector, in class order, into s = 1 / softplus(q)."""
        if self._forward_mode():
            raw = self._monotone(raw)
        # The gradient passes the clamp as if it were not there, so that a norm can leave the limit.
        raw = raw.detach().clamp(min=_MIN_RAW) + (raw - raw.detach())
        return 1 / (F.softplus(raw) + _EPS)

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (C, D) and bias (C,) of the linear layer that this head stands for."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, bias = self.weight, self.bias
            if self.raw_norm_weight is not None:
                scale = self._log_scale(_full(self.raw_norm_weight)).exp()
                weight = F.normalize(_full(weight), dim=1) * scale[:, None]
            if self.raw_norm_bias is not None:
                bias = _full(bias) + self._log_scale(_full(self.raw_norm_bias)).exp()
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        weight, bias = self.effective()
        if not torch.is_autocast_enabled(x.device.type):
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def project_(self) -> "SAMNLinear":
        """Project the raw norms, in place, onto the monotone vectors.

        With `project="forward"` it only keeps them from overflowing.

        Raises:
            UserError: If a raw norm is not finite.
        """
        for raw in (self.raw_norm_weight, self.raw_norm_bias):
            if raw is None:
                continue
            if not self._forward_mode():
                raw.copy_(self._monotone(raw))
            raw.clamp_(min=_MIN_RAW)
        return self

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

    def extra_repr(self) -> str:
        """Say what the head is, for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"on={self.on}, project={self.project!r}"
        )


def _full(values: Tensor) -> Tensor:
    """Return float64 as it is and any other dtype as float32: exp and norms need the digits."""
    return values if values.dtype == torch.float64 else values.float()


def _vector(values: Tensor | Sequence[float], name: str) -> Tensor:
    """Check a vector of finite, non-negative numbers and return it in float64 on the CPU."""
    try:
        vector = torch.as_tensor(values).detach().cpu().double()
    except (ValueError, TypeError, RuntimeError):
        raise UserError(
            f"SAMNLinear: {name} must be a vector with a number per class, got {values!r}."
        ) from None
    if vector.ndim != 1 or not len(vector):
        raise UserError(
            f"SAMNLinear: {name} must be a vector with a number per class, got shape "
            f"{tuple(vector.shape)}."
        )
    bad = (~torch.isfinite(vector) | (vector < 0)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"SAMNLinear: {name}[{bad[0]}] is {vector[bad[0]].item()}; it must be finite and not "
            "negative."
        )
    return vector
