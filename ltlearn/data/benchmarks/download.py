"""Describe how to get a benchmark, and download it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ltlearn.data.benchmarks.check import BenchmarkReport, check_benchmark
from ltlearn.data.benchmarks.facts import BENCHMARKS, LIST_URLS, Benchmark, check_benchmark_name
from ltlearn.data.benchmarks.instructions import BY_HAND
from ltlearn.data.benchmarks.read import data_command
from ltlearn.errors import UserError

__all__ = ["download_benchmark"]


def download_benchmark(
    name: str, root: str | Path, confirm: Callable[[str], bool] | None = None
) -> BenchmarkReport:
    """Fetch what torchvision can fetch, and check it.

    Args:
        name: A name of `BENCHMARKS`: "cifar10_lt", "cifar100_lt", "places_lt" or "inat2018".
        root: The folder to put it in.
        confirm: Is asked, with a sentence on the size, before a large set; must return True. None
            refuses those.

    Raises:
        UserError: If it has to be fetched by hand (the message says how), is large and not
            confirmed, does not fit on the disk, or cannot be reached.
    """
    check_benchmark_name(name)
    facts, root = BENCHMARKS[name], Path(root).expanduser()
    if name not in _FETCH:
        raise UserError(
            f"{facts.title} cannot be fetched by a program: {BY_HAND[name]}; "
            f"{data_command(name, root)}."
        )
    if facts.burden:
        _confirm(facts, root, confirm)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _FETCH[name](root)
    except (OSError, RuntimeError, EOFError) as e:  # what urllib, tarfile and torchvision raise
        raise UserError(
            f"{facts.title} could not be fetched ({e}); try again, or by hand: "
            f"{data_command(name, root)}."
        ) from None
    return check_benchmark(name, root)


def _confirm(facts: Benchmark, root: Path, confirm: Callable[[str], bool] | None) -> None:
    """Raise unless a large set has room and is wanted."""
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    # The archive stays while it is unpacked.
    if free < 2 * facts.gigabytes:
        raise UserError(
            f"{facts.title} {facts.burden}, but {root} has {free:.0f} GB free; give a folder on a "
            "larger disk."
        )
    if confirm is None or not confirm(f"{facts.title} {facts.burden}. Fetch it into {root}?"):
        raise UserError(
            f"{facts.title} was not fetched, as nobody confirmed it: it {facts.burden}."
        )


def _fetch_cifar(root: Path, name: str) -> None:
    import torchvision.datasets

    for train in (True, False):
        getattr(torchvision.datasets, name)(str(root), train=train, download=True)


def _fetch_places(root: Path) -> None:
    from torchvision.datasets import Places365
    from torchvision.datasets.utils import download_url

    for source in BENCHMARKS["places_lt"].sources:
        if source.url.startswith(LIST_URLS):
            download_url(source.url, str(root))
    for split in ("train-standard", "val"):
        Places365(str(root), split=split, small=True, download=True)


def _fetch_inat(root: Path) -> None:
    from torchvision.datasets import INaturalist
    from torchvision.datasets.utils import download_and_extract_archive

    for source in BENCHMARKS["inat2018"].sources[1:]:
        download_and_extract_archive(source.url, str(root), md5=source.md5)
    if not (root / "train_val2018").is_dir():
        INaturalist(str(root), version="2018", download=True)


_FETCH: dict[str, Callable[[Path], None]] = {
    "cifar10_lt": lambda root: _fetch_cifar(root, "CIFAR10"),
    "cifar100_lt": lambda root: _fetch_cifar(root, "CIFAR100"),
    "places_lt": _fetch_places,
    "inat2018": _fetch_inat,
}
