"""The command line. Each module holds a group of commands."""

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback also while its modules load."""
    # In the background of a script, Ctrl-C is ignored, and stays so.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, _stop)
    from ltlearn.cli.app import main as run

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _stop(signum: int, frame) -> None:
    # Nothing has begun, and an exception inside an import may be taken for a failed import.
    if sys.stderr is not None:
        os.write(2, b"ltlearn: stopped.\n")
    os._exit(128 + signum)
