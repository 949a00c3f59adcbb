"""A user's own defaults: flags, environment variables, `settings.ini`, built-in values."""

import configparser
import difflib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ltlearn.errors import UserError

__all__ = ["Settings", "load_settings"]

_logger = logging.getLogger("ltlearn")
_FILE = "settings.ini"
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# `nbs_path`, which other projects have, is 0.82 alike to `runs_path`; a letter too few in ours
# leaves it above 0.9.
_NEAR_MISS = 0.85


@dataclass(frozen=True)
class Settings:
    """The defaults in force, and where each came from.

    Args:
        data_path: Folder of the datasets.
        runs_path: Folder in which each run gets a folder.
        cache_path: Folder of what can be computed again, such as cached features.
        num_workers: Processes that load images; 0 loads them in the training process.
        precision: Number format of training: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        sources: Key to where its value came from, in words.
    """

    data_path: Path
    runs_path: Path
    cache_path: Path
    num_workers: int
    precision: str
    device: str
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def describe(self) -> list[tuple[str, str, str]]:
        """List (key, value, source) of every setting, for a table."""
        return [
            (key, str(getattr(self, key)), self.sources.get(key, "given in code")) for key in _KEYS
        ]


_FLAGS = {"data_path": "data"}  # what a flag is called where it is not called like its key
_KEYS = tuple(name for name in Settings.__dataclass_fields__ if name != "sources")


def load_settings(**flags) -> Settings:
    """Find each default: flag, then environment variable, then `settings.ini`, then built-in value.

    The file is the nearest `settings.ini` from the working directory upwards, section [DEFAULT];
    its relative paths are relative to its folder. The environment variable of `data_path` is
    `LTLEARN_DATA_PATH`, and so on; an empty one counts as not set.

    Args:
        **flags: Any field of `Settings` but `sources`; None stands for a flag that was not given.

    Raises:
        UserError: If a value is not allowed, or the `settings.ini` found cannot be read.
        TypeError: If a flag is not a field of `Settings`.
    """
    unknown = sorted(set(flags) - set(_KEYS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a setting; there are {', '.join(_KEYS)}")
    in_file, file = _read_file()
    values, sources = {}, {}
    for key in _KEYS:
        variable = f"LTLEARN_{key.upper()}"
        folder = None
        if flags.get(key) is not None:
            raw, source = flags[key], f"flag --{_FLAGS.get(key, key.replace('_', '-'))}"
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
        # The XDG specification wants a relative path ignored.
        base = os.environ.get("XDG_CACHE_HOME", "")
        return os.path.join(base if os.path.isabs(base) else "~/.cache", "ltlearn")
    return {"data_path": "data", "runs_path": "runs", "num_workers": 0}.get(key, "auto")


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
    if key == "num_workers":
        if isinstance(raw, bool) or not re.fullmatch(r"[0-9]+", text):
            raise refuse("a whole number from 0 upwards")
        return int(text)
    text = text.lower()
    if key == "precision" and text not in _PRECISIONS:
        raise refuse("one of " + ", ".join(_PRECISIONS))
    if key == "device" and not _DEVICE.fullmatch(text):
        raise refuse("one of auto, cpu, cuda, cuda:<index>, mps")
    return text


def _read_file() -> tuple[dict[str, str], Path | None]:
    """Return the [DEFAULT] keys that are ours, and the file; warn of a key that is nearly ours."""
    from fastcore.xtras import Config

    # `%` is an ordinary character of a path, so no interpolation.
    try:
        config = Config.find(_FILE, interpolation=None)
        if config is None:
            return {}, None
        # Config skips a file that it cannot open, and would leave the user with built-in values.
        with open(config.config_file, "rb"):
            pass
    except UnicodeDecodeError:
        raise UserError(f"The {_FILE} found from {_here()} upwards is not UTF-8 text.") from None
    except configparser.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"A {_FILE} is not a valid INI file: {reason}.") from None
    except OSError as error:
        raise UserError(
            f"The {_FILE} found from {_here()} upwards cannot be read: {error.strerror}."
        ) from None
    file = config.config_file
    for key in config.d:
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=_NEAR_MISS)
        if key not in _KEYS and near:
            _logger.warning("%s: %r is not a setting; is %r meant?", file, key, near[0])
    return {key: config.d[key] for key in _KEYS if key in config.d}, file


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "the working directory (which no longer exists)"
