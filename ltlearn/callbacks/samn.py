"""SAMN as a fastai callback."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor, nn

from ltlearn.callbacks.install import install_head
from ltlearn.data.counts import find_class_counts
from ltlearn.errors import UserError
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.gradient import NormalizedGradient, SAMNGradient
from ltlearn.heads.normalized import NormalizedFeatureHead, normalized_head_of
from ltlearn.heads.samn import SAMNLinear
from ltlearn.heads.stacked import StackedHeads
from ltlearn.models.backbone import find_head
from ltlearn.training.fit_callback import FitCallback

__all__ = ["SAMN"]

_log = logging.getLogger("ltlearn")


class SAMN(FitCallback):
    """Train with weight norms that are monotone from head to tail.

    Before a fit, the `nn.Linear` at the end of the model becomes a `SAMNLinear` with the same
    directions and bias. After each optimiser step `pava` projects the raw norms. The head stays
    after the fit, however that ends, and a later fit trains its norms further. After a cosine
    classifier the norms are scaled so that their mean is its scale, see `SAMNLinear`;
    `learn.model.head.fold()` turns it into a plain linear layer. Works in `retrain_classifier`, in
    a plain `learn.fit` and with any fastai Learner. Call `install` before a Learner loads a file
    that was saved with this head.

    Reads `learn.model`, `learn.dls`. Writes the classifier of `learn.model` and its parameters in
    `learn.opt`; groups, hyper-parameters and frozen parameters stay.

    Args:
        class_counts: Training images per class; None reads them from `learn.dls`.
        order: Order of the norms: "frequency", "stage1_norm" or a vector, see
            `SAMNLinear.from_linear`.
        on: Parts that are rescaled, any of "weight" and "bias".
        project: "step" (projected gradient) or "forward" (through `pava` in each forward pass, as
            in the authors' code).
        start: "published", or "stage1" for norms and shifts from the classifier of stage 1, see
            `SAMNLinear.from_linear`.

    Raises:
        UserError: If the class counts are unknown, or the model does not end in a linear layer
            with one output per class.

    Source:
        Zhang, Li, Zhu, "SAMN", CVPR 2026, arXiv:2606.02526.

    Example:
        >>> learn.fit_stage1(200)
        >>> learn.retrain_classifier(20, cbs=SAMN())
    """

    # After callbacks that change the model in before_fit, before those that read its norms.
    order = 5
    leaves_prior = False
    uses_weights_alone = True
    head_type = SAMNLinear

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None = None,
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
        start: str = "published",
    ):
        # fastai uses the attribute `order` for the order of callbacks.
        self.class_counts, self.norm_order, self.on, self.project = class_counts, order, on, project
        self.start = start
        # Not `head`: fastai warns of names that the model has.
        self.installed: SAMNLinear | None = None

    def install(self, learn) -> SAMNLinear:
        """Replace the learner's classifier by a `SAMNLinear`, unless it is one already.

        Args:
            learn: Any fastai Learner. Its optimiser, if it has one, gets the new parameters.

        Returns:
            The head. An existing one keeps its norms and its options.
        """
        counts = self.class_counts
        if counts is None:
            counts = find_class_counts(learn.dls)
        if counts is None:
            raise UserError(
                "SAMN needs class_counts, the number of training images of each class, which these "
                "dataloaders do not have: give SAMN(class_counts=[500, 120, ...]), or use "
                "LTDataLoaders."
            )

        def make(linear: nn.Linear) -> SAMNLinear:
            return SAMNLinear.from_linear(
                linear, counts, self.norm_order, self.on, self.project, self.start
            )

        before = find_head(learn.model)[1]
        kept = normalized_head_of(learn.model) or before
        norms = kept.norms() if isinstance(kept, CosineLinear | NormalizedFeatureHead) else None
        head = install_head(learn, SAMNLinear, make, len(counts))
        normalized = normalized_head_of(learn.model)
        if norms is not None and head is not before:
            normalized.keep_mean_norm(norms.mean())
        if (set(head.on), head.project) != (set(self.on), self.project):
            _log.warning(
                "the model keeps the SAMNLinear it already has, with on=%s and project=%r",
                head.on,
                head.project,
            )
        return head

    def begin(self) -> None:
        """Install the head and give its parameters to the optimiser."""
        self.installed = self.install(self.learn).project_()

    def after_step(self):
        """Project the raw norms onto the monotone vectors."""
        self.installed.project_()

    def after_step_of(self, form):
        """Return what a training without events calls after each step.

        Args:
            form: The `LinearGradient` or the `StackedHeads` that trains; None for other heads.
        """
        form = form.inner if isinstance(form, NormalizedGradient) else form
        if isinstance(form, StackedHeads):
            return None  # its training projects all heads at once
        return form.project_ if isinstance(form, SAMNGradient) else self.after_step

    def end(self) -> None:
        """Project the raw norms, in case the fit ended between step and projection."""
        head, self.installed = self.installed, None
        if head is not None:
            # Norms that are not finite have already raised their error; let other callbacks close.
            with suppress(UserError):
                head.project_()
