"""Models with each kind of head, ready to export."""

import torch
from torch import nn

import tests.callbacks.helpers  # noqa: F401  (registers resnet8_cifar)
from ltlearn.exporting.source import ExportSource, Preprocessing
from ltlearn.heads import CosineLinear, SAMNLinear, ScaledLinear
from ltlearn.models.pretrained import create_lt_model
from ltlearn.posthoc.nearest_mean import nearest_class_mean
from tests.models.helpers import SMALL

COUNTS = [500, 120, 30, 5]
SIDE = 32
ARCHS = {
    "resnet20_cifar": {"width": 4},
    "resnet18": {},
    "convnext_atto": SMALL["convnext_atto"],
    "vit_tiny_patch16_224": SMALL["vit_tiny_patch16_224"],
}
FOLDING = ("linear", "samn", "lws")
HEADS = (*FOLDING, "ncm", "cosine")
STEPS = Preprocessing((SIDE, SIDE), (0.5, 0.45, 0.4), (0.25, 0.2, 0.3), in_memory=True)


def make_head(kind: str, width: int) -> nn.Module:
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
        targets = torch.arange(40) % len(COUNTS)
        return nearest_class_mean(torch.randn(40, width), targets, len(COUNTS))
    return linear


def make_model(arch: str, head: str = "linear", **kwargs) -> nn.Module:
    """Make a model whose batch normalisation has seen images."""
    torch.manual_seed(0)
    kwargs = {**ARCHS.get(arch, {}), **kwargs}
    if arch == "resnet8_cifar":
        kwargs.setdefault("width", 4)
    model = create_lt_model(arch, len(COUNTS), False, SIDE, **kwargs)
    with torch.no_grad():
        model.train()
        for _ in range(12):
            model(torch.randn(4, 3, SIDE, SIDE))
    model.head = make_head(head, model.head.in_features)
    return model.eval()


def make_source(arch: str, head: str = "linear", steps=STEPS, **kwargs) -> ExportSource:
    names = [f"class {c}" for c in range(len(COUNTS))]
    return ExportSource(make_model(arch, head, **kwargs), names, COUNTS, steps, method=head)
