"""`ltlearn inspect` and `ltlearn data`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltlearn.cli.console import EXIT_USER, configured_log, exit_with, print_json, report_interrupt
from ltlearn.cli.options import (
    DATA_SOURCE,
    FEW,
    FOLLOW_LINKS,
    IMAGE_COL,
    IMAGES,
    JSON,
    LABEL_COL,
    QUIET,
    SPLIT_COL,
    SUFFIX,
    TEST,
    VALID,
)
from ltlearn.errors import UserError, check_choice, spell, spell_call
from ltlearn.names import FEW_RULES

if TYPE_CHECKING:
    from ltlearn.data.options import ReadOptions
    from ltlearn.inspection.result import Advice

__all__ = ["advised_command"]


def inspect(
    path: DATA_SOURCE,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Read only the headers of images, and search no duplicates."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for inspection.md, inspection.json and class_counts.png."),
    ] = None,
    few: FEW = FEW_RULES[0],
    images: IMAGES = None,
    image_col: IMAGE_COL = None,
    label_col: LABEL_COL = None,
    split_col: SPLIT_COL = None,
    suffix: SUFFIX = None,
    valid: VALID = None,
    test: TEST = None,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Describe your images, and advise how to train on them."""
    from ltlearn.cli.running import read_options

    path = path.expanduser()
    if out is not None and out.expanduser().resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"{spell('out', out)} is inside {path}, where it would be read as a class; give a "
            "folder elsewhere."
        )
    check_choice(spell("few"), few, FEW_RULES)
    reading = read_options(images, image_col, label_col, split_col, suffix, valid, test)
    with report_interrupt(), configured_log(quiet or as_json):
        from ltlearn.inspection.inspect import inspect_path

        report = inspect_path(path, quick=quick, few=few, **reading.given())
        command = advised_command(report.advice, path, reading) if report.advice else None
        if out is not None:
            report.save(out.expanduser(), command)
    if as_json:
        print_json(report.to_dict(command))
    else:
        report.render(command=command)
    if out is not None and not (quiet or as_json):
        print(f"written: {out / 'inspection.md'}", file=sys.stderr)  # noqa: T201
    if report.problems:
        exit_with(f"cannot train on {path}: {report.problems[0]}", EXIT_USER)


def advised_command(advice: "Advice", source: Path, reading: "ReadOptions") -> str:
    """Return the command that trains as advised.

    Args:
        advice: The advice of an inspection.
        source: The folder or file.
        reading: How a list is read.
    """
    command = spell_call(
        "own_recipe",
        source=source,
        **reading.given(),
        arch=advice.arch,
        size=advice.size,
        epochs=advice.epochs,
        method=advice.method,
        batch_size=advice.batch_size,
        skip_bad=advice.skip_bad or None,
    )
    return command.strip("`")


def data(
    name: Annotated[str, typer.Argument(help="A benchmark, such as inat2018.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the images; by default, data_path.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="First download the images, if that is possible.")
    ] = False,
    follow_links: FOLLOW_LINKS = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Download large benchmarks without asking.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Check a copy of a benchmark, or explain how to get one."""
    from ltlearn.utils.settings import load_settings

    root = load_settings(data_path=root).data_path.expanduser()
    with report_interrupt(), configured_log(as_json):
        from ltlearn.data.benchmarks.check import check_benchmark
        from ltlearn.data.benchmarks.download import download_benchmark

        if download:
            confirm = (lambda question: True) if yes else _ask
            report = download_benchmark(name, root, confirm=confirm)
        else:
            report = check_benchmark(name, root, follow_links)
    print_json(report.to_dict()) if as_json else typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as e:
        if isinstance(e.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise UserError(
            "nothing was downloaded: a large download needs a confirmation, and standard input "
            f"gives no answer; give {spell('yes', True)}."
        ) from None
