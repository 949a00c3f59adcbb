"""Batches, and the plain-Python arithmetic that the losses are compared with."""

import math

import pytest
import torch

COUNTS = [120, 30, 7, 1]
REDUCTIONS = ("mean", "sum", "none")


def make_batch(n=9, num_classes=4, seed=0, spread=3.0, absent=2):
    """Logits and targets, float64; no target is of the class `absent`."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, num_classes, generator=generator, dtype=torch.float64)
    target = torch.randint(num_classes, (n,), generator=generator)
    target[:num_classes] = torch.arange(num_classes)
    if absent is not None and num_classes > 2:
        target[target == absent] = 0
    return logits, target


def rows_of(logits, target):
    """Pairs of a list of logits and a class."""
    return zip(logits.tolist(), target.tolist(), strict=True)


def plain_softmax(row):
    top = max(row)
    exps = [math.exp(z - top) for z in row]
    return [e / sum(exps) for e in exps]


def plain_cross_entropy(row, y):
    return -math.log(plain_softmax(row)[y])


def plain_weights(counts, beta):
    raw = [(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts]
    mean = sum(raw) / sum(n > 0 for n in counts)
    return [w / mean for w in raw]


def assert_reductions(make, logits, target, expected, divisor=None):
    """`make(reduction=...)` gives the expected losses per image, their sum and their mean."""
    total = math.fsum(expected)
    expected = {"none": expected, "sum": total, "mean": total / (divisor or len(expected))}
    for reduction in REDUCTIONS:
        got = make(reduction=reduction)(logits, target)
        assert got.shape == ((len(logits),) if reduction == "none" else ())
        # The buffers are float32.
        assert got.tolist() == pytest.approx(expected[reduction], rel=1e-5)
