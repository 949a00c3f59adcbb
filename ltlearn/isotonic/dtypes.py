"""The precision that sums are taken in."""

import torch

__all__ = ["wide_dtype"]


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return float64, and float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
