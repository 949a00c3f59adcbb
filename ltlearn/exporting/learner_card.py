"""Publish the model of a learner: what its card reports, and its plot."""

import tempfile
from pathlib import Path

from ltlearn.exporting.card import CardFacts, CardResult
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.hub import HubOptions, check_repo, licence_of, publish
from ltlearn.exporting.source import ExportSource, source_of_learner
from ltlearn.methods import METHODS, label_of
from ltlearn.names import PART_LABELS
from ltlearn.plots.classes import plot_class_counts
from ltlearn.training.selection import tested_part
from ltlearn.utils.environment import environment_info

__all__ = ["publish_learner"]


def publish_learner(learn, title: str | None, options: HubOptions) -> Exported:
    """Publish the model of a learner.

    Args:
        learn: An `LTLearner`.
        title: What the model classifies. None: "An image classifier".
        options: Where and how.
    """
    check_repo(options.repo)
    source = source_of_learner(learn)
    facts = _card_facts(learn, source, title)
    with tempfile.TemporaryDirectory(prefix="ltlearn-") as folder:
        file = Path(folder) / "class_counts.png"
        figure = plot_class_counts(learn.dls.shot_counts, learn.dls.vocab, learn.few)
        figure.savefig(file, dpi=150, bbox_inches="tight")
        return publish(source, facts, {"Training images per class": file}, options)


def _card_facts(learn, source: ExportSource, title: str | None) -> CardFacts:
    dls, part = learn.dls, tested_part(learn.dls)
    dataset = dls.split.dataset if dls.split is not None else ""
    results = ()
    # A learner that load_learner returned has no images.
    if getattr(dls, part).n:
        report = learn.shot_report(part).to_dict()
        method = source.method
        label = label_of(method, learn.stage1_method) if method in METHODS else "this model"
        results = (CardResult(label, report, is_exported=True),)
    chosen = ""
    if part == "valid":
        chosen = "the validation images also served the choices, so the figures are optimistic"
    return CardFacts(
        title=title or "An image classifier",
        architecture=str(getattr(learn, "arch", type(learn.model.backbone).__name__)),
        classes=source.classes,
        class_counts=source.class_counts,
        few=learn.few,
        prior=source.prior,
        dataset=dataset or "",
        part=PART_LABELS[part],
        protocol=chosen,
        results=results,
        versions=environment_info()["versions"],
        base=licence_of(source),
    )
