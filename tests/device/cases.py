"""List every method and every option that changes a step, and count on the pretended device."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import Adam

from ltlearn.callbacks import (
    GLMC,
    SAMN,
    BatchMixUp,
    CosineHead,
    DeferredReweighting,
    LastBlock,
    MaxNorm,
    SharpnessAware,
    WeightAverage,
)
from ltlearn.losses import BalancedSoftmaxLoss, ClassBalancedLoss, LDAMLoss
from ltlearn.methods import METHODS
from ltlearn.training import together
from ltlearn.training.loop import listed_callbacks
from ltlearn.training.stacked import StackedEpoch
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.device.simcuda import STATE

__all__ = [
    "EVENTS",
    "POST_HOC",
    "STAGE1",
    "STAGE2",
    "TOGETHER",
    "Counts",
    "count_steps",
    "count_together",
    "make_learner",
]

Make = Callable[[], dict]


def _method(name: str) -> Make:
    return lambda: {"method": name}


# Arguments of `fit_stage1`, made anew for each fit.
STAGE1: dict[str, Make] = {
    **{name: _method(name) for name, m in METHODS.items() if m.kind == "stage 1"},
    # The weights begin before the last epoch, whose steps are counted.
    "ldam_drw_stage1": lambda: {"method": "ldam_drw_stage1", "options": {"start_pct": 0.5}},
    "sharpness-aware": lambda: {"cbs": SharpnessAware()},
    "GLMC, resampled": lambda: {"cbs": GLMC(resample=0.5)},
    "weight average": lambda: {"cbs": WeightAverage()},
    "on_nan=skip": lambda: {"on_nan": "skip"},
    "flip, best": lambda: {"flip": True, "select": "best"},
    "multistep, warm-up": lambda: {
        "schedule": "multistep", "milestones": [1], "warmup_epochs": 1, "lr": [0.01, 0.1],
    },
    "class-balanced": lambda: {"sampler": "class_balanced"},
    "progressive": lambda: {"sampler": "progressive"},
    "balanced softmax": lambda: {"loss": BalancedSoftmaxLoss()},
    "class-balanced loss": lambda: {"loss": ClassBalancedLoss()},
    "LDAM-DRW": lambda: {"loss": LDAMLoss(), "cbs": [CosineHead(), DeferredReweighting(1)]},
    "SAMN": lambda: {"cbs": SAMN()},
    "MaxNorm, each step": lambda: {"cbs": MaxNorm(when="step")},
    "accumulated": lambda: {"cbs": GradientAccumulation(16)},
    "clipped": lambda: {"cbs": GradientClip(1.0)},
    "MixUp, averaged": lambda: {"cbs": [BatchMixUp(), WeightAverage()]},
    "fastai's Adam": lambda: {"opt_func": Adam},
}  # fmt: skip

# Cases with fastai's own callbacks and optimisers, which need the events of a step, and the probe,
# whose fit of the head alone is no loop of the image learner.
EVENTS = {"accumulated", "clipped", "fastai's Adam", "probe"}

# Arguments of `retrain_classifier`.
STAGE2: dict[str, Make] = {
    **{name: _method(name) for name, m in METHODS.items() if m.kind == "stage 2"},
    "SAMN, forward": lambda: {"cbs": SAMN(project="forward")},
    "SAMN, on images": lambda: {"cbs": SAMN(), "views": 0},
    "SAMN, two views": lambda: {"cbs": SAMN(), "views": 2},
    "SAMN, bn=train": lambda: {"cbs": SAMN(), "bn": "train", "flip": True},
    "SAMN, bn=last_block": lambda: {"cbs": SAMN(), "bn": "last_block"},
    "SAMN, skip": lambda: {"cbs": SAMN(), "on_nan": "skip"},
    "last block": lambda: {"cbs": LastBlock(), "views": 0},
    "best, constant": lambda: {"select": "best", "schedule": "constant"},
    "Adam": lambda: {"opt_func": Adam},
}  # fmt: skip

# Methods whose trainings of a comparison take their steps together.
TOGETHER = [
    name
    for name, m in METHODS.items()
    if m.kind == "stage 2" and m.after is None and m.values.get("epochs") != 0
]

POST_HOC = [n for n, m in METHODS.items() if m.kind == "post hoc" and m.head != "experts"]


@dataclass
class Counts:
    """What a training step waits for and launches.

    A line that waits, or an operation that is launched, counts as often as it happens in each step;
    what an epoch does once is left out.

    Args:
        steps: Steps of the epoch that was counted.
        waits: Waits in a step, by the reason and the line that asks for it.
        launches: Launches in a step, by the operation.
        copies: Asynchronous copies to the device in a step, by the line.
    """

    steps: int = 0
    waits: Counter = field(default_factory=Counter)
    launches: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)

    def read(self, steps: int) -> None:
        """Read the counters of the device after some steps."""
        self.steps = steps
        for found, counter in (
            (self.waits, STATE.syncs),
            (self.launches, STATE.launches),
            (self.copies, STATE.async_h2d),
        ):
            found.update({key: n // steps for key, n in counter.items() if n >= steps})

    @property
    def for_batch(self) -> int:
        """Return the waits for the copy of a batch to the device."""
        return sum(n for (_, where), n in self.waits.items() if _copies_batch(where))

    @property
    def others(self) -> dict:
        """Return the waits for anything else."""
        return {key: n for key, n in self.waits.items() if not _copies_batch(key[1])}


def _copies_batch(where: str) -> bool:
    """Return whether a line is fastai's copy of a batch."""
    return where.startswith("fastai/torch_core.py") and "_inner" in where


