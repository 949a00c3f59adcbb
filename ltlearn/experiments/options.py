"""How a recipe is run: folders, device, precision. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from ltlearn.errors import check_choice
from ltlearn.names import ON_NAN

__all__ = ["RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """What a run needs beside its recipe.

    Args:
        data_path: Folder of the images; a recipe of a user's own images has its own.
        cache_path: Folder of cached features; None keeps them in memory.
        device: "auto" or a torch device.
        precision: "auto", "fp32", "bf16" or "fp16".
        skip_bad: Whether unreadable images are left out.
        on_nan: What follows a loss that is not finite: "stop" or "skip"; see `FiniteLoss`.
        keep_all: Whether the checkpoint of every epoch is kept.
        tensorboard: Whether TensorBoard's event files are written, too.
        compile: Whether stage 1 compiles the backbone with `torch.compile` where that works.
        num_workers: Processes that read a user's images from disk; None takes the setting.
        follow_links: Whether links in the folder of a published list may lead out of it.
        command: The command line, for the manifest.

    Raises:
        UserError: If `on_nan` is neither "stop" nor "skip".

    Example:
        >>> RunOptions(device="cpu").precision
        'auto'
    """

    data_path: str | Path = "data"
    cache_path: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    skip_bad: bool = False
    on_nan: str = "stop"
    keep_all: bool = False
    tensorboard: bool = False
    compile: bool = False
    num_workers: int | None = None
    follow_links: bool = False
    command: str = ""

    def __post_init__(self):
        check_choice("on_nan", self.on_nan, ON_NAN)
