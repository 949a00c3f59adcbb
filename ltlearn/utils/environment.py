"""Describe the software and the hardware of a run."""

import logging
import platform
import re
import sys
from importlib import metadata
from typing import Any

from ltlearn.utils.parallel import count_cores

__all__ = ["environment_info", "warn_of_threads"]

_log = logging.getLogger("ltlearn")

_PACKAGES = (
    "ltlearn",
    "torch",
    "torchvision",
    "fastai",
    "fastcore",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "albumentations",
    "safetensors",
)
# Recorded where they are installed, because figures then differ in their last digits.
_OPTIONAL = ("numba",)


def environment_info() -> dict[str, Any]:
    """Return versions, platform, processors, threads and device.

    This imports nothing heavy. Threads and GPU are known only if torch is loaded already.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_OPTIONAL):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package in _PACKAGES:
                versions[package] = None
    torch = sys.modules.get("torch")
    device = _processor()
    if torch is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu_count": count_cores(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "device": device,
    }


def warn_of_threads(before: object) -> None:
    """Log a warning if torch uses another number of threads than before an interruption.

    Args:
        before: The number before; None is not known.
    """
    torch = sys.modules.get("torch")
    now = None if torch is None else torch.get_num_threads()
    if isinstance(before, int) and now not in (None, before):
        _log.warning(
            "the number of threads of torch was %d before, and is %d now: the results will differ "
            "a little from those of a training without interruption; OMP_NUM_THREADS=%d prevents "
            "that",
            before, now, before,
        )  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()
