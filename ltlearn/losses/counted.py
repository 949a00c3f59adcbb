"""The base of the losses that use class counts."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.errors import UserError, check_choice
from ltlearn.utils.vectors import check_vector, exact_counts

__all__ = ["CountedLoss", "check_vector"]

REDUCTIONS = ("mean", "sum", "none")
_HALF = (torch.float16, torch.bfloat16)
_MAX_NAMED = 10  # classes in a warning
_log = logging.getLogger("ltlearn")


class CountedLoss(nn.Module):
    """Base of the losses that depend on the number of training images of each class.

    The constructor takes the counts, or `set_class_counts` sets them later. The values derived from
    them are computed once, in float64, and kept in float32 buffers. The buffers are not part of the
    state dict (counts belong to the data, not to a checkpoint), keep their dtype under `.half()`,
    and follow the logits to their device. Logits in half precision are converted to float32.

    Every loss also takes class weights, by `set_weights`, for deferred re-weighting.

    A subclass sets its own values, ends its `__init__` with `set_class_counts`, lists in `_derived`
    the buffers that `_derive` computes from the counts, and begins its `forward` with `_ready`.

    Args:
        reduction: "mean", "sum" or "none".

    Raises:
        UserError: If `reduction` is unknown.
    """

    # Whether a classifier trained with this loss still assumes the class prior of its sampler.
    leaves_prior = False
    # With this, fastai's MixUp and CutMix mix the losses of two targets instead of the targets.
    y_int = True
    # Effect of a class without training images, for the warning about it.
    _without_images = ""
    _derived: tuple[str, ...] = ()
    _shown: tuple[str, ...] = ()
    class_counts: Tensor | None
    weights: Tensor | None

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        for name in dict.fromkeys(("class_counts", "weights", *self._derived)):
            self.register_buffer(name, None, persistent=False)

    @property
    def needs_counts(self) -> bool:
        """Return whether the loss cannot be computed without class counts."""
        return bool(self._derived)

    def set_class_counts(self, class_counts: Tensor | Sequence[float] | None) -> None:
        """Set the training images per class, and compute all values derived from them.

        A warning names the classes without training images. No value becomes not-a-number for
        them; the documentation of each loss describes their effect.

        Args:
            class_counts: C numbers, at least 0, not all 0; None removes the counts.

        Raises:
            UserError: If the counts are not such a vector, or their number differs from the
                number of weights.
        """
        name = type(self).__name__
        if class_counts is None:
            for buffer in ("class_counts", *self._derived):
                setattr(self, buffer, None)
            return
        counts = check_vector("class_counts", class_counts)
        if "weights" not in self._derived:
            self._same_length(counts, self.weights)
        for buffer, values in self._derive(counts).items():
            setattr(self, buffer, values.float())
        self.class_counts = exact_counts(counts)
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty and self.needs_counts:
            listed = ", ".join(map(str, empty[:_MAX_NAMED]))
            listed += " ..." if len(empty) > _MAX_NAMED else ""
            _log.warning(
                "%s: no training images of class %s; %s.", name, listed, self._without_images
            )

    def set_weights(self, weights: Tensor | Sequence[float] | None) -> None:
        """Set the weight of each class, replacing any earlier weights.

        Args:
            weights: C numbers, at least 0, not all 0; None weights all classes alike.

        Raises:
            UserError: If the weights are not such a vector, or their number differs from the
                number of counts.
        """
        if weights is not None:
            weights = check_vector("weights", weights)
            self._same_length(self.class_counts, weights)
            weights = weights.float()
        self.weights = weights

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities, (N, C)."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: Tensor) -> Tensor:
        """Return the class of the highest probability, (N,)."""
        return probabilities.argmax(dim=-1)

    def extra_repr(self) -> str:
        """Return the options of the loss, for `repr`."""
        shown = [f"{name}={getattr(self, name)!r}" for name in (*self._shown, "reduction")]
        if self.class_counts is not None:
            shown.append(f"num_classes={len(self.class_counts)}")
        return ", ".join(shown)

    def _derive(self, counts: Tensor) -> dict[str, Tensor]:
        """Compute the buffers of `_derived` from the counts, (C,) in float64 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not define _derive.")

    def _ready(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Check the shapes and dtypes of a batch, and return it as plain tensors.

        Values are not checked: on an accelerator that would wait for the device at each step.
        """
        name = type(self).__name__
        if self.needs_counts and self.class_counts is None:
            raise UserError(
                f"{name} has no class counts yet: give class_counts=[...], the number of training "
                "images of each class, or call set_class_counts before the training."
            )
        # fastai's tensor subclasses do not allow operations with one another.
        logits, target = _plain(logits), _plain(target)
        if logits.ndim != 2 or target.ndim != 1 or len(logits) != len(target):
            raise UserError(
                f"{name} takes logits (N, C) and one class index per row, (N,); got shapes "
                f"{tuple(logits.shape)} and {tuple(target.shape)}."
            )
        if target.dtype.is_floating_point or target.dtype == torch.bool:
            raise UserError(f"{name} takes class indices as targets, got {target.dtype}.")
        buffers = [buffer for buffer in self._buffers.values() if buffer is not None]
        if any(len(buffer) != logits.shape[1] for buffer in buffers):
            raise UserError(
                f"{name} has counts or weights of {len(buffers[0])} classes, but the logits have "
                f"{logits.shape[1]}; both must be equal."
            )
        if any(buffer.device != logits.device for buffer in buffers):
            self.to(logits.device)
        return logits.float() if logits.dtype in _HALF else logits, target.long()

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the reduced, weighted cross-entropy."""
        if self.weights is None:
            return F.cross_entropy(logits, target, reduction=self.reduction)
        return self._reduce(F.cross_entropy(logits, target, reduction="none"), target)

    def _reduce(
        self, losses: Tensor, target: Tensor, divide_by: str = "weights", weighted: bool = True
    ) -> Tensor:
        """Weight the losses, (N,), and reduce them; a mean divides by "weights" or "images"."""
        weights = self.weights.gather(0, target) if weighted and self.weights is not None else None
        if weights is not None:
            losses = losses * weights
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        if weights is None or divide_by == "images":
            return losses.mean()
        # If all weights of a batch are 0, its loss is 0, not 0 / 0.
        return losses.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def _same_length(self, counts: Tensor | None, weights: Tensor | None) -> None:
        if counts is not None and weights is not None and len(counts) != len(weights):
            raise UserError(
                f"{type(self).__name__} has {len(counts)} class_counts and {len(weights)} weights; "
                "both must have one number per class."
            )

    def _apply(self, fn, recurse=True):
        # `.half()` moves the buffers but does not round them: log counts need full precision.
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        return super()._apply(move, recurse)


def _plain(values: Tensor) -> Tensor:
    return values if type(values) is Tensor else values.as_subclass(Tensor)
