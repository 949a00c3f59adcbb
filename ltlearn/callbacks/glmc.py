"""GLMC, a stage 1 of two mixes and two heads, as a fastai callback."""

import logging
import random
from contextlib import ExitStack
from itertools import count, cycle

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.losses import BaseLoss
from torch import Tensor, nn
from torch.nn import functional as F

from ltlearn.callbacks.drw import DeferredReweighting
from ltlearn.callbacks.install import exchange_parameters
from ltlearn.callbacks.mixing import BatchCutMix, BatchMixUp
from ltlearn.data.counts import find_class_counts
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.samplers import InstanceSampler
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_whole
from ltlearn.losses.counted import check_number
from ltlearn.losses.glmc import cut_box, glmc_terms, inverse_power, mix_globally, mix_locally
from ltlearn.models.backbone import LTModel

__all__ = ["GLMC"]

# What tells the draws of one seed apart.
_OTHER, _VIEWS, _MIX, _LAYERS = 1, 2, 3, 4

_log = logging.getLogger("ltlearn")


class _InversePowerSampler(InstanceSampler):
    """Draw images with replacement, P(i) in proportion to n_y ** -power for i of class y."""

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
    """Give two views of the images of a batch, and two of those to mix in.

    A batch is (x, y, other y): x holds the N first views, the N second ones, and those of the other
    images.
    """

    def use(self, other: _InversePowerSampler) -> "_PairLoader":
        """Draw the images to mix in with this sampler."""
        self.other = other
        return self

    def get_idxs(self) -> list[tuple[int, int, int]]:
        """Return position, image and other image, for each place of the epoch."""
        self.other.set_epoch(self.epoch)
        return list(zip(count(), self.sampler, cycle(self.other), strict=False))

    def create_batches(self, samps):
        """Make batches: in one operation where the dataset can, else image by image."""
        make = self._at_once if hasattr(self.dataset, "get_batch") else self._one_by_one
        for places in self.chunkify(samps):
            yield make(*zip(*places, strict=True))

    def _seed_of(self, *where: int) -> int | None:
        return mix_seed(self.seed, self.epoch, *where, _VIEWS) if self.augment else None

    def _at_once(self, places, index, other):
        x, y = self.dataset.get_batch((*index, *index, *other, *other), self._seed_of(places[0]))
        return x, y[: len(index)], y[-len(index) :]

    def _one_by_one(self, places, index, other):
        views = []
        for images, at in ((index, 0), (other, 2)):
            for place, i in zip(places, images, strict=True):
                seeds = [self._seed_of(place, at + view) for view in range(2)]
                views.append(torch.stack(self.dataset.get_views(i, seeds)))
        # (2N, 2, ...) with the view inside, to (2, 2, N, ...) with the image inside.
        x = torch.stack(views).unflatten(0, (2, -1)).transpose(1, 2).flatten(0, 2)
        return x, self.dataset.targets[list(index)], self.dataset.targets[list(other)]


