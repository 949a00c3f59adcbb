"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

import os
import sys
from typing import Annotated

import typer

from ltlearn.cli.console import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USER, exit_with
from ltlearn.cli.data import data, inspect
from ltlearn.cli.flags import SpelledCommand
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
    help="Long-tailed image recognition: train a model, retrain its classifier, and report "
    "accuracy on many-shot, medium-shot and few-shot classes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; exit with 0, 1 (internal error), 2 (user error) or 130 (Ctrl-C)."""
    keep_freed_memory()
    # Names of files and classes may hold characters that the terminal cannot encode.
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
            f"internal error: {type(e).__name__}: {e}. LTLEARN_DEBUG=1 shows the traceback.",
            EXIT_INTERNAL,
        )


def _print_version(requested: bool) -> None:
    if requested:
        import ltlearn

        typer.echo(f"ltlearn {ltlearn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
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
    app.command(cls=SpelledCommand)(_command)
