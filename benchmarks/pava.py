"""Time and check `ltlearn.pava` against its rivals, side by side in one process.

    python benchmarks/pava.py [--device cpu|cuda] [--quick] [--json]
    python benchmarks/pava.py --sizes 10 8142 --batches 1 --shapes random --dtypes float32

A cell of the grid is a shape of input, a batch, a length N and a dtype. In it every call has its
turn in each of the repeats and keeps its least time, so that a busy machine slows all alike. The
two tables, forward alone and forward with backward, print ours in microseconds, its ratio to bare
SciPy's forward (SciPy has no backward; on CUDA it pays for the copies to the host and back), and
the rivals' ratios to ours: above 1, ours is quicker. A call that takes more than `--budget`
seconds, or would by what it took at a smaller N, is given up and its ratio printed as a bound
(`>`). The third table is the largest error of a fit, relative to max |y|, against SciPy in float64
on the same values.

torchisotonic (extra `bench`) compiles at its first call, and is left out where it cannot. torchsort
is not compared: its public functions sort and rank, and its isotonic solver is no part of them.
"""

import argparse
import contextlib
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy
import sklearn.isotonic
import torch
from merge_rounds import merge_in_rounds
from scipy.optimize import isotonic_regression
from torch import Tensor

from ltlearn.isotonic import pava

DTYPES = {"float64": torch.float64, "float32": torch.float32}
GRID = {
    "sizes": [10, 100, 1_000, 8_142, 100_000, 1_000_000],
    "batches": [1, 64],
    "shapes": ["random", "trend", "descending", "one_low_last"],
    "dtypes": list(DTYPES),
    "rounds": 40,
}
QUICK = {
    "sizes": [10, 100, 1_000, 8_142],
    "batches": [1],
    "shapes": ["random", "one_low_last"],
    "dtypes": ["float64"],
    "rounds": 15,
}
MAX_VALUES = {"cpu": 10_000_000, "cuda": 100_000_000}
# A kernel may be compiled for a length that has not come before, in a first call that is not kept.
COMPILE_SECONDS = {"cpu": 0, "cuda": 60}
FORWARD, BOTH = "forward", "forward and backward"


# What is timed


class Rival(NamedTuple):
    meaning: str
    make: Callable[[], Callable]  # imports and builds what the function needs
    on_arrays: bool = False  # takes one row as a NumPy array, and has no backward
    device: str | None = None  # the one device type it works on, None for all
    fits: bool = True  # False for what is timed for its cost alone


def _torchisotonic() -> Callable[[Tensor], Tensor]:
    import torchisotonic

    return torchisotonic.isotonic


RIVALS = {
    "ours": Rival("ltlearn.pava, the engine it chooses", lambda: pava),
    "tensor_ops": Rival(
        "ltlearn.pava(engine='tensor_ops')", lambda: partial(pava, engine="tensor_ops")
    ),
    "triton": Rival(
        "ltlearn.pava(engine='triton')", lambda: partial(pava, engine="triton"), device="cuda"
    ),
    "scipy": Rival(
        "scipy.optimize.isotonic_regression, row by row",
        lambda: isotonic_regression,
        on_arrays=True,
    ),
    "sklearn": Rival(
        "sklearn.isotonic.isotonic_regression, row by row",
        lambda: sklearn.isotonic.isotonic_regression,
        on_arrays=True,
    ),
    "torchisotonic": Rival("torchisotonic.isotonic", _torchisotonic),
    "merge": Rival("merging in rounds, merge_rounds.py", lambda: merge_in_rounds),
    "clone": Rival("torch.clone: what autograd costs by itself", lambda: torch.clone, fits=False),
}


def _by_row(function: Callable, array: np.ndarray) -> np.ndarray:
    if array.ndim == 1:
        return _solution(function(array))
    return np.stack([_solution(function(row)) for row in array])


def _solution(result: Any) -> np.ndarray:
    return result["x"] if isinstance(result, dict) else result  # SciPy returns a record


def _through_host(function: Callable, y: Tensor) -> Tensor:
    return torch.from_numpy(_by_row(function, y.cpu().numpy())).to(y.device, y.dtype)


def calls_of(rival: Rival, function: Callable, y: Tensor, grad: Tensor) -> dict[str, Callable]:
    """The calls to time, by direction."""
    if rival.on_arrays:
        if y.is_cuda:
            return {FORWARD: partial(_through_host, function, y)}
        array = y.numpy()
        return {FORWARD: partial(function if y.ndim == 1 else partial(_by_row, function), array)}
    leaf = y.clone().requires_grad_()
    both = {BOTH: lambda: torch.autograd.grad(function(leaf), leaf, grad)}
    return {FORWARD: partial(function, y)} | both if rival.fits else both


