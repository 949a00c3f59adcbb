"""What a run leaves on disk: a kill at any instant leaves the old file or the new one."""

import csv
import dataclasses
import enum
import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ltlearn.errors import UserError
from ltlearn.utils.interrupts import deferred_interrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray
    from torch import Tensor

__all__ = ["Run", "checksum_of"]

_logger = logging.getLogger("ltlearn")
_TEMPORARY = ".tmp-"
_OUR_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")


class Run:
    """The folder of one run.

    Every writer takes a name relative to the folder, makes the sub-folders it needs, writes to a
    temporary name beside the target, flushes to disk and renames; an interrupt waits until that is
    done. A full disk, a missing permission and the like are a `UserError`.

    Args:
        path: The folder, which exists; `Run.create` makes one.
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
        """Make the folder of a new run, or open the one to go on with.

        Args:
            runs_path: Folder in which the run's folder `<name>-<YYYYmmdd-HHMMSS>` is made.
            name: First part of the folder's name.
            out: The run's folder itself, in place of one in `runs_path`.
            resume: Go on in `out`, or in the newest run of that name in `runs_path`, and remove
                what a killed run left half-written. Where there is no such run, one is started.

        Raises:
            UserError: If `out` holds something and `resume` is false, or the folder cannot be
                written to.
            ValueError: If `name` is not a plain file name.
        """
        if not name or name in (".", "..") or re.search(r'[/\\:*?"<>|\0]', name):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        wanted = Path(runs_path if out is None else out).expanduser()
        try:
            if out is not None:
                path = wanted
                made = not path.exists()
                path.mkdir(parents=True, exist_ok=True)
                found = [p for p in path.iterdir() if not _OUR_TEMPORARY.fullmatch(p.name)]
                used = bool(found)
                if used and resume and not (path / "manifest.json").is_file():
                    raise UserError(
                        f"{path} holds files, but no run of ltlearn to go on with (no "
                        "manifest.json): give another --out."
                    )
                if used and not resume:
                    raise UserError(
                        f"{path} already holds files: give --resume to go on with that run, "
                        "or another --out."
                    )
            else:
                wanted.mkdir(parents=True, exist_ok=True)
                path = _newest(wanted, name) if resume else None
                used = path is not None
                path = path or _new_folder(wanted, name)
                made = not used
            run = cls(path)
            run._made, run._fresh = made, not used
            if resume:
                run.remove_temporaries()
                if not used:
                    _logger.warning("nothing to resume in %s: a new run starts in %s", wanted, path)
            _probe(path)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{wanted} is, or lies under, a file and cannot hold a run: give another --out."
            ) from None
        except OSError as error:
            raise UserError(
                f"{wanted} cannot hold a run ({error.strerror}): "
                "give another --out, one you can write to."
            ) from error
        return run

    def remove_if_empty(self) -> None:
        """Take away what `create` began, if nothing but a manifest was written since."""
        try:
            if self._fresh and {p.name for p in self.path.iterdir()} <= {"manifest.json"}:
                (self.path / "manifest.json").unlink(missing_ok=True)
                if self._made:
                    self.path.rmdir()
        except OSError:
            pass  # an empty folder is no reason to hide why the run could not begin

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file in UTF-8."""
        # A file name that is not UTF-8 (a lone surrogate here) must not end a run: it is escaped.
        return self._write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_json(
        self, name: str, obj: object, sealed: bool = False, indent: int | None = 2
    ) -> Path:
        """Write `obj` as JSON: keys in their order, not-a-number and infinity as null.

        Args:
            name: File, relative to the run's folder.
            obj: Dictionaries, sequences, numbers and strings, also dataclasses, pydantic models,
                paths, dates, enum members, NumPy and torch scalars, arrays and tensors.
            sealed: Add the checksum of all that is in it, a dictionary then, under "checksum".
            indent: Blanks a level; None writes one line, which takes a fifth of the time.

        Raises:
            TypeError: If something else is in it.
        """
        plain = _plain(obj)
        if sealed:
            plain["checksum"] = _seal(plain)
        text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
        return self.write_text(name, text + "\n")

    def read_json(self, name: str, sealed: bool | None = False) -> Any:
        """Read a file of `write_json`.

        Args:
            name: File, relative to the run's folder.
            sealed: Whether it must be a dictionary that fits its checksum; None also takes a
                dictionary without one. The checksum is left out of what is returned.

        Raises:
            UserError: If the file is not there, cannot be read or is damaged.
        """
        text = self._read_bytes(name)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path / name} is damaged: {error}.") from None
        if sealed is False:
            return found
        seal = found.pop("checksum", None) if isinstance(found, dict) else None
        good = isinstance(found, dict) and (seal == _seal(found) or seal is sealed is None)
        if not good:
            raise UserError(f"{self.path / name} is damaged: it does not fit its checksum.")
        return found

    def write_csv(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write rows that all have the same keys; the first row's order is the header's.

        Raises:
            ValueError: If the rows differ in their keys.
        """
        rows = [{key: _cell(value) for key, value in row.items()} for row in rows]
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

    def append_csv(self, name: str, row: Mapping[str, object]) -> Path:
        """Add one row to a table, which is made with the row's keys as header if there is none.

        The whole table is written anew: it is small, and a kill never leaves half a line.

        Args:
            name: File, relative to the run's folder.
            row: Column to value, the same columns as the rows before, in any order. None is an
                empty cell.

        Raises:
            ValueError: If the row's keys are not the table's columns.
        """
        return self.write_csv(name, [*self.read_csv(name), row])

    def read_csv(self, name: str) -> list[dict[str, str]]:
        """Read a table as text cells; a file that is not there has no rows."""
        if not self._target(name).exists():
            return []
        text = self._read_bytes(name).decode("utf-8")
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def save_npz(self, name: str, /, **arrays: "ndarray | Tensor") -> Path:
        """Write arrays as one uncompressed NumPy archive; bfloat16 becomes float32.

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
        with self._replacing(name) as file:
            np.savez(file, **arrays)
        return self.path / name

    def load_npz(self, name: str) -> dict[str, "ndarray"]:
        """Read a file of `save_npz`."""
        import zipfile

        import numpy as np

        try:
            with np.load(io.BytesIO(self._read_bytes(name)), allow_pickle=False) as archive:
                return dict(archive)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path / name} is damaged: {error}.") from None

    def save_tensors(
        self,
        name: str,
        tensors: Mapping[str, "Tensor"],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write tensors as safetensors; strided and memory-sharing ones are copied.

        Args:
            name: File, relative to the run's folder.
            tensors: Name to dense tensor, on any device.
            metadata: Text that travels in the file's header.

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
        """Write tensors as `save_tensors` does, and return the checksum of the file."""
        import torch
        from safetensors.torch import save

        for key, value in (metadata or {}).items():
            if not isinstance(value, str):
                raise TypeError(f"metadata[{key!r}] must be text, got {type(value).__name__}")
        plain, seen = {}, set()
        for key, value in tensors.items():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                kind = getattr(value, "layout", type(value).__name__)
                raise TypeError(f"tensors[{key!r}] must be a dense tensor, got {kind}")
            value = value.detach().as_subclass(torch.Tensor).cpu().contiguous()
            storage = value.untyped_storage().data_ptr()
            plain[key] = value.clone() if storage in seen else value
            seen.add(storage)
        # `save` needs the file's size in memory once more, but `save_file` neither flushes to disk
        # nor keeps to the user's umask, and its own temporary file outlives a kill.
        content = save(plain, dict(metadata) if metadata else None)
        self._write_bytes(name, content)
        return checksum_of(content)

    def load_tensors(
        self, name: str, device: str = "cpu", checksum: str | None = None
    ) -> dict[str, "Tensor"]:
        """Read the tensors of a file of `save_tensors` to `device`.

        Args:
            name: File, relative to the run's folder.
            device: A torch device.
            checksum: What `save_tensors_checked` returned; None does not look.

        Raises:
            UserError: If the file is not there, cannot be read or is damaged.
        """
        if checksum is not None and checksum_of(self._read_bytes(name)) != checksum:
            raise UserError(f"{self.path / name} is damaged: it does not fit its checksum.")
        with self._open_tensors(name, device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}

    def load_metadata(self, name: str) -> dict[str, str]:
        """Read the metadata of a file of `save_tensors`, and none of its tensors."""
        with self._open_tensors(name, "cpu") as file:
            return dict(file.metadata() or {})

    def save_figure(self, name: str, fig: "Figure", dpi: int = 150) -> Path:
        """Write a matplotlib figure in the format of the name's ending, PNG where it has none."""
        with self._replacing(name) as file:
            fig.savefig(file, format=Path(name).suffix[1:] or "png", dpi=dpi, bbox_inches="tight")
        return self.path / name

    @contextmanager
    def _open_tensors(self, name: str, device: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        path = self._existing(name)
        try:
            with safe_open(path, framework="pt", device=device) as file:
                yield file
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}.") from None

    def _existing(self, name: str) -> Path:
        path = self._target(name)
        if not path.is_file() and name == "manifest.json":
            raise UserError(
                f"{self.path} holds no run of ltlearn (no manifest.json); give the folder that "
                "`ltlearn recipe`, `train` or `retrain` wrote."
            )
        if not path.is_file():
            raise UserError(
                f"{path} is not there: the run did not get that far, or lost it; its own command "
                "(in manifest.json) with --resume goes on."
            )
        return path

    def _read_bytes(self, name: str) -> bytes:
        path = self._existing(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error

    def _target(self, name: str) -> Path:
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            raise ValueError(f"name must be a file inside the run's folder, got {name!r}")
        return self.path / relative

    def _write_bytes(self, name: str, content: bytes) -> Path:
        with self._replacing(name) as file:
            file.write(content)
        return self.path / name

    @contextmanager
    def _replacing(self, name: str) -> Iterator[BinaryIO]:
        """Open a temporary file that takes the place of `name` once the block is through."""
        target = self._target(name)
        temporary = target.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        with deferred_interrupt():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException as error:
                _remove(temporary)
                if isinstance(error, OSError) and error.errno in _CAUSES:
                    raise UserError(_sentence(error, target)) from error
                raise
            _sync_folder(target.parent)

    def remove_temporaries(self, deep: bool = True) -> None:
        """Remove what a killed run left half-written.

        Args:
            deep: Whether to look in sub-folders too.
        """
        for folder, _, files in os.walk(self.path):
            for file in files:
                if _OUR_TEMPORARY.fullmatch(file):
                    _remove(Path(folder, file))
            if not deep:
                break


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _seal(plain: dict) -> str:
    """Return the checksum of what JSON knows: what is written and read again has the same."""
    return checksum_of(json.dumps(plain).encode())


def _new_folder(runs_path: Path, name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    count = 1
    while True:
        path = runs_path / (f"{name}-{stamp}" if count == 1 else f"{name}-{stamp}-{count}")
        try:
            path.mkdir()  # and not a test first: two runs may start in the same second
            return path
        except FileExistsError:
            count += 1


def _newest(runs_path: Path, name: str) -> Path | None:
    pattern = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    found = [
        (match[1], int(match[2] or 1), path)
        for path in runs_path.iterdir()
        if (match := pattern.fullmatch(path.name)) and path.is_dir()
    ]
    return max(found)[2] if found else None


def _probe(path: Path) -> None:
    """Write and remove a byte: a folder that cannot be written to is found before any work."""
    probe = path / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(probe, "xb") as file:
            file.write(b"\0")
    finally:
        _remove(probe)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # what made the write fail can make this fail too, and the first is the one to report


def _sync_folder(path: Path) -> None:
    """Flush a rename to disk, where the system can; the file itself is safe without it."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(folder)
    except OSError:
        pass
    finally:
        os.close(folder)


_CAUSES = {
    errno.ENOSPC: "the disk that holds {} is full: free space and go on with --resume.",
    errno.EDQUOT: "the disk quota for {} is used up: free space and go on with --resume.",
    errno.EROFS: "{} is on a disk that can only be read: give another --out.",
    errno.EACCES: "there is no permission to write {}: change it or give another --out.",
    errno.EPERM: "there is no permission to write {}: change it or give another --out.",
}


def _sentence(error: OSError, target: Path) -> str:
    text = _CAUSES[error.errno].format(target)
    return text[0].upper() + text[1:]


def _cell(value: object) -> object:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    return str(_plain(value))


def _plain(obj: object) -> Any:
    """Turn `obj` into what JSON knows."""
    if isinstance(obj, enum.Enum):
        return _plain(obj.value)
    if obj is None or isinstance(obj, bool | str):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(_plain(key)): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, set | frozenset):
        return sorted(_plain(value) for value in obj)
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, date):
        return obj.isoformat()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {item.name: _plain(getattr(obj, item.name)) for item in dataclasses.fields(obj)}
    if hasattr(obj, "model_dump"):  # a pydantic model
        return _plain(obj.model_dump())
    if hasattr(obj, "tolist"):  # a NumPy or torch scalar, array or tensor
        return _plain(obj.tolist())
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON: {obj!r}")
