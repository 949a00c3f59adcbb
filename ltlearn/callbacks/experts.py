"""Several experts on a shared backbone, as a fastai callback."""

import torch
from torch import Tensor, nn

from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.heads.cosine import CosineLinear
from ltlearn.heads.experts import ExpertHead
from ltlearn.heads.linear import check_directions
from ltlearn.heads.registry import as_linear
from ltlearn.models.backbone import LTModel, evaluating
from ltlearn.models.experts import ExpertBackbone, last_stages
from ltlearn.training.fit_callback import FitCallback

__all__ = ["Experts"]

_EXPERTS = 6  # separates these draws from the other draws of one seed
_RTOL = 1e-3  # features differ by rounding alone


class Experts(FitCallback):
    """Train several experts on shared early layers, each with last stages and a head of its own.

    `fit_stage1` calls `install` before it makes the optimiser: the last stages of the backbone are
    then there once for each expert, and the head becomes an `ExpertHead`. Both stay after the fit.
    In another fit, call `install` first. A loss with the attribute `takes_experts`, such as
    `BalPoELoss`, gets the logits of each expert, (N, E, C), in training; any other loss trains the
    mean of the experts. Validation and predictions use the mean.

    The first expert keeps the weights of the model. The others begin as copies of a trained model.
    In an untrained one their weights are shuffled within each matrix, so that they have the same
    distribution, and their classifiers are drawn anew; all follows from the seed of the training
    loader.

    Reads `learn.model`, `learn.dls`, `learn.loss_func`. `install` writes `learn.model` and
    `learn.opt`.

    Args:
        experts: Number of experts, at least 2.
        stages: Last stages of the backbone that each expert has for itself, at least 1. They are
            timm's layer groups: stages of a convolutional network, blocks of a ViT.
        scale: Factor of the cosines, above 0, no unit.

    Raises:
        UserError: If an option is not allowed or, in `install`, the model has no backbone of timm
            whose stages are known; in a fit, if the model has no experts.

    Source:
        Wang et al., ICLR 2021, arXiv:2010.01809 (RIDE); two stages and scale 30 as in the code of
        BalPoE for CIFAR.

    Example:
        >>> learn.fit_stage1(200, loss=BalPoELoss(), cbs=[Experts(), BatchMixUp(0.4)])
    """

    # After callbacks that change the model in before_fit, before those that read its norms.
    order = 5
    head_type = ExpertHead
    changes_model = True

    def __init__(self, experts: int = 3, stages: int = 2, scale: float = 30.0):
        check_whole("experts", experts, 2)
        check_whole("stages", stages, 1)
        check_number("scale", scale, 0, above=True)
        self.experts, self.stages, self.scale = experts, stages, float(scale)
        self._head: ExpertHead | None = None

    def install(self, learn) -> ExpertHead:
        """Give the learner's model its experts, unless it has some already.

        Args:
            learn: An `LTLearner`. It loses its optimiser.

        Returns:
            The head. Existing experts keep their number, stages and scale.
        """
        model = learn.model
        if not isinstance(model, LTModel):
            raise UserError(
                "Experts needs a model with a backbone and a head; make the learner by lt_learner."
            )
        if isinstance(model.backbone, ExpertBackbone):
            if isinstance(model.head, ExpertHead):
                return model.head
            raise UserError(
                f"the experts of this model have a {type(model.head).__name__} in place of their "
                "classifiers; put the classifier of stage 1 back: use('stage1')."
            )
        old, is_new = model.backbone, _is_untrained(learn)
        rows = _directions(model.head)
        stages = last_stages(old, self.stages)
        backbone = ExpertBackbone(old, stages, self.experts).train(old.training)
        _check(backbone, old, getattr(learn.dls, "size", None))
        head = ExpertHead(self.experts * rows.shape[1], len(rows), self.experts, self.scale)
        seed = mix_seed(getattr(learn.dls.train, "seed", 0), _EXPERTS)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(rows.expand_as(head.weight))
            for expert in range(1, self.experts) if is_new else ():
                for part in backbone.parts_of(expert):
                    _shuffle(part, generator)
                nn.init.xavier_normal_(head.weight[expert], generator=generator)
        model.backbone = backbone
        model.head = head.to(rows.device, rows.dtype).train(model.training)
        learn.opt = None
        return head

    def begin(self) -> None:
        """Let the head return the logits of each expert in training, if the loss takes them."""
        head = getattr(self.learn.model, "head", None)
        if not isinstance(head, ExpertHead):
            raise UserError(
                "Experts changes the model before a fit begins: pass it to fit_stage1, or call "
                "Experts().install(learn) first."
            )
        self._head = head
        head.separate = getattr(self.learn.loss_func, "takes_experts", False)

    def end(self) -> None:
        """Let the head return the mean in any mode."""
        if self._head is not None:
            self._head.separate = False
        self._head = None


def _directions(head: nn.Module) -> Tensor:
    """Return the rows of a classifier, (C, D), none of them zero."""
    if isinstance(head, CosineLinear):
        return head.weight.detach()
    linear = as_linear(head)
    check_directions(linear, ExpertHead.__name__)
    return linear.weight.detach()


def _is_untrained(learn) -> bool:
    """Return whether a model still has the random weights that it was made with."""
    if getattr(learn, "pretrained", True) or getattr(learn, "stages", ()):
        return False
    counts = (getattr(m, "num_batches_tracked", None) for m in learn.model.modules())
    return not any(int(n) for n in counts if n is not None)


def _shuffle(part: nn.Module, generator: torch.Generator) -> None:
    """Shuffle each matrix of a part; vectors, as in norms, begin alike in all experts."""
    for p in part.parameters():
        if p.ndim > 1:
            order = torch.randperm(p.numel(), generator=generator).to(p.device)
            p.copy_(p.flatten()[order].view(p.shape))


@torch.no_grad()
def _check(backbone: ExpertBackbone, trunk: nn.Module, size) -> None:
    """Raise a `UserError` unless each expert gives the features of the trunk, as copies do."""
    if size is None:
        return
    name, p = type(trunk).__name__, next(trunk.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator).to(p.device, p.dtype)
    with evaluating(trunk), evaluating(backbone):
        expected, reason = trunk(x), ""
        try:
            found = backbone(x).unflatten(1, (backbone.experts, -1))
        except Exception as e:  # a network raises errors of many kinds for a batch of another size
            found, reason = None, f" ({type(e).__name__})"
    scale = float(expected.abs().max())
    if found is None or not torch.allclose(
        found, expected[:, None].expand_as(found), _RTOL, _RTOL * scale
    ):
        raise UserError(
            f"the last stages of {name} cannot be divided among experts{reason}: it does more with "
            "them than to pass each image on; take another model, or one stage (stages=1)."
        )
