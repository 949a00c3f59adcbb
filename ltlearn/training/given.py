"""A model that was trained elsewhere: its normalisation, its class order, and a check of both.

The check comes second in this module: `check_given` and the functions below it.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ltlearn.data.benchmarks.cifar import CIFAR_STATS
from ltlearn.data.datasets import NormalizeUint8
from ltlearn.data.images import natural_key
from ltlearn.data.needs_images import has_features
from ltlearn.defaults import IMAGENET_STATS
from ltlearn.errors import UserError, spell
from ltlearn.models.backbone import LTModel, evaluating
from ltlearn.models.kept_head import reorder_outputs
from ltlearn.models.origin import Origin, match_outputs
from ltlearn.models.pretrained import LoadedModel, load_lt_model

__all__ = [
    "AsGiven",
    "check_given",
    "default_arch",
    "describe_origin",
    "describe_weights",
    "make_model",
]

_log = logging.getLogger("ltlearn")
_IDENTITY = "identity"  # the architecture over features that the user has
_IMAGES = 384  # images that the check looks at, as many of each class as possible
_FIRST_IMAGES = 128  # images on which another normalisation is tried at first
_MOST_CLASSES = 512
_MOST_BYTES = 1 << 28  # pixels in memory
_BATCH = 64
_GOOD = 0.97  # with this accuracy, nothing else is tried
_FEW_BATCHES = 30  # after so few batches, running statistics are still near their start
# How many times as many images must be right with another normalisation if the model has no batch
# normalisation, whose statistics depend on the input: weak models can gain from another contrast.
_FAR_BETTER = 2.0
_SURE = 3.5  # standard deviations of a difference on the same images
_COMMON_STATS = {
    "ImageNet's": IMAGENET_STATS,
    "CIFAR's": CIFAR_STATS,
    "Inception's": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "the plain": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class AsGiven:
    """How a given model classifies images before anything is changed.

    Args:
        accuracy: Share of right answers, from 0 to 1, on training images with the classes alike.
        images: How many images.
        warnings: What looks wrong, a sentence each.
    """

    accuracy: float
    images: int
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return (
            f"as given, the model classifies {100 * self.accuracy:.1f} % of {self.images:,} "
            "training images right (mean over classes)"
        )


def default_arch(dls) -> str:
    """Return the architecture if none is named: the identity for features, else ResNet-50.

    Args:
        dls: Long-tailed data.
    """
    return _IDENTITY if has_features(dls) else "resnet50"


def make_model(
    dls, arch: str, pretrained, options: Mapping[str, Any], **model_kwargs
) -> LoadedModel:
    """Create a model for the data, normalise the data as its weights need, and order its outputs.

    The statistics are, in this order, those given with the data, those that the file of the weights
    or a file beside it states, those of timm's configuration, or ImageNet's.

    Args:
        dls: Long-tailed data; its normalisation is set.
        arch: As for `lt_learner`.
        pretrained: As for `lt_learner`.
        options: `keep_head`, `weights_key` and `classes` of `lt_learner`.
        **model_kwargs: Arguments of `timm.create_model`.

    Raises:
        UserError: As `lt_learner` does.
    """
    if has_features(dls):
        return _over_features(dls, arch, pretrained, {**options, **model_kwargs})
    options = dict(options)
    classes = options.pop("classes")
    keeps = options["keep_head"]
    if classes is not None and not keeps:
        raise UserError(
            f"{spell('classes')} names the outputs of a classifier that is kept; give "
            f"{spell('keep_head', True)} as well, or leave it out."
        )
    loaded = load_lt_model(arch, dls.c, pretrained, tuple(dls.size), options, **model_kwargs)
    origin = _normalise(dls, loaded.origin)
    if keeps:
        origin = _order(loaded.model.head, origin, classes, dls.vocab)
    else:
        origin = replace(origin, classes=None, classes_from="")
    for line in describe_origin(origin):
        _log.info("%s", line)
    return LoadedModel(loaded.model, origin)


def _over_features(dls, arch: str, pretrained, options: Mapping[str, Any]) -> LoadedModel:
    """Return a model whose backbone passes on the features that the user has."""
    given = {"arch": arch != _IDENTITY and arch}
    given |= {"pretrained": isinstance(pretrained, str | Path) and pretrained, **options}
    for name, value in given.items():
        if value:
            raise UserError(
                f"{spell(name, value)} is for a network, but the data are features, which need "
                "none; leave it out."
            )
    head = nn.Linear(dls.train.dataset.shape[0], dls.c)
    # Features of images are from trained weights, or a classifier on them would be of no use.
    return LoadedModel(LTModel(nn.Identity(), head), Origin(trained=True))


def _normalise(dls, origin: Origin) -> Origin:
    """Set the statistics of the data; return the origin with those in force."""
    if dls.stats_given:
        mean, std = map(tuple, dls.normalize.stats)
        return replace(origin, mean=mean, std=std, stats_from="the data, as given", is_stated=False)
    if not origin.trained:
        if getattr(dls, "stats_of_model", False):  # of a model before this one
            dls.normalize.set(*IMAGENET_STATS)
        mean, std = IMAGENET_STATS
        return replace(origin, mean=mean, std=std, stats_from="ImageNet, for random weights")
    dls.normalize.set(origin.mean, origin.std)
    dls.stats_of_model = True
    return origin


def _order(head, origin: Origin, classes: Sequence[str] | None, vocab: Sequence[str]) -> Origin:
    """Put the outputs of a given classifier into the order of the data's classes."""
    if classes is not None:
        if isinstance(classes, str):
            raise UserError(f"classes must be a list of class names, got {classes!r}.")
        origin = replace(origin, classes=tuple(map(str, classes)), classes_from="as given")
    if origin.classes is None:
        return replace(
            origin, classes=tuple(map(str, vocab)), classes_from="assumed, nothing states it"
        )
    order = match_outputs(origin.classes, vocab, origin.classes_from)
    if order != list(range(len(order))):
        reorder_outputs(head, order)
    return origin