class _Begin(Callback):
    """Begin to count where the steps of the last epoch begin. It handles no event of a step."""

    order = 200

    def __init__(self, counts):
        self.counts = counts

    def before_train(self):
        if self.learn.epoch == self.learn.n_epoch - 1:
            STATE.reset()


class _End(_Begin):
    order = -200

    def before_train(self):
        """Begin nothing."""

    def after_train(self):
        if self.learn.epoch == self.learn.n_epoch - 1:
            self.counts.read(len(self.learn.dls.train))


def make_learner(dls_options: dict | None = None, resident: str = "never", **kwargs):
    """Return a learner of a tiny network on the pretended device."""
    learn = make_lt_learner(make_dls(device="cuda", **(dls_options or {})), **kwargs)
    learn.resident = resident
    return learn


def count_steps(stage: int, learn, options: dict, epochs: int = 2) -> Counts:
    """Train some epochs, and count a step of the last one.

    Args:
        stage: 1 calls `fit_stage1`, 2 `retrain_classifier`.
        learn: The learner, on the pretended device.
        options: Arguments of that method.
        epochs: Epochs, at least 2; the first one captures.
    """
    counts = Counts()
    fit = learn.fit_stage1 if stage == 1 else learn.retrain_classifier
    # So that an epoch on cached features has several steps.
    given = dict(options) if stage == 1 else {"bs": 8, **options}
    cbs = listed_callbacks(given.pop("cbs", None))
    fit(epochs, given.pop("lr", 0.01), cbs=[*cbs, _Begin(counts), _End(counts)], **given)
    return counts


def count_together(learn, names: list[str], seeds: int = 1) -> Counts:
    """Train methods and seeds together for an epoch, and count a step of all of them.

    Args:
        learn: The learner, on the pretended device.
        names: Names of methods.
        seeds: Trainings of each method.
    """
    counts = Counts()

    class Counted(StackedEpoch):
        def run(self):
            STATE.reset()
            super().run()
            counts.read(7)

    requests = {
        (name, seed): {"method": name, "seed": seed, "view_seed": 0, "epochs": 1, "bs": 8}
        for name in names
        for seed in range(seeds)
    }
    with patch.object(together, "StackedEpoch", Counted):
        assert len(together.retrain_together(learn, requests)) == len(requests)
    return counts
