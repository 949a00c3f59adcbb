"""Images per second of `LTLearner.fit_stage1` against plain PyTorch loops, in turns.

    python benchmarks/stage1.py [--images 2560] [--batch 64] [--width 16] [--repeats 5] [--json]

Model (a ResNet-32), images (32 pixels), batch size and optimiser are the same: crop and flip, SGD
with momentum. "resident" is LTLearner without the events of a step. "same" is a plain loop with the
precision and memory format that LTLearner chose; "fp32" is a plain loop with contiguous float32.
Validation is not counted. Each has a process of its own, because what the allocator learned from
one loop speeds up the next; one runs at a time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from fastai.callback.core import Callback
from torch.nn import functional as F

from ltlearn import LTDataLoaders, lt_learner

NAMES = ("ltlearn", "resident", "same", "fp32")


class TrainTimer(Callback):
    """Seconds of the training half of each epoch."""

    order = -100

    def before_train(self):
        self.start = time.perf_counter()

    def after_train(self):
        self.seconds = time.perf_counter() - self.start


def make_learner(
    images: int,
    precision: str = "auto",
    channels_last: bool = True,
    batch: int = 64,
    width: int = 16,
):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images + 64, 32, 32, 3), dtype=np.uint8)
    targets = np.arange(images + 64) % 10
    dls = LTDataLoaders.from_arrays(
        pixels[:images], targets[:images], valid=(pixels[images:], targets[images:]), bs=batch
    )
    torch.manual_seed(0)
    return lt_learner(
        dls,
        "resnet32_cifar",
        pretrained=False,
        width=width,
        precision=precision,
        channels_last=channels_last,
    )


def ltlearn_seconds(learn, resident: str = "never") -> float:
    timer = TrainTimer()
    learn.resident = resident
    learn.fit_stage1(1, 0.01, cbs=timer)
    return timer.seconds


def plain_seconds(learn, dtype: torch.dtype | None, memory_format) -> float:
    """A plain loop over the same pixels, with the same batched crop and flip."""
    model = learn.model.to(memory_format=memory_format).train()
    augment, targets = learn.dls.train.dataset.augment, learn.dls.train.dataset.targets
    mean, std = learn.dls.normalize.mean, learn.dls.normalize.std
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for index in torch.randperm(len(targets), generator=generator).split(learn.dls.train.bs):
        x = augment(index, augment.draw(len(index), generator)).to(
            torch.float32, memory_format=memory_format
        )
        x = x.sub_(mean).div_(std)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            out = model(x)
        loss = F.cross_entropy(out.float(), targets[index])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return time.perf_counter() - start


def worker(name: str, images: int, batch: int, width: int) -> None:
    """Run a round each time a line comes in, and answer with its seconds."""
    learn = make_learner(
        images, *(("fp32", False) if name == "fp32" else ("auto", True)), batch, width
    )
    runs = {
        "ltlearn": lambda: ltlearn_seconds(learn),
        "resident": lambda: ltlearn_seconds(learn, "always"),
        "same": lambda: plain_seconds(learn, learn.autocast_dtype, torch.channels_last),
        "fp32": lambda: plain_seconds(learn, None, torch.contiguous_format),
    }
    print(learn.precision, flush=True)
    for _ in sys.stdin:
        print(runs[name](), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.images, args.batch, args.width)
    command = [sys.executable, "-W", "ignore", __file__, "--images", str(args.images)]
    command += ["--batch", str(args.batch), "--width", str(args.width), "--worker"]
    processes = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in NAMES
    }
    precision = {name: p.stdout.readline().strip() for name, p in processes.items()}["ltlearn"]
    seconds = {name: [] for name in NAMES}
    for repeat in range(args.repeats + 1):
        for name, process in processes.items():
            print("go", file=process.stdin, flush=True)
            taken = float(process.stdout.readline())
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    rate = {name: args.images / statistics.median(s) for name, s in seconds.items()}
    # Paired by round, so that a change of the machine's speed touches both sides.
    ratio = {
        other: statistics.median(
            b / a for a, b in zip(seconds["ltlearn"], seconds[other], strict=True)
        )
        for other in NAMES[1:]
    }
    result = {
        "images_per_second": {k: round(v, 1) for k, v in rate.items()},
        "resident_loop_over_ltlearn": round(1 / ratio["resident"], 3),
        "ltlearn_over_same_precision_loop": round(ratio["same"], 3),
        "ltlearn_over_fp32_loop": round(ratio["fp32"], 3),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"width {args.width}, batches of {args.batch}, {precision}, {result['threads']} threads")
    print("images per second:")
    for name, value in result["images_per_second"].items():
        print(f"  {name:8} {value:10.1f}")
    print(f"resident loop / ltlearn:                    {1 / ratio['resident']:.3f}")
    print(f"ltlearn / plain loop of the same precision: {ratio['same']:.3f}")
    print(f"ltlearn / plain contiguous fp32 loop:       {ratio['fp32']:.3f}")


if __name__ == "__main__":
    main()