class GLMC(Callback):
    """Train the representation on two mixes of each batch, with two heads and a consistency.

    Each batch is mixed with a second one, whose sampler prefers rare classes: two views as wholes
    (global), two by a box (local). The classifier of the model is the re-balanced head; beside it a
    balanced head, a projection and a predictor are trained, at its learning rate and weight decay.
    The loss moves from the balanced head in the first epoch to the re-balanced one in the last.
    Validation and predictions use the re-balanced head, which stays an ordinary classifier however
    the fit ends. All draws follow from the seed of the training loader, epoch and position.

    Attributes, once a fit has begun: `balanced_`, `projection_`, `predictor_` (the layers that the
    model does not keep, new in each fit), `weights_` (of the classes), `terms_`.

    For `LTLearner.fit_stage1` alone. Reads `learn.model`, `learn.dls`, `learn.epoch`,
    `learn.n_epoch`. Writes, in training, `learn.dl`, `learn.xb`, `learn.yb`, `learn.loss` and
    `learn.loss_grad`; and `learn.opt`, whose group of the head has the parameters of the other
    layers for the length of the fit.

    Args:
        resample: k, at least 0, no unit. The second batch shows an image with a probability in
            proportion to n ** -k of its class: 0 all images alike, 1 all classes.
        reweight: rho, at least 0, no unit. The re-balanced head weights a class by n ** -rho, with
            mean 1 over the classes that have images; one that has none weighs 0.
        contrast: gamma, the weight of the consistency, at least 0, no unit.
        projection: Outputs of the projection, at least 1; None takes 128 for fewer than 1024
            features, else 256.

    Raises:
        UserError: If an option is not allowed or, in a fit, the learner is no LTLearner with
            long-tailed data in stage 1, the loss is not plain cross-entropy, which GLMC would
            replace, or another callback mixes images or re-weights the loss.

    Source:
        Du et al., CVPR 2023, arXiv:2305.08661; mixes and schedule as in the authors' code. The
        published values for CIFAR-LT: resample 0 to 0.2, reweight 1 to 1.2, contrast 1 to 6; for
        ImageNet-LT and iNaturalist 0.2, 1, 10.
    """

    # After the callback that sets the mode, before those that scale the loss or collect it.
    order = -4
    leaves_prior = False
    run_valid = False

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
        self._forget()

    @property
    def terms_(self) -> dict[str, Tensor]:
        """Means of the terms over the images of the epoch so far, on their device; none at first.

        Keys are "balanced", "rebalanced" and "consistency".
        """
        if not self._images:
            return {}
        means = self._sums / self._images
        return dict(zip(("balanced", "rebalanced", "consistency"), means, strict=True))

    def before_fit(self):
        """Make the other layers and the loader; give the layers to the optimiser."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
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
        # Undone in `close`, which comes when fastai has taken the learner away already.
        self._undo.callback(setattr, learn, "dl", train)
        self._undo.callback(layers.zero_grad)
        _join_optimizer(learn.opt, model.head, layers)
        self._undo.callback(exchange_parameters, learn.opt, layers, nn.Module())
        self._undo.callback(self._unhook)
        # fastai's loaders draw from Python's generator when they are made.
        state = random.getstate()
        pairs = train.new(cls=_PairLoader, sampler=train.sampler)
        random.setstate(state)
        seed = mix_seed(train.seed, _OTHER)
        self._pairs = pairs.use(_InversePowerSampler(train.dataset.targets, seed, self.resample))
        self._generator = torch.Generator()

    def before_train(self):
        """Read the pairs of the epoch, in place of the training loader."""
        self._pairs.set_epoch(self.learn.epoch, self.learn.n_epoch)
        self.learn.dl = self._pairs
        self._sums.zero_()
        self._images = 0

    def before_batch(self):
        """Mix; the global mix is what the model sees."""
        x, other_x = (half.chunk(2) for half in self.learn.xb[0].chunk(2))
        share, box = self._draw(*x[0].shape[-2:])
        y, other_y = self.learn.yb
        self._batch = mix_locally(x[1], other_x[1], box), other_y, share
        # For one pass alone: who copies the model in the middle of a fit gets no hook of ours.
        self._unhook()
        self._hook = self.learn.model.backbone.register_forward_hook(self._keep_features)
        self.learn.xb, self.learn.yb = (mix_globally(x[0], other_x[0], share),), (y,)

    def after_loss(self):
        """Run the model over the local mix, and put GLMC's loss in the place of the learner's."""
        learn, features = self.learn, self._features
        (x, other, share), (first,) = self._batch, learn.yb
        with learn.autocast():
            local = learn.model.backbone(x)
            rebalanced = learn.model.head(local)
            # These layers treat each row alone, so both mixes go through them at once.
            features = torch.cat([features, local])
            balanced, projected = self.balanced_(features), self.projection_(features)
            predicted = self.predictor_(projected)
        rebalanced = torch.cat([learn.pred, rebalanced.to(learn.pred.dtype)])
        terms = glmc_terms(
            balanced, rebalanced, projected, predicted, first, other, share, self.weights_
        )
        alpha = 1 - (learn.epoch / learn.n_epoch) ** 2
        learn.loss_grad = alpha * terms[0] + (1 - alpha) * terms[1] + self.contrast * terms[2]
        learn.loss = learn.loss_grad.clone()
        # On the device, without waiting for it.
        self._sums.add_(torch.stack(terms).detach(), alpha=len(first))
        self._images += len(first)
        self._features = self._batch = None

    def after_train(self):
        """Log the terms."""
        if self._images and _log.isEnabledFor(logging.INFO):
            said = ", ".join(f"{name} {mean:.4f}" for name, mean in self.terms_.items())
            _log.info("epoch %d: GLMC's terms: %s", self.learn.epoch + 1, said)

    def after_fit(self):
        """Take the other layers out of the optimiser."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Take the other layers out of the optimiser, also after a fit that was interrupted."""
        self._undo.close()
        self._forget()

    def _forget(self) -> None:
        """Let go of what a fit alone needs."""
        self._pairs = self._generator = self._hook = self._features = self._batch = None

    def _make_layers(self, head: nn.Module, seed: int) -> nn.ModuleList:
        width, classes = head.in_features, head.out_features
        inner = self.projection or (128 if width < 1024 else 256)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds every device as well.
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

    def _draw(self, height: int, width: int) -> tuple[float, tuple[slice, slice]]:
        """Draw the share and the box of a batch, on the CPU."""
        where = self._pairs.seed, self.learn.epoch, self.learn.iter, _MIX
        generator = self._generator.manual_seed(mix_seed(*where))
        share = torch.rand((), dtype=torch.float64, generator=generator).item()
        centre = [torch.randint(size, (), generator=generator).item() for size in (height, width)]
        return share, cut_box(height, width, share, centre)


