"""Classifier heads. Torch alone (and `pava`), so that they serve in any PyTorch loop."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError
from ltlearn.heads.foldable import Foldable
from ltlearn.isotonic import pava
from ltlearn.isotonic.scipy_engine import project_
from ltlearn.isotonic.traced import is_transformed

__all__ = ["SAMNLinear"]

# exp(1 / softplus(q)) overflows float32 for q < -4.5. Raw norms are held above the value that gives
# a norm of exp(10) = 22,026: finite in float16 too, and thousands of times the largest norm seen in
# training (4.23).
_MAX_LOG_NORM = 10.0
_EPS = 2e-6  # the authors' code adds 1e-6 to the softplus and again to the denominator
_MIN_RAW = math.log(math.expm1(1 / _MAX_LOG_NORM - _EPS))
_FULL = (torch.float32, torch.float64)
_DIVERGED = (
    "SAMNLinear: the raw norms are not finite any more, so training has diverged; lower the "
    "learning rate."
)
_MIN_LENGTH = 1e-12  # a row of zeros has no direction, and is to stay zeros


class SAMNLinear(Foldable):
    """Linear classifier whose weight norms and bias shifts are monotone from head to tail.

    Logit of class c: z_c = exp(s_c) * (W_c / ||W_c||) . x + b_c + exp(s'_c), with s = 1 /
    softplus(q) and q the projection of a free vector onto the vectors that do not decrease with
    class frequency. The tail therefore always has the largest norm. Use `from_linear`, and call
    `project_()` after each optimiser step.

    Args:
        in_features: D, features an image has.
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
        self._project_known: bool | None = project == "forward"
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
        if not self.project_in_forward.is_meta:
            self._forward_mode()  # now: `torch.compile` and `torch.export` could not look

    def _fit(self, ranked: Tensor) -> Tensor:
        """Fit raw norms, in rows from rarest to most frequent class."""
        try:
            return pava(ranked)
        except ValueError as e:
            raise UserError(_DIVERGED) from e

    def _monotone(self, raw: Tensor) -> Tensor:
        """Project a raw vector, in class order, onto the monotone ones."""
        ranked = raw[self.rank_to_class]
        fit = self._fit(ranked)
        if fit.requires_grad:
            # Classes that are equal without having been pooled, such as those of one count at the
            # start, each keep a gradient of their own, or they would never part.
            run = F.pad(fit.detach().diff() != 0, (1, 0)).cumsum(0)
            moved = torch.zeros_like(fit).index_add_(0, run, (fit != ranked).to(fit.dtype))
            fit = torch.where(moved[run] == 0, ranked, fit)
        return fit[self.class_to_rank]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return weight, bias and the two raw vectors, monotone, all in full precision."""
        parts = [self.weight, self.bias, self.raw_norm_weight, self.raw_norm_bias]
        parts = [part if part is None else _full(part) for part in parts]
        if self._forward_mode():
            parts[2:] = [raw if raw is None else self._monotone(raw) for raw in parts[2:]]
        return tuple(parts)

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (C, D) and bias (C,) of the linear layer that this head stands for."""
        return _compose(*self._parts())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., C)."""
        dtype, kind = x.dtype, x.device.type
        # Autocast leaves float64 as it is.
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        if torch.is_grad_enabled() and not _is_traced():
            return _Logits.apply(x, *self._parts(), dtype)
        return _linear(x, *_compose(*self._parts()), dtype)

    def project_(self) -> "SAMNLinear":
        """Project the raw norms, in place, onto the monotone vectors.

        With `project="forward"` it only keeps them from overflowing. It never waits for a device,
        where norms that are not finite stay so, and with them the logits.

        Raises:
            UserError: If a raw norm is not finite, on the CPU.
        """
        raws = (self.raw_norm_weight, self.raw_norm_bias)
        raws = [raw.detach() for raw in raws if raw is not None]
        if self._forward_mode():
            for raw in raws:
                raw.clamp_(min=_MIN_RAW)
        elif self.weight.is_cpu and raws[0].dtype in _FULL:
            for raw in raws:
                if not project_(raw, self.rank_to_class, _MIN_RAW):
                    raise UserError(_DIVERGED)
        else:
            # Both in one fit: on a device a kernel costs more to launch than to run.
            fit = self._fit(torch.stack(raws).index_select(1, self.rank_to_class))
            fit = fit.clamp_(min=_MIN_RAW).index_select(1, self.class_to_rank)
            for raw, row in zip(raws, fit, strict=True):
                raw.copy_(row)
        return self

    def extra_repr(self) -> str:
        """Say what the head is, for `repr`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"on={self.on}, project={self.project!r}"
        )


