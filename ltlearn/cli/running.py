"""Run a recipe from the command line and print the results."""

import json
import os
import shlex
import sys

import typer

from ltlearn.cli.console import EXIT_INTERRUPTED, configured_log, exit_with, printer
from ltlearn.cli.options import RunFlags
from ltlearn.errors import UserError

__all__ = ["run_and_print"]


def run_and_print(recipe, flags: RunFlags, suffix: str = "") -> None:
    """Run a recipe in its own folder and print its results.

    Args:
        recipe: The `Recipe`.
        flags: How to run it.
        suffix: Appended to the name of a new folder.
    """
    from ltlearn.utils.run_folder import Run

    run = Run.create(flags.settings.runs_path, recipe.name + suffix, flags.out, flags.resume)
    quiet = flags.quiet or flags.as_json
    with configured_log(quiet):
        try:
            result = _run(recipe, run, flags, quiet)
        except KeyboardInterrupt:
            again = shlex.join(
                [_program(), *_without_out(sys.argv[1:]), "--out", str(run.path), "--resume"]
            )
            exit_with(
                f"stopped; the finished parts are in {run.path}. Continue with: {again}",
                EXIT_INTERRUPTED,
            )
        except UserError:
            run.remove_if_empty()
            raise
    if flags.as_json:
        typer.echo(json.dumps({"run": str(run.path), **result.table.to_dict()}, indent=1))
        return
    if not quiet:
        from ltlearn.utils.terminal import render_stages

        render_stages(result.manifest["stages"], file=sys.stderr)
    result.table.render()
    if not quiet:
        print(f"report: {run.path / 'report.md'}", file=sys.stderr)  # noqa: T201


def _run(recipe, run, flags: RunFlags, quiet: bool):
    # The import of fastai takes seconds, so the options are checked before it.
    from ltlearn.experiments.runner import run_recipe

    return run_recipe(
        recipe,
        run,
        data_path=flags.settings.data_path,
        cache_path=flags.settings.cache_path / "features",
        device=flags.settings.device,
        precision=flags.settings.precision,
        skip_bad=flags.skip_bad,
        on_nan=flags.on_nan,
        keep_all=flags.keep_all,
        tensorboard=flags.tensorboard,
        compile=flags.compile,
        num_workers=flags.num_workers,
        follow_links=flags.follow_links,
        command=shlex.join([_program(), *sys.argv[1:]]),
        notify=printer(quiet),
    )


def _program() -> str:
    return os.environ.get("LTLEARN_PROGRAM", "ltlearn")


def _without_out(words: list[str]) -> list[str]:
    """Drop --out and --resume from a command line."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out=") and word != "--resume":
            kept.append(word)
    return kept
