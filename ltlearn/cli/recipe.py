"""`ltlearn recipe`."""

from pathlib import Path
from typing import Annotated

import typer

from ltlearn.cli.console import existing_run, print_json, to_json
from ltlearn.cli.options import (
    COMPILE,
    DEVICE,
    FOLLOW_LINKS,
    JSON,
    KEEP_ALL,
    ON_NAN_OPTION,
    OUT,
    PRECISION,
    PROTOCOL,
    QUIET,
    RESUME,
    SEEDS,
    SET,
    SKIP_BAD,
    TENSORBOARD,
)
from ltlearn.errors import UserError, spell

__all__ = []


def recipe(
    name: Annotated[
        str,
        typer.Argument(help="A name from `ltlearn recipes`, or a TOML file.", show_default=False),
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    set_: SET = None,
    protocol: PROTOCOL = None,
    seeds: SEEDS = None,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="Shrink the recipe to seconds, to check that it runs."),
    ] = False,
    out: OUT = None,
    resume: RESUME = False,
    device: DEVICE = None,
    precision: PRECISION = None,
    skip_bad: SKIP_BAD = False,
    follow_links: FOLLOW_LINKS = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Train nothing; compare a finished run with the published figures.",
        ),
    ] = None,
    on_nan: ON_NAN_OPTION = "stop",
    keep_all: KEEP_ALL = False,
    compile_: COMPILE = False,
    tensorboard: TENSORBOARD = False,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Run a benchmark: stage 1, stage 2, report."""
    from ltlearn.cli.running import RunFlags, run_and_print
    from ltlearn.experiments.read_recipe import load_recipe
    from ltlearn.utils.settings import load_settings

    if check is not None:
        _check(name, check, as_json)
        return
    flags = RunFlags(
        load_settings(data_path=data, device=device, precision=precision),
        out=out, resume=resume, quiet=quiet, as_json=as_json, on_nan=on_nan, skip_bad=skip_bad,
        keep_all=keep_all, tensorboard=tensorboard, compile=compile_, follow_links=follow_links,
    )  # fmt: skip
    values = {"protocol": protocol, "seeds": seeds}
    given = {key: value for key, value in values.items() if value is not None}
    chosen = load_recipe(
        name,
        [*(set_ or []), *(f"{key}={to_json(value)}" for key, value in given.items())],
    )
    if smoke:
        chosen = chosen.smoke()
    if data is not None and chosen.data.dataset == "own":
        raise UserError(
            f"the recipe {name} names its own images; give {spell('data.source', str(data))}."
        )
    run_and_print(chosen, flags, "-smoke" if smoke else "")


def _check(name: str, path: Path, as_json: bool) -> None:
    """Print a run beside the published figures; exit with 1 if one is outside its tolerance."""
    from ltlearn.experiments.expected import check_run
    from ltlearn.experiments.read_recipe import load_recipe
    from ltlearn.utils.terminal import render_rows

    checks, changes = check_run(name, existing_run(path))
    if as_json:
        rows = [
            {
                **c.expected.model_dump(), "measured": c.measured, "difference": c.difference,
                "passed": c.passed,
            }
            for c in checks
        ]  # fmt: skip
        print_json({"run": str(path), "checks": rows, "changes": changes})
    else:
        head = ["method", "group", "published", "measured", "difference", "tolerance", "verdict"]
        protocol = checks[0].expected.protocol
        title = f"{name}: test accuracy in %, {protocol} protocol"
        render_rows(head, [c.row() for c in checks], title=title)
        for source in dict.fromkeys(s for c in checks for s in c.expected.sources):
            typer.echo(f"published: {source}")
        typer.echo(f"status of the recipe: {load_recipe(name).status}")
        if changes:
            typer.echo(f"the run differs from the recipe: {'; '.join(changes)}")
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
