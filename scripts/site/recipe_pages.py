"""A page per recipe, a table of all of them, and the short table for Home."""

import tomllib
from pathlib import Path

from ltlearn.experiments.measured import MeasuredResult
from ltlearn.experiments.read_recipe import recipe_folder
from ltlearn.experiments.recipe import Recipe
from ltlearn.experiments.sections import Expected
from ltlearn.methods import METHODS
from scripts.site.markup import (
    REPOSITORY,
    code,
    escape,
    fence,
    inline,
    page,
    percent,
    table,
    write_page,
)
from scripts.site.method_facts import measured_runs, recipes

_SECTIONS = {"data": "Data", "model": "Model", "stage1": "Stage 1", "stage2": "Stage 2"}


def write(staging: Path) -> list[Path]:
    """Write `recipes/index.qmd`, a page per recipe, and `recipes/_recipes_table.md` for Home.

    The links of that file start from the folder of Home, which includes it.

    Args:
        staging: Folder of the staged sources.

    Returns:
        The files written.
    """
    written = [
        write_page(staging / "recipes" / f"{name}.qmd", _page(recipe))
        for name, recipe in recipes().items()
    ]
    written.append(write_page(staging / "recipes" / "index.qmd", _overview()))
    return [*written, write_page(staging / "recipes" / "_recipes_table.md", short_table() + "\n")]


def short_table() -> str:
    """Return the best published figure beside ours, for the recipes that have one of the two."""
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for name, recipe in recipes().items():
        figures = [_published_best(recipe), _ours(name)]
        if any(figure != "–" for figure in figures):
            network = f"<small>{escape(_network(recipe))}</small>"
            rows[recipe.is_pretrained].append([f"{_linked(name)}<br>{network}", *figures])
    return "\n\n".join(_by_start(["Recipe", "Published", "Measured here"], rows))


def _by_start(head: list[str], rows: dict[bool, list[list[str]]]) -> list[str]:
    """Return a table for random and one for pre-trained weights: their figures do not compare."""
    blocks = ["From random weights:", table(head, rows[False])]
    if rows[True]:
        blocks += [
            "From pre-trained weights. Much of the accuracy is due to the images of the "
            "pre-training:",
            table(head, rows[True]),
        ]
    return blocks


def _linked(name: str, prefix: str = "recipes/") -> str:
    return f"[{code(name)}]({prefix}{name}.qmd)"


def _network(recipe: Recipe) -> str:
    width = f", width {recipe.model.width}" if recipe.model.width else ""
    return f"{recipe.model.arch}{width}, {recipe.stage1.epochs} epochs"


def _best_published(recipe: Recipe) -> Expected | None:
    """Return the best figure of all images under the recipe's own values; None without any."""
    figures = [f for f in recipe.published() if f.group == "all"]
    return max(figures, key=lambda figure: figure.ends[-1], default=None)


def _published_best(recipe: Recipe) -> str:
    """Return the best published figure as text."""
    best = _best_published(recipe)
    if best is None:
        return "–"
    return f"{_figure(best.method, ' to '.join(map(percent, best.ends)))} ({best.protocol})"


def _figure(method: str, accuracy: str) -> str:
    """Return label and figure; no line breaks between them."""
    return f"{escape(METHODS[method].label)} {accuracy}".replace(" ", "&nbsp;")


def _ours(name: str) -> str:
    """Return what was measured here for the method of the best published figure, and the best.

    What differs from the recipe stands in brackets.
    """
    shown, published = [], _best_published(recipes()[name])
    for run in _runs(name):
        best = max(run.rows, key=lambda row: row.accuracy["all"])
        same = None if published is None else run.row(published.method)
        rows = [best] if same in (None, best) else [same, best]
        figures = [_figure(row.method, percent(row.accuracy["all"])) for row in rows]
        factor = recipes()[name].data.imbalance_factor
        other = run.imbalance_factor not in (None, factor)
        changes = [f"factor {run.imbalance_factor:g}"] * other + run.changed
        about = escape(", ".join([run.protocol, *changes]))
        shown.append(f"{', '.join(figures)} ({about})")
    return "<br>".join(shown) or "–"


def _runs(name: str) -> list[MeasuredResult]:
    return [run for run in measured_runs() if run.recipe == name]


def _overview() -> str:
    rows: dict[bool, list[list[str]]] = {False: [], True: []}
    for name, recipe in recipes().items():
        labels = [f"[{escape(METHODS[m].label)}](../methods/{m}.qmd)" for m in recipe.methods]
        data = f"{recipe.data.dataset}{_factor(recipe)}, {_network(recipe)}"
        ours = _ours(name)
        if ours == "–":
            ours = "run" if recipe.status.startswith("run here") else "not run"
        rows[recipe.is_pretrained].append(
            [
                f"{_linked(name, '')}<br>{escape(data)}",
                ", ".join(labels),
                _published_best(recipe),
                ours,
            ]
        )
    calls = ["ltlearn recipes", "ltlearn recipe digits_lt", "ltlearn recipe cifar10_lt --data DIR"]
    return page(
        "Recipes",
        "Every benchmark that comes with the library, published figures beside ours.",
        "A recipe is a TOML file with every value of a benchmark and its source. `ltlearn recipe "
        "NAME` runs it; `ltlearn recipe NAME --check RUN` puts a finished run beside the published "
        "figures.",
        fence("\n".join(calls), "bash"),
        "The table has the best published figure under a recipe's own values, top-1 in %. *paper* "
        "selects epochs on the test set, as the published code does; *clean* selects on validation "
        "images. Figures of the two do not compare, and neither do networks of different width. "
        "Measured here are the same method and, if another one was better, that one. A figure "
        "measured with other values than the recipe's names them.",
        *_by_start(["Recipe", "Methods", "Published", "Measured here"], rows),
    )


