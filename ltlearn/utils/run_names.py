"""The names of new run folders, which ascend with time: NAME-20310131-235959, and -2, -3, ..."""

import re
from datetime import datetime
from pathlib import Path

__all__ = ["new_run_folder", "newest_run"]

_STAMP = "%Y%m%d-%H%M%S"


def new_run_folder(runs_path: Path, name: str) -> Path:
    """Make the folder of a new run.

    Args:
        runs_path: The folder of all runs.
        name: The name of the run.
    """
    # The clock may go back, in autumn by an hour. The names of runs ascend nevertheless, so that
    # the newest run is known.
    stamp, count = datetime.now().strftime(_STAMP), 1
    newest, n, _ = max(_runs(runs_path, name), default=("", 0, None))
    if newest >= stamp:
        stamp, count = newest, n + 1
    while True:
        path = runs_path / (f"{name}-{stamp}" if count == 1 else f"{name}-{stamp}-{count}")
        try:
            path.mkdir()  # without a test before: two runs may start in the same second
            return path
        except FileExistsError:
            count += 1


def newest_run(runs_path: Path, name: str) -> Path | None:
    """Return the folder of the newest run of a name; None if there is none.

    Args:
        runs_path: The folder of all runs.
        name: The name of the runs.
    """
    return max(_runs(runs_path, name), default=(None, None, None))[2]


def _runs(runs_path: Path, name: str) -> list[tuple[str, int, Path]]:
    """List time, number and folder of the runs of a name."""
    pattern = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    return [
        (match[1], int(match[2] or 1), path)
        for path in runs_path.iterdir()
        if (match := pattern.fullmatch(path.name)) and path.is_dir()
    ]
