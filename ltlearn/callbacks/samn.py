"""SAMN as a fastai callback."""

from collections.abc import Sequence

import torch
from fastai.callback.core import Callback
from torch import Tensor

from ltlearn.data.counts import find_class_counts
from ltlearn.errors import UserError
from ltlearn.models.cut import find_head, set_head
from ltlearn.models.heads import SAMNLinear

__all__ = ["SAMN"]


class SAMN(Callback):
    """Train with weight norms that are monotone from head to tail.

    Before a fit the `nn.Linear` at the end of the model becomes a `SAMNLinear`, its directions and its bias kept; after
    each optimiser step the raw norms are projected with `pava`. The head stays after the fit, however that ends:
    `learn.model.head.fold()` makes it a plain linear layer. Works in `retrain_classifier`, in a plain `learn.fit` and
    with any fastai Learner; for a Learner that is to load a file saved with this head, call `install` first.

    Reads `learn.model`, `learn.dls`. Writes the classifier of `learn.model` and, with it, `learn.opt`: a new
    optimiser with the same hyper-parameters, where the head was not there yet.

    Args:
        class_counts: Training images per class; None finds them in `learn.dls`.
        order: What the norms are ordered by: "frequency", "stage1_norm" or a vector, see `SAMNLinear.from_linear`.
        on: Parts that are rescaled, any of "weight" and "bias".
        project: "step" (projected gradient) or "forward" (through `pava` in each forward pass, as the authors' code).

    Raises:
        UserError: If the class counts are not known, or the model does not end in a linear layer of as many outputs.

    Source:
        Zhang, Li, Zhu, "SAMN", CVPR 2026, arXiv:2606.02526.
    """

    # After callbacks that change the model in before_fit, before those that look at its norms.
    order = 5

    def __init__(
        self,
        class_counts: Tensor | Sequence[int] | None = None,
        order: str | Tensor | Sequence[float] = "frequency",
        on: Sequence[str] = ("weight", "bias"),
        project: str = "step",
    ):
        # `order` is fastai's name for a callback's place in line, so ours is kept under another.
        self.class_counts, self.norm_order, self.on, self.project = class_counts, order, on, project
        self.head: SAMNLinear | None = None

    def install(self, learn) -> SAMNLinear:
        """Put a `SAMNLinear` in the place of the learner's classifier, unless there is one; return it."""
        counts = find_class_counts(learn.dls) if self.class_counts is None else torch.as_tensor(self.class_counts)
        if counts is None:
            raise UserError(
                "SAMN needs the number of training images of each class, and these dataloaders do not tell: give them, as "
                "SAMN(class_counts=[500, 120, ...]), or use LTDataLoaders."
            )
        name, head = find_head(learn.model, len(counts))
        if not isinstance(head, SAMNLinear):
            head = SAMNLinear.from_linear(head, counts, self.norm_order, self.on, self.project)
            learn.model = set_head(learn.model, name, head)
        return head

    def before_fit(self):
        """Install the head and give its parameters to the optimiser."""
        # learn.lr_find and get_preds run fits and validations that must not change the model.
        before = find_head(self.learn.model)[1]
        self.head = self.install(self.learn)
        self.head.project_()
        if self.head is not before:
            self._renew_optimizer()

    def _renew_optimizer(self) -> None:
        """Build the optimiser again, over the new parameters, with the hyper-parameters of the old one."""
        hypers = [dict(h) for h in self.learn.opt.hypers]
        frozen = self.learn.opt.frozen_idx
        self.learn.create_opt()
        for new, old in zip(self.learn.opt.hypers, hypers, strict=True):
            new.update({k: v for k, v in old.items() if k in new})
        if frozen:
            self.learn.opt.freeze_to(frozen)

    def after_step(self):
        """Project the raw norms back onto the monotone vectors."""
        self.head.project_()
