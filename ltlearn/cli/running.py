"""Run a recipe from the command line and print the results.

Commands import this module when they run: making its dataclasses takes milliseconds, and help needs
none of them.
"""

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltlearn.cli.console import (
    configured_log,
    exit_interrupted,
    print_json,
    print_report,
    printer,
    report_interrupt,
    split_names,
)
from ltlearn.data.options import ReadOptions
from ltlearn.errors import UserError, check_choice, spell
from ltlearn.names import ON_NAN
from ltlearn.utils.ranks import by_first, world
from ltlearn.utils.settings import Settings

__all__ = [
    "OwnRun",
    "RunFlags",
    "read_options",
    "run_and_print",
    "run_own_and_print",
]


def read_options(images, image_col, label_col, split_col, suffix, valid, test) -> ReadOptions:
    """Return the reading options for the values of their flags."""

    def column(name: str | None) -> str | int | None:
        return int(name) if name is not None and name.isdecimal() else name

    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return ReadOptions(
        images=text(images),
        image_col=column(image_col),
        label_col=column(label_col),
        split_col=False if split_col == "none" else column(split_col),
        suffix=suffix or "",
        valid=text(valid),
        test=text(test),
    )


@dataclass(frozen=True)
class RunFlags:
    """How a recipe is run and its result printed.

    Args:
        settings: The settings in force.
        out: Folder of the run; None makes one.
        resume: Whether to continue a run.
        quiet: Whether to print only the results.
        as_json: Whether to print the results as JSON.
        on_nan: "stop" or "skip".
        skip_bad: Whether to leave out unreadable images.
        keep_all: Whether to keep the checkpoint of every epoch.
        tensorboard: Whether to write TensorBoard event files.
        compile: Whether to compile the backbone.
        follow_links: Whether links may lead out of a benchmark's folder.
        num_workers: Processes that read images; None takes the setting.

    Raises:
        UserError: If `on_nan` is neither "stop" nor "skip".
    """

    settings: Settings
    out: Path | None = None
    resume: bool = False
    quiet: bool = False
    as_json: bool = False
    on_nan: str = "stop"
    skip_bad: bool = False
    keep_all: bool = False
    tensorboard: bool = False
    compile: bool = False
    follow_links: bool = False
    num_workers: int | None = None

    def __post_init__(self):
        check_choice(spell("on_nan"), self.on_nan, ON_NAN)


@dataclass(frozen=True)
class OwnRun:
    """A training on the user's images.

    Args:
        data: The images.
        method: Names of methods, separated by commas.
        values: Recipe key to value; None is one that was not given.
        reading: How the images are read.
        overrides: Values of `--set`.
        checkpoint: A trained model, in place of stage 1.
        reset: Whether to replace its classifier.
    """

    data: Path
    method: str
    values: dict[str, Any]
    reading: ReadOptions
    overrides: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    reset: bool = False


def run_own_and_print(own: OwnRun, flags: RunFlags) -> None:
    """Build the recipe of a user's images, run it and print its results.

    Args:
        own: The images, and what to train on them.
        flags: How to run the recipe.
    """
    methods = split_names(spell("method"), own.method)
    _check_outside(own.data, flags)
    with report_interrupt(), configured_log(flags.quiet or flags.as_json):
        from ltlearn.experiments.own_data import own_recipe

        reading = {f"data.{name}": value for name, value in own.reading.given().items()}
        recipe = own_recipe(
            own.data, methods, own.values | reading, own.overrides,
            checkpoint=own.checkpoint, reset=own.reset, skip_bad=flags.skip_bad,
        )  # fmt: skip
    run_and_print(recipe, flags)


def _check_outside(data: Path, flags: RunFlags) -> None:
    """Raise a `UserError` if the run's folder would lie among the images."""
    out = flags.settings.runs_path if flags.out is None else flags.out
    if out.expanduser().resolve().is_relative_to(data.expanduser().resolve()):
        given = flags.out is not None
        subject = spell("out", out) if given else f"the folder of runs, {out},"
        raise UserError(
            f"{subject} is inside {data}, where it would be read as a class; give "
            f"{'a' if given else spell('out') + ' with a'} folder elsewhere."
        )


def run_and_print(recipe, flags: RunFlags, suffix: str = "") -> None:
    """Run a recipe in its own folder and print its results.

    Args:
        recipe: The `Recipe`.
        flags: How to run it.
        suffix: Appended to the name of a new folder.
    """
    from ltlearn.utils.run_folder import Run

    run = by_first(Run.create)(
        flags.settings.runs_path, recipe.name + suffix, flags.out, flags.resume
    )
    quiet = flags.quiet or flags.as_json
    with configured_log(quiet), run.lock():
        try:
            result = _run(recipe, run, flags, quiet)
        except KeyboardInterrupt as error:
            again = shlex.join(
                [*_program(), *_without_out(sys.argv[1:]), "--out", str(run.path), "--resume"]
            )
            exit_interrupted(
                f"stopped; the finished parts are in {run.path}. Continue with: {again}", error
            )
        except UserError:
            run.remove_if_empty()
            raise
    if flags.as_json:
        print_json({"run": str(run.path), **result.table.to_dict()})
        return
    if not quiet:
        from ltlearn.utils.terminal import render_stages

        render_stages(result.manifest["stages"], file=sys.stderr)
    result.table.render()
    if not quiet:
        result.classes.render()
        print_report(run.path, "report")


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
        command=shlex.join([*_program(), *sys.argv[1:]]),
        notify=printer(quiet),
    )


def _program() -> list[str]:
    if world() > 1:
        processes = os.environ.get("LOCAL_WORLD_SIZE", str(world()))
        return ["torchrun", "--nproc_per_node", processes, "-m", "ltlearn"]
    return [os.environ.get("LTLEARN_PROGRAM", "ltlearn")]


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