def describe_origin(origin: Origin, size: int | None = None) -> list[str]:
    """Describe how the images are normalised, and the order of the outputs; a line for each.

    Args:
        origin: The origin of a learner's model.
        size: Side of images that are cropped for evaluation; None if they are only resized.
    """
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (origin.mean, origin.std))
    lines = [f"normalisation: mean {mean}; std {std}; from {origin.stats_from}"]
    if origin.classes is not None:
        names = list(origin.classes)
        shown = ", ".join(names if len(names) <= 12 else [*names[:11], f"... {names[-1]}"])
        lines.append(f"order of the model's outputs: {shown}; {origin.classes_from}")
    ours = 0.875 if size else 1.0
    if origin.crop is not None and (abs(origin.crop - ours) > 1e-3):
        how = f", {origin.interpolation}" if origin.interpolation else ""
        lines.append(
            f"evaluation: timm crops {origin.crop:g} of the image{how}; here it is {ours:g}, "
            "bilinear, so the accuracy may differ a little"
        )
    return lines


def describe_weights(learn) -> dict[str, str]:
    """Return the facts that a file of a learner's weights holds beside them, as text.

    Args:
        learn: An `LTLearner`.
    """
    mean, std = learn.dls.normalize.stats
    classes = [str(name) for name in learn.dls.vocab]
    facts = {"arch": learn.arch, "mean": mean, "std": std, "classes": classes}
    # One key, because safetensors writes several in a random order.
    return {"config": json.dumps(facts)}


