"""Adapt a small transformer to other classes, and go on after a kill: that it works, no accuracy.

    python benchmarks/adapt.py CIFAR [--method adaptformer] [--images 500] [--first 3] [--epochs 4]
        [--json]

CIFAR is a folder that `LTDataLoaders.from_dataset` reads both sets of. A transformer of four blocks
is trained on CIFAR-10-LT from random weights, for the epochs of `--first`: the trunk. The method
adapts it to CIFAR-100-LT. It is compared with a linear classifier on the frozen trunk. Another
training is ended within its last epoch and goes on from its checkpoint; its weights must be those
of the one that was never ended, bit for bit.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastai.callback.core import Callback

ARCH = "vit_tiny_patch16_224"
SMALL = {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
LR = 1e-3  # of AdamW, for the trunk


class End(Exception):
    """Ends a training, as a kill does."""


class EndAt(Callback):
    """End a training after some steps of an epoch."""

    def __init__(self, epoch: int, step: int):
        self.at = epoch, step

    def after_batch(self):
        if self.training and (self.epoch, self.iter) == self.at:
            raise End("ended by the benchmark")


def make_learner(args, name: str, weights):
    from ltlearn import LTDataLoaders, lt_learner

    torch.manual_seed(0)
    n_max = args.images * (10 if name == "cifar10_lt" else 1)
    dls = LTDataLoaders.from_dataset(name, args.data, n_max=n_max)
    return lt_learner(dls, ARCH, weights, **SMALL)


def adapt(args, trunk: Path, **options):
    learn = make_learner(args, "cifar100_lt", trunk)
    learn.fit_stage1(args.epochs, args.lr, method=args.method, **options)
    return learn


def measure(args, folder: Path) -> dict:
    from fastai.optimizer import OptimWrapper

    def adamw(params, lr, **kwargs):
        return OptimWrapper(params, torch.optim.AdamW, lr=lr, weight_decay=0.05)

    trunk = folder / "trunk.pth"
    learn = make_learner(args, "cifar10_lt", False)
    record = learn.fit_stage1(args.first, LR, wd=0.05, opt_func=adamw, warmup_epochs=1)
    torch.save(learn.model.backbone.state_dict(), trunk)
    report = {"trunk on CIFAR-10-LT": [round(100 * v, 1) for v in record["balanced"]]}

    frozen = make_learner(args, "cifar100_lt", trunk)
    report["linear probe"] = [
        round(100 * v, 1) for v in frozen.fit_stage1(method="probe")["balanced"][-1:]
    ]
    began = time.perf_counter()
    whole = adapt(args, trunk)
    report["seconds"] = round(time.perf_counter() - began, 1)
    report[args.method] = [round(100 * v, 1) for v in whole.trajectory["balanced"]]
    report["loss"] = [round(v, 3) for v in whole.trajectory["loss"]]
    try:
        adapt(args, trunk, cbs=EndAt(args.epochs - 1, 2), resume=folder / "checkpoint")
    except End:
        pass
    # A checkpoint is refused for other callbacks; this one never ends the training.
    never = EndAt(args.epochs, 0)
    resumed = adapt(args, trunk, cbs=never, resume=folder / "checkpoint")
    pairs = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    report["resumed is equal"] = all(torch.equal(a, b) for a, b in pairs)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", default="adaptformer")
    parser.add_argument("--images", type=int, default=500, help="of the largest class of 100")
    parser.add_argument("--first", type=int, default=3, help="epochs of the trunk")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("ltlearn").setLevel(logging.WARNING)
    with TemporaryDirectory() as folder:
        report = measure(args, Path(folder))
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:>22} {value}")


if __name__ == "__main__":
    main()