def usable(device: str) -> dict[str, Callable]:
    """The functions that work here, each tried once; a line on stderr for one that does not."""
    found = {}
    sample = torch.tensor([2.0, 1.0, 3.0], device=device)
    for name, rival in RIVALS.items():
        if rival.device not in (None, device):
            print(f"{name} skipped: it needs --device {rival.device}", file=sys.stderr)
            continue
        try:
            function = rival.make()
            for call in calls_of(rival, function, sample, torch.ones_like(sample)).values():
                call()
        except Exception as error:  # whatever a missing package or a failed build raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{name} skipped: {reason}", file=sys.stderr)
        else:
            found[name] = function
    return found


# What it is timed on


class Cell(NamedTuple):
    shape: str
    batch: int
    n: int
    dtype: str


def values(cell: Cell) -> Tensor:
    """The input: (N,) for a batch of one, else (batch, N)."""
    n = cell.n
    if cell.shape in ("random", "trend"):
        generator = torch.Generator().manual_seed(n)
        y = torch.randn(cell.batch, n, generator=generator, dtype=torch.float64)
        if cell.shape == "trend":  # under unit noise: blocks of every length
            y += torch.linspace(0, 3, n, dtype=torch.float64)
    elif cell.shape == "descending":
        y = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    else:  # one_low_last: the last value pulls all others down to it, one by one
        y = torch.linspace(0, 1, n, dtype=torch.float64)
        y[-1] = -n
    y = y.expand(cell.batch, n).to(DTYPES[cell.dtype]).contiguous()
    return y[0] if cell.batch == 1 else y


# How it is timed


class Timer:
    """Times a cell's calls in turn, and gives up those that take longer than the budget."""

    def __init__(self, device: str, rounds: int, seconds: float, budget: float):
        self.device, self.rounds, self.seconds, self.budget = device, rounds, seconds, budget
        self.known: dict[tuple, tuple[int, float]] = {}  # N and seconds of the last cell

    def least(self, cell: Cell, calls: dict[tuple[str, str], Callable]) -> tuple[dict, dict]:
        """Seconds a call takes, infinite where given up, and what the first call returned."""
        best, results = {}, {}
        for key, call in calls.items():
            best[key], results[key] = self._first(cell, key, call, best)
        kept = {key: call for key, call in calls.items() if math.isfinite(best[key])}
        for repeat in range(self.rounds):
            for key, call in kept.items():
                # From the least so far, so that a stall in the first call does not count. A call
                # longer than its share of a repeat has fewer of them; a very long one, none.
                if repeat < 2 * self.rounds * self.seconds / best[key]:
                    loops = max(1, int(self.seconds / best[key]))
                    best[key] = min(best[key], self._once(call, loops))
        return best, results

    def _first(self, cell: Cell, key: tuple[str, str], call: Callable, best: dict) -> tuple:
        name, direction = key
        place = (name, direction, cell.shape, cell.batch, cell.dtype)
        n, took = self.known.get(place, (cell.n, 0.0))
        if took > self.budget / 50:  # long enough to grow with N, and by no less than in proportion
            took *= cell.n / n
        took = max(took, best.get((name, FORWARD), 0.0))  # a backward comes on top of the forward
        result = None
        if took <= self.budget:
            try:
                with limit(self.budget + COMPILE_SECONDS[self.device]):
                    result = call()
                with limit(self.budget):
                    took = self._once(call, 1)
            except TimeoutError:
                took = math.inf
        if took > self.budget:
            took = math.inf
        self.known[place] = cell.n, took
        return took, result

    def _once(self, call: Callable, loops: int) -> float:
        self._synchronize()
        start = time.perf_counter()
        for _ in range(loops):
            call()
        self._synchronize()
        return (time.perf_counter() - start) / loops

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(cell: Cell, functions: dict[str, Callable], timer: Timer) -> dict:
    """Seconds of every call, None where given up, and the relative error of every fit."""
    y = values(cell).to(timer.device)
    grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    calls = {
        (name, direction): call
        for name, function in functions.items()
        for direction, call in calls_of(RIVALS[name], function, y, grad.to(y.device)).items()
    }
    took, results = timer.least(cell, calls)
    array = y.double().cpu().numpy()
    exact, scale = _by_row(isotonic_regression, array), max(np.abs(array).max(), 1e-300)
    errors = {}
    for (name, direction), result in results.items():
        if direction == FORWARD and name != "scipy" and result is not None:
            errors[name] = float(np.abs(_float64(result) - exact).max() / scale)
    seconds = {FORWARD: {}, BOTH: {}}
    for (name, direction), value in took.items():
        seconds[direction][name] = value if math.isfinite(value) else None
    return cell._asdict() | {"seconds": seconds, "relative_error": errors}