@torch.no_grad()
def check_given(learn) -> AsGiven | None:
    """Measure a given model before anything is changed, and warn where it looks misused.

    It looks at a few hundred training images without augmentation, as many of each class as
    possible. A warning is logged if far more of them would be right with the outputs in another
    order, or with another usual normalisation.

    Args:
        learn: An `LTLearner` with a given model.

    Returns:
        The result; None if the learner's images pass through transforms of the user's own.
    """
    dls = learn.dls
    steps = getattr(dls.valid.after_batch, "fs", ())
    if any(not isinstance(step, NormalizeUint8) for step in steps):
        return None
    index, targets = _choose_images(np.asarray(dls.train.dataset.targets), dls.size)
    pixels = _read(dls.train.dataset, index)
    stats = learn.origin.mean, learn.origin.std
    logits = _logits(learn, pixels, stats)
    predicted = logits.argmax(1).cpu().numpy()
    right = (predicted == targets).astype(float)
    warnings = []
    if right.mean() < _GOOD:
        found = []
        if _is_mature(learn.model):
            found.append(_find_order(predicted, targets, right, dls.vocab))
            if not learn.origin.is_stated:
                found.append(_find_statistics(learn, pixels, targets, logits, stats))
        # Either fault can look like the other: the remedy that helps more is the likely one.
        found = [one for one in found if one is not None]
        warnings = [max(found)[1]] if found else []
    for warning in warnings:
        _log.warning("%s", warning)
    result = AsGiven(float(right.mean()), len(targets), tuple(warnings))
    _log.info("%s", result)
    return result


