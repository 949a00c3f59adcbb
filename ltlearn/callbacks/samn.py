"""SAMN as a fastai callback."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from fastai.callback.core import Callback
from torch import Tensor, nn

from ltlearn.callbacks.install import install_head
from ltlearn.data.counts import find_class_counts
from ltlearn.errors import UserError
from ltlearn.heads.samn import SAMNLinear

__all__ = ["SAMN"]

_log = logging.getLogger("ltlearn")


class SAMN(Callback):
    """Train with weight norms that are monotone from head to tail.

    Before a fit the `nn.Linear` at the end of the model becomes a `SAMNLinear`, its directions and
    its bias kept; after each optimiser step the raw norms are projected with `pava`. The head stays
    after the fit, however that ends, and a later fit goes on with its norms:
    `learn.model.head.fold()` makes it a plain linear layer. Works in `retrain_classifier`, in a
    plain `learn.fit` and with any fastai Learner; for a Learner that is to load a file saved with
    this head, call `install` first.

    Reads `learn.model`, `learn.dls`. Writes the classifier of `learn.model` and, in `learn.opt`,
    the parameters of the classifier; groups, hyper-parameters and what is frozen stay.

    Args:
        class_counts: Training images per class; None finds them in `learn.dls`.
        order: What the norms are ordered by: "frequency", "stage1_norm" or a vector, see
            `SAMNLinear.from_linear`.
        on: Parts that are rescaled, any of "weight" and "bias".
        project: "step" (projected gradient) or "forward" (through `pava` in each forward pass, as
            the authors' code).

    Raises:
        UserError: If the class counts are not known, or the model does not end in a linear layer of
            as many outputs.

    Source:
        Zhang, Li, Zhu, "SAMN", CVPR 2026, arXiv:2606.02526.
    """

    # After callbacks that change the model in before_fit, before those that look at its norms.
    order = 5
    leaves_prior = False
    head_type = SAMNLinear

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None = None,
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
    ):
        # `order` is fastai's name for a callback's place in line, so ours is kept under another.
        self.class_counts, self.norm_order, self.on, self.project = class_counts, order, on, project
        # Not `head`: fastai warns of names that the model has.
        self.installed: SAMNLinear | None = None

    def install(self, learn) -> SAMNLinear:
        """Put a `SAMNLinear` in the place of the learner's classifier, unless there is one.

        Args:
            learn: Any fastai Learner. An optimiser it has already gets the new parameters.

        Returns:
            The head. One that was there keeps its norms and its options.
        """
        counts = self.class_counts
        if counts is None:
            counts = find_class_counts(learn.dls)
        if counts is None:
            raise UserError(
                "SAMN needs the number of training images of each class, and these dataloaders do "
                "not tell: give them, as SAMN(class_counts=[500, 120, ...]), or use LTDataLoaders."
            )

        def make(linear: nn.Linear) -> SAMNLinear:
            return SAMNLinear.from_linear(linear, counts, self.norm_order, self.on, self.project)

        head = install_head(learn, SAMNLinear, make, len(counts))
        if (set(head.on), head.project) != (set(self.on), self.project):
            _log.warning(
                "the model has a SAMN head already, with on=%s and project=%r: it is kept",
                head.on,
                head.project,
            )
        return head

    def before_fit(self):
        """Install the head and give its parameters to the optimiser."""
        # `validate` and `get_preds` come by here too, with this lock held; they change no model.
        if not self.learn.lock.locked():
            self.installed = self.install(self.learn).project_()

    def after_step(self):
        """Project the raw norms back onto the monotone vectors."""
        self.installed.project_()

    def close(self) -> None:
        """Project the raw norms, after a fit that was interrupted between step and projection."""
        installed, self.installed = self.installed, None
        if installed is not None:
            # Norms that are not finite have ended the fit, which says so; others want to close too.
            with suppress(UserError):
                installed.project_()
