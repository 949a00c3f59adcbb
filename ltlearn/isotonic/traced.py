"""Whether torch traces operations instead of running them; torch has few public checks."""

import torch
from torch.autograd import forward_ad

__all__ = ["dispatch_modes", "functorch_active", "is_transformed", "jit_tracing"]

functorch_active = torch._C._are_functorch_transforms_active  # torch.func
dispatch_modes = torch._C._len_torch_dispatch_stack  # fake tensors, make_fx, export
jit_tracing = torch._C._get_tracing_state  # torch.jit.trace


def is_transformed() -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active."""
    return functorch_active() or forward_ad._current_level >= 0
