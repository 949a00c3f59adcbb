"""`ltlearn compare` and `ltlearn sensitivity`."""

import json
import sys
from typing import Annotated

import typer

from ltlearn.cli.console import configured_log, existing_run, printer, report_interrupt, split_names
from ltlearn.cli.options import DATA, DEVICE, JSON, QUIET, RUN, SELECT, SELECTS
from ltlearn.errors import check_choice, check_whole

__all__ = []


def compare(
    run: RUN,
    methods: Annotated[
        str | None,
        typer.Option(help="Names between commas; all of `ltlearn methods` if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method that draws at random.")] = 1,
    priors: Annotated[
        str | None, typer.Option(help="Class priors to test under, of uniform,train,reversed.")
    ] = None,
    select: SELECT = "best",
    data: DATA = None,
    device: DEVICE = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Compare every way to correct the classifier of a run, on the same features."""
    from ltlearn.methods import find_methods
    from ltlearn.utils.settings import load_settings

    folder, names, tested = (
        existing_run(run),
        split_names("--methods", methods),
        split_names("--priors", priors),
    )
    names = None if names is None else find_methods(names)
    check_choice("--select", select, SELECTS)
    check_whole("--seeds", seeds, 1)
    settings = load_settings(device=device)
    quiet = quiet or as_json
    kept = f"; what is trained is in {run / 'compare'}, and the same command goes on from there"
    with report_interrupt(kept), configured_log(quiet):
        from ltlearn.experiments.compare_run import compare_run
        from ltlearn.metrics.priors import PRIORS
        from ltlearn.utils.terminal import render_rows

        for prior in tested or ():
            check_choice("--priors", prior, PRIORS)
        result = compare_run(
            folder, names, seeds,
            priors=tested or (), select=select, data_path=data,
            cache_path=settings.cache_path / "features", device=settings.device,
            notify=printer(quiet),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"run": str(run), **result.to_dict()}, indent=1))
        return
    result.table().render()
    head, rows = result.prior_rows()
    if rows:
        render_rows(head, rows, title="accuracy in % under other class priors")
    if not quiet:
        print(f"report: {run / 'compare.md'}", file=sys.stderr)  # noqa: T201


def sensitivity(
    run: RUN,
    methods: Annotated[
        str | None,
        typer.Option(help="Names between commas; max_norm,label_aware_smoothing,samn if not given"),
    ] = None,
    select: SELECT = "best",
    data: DATA = None,
    device: DEVICE = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Show how much each method's accuracy depends on its own hyper-parameter."""
    from ltlearn.methods import find_methods
    from ltlearn.utils.settings import load_settings

    folder, settings = existing_run(run), load_settings(device=device)
    names = None if methods is None else find_methods(split_names("--methods", methods))
    check_choice("--select", select, SELECTS)
    quiet = quiet or as_json
    with report_interrupt(), configured_log(quiet):
        from ltlearn.experiments.sensitivity import SENSITIVITY_METHODS, sensitivity_run
        from ltlearn.utils.terminal import render_rows

        result = sensitivity_run(
            folder, names or SENSITIVITY_METHODS,
            select=select, data_path=data, cache_path=settings.cache_path / "features",
            device=settings.device, notify=printer(quiet),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"run": str(run), **result.to_dict()}, indent=1))
        return
    head = ["method", "hyper-parameter", "tried", "lowest", "highest", "span"]
    render_rows(head, result.rows(), title="class-balanced accuracy in %")
    typer.echo(result.about_line())
