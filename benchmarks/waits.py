"""Count waits of the host and launches in a training step on CUDA, on a pretended device.

    python benchmarks/waits.py [--library FOLDER] [--out FILE] [--names ce glmc ...]
    python benchmarks/waits.py --table results/speed/waits.json

The benchmark needs no GPU: the tests' pretended device runs each operation on the CPU, and counts
those for which the host would wait and those that would launch a kernel (in bf16; PAVA is one).
Both depend on neither width nor image size. The network is a CIFAR ResNet of 8 layers; CE and GLMC
are also counted with 32 layers. In stage 1, the loop with events and the loop that a CUDA device
gets are counted; a captured step is one launch.
`--library` counts another checkout of the library, such as an older one, with today's cases. With
`--out`, the counts are put into a file under the commit of the library; `--table` prints the first
and the last commit of such a file side by side.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def import_library(folder: Path) -> None:
    """Import ltlearn from `folder`, and the tests' device from this checkout."""
    sys.path.insert(0, str(folder))
    import ltlearn  # noqa: F401

    sys.path[:1] = [str(ROOT)]


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout; "unknown" without git."""
    call = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
    try:
        done = subprocess.run(call, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def count(names: list[str] | None = None) -> Iterator[dict]:
    """Yield a row per method or option."""
    import logging
    import warnings

    import torch

    from tests.callbacks.helpers import model_of
    from tests.device.cases import STAGE1, STAGE2, count_steps, make_learner
    from tests.device.simcuda import SimCuda

    logging.getLogger("ltlearn").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = [(1, name, make, model_of(name)) for name, make in STAGE1.items()]
    deep = {"arch": "resnet32_cifar"}
    cases += [(1, f"{n}, ResNet-32", STAGE1[n], deep) for n in ("ce", "glmc")]
    cases += [(2, name, make, {}) for name, make in STAGE2.items()]
    for stage, name, make, options in cases:
        if names and name not in names:
            continue
        for loop in ("events", "default"):
            with SimCuda():
                # An older library has the loop with events alone.
                resident = "never" if loop == "events" else "auto"
                learn = make_learner(resident=resident, precision="bf16", **options)
                counts = count_steps(stage, learn, make(), epochs=3)
            ran = getattr(learn, "loop_ran", "events") if stage == 1 else "events"
            if loop == "default" and ran == "events":
                continue
            yield {
                "stage": stage,
                "name": name,
                "loop": ran,
                "waits": counts.waits.total(),
                "of them for the batch": counts.for_batch,
                "launches": counts.launches.total(),
                "copies without a wait": counts.copies.total(),
                "where": sorted(f"{why}: {where}" for why, where in counts.waits),
            }
    yield from count_comparison(names)


def count_comparison(names: list[str] | None) -> Iterator[dict]:
    """Yield the counts of the methods of a comparison: each training alone, and all together."""
    from tests.device.cases import TOGETHER, count_steps, count_together, make_learner
    from tests.device.simcuda import SimCuda

    if names and "comparison" not in names:
        return
    seeds = 3
    with SimCuda():
        alone = [count_steps(2, make_learner(), {"method": name}) for name in TOGETHER]
        all_together = count_together(make_learner(), TOGETHER, seeds)
    for loop, every, times in (("events", alone, seeds), ("together", [all_together], 1)):
        yield {
            "stage": 2,
            "name": f"{len(TOGETHER)} methods, {seeds} seeds",
            "loop": loop,
            "waits": times * sum(c.waits.total() for c in every),
            "of them for the batch": times * sum(c.for_batch for c in every),
            "launches": times * sum(c.launches.total() for c in every),
            "copies without a wait": times * sum(c.copies.total() for c in every),
            "where": [],
        }


def table(commits: dict[str, list[dict]]) -> str:
    """Return a Markdown table of the first and the last commit, and of the last one's own loop."""
    first, last = list(commits)[0], list(commits)[-1]
    by = {
        (commit, row["stage"], row["name"], row["loop"] == "events"): row
        for commit in (first, last)
        for row in commits[commit]
    }
    lines = [
        f"| stage | training | waits, {first} | {last} | without events "
        f"| launches, {first} | {last} | without events | loop |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for (commit, stage, name, events), row in by.items():
        if commit != last or not events:
            continue
        three = [by.get((first, stage, name, True)), row, by.get((last, stage, name, False))]
        figures = [r and r[key] for key in ("waits", "launches") for r in three]
        cells = ["" if figure is None else str(figure) for figure in figures]
        loop = three[2]["loop"] if three[2] else "events"
        lines.append(f"| {stage} | {name} | {' | '.join(cells)} | {loop} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, default=ROOT, help="a checkout of the library")
    parser.add_argument("--out", type=Path, help="a JSON file; other commits in it stay")
    parser.add_argument("--names", nargs="*", help="count these alone")
    parser.add_argument("--table", type=Path, help="print such a file, and count nothing")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    import_library(args.library.resolve())
    rows = []
    for row in count(args.names):
        rows.append(row)
        print(json.dumps(row), flush=True)
    commits = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    commits[commit_of(args.library)] = rows
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(commits, indent=1) + "\n")
    print(table(commits))


if __name__ == "__main__":
    main()
