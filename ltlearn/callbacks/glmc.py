"""GLMC as a fastai callback: a stage 1 with two mixes of each batch and two heads."""

import copy
import logging
import random
from contextlib import ExitStack
from dataclasses import replace
from itertools import count, cycle

import numpy as np
import torch
from fastai.losses import BaseLoss
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.callbacks.install import exchange_parameters
from ltlearn.data.counts import find_class_counts
from ltlearn.data.draws import EpochDraws, draw_epoch
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.samplers import InstanceSampler
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.losses.glmc import (
    cut_box,
    glmc_terms,
    inside_box,
    inverse_power,
    mix_globally,
    mix_locally,
)
from ltlearn.models.backbone import LTModel
from ltlearn.models.halves import can_run_by_halves, running_by_halves
from ltlearn.training.fit_callback import FitCallback, declared, mixes_images
from ltlearn.training.resident_form import ResidentForm, ResidentStep
from ltlearn.utils import ranks

__all__ = ["GLMC", "draw_mix"]

# Each number separates one kind of draw from the others with the same seed.
_OTHER, _VIEWS, _MIX, _LAYERS = 1, 2, 3, 4

_log = logging.getLogger("ltlearn")


def draw_mix(
    seed: int, epoch: int, step: int, height: int, width: int
) -> tuple[float, tuple[slice, slice]]:
    """Draw the share and the box of a step of GLMC, on the CPU.

    Args:
        seed: Seed of the training loader.
        epoch: The epoch, from 0 up.
        step: The step in the epoch, from 0 up.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        The share of the first image in the global mix, in [0, 1); rows and columns of the box of
        the local mix.
    """
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch, step, _MIX))
    share = torch.rand((), dtype=torch.float64, generator=generator).item()
    centre = [torch.randint(size, (), generator=generator).item() for size in (height, width)]
    return share, cut_box(height, width, share, centre)


class _InversePowerSampler(InstanceSampler):
    """Draw images with replacement: an image of class y in proportion to n_y ** -power."""

    def __init__(self, targets, seed: int, power: float):
        super().__init__(targets, seed)
        of_class = inverse_power(torch.from_numpy(self.counts), power).numpy()
        shares = of_class[self.targets]
        self.probabilities = shares / shares.sum()

    def class_probabilities(self) -> np.ndarray:
        return np.bincount(self.targets, self.probabilities, len(self.counts))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self), len(self), p=self.probabilities)


