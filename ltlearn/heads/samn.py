"""The SAMN head. It needs torch alone (and `pava`), so it works in any PyTorch loop."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_choice
from ltlearn.heads.foldable import Foldable
from ltlearn.heads.linear import check_directions, check_linear, logits_dtype, without_rounding
from ltlearn.isotonic import pava
from ltlearn.isotonic.scipy_engine import project_
from ltlearn.isotonic.traced import is_transformed
from ltlearn.names import SAMN_STARTS
from ltlearn.utils.vectors import check_vector, exact_counts

__all__ = ["SAMNLinear"]

# exp(1 / softplus(q)) overflows float32 for q < -4.5. Raw norms are kept above the value that gives
# a norm of exp(10) = 22,026, which is finite in float16 too and thousands of times the largest norm
# at the start of training (4.23).
_MAX_LOG_NORM = 10.0
EPS = 2e-6  # the authors' code adds 1e-6 to the softplus and again to the denominator
MIN_RAW = math.log(math.expm1(1 / _MAX_LOG_NORM - EPS))
_FULL = (torch.float32, torch.float64)
DIVERGED = (
    "SAMNLinear: the raw norms are no longer finite, so training has diverged; lower the "
    "learning rate."
)
_MIN_LENGTH = 1e-12  # a row of zeros has no direction; this keeps it zeros
_PARTS = ("weight", "bias")
_LEAST_RATIO = 1.01  # exp(s) is above 1
_EQUAL = 1e-5  # a smaller relative difference of norms is rounding


class SAMNLinear(Foldable):
    """Linear classifier whose weight norms and bias shifts are monotone from head to tail.

    Logit of class c: z_c = exp(s_c) * (W_c / ||W_c||) . x + b_c + exp(s'_c), with s = 1 /
    softplus(q), where q is the projection of a free vector onto the vectors that do not decrease
    with class frequency. So the rarest class always has the largest norm. Build the head by
    `from_linear`, and call `project_()` after each optimiser step.

    After a cosine classifier of scale s, the head is the inner head of a `NormalizedFeatureHead`.
    The direction of a class is then its cosine row. The published norms are meant for features of
    free length and would give logits of at most 4 on features of length 1, so the features get
    the length s / mean(exp(s_c)) of the start: the norm of a class is s exp(s_c) / mean(exp(s_c)),
    and the mean norm stays as in the cosine classifier. The bias is added as published.

    Args:
        in_features: D, features per image.
        class_counts: Training images per class, in any unit.
        order: The order of the norms. "frequency" uses `class_counts`. A vector of C numbers
            replaces them, both for the order and for the starting norms. ("stage1_norm" needs a
            trained classifier: see `from_linear`.)
        on: The rescaled parts, any of "weight" and "bias". The other part works as in a plain
            linear layer.
        project: "step" keeps the raw vectors monotone: `project_()` projects them after each
            optimiser step. "forward" leaves them free and projects them, differentiably, in each
            forward pass, as the authors' code does; `project_()` then only prevents overflow.
        bias: Whether there is a free bias. A bias rescaled with `on` needs one.

    Shape:
        Input (..., D), any floating dtype. Output (..., C) logits.

    Raises:
        UserError: If a count is negative or not finite, a vector has the wrong length, or an option
            is unknown.

    Source:
        Zhang, Li, Zhu, "SAMN", CVPR 2026, arXiv:2606.02526, as the authors' code computes it.
        Departures: raw norms cannot overflow; `project="step"` (the authors project in the forward
        pass).

    Example:
        >>> head = SAMNLinear.from_linear(nn.Linear(64, 3), class_counts=[500, 50, 5])
        >>> logits = head(torch.randn(8, 64))
        >>> head.norms()
        tensor([2.1414, 3.8652, 4.2321])
    """

    raw_norm_weight: nn.Parameter | None
    raw_norm_bias: nn.Parameter | None
    project_in_forward: Tensor
    norm_scale: Tensor | None
    class_counts: Tensor
    rank_to_class: Tensor
    class_to_rank: Tensor

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
        check_choice("SAMNLinear: project", project, ("step", "forward"))
        self.on = tuple(part for part in _PARTS if part in on)
        if isinstance(on, str) or not self.on or set(on) - set(_PARTS):
            raise UserError(f"SAMNLinear: on must hold 'weight', 'bias' or both, got {on!r}.")
        counts = _read_vector("class_counts", class_counts)
        key = _read_order(order, counts)
        self.in_features, self.out_features = in_features, len(counts)
        self._project_known: bool | None = project == "forward"
        self.weight = nn.Parameter(torch.empty(self.out_features, in_features))
        nn.init.normal_(self.weight, std=0.02)
        has_bias = bias or "bias" in self.on
        self.bias = nn.Parameter(torch.zeros(self.out_features)) if has_bias else None
        # Rarest class first; ties keep the label order.
        rank_to_class = torch.argsort(key, stable=True)
        span = key.max() - key.min()
        raw = ((key - key.min()) / span if span > 0 else torch.zeros_like(key)) + 1e-6
        for part in _PARTS:
            start = nn.Parameter(raw.float().clone()) if part in self.on else None
            self.register_parameter(f"raw_norm_{part}", start)
        # Buffers, so that the head can be rebuilt from its state dict alone.
        self.register_buffer("project_in_forward", torch.tensor(project == "forward"))
        self.register_buffer("norm_scale", None)  # None is 1; see `start` of `from_linear`
        self.register_buffer("class_counts", exact_counts(counts))
        self.register_buffer("rank_to_class", rank_to_class)
        self.register_buffer("class_to_rank", torch.argsort(rank_to_class))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        class_counts: Tensor | Sequence[float],
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
        start: str = "published",
    ) -> "SAMNLinear":
        """Build the head from a trained linear classifier; keep its directions and its bias.

        Args:
            linear: The classifier; it is not changed. The head replaces the norms of its rows.
            class_counts: Training images per class, C numbers.
            order: "frequency", "stage1_norm" (the norms of `linear`; a larger norm ranks as more
                frequent), or a vector of C numbers.
            on: The rescaled parts, any of "weight" and "bias".
            project: "step" or "forward".
            start: The norms and shifts at the start. "published": fixed values between 2.14 and
                4.23 by the frequency, whatever the data set. "stage1": the monotone norms that are
                closest to the norms of `linear` (usually all equal to their mean), and equal
                shifts. These norms can be of any size: `norm_scale` times exp(s_c). As exp(s_c) is
                above 1, none begins below 1.01 * `norm_scale`, between .24 and .48 of their mean.

        Raises:
            UserError: If the lengths differ, an option is unknown, or a row of `linear` is zero or
                not finite.
        """
        check_linear(linear, cls.__name__)
        check_choice("SAMNLinear: start", start, SAMN_STARTS)
        counts = _read_vector("class_counts", class_counts)
        if len(counts) != linear.out_features:
            raise UserError(
                f"SAMNLinear: {len(counts)} class counts for a classifier of "
                f"{linear.out_features} classes."
            )
        weight = linear.weight.detach()
        norms = check_directions(linear, cls.__name__)
        if isinstance(order, str) and order == "stage1_norm":
            if len(norms) > 1 and norms.max() - norms.min() <= _EQUAL * norms.max():
                raise UserError(
                    "SAMNLinear: order='stage1_norm' needs a classifier whose norms differ, but "
                    "all are equal, as after a cosine classifier; take order='frequency'."
                )
            order = norms
        head = cls(linear.in_features, counts, order, on, project, bias=linear.bias is not None)
        head = head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        with torch.no_grad():
            head.weight.copy_(weight)
            if linear.bias is not None:
                head.bias.copy_(linear.bias)
            if start == "stage1":
                head._start_from(norms)
        return head.train(linear.training)

    def _start_from(self, norms: Tensor) -> None:
        """Set the monotone norms that are closest to the given ones, and equal shifts."""
        if self.raw_norm_weight is not None:
            # Rarest first, and the largest norm for the rarest.
            closest = pava(norms.double()[self.rank_to_class], increasing=False)
            closest = closest[self.class_to_rank]
            # exp(s) has the mean of the published start, where the raw norms move well.
            scale = closest.mean() / _scale(self.raw_norm_weight).mean()
            s = (closest / scale).clamp(min=_LEAST_RATIO).log()
            self.norm_scale = scale.to(self.weight)
            self.raw_norm_weight.copy_((1 / s - EPS).expm1().log())
        if self.raw_norm_bias is not None:
            self.raw_norm_bias.fill_(1.0)  # the published start of the most frequent class

    @property
    def project(self) -> str:
        """Return when the raw norms are projected, "step" or "forward"."""
        return "forward" if self._forward_mode() else "step"

    def _apply(self, fn, recurse=True):
        exact = self.norm_scale
        return super()._apply(fn if exact is None else without_rounding(fn, exact), recurse)

    def _forward_mode(self) -> bool:
        # Read the buffer once: each read waits for the device.
        if self._project_known is None:
            self._project_known = bool(self.project_in_forward)
        return self._project_known

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._project_known = None
        if not self.project_in_forward.is_meta:
            self._forward_mode()  # read now: `torch.compile` and `torch.export` cannot

    def _fit(self, ranked: Tensor) -> Tensor:
        """Fit rows of raw norms, ordered from the rarest to the most frequent class."""
        try:
            return pava(ranked)
        except ValueError as e:
            raise UserError(DIVERGED) from e

    def _monotone(self, raw: Tensor) -> Tensor:
        """Project a raw vector, in class order, onto the monotone vectors."""
        ranked = raw[self.rank_to_class]
        fit = self._fit(ranked)
        if fit.requires_grad:
            # Classes can be equal without being pooled, such as classes with equal counts at the
            # start. Each keeps its own gradient, or they would stay equal for ever.
            block = F.pad(fit.detach().diff() != 0, (1, 0)).cumsum(0)
            moved = torch.zeros_like(fit).index_add_(0, block, (fit != ranked).to(fit.dtype))
            fit = torch.where(moved[block] == 0, ranked, fit)
        return fit[self.class_to_rank]

    def _parts(self) -> tuple[Tensor | None, ...]:
        """Return weight, bias, the two monotone raw vectors and the scale, in full precision."""
        parts: list[Tensor | None] = [
            self.weight,
            self.bias,
            self.raw_norm_weight,
            self.raw_norm_bias,
        ]
        parts = [part if part is None else _full(part) for part in parts]
        if self._forward_mode():
            parts[2:] = [raw if raw is None else self._monotone(raw) for raw in parts[2:]]
        return *parts, self.norm_scale if self.norm_scale is None else _full(self.norm_scale)

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight (C, D) and the bias (C,) of the equal linear layer."""
        return _compose(*self._parts())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype = logits_dtype(x)
        if torch.is_grad_enabled() and not _is_traced():
            return _Logits.apply(x, *self._parts(), dtype)
        return _linear(x, *_compose(*self._parts()), dtype)

    def project_(self) -> "SAMNLinear":
        """Project the raw norms, in place, onto the monotone vectors.

        With `project="forward"` it only prevents overflow. It never waits for an accelerator; raw
        norms that are not finite stay so there, and so do the logits.

        Raises:
            UserError: If a raw norm on the CPU is not finite.
        """
        raws = (self.raw_norm_weight, self.raw_norm_bias)
        raws = [raw.detach() for raw in raws if raw is not None]
        if self._forward_mode():
            for raw in raws:
                raw.clamp_(min=MIN_RAW)
        elif self.weight.is_cpu and raws[0].dtype in _FULL:
            for raw in raws:
                if not project_(raw, self.rank_to_class, MIN_RAW):
                    raise UserError(DIVERGED)
        else:
            # Fit both vectors at once: on an accelerator the launch costs more than the run.
            fit = self._fit(torch.stack(raws).index_select(1, self.rank_to_class))
            fit = fit.clamp_(min=MIN_RAW).index_select(1, self.class_to_rank)
            for raw, row in zip(raws, fit, strict=True):
                raw.copy_(row)
        return self

    def extra_repr(self) -> str:
        """Describe the head for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"on={self.on}, project={self.project!r}"
        )


class _Logits(torch.autograd.Function):
    """The logits of the head, with the gradient in closed form.

    With G = dL/dz, A = G^T x, n_c = ||W_c||, u_c = W_c / n_c, e = exp(s), a_c = A_c . u_c:
        dL/dW_c = e_c / n_c (A_c - a_c u_c)
        dL/dq_c = -a_c e_c s_c^2 sigmoid(q_c)
    The formula for q is the same for the bias, with the sum of G over the batch in place of a.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, raw_weight, raw_bias, norm_scale, dtype):
        raws = [raw for raw in (raw_weight, raw_bias) if raw is not None]
        # Both are rows of one tensor: for so few numbers, each call costs more than its work.
        q = torch.stack(raws).clamp_(MIN_RAW)
        s = F.softplus(q).add_(EPS).reciprocal_()
        scale = s.exp()
        layer, shift, length, factor = weight, bias, None, None
        if raw_weight is not None:
            length = torch.linalg.vector_norm(weight, dim=1).clamp_(_MIN_LENGTH)
            # As if the rows were longer by this factor: dL/dq gets it, too.
            length = length if norm_scale is None else length / norm_scale
            factor = (scale[0] / length).unsqueeze(1)
            layer = weight * factor
        if raw_bias is not None:
            shift = bias + scale[-1]
        if dtype is not weight.dtype:
            layer, shift = layer.to(dtype), None if shift is None else shift.to(dtype)
        saved = x, weight, bias, raw_weight, raw_bias, norm_scale, q, s, scale, length, factor
        ctx.save_for_backward(*saved, layer if ctx.needs_input_grad[0] else None)
        ctx.dtype = dtype
        return F.linear(x if x.dtype is dtype else x.to(dtype), layer, shift)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, raw_weight, raw_bias, norm_scale, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # A second derivative is needed: use operations that autograd can differentiate again.
            inputs = (x, weight, bias, raw_weight, raw_bias)
            logits = _linear(x, *_compose(*inputs[1:], norm_scale), ctx.dtype)
            differentiable = [value for value, need in zip(inputs, needs, strict=False) if need]
            grads = iter(torch.autograd.grad(logits, differentiable, grad, create_graph=True))
            return *(next(grads) if need else None for need in needs[:5]), None, None
        q, s, scale, length, factor, layer = saved
        needs_raw = needs[3] or needs[4]
        grad_x = grad_weight = grad_bias = grad_raw_weight = grad_raw_bias = None
        if needs[0]:
            grad_x = (grad @ layer).to(x.dtype)
        if x.dtype is not ctx.dtype:
            x = x.to(ctx.dtype)
        if x.ndim != 2:
            grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_norms = []
        if needs[1] or (needs_raw and length is not None):
            grad_weight = grad.t() @ x
            if grad_weight.dtype is not weight.dtype:
                grad_weight = grad_weight.to(weight.dtype)
            if length is not None:
                along = (grad_weight * weight).sum(1).div_(length)
                grad_norms.append(along)
                # In place is safe: no other code holds this tensor.
                ratio = along / length
                ratio = ratio if norm_scale is None else ratio / norm_scale**2
                grad_weight.addcmul_(weight, ratio.unsqueeze(1), value=-1).mul_(factor)
        if needs[2] or (needs_raw and raw_bias is not None):
            grad_bias = grad.sum(0, dtype=bias.dtype)
            if raw_bias is not None:
                grad_norms.append(grad_bias)
        if needs_raw:
            grad_raws = torch.stack(grad_norms).mul_(scale).mul_(s).mul_(s).mul_(q.sigmoid()).neg_()
            rows = grad_raws.unbind()
            grad_raw_weight = None if raw_weight is None else rows[0]
            grad_raw_bias = None if raw_bias is None else rows[-1]
        # A frozen parameter may get a gradient here; autograd ignores it.
        return grad_x, grad_weight, grad_bias, grad_raw_weight, grad_raw_bias, None, None


