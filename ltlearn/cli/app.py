"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

import os
import sys
from typing import Annotated

import typer

from ltlearn.cli.console import EXIT_INTERRUPTED, EXIT_OURS, EXIT_USER, exit_with
from ltlearn.cli.data import data, inspect
from ltlearn.cli.lists import methods, recipes, settings
from ltlearn.cli.predict import predict
from ltlearn.cli.recipe import recipe
from ltlearn.cli.studies import compare, sensitivity
from ltlearn.cli.train import retrain, train
from ltlearn.errors import UserError
from ltlearn.utils.memory import keep_freed_memory

__all__ = ["app", "main"]

app = typer.Typer(
    name="ltlearn",
    help="Long-tailed image recognition: train, retrain the classifier, and tell many, medium and "
    "few apart.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; exit with 0, 2 (a user's mistake), 1 (our own) or 130 (Ctrl-C)."""
    keep_freed_memory()
    # Names of files and classes may be undecodable, or beyond what a terminal can show.
    if getattr(sys.stdout, "errors", "") == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="ltlearn")
    except UserError as e:
        exit_with(str(e), EXIT_USER)
    except (KeyboardInterrupt, EOFError):
        exit_with("stopped.", EXIT_INTERRUPTED)
    except Exception as e:
        if os.environ.get("LTLEARN_DEBUG"):
            raise
        exit_with(
            f"a mistake of ours: {type(e).__name__}: {e}. LTLEARN_DEBUG=1 shows where it happened.",
            EXIT_OURS,
        )


def _version(wanted: bool) -> None:
    if wanted:
        import ltlearn

        typer.echo(f"ltlearn {ltlearn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _command in (
    recipe,
    compare,
    sensitivity,
    methods,
    recipes,
    settings,
    inspect,
    data,
    train,
    retrain,
    predict,
):
    app.command()(_command)
