"""Find images that a person should look at."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltlearn.cleaning.duplicates import find_twins
from ltlearn.cleaning.folds import FoldHeads
from ltlearn.cleaning.hashes import hash_images
from ltlearn.cleaning.images import LoadedImages
from ltlearn.cleaning.issues import KINDS, Finding, Issues
from ltlearn.cleaning.labels import UsualConfidence, read_confidence
from ltlearn.cleaning.unusual import MIN_IMAGES, judge_distances
from ltlearn.errors import UserError, check_choice, check_whole, spell
from ltlearn.metrics.shots import shot_groups
from ltlearn.utils.extras import check_packages

if TYPE_CHECKING:
    from ltlearn.training.image_learner import ImageLearner

__all__ = ["check_extra", "check_kinds", "find_issues"]

_BY_HASH = ("unreadable", "leak", "conflict", "duplicate")


def find_issues(
    learn: "ImageLearner", kinds: Sequence[str] | str | None = None, seed: int = 0
) -> Issues:
    """Find likely label errors, near-duplicates and images unlike their class, in all parts.

    Labels and unlike images are judged by the features of the backbone, which are cached. Train
    first, or use a pre-trained backbone. For the labels, linear classifiers are trained on features
    in five folds, so that each image is judged by classifiers that have not seen its label.
    Near-duplicates are found by a perceptual hash of each image.

    Judge the findings yourself: on planted errors, three in five suspicious labels were wrong, see
    `benchmarks/clean.py`. A backbone that was trained for long has learned wrong labels by heart,
    and then fewer of them are found.

    Args:
        learn: An `LTLearner`, after stage 1 or with a pre-trained backbone.
        kinds: The kinds to search, of `ltlearn.cleaning.KINDS`; None searches all.
        seed: Decides the folds and the order of training, in [0, 2**32).

    Raises:
        UserError: If the extra `clean` is not installed, a kind is unknown, or the learner has no
            images.

    Example:
        >>> issues = find_issues(learn, ["label", "leak"])
        >>> issues.show("label")
    """
    check_extra()
    kinds = check_kinds(kinds)
    check_whole("seed", seed, 0)
    search = _Search(learn, seed)
    findings = []
    if set(kinds) & set(_BY_HASH):
        findings += search.by_hash()
    if "label" in kinds or "unusual" in kinds:
        findings += search.by_features("label" in kinds, "unusual" in kinds)
    order = list(KINDS)
    findings = [one for one in findings if one.kind in kinds]
    findings.sort(key=lambda one: (order.index(one.kind), -one.score, one.number))
    return Issues(
        findings,
        tuple(kinds),
        {part: len(dataset) for part, dataset in search.images.datasets.items()},
        [search.classes[c] for c in np.flatnonzero(~search.judged)],
        search.images,
    )


def check_kinds(kinds: Sequence[str] | str | None) -> list[str]:
    """Return the kinds as a list, in the order of `KINDS`.

    Args:
        kinds: One or several; None takes all.

    Raises:
        UserError: If one is unknown, or there is none.
    """
    names = [kinds] if isinstance(kinds, str) else list(KINDS if kinds is None else kinds)
    for name in names:
        check_choice(spell("kinds"), name, KINDS)
    if not names:
        raise UserError(f"{spell('kinds')} must name at least one of {', '.join(KINDS)}.")
    return [kind for kind in KINDS if kind in names]


def check_extra() -> None:
    """Raise a `UserError` if the packages of the extra `clean` cannot be used."""
    check_packages("cleaning data", "clean", "cleanlab", "imagehash")


class _Search:
    """One search of a learner's images."""

    def __init__(self, learn: "ImageLearner", seed: int):
        self.learn, self.seed, self.images = learn, seed, LoadedImages(learn.dls)
        self.classes = self.images.classes
        counts = np.bincount(
            self.images.targets[self.images.span("train")], minlength=len(self.classes)
        )
        self.judged = counts >= MIN_IMAGES
        groups = shot_groups(learn.dls.shot_counts, learn.few)
        self.groups = np.empty(len(self.classes), dtype=object)
        for name, mask in groups.items():
            self.groups[mask.numpy()] = name

    def by_hash(self) -> Iterator[Finding]:
        """Find unreadable images and near-duplicates."""
        images, hashes = self.images, hash_images(self.images)
        for i, reason in sorted(hashes.unreadable.items()):
            yield self._finding(i, "unreadable", 1.0, reason=reason)
        twins = find_twins(hashes)
        parts = images.part_numbers(twins.index), images.part_numbers(twins.twin)
        for k, (i, twin) in enumerate(zip(twins.index, twins.twin, strict=True)):
            other = images.targets[i] != images.targets[twin]
            leaks = parts[0][k] != parts[1][k]
            yield self._finding(
                i,
                "leak" if leaks else "conflict" if other else "duplicate",
                twins.similarity[k],
                suggested=self.classes[images.targets[twin]] if other else "",
                twin=images.name_of(twin),
                twin_number=int(twin),
            )

    def by_features(self, labels: bool, unusual: bool) -> Iterator[Finding]:
        """Find likely label errors, and images unlike their class among the others."""
        features = {part: self.learn.features(part) for part in self.images.parts}
        suspicious = np.zeros(len(self.images), dtype=bool)
        if labels:
            for i, score, suggested in self._label_errors(features):
                suspicious[i] = True
                yield self._finding(i, "label", score, suggested=self.classes[suggested])
        if unusual:
            for part, span in self.images.spans():
                found = judge_distances(features[part], len(self.classes))
                for k in np.flatnonzero(found.found & self.judged[self.images.targets[span]]):
                    # A wrong label makes an image unlike its class, and is the better reason.
                    if not suspicious[span.start + k]:
                        yield self._finding(span.start + k, "unusual", found.score[k])

    def _label_errors(self, features: dict) -> Iterator[tuple[int, float, int]]:
        """Yield the number of an image, the score, and the suggested class."""
        train, num_classes = features["train"], len(self.classes)
        if self.judged.sum() < 2:
            return
        heads = FoldHeads(train, num_classes, self.learn.dls.device, self.seed)
        usual = UsualConfidence(heads.training_probabilities(), train.targets.numpy(), self.judged)
        for part, span in self.images.spans():
            targets, confidence = features[part].targets.numpy(), usual.training
            if part != "train":
                batches = heads.probabilities(features[part])
                confidence = read_confidence(batches, targets, self.judged)
            found = usual.judge(confidence, targets)
            for k in np.flatnonzero(found.suspicious):
                yield span.start + int(k), float(found.score[k]), int(found.suggested[k])

    def _finding(self, i: int, kind: str, score: float, **values) -> Finding:
        i, target = int(i), int(self.images.targets[i])
        return Finding(
            self.images.name_of(i), self.images.part_of(i), self.classes[target],
            self.groups[target], kind, float(score), number=i, **values,
        )  # fmt: skip
