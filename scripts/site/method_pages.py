"""A page per method, and a table of all of them."""

import json
import re
from pathlib import Path

from ltlearn.experiments.measured import MeasuredResult
from ltlearn.methods import (
    DEFAULT_STAGE1,
    METHODS,
    Method,
    find_method,
    label_of,
    usual_stage2,
)
from scripts.site.api_pages import Links
from scripts.site.markup import code, escape, fence, inline, page, percent, table, write_page
from scripts.site.method_facts import (
    GROUPS,
    MethodFacts,
    measured,
    method_facts,
    papers,
    recipes,
)

NOTATION = (
    "$n_c$ is the number of training images of class $c$, $\\pi_c$ their share of all, $C$ the "
    "number of classes, $D$ the number of features, $x$ the feature of an image, "
    "$z_c = w_c \\cdot x + b_c$ its logit and $p$ the softmax of the logits."
)
_GROUP_TEXTS = {
    "stage 1": "They train backbone and classifier; a linear probe, the classifier alone.",
    "sampler": "They retrain the classifier on the frozen backbone, with another sampler.",
    "loss": "They retrain the classifier on the frozen backbone, with another loss.",
    "head": "They retrain the classifier on the frozen backbone, with the monotone norms of SAMN.",
    "post hoc": "They correct the classifier and train nothing.",
}
_GROUP_TITLES = {
    "stage 1": "Stage 1", "sampler": "Samplers", "loss": "Losses", "head": "Heads with SAMN",
    "post hoc": "Post hoc",
}  # fmt: skip
_SORT_STYLE = """<style>
.sortable button { all: unset; cursor: pointer; font-weight: bold; }
.sortable button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
.sortable button::after { content: " \\2195"; opacity: .5; }
.sortable [aria-sort="ascending"] button::after { content: " \\2191"; opacity: 1; }
.sortable [aria-sort="descending"] button::after { content: " \\2193"; opacity: 1; }
.sortable td:not(:first-child):not(:nth-child(4)) { white-space: nowrap; }
</style>"""
# Headings become buttons, so that the keyboard sorts as well.
_SORT = """<script>
document.querySelectorAll(".sortable th").forEach((cell, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...cell.childNodes);
  cell.append(button);
  const key = (row) => row.cells[column].textContent.trim();
  button.addEventListener("click", () => {
    const up = cell.getAttribute("aria-sort") === "descending";
    cell.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = cell.closest("table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!x || !y) return !x - !y;  // empty cells stay at the end
      const order = (parseFloat(x) - parseFloat(y)) || x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...rows);
  });
});
</script>"""
_LINE = 88  # characters of code that stay on one line
_LONG_FORMULA = 100  # characters of TeX that fit one line of a page
# What `retrain_classifier` uses where a row gives no value.
_DEFAULTS = {"epochs": 20, "bs": 64, "lr": 5e-4, "wd": 0.0}
_VALUE_NAMES = {"epochs": "epochs", "bs": "batch size", "lr": "learning rate", "wd": "weight decay"}


def write(staging: Path) -> list[Path]:
    """Write a page per method into the folder `methods`, and their index.

    Args:
        staging: Folder of the staged sources.

    Returns:
        The files written.
    """
    links, facts = Links(), method_facts()
    written = [
        write_page(staging / "methods" / f"{name}.qmd", _page(name, facts[name], links))
        for name in METHODS
    ]
    # The guide includes this table; its links start from there.
    shown = write_page(staging / "guide" / "_evidence.md", evidence() + "\n")
    return [*written, write_page(staging / "methods" / "index.qmd", _index(facts)), shown]


