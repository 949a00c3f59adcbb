"""Largest difference of the logits of exported models, by architecture, head and kind of export.

    python benchmarks/export_matrix.py [--archs NAME ...] [--heads NAME ...] [--json]

Each model has random weights, statistics of batch normalisation that have seen images, and a head
of each kind with random values. Each export is loaded again (timm from the folder, onnxruntime,
`torch.jit.load`) and compared on batches of 1, 2 and 5 random images. "–": the head cannot be
folded into a linear layer, and timm holds no other. Largest logit: what the differences relate to.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from ltlearn import CosineLinear, SAMNLinear, ScaledLinear, UserError
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.source import ExportSource, Preprocessing
from ltlearn.exporting.timm_folder import export_timm_folder
from ltlearn.exporting.torchscript_file import export_torchscript_file
from ltlearn.models import create_lt_model
from ltlearn.posthoc import nearest_class_mean

COUNTS = [500, 300, 120, 60, 30, 12, 5, 2]
# Architecture -> side of its images.
ARCHS = {
    "resnet18": 64, "convnext_atto": 64, "vit_tiny_patch16_224": 64, "resnet32_cifar": 32,
}  # fmt: skip
HEADS = ("linear", "samn", "lws", "ncm", "cosine")
LIMITS = {"timm": 1e-6, "onnx": 1e-4, "torchscript": 1e-5}
STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_head(kind: str, width: int) -> nn.Module:
    """Make a head with values that matter."""
    linear = nn.Linear(width, len(COUNTS))
    if kind == "samn":
        return SAMNLinear.from_linear(linear, COUNTS)
    if kind == "lws":
        head = ScaledLinear.from_linear(linear)
        head.scales.data.uniform_(0.5, 2)
        return head
    if kind == "cosine":
        return CosineLinear.from_linear(linear)
    if kind == "ncm":
        targets = torch.arange(10 * len(COUNTS)) % len(COUNTS)
        return nearest_class_mean(torch.randn(len(targets), width), targets, len(COUNTS))
    return linear


def make_source(arch: str, head: str, side: int) -> ExportSource:
    """Make a model whose batch normalisation has seen images."""
    torch.manual_seed(0)
    model = create_lt_model(arch, len(COUNTS), False, side)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, side, side))
    model.head = make_head(head, model.head.in_features)
    names = [f"class {c}" for c in range(len(COUNTS))]
    steps = Preprocessing((side, side), *STATS, in_memory=True)
    return ExportSource(model.eval(), names, COUNTS, steps, method=head)


def measure(source: ExportSource, folder: Path) -> dict[str, float | None]:
    """Export a model in each way; None where its head cannot be folded."""
    found: dict[str, float | None] = {}
    try:
        found["timm"] = export_timm_folder(source, folder / "timm").difference
    except UserError as e:
        if "cannot be folded" not in str(e):
            raise
        found["timm"] = None
    found["onnx"] = export_onnx_file(source, folder / "model.onnx").difference
    found["torchscript"] = export_torchscript_file(source, folder / "model.pt").difference
    return found


def main() -> int:
    """Print the table; exit with 1 if a difference is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--archs", nargs="+", default=list(ARCHS))
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for arch in args.archs:
        for head in args.heads:
            start = time.perf_counter()
            source = make_source(arch, head, ARCHS.get(arch, 64))
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                found = measure(source, Path(folder))
                side = source.preprocessing.size
                scale = float(source.model(torch.randn(5, 3, *side)).abs().max())
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"arch": arch, "head": head, **found, "scale": scale, "seconds": seconds})
    over = [r for r in rows for kind, limit in LIMITS.items() if (r[kind] or 0) > limit]
    if args.json:
        print(json.dumps({"rows": rows, "limits": LIMITS}, indent=1))
        return bool(over)
    print("| architecture | head | timm folder | ONNX | TorchScript | largest logit |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = ["–" if row[kind] is None else f"{row[kind]:.1e}" for kind in LIMITS]
        print(f"| {row['arch']} | {row['head']} | {' | '.join(cells)} | {row['scale']:.1f} |")
    print(f"limits: {', '.join(f'{kind} {limit:g}' for kind, limit in LIMITS.items())}; "
          f"above: {len(over)}")  # fmt: skip
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
