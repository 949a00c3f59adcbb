"""`ltlearn report`."""

import logging
from typing import Annotated

import typer

from ltlearn.cli.console import configured_log, existing_run, printer, report_interrupt
from ltlearn.cli.options import DATA, QUIET, RUN
from ltlearn.errors import UserError, log_once

__all__ = []


def report(
    run: RUN,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    images: Annotated[
        bool,
        typer.Option(
            "--images/--no-images",
            help="Show misclassified images, for which the data is read.",
        ),
    ] = True,
    data: DATA = None,
    quiet: QUIET = False,
) -> None:
    """Write report.html of a finished run again, and compare.html of its comparison.

    Each page is a single file that loads nothing else, so it can be sent as it is.
    """
    folder = existing_run(run)
    with report_interrupt(), configured_log(quiet):
        from ltlearn.experiments.report_page import rewrite_pages

        # A run or a comparison that writes to the folder writes its page too; this one comes after.
        with folder.lock(on_wait=logging.getLogger("ltlearn").warning), log_once():
            pages = rewrite_pages(folder, data, images, printer(quiet))
    for page in pages:
        typer.echo(str(page))
    if show:
        _open(pages[0])


def _open(page) -> None:
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        raise UserError(f"no browser could be started; open {page} in one.")
