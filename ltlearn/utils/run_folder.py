"""The folder of a run. A kill at any instant leaves each file old or new, never half-written."""

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltlearn.errors import UserError, spell
from ltlearn.utils import atomic
from ltlearn.utils.atomic import check_writable, is_temporary, replaced_file
from ltlearn.utils.locks import InUse, locked
from ltlearn.utils.plain import plain_cell, plain_tensors, plain_value
from ltlearn.utils.ranks import is_first
from ltlearn.utils.run_names import new_run_folder, newest_run
from ltlearn.utils.system_errors import reason_of, unreadable, unwritable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray
    from torch import Tensor

__all__ = ["Run", "checksum_of", "waits_for_run"]

_logger = logging.getLogger("ltlearn")
_LOCK = ".lock"
_AGAIN = "copy the file again, or repeat the run"  # what a damaged file needs
# A larger file is not read. The longest trajectories of 10,000 classes take a fifth of this size.
_MAX_JSON_BYTES = 1 << 29


class Run:
    """The folder of one run.

    Each writer takes a name relative to the folder and makes the sub-folders it needs. It writes
    through `ltlearn.utils.atomic.replaced_file`, so a full disk or a missing permission is a
    `UserError`. A link that leads out of the folder is never written through.

    Args:
        path: An existing folder. `Run.create` makes one.

    Example:
        >>> run = Run.create("runs", "digits_lt")
        >>> run.write_json("manifest.json", {"status": "running"})
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._made = False  # whether `create` made the folder
        self._fresh = False  # whether `create` found nothing in it

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(
        cls,
        runs_path: str | os.PathLike,
        name: str,
        out: str | os.PathLike | None = None,
        resume: bool = False,
    ) -> "Run":
        """Make the folder of a new run, or open the folder of a run to continue.

        Args:
            runs_path: Folder in which the run's folder `<name>-<YYYYmmdd-HHMMSS>` is made.
            name: First part of the folder's name.
            out: The run's own folder, used instead of one in `runs_path`.
            resume: Whether to continue the run in `out`, or the newest run of that name in
                `runs_path`, and to remove half-written files of a killed run. If there is no such
                run, a new one starts.

        Raises:
            UserError: If `out` is not empty and `resume` is false, if `out` holds something else
                than a run, or if the folder cannot be written to.
            ValueError: If `name` is not a plain file name.
        """
        if not name or name in (".", "..") or re.search(r'[/\\:*?"<>|\0]', name):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        folder = Path(runs_path if out is None else out).expanduser()
        try:
            if out is None:
                folder.mkdir(parents=True, exist_ok=True)
                newest = newest_run(folder, name) if resume else None
                run = cls(newest or new_run_folder(folder, name))
                run._made = run._fresh = newest is None
            else:
                run = cls(folder)
                run._made = not folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                names = [p.name for p in folder.iterdir()]
                run._fresh = all(is_temporary(name) or name == _LOCK for name in names)
                if not run._fresh:
                    _check_continued(folder, resume)
            check_writable(run.path)
            if resume:
                with run.lock():
                    pass  # the lock removes half-written files
                if run._fresh:
                    _logger.warning(
                        "nothing to resume in %s: a new run starts in %s", folder, run.path
                    )
        except OSError as error:
            if isinstance(error, FileExistsError | NotADirectoryError):
                reason = "a file has its name, or the name of a folder above it"
            else:
                reason = reason_of(error)
            raise UserError(
                f"{folder} cannot hold a run ({reason}): give another {spell('out')}."
            ) from error
        return run

    @contextmanager
    def lock(self, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Keep other processes from writing to the folder inside the block.

        Of several ranks, the first alone locks it. Half-written files of a killed process are
        removed first. In one thread, blocks can be nested. Reading needs no lock.

        Args:
            on_wait: Called with a sentence before a wait for another process; None raises instead.

        Raises:
            UserError: If another process writes to the folder, and `on_wait` is None.
        """
        if not is_first():
            yield
            return

        def wait(holder: str) -> None:
            on_wait(f"{self.path} is in use by {holder}: waiting until that ends")

        try:
            with locked(self.path.absolute() / _LOCK, wait if on_wait else None):
                self.remove_temporaries()
                yield
        except InUse as error:
            raise UserError(
                f"{self.path} is in use by {error.holder}: wait until that ends, or give another "
                f"{spell('out')}."
            ) from None

    def inside(self, name: str) -> Path:
        """Return the path of a file or folder of the run.

        Args:
            name: Its name, relative to the run's folder.

        Raises:
            UserError: If it is, or lies behind, a link that leads out of the folder.
            ValueError: If the name itself leads out of the folder.
        """
        path = self._target(name)
        home = self.path.resolve()
        for part in (path, *path.parents):
            if part == self.path:
                break
            if part.is_symlink() and not part.resolve().is_relative_to(home):
                raise UserError(
                    f"{part} is a link that leads out of the run {self.path}: replace it by a "
                    f"{'file' if part == path else 'folder'}, or remove it."
                )
        return path

    def remove_if_empty(self) -> None:
        """Remove the folder that `create` made if it holds nothing but a manifest."""
        if not is_first():
            return
        try:
            if self._fresh and {p.name for p in self.path.iterdir()} <= {"manifest.json", _LOCK}:
                (self.path / "manifest.json").unlink(missing_ok=True)
                (self.path / _LOCK).unlink(missing_ok=True)
                if self._made:
                    self.path.rmdir()
        except OSError:
            pass  # the caller reports why the run could not start, which matters more

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in UTF-8."""
        # A file name that is not UTF-8 (a lone surrogate) is escaped, so that it cannot end a run.
        return self._write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_json(
        self, name: str, obj: object, sealed: bool = False, indent: int | None = 2
    ) -> Path:
        """Write `obj` as JSON. Keys keep their order; not-a-number and infinity become null.

        Args:
            name: File, relative to the run's folder.
            obj: Anything that `ltlearn.utils.plain.plain_value` converts.
            sealed: Whether to add a checksum of the whole content under "checksum"; `obj` must
                be a dictionary then.
            indent: Blanks per level. None writes one line, which takes a fifth of the time.

        Raises:
            TypeError: If `obj` contains something that cannot be converted.
        """
        plain = plain_value(obj)
        if sealed:
            plain["checksum"] = _seal(plain)
        text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
        return self.write_text(name, text + "\n")

    def read_json(self, name: str, sealed: bool | None = False) -> Any:
        """Read a file that `write_json` wrote.

        Args:
            name: File, relative to the run's folder.
            sealed: Whether the file must be a dictionary that fits its checksum. None also accepts
                a dictionary without one. The checksum is left out of the result.

        Raises:
            UserError: If the file is missing, unreadable or damaged.
        """
        path = self._existing(name)
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path} is damaged: it has more than {_MAX_JSON_BYTES:,} bytes.")
        text = self._read_bytes(name)
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} is damaged: {error}; {_AGAIN}.") from None
        if sealed is False:
            return content
        seal = content.pop("checksum", None) if isinstance(content, dict) else None
        unsealed = seal is None and sealed is None
        if not isinstance(content, dict) or not (unsealed or seal == _seal(content)):
            raise UserError(
                f"{self.path / name} is damaged: it does not fit its checksum; {_AGAIN}."
            )
        return content

    def write_csv(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write rows with equal keys. The first row's order is the order of the columns.

        Args:
            name: File, relative to the run's folder.
            rows: The rows; no row writes an empty file.

        Raises:
            ValueError: If the rows differ in their keys.
        """
        rows = [{key: plain_cell(value) for key, value in row.items()} for row in rows]
        header = list(rows[0]) if rows else []
        for row in rows:
            if set(row) != set(header):
                difference = sorted(set(row) ^ set(header))
                raise ValueError(
                    f"{name} has the columns {header}; a row differs from them in {difference}"
                )
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def read_csv(self, name: str) -> list[dict[str, str]]:
        """Read a table as text cells. A missing file has no rows."""
        if not self._target(name).exists():
            return []
        text = self._read_bytes(name).decode("utf-8")
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def save_npz(self, name: str, /, **arrays: "ndarray | Tensor") -> Path:
        """Write arrays as an uncompressed NumPy archive. bfloat16 becomes float32.

        Args:
            name: File, relative to the run's folder.
            **arrays: The arrays by name.

        Raises:
            TypeError: If an array holds Python objects.
        """
        import numpy as np

        for key, value in arrays.items():
            if hasattr(value, "detach"):
                value = value.detach().cpu()
                value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
            arrays[key] = np.asarray(value)
            if arrays[key].dtype.hasobject:
                raise TypeError(f"array {key!r} must hold numbers or text, got Python objects")
        with replaced_file(self.inside(name)) as file:
            np.savez(file, **arrays)
        return self.path / name

    def save_tensors(
        self,
        name: str,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write tensors as safetensors. Strided tensors and tensors that share memory are copied.

        Args:
            name: File, relative to the run's folder.
            tensors: Name to dense tensor, on any device.
            metadata: Text for the header of the file.

        Raises:
            TypeError: If a value is not a dense tensor, or metadata is not text.
        """
        self.save_tensors_checked(name, tensors, metadata)
        return self.path / name

    def save_tensors_checked(
        self,
        name: str,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write tensors as `save_tensors` does, and return the checksum of the file.

        Args:
            name: File, relative to the run's folder.
            tensors: Name to dense tensor, on any device.
            metadata: Text for the header of the file.
        """
        from safetensors.torch import save

        plain = plain_tensors(tensors)
        for key, value in (metadata or {}).items():
            if not isinstance(value, str):
                raise TypeError(f"metadata[{key!r}] must be text, got {type(value).__name__}")
        # `save` holds the whole file in memory. `save_file` does not, but it neither flushes to
        # disk nor respects the user's umask, and its own temporary file survives a kill.
        content = save(plain, dict(metadata) if metadata else None)
        self._write_bytes(name, content)
        return checksum_of(content)

    def load_tensors(
        self, name: str, device: str = "cpu", checksum: str | None = None
    ) -> dict[str, "Tensor"]:
        """Read the tensors of a file that `save_tensors` wrote.

        Args:
            name: File, relative to the run's folder.
            device: The torch device to read to.
            checksum: The result of `save_tensors_checked`; None checks nothing.

        Raises:
            UserError: If the file is missing, unreadable or damaged.
        """
        if checksum is not None and checksum_of(self._read_bytes(name)) != checksum:
            raise UserError(f"{self.path / name} is damaged: it does not fit its checksum.")
        with self._open_tensors(name, device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    def save_figure(self, name: str, fig: "Figure", dpi: int = 150) -> Path:
        """Write a matplotlib figure in the format of the name's ending; PNG if it has none.

        Args:
            name: File, relative to the run's folder.
            fig: The figure.
            dpi: Pixels per inch.
        """
        with replaced_file(self.inside(name)) as file:
            fig.savefig(file, format=Path(name).suffix[1:] or "png", dpi=dpi, bbox_inches="tight")
        return self.path / name

    @contextmanager
    def _open_tensors(self, name: str, device: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        path = self._existing(name)
        try:
            path.open("rb").close()  # safetensors reports any failure as a missing file
        except OSError as error:
            raise unreadable(path, error) from None
        try:
            with safe_open(path, framework="pt", device=device) as file:
                yield file
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}; {_AGAIN}.") from None
        except (RuntimeError, MemoryError):
            raise UserError(f"{path} does not fit into memory; free some.") from None

    def _existing(self, name: str) -> Path:
        path = self._target(name)
        try:
            is_file = path.is_file()
        except OSError as error:  # a folder above it without permission
            raise unreadable(path, error) from None
        if not is_file and name == "manifest.json":
            raise UserError(
                f"{self.path} holds no run (no manifest.json); give the folder of a run."
            )
        if not is_file:
            raise UserError(
                f"{path} is missing: the run did not get so far, or lost it. Repeat the command in "
                f"its manifest.json with {spell('resume', True)}."
            )
        return path

    def _read_bytes(self, name: str) -> bytes:
        path = self._existing(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from None

    def _target(self, name: str) -> Path:
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            raise ValueError(f"name must be a file inside the run's folder, got {name!r}")
        return self.path / relative

    def _write_bytes(self, name: str, content: bytes) -> Path:
        with replaced_file(self.inside(name)) as file:
            file.write(content)
        return self.path / name

    def remove_temporaries(self, deep: bool = True) -> None:
        """Remove half-written files of a killed process.

        Args:
            deep: Whether to search sub-folders too; never through links.
        """
        for folder, _, _ in os.walk(self.path):
            atomic.remove_stale_temporaries(Path(folder))
            if not deep:
                break


def waits_for_run(function: Callable) -> Callable:
    """Lock the run that is a function's first argument, and wait for another process before.

    Args:
        function: It writes to the run.
    """

    @wraps(function)
    def locked_function(run: Run, *args, **kwargs):
        with run.lock(on_wait=_logger.warning):
            try:
                check_writable(run.path)
            except OSError as error:  # known before any work
                raise unwritable(run.path, error, "copy the run, and use the copy") from None
            return function(run, *args, **kwargs)

    return locked_function


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a content in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _seal(plain: dict) -> str:
    """Return the checksum of plain values. It is the same after writing and reading them."""
    return checksum_of(json.dumps(plain).encode())


def _refuse_constant(name: str) -> None:
    """Refuse not-a-number and infinity, which `write_json` never writes."""
    raise ValueError(f"it holds {name}")


def _check_continued(path: Path, resume: bool) -> None:
    """Raise a `UserError` unless a folder with files holds a run that is to be continued."""
    if not resume:
        raise UserError(
            f"{path} already holds files: give {spell('resume', True)} to continue that run, or "
            f"another {spell('out')}."
        )
    if not (path / "manifest.json").is_file():
        raise UserError(
            f"{path} holds files, but no run to continue (no manifest.json): give another "
            f"{spell('out')}."
        )
