"""The engines by name, and the default engine of a device."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["ENGINES", "Engine", "choose_engine", "load_engine"]

ENGINES = {
    "scipy": "ltlearn.isotonic.scipy_engine",
    "tensor_ops": "ltlearn.isotonic.tensor_ops",
    "triton": "ltlearn.isotonic.triton_engine",
}


class Engine(NamedTuple):
    """The functions of an engine's module."""

    solve: Callable[..., tuple[Tensor, Tensor | None]]  # the fit, and the solution in float64
    blocks: Callable[[Tensor], Any]  # the blocks of a solution, in a form that the engine defines
    block_means: Callable[[Tensor, Any, Tensor | None], Tensor]


@cache
def load_engine(name: str) -> Engine:
    """Import an engine on first use, because importing Triton takes long.

    Args:
        name: A key of `ENGINES`.
    """
    module = import_module(ENGINES[name])
    return Engine(module.solve, module.blocks, module.block_means)


@cache
def _triton_runs_on(device_type: str) -> bool:
    if find_spec("triton") is None:
        return False
    from triton import knobs

    return device_type == "cuda" or (knobs.runtime.interpret and device_type == "cpu")


def _triton_takes(y: Tensor) -> bool:
    from ltlearn.isotonic.triton_engine import MAX_LENGTH

    return y.shape[-1] <= MAX_LENGTH


def choose_engine(engine: str | None, y: Tensor) -> str:
    """Return the name of the engine for `y`.

    Args:
        engine: A name, or None to choose by the device of `y`.
        y: The values.

    Raises:
        TypeError: If `engine` is no string.
        ValueError: If `engine` is unknown or does not support `y`'s device.
    """
    device = y.device.type
    if engine is None:
        if device == "cpu":
            return "scipy"
        engine = "triton" if device == "cuda" and _triton_runs_on(device) else "tensor_ops"
    allowed = ", ".join(repr(name) for name in ENGINES) + " or None"
    if not isinstance(engine, str):
        raise TypeError(f"engine must be {allowed}, got {type(engine).__name__}.")
    if engine not in ENGINES:
        raise ValueError(f"engine must be {allowed}, got {engine!r}.")
    if engine == "scipy" and device != "cpu":
        raise ValueError(
            f"engine 'scipy' supports CPU tensors alone, got y on {y.device}; "
            "engine None or 'tensor_ops' supports every device."
        )
    if engine == "triton":
        if not _triton_runs_on(device):
            why = f"got y on {y.device}" if find_spec("triton") else "which is not installed"
            raise ValueError(
                f"engine 'triton' needs CUDA tensors and the package triton, {why}; "
                "engine None or 'tensor_ops' supports every device."
            )
        if not _triton_takes(y):
            return "tensor_ops"
    return engine