def _page(name: str, facts: MethodFacts, links: Links) -> str:
    row = METHODS[name]

    def link(word: str) -> str | None:
        if word in METHODS:
            return f"{word}.qmd"
        address = links.find(word)
        return address and f"../api/{address}"

    return page(
        row.label,
        facts.summary.split(". ")[0].rstrip(".") + ".",
        _kind_line(name, row, facts),
        _text(facts.summary.partition(". ")[2], link),
        *_formulas(facts.formula),
        _text(f"{facts.symbols} {NOTATION}".strip(), link),
        "## When to use it",
        _text(facts.use, link),
        "## When not to",
        _text(facts.avoid, link),
        "## Code",
        *_code(name, row),
        _made_of(facts, links),
        "## Values",
        *_values(name, row),
        "## Cost",
        *_cost(row, facts, link),
        "## Accuracy",
        *_accuracy(name, row, facts),
        "## Paper",
        _papers(row, facts),
        "## Related",
        "\n".join(
            f"* [{escape(METHODS[other].label)}]({other}.qmd): {_first(other)}"
            for other in facts.related
        ),
        pagetitle=row.label,
    )


def _formulas(tex: str) -> list[str]:
    """Return the displayed formula; a long one gets a line for each of its equations."""
    equations = re.split(r", \\quad ", tex) if len(tex) > _LONG_FORMULA else [tex]
    return [f"$$\n{equation}\n$$" for equation in equations]


def _first(name: str) -> str:
    return _text(method_facts()[name].summary.split(". ")[0].rstrip(".") + ".")


def _text(text: str, link=lambda word: None) -> str:
    """Turn a sentence of the data file into Markdown; formulas between dollars stay."""
    parts = re.split(r"(\$[^$]+\$)", text)
    return "".join(p if p.startswith("$") else _spaced(p, link) for p in parts)


def _spaced(text: str, link) -> str:
    # `inline` drops spaces at the ends, which separate a formula from its sentence.
    before = " " * text.startswith(" ")
    after = " " * (text.endswith(" ") and bool(text.strip()))
    return before + inline(text, link) + after


def _kind_line(name: str, row: Method, facts: MethodFacts) -> str:
    needed = ""
    if row.after is not None:
        needed = f" It needs a stage 1 of [{METHODS[row.after].label}]({row.after}.qmd)."
    kind = facts.group if facts.group == row.kind else f"{row.kind}, {facts.group}"
    return f"Method `{name}` ({kind}).{needed} [All methods](index.qmd)."


def _made_of(facts: MethodFacts, links: Links) -> str:
    made = [f"[`{name}`](../api/{links.find(name)})" for name in facts.api]
    return f"It is made of {' and '.join(filter(None, [', '.join(made[:-1]), made[-1]]))}."


def python_code(name: str) -> str:
    """Return the lines of Python that run a method.

    Args:
        name: The method.
    """
    row, facts = find_method(name), method_facts()[name]
    stage1 = name if row.kind == "stage 1" else row.after or DEFAULT_STAGE1
    first = (
        "learn.fit_stage1(90)"
        if stage1 == DEFAULT_STAGE1
        else (f'learn.fit_stage1(90, method="{stage1}")')
    )
    lines = [
        "from ltlearn import LTDataLoaders, lt_learner", "",
        'dls = LTDataLoaders.from_folder("photos/")',
        f'learn = lt_learner(dls, "{facts.arch}")', first,
    ]  # fmt: skip
    named = f'method="{name}"'
    if row.kind == "stage 1":
        epochs = [] if row.trains == "head" else [str(facts.epochs)]
        lines[-1] = _call("learn.fit_stage1", *epochs, named, *_options_argument(row))
    elif row.kind == "stage 2":
        lines.append(_call("learn.retrain_classifier", named, *_options_argument(row)))
    else:
        lines.append(f'learn.correct_classifier("{name}")')
    return "\n".join([*lines, "print(learn.shot_report())"])


