"""`ltlearn inspect` and `ltlearn data`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltlearn.cli.console import (
    EXIT_USER,
    configured_log,
    exit_with,
    print_json,
    printer,
    report_interrupt,
    split_names,
)
from ltlearn.cli.options import (
    ALLOW_HUB,
    DATA,
    DEVICE,
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
from ltlearn.names import DEFAULT_STAGE1, FEW_RULES

if TYPE_CHECKING:
    from ltlearn.data.options import ReadOptions
    from ltlearn.inspection.result import Advice

__all__ = ["advised_command"]

_SHOWN = 20  # findings that are printed
# What only an inspection of images has, and only one of a run.
_FOR_IMAGES = (
    "quick", "out", "few", "images", "image_col", "label_col", "split_col", "suffix", "valid",
    "test",
)  # fmt: skip
_FOR_RUN = ("kinds", "apply", "seed", "data", "device", "allow_hub")


def inspect(
    ctx: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|RUN",
            help="Images: a folder per class; or train/, and optionally valid/ and test/, each "
            "with a folder per class; or a CSV, TSV or JSON file that lists images; or WebDataset "
            "shards, .tar files. Or the folder of a run.",
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
    few: FEW = FEW_RULES[0],
    images: IMAGES = None,
    image_col: IMAGE_COL = None,
    label_col: LABEL_COL = None,
    split_col: SPLIT_COL = None,
    suffix: SUFFIX = None,
    valid: VALID = None,
    test: TEST = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Of a run: the kinds of findings to search, separated by commas: unreadable, "
            "leak, conflict, label, duplicate, unusual. By default, all."
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            help="Of a run: a clean.csv with drop or relabel in the column action; writes "
            "cleaned.csv, the list of the images after that."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of a run: the seed whose model is used; by default, the first."),
    ] = None,
    data: DATA = None,
    device: DEVICE = None,
    allow_hub: ALLOW_HUB = False,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Describe your images and advise how to train on them; or find bad ones by a trained model.

    Given images, print counts, damaged files, duplicates and advice.

    Given a run, use its trained backbone to find likely label errors, images that nearly equal
    another one, also across training, validation and test, and images unlike their class. Writes
    clean.csv and clean.html, a page of thumbnails, into the run. Needs the extra clean.
    """
    from ltlearn.cli.running import read_options

    path = path.expanduser()
    is_run = _holds_run(path)
    _refuse_other_options(ctx, path, is_run)
    if is_run:
        _inspect_run(ctx, path)
        return
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


def _holds_run(path: Path) -> bool:
    """Return whether a path is a run; a folder of images may have a manifest.json, too."""
    if not (path / "manifest.json").is_file():
        return False
    from ltlearn.experiments.manifest import read_manifest
    from ltlearn.utils.run_folder import Run

    try:
        read_manifest(Run(path))
    except UserError:
        return (path / "checkpoints").is_dir()  # a damaged run
    return True


def _refuse_other_options(ctx: typer.Context, path: Path, is_run: bool) -> None:
    """Raise a `UserError` if an option is given that has no meaning for what the path is."""
    for name in _FOR_IMAGES if is_run else _FOR_RUN:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            kinds = ("images", "a run") if is_run else ("a run", "images")
            raise UserError(
                f"{spell(name)} is for {kinds[0]}, but {path} holds {kinds[1]}; leave it out."
            )


def _inspect_run(ctx: typer.Context, path: Path) -> None:
    """Find images to look at in a run, or write the list after a person's actions."""
    from ltlearn.utils.settings import load_settings

    given = ctx.params
    quiet = given["quiet"] or given["as_json"]
    settings = load_settings(device=given["device"])
    kinds = split_names(spell("kinds"), given["kinds"])
    with report_interrupt(), configured_log(quiet):
        from ltlearn.cleaning.issues import TABLE_HEAD
        from ltlearn.experiments import clean_run
        from ltlearn.utils.run_folder import Run
        from ltlearn.utils.terminal import render_rows

        options = {
            "seed": given["seed"], "data_path": given["data"], "device": settings.device,
            "cache_path": settings.cache_path / "features", "allow_hub": given["allow_hub"],
        }  # fmt: skip
        if given["apply"] is not None:
            n = clean_run.apply_actions(Run(path), given["apply"], **options)
            written = path / clean_run.CLEANED_CSV
            if given["as_json"]:
                print_json({"run": str(path), "written": str(written), "images": n})
            else:
                typer.echo(f"{written} lists {n:,} images; train on them with")
                typer.echo(spell_call("own_recipe", source=written).strip("`"))
            return
        issues = clean_run.clean_run(Run(path), kinds, notify=printer(quiet), **options)
    if given["as_json"]:
        print_json({"run": str(path), **issues.to_dict()})
        return
    for line in issues.summary():
        typer.echo(line)
    if len(issues):
        render_rows(TABLE_HEAD, issues.rows(_SHOWN))
    if len(issues) > _SHOWN:
        typer.echo(f"and {len(issues) - _SHOWN:,} more")
    if not quiet:
        print(f"table: {path / clean_run.CLEAN_CSV}", file=sys.stderr)  # noqa: T201
        print(f"thumbnails: {path / clean_run.CLEAN_HTML}", file=sys.stderr)  # noqa: T201


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
        stage1=None if advice.stage1 == DEFAULT_STAGE1 else advice.stage1,
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
