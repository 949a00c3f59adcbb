"""Which stage 2 under SAMN is as good at its last epoch as published SAMN at its best one?

    python benchmarks/samn_presets.py search RUN...   # validation images alone: last epochs
    python benchmarks/samn_presets.py test RUN...     # then once: the presets on the test images

RUN is a folder of `ltlearn recipe` under the clean protocol, its stage 1 finished. "search" prints
class-balanced accuracy on the carved validation images, in points above post-hoc logit adjustment
with its tau chosen there, for samplers, losses and rates under `SAMN()`, alone and followed by
logit adjustment ("+adj"). "test" prints the last epoch of each preset in the table of methods
against SAMN's best epoch *on the test set* and against logit adjustment, with the 95 % interval
over test images, three seeds each.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback

from ltlearn import SAMN
from ltlearn.compare import compare
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.stages import load_stage1
from ltlearn.losses import LabelAwareSmoothingLoss, LogitAdjustedLoss
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.metrics.paired import paired_difference
from ltlearn.utils.run_folder import Run

PRESETS = (
    "samn_start", "samn_start_adjusted", "samn_logit_adjusted", "samn_class_balanced",
    "samn_class_balanced_adjusted", "samn_smoothed_adjusted", "samn_small_lr",
)  # fmt: skip
LOSSES = {
    "ce": lambda: None,
    "logit-adjusted": LogitAdjustedLoss,
    "smoothed": lambda: LabelAwareSmoothingLoss(head_smoothing=0.3, tail_smoothing=0.0),
}
SEEDS = 3


def open_run(path: str, cache: str | None):
    run = Run(Path(path))
    recipe = Recipe.model_validate(run.read_json("manifest.json")["values"])
    return load_stage1(recipe, run, 0, cache_path=cache)


def balanced(learn) -> float:
    logits, targets = learn.predict_logits("valid")
    return 100 * mean_class_accuracy(logits.argmax(1), targets, learn.dls.c)


def search(learn) -> dict[str, float]:
    stage1 = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.correct_classifier("logit_adjustment")
    base, found = balanced(learn), {}
    samplers, rates = ("instance", "square_root", "class_balanced"), (5e-4, 5e-3, 2.5e-2)
    for sampler, loss, rate in product(samplers, LOSSES, rates):
        name = f"{sampler} {loss} {rate:g}"
        learn.model.load_state_dict(stage1)
        learn.retrain_classifier(
            10, rate, sampler=sampler, loss=LOSSES[loss](), cbs=SAMN(), select="last", view_seed=0
        )
        found[name] = balanced(learn) - base
        learn.correct_classifier("logit_adjustment", start="current")
        found[f"{name} +adj"] = balanced(learn) - base
    return found


class _OnTest(Callback):
    """Which test images every epoch gets right, the start included."""

    order = 90

    def __init__(self, features):
        self.x, self.right = torch.from_numpy(np.asarray(features.views[0])).float(), []
        self.targets = features.targets

    def before_fit(self):
        self.look()

    def after_epoch(self):
        self.look()

    @torch.no_grad()
    def look(self):
        predicted = self.learn.model.head(self.x).argmax(1)
        self.right.append((predicted == self.targets).numpy())


def test(learn) -> None:
    found = compare(learn, ["logit_adjustment", "samn", *PRESETS], SEEDS, select="last")
    stage1 = {k: v.clone() for k, v in learn.model.state_dict().items()}
    targets, classes = found.targets, learn.dls.c
    best = []
    for seed in range(SEEDS):
        learn.model.load_state_dict(stage1)
        seen = _OnTest(learn.features("test"))
        learn.retrain_classifier(method="samn", seed=seed, view_seed=0, select="last", cbs=seen)
        accuracy = [
            np.mean([right[targets == c].mean() for c in range(classes)]) for right in seen.right
        ]
        epoch = int(np.argmax(accuracy))
        print(f"samn, seed {seed}: best on test {100 * accuracy[epoch]:.1f} (epoch {epoch})")
        best.append(seen.right[epoch])
    for name in PRESETS:
        runs = [o.correct for o in found.of(name)]
        runs += runs[-1:] * (SEEDS - len(runs))
        to_best = paired_difference(np.stack(runs), np.stack(best), targets, classes)
        to_adjusted = found.difference(name, "logit_adjustment")
        words = [
            f"{100 * d.estimate:+5.1f} "
            + ("[no interval]" if d.low is None else f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]")
            for d in (to_best, to_adjusted)
        ]
        print(f"{name:30s} to SAMN's best on test {words[0]:22s} to logit adjustment {words[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", "test"))
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--cache", help="folder of cached features")
    args = parser.parse_args()
    tables = []
    for path in args.runs:
        learn = open_run(path, args.cache)
        if args.what == "test":
            print(path)
            test(learn)
        else:
            tables.append(search(learn))
    if tables:
        print("mean over the runs, then each run: points above logit adjustment")
        order = sorted(tables[0], key=lambda n: -sum(t[n] for t in tables))
        for name in order:
            values = [t[name] for t in tables]
            each = "  ".join(f"{v:+5.1f}" for v in values)
            print(f"{np.mean(values):+5.1f}  {each}  {name}")


if __name__ == "__main__":
    main()