class _Logits(torch.autograd.Function):
    """The logits of the head, with the gradient in closed form.

    With G = dL/dz, A = G^T x, n_c = ||W_c||, u_c = W_c / n_c, e = exp(s), a_c = A_c . u_c:
        dL/dW_c = e_c / n_c (A_c - a_c u_c)
        dL/dq_c = -a_c e_c s_c^2 sigmoid(q_c)
    and for the bias the same q, with the sum of G over the batch in the place of a.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, raw_weight, raw_bias, dtype):
        raws = [raw for raw in (raw_weight, raw_bias) if raw is not None]
        # Both as rows of one tensor: of so few numbers, a call costs more than its work.
        q = torch.stack(raws).clamp_(_MIN_RAW)
        s = F.softplus(q).add_(_EPS).reciprocal_()
        scale = s.exp()
        layer, shift, length, factor = weight, bias, None, None
        if raw_weight is not None:
            length = torch.linalg.vector_norm(weight, dim=1).clamp_(_MIN_LENGTH)
            factor = (scale[0] / length).unsqueeze(1)
            layer = weight * factor
        if raw_bias is not None:
            shift = bias + scale[-1]
        if dtype is not weight.dtype:
            layer, shift = layer.to(dtype), None if shift is None else shift.to(dtype)
        saved = x, weight, bias, raw_weight, raw_bias, q, s, scale, length, factor
        ctx.save_for_backward(*saved, layer if ctx.needs_input_grad[0] else None)
        ctx.dtype = dtype
        return F.linear(x if x.dtype is dtype else x.to(dtype), layer, shift)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, raw_weight, raw_bias, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # A second derivative is asked for, and autograd knows how to go on from here.
            inputs = (x, weight, bias, raw_weight, raw_bias)
            logits = _linear(x, *_compose(*inputs[1:]), ctx.dtype)
            wanted = [value for value, need in zip(inputs, needs, strict=False) if need]
            found = iter(torch.autograd.grad(logits, wanted, grad, create_graph=True))
            return *(next(found) if need else None for need in needs[:5]), None
        q, s, scale, length, factor, layer = saved
        needs_raw = needs[3] or needs[4]
        dx = dweight = dbias = draw_weight = draw_bias = None
        if needs[0]:
            dx = (grad @ layer).to(x.dtype)
        if x.dtype is not ctx.dtype:
            x = x.to(ctx.dtype)
        if x.ndim != 2:
            grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        of_norms = []
        if needs[1] or (needs_raw and length is not None):
            dweight = grad.t() @ x
            if dweight.dtype is not weight.dtype:
                dweight = dweight.to(weight.dtype)
            if length is not None:
                along = (dweight * weight).sum(1).div_(length)
                of_norms.append(along)
                # In place: this tensor is nobody else's.
                dweight.addcmul_(weight, (along / length).unsqueeze(1), value=-1).mul_(factor)
        if needs[2] or (needs_raw and raw_bias is not None):
            dbias = grad.sum(0, dtype=bias.dtype)
            if raw_bias is not None:
                of_norms.append(dbias)
        if needs_raw:
            of_raws = torch.stack(of_norms).mul_(scale).mul_(s).mul_(s).mul_(q.sigmoid()).neg_()
            rows = of_raws.unbind()
            draw_weight = None if raw_weight is None else rows[0]
            draw_bias = None if raw_bias is None else rows[-1]
        # What is frozen may get a gradient, too: autograd passes it by.
        return dx, dweight, dbias, draw_weight, draw_bias, None


def _compose(
    weight: Tensor, bias: Tensor | None, raw_weight: Tensor | None, raw_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the linear layer, in operations that torch knows about."""
    if raw_weight is not None:
        length = torch.linalg.vector_norm(weight, dim=1).clamp(min=_MIN_LENGTH)
        weight = weight * (_scale(raw_weight) / length)[:, None]
    if raw_bias is not None:
        bias = bias + _scale(raw_bias)
    return weight, bias


def _scale(raw: Tensor) -> Tensor:
    """Turn a monotone vector into exp(s), with s = 1 / softplus(q)."""
    q = raw.detach().clamp(min=_MIN_RAW)
    if torch.is_grad_enabled() or torch.jit.is_tracing():
        # The gradient passes the clamp as if it were not there, so that a norm can leave the limit.
        q = q + (raw - raw.detach())
    return (1 / (F.softplus(q) + _EPS)).exp()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _is_traced() -> bool:
    """Tell whether torch traces or transforms what runs, which wants operations it can see into."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def _full(values: Tensor) -> Tensor:
    """Return float64 as it is and any other dtype as float32: exp and norms need the digits."""
    return values if values.dtype in _FULL else values.float()


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
