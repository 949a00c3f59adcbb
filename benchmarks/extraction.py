"""Images per second of an extraction of features, eager and through `FeatureBank(compile=True)`.

    python benchmarks/extraction.py [--archs resnet32_cifar ...] [--precision bf16] [--json]

Both run the same batches, in turns in one process on one thread, with the channels last in memory
as `lt_learner` orders them. A time is the least of all turns, in processor seconds; reading images
is not counted. "first" is the compilation of a network that torch's cache folder does not know,
"again" the next one, with other weights. "pays from" is the number of images at which the first
compilation is made up for. "setup" is what inductor does once for an empty cache folder.
"difference" is the largest one of the features, relative to the largest feature.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import nullcontext
from resource import RUSAGE_CHILDREN, getrusage

import torch

from ltlearn.models.pretrained import create_lt_model
from ltlearn.training.compiled import FrozenCall

ARCHS = [
    "resnet32_cifar", "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "convnext_tiny",
    "vit_small_patch16_224",
]  # fmt: skip


def seconds() -> float:
    """Return the processor seconds of this process and of the C++ compilers that it ran."""
    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds_of(function, *args) -> float:
    began = seconds()
    function(*args)
    return seconds() - began


def set_up() -> float:
    """Compile a tiny network in an empty cache folder; return the seconds."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    with torch.inference_mode():
        return seconds_of(FrozenCall(net, 2), torch.randn(2, 3, 8, 8))


def compile_twice(model, batch) -> tuple[FrozenCall, float, float]:
    """Return the compiled call, and the seconds of the first compilation and of the next one."""
    taken = []
    for _ in range(2):
        next(model.parameters()).mul_(1.01)  # other weights than before
        call = FrozenCall(model, len(batch))
        together = seconds_of(call, batch)
        if call.compiled is None:
            raise SystemExit("the warning above has the reason.")
        taken.append(together - seconds_of(call, batch))
    return call, *taken


def measure(arch: str, precision: str, batches: int, rounds: int) -> dict:
    torch.manual_seed(0)
    model = create_lt_model(arch, 10, False).backbone.to(memory_format=torch.channels_last)
    side = 32 if arch.endswith("_cifar") else 224
    size = 64 if side == 32 else 8
    x = [
        torch.randn(size, 3, side, side).to(memory_format=torch.channels_last)
        for _ in range(batches)
    ]
    for _ in range(3):  # running statistics as after a training
        model.train()(x[0])
    model.eval()
    bf16 = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.inference_mode(), bf16:
        call, first, again = compile_twice(model, x[0])
        best = {"eager": float("inf"), "compiled": float("inf")}
        for _ in range(rounds):
            for name, function in (("eager", model), ("compiled", call)):
                taken = seconds_of(lambda f=function: [f(batch) for batch in x])
                best[name] = min(best[name], taken / (batches * size))
        plain, compiled = model(x[-1]).float(), call(x[-1]).float()
    saved = best["eager"] - best["compiled"]
    return {
        "arch": arch,
        "images_per_second": round(1 / best["eager"], 1),
        "compiled": round(1 / best["compiled"], 1),
        "times_as_fast": round(best["eager"] / best["compiled"], 2),
        "first": round(first, 1),
        "again": round(again, 1),
        "pays_from": round(first / saved) if saved > 0 else None,
        "difference": float(f"{(compiled - plain).abs().max() / plain.abs().max():.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=ARCHS)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # so that its seconds are counted
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        setup = round(set_up(), 1)
        if not args.json:
            print(f"{args.precision}, setup {setup}", flush=True)
        for arch in args.archs:
            rows.append(measure(arch, args.precision, args.batches, args.rounds))
            if not args.json:
                line = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in rows[-1].items())
                print(line, flush=True)
    if args.json:
        about = {"torch": torch.__version__, "precision": args.precision, "setup": setup}
        print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
