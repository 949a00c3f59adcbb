"""`ltlearn export`."""

from pathlib import Path
from typing import Annotated

import typer

from ltlearn.cli.console import configured_log, print_json, report_interrupt
from ltlearn.cli.options import ALLOW_HUB, JSON
from ltlearn.errors import check_choice, spell
from ltlearn.names import EXPORT_KINDS
from ltlearn.utils.text import clean

__all__ = []


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, or one of its weights files (.safetensors)."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="What to write: timm (a folder that timm.create_model loads), onnx or torchscript "
            "(a file), or hub (a folder with a model card, which is uploaded).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder or file to write; by default, inside export/ of the run."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method whose classifier is exported, also one that `ltlearn compare` trained; "
            "best is the one that it found best on validation. By default, the run's last."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the run whose model is exported; by default, 0.", min=0),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Let the model take pixels from 0 to 1, and normalise them itself (onnx, "
            "torchscript).",
        ),
    ] = False,
    repo: Annotated[
        str | None,
        typer.Option(help="Repository of the Hugging Face hub, such as user/birds."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Licence of the model for its card, such as apache-2.0."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write the folder for the hub, and upload nothing."),
    ] = False,
    allow_hub: ALLOW_HUB = False,
    as_json: JSON = False,
) -> None:
    """Write a trained model for programs without ltlearn.

    The export is loaded again and its logits are compared with the model's before it is reported.
    `ltlearn predict` takes a timm folder and an ONNX file as it takes a run.
    """
    check_choice(spell("to"), to, EXPORT_KINDS)
    with report_interrupt(), configured_log(False):
        from ltlearn.experiments.export_run import export_run

        done = export_run(
            run, to, out, method=method, seed=seed, normalize=normalize, allow_hub=allow_hub,
            repo=repo, private=private, license=license, dry_run=dry_run,
        )  # fmt: skip
    if as_json:
        print_json({
            "kind": done.kind, "path": str(done.path), "difference": done.difference,
            "code": done.code, "notes": list(done.notes), "url": done.url,
        })  # fmt: skip
        return
    typer.echo(clean(done, keep="\n"))
