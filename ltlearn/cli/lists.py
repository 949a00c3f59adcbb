"""`ltlearn methods`, `ltlearn recipes` and `ltlearn settings`."""

from collections.abc import Sequence

from ltlearn.cli.console import print_json
from ltlearn.cli.options import JSON

__all__ = []


def methods(as_json: JSON = False) -> None:
    """List the methods, with the sources of their values."""
    from ltlearn.methods import METHODS

    rows = [
        [name, m.label, m.kind, m.sampler, "new" if m.reset else "kept", m.source, m.values_from]
        for name, m in METHODS.items()
    ]
    head = ["name", "label", "kind", "sampler", "head", "source", "values from"]
    _print_list(head, rows, as_json)


def recipes(as_json: JSON = False) -> None:
    """List the benchmarks that come with the library."""
    from ltlearn.experiments.read_recipe import load_recipe, recipe_names
    from ltlearn.utils.terminal import render_recipes

    loaded = [load_recipe(name) for name in recipe_names()]
    if as_json:
        print_json([r.model_dump(mode="json") for r in loaded])
    else:
        render_recipes(loaded)


def settings(as_json: JSON = False) -> None:
    """Show the settings in force and the source of each."""
    from ltlearn.utils.settings import load_settings

    _print_list(("key", "value", "from"), load_settings().describe(), as_json)


def _print_list(head: Sequence[str], rows: Sequence[Sequence], as_json: bool) -> None:
    from ltlearn.utils.terminal import render_rows

    if as_json:
        print_json([dict(zip(head, row, strict=True)) for row in rows])
    else:
        render_rows(head, rows)