class _PairLoader(LTDataLoader):
    """Load two views of each image of a batch, and two of each image to mix in.

    A batch is (x, y, other y). x holds the N first views, the N second views, and the 2N views of
    the other images in the same order.
    """

    def use(self, other: _InversePowerSampler) -> "_PairLoader":
        """Set the sampler of the images to mix in."""
        self.other = other
        return self

    def get_idxs(self) -> list[tuple[int, int, int]]:
        """Return (position, image, other image) for each draw of the epoch."""
        self.other.set_epoch(self.epoch)
        return list(zip(count(), self.sampler, cycle(self.other), strict=False))

    def create_batches(self, samps):
        """Make batches in one operation if the dataset can, else image by image."""
        if self.stored() is not self.dataset:
            for x, y in super().create_batches(samps):
                y, _, other, _ = y.chunk(4)
                yield x, y, other
            return
        make = self._at_once if hasattr(self.dataset, "get_batch") else self._one_by_one
        for draws in self.chunkify(samps):
            yield make(*zip(*draws, strict=True))

    def _at_epoch(self, epoch, epochs):
        loader = super()._at_epoch(epoch, epochs)
        return loader.use(copy.copy(self.other))

    def _draw_images(self, numbers) -> EpochDraws:
        positions, index, other = np.asarray(numbers, dtype=np.int64).reshape(-1, 3).T
        sizes = self._sizes(len(positions))
        seeds = [self._seed_of(int(first)) for first in positions[:: self.bs][: len(sizes)]]
        images = np.stack([index, index, other, other])
        return draw_epoch(images, sizes, self.dataset.draw, seeds)

    def _with_mixes(self, draws: EpochDraws) -> EpochDraws:
        share = torch.zeros(len(draws.sizes), dtype=torch.float64)
        box = torch.zeros(len(draws.sizes), 4, dtype=torch.int64)
        for step in range(len(draws.sizes)):
            share[step], sides = draw_mix(self.seed, self.epoch, step, *self.dataset.shape)
            box[step] = torch.tensor([end for side in sides for end in (side.start, side.stop)])
        return replace(draws, share=share, box=box)

    def _seed_of(self, *where: int) -> int | None:
        return mix_seed(self.seed, self.epoch, *where, _VIEWS) if self.augment else None

    def _at_once(self, positions, index, other):
        seed = self._seed_of(positions[0])
        x, y = self.dataset.get_batch((*index, *index, *other, *other), seed)
        return self._own_rows(x), y[: len(index)], y[-len(index) :]

    def _own_rows(self, x: Tensor) -> Tensor:
        if not self.is_cut:
            return x
        return x.unflatten(0, (4, -1))[:, self.rows_of(len(x) // 4)].flatten(0, 1)

    def _one_by_one(self, positions, index, other):
        views, rows = [], self.rows_of(len(index))
        for images, first in ((index, 0), (other, 2)):
            for position, i in zip(positions[rows], images[rows], strict=True):
                seeds = [self._seed_of(position, first + view) for view in range(2)]
                views.append(torch.stack(self.dataset.get_views(i, seeds)))
        # From (2N, 2, ...), views innermost, to (2, 2, N, ...), images innermost.
        x = torch.stack(views).unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 2)
        return x, self.dataset.targets[list(index)], self.dataset.targets[list(other)]


class GLMC(FitCallback):
    """Train the representation on two mixes of each batch, with two heads and a consistency loss.

    Each batch is mixed with a second one, whose sampler prefers rare classes: two views by MixUp
    (global), two views by a box (local). The classifier of the model is the re-balanced head.
    Beside it, the fit trains a balanced head, a projection and a predictor, with the head's
    learning rate and weight decay. The loss moves from the balanced head in the first epoch to the
    re-balanced head in the last. Validation and predictions use the re-balanced head, which stays
    an ordinary classifier however the fit ends. All draws follow from the seed of the training
    loader, epoch and position.

    Attributes, once a fit has begun: `balanced_`, `projection_`, `predictor_` (the layers that the
    model does not keep, new in each fit), `weights_` (of the classes), `terms_`.

    Works in `LTLearner.fit_stage1` only. Reads `learn.model`, `learn.dls`, `learn.epoch`,
    `learn.n_epoch`. Writes, in training, `learn.dl`, `learn.xb`, `learn.yb`, `learn.loss` and
    `learn.loss_grad`. During the fit, the head's parameter group of `learn.opt` also holds the
    parameters of the other layers.

    Args:
        resample: k, at least 0, no unit. The second batch draws an image of a class with n images
            in proportion to n ** -k: 0 draws all images alike, 1 draws all classes alike.
        reweight: rho, at least 0, no unit. The re-balanced head weights a class by n ** -rho, with
            mean 1 over the classes that have images; a class without images has weight 0.
        contrast: gamma, the weight of the consistency loss, at least 0, no unit.
        projection: Outputs of the projection, at least 1; None takes 128 for fewer than 1024
            features, else 256.

    Raises:
        UserError: If an option is not allowed or, in a fit, the learner is no LTLearner with
            long-tailed data in stage 1, the loss is not plain cross-entropy (GLMC would replace
            it), or another callback mixes images or re-weights the loss.

    Source:
        Du et al., CVPR 2023, arXiv:2305.08661; mixes and schedule as in the authors' code. The
        published values for CIFAR-LT: resample 0 to 0.2, reweight 1 to 1.2, contrast 1 to 6; for
        ImageNet-LT and iNaturalist 0.2, 1, 10.

    Example:
        >>> learn.fit_stage1(200, cbs=GLMC(resample=0.2, reweight=1.2, contrast=4))
    """

    # After the callback that sets the mode, before those that scale or collect the loss.
    order = -4
    leaves_prior = False
    run_valid = False
    mixes_images = True
    runs_once = "its two mixes and its hook run once per step"

    def __init__(
        self,
        resample: float = 0.0,
        reweight: float = 1.2,
        contrast: float = 1.0,
        projection: int | None = None,
    ):
        for name, value in (("resample", resample), ("reweight", reweight), ("contrast", contrast)):
            check_number(name, value, 0)
        if projection is not None:
            check_whole("projection", projection, 1)
        self.resample, self.reweight = float(resample), float(reweight)
        self.contrast, self.projection = float(contrast), projection
        self.balanced_: nn.Linear | None = None
        self.projection_: nn.Linear | None = None
        self.predictor_: nn.Linear | None = None
        self.weights_: Tensor | None = None
        self._sums: Tensor | None = None
        self._images = 0
        self._undo = ExitStack()
        self._release()

    @property
    def terms_(self) -> dict[str, Tensor]:
        """Means of the loss terms over the images of the epoch so far; empty before the first.

        The keys are "balanced", "rebalanced" and "consistency"; the means are scalars on the
        device of the loss.
        """
        if not self._images:
            return {}
        means = self._sums / self._images
        return dict(zip(("balanced", "rebalanced", "consistency"), means, strict=True))

    def begin(self) -> None:
        """Make the other layers and the loader; give the layers to the optimiser."""
        learn = self.learn
        _check(learn)
        model, train = learn.model, learn.dls.train
        counts = find_class_counts(learn.dls)
        like = next(model.parameters())
        weights = inverse_power(counts, self.reweight) * (counts > 0).sum().item()
        self.weights_ = weights.to(like.device, torch.float32)
        layers = self._make_layers(model.head, train.seed).to(like)
        self.balanced_, self.projection_, self.predictor_ = layers
        self._sums, self._images = torch.zeros(3, device=like.device), 0
        # `end` undoes these steps; fastai has removed the learner from the callback by then.
        self._undo.callback(setattr, learn, "dl", train)
        self._undo.callback(layers.zero_grad)
        _join_optimizer(learn.opt, model.head, layers)
        self._undo.callback(exchange_parameters, learn.opt, layers, nn.Module())
        self._undo.callback(self._unhook)
        # fastai's loaders draw from Python's generator in their constructor.
        state = random.getstate()
        pairs = train.new(cls=_PairLoader, sampler=train.sampler)
        random.setstate(state)
        seed = mix_seed(train.seed, _OTHER)
        self._pairs = pairs.use(_InversePowerSampler(train.dataset.targets, seed, self.resample))

    def before_train(self):
        """Replace the training loader by the loader of pairs."""
        self._pairs.set_epoch(self.learn.epoch, self.learn.n_epoch)
        self.learn.dl = self._pairs
        self._sums.zero_()
        self._images = 0

    def before_batch(self):
        """Mix the images; the model's input is the global mix."""
        x, other_x = (half.chunk(2) for half in self.learn.xb[0].chunk(2))
        learn = self.learn
        share, box = draw_mix(self._pairs.seed, learn.epoch, learn.iter, *x[0].shape[-2:])
        y, other_y = learn.yb
        self._batch = mix_locally(x[1], other_x[1], box), other_y, share
        # The hook lasts one pass only: a copy of the model made between two steps has none.
        self._unhook()
        self._hook = learn.model.backbone.register_forward_hook(self._keep_features)
        learn.xb, learn.yb = (mix_globally(x[0], other_x[0], share),), (y,)

    def after_loss(self):
        """Run the model on the local mix, and replace the learner's loss by GLMC's."""
        learn, features = self.learn, self._features
        (x, other, share), (first,) = self._batch, learn.yb
        with learn.autocast_context():
            local = learn.model.backbone(x)
            rebalanced = learn.model.head(local)
            # These layers treat each row separately, so both mixes run through them at once.
            features = torch.cat([features, local])
            outputs = self._outputs(features)
        rebalanced = torch.cat([learn.pred, learn.whole_batch(rebalanced.to(learn.pred.dtype))])
        if ranks.world() > 1:
            outputs = tuple(map(self._of_whole_batch, outputs))
        learn.loss_grad = self._loss(rebalanced, outputs, (first, other), share, self._shares())
        learn.loss = learn.loss_grad.clone()
        self._images += len(first)
        self._features = self._batch = None

    def resident_form(self) -> "_ResidentGLMC":
        """Return the form of GLMC for steps without events."""
        return _ResidentGLMC(self)

    def _outputs(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs of the layers that the model does not keep."""
        projected = self.projection_(features)
        return self.balanced_(features), projected, self.predictor_(projected)

    def _shares(self) -> tuple[float, float]:
        """Return the shares of the balanced and the re-balanced term in this epoch."""
        alpha = 1 - (self.learn.epoch / self.learn.n_epoch) ** 2
        return alpha, 1 - alpha

    def _loss(self, rebalanced, outputs, targets, share, shares) -> Tensor:
        """Return the loss of a step, and add its terms to their sums."""
        (balanced, projected, predicted), (first, other) = outputs, targets
        terms = glmc_terms(
            balanced, rebalanced, projected, predicted, first, other, share, self.weights_
        )
        # The sums stay on the device, so that a step does not wait for it.
        self._sums.add_(torch.stack(terms).detach(), alpha=len(first))
        return shares[0] * terms[0] + shares[1] * terms[1] + self.contrast * terms[2]

    def after_train(self):
        """Log the terms."""
        if self._images and _log.isEnabledFor(logging.INFO):
            terms = ", ".join(f"{name} {float(mean):.4f}" for name, mean in self.terms_.items())
            _log.info("epoch %d: GLMC's terms: %s", self.learn.epoch + 1, terms)

    def end(self) -> None:
        """Remove the other layers from the optimiser."""
        self._undo.close()
        self._release()

    def _release(self) -> None:
        """Release all objects that only a fit needs."""
        self._pairs = self._hook = self._features = self._batch = None

    def _make_layers(self, head: nn.Module, seed: int) -> nn.ModuleList:
        width, classes = head.in_features, head.out_features
        inner = self.projection or (128 if width < 1024 else 256)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which also seeds every device.
            torch.default_generator.manual_seed(mix_seed(seed, _LAYERS))
            sizes = ((width, classes), (width, inner), (inner, inner))
            return nn.ModuleList(nn.Linear(*size) for size in sizes)

    def _keep_features(self, _module, _args, output: Tensor) -> None:
        self._features = output
        self._unhook()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _of_whole_batch(self, mixes: Tensor) -> Tensor:
        """Return the rows of all ranks: those of the global mix, then those of the local mix."""
        return torch.cat([self.learn.whole_batch(mix) for mix in mixes.chunk(2)])


class _ResidentGLMC(ResidentForm):
    """GLMC in a step without events."""

    replaces_loss = True

    def __init__(self, owner: GLMC):
        self._owner, device = owner, next(owner.learn.model.parameters()).device
        # The shares of both terms are tensors, so that a captured step reads their new values.
        self._shares = [torch.zeros((), device=device) for _ in range(2)]
        self._local: Tensor | None = None
        # One pass over both mixes uses a device better. Only steps for a graph do so: the model of
        # such a step draws no random numbers, which would differ. A compiled backbone would be
        # compiled again for the larger batch.
        backbone = owner.learn.model.backbone
        self._joint = can_run_by_halves(backbone) and backbone._compiled_call_impl is None

    def begin_epoch(self, sizes):
        for tensor, share in zip(self._shares, self._owner._shares(), strict=True):
            tensor.fill_(share)
        return {}

    def before_batch(self, step: ResidentStep) -> None:
        x, other = (half.chunk(2) for half in step.x.chunk(2))
        step.x = mix_globally(x[0], other[0], step.share)
        self._local = torch.where(inside_box(step.box, *x[1].shape[-2:]), other[1], x[1])

    def compute_loss(self, step: ResidentStep) -> None:
        owner, model = self._owner, self._owner.learn.model
        with owner.learn.autocast_context():
            if step.for_graph and self._joint:
                with running_by_halves(model.backbone):
                    features = model.backbone(torch.cat([step.x, self._local]))
            else:
                features = torch.cat([model.backbone(step.x), model.backbone(self._local)])
            rebalanced, outputs = model.head(features), owner._outputs(features)
        step.loss = owner._loss(rebalanced, outputs, step.targets, step.share, self._shares)
        self._local = None

    def after_steps(self, images):
        self._owner._images += sum(images)

    def state(self) -> list[Tensor]:
        return [self._owner._sums]


def _check(learn) -> None:
    """Raise a `UserError` unless GLMC can train this learner."""
    train = learn.dls.train
    readable = hasattr(getattr(train, "dataset", None), "get_batch") or hasattr(
        getattr(train, "dataset", None), "get_views"
    )
    ours = isinstance(learn.model, LTModel) and hasattr(type(learn), "autocast_context")
    if not ours or not isinstance(train, LTDataLoader) or not readable or not train.training:
        raise UserError(
            "GLMC trains backbone and classifier on images: pass it to fit_stage1 of an LTLearner "
            "with LTDataLoaders (lt_learner makes one), not to stage 2 or another Learner."
        )
    if not _is_cross_entropy(learn.loss_func):
        name = getattr(learn.loss_func, "__name__", type(learn.loss_func).__name__)
        raise UserError(
            f"GLMC replaces the training loss, and would ignore {name}: leave the loss out, or "
            "take a learner with plain cross-entropy."
        )
    for cb in learn.cbs:
        if type(cb) is not GLMC and (mixes_images(cb) or declared(cb, "weights_loss")):
            raise UserError(
                f"GLMC mixes images and re-weights classes by itself: leave {type(cb).__name__} "
                "out."
            )


def _is_cross_entropy(loss) -> bool:
    """Return whether a loss is the mean cross-entropy, without weights or smoothing."""
    if isinstance(loss, BaseLoss):
        loss = loss.func
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss.weight is None and not loss.label_smoothing
    return loss is F.cross_entropy


def _join_optimizer(opt, head: nn.Module, layers: nn.Module) -> None:
    """Append the parameters of new layers to the head's group of an optimiser."""
    groups = [list(group) for group in opt.param_lists]
    of_head = {id(p) for p in head.parameters()}
    # A splitter may leave frozen parameters out.
    with_head = [i for i, group in enumerate(groups) if any(id(p) in of_head for p in group)]
    groups[with_head[0] if with_head else -1] += layers.parameters()
    opt.param_lists = groups
    twins = dict(head.named_parameters())
    for name, p in layers.named_parameters():
        twin = twins.get(name.rpartition(".")[2])
        # fastai keeps a flag beside a parameter: whether weight decay applies to it.
        opt.state[p] = {k: v for k, v in opt.state.get(twin, {}).items() if k == "do_wd"}
