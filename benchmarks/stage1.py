"""Images per second of `LTLearner.fit_stage1` against plain PyTorch loops, in one process.

    python benchmarks/stage1.py [--images 2560] [--repeats 5] [--json]

Model, pictures, batch size and optimiser are the same: ResNet-32 of width 16, 64 pictures of 32
pixels a batch, crop and flip, SGD with momentum. "same" is a plain loop with the precision and
memory format that LTLearner chose; "fp32" is a plain loop with contiguous float32. Validation is
not counted.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from fastai.callback.core import Callback
from torch.nn import functional as F

from ltlearn import LTDataLoaders, lt_learner


class TrainTimer(Callback):
    """Seconds of the training half of each epoch."""

    order = -100

    def before_train(self):
        self.start = time.perf_counter()

    def after_train(self):
        self.seconds = time.perf_counter() - self.start


def make_learner(images: int, precision: str = "auto", channels_last: bool = True):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images + 64, 32, 32, 3), dtype=np.uint8)
    targets = np.arange(images + 64) % 10
    dls = LTDataLoaders.from_arrays(
        pictures[:images], targets[:images], valid=(pictures[images:], targets[images:]), bs=64
    )
    torch.manual_seed(0)
    return lt_learner(
        dls, "resnet32_cifar", pretrained=False, precision=precision, channels_last=channels_last
    )


def ltlearn_seconds(learn) -> float:
    timer = TrainTimer()
    learn.fit_stage1(1, 0.01, cbs=timer)
    return timer.seconds


def plain_seconds(learn, dtype: torch.dtype | None, memory_format) -> float:
    """A plain loop over the same pictures, with the same batched crop and flip."""
    model = learn.model.to(memory_format=memory_format).train()
    augment, targets = learn.dls.train.dataset.augment, learn.dls.train.dataset.targets
    mean, std = learn.dls.normalize.mean, learn.dls.normalize.std
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for index in torch.randperm(len(targets), generator=generator).split(64):
        x = augment(index, generator).to(torch.float32, memory_format=memory_format)
        x = x.sub_(mean).div_(std)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            out = model(x)
        loss = F.cross_entropy(out.float(), targets[index])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ours, same = make_learner(args.images), make_learner(args.images)
    slow = make_learner(args.images, "fp32", channels_last=False)
    runs = {
        "ltlearn": lambda: ltlearn_seconds(ours),
        "same": lambda: plain_seconds(same, same._dtype, torch.channels_last),
        "fp32": lambda: plain_seconds(slow, None, torch.contiguous_format),
    }
    seconds = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            taken = run()
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    rate = {name: args.images / statistics.median(s) for name, s in seconds.items()}
    # Paired by round, so that a change of the machine's speed touches both sides.
    ratio = {
        other: statistics.median(
            b / a for a, b in zip(seconds["ltlearn"], seconds[other], strict=True)
        )
        for other in ("same", "fp32")
    }
    result = {
        "images_per_second": {k: round(v, 1) for k, v in rate.items()},
        "ltlearn_over_same_precision_loop": round(ratio["same"], 3),
        "ltlearn_over_fp32_loop": round(ratio["fp32"], 3),
        "precision": ours.precision,
        "threads": torch.get_num_threads(),
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"precision {result['precision']}, {result['threads']} threads, images per second:")
    for name, value in result["images_per_second"].items():
        print(f"  {name:8} {value:10.1f}")
    print(f"ltlearn / plain loop of the same precision: {ratio['same']:.3f}")
    print(f"ltlearn / plain contiguous fp32 loop:       {ratio['fp32']:.3f}")


if __name__ == "__main__":
    main()
