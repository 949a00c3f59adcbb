"""The datasets of `LTDataLoaders.from_dataset`. Each has its row in a module of its own."""

from ltlearn.data.benchmarks.cifar import CIFAR10_LT, CIFAR100_LT
from ltlearn.data.benchmarks.digits import DIGITS_LT
from ltlearn.data.benchmarks.facts import Benchmark, ListedSet
from ltlearn.data.benchmarks.imagenet_lt import IMAGENET_LT
from ltlearn.data.benchmarks.inat2018 import INAT2018
from ltlearn.data.benchmarks.places_lt import PLACES_LT
from ltlearn.data.benchmarks.tiny_imagenet import TINY_IMAGENET_LT
from ltlearn.errors import UserError, check_choice

__all__ = [
    "BENCHMARKS",
    "benchmark_names",
    "dataset_names",
    "get_benchmark",
    "get_dataset",
    "is_listed",
    "listed_names",
    "register_benchmark",
]

# Every row by its name. Change it with `register_benchmark` alone.
BENCHMARKS: dict[str, Benchmark] = {}


def register_benchmark(row: Benchmark) -> None:
    """Make a dataset known to `from_dataset`, `check_benchmark`, `how_to_get` and recipes.

    Args:
        row: A `ListedSet` or a `BalancedSet` with the facts about the set.

    Raises:
        UserError: If another set has the name.

    Example:
        >>> register_benchmark(ListedSet(
        ...     name="birds_lt", title="Birds-LT", classes=3, class_order="as in the list",
        ...     sizes={"train": 70, "test": 30}, each={"test": 10}, largest=50, smallest=5,
        ...     forms=({"train": "train.txt", "test": "test.txt"},),
        ...     class_of=lambda folder: folder.rpartition("/")[2], transform="resized_crop_flip",
        ... ))  # doctest: +SKIP
        >>> dls = LTDataLoaders.from_dataset("birds_lt", "/data/birds")  # doctest: +SKIP
    """
    if row.name in BENCHMARKS:
        raise UserError(
            f"there is a benchmark {row.name!r} already; give the new one another name."
        )
    BENCHMARKS[row.name] = row


for _row in (
    DIGITS_LT, CIFAR10_LT, CIFAR100_LT, TINY_IMAGENET_LT, IMAGENET_LT, PLACES_LT, INAT2018,
):  # fmt: skip
    register_benchmark(_row)


def dataset_names() -> tuple[str, ...]:
    """Return all names that `LTDataLoaders.from_dataset` takes."""
    return tuple(BENCHMARKS)


def benchmark_names() -> tuple[str, ...]:
    """Return the names of the sets that consist of files, which can be checked."""
    return tuple(name for name, row in BENCHMARKS.items() if not row.bundled_with)


def listed_names() -> tuple[str, ...]:
    """Return the names of the sets that are long-tailed as published."""
    return tuple(name for name in BENCHMARKS if is_listed(name))


def is_listed(name: str) -> bool:
    """Return whether a name is of a set that is long-tailed as published, in lists.

    Args:
        name: Any name.
    """
    return isinstance(BENCHMARKS.get(name), ListedSet)


def get_dataset(name: str) -> Benchmark:
    """Return the row of a dataset.

    Args:
        name: One of `dataset_names()`.

    Raises:
        UserError: If there is no such set.
    """
    check_choice("dataset", name, dataset_names())
    return BENCHMARKS[name]


def get_benchmark(name: str) -> Benchmark:
    """Return the row of a dataset that consists of files.

    Args:
        name: One of `benchmark_names()`.

    Raises:
        UserError: If there is no such set, or a package brings its images.
    """
    row = BENCHMARKS.get(name)
    if row is not None and row.bundled_with:
        raise UserError(
            f"{name} comes with {row.bundled_with} and needs no files, so there is nothing to "
            "fetch or to check."
        )
    check_choice("benchmark", name, benchmark_names())
    return row
