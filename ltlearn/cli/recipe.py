"""`ltlearn recipe`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ltlearn.cli.console import existing_run
from ltlearn.cli.running import run_and_print
from ltlearn.errors import UserError, check_choice

__all__ = []


def recipe(
    name: Annotated[
        str, typer.Argument(help="A name of `ltlearn recipes`, or a TOML file.", show_default=False)
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as stage1.epochs=2."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="clean: choose on carved validation images. paper: on the test set, as published."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds to run.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink everything to seconds, to see that it runs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; made under runs_path if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out.")
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="Links in the folder of a published list may lead out of it."
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run nothing: compare a finished run with the published figures.",
        ),
    ] = None,
    on_nan: Annotated[
        str,
        typer.Option(help="A step whose loss is not finite: stop there, or skip it."),
    ] = "stop",
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep the checkpoint of every epoch.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the backbone (torch.compile) for stage 1.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's event files, too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run a benchmark: stage 1, stage 2, report."""
    from ltlearn.experiments.read_recipe import load_recipe
    from ltlearn.utils.settings import load_settings

    if check is not None:
        _check(name, check, as_json)
        return
    # Those of `FiniteLoss`, which would import fastai.
    check_choice("--on-nan", on_nan, ("stop", "skip"))
    settings = load_settings(data_path=data, device=device, precision=precision)
    overrides = list(set_ or [])
    overrides += [f"protocol={json.dumps(protocol)}"] if protocol is not None else []
    overrides += [f"seeds={seeds}"] if seeds is not None else []
    wanted = load_recipe(name, overrides)
    if smoke:
        wanted = wanted.smoke()
    if data is not None and wanted.data.dataset == "own":
        raise UserError(f"{name} says itself where its images are; give --set data.source={data}.")
    run_and_print(
        wanted, settings, out, resume, quiet, as_json,
        suffix="-smoke" if smoke else "", skip_bad=skip_bad, on_nan=on_nan, keep_all=keep_all,
        tensorboard=tensorboard, compile=compile_, follow_links=follow_links,
    )  # fmt: skip


def _check(name: str, path: Path, as_json: bool) -> None:
    """Print a run beside the published figures; exit with 1 where one is outside its tolerance."""
    from ltlearn.experiments.expected import check_run
    from ltlearn.experiments.read_recipe import load_recipe
    from ltlearn.utils.terminal import render_rows

    checks, changes = check_run(name, existing_run(path))
    head = ["method", "group", "published", "measured", "difference", "tolerance", "verdict"]
    if as_json:
        rows = [
            {
                **c.expected.model_dump(), "measured": c.measured, "difference": c.difference,
                "passed": c.passed,
            }
            for c in checks
        ]  # fmt: skip
        typer.echo(json.dumps({"run": str(path), "checks": rows, "changes": changes}, indent=1))
    else:
        protocol = checks[0].expected.protocol
        title = f"{name}: test accuracy in %, {protocol} protocol"
        render_rows(head, [c.row() for c in checks], title=title)
        for source in dict.fromkeys(c.expected.source for c in checks):
            typer.echo(f"published: {source}")
        typer.echo(f"status of the recipe: {load_recipe(name).status}")
        if changes:
            typer.echo(f"the run differs from the recipe: {'; '.join(changes)}")
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
