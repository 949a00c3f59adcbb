"""Advise how to train on an inspected dataset."""

from dataclasses import replace

from ltlearn.data.datasets import look_at
from ltlearn.data.images import ImageSet
from ltlearn.data.splits import carve_validation
from ltlearn.defaults import BATCH_SIZE, SMALL_SIDE, Defaults, choose_defaults
from ltlearn.inspection.result import Advice, Inspection
from ltlearn.inspection.text import TEXT_WIDTH
from ltlearn.methods import DEFAULT_STAGE1, METHODS
from ltlearn.names import MIN_VALID_IMAGES, PROBE

__all__ = ["advise"]

_MIN_STEPS = 10  # per epoch; smaller sets get smaller batches
_SMALL_BATCHES = (32, 16)
_BALANCED = 2.0  # imbalance factor below which no method corrects the classifier
_VALID_PCT = 0.2  # default of `LTDataLoaders.from_folder`
_LONG = 2.0  # hours of training on a CPU from which a linear probe comes first


def advise(inspection: Inspection, train: ImageSet, source: str | None) -> Advice:
    """Return advice on how to train.

    Args:
        inspection: The inspection.
        train: The training images.
        source: The call of `LTDataLoaders` that reads the images, without its closing bracket; None
            if there is none.
    """
    defaults = choose_defaults(_side_of(train))
    n_train, n_valid = len(train), sum(inspection.counts.get("valid", ()))
    if "valid" not in inspection.counts:
        n_train, n_valid = map(len, carve_validation(train.targets, _VALID_PCT))
    batches = (BATCH_SIZE, *_SMALL_BATCHES)
    batch = next((b for b in batches if n_train >= _MIN_STEPS * b), batches[-1])
    method, reason = _choose_method(inspection, n_valid)
    skip_bad = bool(inspection.unreadable)
    stage1, why = DEFAULT_STAGE1, ""
    cores = _cores_without_gpu()
    hours = defaults.training_hours(n_train, cores) if cores else 0.0
    if hours >= _LONG:
        stage1 = PROBE
        why = (
            f"training {defaults.arch} would take about {_duration(hours)} on the {cores} "
            f"{'core' if cores == 1 else 'cores'} of this machine, which has no GPU."
        )
        # Only large networks have pre-trained weights, and small images are enlarged for them.
        defaults = replace(
            choose_defaults(None, pretrained=True), size=max(defaults.size, SMALL_SIDE),
            epochs=METHODS[PROBE].values["epochs"],
        )  # fmt: skip
    code = _write_code(defaults, batch, stage1, method, skip_bad, source)
    return Advice(
        size=defaults.size,
        arch=defaults.arch,
        pretrained=defaults.pretrained,
        epochs=defaults.epochs,
        batch_size=batch,
        method=method,
        reason=reason,
        skip_bad=skip_bad,
        code=code,
        stage1=stage1,
        stage1_reason=why,
    )


def _cores_without_gpu() -> int:
    """Return the number of cores that torch uses; 0 if this machine has a GPU."""
    import torch  # not before the images have been read

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 0
    return torch.get_num_threads()


def _duration(hours: float) -> str:
    return f"{hours:.0f} hours" if hours < 36 else f"{hours / 24:.0f} days"


def _side_of(train: ImageSet) -> int | None:
    """Return the side of the images if all are small squares of one size."""
    if train.images is None:
        return look_at(train).side
    height, width = train.images.shape[1:3]
    return width if width == height and width <= SMALL_SIDE else None


def _choose_method(inspection: Inspection, n_valid: int) -> tuple[str, str]:
    """Choose a method by the measurements on the page of results; return its reason."""
    factor, n_classes = inspection.imbalance_factor, len(inspection.classes)
    if factor < _BALANCED:
        return DEFAULT_STAGE1, f"an imbalance factor of {factor:.3g} needs no correction."
    if n_valid < max(MIN_VALID_IMAGES, n_classes):
        return "samn_from_stage1", (
            f"it has no strength to choose, for which {n_valid:,} validation images are too few."
        )
    return "logit_adjustment", (
        f"it trains nothing, and chooses its strength on {n_valid:,} validation images."
    )


def _write_code(
    defaults: Defaults, batch: int, stage1: str, method: str, skip_bad: bool, source: str | None
) -> str:
    """Return the Python code that trains as advised."""
    options = [f"size={defaults.size}"] + ([f"bs={batch}"] if batch != BATCH_SIZE else [])
    options += ["skip_bad=True"] if skip_bad else []
    first = f"dls = {source}, {', '.join(options)})"
    if source is None:
        first = f"# dls: the LTDataLoaders of these images, {', '.join(options)}"
    elif len(first) > TEXT_WIDTH:
        call, _, argument = f"dls = {source}".partition("(")
        first = f"{call}(\n    {argument}, {', '.join(options)}\n)"
    weights = "" if defaults.pretrained else ", pretrained=False"
    code = [
        "from ltlearn import LTDataLoaders, lt_learner",
        "",
        first,
        f'learn = lt_learner(dls, "{defaults.arch}"{weights})',
        f'learn.fit_stage1(method="{stage1}")'
        if stage1 != DEFAULT_STAGE1
        else f"learn.fit_stage1({defaults.epochs})",
    ]
    code += [f'learn.retrain_classifier(method="{method}")'] if method != DEFAULT_STAGE1 else []
    code += ["print(learn.shot_report())"]
    return "\n".join(code)
