"""Advise how to train on an inspected dataset."""

import numpy as np

from ltlearn.inspection.report import Advice, Inspection
from ltlearn.inspection.scan import Scan
from ltlearn.inspection.text import TEXT_WIDTH

__all__ = ["advise", "count_carved_of"]

# Own rules. From random weights: as many steps as `cifar10_lt` has. Pre-trained: a quarter of them.
_STEPS = {False: 40_000, True: 10_000}
_EPOCHS = {False: (20, 200), True: (10, 60)}
_BATCH = 64  # as every recipe has
_BALANCED = 2.0  # imbalance factor below which there is nothing to correct
_MANY_CLASSES = 100
_VALID_PCT = 0.2  # of `LTDataLoaders.from_folder`
_LEAST_TO_CHOOSE_ON = 100  # validation images; fewer than a class each are not enough either


def advise(found: Inspection, scan: Scan, source: str | None, shell: str | None) -> Advice:
    """Return advice on how to train."""
    good = np.flatnonzero(scan.good)
    side = float(np.median(np.minimum(scan.width[good], scan.height[good])))
    # Up to a quarter more than a size is brought down to it.
    size = next((s for s in (32, 64, 128) if side <= 1.25 * s), 224)
    arch, pretrained = ("resnet50", True) if size > 64 else ("resnet32_cifar", False)
    train = np.asarray(found.counts["train"])
    carved = 0 if "valid" in found.counts else _carved(train)
    n = int(train.sum()) - carved
    n_valid = sum(found.counts["valid"]) if "valid" in found.counts else carved
    batch = next((b for b in (_BATCH, 32) if n >= 10 * b), 16)
    low, high = _EPOCHS[pretrained]
    epochs = int(np.clip(round(_STEPS[pretrained] * _BATCH / n), low, high))
    method, reason = _choose_method(found, n_valid)
    options = [f"size={size}"] + ([f"bs={batch}"] if batch != _BATCH else [])
    options += ["skip_bad=True"] if found.unreadable else []
    first = f"dls = {source}, {', '.join(options)})"
    if len(first) > TEXT_WIDTH:
        call, _, argument = f"dls = {source}".partition("(")
        first = f"{call}(\n    {argument}, {', '.join(options)}\n)"
    if source is None:
        first = f"# dls: the LTDataLoaders of these images, {', '.join(options)}"
    code = [
        "from ltlearn import LTDataLoaders, lt_learner",
        "",
        first,
        f'learn = lt_learner(dls, "{arch}"{"" if pretrained else ", pretrained=False"})',
        f"learn.fit_stage1({epochs})",
    ]
    code += [f'learn.retrain_classifier(method="{method}")'] if method != "ce" else []
    code += ["print(learn.shot_report())"]
    if shell is not None:
        shell += f" --arch {arch} --size {size} --epochs {epochs} --method {method}"
        shell += f" --batch-size {batch}" if batch != _BATCH else ""
        shell += " --skip-bad" if found.unreadable else ""
    return Advice(size, arch, pretrained, epochs, batch, method, reason, "\n".join(code), shell)


def _carved(counts: np.ndarray) -> int:
    """Count what `carve_validation` takes."""
    share = np.maximum(1, np.rint(counts * _VALID_PCT)).astype(np.int64)
    return int(np.minimum(share, np.maximum(counts - 1, 0)).sum())


def _choose_method(found: Inspection, n_valid: int) -> tuple[str, str]:
    """Choose a method by what README's table of five long-tailed sets has shown."""
    factor, n_classes = found.imbalance_factor, len(found.classes)
    if factor < _BALANCED:
        return "ce", f"with an imbalance factor of {factor:.3g} there is nothing to correct."
    if n_classes >= _MANY_CLASSES:
        return "balanced_softmax", (
            "on the 200 classes of Tiny-ImageNet-LT it was among the best, and chooses nothing on "
            "validation images."
        )
    if n_valid < max(_LEAST_TO_CHOOSE_ON, n_classes):
        return "samn_start", (
            f"{n_valid:,} validation images are too few to choose a correction's strength on, "
            "and it needs none."
        )
    return "logit_adjustment", (
        f"it trains nothing, and chooses its strength on {n_valid:,} validation images."
    )


def count_carved_of(found: Inspection) -> int:
    """Count the validation images that would be carved off."""
    return _carved(np.asarray(found.counts["train"]))
