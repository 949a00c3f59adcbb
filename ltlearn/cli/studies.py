"""`ltlearn compare` and `ltlearn sensitivity`."""

import sys
from typing import Annotated

import typer

from ltlearn.cli.console import (
    configured_log,
    existing_run,
    print_json,
    print_report,
    printer,
    report_interrupt,
    split_names,
)
from ltlearn.cli.options import ALLOW_HUB, DATA, DEVICE, JSON, PRIOR_NAMES, QUIET, RUN, SELECT
from ltlearn.errors import check_choice, check_whole, spell, spell_call
from ltlearn.names import PRIORS, SELECTS

__all__ = []


def compare(
    run: RUN,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; by default, all classifiers of `ltlearn methods`."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method that draws at random.")] = 1,
    priors: Annotated[
        str | None,
        typer.Option(help=f"Class priors to test under: {PRIOR_NAMES}, separated by commas."),
    ] = None,
    select: SELECT = "best",
    data: DATA = None,
    allow_hub: ALLOW_HUB = False,
    device: DEVICE = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Compare all ways to correct the classifier of a run.

    All methods get the same features of the backbone. After a run by the paper protocol, each
    method that trains does so on the images, as published code does; it takes as long as a whole
    stage 2. A further comparison adds its rows to the table.
    `ltlearn predict RUN IMAGE --method NAME` uses one of its classifiers.
    """
    from ltlearn.methods import find_methods
    from ltlearn.utils.settings import load_settings

    folder, names = existing_run(run), split_names(spell("methods"), methods)
    prior_names = split_names(spell("priors"), priors) or ()
    names = None if names is None else find_methods(names)
    check_choice(spell("select"), select, SELECTS)
    check_whole(spell("seeds"), seeds, 1)
    for prior in prior_names:
        check_choice(spell("priors"), prior, PRIORS)
    settings = load_settings(device=device)
    quiet = quiet or as_json
    remedy = f"; the finished methods are in {run / 'compare'}, and the same command continues"
    with report_interrupt(remedy), configured_log(quiet):
        from ltlearn.experiments.compare_run import compare_run
        from ltlearn.utils.terminal import render_rows

        result = compare_run(
            folder, names, seeds,
            priors=prior_names, select=select, data_path=data,
            cache_path=settings.cache_path / "features", device=settings.device,
            allow_hub=allow_hub, notify=printer(quiet),
        )  # fmt: skip
    if as_json:
        print_json({"run": str(run), **result.to_dict()})
        return
    result.table().render()
    head, rows = result.difference_rows()
    if rows:
        render_rows(head, rows, title="differences by group in points")
    head, rows = result.prior_rows()
    if rows:
        render_rows(head, rows, title="accuracy in % under other class priors")
    if not quiet:
        use = spell_call("predict", model=str(run), images="IMAGE", method=result.best)
        print_report(run, "compare")
        print(f"{use} classifies with the best method", file=sys.stderr)  # noqa: T201


def sensitivity(
    run: RUN,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; by default, the methods whose hyper-parameter has a "
            "published range."
        ),
    ] = None,
    select: SELECT = "best",
    data: DATA = None,
    allow_hub: ALLOW_HUB = False,
    device: DEVICE = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Measure accuracy over the range of a hyper-parameter."""
    from ltlearn.methods import find_methods
    from ltlearn.utils.settings import load_settings

    folder, settings = existing_run(run), load_settings(device=device)
    names = None if methods is None else find_methods(split_names(spell("methods"), methods))
    check_choice(spell("select"), select, SELECTS)
    quiet = quiet or as_json
    with report_interrupt(), configured_log(quiet):
        from ltlearn.experiments.sensitivity import (
            SENSITIVITY_HEAD,
            SENSITIVITY_METHODS,
            sensitivity_run,
        )
        from ltlearn.utils.terminal import render_rows

        result = sensitivity_run(
            folder, names or SENSITIVITY_METHODS,
            select=select, data_path=data, cache_path=settings.cache_path / "features",
            device=settings.device, allow_hub=allow_hub, notify=printer(quiet),
        )  # fmt: skip
    if as_json:
        print_json({"run": str(run), **result.to_dict()})
        return
    render_rows(SENSITIVITY_HEAD, result.rows(), title="class-balanced accuracy in %")
    typer.echo(result.about_line())
