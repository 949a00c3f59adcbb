"""The model card of a repository on the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ltlearn.reporting.markdown import counts_paragraph
from ltlearn.reporting.text import as_sentence, markdown_list, markdown_table
from ltlearn.utils.terminal import one_line
from ltlearn.utils.text import escape_markdown, percent_text

__all__ = ["CardFacts", "CardResult", "render_card"]

_PROJECT = "https://github.com/ltlearn/ltlearn"
_MAX_CLASSES = 30  # a longer list shows its two ends
_END = 5
_COLUMNS = {"all": "all", "balanced": "balanced", "many": "many", "medium": "medium", "few": "few",
            "ece": "ECE"}  # fmt: skip
_ASSUMED = {
    "train": "each class is as frequent as among the training images",
    "uniform": "all classes are equally frequent",
}
# Metric of the hub -> figure. The hub knows accuracy alone; so the names hold the shot group.
_METRICS = {
    "all": "Accuracy", "balanced": "Mean accuracy of the classes",
    "many": "Accuracy, many-shot classes", "medium": "Accuracy, medium-shot classes",
    "few": "Accuracy, few-shot classes",
}  # fmt: skip


@dataclass(frozen=True)
class CardResult:
    """A row of the card's table.

    Args:
        label: The name of the method.
        figures: Accuracies and ECE, from 0 to 1, by name; None where nothing was measured.
        is_exported: Whether it is the method that was exported.
    """

    label: str
    figures: Mapping[str, float | None]
    is_exported: bool = False


@dataclass(frozen=True)
class CardFacts:
    """What a model card reports.

    Args:
        title: What the model classifies.
        architecture: The architecture.
        classes: The names of the classes.
        class_counts: Training images per class.
        few: The few-shot rule.
        prior: The class prior that the probabilities assume: "train" or "uniform".
        dataset: The name of the dataset; "" if it has none.
        part: The part that the figures are measured on: "test" or "validation".
        protocol: How the figures were measured, in a sentence.
        results: The rows of the table; empty if nothing was measured.
        notes: Further sentences about the figures.
        plots: Title and file of each plot, relative to the card.
        command: The command that trained the model; "" if none is known.
        versions: Version by package.
        base: Architecture and licence of the pre-trained weights that it began from; "" if it
            began from random weights.
        license: Identifier of the model's licence on the hub; None leaves it out.
        code: Lines of Python that load the model.
        load_notes: Sentences about loading.
    """

    title: str
    architecture: str
    classes: Sequence[str]
    class_counts: Sequence[int]
    few: str = "<20"
    prior: str = "train"
    dataset: str = ""
    part: str = "test"
    protocol: str = ""
    results: Sequence[CardResult] = ()
    notes: Sequence[str] = ()
    plots: Sequence[tuple[str, str]] = ()
    command: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    base: str = ""
    license: str | None = None
    code: str = ""
    load_notes: Sequence[str] = ()

    def with_loading(self, code: str, notes: Sequence[str]) -> "CardFacts":
        """Return the facts with the lines that load the model.

        Args:
            code: The lines.
            notes: Sentences about loading.
        """
        return replace(self, code=code, load_notes=notes)


def render_card(repo: str, facts: CardFacts, library: str = "timm") -> ModelCard:
    """Write the card: metadata for the hub, and what a reader has to know.

    Args:
        repo: The repository, such as "user/birds".
        facts: What it reports.
        library: The library that loads the model: "timm" or "onnx".
    """
    name = repo.rpartition("/")[2]
    data = ModelCardData(
        library_name=library,
        license=facts.license,
        pipeline_tag="image-classification",
        tags=["image-classification", "long-tailed-recognition", "ltlearn", library],
        metrics=["accuracy"] if facts.results else None,
        model_name=name,
        eval_results=_eval_results(facts) or None,
    )
    if not data.eval_results:
        data.model_name = None  # it belongs to the results alone
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(name, facts)}")


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    exported = next((row for row in facts.results if row.is_exported), None)
    if exported is None:
        return []
    dataset = one_line(facts.dataset) or "own images"
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=facts.part,
            metric_type="accuracy",
            metric_name=metric,
            metric_value=round(100 * exported.figures[key], 2),
        )
        for key, metric in _METRICS.items()
        if exported.figures.get(key) is not None
    ]


def _body(name: str, facts: CardFacts) -> str:
    least, most = min(facts.class_counts), max(facts.class_counts)
    title, architecture = map(escape_markdown, (one_line(facts.title), facts.architecture))
    parts = [
        f"# {escape_markdown(name)}",
        f"{as_sentence(title)} The network is {architecture}. It classifies images into "
        f"{len(facts.classes):,} classes, and was trained on long-tailed data ({least:,} to "
        f"{most:,} images per class) with [ltlearn]({_PROJECT}).",
        "## How to load it",
        f"```python\n{facts.code}\n```",
        *([markdown_list(list(facts.load_notes))] if facts.load_notes else []),
        "## Intended use and limits",
        markdown_list(_limits(facts)),
        "## Training data",
        counts_paragraph(facts.class_counts, facts.few),
        _counts_table(facts),
    ]
    if facts.results:
        parts += ["## Results", _results_table(facts), *_protocol(facts)]
    for title, path in facts.plots:
        parts += [f"### {escape_markdown(one_line(title))}", f"![{escape_markdown(title)}]({path})"]
    if facts.command:
        parts += ["## Training", f"```\n{one_line(facts.command)}\n```"]
    if facts.versions:
        versions = [f"{package}: {number}" for package, number in facts.versions.items()]
        parts += ["## Versions", markdown_list(versions)]
    return "\n\n".join([*parts, "## Licence", _licence(facts)]) + "\n"


def _limits(facts: CardFacts) -> list[str]:
    rare = sum(n < 20 for n in facts.class_counts)
    lines = [
        "It assigns one of its classes to every image, also to an image of none of them.",
        f"Its probabilities assume that {_ASSUMED[facts.prior]}; correct them where that differs.",
    ]
    if rare:
        lines.append(
            f"{rare:,} of {len(facts.classes):,} classes had fewer than 20 training images: look "
            "at their accuracy before a decision depends on them."
        )
    if not facts.results:
        lines.append("No accuracy is reported here: measure it on your images before you use it.")
    return lines


def _counts_table(facts: CardFacts) -> str:
    """Return the classes with their counts, the most frequent first."""
    pairs = sorted(zip(facts.classes, facts.class_counts, strict=True), key=lambda pair: -pair[1])
    rows = [[str(name), f"{n:,}"] for name, n in pairs]
    if len(rows) > _MAX_CLASSES:
        rows = [*rows[:_END], [f"{len(rows) - 2 * _END:,} more", ""], *rows[-_END:]]
    return markdown_table(["class", "training images"], ["---", "---:"], rows)


def _results_table(facts: CardFacts) -> str:
    rows = []
    for result in facts.results:
        cells = [one_line(result.label)]
        cells += [percent_text(result.figures.get(key)) for key in _COLUMNS]
        rows.append([f"**{cell}**" for cell in cells] if result.is_exported else cells)
    head = ["method", *(f"{name} %" for name in _COLUMNS.values())]
    return markdown_table(head, ["---", *["---:"] * len(_COLUMNS)], rows)


def _protocol(facts: CardFacts) -> list[str]:
    lines = [
        f"Accuracy on the {facts.part} images; the exported classifier is in bold. A group's "
        "accuracy is the mean of its classes' accuracies.",
        *([as_sentence(facts.protocol)] if facts.protocol else []),
        *facts.notes,
    ]
    return [" ".join(escape_markdown(line) for line in lines)]


def _licence(facts: CardFacts) -> str:
    own = f"This model: {escape_markdown(facts.license)}." if facts.license else (
        "The licence of this model is not stated."
    )  # fmt: skip
    if facts.base:
        own += f" It began from pre-trained weights: {escape_markdown(facts.base)}."
    return own
