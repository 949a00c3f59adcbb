"""Fill in the values that a recipe leaves open, and refuse values that contradict each other."""

from ltlearn.data.benchmarks.registry import is_listed
from ltlearn.defaults import SMALL_SIDE
from ltlearn.errors import UserError, spell
from ltlearn.experiments.sections import (
    READING,
    DataSection,
    ModelSection,
    Stage1Section,
    Stage2Section,
)
from ltlearn.methods import METHODS
from ltlearn.names import FOR_BACKBONE
from ltlearn.utils.statistics import check_statistics

__all__ = ["settle_data", "settle_model", "settle_stage1", "settle_stage2"]

# How a balanced set is cut, by key, with the defaults.
_CUT = {"imbalance_factor": 100, "profile": "exponential", "split": "first_n"}
# Keys that reduce a set to a part of its images.
_PARTS = ("n_max", "test_per_class", "max_classes")


def settle_data(data: DataSection, paper: bool) -> None:
    """Fill in how a set is cut.

    Args:
        data: The section; it is changed.
        paper: Whether the protocol is "paper".

    Raises:
        UserError: If a key does not apply to the dataset or the protocol.
    """
    _settle_statistics(data)
    _check_flips(data, paper)
    if data.dataset == "own":
        if data.source is None:
            raise UserError(
                "data.dataset = 'own' needs data.source, the folder of the images; give "
                f"{spell('data.source', 'FOLDER')}."
            )
        for key in (*_CUT, *_PARTS):
            _refuse(data, key, "own data, which is used unchanged")
        return
    given = [key for key in ("source", *READING, "bits") if getattr(data, key) is not None]
    if given:
        raise UserError(
            f"data.{given[0]} applies to data.dataset = 'own' only, but data.dataset is "
            f"{data.dataset!r}; give the folder as {spell('data_path')}, or "
            f"{spell('data.dataset', 'own')}."
        )
    if is_listed(data.dataset):
        for key in _CUT:
            _refuse(data, key, f"{data.dataset}, which is long-tailed as published")
        return
    _refuse(data, "max_classes", f"{data.dataset}, which is not read from published lists")
    if data.size is None or data.size <= SMALL_SIDE:
        _refuse(data, "transform", f"{data.dataset}, whose images are held in memory")
    for key, value in _CUT.items():
        if getattr(data, key) is None:
            setattr(data, key, value)


def _settle_statistics(data: DataSection) -> None:
    if data.mean is None and data.std is None:
        return
    if data.mean is None or data.std is None:
        lost = "data.mean" if data.mean is None else "data.std"
        raise UserError(f"mean and std belong together; give {spell(lost)} as well.")
    check_statistics(data.mean, data.std)


def _check_flips(data: DataSection, paper: bool) -> None:
    if data.flip_average and not paper:
        raise UserError(
            "data.flip_average applies to the paper protocol only; leave it out, or give "
            f"{spell('protocol', 'paper')}."
        )


def _refuse(data: DataSection, key: str, what: str) -> None:
    if getattr(data, key) is not None:
        raise UserError(f"data.{key} has no meaning for {what}; leave it out.")


def settle_model(model: ModelSection) -> None:
    """Check that a classifier is kept from a file only.

    Args:
        model: The section.

    Raises:
        UserError: If the classifier is to be kept, and there is no file; or if a key has no meaning
            without a file or a kept classifier.
    """
    if model.keep_head and not isinstance(model.pretrained, str):
        raise UserError(
            "model.keep_head keeps the classifier of a file, but model.pretrained is "
            f"{model.pretrained!r}; give the path of the file."
        )
    if model.classes is not None and not model.keep_head:
        raise UserError(
            "model.classes names the outputs of a kept classifier, but model.keep_head is False; "
            "leave it out."
        )
    if model.weights_key is not None and not isinstance(model.pretrained, str):
        raise UserError(
            "model.weights_key names weights in a file, but model.pretrained is "
            f"{model.pretrained!r}; leave it out."
        )


def settle_stage1(stage1: Stage1Section, paper: bool) -> None:
    """Fill in the options of the method, the schedule and the choice of the epoch.

    Args:
        stage1: The section; it is changed.
        paper: Whether the protocol is "paper".

    Raises:
        UserError: If values contradict each other.
    """
    for key, default in METHODS[stage1.method].options.items():
        if key not in stage1.options():
            stage1.set_option(key, default)
    if METHODS[stage1.method].trains == "head":
        _check_probe(stage1, paper)
    _settle_schedule(stage1)
    if stage1.sharpness_rho is not None and stage1.accumulate > 1:
        raise UserError("stage1.sharpness_rho excludes stage1.accumulate; leave one out.")
    stage1.select = stage1.select or ("best" if paper else "last")


def _check_probe(stage1: Stage1Section, paper: bool) -> None:
    """Refuse values that contradict a stage 1 that trains the classifier alone on features."""
    name = f"stage1.method = {stage1.method!r}"
    if paper:
        raise UserError(
            f"{name} trains on cached features, but the paper protocol trains on images, as "
            f"published code does; give {spell('protocol', 'clean')}."
        )
    if stage1.trains != "all":
        raise UserError(
            f"{name} leaves the backbone as it is, but stage1.trains is {stage1.trains!r}; leave "
            "one out."
        )
    if not stage1.epochs:
        raise UserError(
            f"{name} begins with a classifier without any training, so stage1.epochs must be at "
            "least 1, got 0."
        )
    fields = Stage1Section.model_fields
    for key in (*FOR_BACKBONE, "head_start"):
        if key in fields and getattr(stage1, key) != fields[key].default:
            raise UserError(f"stage1.{key} has no meaning for {name}; leave it out.")


def _settle_schedule(stage1: Stage1Section) -> None:
    if stage1.schedule == "multistep":
        if not stage1.milestones:
            raise UserError(
                "stage1.schedule = 'multistep' needs the epochs after which the learning rate "
                f"falls; give {spell('stage1.milestones', [160, 180])}."
            )
        if sorted(set(stage1.milestones)) != stage1.milestones:
            raise UserError(f"stage1.milestones must ascend, got {stage1.milestones}.")
        stage1.decay = 0.1 if stage1.decay is None else stage1.decay
        return
    for key in ("milestones", "decay"):
        if getattr(stage1, key) is not None:
            raise UserError(
                f"stage1.{key} applies to stage1.schedule = 'multistep' only, but stage1.schedule "
                f"is {stage1.schedule!r}; leave it out."
            )
    if stage1.schedule == "lagged_cosine" and not stage1.warmup_epochs:
        raise UserError(
            "stage1.schedule = 'lagged_cosine' needs warm-up; give "
            f"{spell('stage1.warmup_epochs', 5)}."
        )


def settle_stage2(stage2: Stage2Section, paper: bool) -> None:
    """Fill in the choice of the epoch, batch normalisation and views.

    Args:
        stage2: The section; it is changed.
        paper: Whether the protocol is "paper".

    Raises:
        UserError: If features are to be cached where that is impossible.
    """
    stage2.select = stage2.select or "best"
    stage2.bn = stage2.bn or ("train" if paper else "frozen")
    if stage2.views is None:
        stage2.views = 0 if paper or stage2.bn != "frozen" else 1
    if stage2.views and (paper or stage2.bn != "frozen"):
        why = (
            "the paper protocol trains on images, as published code does"
            if paper
            else f"stage2.bn is {stage2.bn!r}"
        )
        raise UserError(
            f"stage2.views = {stage2.views} caches features, which is impossible because {why}; "
            f"give {spell('stage2.views', 0)}."
        )
