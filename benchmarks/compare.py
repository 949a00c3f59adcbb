"""Time `compare_classifiers` over all methods, in this version and in another one.

    python benchmarks/compare.py [--against /path/to/other/checkout | --together] [--rounds 3]
        [--json] [--classes 100] [--width 64] [--images 10847] [--valid 1000] [--test 10000]
        [--seeds 1]

The data are random, with a long tail of imbalance 100. The features are cached before the clock
starts, so a time covers stage 2, evaluation and intervals. Each version runs in a process of its
own. Both stay alive, use one thread and take turns, so that the machine is equally busy for both. A
ratio is the median over the turns, once for seconds on the clock and once for processor seconds,
which other processes hardly change. The row of a method has the seconds of both versions, and the
largest differences of accuracies and of norms (relative).

With `--together`, this version runs twice: methods and seeds together, and each training alone. The
ratio is then the seconds alone divided by the seconds together. Post-hoc methods are left out.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def make_learner(args):
    import torch
    from torch import nn

    from ltlearn import LTDataLoaders
    from ltlearn.learner import LTLearner

    try:
        from ltlearn.models.backbone import LTModel
    except ImportError:  # an early version
        from ltlearn.models.cut import LTModel

    rng = np.random.default_rng(0)
    share = 0.01 ** (np.arange(args.classes) / (args.classes - 1))
    centres = rng.normal(128, 12, (args.classes, 8, 8, 3))

    def draw(images: int, p=None):
        labels = np.arange(images) % args.classes
        labels[args.classes :] = rng.choice(args.classes, images - args.classes, p=p)
        pixels = centres[labels] + rng.normal(0, 40, (images, 8, 8, 3))
        return pixels.clip(0, 255).astype(np.uint8), labels

    tail = share / share.sum()
    dls = LTDataLoaders.from_arrays(
        *draw(args.images, tail), valid=draw(args.valid, tail), test=draw(args.test),
        classes=[str(c) for c in range(args.classes)], bs=64,
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, args.width), nn.ReLU())
    learn = LTLearner(dls, LTModel(backbone, nn.Linear(args.width, args.classes)))
    # The classifier is trained, as after stage 1, and is the same in every version.
    features = learn.features("train")
    x, y = torch.from_numpy(features.views[0]).float(), torch.as_tensor(features.targets)
    optimizer = torch.optim.SGD(learn.model.head.parameters(), lr=0.05, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(learn.model.head(x), y).backward()
        optimizer.step()
    return learn


def work(args) -> None:
    """Answer each line of stdin, names of methods, with one line of JSON."""
    logging.getLogger("ltlearn").setLevel(logging.ERROR)
    import torch

    from ltlearn.methods import METHODS

    torch.set_num_threads(1)
    learn, answers = make_learner(args), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not mix with the answers
    # The methods that begin from plain training.
    kinds = {name: m.kind for name, m in METHODS.items() if not getattr(m, "after", None)}
    kinds = {name: kind for name, kind in kinds.items() if kind != "stage 1" or name == "ce"}
    print(json.dumps(kinds), file=answers, flush=True)
    for line in sys.stdin:
        names = json.loads(line)
        began = time.perf_counter(), time.process_time()
        options = {"batched": args.batched} if args.batched else {}
        comparison = learn.compare_classifiers(names, args.seeds, **options)
        comparison.differences()
        ended = time.perf_counter(), time.process_time()
        seconds, of_processor = np.subtract(ended, began).tolist()
        rows = {
            f"{o.method} {o.seed}": {
                "seconds": o.seconds,
                "accuracy": [o.report.all, o.report.balanced],
                "norms": np.asarray(o.norms, dtype=float).tolist(),
            }
            for o in comparison.outcomes
        }
        answer = {"seconds": seconds, "processor": of_processor, "rows": rows}
        print(json.dumps(answer), file=answers, flush=True)


class Version:
    """A process that runs the comparison with the library of one checkout."""

    def __init__(self, folder: Path, arguments: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.methods = self._answer()

    def run(self, methods: list[str]) -> dict:
        print(json.dumps(methods), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a version ended with an error, which is printed above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def difference(row: dict, other: dict) -> list[float]:
    """Return the largest difference of the accuracies, and of the norms, relative."""
    accuracy = np.abs(np.subtract(row["accuracy"], other["accuracy"])).max()
    if not row["norms"] or len(row["norms"]) != len(other["norms"]):
        return [float(accuracy), float("nan")]
    return [float(accuracy), float(np.abs(np.divide(row["norms"], other["norms"]) - 1).max())]


def measure(args) -> dict:
    passed = [
        f"--{name}={getattr(args, name)}"
        for name in ("classes", "width", "images", "valid", "test", "seeds")
    ]
    sides = [(ROOT, passed)] + ([(args.against.resolve(), passed)] if args.against else [])
    if args.together:
        sides = [(ROOT, [*passed, f"--batched={how}"]) for how in ("always", "never")]
    versions = [Version(*side) for side in sides]
    kinds = versions[0].methods
    names = [m for m in kinds if all(m in v.methods for v in versions)]
    if args.together:
        names = [m for m in names if kinds[m] != "post hoc"]
    for version in versions:
        version.run(["ce", "crt", "samn"])  # warm up
    results = [[] for _ in versions]
    for turn in range(args.rounds):
        order = range(len(versions)) if turn % 2 else reversed(range(len(versions)))
        for k in order:
            results[k].append(versions[k].run(names))
    for version in versions:
        version.close()
    report = {"methods": len(names)}
    for clock in ("seconds", "processor"):
        times = [[r[clock] for r in of] for of in results]
        report[clock] = [round(statistics.median(of), 2) for of in times]
        if len(versions) > 1:
            ratios = [b / a for a, b in zip(*times, strict=True)]
            report[f"{clock}_times_as_fast"] = round(statistics.median(ratios), 2)
    last = [of[-1] for of in results]
    report["by_method"] = {k: [round(v["seconds"], 2)] for k, v in last[0]["rows"].items()}
    if len(versions) > 1:
        for name, values in report["by_method"].items():
            other = last[1]["rows"][name]
            values += [round(other["seconds"], 2), *difference(last[0]["rows"][name], other)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--together", action="store_true", help="against each training alone")
    parser.add_argument("--batched", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--width", type=int, default=64, help="D of the features")
    parser.add_argument("--images", type=int, default=10847)
    parser.add_argument("--valid", type=int, default=1000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    report = measure(args)
    if args.json:
        print(json.dumps(report))
        return
    for name, values in report.pop("by_method").items():
        print(f"{name:>32}", *(f"{value:9.2g}" for value in values))
    print(", ".join(f"{key} {value}" for key, value in report.items()))


if __name__ == "__main__":
    main()
