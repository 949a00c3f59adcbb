"""A user's own defaults: flags, environment variables, `settings.ini`, built-in values."""

import configparser
import difflib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ltlearn.errors import UserError, spell
from ltlearn.names import PRECISIONS
from ltlearn.utils.system_errors import reason_of

__all__ = ["Settings", "load_settings"]

_logger = logging.getLogger("ltlearn")
_FILE = "settings.ini"
# Key: the smallest value.
_WHOLE = {"num_workers": 0, "max_megapixels": 1, "device_megabytes": 0}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# A misspelt key is above 0.9 similar to the right one. `nbs_path`, a key of other projects, is 0.82
# similar to `runs_path`.
_SIMILAR = 0.85


@dataclass(frozen=True)
class Settings:
    """The settings in force, and the source of each.

    Args:
        data_path: Folder of the datasets.
        runs_path: Folder in which each run gets its own folder.
        cache_path: Folder of files that can be computed again, such as cached features.
        num_workers: Processes that load images; 0 loads them in the training process.
        precision: Number format of training, a name of `ltlearn.names.PRECISIONS`.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        max_megapixels: Largest image that is read, in millions of pixels, at least 1. It bounds the
            memory that a small file can take.
        device_megabytes: Most megabytes of images and features that are kept on a CUDA device; 0
            copies each batch to it. "auto" takes a quarter of its free memory.
        sources: Key to a description of the source of its value.
    """

    data_path: Path
    runs_path: Path
    cache_path: Path
    num_workers: int
    precision: str
    device: str
    max_megapixels: int = 64
    device_megabytes: int | str = "auto"
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def describe(self) -> list[tuple[str, str, str]]:
        """List (key, value, source) of every setting, for a table."""
        return [
            (key, str(getattr(self, key)), self.sources.get(key, "given in code")) for key in _KEYS
        ]


_KEYS = tuple(name for name in Settings.__dataclass_fields__ if name != "sources")


def load_settings(**arguments) -> Settings:
    """Find each setting: argument, environment variable, `settings.ini`, built-in value.

    The file is the nearest `settings.ini` from the working directory upwards, section [DEFAULT].
    Its relative paths are relative to its folder. The environment variable of `data_path` is
    `LTLEARN_DATA_PATH`, and so on. An empty variable counts as not set.

    Args:
        **arguments: Any field of `Settings` except `sources`. None counts as not given.

    Raises:
        UserError: If a value is not allowed, or `settings.ini` cannot be read.
        TypeError: If an argument is not a field of `Settings`.

    Example:
        >>> load_settings(device="cpu").device
        'cpu'
    """
    unknown = sorted(set(arguments) - set(_KEYS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a setting; there are {', '.join(_KEYS)}")
    in_file, file = _read_file()
    values, sources = {}, {}
    for key in _KEYS:
        variable = f"LTLEARN_{key.upper()}"
        folder = None
        if arguments.get(key) is not None:
            raw, source = arguments[key], f"argument {spell(key)}"
        elif os.environ.get(variable):
            raw, source = os.environ[variable], f"environment variable {variable}"
        elif key in in_file:
            raw, source, folder = in_file[key], str(file), file.parent
        else:
            raw, source = _built_in(key), "built-in"
        values[key], sources[key] = _parse(key, raw, source, folder), source
    return Settings(**values, sources=sources)


def _built_in(key: str) -> str | int:
    if key == "cache_path":
        # The XDG specification requires that a relative path is ignored.
        base = os.environ.get("XDG_CACHE_HOME", "")
        return os.path.join(base if os.path.isabs(base) else "~/.cache", "ltlearn")
    return {"data_path": "data", "runs_path": "runs", "num_workers": 0, "max_megapixels": 64}.get(
        key, "auto"
    )


def _parse(key: str, raw: object, source: str, folder: Path | None) -> Path | int | str:
    def refuse(allowed: str) -> UserError:
        return UserError(f"{key} = {str(raw)!r} (from {source}) is not allowed: give {allowed}.")

    text = str(raw).strip()
    if key.endswith("_path"):
        if not text:
            raise refuse("the path of a folder")
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise refuse("a path whose `~` has a home folder") from None
        return path if folder is None else folder / path
    automatic = key == "device_megabytes"
    if automatic and text.lower() == "auto":
        return "auto"
    if key in _WHOLE:
        # Nine digits: Python refuses to convert thousands of them.
        is_whole = re.fullmatch(r"[0-9]{1,9}", text) and not isinstance(raw, bool)
        if not is_whole or int(text) < _WHOLE[key]:
            whole = f"a whole number of at least {_WHOLE[key]}"
            raise refuse(f"auto or {whole}" if automatic else whole)
        return int(text)
    text = text.lower()
    if key == "precision" and text not in PRECISIONS:
        raise refuse("one of " + ", ".join(PRECISIONS))
    if key == "device" and not _DEVICE.fullmatch(text):
        raise refuse("one of auto, cpu, cuda, cuda:<index>, mps")
    return text


def _read_file() -> tuple[dict[str, str], Path | None]:
    """Return the library's keys in [DEFAULT], and the file; warn about a key that is misspelt."""
    # `%` is an ordinary character of a path, so no interpolation.
    parser, file = configparser.ConfigParser(interpolation=None), Path(_FILE)
    try:
        folder = Path.cwd()
        file = next((f for d in (folder, *folder.parents) if (f := d / _FILE).exists()), None)
        if file is None:
            return {}, None
        with open(file, encoding="utf-8") as text:
            parser.read_file(text)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise UserError(f"{file} cannot be read as an INI file: {reason_of(error)}.") from None
    keys = parser.defaults()
    for key in keys:
        similar = difflib.get_close_matches(key, _KEYS, n=1, cutoff=_SIMILAR)
        if key not in _KEYS and similar:
            _logger.warning("%s: %r is not a setting; is %r meant?", file, key, similar[0])
    return {key: keys[key] for key in _KEYS if key in keys}, file
