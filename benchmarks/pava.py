"""Time and check `ltlearn.pava` against SciPy and scikit-learn, side by side in one process.

Every ratio is ours / bare `scipy.optimize.isotonic_regression` on the same values as a NumPy array
(forward alone: it has no backward), each time the least of interleaved repeats.
"""

import argparse
import json
import time

import numpy as np
import sklearn.isotonic
import torch
from scipy.optimize import isotonic_regression

from ltlearn.isotonic import pava

SIZES = (100, 1_000, 10_000, 100_000)
DTYPES = (torch.float64, torch.float32)
COLUMNS = {
    "scipy fwd": "scipy engine, forward",
    "scipy f+b": "scipy engine, forward and backward",
    "tensor fwd": "tensor_ops engine, forward",
    "tensor f+b": "tensor_ops engine, forward and backward",
    "sklearn fwd": "sklearn.isotonic.isotonic_regression, forward",
    "identity f+b": "clone() and its backward: what autograd costs by itself",
}


def values(n: int, dtype: torch.dtype) -> torch.Tensor:
    """A rising trend under unit noise: blocks of every length."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return (noise + torch.linspace(0, 3, n, dtype=torch.float64)).to(dtype)


def least_seconds(calls: dict, rounds: int, seconds: float) -> dict:
    """Seconds a call takes, least over `rounds`; in a round, every call has its turn."""
    loops = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        loops[name] = max(1, int(seconds / (time.perf_counter() - start)))
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / loops[name])
    return best


def measure(n: int, dtype: torch.dtype, rounds: int, seconds: float) -> dict:
    y = values(n, dtype)
    array = y.numpy()
    leaf = y.clone().requires_grad_()
    grad = torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def both(function):
        return lambda: torch.autograd.grad(function(leaf), leaf, grad)

    calls = {
        "bare": lambda: isotonic_regression(array),
        "scipy fwd": lambda: pava(y),
        "scipy f+b": both(pava),
        "tensor fwd": lambda: pava(y, engine="tensor_ops"),
        "tensor f+b": both(lambda leaf: pava(leaf, engine="tensor_ops")),
        "sklearn fwd": lambda: sklearn.isotonic.isotonic_regression(array),
        "identity f+b": both(torch.clone),
    }
    took = least_seconds(calls, rounds, seconds)
    exact = isotonic_regression(array.astype(np.float64)).x
    scale = np.abs(array).max()
    errors = {
        engine: float(np.abs(pava(y, engine=engine).double().numpy() - exact).max() / scale)
        for engine in ("scipy", "tensor_ops")
    }
    return {
        "n": n,
        "dtype": str(dtype).removeprefix("torch."),
        "bare_microseconds": took["bare"] * 1e6,
        "ratios": {name: took[name] / took["bare"] for name in COLUMNS},
        "relative_error": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repeats")
    parser.add_argument("--seconds", type=float, default=0.01, help="spent on a call in a repeat")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="lengths N")
    args = parser.parse_args()

    rows = [measure(n, dtype, args.rounds, args.seconds) for n in args.sizes for dtype in DTYPES]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for name, meaning in COLUMNS.items():
        print(f"{name:>12}  {meaning}")
    print("\nRatios to bare scipy, and the largest error relative to max |y|\n")
    header = f"{'N':>7} {'dtype':>8} {'bare us':>9}"
    print(header + "".join(f" {name:>12}" for name in COLUMNS) + "  err scipy err tensor")
    for row in rows:
        line = f"{row['n']:>7} {row['dtype']:>8} {row['bare_microseconds']:>9.1f}"
        line += "".join(f" {row['ratios'][name]:>12.2f}" for name in COLUMNS)
        error = row["relative_error"]
        print(f"{line}  {error['scipy']:>9.1e} {error['tensor_ops']:>10.1e}")


if __name__ == "__main__":
    main()
