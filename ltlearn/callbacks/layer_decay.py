"""Learning rates that fall from the last block of a backbone to the first, as a fastai callback."""

import copy

from timm.optim import param_groups_layer_decay

from ltlearn.errors import UserError, check_number
from ltlearn.training.fit_callback import FitCallback

__all__ = ["LayerDecay"]


class LayerDecay(FitCallback):
    """Train all of a pre-trained backbone, with smaller learning rates in earlier layers.

    The last of timm's layer groups has the learning rate of the backbone, and each group before it
    `layer_decay` times the rate of the next. The head keeps its learning rate. Give the schedule by
    `fit_stage1` or `EpochSchedule`; fastai's `fit_one_cycle` and `fit_flat_cos` set one rate per
    group of the learner and cannot be used.

    Reads `learn.model.backbone`. Writes, for the length of a fit, `learn.opt`: an optimiser of the
    same kind with a group for each layer. Momenta go on from one to the other.

    Args:
        layer_decay: Factor from one layer group to the one before it, in (0, 1], no unit.

    Raises:
        UserError: If `layer_decay` is not allowed or, in a fit, the model has no backbone whose
            layers timm groups.

    Source:
        Bao et al., ICLR 2022, arXiv:2106.08254; timm's `param_groups_layer_decay`.

    Example:
        >>> learn.fit_stage1(5, 0.01, cbs=LayerDecay(0.75))
    """

    # Before `EpochSchedule`, which reads the learning rates of the groups.
    order = -6

    def __init__(self, layer_decay: float = 0.75):
        check_number("layer_decay", layer_decay, 0, 1, above=True)
        self.layer_decay = float(layer_decay)
        self._learner = self._before = None

    def begin(self) -> None:
        """Put an optimiser with a group for each layer into the learner."""
        backbone = getattr(self.learn.model, "backbone", None)
        if not hasattr(backbone, "group_matcher"):
            raise UserError(
                f"LayerDecay needs a backbone with layer groups of timm, and "
                f"{type(backbone or self.learn.model).__name__} has none; leave it out, or take a "
                "timm model by lt_learner."
            )
        groups = param_groups_layer_decay(
            backbone, weight_decay=0.0, weight_decay_exclude_1d=False, layer_decay=self.layer_decay
        )
        factors = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        # Kept here, because fastai removes the learner from the callback before `end`.
        self._learner, self._before = self.learn, self.learn.opt
        self._learner.opt, self._origin = _split(self._before, factors)

    def end(self) -> None:
        """Put the optimiser of the learner back."""
        if self._learner is None:
            return
        split, lists = self._learner.opt, [[] for _ in self._before.param_lists]
        # Other callbacks may have exchanged parameters, for example when they replace the head.
        for index, group in zip(self._origin, split.param_lists, strict=True):
            lists[index] += group
        self._before.param_lists = lists
        self._learner.opt = self._before
        self._learner = self._before = None


def _split(opt, factors: dict[int, float]):
    """Return an optimiser whose groups are split by factor, and the old group of each new one."""
    lists, rates, origin = [], [], []
    for i, (group, hypers) in enumerate(zip(opt.param_lists, opt.hypers, strict=True)):
        for factor in sorted({factors.get(id(p), 1.0) for p in group}):
            lists.append([p for p in group if factors.get(id(p), 1.0) == factor])
            rates.append(factor * hypers["lr"])
            origin.append(i)
    # A copy with the same state: momenta belong to parameters, not to groups.
    new = copy.copy(opt)
    if hasattr(opt, "opt"):
        new.opt = copy.copy(opt.opt)
        new.opt.param_groups = [dict(opt.opt.param_groups[i]) for i in origin]
        new.opt.state = opt.opt.state
    else:
        new.hypers = type(opt.hypers)(dict(opt.hypers[i]) for i in origin)
    new.param_lists = lists if hasattr(opt, "opt") else type(opt.param_lists)(lists)
    new.set_hyper("lr", rates)
    return new, origin
