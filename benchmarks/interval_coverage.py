"""How often does the interval of a difference between two classifiers hold the true difference?

Test sets are drawn from known probabilities, and each gets its 95 % interval. A cell of the table
is the share of intervals that hold the true difference, in %. "none" means that the test images
are too few for an interval. Both classifiers are right on an image, or one of them, or none.

    python benchmarks/interval_coverage.py [--quick]
"""

import argparse

import numpy as np

from ltlearn.metrics.paired import MIN_DECIDING_IMAGES, difference_interval


def exponential(most: int, least: int, classes: int) -> list[int]:
    ratio = (least / most) ** (1 / (classes - 1))
    return [round(most * ratio**c) for c in range(classes)]


# Test images of each class.
SETS = {
    "60, 36, ... 2, 1, 1": [60, 36, 22, 13, 8, 5, 3, 2, 1, 1],
    "10 x 1": [1] * 10,
    "10 x 30": [30] * 10,
    "10 x 100": [100] * 10,
    "200 x 3": [3] * 200,
    "200 x 1": [1] * 200,
    "50 x 2": [2] * 50,
    "100 x 10": [10] * 100,
    "2 x 30": [30] * 2,
    "6 x 6": [6] * 6,
    "10, 60 to 5": [60, 50, 40, 30, 20, 10, 8, 6, 5, 5],
    "20, 60 to 3": exponential(60, 3, 20),
    "100, 60 to 1": exponential(60, 1, 100),
    "50 x 30 + 30 x 1": [30] * 50 + [1] * 30,
}


def cases(counts: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the probability that only a is right, and that only b is, of each class."""
    classes = len(counts)
    same, rank = np.ones(classes), np.linspace(0, 1, classes)  # 1 is the smallest class
    is_tail = counts <= np.quantile(counts, 0.3)
    even = np.arange(classes) % 2 == 0
    tail_only = np.where(is_tail, 0.6, 0.02)
    growing = 0.1 + 0.35 * rank
    gain = -0.05 + 0.35 * rank
    return {
        "equal, 50 %": (0.25 * same, 0.25 * same),
        "equal, 15 %": (0.075 * same, 0.075 * same),
        "equal, 5 %": (0.025 * same, 0.025 * same),
        "equal, 2 %": (0.01 * same, 0.01 * same),
        "a better": (0.2 * same, 0.1 * same),
        "a never worse": (0.1 * same, 0 * same),
        "tail gains": ((growing + gain) / 2, (growing - gain) / 2),
        "tail differs": (tail_only / 2, tail_only / 2),
        "by turns": (np.where(even, 0.4, 0.05), np.where(even, 0.05, 0.4)),
    }


def coverage(
    counts: np.ndarray, only_a: np.ndarray, only_b: np.ndarray, draws: int, rng: np.random.Generator
) -> float | None:
    """Return the share of intervals that hold the truth; None if there are no intervals."""
    labels = np.repeat(np.arange(len(counts)), counts)
    a, b = only_a[labels], only_b[labels]
    truth, held, drawn = float((only_a - only_b).mean()), 0, 0
    for _ in range(draws):
        u = rng.random(len(labels))
        difference = (u < a).astype(int) - (u > 1 - b).astype(int)
        got = difference_interval(difference[None], labels)
        if got.low is not None:
            drawn += 1
            held += got.low <= truth <= got.high
    return held / drawn if drawn else None


def seed_coverage(
    counts: np.ndarray, seeds: int, spread: float, draws: int, rng: np.random.Generator
) -> float:
    """Return the share of intervals that hold the truth for new images and new trainings.

    Each training moves the accuracy of a classifier by a normal number of deviation `spread`.
    Images differ in how hard they are, alike for both classifiers and in part for one of them.
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    held = 0
    for _ in range(draws):
        easy = 0.2 + 0.6 * rng.random(len(labels))
        own = rng.normal(0, 0.05, (2, 1, len(labels)))
        trained = rng.normal(0, spread, (2, seeds, 1))
        right = rng.random((2, seeds, len(labels))) < easy + own + trained
        got = difference_interval(right[0].astype(int) - right[1], labels)
        held += got.low <= 0 <= got.high
    return held / draws


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print(f"| {' | '.join(head)} |")
    print(f"| {' | '.join(['---', *['---:'] * (len(head) - 1)])} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer draws and fewer sets")
    args = parser.parse_args()
    draws, seed_draws = (300, 200) if args.quick else (4000, 2000)
    rng = np.random.default_rng(0)
    names = list(SETS)[:5] if args.quick else list(SETS)
    print(f"One training, {draws:,} test sets a cell; an interval needs {MIN_DECIDING_IMAGES}\n")
    rows = []
    for name in names:
        counts = np.array(SETS[name])
        shares = [coverage(counts, *case, draws, rng) for case in cases(counts).values()]
        rows.append([name, *("none" if s is None else f"{100 * s:.1f}" for s in shares)])
    print_table(["test images", *cases(np.ones(2, int))], rows)
    print(f"Several trainings, equal classifiers, {seed_draws:,} test sets a cell\n")
    spreads = (0.0, 0.005, 0.02, 0.1)
    rows = []
    for name in ("10 x 30", "200 x 3"):
        for seeds in (2, 3, 5, 20)[: 2 if args.quick else 4]:
            counts = np.array(SETS[name])
            shares = [seed_coverage(counts, seeds, s, seed_draws, rng) for s in spreads]
            rows.append([f"{name}, {seeds} seeds", *(f"{100 * s:.1f}" for s in shares)])
    print_table(["test images", *(f"deviation {100 * s:g} points" for s in spreads)], rows)


if __name__ == "__main__":
    main()
