"""Run a recipe from the command line and print the results."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from ltlearn.cli.console import EXIT_INTERRUPTED, configured_log, exit_with, printer
from ltlearn.errors import UserError

__all__ = ["run_and_print"]


def run_and_print(
    wanted, settings, out: Path | None, resume: bool, quiet: bool, as_json: bool,
    suffix: str = "", **options: Any,
) -> None:  # fmt: skip
    """Run a recipe in a folder of its own, and print what came out."""
    from ltlearn.utils.run_folder import Run

    run = Run.create(settings.runs_path, wanted.name + suffix, out, resume)
    program = os.environ.get("LTLEARN_PROGRAM", "ltlearn")
    command = shlex.join([program, *sys.argv[1:]])
    quiet = quiet or as_json
    with configured_log(quiet):
        try:
            # fastai takes seconds to import: everything that can be refused has been by now.
            from ltlearn.experiments.runner import run_recipe

            result = run_recipe(
                wanted,
                run,
                data_path=settings.data_path,
                cache_path=settings.cache_path / "features",
                device=settings.device,
                precision=settings.precision,
                command=command,
                notify=printer(quiet),
                **options,
            )
        except KeyboardInterrupt:
            again = shlex.join(
                [program, *_without_out(sys.argv[1:]), "--out", str(run.path), "--resume"]
            )
            exit_with(
                f"stopped; what is finished is in {run.path}. Go on with: {again}", EXIT_INTERRUPTED
            )
        except UserError:
            run.remove_if_empty()
            raise
    if as_json:
        typer.echo(json.dumps({"run": str(run.path), **result.table.to_dict()}, indent=1))
        return
    if not quiet:
        from ltlearn.utils.terminal import render_stages

        render_stages(result.manifest["stages"], file=sys.stderr)
    result.table.render()
    if not quiet:
        print(f"report: {run.path / 'report.md'}", file=sys.stderr)  # noqa: T201


def _without_out(words: list[str]) -> list[str]:
    """Drop --out and --resume from a command line, to give them anew."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out=") and word != "--resume":
            kept.append(word)
    return kept
