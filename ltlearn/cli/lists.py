"""`ltlearn methods`, `ltlearn recipes` and `ltlearn settings`."""

from collections.abc import Sequence

from ltlearn.cli.console import print_json
from ltlearn.cli.options import JSON

__all__ = []


def methods(as_json: JSON = False) -> None:
    """List the methods, with the sources of their values."""
    from ltlearn.methods import METHODS

    rows = []
    for name, m in METHODS.items():
        # Stage 1 gets its sampler elsewhere, and a correction draws no images.
        training = [m.sampler, "new" if m.reset else "kept"] if m.kind == "stage 2" else [None] * 2
        rows.append([name, m.label, m.kind, *training, m.source, m.values_from])
    head = ["name", "label", "kind", "sampler", "head", "source", "values from"]
    _print_list(head, rows, as_json)


def recipes(as_json: JSON = False) -> None:
    """List the benchmarks that come with the library."""
    from ltlearn.experiments.measured import measured_results
    from ltlearn.experiments.read_recipe import load_recipe, recipe_names
    from ltlearn.utils.terminal import render_recipes

    loaded = [load_recipe(name) for name in recipe_names()]
    measured = [result for result in measured_results() if result.kind == "run"]
    if as_json:
        found = {r.name: [m for m in measured if m.recipe == r.name] for r in loaded}
        print_json(
            [
                {
                    **r.model_dump(mode="json"),
                    "measured": [m.model_dump(mode="json") for m in found[r.name]],
                }
                for r in loaded
            ]
        )
    else:
        render_recipes(loaded, measured)


def settings(as_json: JSON = False) -> None:
    """Show the settings in force and the source of each."""
    from ltlearn.utils.settings import load_settings

    _print_list(("key", "value", "from"), load_settings().describe(), as_json)


def _print_list(head: Sequence[str], rows: Sequence[Sequence], as_json: bool) -> None:
    from ltlearn.utils.terminal import render_rows

    if as_json:
        print_json([dict(zip(head, row, strict=True)) for row in rows])
    else:
        render_rows(head, [["–" if cell is None else cell for cell in row] for row in rows])