def _factor(recipe: Recipe) -> str:
    factor = recipe.data.imbalance_factor
    return "" if factor is None else f", factor {factor:g}"


def _page(recipe: Recipe) -> str:
    address = f"{REPOSITORY}/blob/main/recipes/{recipe.name}.toml"
    labels = [f"[{escape(METHODS[m].label)}](../methods/{m}.qmd)" for m in recipe.methods]
    data = "" if recipe.data.dataset == "digits_lt" else " --data DIR"
    commands = [
        f"ltlearn recipe {recipe.name} --smoke{data}",
        f"ltlearn recipe {recipe.name}{data} --out RUN",
    ]
    if recipe.expected:
        commands.append(f"ltlearn recipe {recipe.name} --check RUN")
    status = recipe.status[:1].upper() + recipe.status[1:]
    return page(
        recipe.name,
        recipe.title,
        f"[The file]({address}). [All recipes](index.qmd).",
        f"Methods: {', '.join(labels)}. Protocol: {recipe.protocol}. Seeds: {recipe.seeds}.",
        f"Status: {inline(status)}." if status else "",
        fence("\n".join(commands), "bash"),
        "The first line shrinks it to seconds, to check that it runs.",
        "## Published and measured",
        *_figures(recipe),
        "## Values and their sources",
        *_values(recipe),
        pagetitle=recipe.name,
    )


def _figures(recipe: Recipe) -> list[str]:
    if not recipe.expected and not _runs(recipe.name):
        return ["No figure was published for these values, and none was measured here."]
    blocks = _published(recipe)
    runs = _runs(recipe.name)
    if runs:
        methods = list(dict.fromkeys(row.method for run in runs for row in run.rows))
        rows = []
        for run in runs:
            found, factor = run.accuracies, run.imbalance_factor
            about = [
                f"{run.protocol} protocol", *([] if factor is None else [f"factor {factor:g}"]),
                inline(run.changes or "the values of the recipe"),
                "one seed" if len(run.seeds) == 1 else f"mean of {len(run.seeds)} seeds",
            ]  # fmt: skip
            figures = [percent(found[m]) if m in found else "" for m in methods]
            rows.append([", ".join(about), *figures])
        labels = [escape(METHODS[method].label) for method in methods]
        blocks += [
            "Measured here, top-1 in %:",
            table(["", *labels], rows, "l" + "r" * len(labels)),
            fence("\n".join(run.command for run in runs), "bash"),
        ]
    else:
        blocks.append("Nothing was measured here yet under its own values or similar ones.")
    return blocks


def _published(recipe: Recipe) -> list[str]:
    """Return a table per source, with a column per imbalance factor."""
    tables: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for figure in recipe.expected:
        factor = figure.when.get("data.imbalance_factor")
        column = "top-1, %" if factor is None else f"factor {factor:g}"
        label = f"[{escape(METHODS[figure.method].label)}](../methods/{figure.method}.qmd)"
        label += "" if figure.group == "all" else f", {figure.group}"
        for accuracy, source in figure.each:
            rows = tables.setdefault((figure.protocol, source), {})
            rows.setdefault(label, {})[column] = accuracy
    blocks = []
    for (protocol, source), rows in tables.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        shown = [
            [label, *(percent(cells[c]) if c in cells else "" for c in columns)]
            for label, cells in rows.items()
        ]
        blocks += [
            f"Published under the {protocol} protocol: {escape(source)}.",
            table(["Method", *columns], shown, "l" + "r" * len(columns)),
        ]
    return blocks


def _values(recipe: Recipe) -> list[str]:
    blocks = []
    values = recipe.flat()
    for section, title in _SECTIONS.items():
        # Values without a source are defaults, which the API describes.
        keys = [key for key in values if key.startswith(f"{section}.") and key in recipe.provenance]
        rows = [[code(k), _shown(values[k]), escape(recipe.provenance[k])] for k in keys]
        if rows:
            blocks += [f"### {title}", table(["Key", "Value", "Source"], rows)]
    rows = [
        [code(key), _shown(value), escape(recipe.provenance.get(key, ""))]
        for key, value in values.items()
        if key.startswith("method.")
    ]
    if rows:
        blocks += ["### Methods", table(["Key", "Value", "Source"], rows)]
    return [*blocks, *_variants(recipe)]


def _variants(recipe: Recipe) -> list[str]:
    """Return the values that depend on others; a loaded recipe holds only those that apply."""
    file = recipe_folder() / f"{recipe.name}.toml"
    variants = tomllib.loads(file.read_text(encoding="utf-8")).get("variant", [])
    rows = [[_pairs(variant["when"]), _pairs(variant["set"])] for variant in variants]
    if not rows:
        return []
    # Only a variant has these values; the tables above have the sources of all others.
    values = recipe.flat()
    only = [[code(k), escape(v)] for k, v in recipe.provenance.items() if k not in values]
    shown = table(["With", "Set"], rows)
    sources = [table(["Key", "Source"], only)] if only else []
    return ["### Values that depend on others", shown, *sources]


def _pairs(values: dict[str, object]) -> str:
    return "<br>".join(code(f"{key} = {value}") for key, value in values.items())


def _shown(value: object) -> str:
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else escape(str(value))
