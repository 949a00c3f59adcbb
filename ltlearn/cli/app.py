"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

import os
from typing import Annotated

import typer

from ltlearn.cli.console import (
    EXIT_INTERNAL,
    EXIT_USER,
    checked_streams,
    exit_interrupted,
    exit_with,
    silenced_ranks,
)
from ltlearn.cli.data import data, inspect
from ltlearn.cli.export import export
from ltlearn.cli.flags import SpelledCommand
from ltlearn.cli.lists import methods, recipes, settings
from ltlearn.cli.predict import predict
from ltlearn.cli.recipe import recipe
from ltlearn.cli.report import report
from ltlearn.cli.studies import compare, sensitivity
from ltlearn.cli.train import retrain, train
from ltlearn.errors import UserError
from ltlearn.utils.interrupts import Terminated, terminations_as_interrupts
from ltlearn.utils.memory import keep_freed_memory
from ltlearn.utils.ranks import check_one
from ltlearn.utils.system_errors import is_out_of_memory, reason_of

__all__ = ["app", "main"]

_ON_SEVERAL_RANKS = ("recipe", "train", "retrain")

app = typer.Typer(
    name="ltlearn",
    help="Long-tailed image recognition: train a model, retrain its classifier, and report "
    "accuracy on many-shot, medium-shot and few-shot classes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; exit with 0, 1 (internal error), 2 (user error) or 130 (Ctrl-C).

    SIGTERM and SIGHUP end it as Ctrl-C does, with 143 and 129.
    """
    keep_freed_memory()
    with terminations_as_interrupts():
        try:
            with silenced_ranks(), checked_streams():
                app(prog_name="ltlearn")
        except UserError as e:
            exit_with(str(e), EXIT_USER)
        except (KeyboardInterrupt, EOFError) as e:
            # torchrun may terminate this rank while the rank's own UserError propagates.
            if isinstance(e, Terminated) and isinstance(e.__context__, UserError):
                exit_with(str(e.__context__), EXIT_USER)
            exit_interrupted("stopped.", e)
        except Exception as e:
            if os.environ.get("LTLEARN_DEBUG"):
                raise
            _exit_for(e)


def _exit_for(error: Exception) -> None:
    """Exit with a sentence for an error that is no `UserError`."""
    if is_out_of_memory(error):
        exit_with(
            f"the memory is not enough ({reason_of(error)[:200]}); use a smaller model, smaller "
            "images or smaller batches.",
            EXIT_USER,
        )
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" for {error.filename}"
        exit_with(
            f"the system reports {reason_of(error)!r}{where}; check the disk and the permissions, "
            "and repeat the command.",
            EXIT_USER,
        )
    exit_with(
        f"internal error: {type(error).__name__}: {error}. LTLEARN_DEBUG=1 shows the traceback.",
        EXIT_INTERNAL,
    )


def _print_version(requested: bool) -> None:
    if requested:
        import ltlearn

        typer.echo(f"ltlearn {ltlearn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand not in _ON_SEVERAL_RANKS:
        check_one(f"ltlearn {context.invoked_subcommand}")


for _command in (
    recipe,
    compare,
    report,
    sensitivity,
    methods,
    recipes,
    settings,
    inspect,
    data,
    train,
    retrain,
    predict,
    export,
):
    app.command(cls=SpelledCommand)(_command)
