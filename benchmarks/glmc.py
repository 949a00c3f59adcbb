"""Images per second of `fit_stage1(cbs=GLMC())` against a plain PyTorch loop, in turns.

    python benchmarks/glmc.py [--images 1280] [--batch 64] [--width 16] [--repeats 5] [--json]

Both take the same steps: four views of a batch in one operation, the two mixes, two passes of a
ResNet-32 over 32 pixels, two heads, the consistency, SGD with momentum. Model, precision and memory
format are those that LTLearner chose. Validation is not counted. The rounds alternate in one
process, after one of each that warms up; --processes gives each a process of its own.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time

import torch
from stage1 import TrainTimer, make_learner
from torch import nn
from torch.nn import functional as F

from ltlearn import GLMC

NAMES = ("ltlearn", "plain")


def ltlearn_seconds(learn) -> float:
    timer = TrainTimer()
    learn.fit_stage1(1, 0.01, wd=5e-3, cbs=[timer, GLMC(0.2, 1.2, 1.0)])
    return timer.seconds


def plain_seconds(learn) -> float:
    """One epoch of the method, written out in plain PyTorch over the same images."""
    learn.model.requires_grad_(True)
    model, train = learn.model.train(), learn.dls.train
    augment, targets = train.dataset.augment, train.dataset.targets
    mean, std = learn.dls.normalize.mean, learn.dls.normalize.std
    counts = torch.bincount(targets).float()
    omega = counts**-1.2
    omega = len(counts) * omega / omega.sum()
    width = model.head.in_features
    balanced, projection = nn.Linear(width, len(counts)), nn.Linear(width, 128)
    predictor = nn.Linear(128, 128)
    layers = nn.ModuleList([model, balanced, projection, predictor])
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-3, "fused": True}
    opt = torch.optim.SGD(layers.parameters(), **settings)
    generator = torch.Generator().manual_seed(0)
    alpha = 0.75
    start = time.perf_counter()
    order = torch.randperm(len(targets), generator=generator)
    shares = counts[targets] ** -0.2
    others = torch.multinomial(shares, len(targets), replacement=True, generator=generator)
    for index, other in zip(order.split(train.bs), others.split(train.bs), strict=True):
        images = torch.cat([index, index, other, other])
        x = augment(images, augment.draw(len(images), generator))
        x = x.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)
        x1, x2, o1, o2 = x.chunk(4)
        y, other_y = targets[index], targets[other]
        share = torch.rand((), generator=generator).item()
        side = x.shape[-1]
        half = math.ceil(side * math.sqrt(1 - share)) // 2
        row, col = torch.randint(side, (2,), generator=generator).tolist()
        rows = slice(max(row - half, 0), min(row + half, side))
        cols = slice(max(col - half, 0), min(col + half, side))
        x_g = share * x1 + (1 - share) * o1
        x2[:, :, rows, cols] = o2[:, :, rows, cols]
        with torch.autocast(
            "cpu", dtype=learn.autocast_dtype, enabled=learn.autocast_dtype is not None
        ):
            f_g, f_l = model.backbone(x_g), model.backbone(x2)
            logits = [(balanced(f).float(), model.head(f).float()) for f in (f_g, f_l)]
            h_g, h_l = projection(f_g), projection(f_l)
            u_g, u_l = predictor(h_g).float(), predictor(h_l).float()
        loss = 0
        for even, heavy in logits:
            for who, part in ((y, share), (other_y, 1 - share)):
                loss = loss + alpha * part * F.cross_entropy(even, who)
                losses = F.cross_entropy(heavy, who, weight=omega, reduction="none")
                loss = loss + (1 - alpha) * part * losses.mean()
        loss = loss - F.cosine_similarity(u_g, h_l.detach().float()).mean()
        loss = loss - F.cosine_similarity(u_l, h_g.detach().float()).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    return time.perf_counter() - start


RUNS = {"ltlearn": ltlearn_seconds, "plain": plain_seconds}


def measure(args: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Return the seconds of each round, in one process, and the precision."""
    learn = make_learner(args.images, batch=args.batch, width=args.width)
    seconds = {name: [] for name in NAMES}
    for repeat in range(args.repeats + 1):
        for name in NAMES if repeat % 2 else NAMES[::-1]:
            taken = RUNS[name](learn)
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    return seconds, learn.precision


def measure_apart(args: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Return the same, with a process for each; one runs at a time."""
    command = [sys.executable, "-W", "ignore", __file__, "--images", str(args.images)]
    command += ["--batch", str(args.batch), "--width", str(args.width), "--worker"]
    processes = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in NAMES
    }
    precision = {p.stdout.readline().strip() for p in processes.values()}.pop()
    seconds = {name: [] for name in NAMES}
    for repeat in range(args.repeats + 1):
        for name, process in processes.items():
            print("go", file=process.stdin, flush=True)
            taken = float(process.stdout.readline())
            if repeat:
                seconds[name].append(taken)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return seconds, precision


def worker(args: argparse.Namespace) -> None:
    """Run a round each time a line comes in, and answer with its seconds."""
    learn = make_learner(args.images, batch=args.batch, width=args.width)
    print(learn.precision, flush=True)
    for _ in sys.stdin:
        print(RUNS[args.worker](learn), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    seconds, precision = (measure_apart if args.processes else measure)(args)
    # Paired by round, so that a change of the machine's speed touches both sides.
    ratios = [b / a for a, b in zip(seconds["ltlearn"], seconds["plain"], strict=True)]
    result = {
        "images_per_second": {
            name: round(args.images / statistics.median(s), 1) for name, s in seconds.items()
        },
        "ltlearn_over_plain_loop": round(statistics.median(ratios), 3),
        "rounds": [round(r, 3) for r in ratios],
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
    print(f"ltlearn / plain loop: {result['ltlearn_over_plain_loop']:.3f} ({result['rounds']})")


if __name__ == "__main__":
    main()