def _call(function: str, *arguments: str) -> str:
    """Return a call: one line, or an argument a line."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= _LINE:
        return line
    return f"{function}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def _options_argument(row: Method) -> list[str]:
    """Return the argument `options` with every default, if the method has options."""
    return [f"options={json.dumps(dict(row.options))}"] if row.options else []


def _number(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-")


def commands(name: str) -> list[str]:
    """Return the commands that run a method.

    Args:
        name: The method.
    """
    row = find_method(name)
    if row.kind == "stage 1":
        stage2 = next((n for n, m in METHODS.items() if m.after == name), usual_stage2(name))
        arch, usual_arch = method_facts()[name].arch, method_facts()[DEFAULT_STAGE1].arch
        arch = f"--arch {arch} " if arch != usual_arch else ""
        lines = [f"ltlearn train photos/ {arch}--stage1 {name} --method {stage2} --out RUN"]
        return lines + [f"{lines[0]} --set stage1.{k}={_option(v)}" for k, v in _one_option(row)]
    stage1 = f"--stage1 {row.after} " if row.after else ""
    lines = [f"ltlearn train photos/ {stage1}--method {name} --out RUN"]
    lines += [f"{lines[0]} --set method.{name}.{k}={v:g}" for k, v in _one_option(row)]
    return [*lines, f"ltlearn compare RUN --methods {name}"]


def _option(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _value_cell(row: Method, key: str, value: float | str) -> str:
    """Return the default of an option, with the other words that it may have."""
    if key not in row.choices:
        return _number(value)
    return f"{value}; or {' or '.join(row.choices[key][1:])}"


def _one_option(row: Method) -> list[tuple[str, float | str]]:
    return list(row.options.items())[-1:]


def _code(name: str, row: Method) -> list[str]:
    notes = {"post hoc": "`compare` tries it on a run that is finished, without new training."}
    blocks = [
        fence(python_code(name)),
        "On the command line:",
        fence("\n".join(commands(name)), "bash"),
        notes.get(row.kind, ""),
    ]
    if name == DEFAULT_STAGE1:
        blocks.insert(1, "It is the default, so `method=` can be left out.")
    return blocks


def _values(name: str, row: Method) -> list[str]:
    rows = []
    if row.kind == "stage 2":
        given = {**_DEFAULTS, **row.values}
        if given["epochs"] == 0:
            given = {"epochs": 0}
        rows += [[_VALUE_NAMES[key], _number(value)] for key, value in given.items()]
        if given["epochs"]:
            rows.append(["sampler", code(row.sampler)])
        rows.append(["classifier at the start", "new" if row.reset else "the one of stage 1"])
    if row.trains == "head":
        rows += [[_VALUE_NAMES[key], _number(value)] for key, value in row.values.items()]
    options = row.options.items()
    rows += [[f"option {code(key)}", _value_cell(row, key, value)] for key, value in options]
    if row.choose is not None:
        rows.append(
            [
                f"strength {code(row.strength)}",
                f"chosen on validation images; with too few of them {row.published_value:g}. "
                f"A recipe sets it with {code(f'method.{name}.{row.strength}')}",
            ]
        )
    if row.post is not None:
        rows.append(["followed by", f"[{METHODS[row.post].label}]({row.post}.qmd)"])
    if row.sweep is not None:
        values = ", ".join(_number(value) for value in row.sweep.values)
        rows.append([f"published range of the {escape(row.sweep.parameter)}", values])
    priors = {
        "train": "the training frequencies", "uniform": "equally frequent classes",
        "stage 1": "as the stage 1 before it",
    }  # fmt: skip
    rows.append(["class prior that its logits assume", priors[row.prior]])
    text = row.values_from.replace(". own:", ". Own:")
    source = f"Source of the values: {escape(text)}." if text else ""
    own = [n for n, recipe in recipes().items() if name in (*recipe.methods, recipe.stage1.method)]
    where = ", ".join(f"[{n}](../recipes/{n}.qmd)" for n in own)
    return [
        table(["Setting", "Value"], rows),
        source,
        f"Recipes that run it, some with values of their own: {where}."
        if own
        else "No recipe names it; `compare` runs it on any finished run.",
    ]


def _cost(row: Method, facts: MethodFacts, link) -> list[str]:
    given = {**_DEFAULTS, **row.values}
    how_long = {
        "stage 1": "It trains for as many epochs on the images as you give it.",
        "stage 2": f"{given['epochs']} epochs on cached features, which all methods share.",
        "post hoc": "Choosing and applying it takes seconds on cached features.",
    }[row.kind]
    if row.kind == "stage 2" and not row.draws:
        how_long = "It needs the features of the validation images at most."
    return [f"Trained: {_text(facts.trains, link)}. {how_long}", _text(facts.cost, link)]


def _accuracy(name: str, row: Method, facts: MethodFacts) -> list[str]:
    published = [*_of_recipes(name, False), *_of_facts(facts)]
    pretrained = _of_recipes(name, True)
    head, blocks = ["Data", "Network", "Top-1, %", "Source"], ["### Published"]
    if published:
        blocks.append(table(head, published, "llrl"))
    if pretrained:
        blocks += ["From pre-trained weights:", table(head, pretrained, "llrl")]
    if not (published or pretrained):
        blocks.append("The sources used here hold no published figure of exactly this method.")
    blocks.append("### Measured here")
    results = "[the results](../results/accuracy.ipynb)"
    used = [result for result in measured() if result.row(name) is not None]
    if used:
        rows = [_result_row(name, result) for result in used]
        head = ["Recipe", "Protocol", "stage 1", "this method"]
        blocks.append(table(head[: len(rows[0])], rows, "llrr"))
        blocks.append(fence("\n".join(dict.fromkeys(r.command for r in used)), "bash"))
        blocks.append(f"Top-1 in %. {results} state split, network, epochs and seeds.")
    else:
        call = "train" if row.kind == "stage 1" else f"compare RUN --methods {name}"
        call = f"`ltlearn {call}`"
        blocks.append(f"It is not yet in {results}; {call} measures it on your data.")
    return blocks


def _result_row(name: str, result: MeasuredResult) -> list[str]:
    recipe = f"[{result.recipe}](../recipes/{result.recipe}.qmd)"
    factor = "" if result.imbalance_factor is None else f", factor {result.imbalance_factor:g}"
    first = result.stage1 if result.row(result.stage1) is not None else name
    figures = [percent(result.row(m).accuracy["all"]) for m in dict.fromkeys((first, name))]
    if len(figures) == 2 and first != DEFAULT_STAGE1:
        figures[0] += f" ({escape(METHODS[first].label)})"
    compared = ", compared" if result.kind == "comparison" else ""
    changes = f", {inline(result.changes)}" if result.changes else ""
    return [f"{recipe}{factor}{changes}{compared}", result.protocol, *figures]


def _of_recipes(name: str, pretrained: bool) -> list[list[str]]:
    """Return a row per recipe and source; figures of several imbalance factors share a cell."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for recipe_name, recipe in recipes().items():
        for figure in recipe.expected:
            if figure.method != name or recipe.is_pretrained != pretrained:
                continue
            data = f"[{recipe_name}](../recipes/{recipe_name}.qmd)"
            data += f", {figure.group}" if figure.group != "all" else ""
            width = f", width {recipe.model.width}" if recipe.model.width else ""
            factor = figure.when.get("data.imbalance_factor")
            at = f" (factor {factor:g})" if factor is not None else ""
            for accuracy, source in figure.each:
                key = (data, code(recipe.model.arch) + width, escape(source))
                rows.setdefault(key, []).append(f"{percent(accuracy)}{at}")
    return [
        [data, network, "<br>".join(figures), text]
        for (data, network, text), figures in rows.items()
    ]


