"""The start of a cosine classifier, as a fastai callback."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ltlearn.callbacks.cosine import CosineHead
from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.heads.cosine import CosineLinear
from ltlearn.models.text_start import (
    TEMPLATES,
    check_class_names,
    check_templates,
    load_clip_text,
    text_rows,
)
from ltlearn.names import HEAD_STARTS
from ltlearn.posthoc.class_rows import class_mean_rows, logistic_rows
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.utils.ranks import share
from ltlearn.utils.text import name_classes

__all__ = ["HeadStart"]

_log = logging.getLogger("ltlearn")


class HeadStart(CosineHead):
    """Begin a fit with a cosine classifier whose rows already point at the classes.

    For a pre-trained trunk. Before the first step, the `nn.Linear` at the end of the model becomes
    a `CosineLinear`, and each class gets its row:

    - "class_means": the mean of the normalised features of its training images.
    - "logistic": the weights of a balanced logistic regression on at most 100 features a class.
    - "text": the embedding of sentences with its name by the text tower of CLIP, taken back through
      the image projection. The trunk must be the image tower of a CLIP model, with its own
      weights. timm has the projection as the classifier of the trunk, which the learner replaces;
      so text tower and projection are loaded together, by open_clip (extra "clip").

    The features come from images without augmentation; they are computed once, and the feature
    bank keeps them. A class without training images keeps its random row. A fit that resumes from
    a checkpoint continues with its own classifier. The head stays after the fit. A fit of no epoch
    sets the rows, too: with "text", this is CLIP's own classifier.

    Reads `learn.model`, `learn.dls`, `learn.bank`. Writes the classifier of `learn.model` and its
    parameters in `learn.opt`; groups, hyper-parameters and frozen parameters stay.

    Args:
        start: "class_means", "logistic" or "text".
        scale: Factor of the cosines, above 0, no unit. A `CosineLinear` that the model already has
            keeps its own.
        templates: For "text": sentences with {} in the place of the class name. The embeddings of
            several are averaged.
        class_names: For "text": a name per class, in the order of the classes. None takes the
            names of the data; WordNet ids become ImageNet's words.
        per_class: For "logistic": most features that are used of a class, at least 1.

    Raises:
        UserError: If an option is not allowed or, in a fit, the learner is no `LTLearner`, the
            class names are missing or are numbers, the trunk is of no known CLIP model or has other
            weights, or its file cannot be fetched.

    Source:
        Shi et al., ICML 2024, arXiv:2309.10019 (LIFT).

    Example:
        >>> learn = lt_learner(dls, "vit_base_patch16_clip_quickgelu_224.openai")
        >>> learn.fit_stage1(5, loss=LogitAdjustedLoss(), cbs=[LastBlock(), HeadStart("text")])
    """

    # After callbacks that install a cosine classifier, before those that copy the weights.
    order = 6

    def __init__(
        self,
        start: str = "class_means",
        scale: float = 25.0,
        templates: Sequence[str] = TEMPLATES,
        class_names: Sequence[str] | None = None,
        per_class: int = 100,
    ):
        super().__init__(scale)
        check_choice("start", start, HEAD_STARTS)
        check_whole("per_class", per_class, 1)
        self.start, self.templates, self.per_class = start, check_templates(templates), per_class
        self.class_names = None if class_names is None else tuple(map(str, class_names))
        self._waits = False

    def install(self, learn) -> CosineLinear:
        """Replace the learner's classifier by a `CosineLinear`, unless it is one already.

        Args:
            learn: Any fastai Learner. Its optimiser, if it has one, gets the new parameters.

        Returns:
            The head. An existing one keeps its scale.
        """
        self._check(learn)
        return super().install(learn)

    def begin(self) -> None:
        """Install the head, and set its rows unless the fit resumes."""
        super().begin()
        saved = [cb for cb in self.learn.cbs if isinstance(cb, Checkpoint) and cb.resume]
        self._waits = any(share(cb.epochs()) for cb in saved)
        if not self._waits:
            self._set_rows()

    def before_epoch(self):
        """Set the rows if no checkpoint was good, so that the fit begins anew."""
        if self._waits and not self.learn.lock.locked():
            self._waits = False
            if self.learn.epoch == 0:
                self._set_rows()

    def _check(self, learn) -> None:
        if not hasattr(type(learn), "features"):
            raise UserError(
                "HeadStart needs an LTLearner, whose backbone gives features; make one with "
                "lt_learner."
            )

    @torch.no_grad()
    def _set_rows(self) -> None:
        head = self.learn.model.head
        rows = self._find_rows(head.out_features).to(head.weight)
        known = rows.norm(dim=1) > 0
        head.weight[known] = rows[known]
        if not known.all():
            _log.warning(
                "no training images of class %s: the classifier begins with a random row there",
                name_classes(~known),
            )

    def _find_rows(self, num_classes: int) -> Tensor:
        learn = self.learn
        if self.start == "text":
            names = check_class_names(self.class_names, getattr(learn.dls, "vocab", None))
            return text_rows(load_clip_text(learn.model.backbone), names, self.templates)
        features = learn.features("train")
        x, y = features.views[0], features.targets
        if self.start == "logistic":
            seed = learn.dls.train.seed
            return logistic_rows(x, y, num_classes, self.scale, self.per_class, seed)
        return class_mean_rows(x, y, num_classes)
