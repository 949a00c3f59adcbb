"""Download a benchmark."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from ltlearn.data.benchmarks.check import BenchmarkReport, check_benchmark
from ltlearn.data.benchmarks.facts import Benchmark
from ltlearn.data.benchmarks.read import hint_to_fetch
from ltlearn.data.benchmarks.registry import get_benchmark
from ltlearn.errors import UserError
from ltlearn.utils.locks import locked

__all__ = ["download_benchmark"]

_log = logging.getLogger("ltlearn")


def download_benchmark(
    name: str, root: str | Path, confirm: Callable[[str], bool] | None = None
) -> BenchmarkReport:
    """Download a benchmark with torchvision, and check it.

    Args:
        name: One of `benchmark_names()` whose row has a `fetch`, such as "cifar10_lt".
        root: The folder to download into.
        confirm: Called with a sentence on the size before a large download; must return True. None
            refuses large downloads.

    Raises:
        UserError: If the set must be fetched by hand (the message explains how), is large and not
            confirmed, does not fit on the disk, or cannot be reached.
    """
    facts, root = get_benchmark(name), Path(root).expanduser()
    if facts.fetch is None:
        raise UserError(
            f"{facts.title} cannot be fetched by a program: {facts.by_hand}; "
            f"{hint_to_fetch(name, root)}."
        )
    if facts.burden:
        _confirm(facts, root, confirm)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # A second process finds the files of the first complete, and reads them.
        with locked(root.absolute() / ".download.lock", _report_wait):
            facts.fetch(root)
    except (OSError, RuntimeError, EOFError) as e:  # urllib, tarfile and torchvision raise these
        raise UserError(
            f"{facts.title} could not be fetched ({e}); try again, or by hand: "
            f"{hint_to_fetch(name, root)}."
        ) from None
    return check_benchmark(name, root)


def _report_wait(holder: str) -> None:
    _log.warning("%s downloads into the same folder: waiting until that ends", holder)


def _confirm(facts: Benchmark, root: Path, confirm: Callable[[str], bool] | None) -> None:
    """Raise unless a large set fits on the disk and the user confirms it."""
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    # The archive and its content are both on the disk for a while.
    if free < 2 * facts.gigabytes:
        raise UserError(
            f"{facts.title} {facts.burden}, but {root} has {free:.0f} GB free; give a folder on a "
            "larger disk."
        )
    if confirm is None or not confirm(f"{facts.title} {facts.burden}. Fetch it into {root}?"):
        raise UserError(
            f"{facts.title} was not fetched, because nobody confirmed it: it {facts.burden}."
        )
