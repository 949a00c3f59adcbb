"""`ltlearn methods`, `ltlearn recipes` and `ltlearn settings`."""

import json
from typing import Annotated

import typer

from ltlearn.cli.options import JSON

__all__ = []


def methods(as_json: JSON = False) -> None:
    """List the ways to train or correct a classifier, and where their values are from."""
    from ltlearn.methods import METHODS
    from ltlearn.utils.terminal import render_rows

    rows = [
        [name, m.label, m.kind, m.sampler, "new" if m.reset else "kept", m.source, m.values_from]
        for name, m in METHODS.items()
    ]
    head = ["name", "label", "kind", "sampler", "head", "source", "values from"]
    if as_json:
        typer.echo(json.dumps([dict(zip(head, row, strict=True)) for row in rows], indent=1))
    else:
        render_rows(head, rows)


def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the benchmarks that come with the library."""
    from ltlearn.experiments.read_recipe import load_recipe, recipe_names
    from ltlearn.utils.terminal import render_recipes

    found = [load_recipe(name) for name in recipe_names()]
    if as_json:
        typer.echo(json.dumps([r.model_dump(mode="json") for r in found], indent=1))
    else:
        render_recipes(found)


def settings(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the defaults in force, and where each comes from."""
    from ltlearn.utils.settings import load_settings
    from ltlearn.utils.terminal import render_rows

    rows = load_settings().describe()
    if as_json:
        typer.echo(
            json.dumps(
                [dict(zip(("key", "value", "from"), r, strict=True)) for r in rows], indent=1
            )
        )
    else:
        render_rows(("key", "value", "from"), rows)