def _choose_images(targets: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Choose images evenly, as many of each class as possible; return their indices and classes."""
    most = max(2 * _BATCH, min(_IMAGES, _MOST_BYTES // (3 * size[0] * size[1])))
    classes = np.unique(targets)
    if len(classes) > _MOST_CLASSES:
        classes = classes[np.linspace(0, len(classes) - 1, _MOST_CLASSES).astype(int)]
    per_class = max(2, most // len(classes))
    chosen = []
    for c in classes:
        own = np.flatnonzero(targets == c)
        chosen.append(own[np.linspace(0, len(own) - 1, min(per_class, len(own))).astype(int)])
    index = np.concatenate(chosen)
    return index, targets[index]


def _read(dataset, index: np.ndarray) -> Tensor:
    """Return images without augmentation, (N, 3, H, W), uint8."""
    if hasattr(dataset, "get_batch"):
        return dataset.get_batch(index)[0]
    return torch.stack([dataset.get(int(i))[0] for i in index])


def _logits(learn, pixels: Tensor, stats: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    normalize, device = NormalizeUint8(*stats), learn.dls.device
    parts = []
    with evaluating(learn.model):
        for batch in pixels.split(_BATCH):
            (x,) = normalize.encodes((batch.to(device),))
            with learn.autocast_context():
                parts.append(learn.model(x).float())
    return torch.cat(parts)


def _is_mature(model: torch.nn.Module) -> bool:
    """Return whether batch normalisation has seen enough batches for its statistics to hold.

    A model that is hardly trained answers at random in evaluation mode, and then a wrong use of it
    can be right more often than the right one.
    """
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    seen = max((int(n) for m in norms if (n := m.num_batches_tracked) is not None), default=0)
    if not norms or seen >= _FEW_BATCHES:
        return True
    # Some files do not record how many batches were seen.
    return seen == 0 and any(bool(m.running_mean.any()) for m in norms)


def _is_better(new: np.ndarray, old: np.ndarray, least: float) -> bool:
    """Return whether more images are right, by a share of at least `least`, and not by chance."""
    gain = (new - old).sum()
    return gain >= least * len(old) and gain > _SURE * np.sqrt(np.abs(new - old).sum())


def _find_order(
    predicted: np.ndarray, targets: np.ndarray, right: np.ndarray, vocab: Sequence[str]
) -> tuple[float, str] | None:
    """Return a warning, and the accuracy, if another order of the outputs makes far more right.

    The order is fitted on one half of the images and counted on the other, and the reverse: a fit
    to the same images would raise the accuracy of any weak model.
    """
    n = len(vocab)
    half = np.zeros(len(targets), dtype=bool)
    for c in np.unique(targets):
        own = np.flatnonzero(targets == c)
        half[own[::2]] = True
    moved = np.zeros(len(targets))
    for fitted in (half, ~half):
        output_of = _assign(predicted[fitted], targets[fitted], n)
        moved[~fitted] = predicted[~fitted] == output_of[targets[~fitted]]
    if not _is_better(moved, right, 0.1):
        return None
    remedy = (
        f"give the names of the classes in the order of the model's outputs as {spell('classes')}"
    )
    # The usual orders of names: as text (folders), by number (tables), without regard to case.
    names = [str(name) for name in vocab]
    orders = {
        "text": sorted(names),
        "numbers": sorted(names, key=natural_key),
        "letters": sorted(names, key=str.casefold),
    }
    for order in orders.values():
        output_of = np.array([order.index(name) for name in names])
        if (predicted == output_of[targets]).mean() > 0.9 * moved.mean():
            shown = ", ".join(order[:11]) + (", ..." if len(order) > 11 else "")
            remedy += f"; it looks like {shown}"
            break
    text = (
        f"the outputs of the given model seem to follow another order of the classes: "
        f"{100 * right.mean():.0f} % of {len(right)} training images are right, and "
        f"{100 * moved.mean():.0f} % in another order; {remedy}."
    )
    return float(moved.mean()), text


def _assign(predicted: np.ndarray, targets: np.ndarray, n: int) -> np.ndarray:
    """Return the output of each class by the best one-to-one assignment of outputs to classes."""
    counts = np.zeros((n, n))
    np.add.at(counts, (targets, predicted), 1)
    # Of equal assignments, the one that changes least.
    rows, columns = linear_sum_assignment(counts + 1e-3 * np.eye(n), maximize=True)
    output_of = np.empty(n, dtype=int)
    output_of[rows] = columns
    return output_of


def _find_statistics(
    learn, pixels: Tensor, targets: np.ndarray, logits: Tensor, stats
) -> tuple[float, str] | None:
    """Return a warning, and the accuracy, if another usual normalisation makes far more right."""
    share = learn.dls.shot_counts.double().numpy()[targets]
    share = share / np.bincount(targets)[targets]  # counts each image for all of its class
    classes = torch.from_numpy(targets).to(logits.device)

    def figures(some: Tensor, index: np.ndarray) -> tuple[np.ndarray, float, float]:
        own = classes[torch.from_numpy(index).to(logits.device)]
        right = (some.argmax(1) == own).cpu().numpy().astype(float)
        weights = share[index] / share[index].sum()
        loss = torch.nn.functional.cross_entropy(some, own, reduction="none").cpu().numpy()
        return right, float((right * weights).sum()), float((loss * weights).sum())

    every = np.arange(len(targets))
    first = every[:: max(1, len(every) // _FIRST_IMAGES)]
    best = None
    for name, other in _COMMON_STATS.items():
        if np.allclose(np.array(other), np.array(stats), atol=0.02):
            continue
        for index in (first, every):
            before = figures(logits[torch.from_numpy(index).to(logits.device)], index)
            after = figures(_logits(learn, pixels[torch.from_numpy(index)], other), index)
            # A wrong normalisation may favour rare classes; it does not improve everything.
            is_sure = index is every
            if not (
                after[1] > before[1]
                and after[2] < before[2]
                and after[0].mean() >= before[0].mean() + 0.02
                and (not is_sure or _is_better(after[0], before[0], 0.05))
            ):
                break
            if is_sure and (best is None or after[0].mean() > best[2]):
                best = name, before[0].mean(), after[0].mean(), other
    has_norm = any(getattr(m, "running_mean", None) is not None for m in learn.model.modules())
    if best is None or not (has_norm or best[2] >= _FAR_BETTER * best[1]):
        return None
    name, before, after, (mean, std) = best
    numbers = "; ".join(", ".join(f"{v:g}" for v in values) for values in (mean, std))
    text = (
        f"the images seem to be normalised otherwise than the given model expects: "
        f"{100 * before:.0f} % of {len(targets)} training images are right, and {100 * after:.0f} "
        f"% with {name} mean and std ({numbers}); give the mean and std of its training as "
        f"{spell('stats')}."
    )
    return float(after), text
