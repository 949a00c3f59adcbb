"""The floating-point precision that a model runs in."""

import torch

from ltlearn.errors import UserError, check_choice
from ltlearn.names import PRECISIONS

__all__ = ["DTYPES", "resolve_precision"]

# The dtype under autocast; None: no autocast.
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device, side: int) -> str:
    """Return "fp32", "bf16" or "fp16" for a device.

    Args:
        precision: "auto" (bfloat16 if it is faster) or one of these.
        device: The device.
        side: Longer side of the images in pixels; 0 for features, which no backbone computes here.

    Raises:
        UserError: If the precision is unknown, or the device does not support it.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision fp16 needs a CUDA device, the data is on {device}; use bf16 or fp32."
        )
    if precision == "auto":
        return "bf16" if _is_bf16_faster(device, side) else "fp32"
    return precision


def _is_bf16_faster(device: torch.device, side: int) -> bool:
    # On CUDA from sm_80; on a CPU with bf16 instructions, for images from 16 pixels. A linear layer
    # alone is fast anyway, and the user's features would be rounded.
    if not side:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return side >= 16 and any(getattr(torch.cpu, p, lambda: False)() for p in probes)
