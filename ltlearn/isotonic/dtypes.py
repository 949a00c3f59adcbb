"""The precision of sums."""

import torch

__all__ = ["wide_dtype"]


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64.

    Args:
        device: The device of the values.
    """
    return torch.float32 if device.type == "mps" else torch.float64
