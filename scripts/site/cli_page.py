"""The page of the command line, from the typer app."""

import re
import tomllib
from pathlib import Path

import typer

from ltlearn.cli.app import app
from ltlearn.cli.console import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USER
from scripts.site.api_pages import Links
from scripts.site.markup import code, fence, inline, page, paragraphs, table, write_page

_EXAMPLES = Path(__file__).with_name("commands.toml")
_EXIT_CODES = (
    ("0", "The command did what was asked."),
    (str(EXIT_INTERNAL), "An internal error. Some commands also exit so for a result that is not "
     "as wished; their sections name it."),
    (str(EXIT_USER), "A mistake in the call, in the data or in a file: one sentence names it and "
     "the remedy."),
    ("129, 143", "SIGHUP or SIGTERM stopped the command; it can be resumed where it says so."),
    (str(EXIT_INTERRUPTED), "Ctrl-C stopped the command."),
)  # fmt: skip

_TYPES = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}


def write(staging: Path) -> list[Path]:
    """Write `reference/cli.qmd` into the staged sources.

    Args:
        staging: Folder of the staged sources.

    Returns:
        The file written.
    """
    return [write_page(staging / "reference" / "cli.qmd", _page(Links()))]


def command_group():
    """Return the command of the whole program, with its commands in `commands`."""
    return typer.main.get_command(app)


def examples() -> dict[str, list[str]]:
    """Return the examples of each command."""
    return tomllib.loads(_EXAMPLES.read_text(encoding="utf-8"))


def _page(links: Links) -> str:
    group = command_group()

    def link(word: str) -> str | None:
        command = re.fullmatch(r"ltlearn (\w+)(?: .*)?", word)
        if command and command[1] in group.commands:
            return f"#{command[1]}"
        return None

    rows = [[f"[{code(name)}](#{name})", inline(_first_line(command), link)]
            for name, command in group.commands.items()]  # fmt: skip
    blocks = [
        inline(group.help or ""),
        fence("ltlearn [--version] [--help] COMMAND [ARGUMENTS]", "text"),
        table(["Command", "Purpose"], rows),
        "`ltlearn COMMAND --help` prints the options of a command. Commands with `--json` print "
        "their results as JSON and everything else on standard error. "
        "[The guide](../guide/command_line.qmd) has recipes, runs and settings.",
        "## Exit codes",
        table(["Code", "Meaning"], _EXIT_CODES),
    ]
    shown = examples()
    for name, command in group.commands.items():
        blocks += _command(name, command, shown.get(name, []), link)
    text = "Every command with its arguments, options and examples."
    return page("Command line", text, *blocks, toc_depth=2)


def _first_line(command) -> str:
    return (command.help or "").split("\n\n")[0].replace("\n", " ")


def _command(name: str, command, shown: list[str], link) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = ["ltlearn", name, *(_metavar(p) for p in arguments)]
    usage += [f"{max(o.opts, key=len)} {_value(o)}" for o in options if o.required]
    usage += ["[OPTIONS]"] if any(not o.required for o in options) else []
    blocks = [
        f"## ltlearn {name} {{#{name}}}",
        fence(" ".join(usage), "text"),
        paragraphs(command.help or "", link),
    ]
    if shown:
        blocks.append(fence("\n".join(shown), "bash"))
    if arguments:
        rows = [[code(_metavar(a)), inline(a.help or "", link)] for a in arguments]
        blocks.append(table(["Argument", "Meaning"], rows))
    if options:
        rows = [[_spelled(o), _meaning(o, link)] for o in options]
        blocks.append(table(["Option", "Meaning"], rows))
    return blocks


def _metavar(parameter) -> str:
    return (parameter.metavar or parameter.name).upper()


def _spelled(option) -> str:
    names = sorted(option.opts, key=len, reverse=True)
    flags = [code(flag) for flag in [*names, *option.secondary_opts]]
    value = "" if option.is_flag else f"<br>{code(_value(option))}"
    return ", ".join(flags) + value


def _value(option) -> str:
    """Return the placeholder of an option's value: its metavar, or its type."""
    if option.metavar:
        return option.metavar
    return _TYPES[option.type_descriptor.annotation]


def _meaning(option, link) -> str:
    text = inline(option.help or "", link)
    notes = []
    if option.required:
        notes.append("required")
    if option.multiple:
        notes.append("may be repeated")
    default = option.default
    if not option.is_flag and default not in (None, "", ()) and not callable(default):
        if type(default).__module__ == "builtins":
            notes.append(f"default {code(str(default))}")
    return f"{text} ({'; '.join(notes)})" if notes else text
