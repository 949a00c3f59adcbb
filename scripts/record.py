"""Write the result of a finished run to `results/`: `scripts/record_result RUN`."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltlearn.errors import UserError
from ltlearn.experiments.compared import COMPARE_FILE
from ltlearn.experiments.expected import changed_values
from ltlearn.experiments.manifest import (
    Manifest,
    how_to_finish,
    read_manifest,
    recorded_recipe,
    stage_name,
)
from ltlearn.experiments.measured import (
    FINGERPRINTS,
    Hardware,
    MeasuredResult,
    MeasuredRow,
)
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.sections import Expected, PublishedFigure
from ltlearn.names import FIGURES
from ltlearn.reporting.table import LAST_EPOCH
from ltlearn.utils.run_folder import Run

ROOT = Path(__file__).resolve().parents[1]
# Options of a command whose value is a place, with its name in a file; None leaves the option out.
_PLACES = {"--data": "DIR", "--out": "RUN", "--cache": None, "--device": None}
_FLAGS = ("--resume", "--quiet", "-q")  # they change no figure


def results_of_run(run: Run, commit: str) -> list[MeasuredResult]:
    """Return the result of a finished run, and that of its comparison if there is one.

    Args:
        run: A folder that `run_recipe` wrote.
        commit: The commit of the code that ran, in hexadecimal digits.

    Raises:
        UserError: If the run is not finished, or its images are the user's own.
    """
    manifest, ran = read_manifest(run), recorded_recipe(run)
    if not manifest.is_finished:
        raise UserError(
            f"{run.path} holds no finished run; finish it with {how_to_finish(ran, run)}."
        )
    if ran.data.dataset == "own":
        raise UserError(f"{run.path} is a run of own images; only runs of recipes are recorded.")
    facts = _facts(manifest, ran, commit)
    results = [_result("run", manifest.results, ran, facts)]
    for row in results[0].rows:
        row.by_epoch = _by_epoch(run, results[0].seeds[0], row.method)
    if (run.path / COMPARE_FILE).is_file():
        table = run.read_json(COMPARE_FILE, sealed=None)
        results.append(_result("comparison", table, ran, facts))
    return results


def _by_epoch(run: Run, seed: int, method: str) -> list[float]:
    """Return the accuracies that the log of a stage 2 has; none for other methods."""
    rows = run.read_csv(f"logs/{Path(stage_name(seed, method)).name}.csv")
    # A correction has one entry.
    return [round(100 * float(row["balanced"]), 2) for row in rows] if len(rows) > 1 else []


def _facts(manifest: Manifest, ran: Recipe, commit: str) -> dict[str, Any]:
    """Return the fields that run and comparison share."""
    split = manifest.split or {}
    stages = manifest.stages or [{}]
    # The values that choose a benchmark are no changes: a row of its own has them.
    given = {"protocol": ran.protocol, "stage1.method": ran.stage1.method}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    # Another stage 1 may not go with the recipe's own methods.
    overrides.append(f"methods={json.dumps(ran.methods)}")
    if ran.data.imbalance_factor is not None:
        overrides.append(f"data.imbalance_factor={ran.data.imbalance_factor:g}")
    recipe = load_recipe(manifest.recipe, overrides)
    return {
        "recipe": manifest.recipe,
        "protocol": ran.protocol,
        "dataset": ran.data.dataset,
        "imbalance_factor": ran.data.imbalance_factor,
        "split": split.get("name", ""),
        "fingerprints": {key: split.get(key) for key in FINGERPRINTS},
        "arch": ran.model.arch,
        "width": ran.model.width,
        "epochs": ran.stage1.epochs,
        "changed": [_change(text) for text in changed_values(recipe, ran)],
        "stage1": ran.stage1.method,
        "few": ran.data.few,
        "command": plain_command(manifest.command),
        "commit": commit,
        "hardware": Hardware(
            device=manifest.device, cores=manifest.cpu_count, threads=manifest.threads,
            precision=str(stages[0].get("precision", "")),
        ),
        "versions": {k: manifest.versions.get(k) for k in ("ltlearn", "torch", "python")},
        "training_seconds": manifest.training_seconds,
    }  # fmt: skip


def _change(text: str) -> str:
    return text.partition(", not ")[0].replace("'", "")


def _result(
    kind: str, table: Mapping[str, Any], ran: Recipe, facts: Mapping[str, Any]
) -> MeasuredResult:
    applying = ran.model_copy(update={"expected": load_recipe(ran.name).expected})
    published = {
        e.method: e for e in applying.published() if (e.group, e.protocol) == ("all", ran.protocol)
    }
    rows, groups = [], table["rows"][0]["reports"][0]["group_sizes"]
    for row in table["rows"]:
        own = published.get(row["method"]) if kind == "run" else None
        rows.append(_row(row, own, ran.stage1.method))
    seeds = table.get("stage1_seeds") or table["seeds"]
    return MeasuredResult(kind=kind, rows=rows, groups=groups, seeds=seeds, **facts)


def _row(row: Mapping[str, Any], published: Expected | None, stage1: str) -> MeasuredRow:
    shown = {g: row["summary"].get(g) for g in FIGURES}
    shown = {group: figure for group, figure in shown.items() if figure is not None}
    figure, to_stage1 = None, row.get("differences", {}).get(stage1)
    last = row["summary"].get(LAST_EPOCH)
    if published is not None:
        figure = PublishedFigure(**published.model_dump(include=set(PublishedFigure.model_fields)))
    return MeasuredRow(
        method=row["method"],
        label=row["label"],
        selected=row["selected"],
        accuracy={group: round(100 * f["mean"], 3) for group, f in shown.items()},
        deviation={g: round(100 * f["sd"], 3) for g, f in shown.items() if f["sd"] is not None},
        published=figure,
        last_epoch=None if last is None else round(100 * last["mean"], 3),
        to_stage1=None if to_stage1 is None else tuple(_points(to_stage1)),
    )


def _points(difference: Mapping[str, Any]) -> list[float | None]:
    ends = [difference.get(key) for key in ("estimate", "low", "high")]
    return [None if end is None else round(100 * end, 3) for end in ends]


def plain_command(command: str) -> str:
    """Return a command without folders of the machine that it ran on.

    Args:
        command: The command line.
    """
    words, kept = shlex.split(command), []
    while words:
        word = words.pop(0)
        option, equals, _ = word.partition("=")
        if option in _PLACES:
            if not equals and words:
                words.pop(0)
            place = _PLACES[option]
            kept += [] if place is None else [option, place]
        elif word not in _FLAGS:
            kept.append(word)
    return shlex.join(kept)


def current_commit() -> str:
    """Return the commit of this tree."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _commit(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{7,40}", text):
        raise argparse.ArgumentTypeError(f"give 7 to 40 hexadecimal digits, not {text!r}")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/record_result", description="Record the figures of finished runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--commit", type=_commit, help="commit of the code that ran (default: that of this tree)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the results")
    parser.add_argument("--suffix", default="", help="end of the file's name, for changed values")
    options = parser.parse_args(arguments)
    try:
        for folder in options.runs:
            commit = options.commit or current_commit()
            for result in results_of_run(Run(folder), commit):
                file = options.out / f"{result.name}{options.suffix}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(result.to_json(), encoding="utf-8")
                _report(file, result)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _report(file: Path, result: MeasuredResult) -> None:
    print(f"{file}: {result.changes or 'the values of the recipe'}")
    for row in result.rows:
        figure, verdict = row.published, {None: "", True: "inside", False: "outside"}[row.passed]
        published = "" if figure is None else f", published {figure.text} ({verdict})"
        print(f"  {row.label}: {row.accuracy['all']:.2f}{published}")


if __name__ == "__main__":
    sys.exit(main())
