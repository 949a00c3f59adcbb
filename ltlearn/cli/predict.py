"""`ltlearn predict`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ltlearn.cli.console import configured_log, report_interrupt
from ltlearn.cli.options import DEVICE, JSON
from ltlearn.errors import UserError, check_choice

__all__ = []


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, or a .safetensors file of its checkpoints."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images, or folders of them at any depth."),
    ],
    method: Annotated[
        str | None, typer.Option(help="Whose classifier of the run; the last, if not given.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to tell an image.", min=1)] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row an image here, and print no table.")
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            help="How often the classes occur where the images are from: uniform, train or "
            "reversed."
        ),
    ] = None,
    device: DEVICE = None,
    as_json: JSON = False,
) -> None:
    """Classify images with a trained model.

    Images that cannot be read are named on standard error, and the exit code is 1 then.
    """
    from ltlearn.utils.settings import load_settings

    settings = load_settings(device=device)
    with report_interrupt(), configured_log(False):
        from ltlearn.experiments.build import pick_device
        from ltlearn.experiments.predictor import Predictor, find_images
        from ltlearn.metrics.priors import PRIORS
        from ltlearn.utils.progress import track
        from ltlearn.utils.terminal import render_rows

        if target_prior is not None:
            check_choice("--target-prior", target_prior, PRIORS)
        predictor = Predictor(model, method, pick_device(settings.device), target_prior)
        # Their names alone: images are read a batch at a time.
        paths = list(find_images(images))
        found, bad = [], 0
        top = min(top, len(predictor.classes))
        head = ["file", *(f"{what} {k}" for k in range(1, top + 1) for what in ("class", "p"))]
        with _csv_writer(csv, head) as write:
            for one in track(predictor.predict(paths, top), len(paths), "classifying"):
                pairs = list(zip(one.classes, one.probabilities, strict=True))
                if one.error:
                    bad += 1
                    print(f"ltlearn: {one.error}", file=sys.stderr)  # noqa: T201
                    continue
                write([one.path, *(cell for c, p in pairs for cell in (c, f"{p:.6f}"))])
                if as_json or csv is None:
                    found.append((one.path, pairs))
    if as_json:
        rows = [
            {"file": path, "top": [{"class": c, "probability": p} for c, p in pairs]}
            for path, pairs in found
        ]
        told = {
            "model": str(model),
            "method": predictor.method,
            "images": rows,
            "unreadable": bad,
        }
        typer.echo(json.dumps(told, indent=1))
    elif found:
        rows = [[path, *(f"{c} {100 * p:.1f} %" for c, p in pairs)] for path, pairs in found]
        render_rows(["file", *(str(k) for k in range(1, top + 1))], rows)
    if bad:
        raise typer.Exit(1)


@contextmanager
def _csv_writer(path: Path | None, head: list[str]) -> Iterator[Any]:
    """Give a function that writes a row; the file takes its name when all are written, if any."""
    if path is None:
        yield lambda row: None
        return
    import csv

    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a file as --csv.")
    temporary, rows = path.with_name(f".tmp-{os.getpid()}-{path.name}"), 0
    try:
        try:
            file = open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as e:
            raise UserError(f"{path} cannot be written ({e.strerror}); give another --csv.") from e
        with file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)

            def write(row: list) -> None:
                nonlocal rows
                writer.writerow(row)
                rows += 1

            yield write
        if rows:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
