"""`ltlearn inspect` and `ltlearn data`."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltlearn.cli.console import EXIT_USER, configured_log, exit_with, report_interrupt
from ltlearn.cli.options import (
    IMAGE_COL,
    IMAGES,
    JSON,
    LABEL_COL,
    QUIET,
    SPLIT_COL,
    SUFFIX,
    TEST,
    VALID,
    reading_values,
)
from ltlearn.errors import UserError, check_choice

if TYPE_CHECKING:
    from ltlearn.inspection.result import Advice

__all__ = []


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder per class, or train/, valid/, test/ with those; a CSV, TSV or JSON.",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Read only the headers of images, and search no duplicates."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for inspection.md, inspection.json and class_counts.png."),
    ] = None,
    few: Annotated[str, typer.Option(help="Which classes are few-shot: <20 or <=20.")] = "<20",
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
    """Describe your images: counts, damage, duplicates, and how to train on them."""
    path = path.expanduser()
    if out is not None and out.expanduser().resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--out {out} is inside {path}, where it would be taken for a class; give a folder "
            "elsewhere."
        )
    with report_interrupt(), configured_log(quiet or as_json):
        from ltlearn.inspection.inspect import inspect_path
        from ltlearn.metrics.shots import FEW_RULES

        check_choice("--few", few, FEW_RULES)
        reading = reading_values(images, image_col, label_col, split_col, suffix, valid, test)
        report = inspect_path(path, quick=quick, few=few, **reading)
        command = advised_command(report.advice, path, reading) if report.advice else None
        if out is not None:
            report.save(out.expanduser(), command)
    if as_json:
        typer.echo(json.dumps(report.to_dict(command), indent=1))
    else:
        report.render(command=command)
    if out is not None and not (quiet or as_json):
        print(f"written: {out / 'inspection.md'}", file=sys.stderr)  # noqa: T201
    if report.problems:
        exit_with(f"cannot train on {path}: {report.problems[0]}", EXIT_USER)


def advised_command(advice: "Advice", source: Path, reading: Mapping[str, Any]) -> str:
    """Return the command that trains as advised.

    Args:
        advice: The advice of an inspection.
        source: The folder or file.
        reading: How a list is read, by parameter; None where not given.
    """
    options = {
        **reading,
        "arch": advice.arch,
        "size": advice.size,
        "epochs": advice.epochs,
        "method": advice.method,
        "batch_size": advice.batch_size,
    }
    words = ["ltlearn", "train", str(source)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", "none" if value is False else str(value)]
    return shlex.join(words + ["--skip-bad"] * advice.skip_bad)


def data(
    name: Annotated[str, typer.Argument(help="A benchmark, such as inat2018.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the images; data_path if not given.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it first, where a program may.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Links may lead out of the folder.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Fetch large sets without being asked.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Check a copy of a benchmark against what is published, or say how to get one."""
    from ltlearn.utils.settings import load_settings

    root = load_settings(data_path=root).data_path.expanduser()
    with report_interrupt(), configured_log(as_json):
        from ltlearn.data.benchmarks.check import check_benchmark
        from ltlearn.data.benchmarks.download import download_benchmark

        if download:
            report = download_benchmark(
                name, root, confirm=(lambda question: True) if yes else _ask
            )
        else:
            report = check_benchmark(name, root, follow_links)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as e:
        if isinstance(e.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise UserError(
            "nothing was fetched: it is to be confirmed, and there is nobody to ask; give --yes."
        ) from None