def _float64(result: Any) -> np.ndarray:
    if isinstance(result, Tensor):
        return result.detach().double().cpu().numpy()
    return np.asarray(result, dtype=np.float64)


# How it is printed


def ratio(over: float | None, under: float | None, budget: float) -> str:
    """A ratio in three digits; a bound where one of the two took more than the budget."""
    if over is None and under is None:
        return "?"
    sign = ">" if over is None else "<" if under is None else ""
    value = (over or budget) / (under or budget)
    return sign + (f"{value:,.0f}" if value >= 100 else f"{value:.3g}")


def print_times(rows: list[dict], direction: str, names: list[str], budget: float) -> None:
    rivals = [n for n in names if n in rows[0]["seconds"][direction]]
    rivals = [n for n in rivals if n not in ("ours", "scipy", "clone")]
    clone = direction == BOTH
    print(f"\n{direction.capitalize()}\n")
    header = f"{'shape':12} {'batch':>5} {'N':>7} {'dtype':7} {'ours us':>10} {'ours/scipy':>11}"
    header += f" {'clone/scipy':>12}" if clone else ""
    print(header + "".join(f" {name + '/ours':>{len(name) + 7}}" for name in rivals))
    for row in rows:
        took, scipy_took = row["seconds"][direction], row["seconds"][FORWARD]["scipy"]
        ours = took["ours"]
        line = f"{row['shape']:12} {row['batch']:>5} {row['n']:>7} {row['dtype']:7}"
        line += f" {'-' if ours is None else f'{ours * 1e6:.1f}':>10}"
        line += f" {ratio(ours, scipy_took, budget):>11}"
        line += f" {ratio(took['clone'], scipy_took, budget):>12}" if clone else ""
        for name in rivals:
            line += f" {ratio(took[name], ours, budget):>{len(name) + 7}}"
        print(line)


def print_errors(rows: list[dict], names: list[str]) -> None:
    names = [n for n in names if RIVALS[n].fits and n != "scipy"]
    print("\nLargest error relative to max |y|, over all batches and N\n")
    print(f"{'shape':12} {'dtype':7}" + "".join(f" {name:>13}" for name in names))
    for shape, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        line = f"{shape:12} {dtype:7}"
        for name in names:
            errors = [
                row["relative_error"][name]
                for row in rows
                if (row["shape"], row["dtype"]) == (shape, dtype) and name in row["relative_error"]
            ]
            line += f" {f'{np.max(errors):.1e}' if errors else '-':>13}"
        print(line)


def versions(device: str) -> dict[str, str]:
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "device": device,
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "sklearn": sklearn.__version__,
        "threads": str(torch.get_num_threads()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=MAX_VALUES, default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="lengths N")
    parser.add_argument("--batches", type=int, nargs="+", help="rows")
    parser.add_argument("--shapes", choices=GRID["shapes"], nargs="+")
    parser.add_argument("--dtypes", choices=GRID["dtypes"], nargs="+")
    parser.add_argument("--rounds", type=int, help="interleaved repeats")
    parser.add_argument("--seconds", type=float, default=0.004, help="spent on a call in a repeat")
    parser.add_argument("--budget", type=float, default=5, help="seconds a call may take")
    parser.add_argument("--max-values", type=int, help="larger cells, batch x N, are left out")
    parser.add_argument("--quick", action="store_true", help="a small grid, fewer repeats")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    args = parser.parse_args()
    for name, default in (QUICK if args.quick else GRID).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.max_values = args.max_values or MAX_VALUES[args.device]
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    return args


def grid(args: argparse.Namespace) -> Iterator[Cell]:
    for shape in args.shapes:
        for batch in args.batches:
            for n in sorted(args.sizes):  # ascending: the timer judges a call by a smaller N
                if batch * n > args.max_values:
                    print(f"{shape} {batch} x {n} skipped: --max-values", file=sys.stderr)
                    continue
                for dtype in args.dtypes:
                    if sys.stderr.isatty():
                        print(f"\r{shape} {batch} x {n} {dtype}\033[K\r", end="", file=sys.stderr)
                    yield Cell(shape, batch, n, dtype)


def main() -> None:
    args = parse()
    functions = usable(args.device)
    timer = Timer(args.device, args.rounds, args.seconds, args.budget)
    rows = [measure(cell, functions, timer) for cell in grid(args)]
    if args.json:
        report = {"versions": versions(args.device), "budget": args.budget, "rows": rows}
        print(json.dumps(report, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in versions(args.device).items()) + "\n")
    names = list(functions)
    for name in names:
        print(f"{name:>13}  {RIVALS[name].meaning}")
    for direction in (FORWARD, BOTH):
        print_times(rows, direction, names, args.budget)
    print_errors(rows, names)


if __name__ == "__main__":
    main()