def _check(learn) -> None:
    """Raise a `UserError` unless GLMC can train this learner."""
    train = learn.dls.train
    readable = hasattr(getattr(train, "dataset", None), "get_batch") or hasattr(
        getattr(train, "dataset", None), "get_views"
    )
    ours = isinstance(learn.model, LTModel) and hasattr(type(learn), "autocast")
    if not ours or not isinstance(train, LTDataLoader) or not readable or not train.training:
        raise UserError(
            "GLMC trains backbone and classifier on images: pass it to fit_stage1 of an LTLearner "
            "with LTDataLoaders (lt_learner makes one), not to stage 2 or to another Learner."
        )
    if not _is_cross_entropy(learn.loss_func):
        name = getattr(learn.loss_func, "__name__", type(learn.loss_func).__name__)
        raise UserError(
            f"GLMC has a training loss of its own, and {name} would be ignored: leave the loss "
            "out, or take a learner with plain cross-entropy."
        )
    for cb in learn.cbs:
        if isinstance(cb, MixHandler | BatchMixUp | BatchCutMix | DeferredReweighting):
            raise UserError(
                f"GLMC mixes images and re-weights classes by itself: leave {type(cb).__name__} "
                "out."
            )


def _is_cross_entropy(loss) -> bool:
    """Tell whether a loss is the mean cross-entropy, without weights or smoothing."""
    if isinstance(loss, BaseLoss):
        loss = loss.func
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss.weight is None and not loss.label_smoothing
    return loss is F.cross_entropy


def _join_optimizer(opt, head: nn.Module, layers: nn.Module) -> None:
    """Put the parameters of new layers at the end of the head's group of an optimiser."""
    groups = [list(group) for group in opt.param_lists]
    of_head = {id(p) for p in head.parameters()}
    # Splitters may leave out what is frozen.
    found = [i for i, group in enumerate(groups) if any(id(p) in of_head for p in group)]
    groups[found[0] if found else -1] += layers.parameters()
    opt.param_lists = groups
    twins = dict(head.named_parameters())
    for name, p in layers.named_parameters():
        twin = twins.get(name.rpartition(".")[2])
        # fastai notes beside a parameter whether weight decay passes it by.
        opt.state[p] = {k: v for k, v in opt.state.get(twin, {}).items() if k == "do_wd"}
        # torch's SGD in one kernel wants the momentum of all parameters of a group or of none.
        state = opt.opt.state if hasattr(opt, "opt") else {}
        if state.get(twin, {}).get("momentum_buffer") is not None:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