def _of_facts(facts: MethodFacts) -> list[list[str]]:
    return [
        [escape(f.data), escape(f.backbone), percent(f.accuracy), escape(f.source)]
        for f in facts.published
    ]


def _papers(row: Method, facts: MethodFacts) -> str:
    known = papers()
    lines = [
        f"* {escape(p.authors)}: *{escape(p.title)}*, {p.venue}. "
        f"[arXiv:{p.arxiv}](https://arxiv.org/abs/{p.arxiv})"
        for p in (known[key] for key in facts.papers)
    ]
    return "\n".join(lines) or f"No paper of its own: {escape(row.source)}."


def _index(facts: dict[str, MethodFacts]) -> str:
    blocks = [
        "Every method has a name, which `fit_stage1`, `retrain_classifier`, `correct_classifier`, "
        "`ltlearn train`, `ltlearn compare` and recipes take.",
        "[Choose a method](../guide/choose.qmd) helps to decide. "
        "[The results](../results/accuracy.ipynb) have the measured accuracies.",
        "## All methods at a glance {#all}",
        *_overview(facts),
    ]
    for group in GROUPS:
        names = [name for name in METHODS if facts[name].group == group]
        rows = [
            [_linked(name), code(name), _first(name), inline(METHODS[name].source)]
            for name in names
        ]
        blocks += [
            f"## {_GROUP_TITLES[group]} {{#{group.replace(' ', '-')}}}",
            _GROUP_TEXTS[group],
            table(["Method", "Name", "What it does", "Source"], rows),
        ]
    return page("Methods", "Every method, by kind, with its publication.", *blocks, toc_depth=2)


