"""`ltlearn predict`."""

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ltlearn.cli.console import configured_log, print_json, report_interrupt
from ltlearn.cli.options import ALLOW_HUB, DEVICE, JSON, PRIOR_NAMES
from ltlearn.errors import UserError, check_choice, spell
from ltlearn.names import PRIORS
from ltlearn.utils.text import clean

__all__ = []


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a run, or one of its weights files (.safetensors); a folder of timm; "
            "or an ONNX file that `ltlearn export` wrote.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images, or folders of them at any depth."),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="Method whose classifier predicts, also one that `ltlearn compare` trained; best "
            "is the one that it found best on validation. By default, the run's last."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Number of classes to print for each image.", min=1)] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="CSV file to write, one row per image, instead of a table.")
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            help=f"Class prior of the images: {PRIOR_NAMES}. train is the prior of the training "
            "images."
        ),
    ] = None,
    allow_hub: ALLOW_HUB = False,
    device: DEVICE = None,
    as_json: JSON = False,
) -> None:
    """Classify images with a trained model.

    Unreadable images are reported on standard error, and the exit code is then 1.
    """
    from ltlearn.utils.settings import load_settings

    device = load_settings(device=device).device
    if target_prior is not None:
        check_choice(spell("target_prior"), target_prior, PRIORS)
    with report_interrupt(), configured_log(False):
        from ltlearn.experiments.build import pick_device
        from ltlearn.experiments.predictor import Predictor, find_images
        from ltlearn.utils.progress import track

        predictor = Predictor(model, method, pick_device(device), target_prior, allow_hub)
        # Only the paths. Images are read one batch at a time.
        paths = list(find_images(images))
        top = min(top, len(predictor.classes))
        head = ["file", *(f"{name} {k}" for k in range(1, top + 1) for name in ("class", "p"))]
        rows, classified, unreadable = [], 0, 0
        with _csv_writer(csv, head) as write:
            for one in track(predictor.predict(paths, top), len(paths), "classifying"):
                if one.error:
                    unreadable += 1
                    print(f"ltlearn: {clean(one.error)}", file=sys.stderr)  # noqa: T201
                    continue
                classified += 1
                pairs = list(zip(one.classes, one.probabilities, strict=True))
                write([one.path, *(cell for c, p in pairs for cell in (c, f"{p:.6f}"))])
                if as_json or csv is None:
                    rows.append((one.path, pairs))
    if csv is not None and classified:
        images = "1 image" if classified == 1 else f"{classified:,} images"
        print(f"classes of {images}: {csv}", file=sys.stderr)  # noqa: T201
    if as_json:
        found = [
            {"file": path, "top": [{"class": c, "probability": p} for c, p in pairs]}
            for path, pairs in rows
        ]
        result = {
            "model": str(model), "method": predictor.method, "images": found,
            "unreadable": unreadable,
        }  # fmt: skip
        print_json(result)
    elif rows:
        _print_table(rows, top)
    if unreadable:
        raise typer.Exit(1)


def _print_table(rows: list, top: int) -> None:
    """Print the classes of each image, most probable first."""
    from ltlearn.utils.terminal import render_rows

    cells = [[path, *(f"{c} {100 * p:.1f} %" for c, p in pairs)] for path, pairs in rows]
    render_rows(["file", *(str(k) for k in range(1, top + 1))], cells)


@contextmanager
def _csv_writer(path: Path | None, head: list[str]) -> Iterator[Any]:
    """Yield a function that writes a row. The file appears once all rows are written, if any."""
    if path is None:
        yield lambda row: None
        return
    import csv

    from ltlearn.utils.atomic import check_writable, remove_stale_temporaries
    from ltlearn.utils.system_errors import unwritable

    path, remedy = path.expanduser(), f"give another {spell('csv')}"
    if path.is_dir():
        raise UserError(f"{spell('csv', path)} is a folder; give the path of a file.")
    try:
        check_writable(path.parent)
    except OSError as e:
        raise unwritable(path, e, remedy) from e
    remove_stale_temporaries(path.parent)
    with ExitStack() as stack:
        rows = None

        def write(row: list) -> None:
            nonlocal rows
            if rows is None:
                rows = csv.writer(
                    stack.enter_context(_replaced_text(path, remedy)), lineterminator="\n"
                )
                rows.writerow(head)
            rows.writerow([clean(cell, keep="\n\t") for cell in row])

        yield write


@contextmanager
def _replaced_text(path: Path, remedy: str) -> Iterator[io.TextIOWrapper]:
    """Open a text file that takes the place of another when the block ends."""
    from ltlearn.utils.atomic import replaced_file

    with replaced_file(path, defer=False, remedy=remedy) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        try:
            yield text
        finally:
            text.detach()  # flushes, and leaves the file open
