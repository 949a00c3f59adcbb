"""Runs cases through the Triton engine in Triton's interpreter: INPUT.pt OUTPUT.pt.

A process of its own: Triton reads TRITON_INTERPRET while a kernel is defined, and what is
interpreted cannot be compiled. A case is (y, weights, increasing, grad, tile); tile is how many
entries the program holds at a time.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from ltlearn.isotonic import pava, triton_engine


def run(y, weights, increasing, grad, tile):
    triton_engine._MAX_TILE = tile
    bare = pava(y, weights, increasing, "triton", check=False)
    inputs = [t.clone().requires_grad_() for t in (y, weights) if t is not None]
    x = pava(*inputs, increasing=increasing, engine="triton", check=False)
    result = x.detach().clone()
    x.detach().copy_(torch.arange(x.numel()).view(x.shape))  # a user's change; not of the blocks
    return bare, result, torch.autograd.grad(x, inputs, grad)


def main(source: str, target: str) -> None:
    torch.save({name: run(*case) for name, case in torch.load(source).items()}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