def _linked(name: str) -> str:
    return f"[{escape(METHODS[name].label)}]({name}.qmd)"


def _overview(facts: dict[str, MethodFacts]) -> list[str]:
    """Return the table of all methods, which a click on a heading sorts, and its explanation."""
    # More columns need a wider page.
    sets = [r for r in measured() if (r.kind, r.protocol) == ("comparison", "clean")][:2]
    head = ["Method", "Kind", "Epochs", "Trains", *(result.set_name for result in sets)]
    rows = []
    for name, row in METHODS.items():
        epochs = {**_DEFAULTS, **row.values}["epochs"] if row.kind == "stage 2" else ""
        epochs = 0 if row.kind == "post hoc" else epochs
        trains = facts[name].trains.split(":")[0].split(",")[0].removesuffix(" numbers")
        trains = "all weights" if trains.startswith("all") else trains
        found = [result.row(name) for result in sets]
        figures = ["" if row is None else f"{row.accuracy['all']:.2f}" for row in found]
        rows.append([_linked(name), facts[name].group, str(epochs), trains, *figures])
    note = (
        "A click on a heading sorts the table. C is the number of classes, D the number of "
        "features, epochs are those of stage 2."
    )
    if sets:
        stages = " and ".join(dict.fromkeys(label_of(result.stage1) for result in sets))
        note += (
            f" Accuracies are top-1 in % under the clean protocol, after {stages}; "
            "[the results](../results/accuracy.ipynb) have all sets and the commands."
        )
    shown = table([inline(cell) for cell in head], rows, "llrl" + "r" * len(sets))
    script = fence(f"{_SORT_STYLE}\n{_SORT}", "{=html}")
    return [note, f"::: {{.sortable}}\n\n{shown}\n\n:::", script]


def evidence() -> str:
    """Return the table of gains for the guide, which includes it: all clean comparisons."""
    sets = [r for r in measured() if (r.kind, r.protocol) == ("comparison", "clean")]
    gains: dict[str, list[float]] = {}
    for result in sets:
        first = result.row(result.stage1)
        for row in result.rows if first is not None else ():
            if row is not first and row.method in METHODS:
                gain = row.accuracy["all"] - first.accuracy["all"]
                gains.setdefault(row.method, []).append(gain)
    if not gains:
        return "No comparison of all methods has been recorded yet."
    order = sorted(gains, key=lambda name: -sum(gains[name]) / len(gains[name]))
    rows = [
        [
            f"[{escape(METHODS[name].label)}](../methods/{name}.qmd)",
            f"{sum(gains[name]) / len(gains[name]):+.1f}",
            f"{min(gains[name]):+.1f}",
            str(len(gains[name])),
            _chosen(name),
        ]
        for name in order
    ]
    head = ["method", "gain", "smallest gain", "sets", "chosen on validation"]
    names = ", ".join(f"{result.set_name} after {label_of(result.stage1)}" for result in sets)
    return f"{table(head, rows, 'lrrrl')}\n\nSets: {names}."


def _chosen(name: str) -> str:
    """Return what validation images choose for a method."""
    method = METHODS[name]
    chosen = ["epoch"] if method.kind == "stage 2" else []
    if method.uses_validation:
        chosen.append("shifts")
    for part in (method, METHODS[method.post] if method.post else None):
        if part is not None and part.choose is not None:
            chosen.append(part.strength)
    return ", ".join(chosen) or "–"
