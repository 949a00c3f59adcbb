"""Extraction of features with batch normalisation folded into convolutions, against the network.

    python benchmarks/extraction.py [--archs resnet32_cifar resnet50 ...] [--rounds 5] [--json]

Both run the same batches, in turns in one process on one thread; a time is the least of all turns,
in processor seconds. "difference" is the largest of the features, relative to the largest feature.
"""

import argparse
import json
import time

import torch

from ltlearn.models.backbone import evaluating
from ltlearn.models.folding import folded_batch_norm
from ltlearn.models.pretrained import create_lt_model

SIDES = {"resnet32_cifar": 32, "resnet20_cifar": 32}


def measure(arch: str, batches: int, rounds: int) -> dict:
    torch.manual_seed(0)
    model = create_lt_model(arch, 10, False).backbone
    side = SIDES.get(arch, 224)
    size = 64 if side == 32 else 8
    x = torch.randn(batches, size, 3, side, side)
    for _ in range(3):  # running statistics as after a training
        model.train()(x[0])
    best = {"plain": float("inf"), "folded": float("inf")}
    with evaluating(model), torch.inference_mode():
        expected = model(x[-1])
        for _ in range(rounds):
            began = time.process_time()
            for batch in x:
                model(batch)
            best["plain"] = min(best["plain"], time.process_time() - began)
            with folded_batch_norm(model) as run:
                began = time.process_time()
                for batch in x:
                    out = run(batch)
                best["folded"] = min(best["folded"], time.process_time() - began)
    difference = float((out - expected).abs().max() / expected.abs().max())
    return {
        "arch": arch,
        "images_per_second": round(batches * size / best["plain"], 1),
        "times_as_fast": round(best["plain"] / best["folded"], 3),
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    archs = ["resnet32_cifar", "resnet50", "efficientnet_b0", "mobilenetv3_large_100"]
    parser.add_argument("--archs", nargs="+", default=archs)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(arch, args.batches, args.rounds) for arch in args.archs]
    if args.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}))
        return
    for row in rows:
        print(
            ", ".join(
                f"{key} {value:.3g}" if key != "arch" else value for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