def _compose(
    weight: Tensor,
    bias: Tensor | None,
    raw_weight: Tensor | None,
    raw_bias: Tensor | None,
    norm_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the equal linear layer, in operations that torch can trace."""
    if raw_weight is not None:
        length = torch.linalg.vector_norm(weight, dim=1).clamp(min=_MIN_LENGTH)
        length = length if norm_scale is None else length / norm_scale
        weight = weight * (_scale(raw_weight) / length)[:, None]
    if raw_bias is not None:
        bias = bias + _scale(raw_bias)
    return weight, bias


def _scale(raw: Tensor) -> Tensor:
    """Turn a monotone vector into exp(s), with s = 1 / softplus(q)."""
    q = raw.detach().clamp(min=MIN_RAW)
    if torch.is_grad_enabled() or torch.jit.is_tracing():
        # The gradient ignores the clamp, so that a norm can move away from the limit again.
        q = q + (raw - raw.detach())
    return (1 / (F.softplus(q) + EPS)).exp()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _is_traced() -> bool:
    """Return whether torch traces or transforms the call; `_Logits` is opaque to it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def _full(values: Tensor) -> Tensor:
    """Convert half precision to float32, because exp and the norms need the digits."""
    return values if values.dtype in _FULL else values.float()


def _read_vector(name: str, values: Tensor | Sequence[float]) -> Tensor:
    return check_vector(f"SAMNLinear: {name}", values, min_length=1, allow_zeros=True)


def _read_order(order: str | Tensor | Sequence[float], counts: Tensor) -> Tensor:
    """Return the numbers that order the classes, (C,)."""
    if not isinstance(order, str):
        key = _read_vector("order", order)
        if len(key) != len(counts):
            raise UserError(f"SAMNLinear: order has {len(key)} numbers for {len(counts)} classes.")
        return key
    if order != "frequency":
        raise UserError(
            f"SAMNLinear: order must be 'frequency' or a vector of {len(counts)} numbers "
            f"('stage1_norm' only in from_linear), got {order!r}."
        )
    return counts
