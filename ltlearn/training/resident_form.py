"""What a callback does in a training step without events: its resident form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastai.callback.core import Callback
from torch import Tensor

from ltlearn.training.fit_callback import declared

__all__ = ["ResidentForm", "ResidentStep", "form_of", "handled_events"]

_STEP_EVENTS = (
    "before_batch", "after_pred", "after_loss", "before_backward", "after_cancel_backward",
    "after_backward", "before_step", "after_cancel_step", "after_step", "after_cancel_batch",
    "after_batch",
)  # fmt: skip


@dataclass(eq=False)
class ResidentStep:
    """A training step without events. All tensors are on the device of the training.

    Args:
        size: Images in the batch.
        number: The step in the epoch, from 0.
        x: Images as the model takes them. A form may replace them in `before_batch`.
        targets: The targets; the first is the loss function's.
        captured: Whether the step is being captured as a CUDA graph.
        for_graph: Whether the step is captured, or warms up for a capture. If the model draws
            random numbers in such a step, the step is not captured.
        share: Share of the first image in GLMC's mixes; None for other loaders.
        box: Box of GLMC's local mix: first row, end row, first column, end column.
        pred: Logits, float32, once they are computed.
        loss: The loss, whose gradient is taken. A form may replace it in `after_loss`.
        again: Runs model, loss and backward pass once more; for `after_backward`.

    Shape:
        number is (1,), int64. x is (N, 3, H, W), or (4N, 3, H, W) for GLMC. Targets are (N,). share
        is a scalar, box is (4,), int64.
    """

    size: int
    number: Tensor
    x: Tensor
    targets: tuple[Tensor, ...]
    captured: bool = False
    for_graph: bool = False
    share: Tensor | None = None
    box: Tensor | None = None
    pred: Tensor | None = None
    loss: Tensor | None = None
    again: Callable[[], None] | None = None


class ResidentForm:
    """What a callback does in a training step without events. This one does nothing.

    A resident loop takes the steps of an epoch as functions of tensors on the device, and sends
    none of the events of a step. A callback that handles such an event takes part by a method
    `resident_form`, which returns an object of this class; None refuses, and the fit sends events.

    The methods of a step must not wait for the device, and must not read Python numbers that change
    within an epoch: on CUDA a step is captured once and repeated. Numbers that differ from step to
    step go into the tables that `begin_epoch` returns. Tensors that a step changes must be changed
    in place.

    Attributes: `row` (the rows of the tables for the current step, by name), `captures` (whether a
    step with this form may be captured), `replaces_loss` (whether `compute_loss` replaces forward
    pass and loss), `look_every` (most steps between two calls of `after_steps`; None: any).

    Example:
        >>> class Halve(ResidentForm):
        ...     def after_loss(self, step):
        ...         step.loss = step.loss / 2
    """

    row: Mapping[str, Tensor] = {}
    captures = True
    replaces_loss = False
    look_every: int | None = None

    def begin_epoch(self, sizes: Sequence[int]) -> dict[str, Tensor]:
        """Prepare an epoch; return tables on the CPU with one row per step.

        Args:
            sizes: Images in the batch of each step.
        """
        return {}

    def before_batch(self, step: ResidentStep) -> None:
        """Change the images before the forward pass.

        Args:
            step: The step.
        """

    def compute_loss(self, step: ResidentStep) -> None:
        """Compute `step.loss` from images and targets, with `replaces_loss`.

        Args:
            step: The step.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define compute_loss.")

    def after_loss(self, step: ResidentStep) -> None:
        """Read or replace the loss.

        Args:
            step: The step.
        """

    def after_backward(self, step: ResidentStep) -> None:
        """Read or change the gradients.

        Args:
            step: The step.
        """

    def after_step(self, step: ResidentStep) -> None:
        """Act after the optimiser has changed the weights.

        Args:
            step: The step.
        """

    def after_steps(self, images: Sequence[int]) -> None:
        """Read what several steps have recorded on the device; this may wait for it.

        Args:
            images: Images in the batch of each finished step.
        """

    def end_epoch(self, steps: int) -> None:
        """Finish an epoch, also one that was interrupted.

        Args:
            steps: Finished steps.
        """

    def state(self) -> list[Tensor]:
        """Return the tensors that a step changes, besides model, optimiser and gradients."""
        return []

    def fixed(self) -> Any:
        """Return the values that a capture fixes; if they change, the step is captured anew."""
        return None


class _AfterStep(ResidentForm):
    """The form of a callback that reads and writes nothing but weights, after each step."""

    def __init__(self, call: Callable[[], None]):
        self._call = call

    def after_step(self, step: ResidentStep) -> None:
        self._call()


def handled_events(cb: Callback) -> list[str]:
    """Return the events of a step that a callback handles.

    Args:
        cb: Any fastai callback.
    """
    return [name for name in _STEP_EVENTS if hasattr(type(cb), name) or name in vars(cb)]


def form_of(cb: Callback) -> ResidentForm | None:
    """Return the resident form of a callback; None if its events of a step must be sent.

    Args:
        cb: Any fastai callback.
    """
    handled = handled_events(cb)
    if not (cb.run and cb.run_train and handled):
        return ResidentForm()
    own = _class_with(cb, "resident_form")
    # A subclass that handles an event by itself needs the event, unless it has a form of its own.
    covered = own is not None and all(
        name not in vars(cb) and issubclass(own, _class_with(cb, name)) for name in handled
    )
    if covered:
        return cb.resident_form()
    if handled == ["after_step"] and declared(cb, "uses_weights_alone"):
        return _AfterStep(cb.after_step)
    return None


def _class_with(cb: Callback, name: str) -> type | None:
    """Return the class that defines an attribute of a callback."""
    return next((cls for cls in type(cb).__mro__ if name in vars(cls)), None)
