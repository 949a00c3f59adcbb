"""Which stage 2 under SAMN is good at its last epoch, on frozen features of long-tailed sets?

    python benchmarks/samn_last_epoch.py extract FOLDER CIFAR-100-LT.npz --weights FILE
    python benchmarks/samn_last_epoch.py table CIFAR-100-LT.npz --json table.json
    python benchmarks/samn_last_epoch.py extract FOLDER CE.npz --run RUN
    python benchmarks/samn_last_epoch.py table CE.npz --factors 100 --json table.json
    python benchmarks/samn_last_epoch.py plot CIFAR-10-LT.npz plot.png

FOLDER has the folders train and test (or val), each with a folder per class, whose images are the
first of each class at imbalance 10 or less. "table" cuts each set at the imbalance factors, trains
a linear classifier as stage 1 for each seed, which also draws the validation images, and then every
method on it. "table" prints class-balanced accuracy on the test images, and the differences to two
rivals with 95 % intervals over test images: SAMN as published at the epoch that is best *on the
test images*, and logit adjustment with tau chosen on validation images. After "extract --run",
network and classifier are the stage 1 of a run on the first images of each class. The seeds are
then those of stage 2, and the validation images are the next images of each class, 50 at most,
which the network has never seen. "plot" shows the accuracy of each class before and after SAMN from
stage 1, with the first seed.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import timm
import torch
from fastai.callback.core import Callback
from PIL import Image

from ltlearn import LTDataLoaders, lt_learner
from ltlearn.compare import compare
from ltlearn.data.counts import long_tail_counts
from ltlearn.data.images import natural_key
from ltlearn.data.splits import select_long_tail
from ltlearn.experiments.manifest import recorded_recipe
from ltlearn.experiments.stages import load_stage1
from ltlearn.metrics.paired import paired_difference
from ltlearn.models.pretrained import create_lt_model
from ltlearn.plots import plot_per_class_accuracy
from ltlearn.training.scaled_features import Scaling
from ltlearn.training.stage2 import SQUARED_LENGTH
from ltlearn.utils.run_folder import Run

RIVAL = "logit_adjustment"
METHOD_NAMES = (
    RIVAL, "prior_matching", "crt", "balanced_softmax", "samn", "samn_logit_adjusted",
    "samn_from_stage1", "samn_smoothed_adjusted",
)  # fmt: skip
BEST_ON_TEST = "samn, best on test"


def balanced(right: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """Return the mean over the classes of the share of images that are right."""
    return float(np.mean([right[targets == c].mean() for c in range(classes)]))


@dataclass
class Rows:
    """Which test images each method gets right, a row per run."""

    targets: np.ndarray
    classes: int
    right: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, correct: np.ndarray) -> None:
        """Add a run of a method."""
        self.right.setdefault(name, []).append(np.asarray(correct, dtype=float))

    def accuracy(self, name: str) -> float:
        """Return the class-balanced accuracy in %, the mean over the runs."""
        return 100 * balanced(np.mean(self.right[name], axis=0), self.targets, self.classes)

    def difference(self, name: str, rival: str) -> dict[str, float | None]:
        """Return the difference of two methods in points, with its interval."""
        found = paired_difference(
            np.stack(self.right[name]), np.stack(self.right[rival]), self.targets, self.classes
        )
        values = {"estimate": found.estimate, "low": found.low, "high": found.high}
        return {k: None if v is None else round(100 * float(v), 2) for k, v in values.items()}


class OnTest(Callback):
    """Which test images each epoch gets right, the start included."""

    order = 90

    def __init__(self, learn, scaled):
        features, self.right = learn.features("test"), []
        self.x = torch.tensor(np.asarray(features.views[0])).float()
        if scaled:  # as stage 2 sees the features after a probe
            scaling = Scaling.to_length(learn.features("train"), SQUARED_LENGTH)
            self.x = scaling.scale_(self.x)
        self.targets = features.targets

    def before_fit(self):
        """Look at the start."""
        self.look()

    def after_epoch(self):
        """Look at an epoch."""
        self.look()

    @torch.no_grad()
    def look(self):
        """Add which images are right."""
        predicted = self.learn.model.head(self.x).argmax(1)
        self.right.append((predicted == self.targets).numpy())


def cut(
    x: np.ndarray, y: np.ndarray, factor: float, rest: bool
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the first images of each class at an imbalance factor, and the next of each class.

    With `rest`, a tenth of the images of the most frequent class are left over.
    """
    present = np.bincount(y)
    rank = np.argsort(np.argsort(-present, kind="stable"), kind="stable")
    n_max = int(present.max() * (0.9 if rest else 1))
    counts = long_tail_counts(n_max, len(present), factor)
    counts = [
        min(int(counts[r]), int(0.9 * n)) if rest else int(counts[r])
        for r, n in zip(rank, present, strict=True)
    ]
    kept = select_long_tail(y, counts)
    most = max(int(present.max()) // 10, 50)
    left = [np.flatnonzero(y == c)[n : n + most] for c, n in enumerate(counts)]
    left = np.concatenate(left)
    return (x[kept], y[kept]), (x[left], y[left])


def measure(name: str, factor: float, args) -> tuple[Rows, dict]:
    """Train and test all methods on one set."""
    with np.load(name) as file:
        x, y, x_test, y_test = (file[key] for key in ("x", "y", "x_test", "y_test"))
        given = {key: torch.tensor(file[key]) for key in ("weight", "bias") if key in file}
    (x, y), left = cut(x, y, factor, args.rest)
    test = left if args.rest else (x_test, y_test)
    rows, methods = None, list(dict.fromkeys([RIVAL, *args.methods]))
    for seed in range(args.stage1_seeds):
        valid = left if given else None
        dls = LTDataLoaders.from_features(x, y, valid=valid, test=test, seed=seed)
        learn = lt_learner(dls)
        if given:
            learn.model.head.load_state_dict(given)
        else:
            learn.fit_stage1(method="probe")
        found = compare(learn, methods, select="last", stage1_seed=seed, first_seed=seed)
        rows = rows or Rows(np.asarray(found.targets), dls.c)
        for outcome in found.outcomes:
            rows.add(outcome.method, outcome.correct)
        seen = OnTest(learn, scaled=not given)
        learn.retrain_classifier(method="samn", seed=seed, select="last", cbs=seen)
        best = max(seen.right, key=lambda right: balanced(right, rows.targets, dls.c))
        rows.add(BEST_ON_TEST, best)
    return rows, {"images": len(y), "classes": rows.classes}


def table(args) -> None:
    """Print the table of each set, and add it to the file."""
    for path in args.files:
        for factor in args.factors:
            began = time.perf_counter()
            rows, facts = measure(path, factor, args)
            made = {"set": f"{Path(path).stem} {factor:g}", **facts, "rows": []}
            for name in rows.right:
                row = {"method": name, "accuracy": round(rows.accuracy(name), 2)}
                for key, rival in (("to_best", BEST_ON_TEST), ("to_adjusted", RIVAL)):
                    if name != rival:
                        row[key] = rows.difference(name, rival)
                made["rows"].append(row)
            print_set(made, time.perf_counter() - began)
            if args.json:
                add_to(args.json, made, args)


def add_to(file: Path, made: dict, args) -> None:
    """Write the table of a set to the file, in place of an earlier one of the same set."""
    sets = json.loads(file.read_text())["sets"] if file.exists() else []
    sets = [one for one in sets if one["set"] != made["set"]]
    text = {
        "command": "python benchmarks/samn_last_epoch.py table FILE",
        "commit": args.commit, "seeds": args.stage1_seeds, "sets": [*sets, made],
    }  # fmt: skip
    file.write_text(json.dumps(text, indent=1) + "\n")


def print_set(made: dict, seconds: float) -> None:
    """Print the table of a set."""
    print(f"{made['set']}: {made['images']} images, {made['classes']} classes, {seconds:.0f} s")
    for row in sorted(made["rows"], key=lambda row: -row["accuracy"]):
        to_best, to_adjusted = (describe(row.get(key)) for key in ("to_best", "to_adjusted"))
        print(
            f"  {row['method']:30s} {row['accuracy']:6.2f}  {to_best:24s} {to_adjusted}", flush=True
        )


def describe(difference: dict | None) -> str:
    """Return a difference with its interval as text; too few test images have no interval."""
    if difference is None:
        return ""
    estimate, low, high = (difference[key] for key in ("estimate", "low", "high"))
    return f"{estimate:+5.2f} " + ("[–]" if low is None else f"[{low:+.2f}, {high:+.2f}]")


def plot(args) -> None:
    """Write the plot of the accuracy of each class before and after SAMN from stage 1."""
    with np.load(args.file) as file:
        x, y, x_test, y_test, classes = (file[k] for k in ("x", "y", "x_test", "y_test", "classes"))
    (x, y), _ = cut(x, y, args.factor, rest=False)
    dls = LTDataLoaders.from_features(x, y, test=(x_test, y_test), classes=classes.tolist(), seed=0)
    learn = lt_learner(dls)
    learn.fit_stage1(method="probe")
    before = learn.shot_report("test")
    learn.retrain_classifier(method="samn_from_stage1", select="last", seed=0)
    after = learn.shot_report("test")
    print(before, after, sep="\n")
    figure = plot_per_class_accuracy(before.per_class, after.per_class, dls.class_counts, classes)
    figure.savefig(args.out, dpi=150, bbox_inches="tight")


def extract(args) -> None:
    """Write the features of a folder's images, those of a class in natural order."""
    torch.set_num_threads(args.threads)
    classes = sorted(folder.name for folder in (args.folder / "train").iterdir())
    made: dict[str, np.ndarray] = {"classes": np.array(classes)}
    if args.run:
        run = Run(args.run)
        learn = load_stage1(recorded_recipe(run), run, seed=0, device="cpu")
        model, head = learn.model.backbone.eval(), learn.model.head
        made |= {key: value.numpy() for key, value in head.state_dict().items()}
        facts = {"mean": learn.origin.mean, "std": learn.origin.std}
        args.size = learn.dls.size[0]
    else:
        model = create_lt_model(args.arch, num_classes=2, pretrained=args.weights).backbone.eval()
        facts = timm.data.resolve_data_config({}, model=model)
    mean, std = (torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    test = "test" if (args.folder / "test").is_dir() else "val"
    for part, ending in (("train", ""), (test, "_test")):
        files = [
            (file, number)
            for number, name in enumerate(classes)
            for file in sorted(
                (f for f in (args.folder / part / name).rglob("*") if f.is_file()),
                key=lambda f: natural_key(f.name),
            )
        ]
        found = []
        for start in range(0, len(files), 64):
            pixels = [read(file, args.size) for file, _ in files[start : start + 64]]
            batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                found.append(model((batch - mean) / std).float())
        made["x" + ending] = torch.cat(found).numpy()
        made["y" + ending] = np.array([number for _, number in files])
        print(f"{part}: {len(files)} images", flush=True)
    np.savez(args.out, **made)


def numbers(text: str) -> list[float]:
    """Return numbers that commas separate."""
    return [float(part) for part in text.split(",")]


def read(file: Path, size: int) -> np.ndarray:
    """Return the pixels of an image, (size, size, 3)."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("table")
    one.add_argument("files", nargs="+")
    one.add_argument("--factors", type=numbers, default=[10, 50, 100], help="such as 10,100")
    one.add_argument("--stage1-seeds", type=int, default=5)
    one.add_argument("--json", type=Path, help="file that the table of each set is added to")
    one.add_argument("--commit", help="the commit of this code, for the file")
    one.add_argument("--rest", action="store_true", help="test on left-over training images")
    one.add_argument("--methods", type=lambda text: text.split(","), default=METHOD_NAMES)
    one.set_defaults(call=table)
    one = commands.add_parser("plot")
    one.add_argument("file", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--factor", type=float, default=100)
    one.set_defaults(call=plot)
    two = commands.add_parser("extract")
    two.add_argument("folder", type=Path)
    two.add_argument("out", type=Path)
    two.add_argument("--run", type=Path, help="finished run: its stage 1 is network and classifier")
    two.add_argument("--arch", default="tf_efficientnet_lite0")
    two.add_argument("--weights", default=True, help="file of weights; else timm's own")
    two.add_argument("--size", type=int, default=96)
    two.add_argument("--threads", type=int, default=2)
    two.set_defaults(call=extract)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
