"""How the command line spells parameters: the one table from the library's names to flags."""

import shlex
from collections.abc import Mapping
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption

from ltlearn.cli.console import configured_log, report_interrupt, to_json
from ltlearn.errors import Spelling, spelled_by

__all__ = ["FlagSpelling", "SpelledCommand"]

# Parameter of the library -> key of a recipe.
_KEYS = {
    "bs": "stage1.batch_size",
    "batch_size": "stage1.batch_size",
    "arch": "model.arch",
    "width": "model.width",
    "classes": "model.classes",
    "weights_key": "model.weights_key",
    "mean": "data.mean",
    "std": "data.std",
    "pretrained": "model.pretrained",
    "keep_head": "model.keep_head",
    "size": "data.size",
    "bits": "data.bits",
    "transform": "data.transform",
    "valid_pct": "data.valid_pct",
    "imbalance_factor": "data.imbalance_factor",
    "grad_checkpointing": "stage1.grad_checkpointing",
    "views": "stage2.views",
    "path": "data.images",  # in `from_csv`, the folder that listed paths start from
    "images": "data.images",
    "image_col": "data.image_col",
    "label_col": "data.label_col",
    "split_col": "data.split_col",
    "suffix": "data.suffix",
    "valid": "data.valid",
    "test": "data.test",
}
# Parameter of the library -> names that commands have for it, where they differ.
_ALIASES = {
    "data_path": ("data", "root"),
    "source": ("data",),
    "methods": ("methods", "method"),
    "overrides": ("set_",),
    "stats": ("mean",),
}
# Settings are the remedy in commands that have no flag for them.
_SETTINGS = (
    "data_path", "runs_path", "cache_path", "num_workers", "precision", "device",
    "max_megapixels", "device_megabytes",
)  # fmt: skip
# The commands that make a run, which others read.
_TRAINING_COMMANDS = ("train", "recipe")
# Messages about these name the command.
_OF_ANY_RUN = ("out", "resume")
# Function of the library -> command.
_COMMANDS = {
    "check_benchmark": "data",
    "inspect_path": "inspect",
    "run_recipe": "recipe",
    "load_recipe": "recipe",
    "own_recipe": "train",
    "compare_run": "compare",
    "rewrite_pages": "report",
    "sensitivity_run": "sensitivity",
    "export_run": "export",
}


class FlagSpelling(Spelling):
    """Spell a parameter as a flag of the running command, and a call as a command.

    Args:
        command: The command that runs.
        commands: All commands by name, for the flags in a call.
    """

    def __init__(self, command: TyperCommand, commands: Mapping[str, TyperCommand] | None = None):
        self.command, self.commands = command, commands or {}

    def parameter(self, name: str, value: object = None) -> str:
        """Spell a parameter as a flag, or as `--set` if only a recipe has it, or as a setting.

        If the running command has none of them, the flag of a training command is named.

        Args:
            name: The parameter, such as "skip_bad", or a recipe key, such as "stage1.lr".
            value: Its value. None spells the flag alone.
        """
        if not _is_known(self.command, name) and name not in _OF_ANY_RUN:
            for word in _TRAINING_COMMANDS:
                if word in self.commands and _is_known(self.commands[word], name):
                    return f"{_spell(self.commands[word], name, value)} of `ltlearn {word}`"
        return _spell(self.command, name, value)

    def call(self, name: str, /, **arguments: object) -> str:
        """Spell a call as a command between backquotes.

        Args:
            name: The function, such as "check_benchmark", or the command, such as "retrain".
            **arguments: Its arguments by name. None leaves one out. An argument that the command
                has no flag for takes the command's next position.
        """
        word = _COMMANDS.get(name, name)
        command = self.commands.get(word, self.command)
        positions = [p.name for p in command.params if isinstance(p, TyperArgument)]
        placed, flags = [], []
        for key, value in arguments.items():
            if value is None:
                continue
            is_option = key not in positions and isinstance(_find(command, key), TyperOption)
            if len(placed) < len(positions) and not is_option:
                placed.append(shlex.quote(str(value)))
            else:
                flags.append(_spell(command, key, value))
        return f"`{' '.join(['ltlearn', word, *placed, *flags])}`"


class SpelledCommand(TyperCommand):
    """A command whose messages spell parameters as its flags, and whose warnings have a prefix."""

    def invoke(self, ctx) -> Any:
        """Run the command.

        Args:
            ctx: The context of the call.
        """
        commands = getattr(ctx.find_root().command, "commands", {})
        given = ctx.params
        quiet = "quiet" in given and (given["quiet"] or given.get("as_json"))
        with spelled_by(FlagSpelling(self, commands)), configured_log(quiet), report_interrupt():
            return super().invoke(ctx)


def _find(command: TyperCommand, name: str) -> TyperArgument | TyperOption | None:
    """Return the parameter of a command for a parameter of the library or a recipe key."""
    section, _, word = _KEYS.get(name, name).rpartition(".")
    if not section:
        names = _ALIASES.get(name, (name,))
    elif section in ("data", "model", "stage1"):
        names = ("stage1",) if (section, word) == ("stage1", "method") else (word,)
    else:
        return None  # the other sections have no flags
    params = {p.name: p for p in command.params}
    return next((params[n] for n in names if n in params), None)


def _is_known(command: TyperCommand, name: str) -> bool:
    """Return whether a command has a flag, `--set` or a setting for a parameter."""
    in_recipe = "." in _KEYS.get(name, name) and _find(command, "set_") is not None
    return in_recipe or name in _SETTINGS or _find(command, name) is not None


def _spell(command: TyperCommand, name: str, value: object) -> str:
    key = _KEYS.get(name, name)
    if key == "model.keep_head" and value is not None and _find(command, "reset"):
        return _spell(command, "reset", not value)
    if key == "model.pretrained" and isinstance(value, str) and _find(command, "weights"):
        return _spell(command, "weights", value)
    param = _find(command, name)
    if isinstance(param, TyperArgument):
        return (param.metavar or param.name).upper() if value is None else shlex.quote(str(value))
    if param is not None:
        return _with_value(param, value)
    if "." in name or ("." in key and _find(command, "set_")):
        text = value if isinstance(value, str) else to_json(value, default=str)
        return f"--set {key}" if value is None else f"--set {shlex.quote(f'{key}={text}')}"
    if name in _SETTINGS:
        return f"{name} in settings.ini" if value is None else f"{name} = {value} in settings.ini"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(str(value))}"


def _with_value(option: TyperOption, value: object) -> str:
    flag = max(option.opts, key=len)
    if value is None or value is True:
        return flag
    if value is False and option.is_flag:
        return option.secondary_opts[0] if option.secondary_opts else f"no {flag}"
    # `False` for a column means that the table's column is not used.
    return f"{flag} {'none' if value is False else shlex.quote(str(value))}"
