"""The classifier that stage 2 begins from, and the classifiers that a comparison keeps.

The learner keeps the classifier of stage 1, so that one method does not go on with the result of
another. Stage 1 is the last state that anything but a stage 2 produced: `fit_stage1`, `fit`,
`load`, or a user's own code.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastai.learner import Learner
from torch import Tensor, nn

from ltlearn.data.needs_images import check_arguments
from ltlearn.errors import UserError, check_choice, spell, spell_call
from ltlearn.methods import METHODS, as_registered
from ltlearn.names import STARTS
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.image_methods import warn_without_stage1
from ltlearn.training.plan import (
    PosthocPlan,
    ProbePlan,
    Stage2Plan,
    probe_plan,
    resolve_stage1,
    resolve_stage2,
)
from ltlearn.training.posthoc import run_posthoc
from ltlearn.training.probe import run_probe
from ltlearn.training.records import CorrectionRecord, TrajectoryRecord, as_stage_record
from ltlearn.training.stage1 import run_stage1
from ltlearn.training.stage2 import run_stage2

__all__ = [
    "ComparedClassifiers",
    "KeptClassifier",
    "Stage1State",
    "changed_tensors",
    "copied_tensors",
    "correct_from",
    "fit_from",
    "put_stage1_back",
    "restored_stage1",
    "retrain_from",
    "stage1_of",
    "use_classifier",
]

_log = logging.getLogger("ltlearn")


@dataclass
class Stage1State:
    """What stage 2 begins from. The backbone itself stays in the learner, where it is frozen.

    Args:
        head: A copy of the classifier.
        stages: The records of the stages up to here.
        trajectory: The figures of the last of them; None if there are none.
        fingerprint: Identifies the weights of the whole model.
        result: The same after the last stage 2. Other weights are not those of a stage 2.
        backbone: The tensors of the backbone that a stage 2 has changed, by name.
    """

    head: nn.Module
    stages: list
    trajectory: TrajectoryRecord | None
    fingerprint: str
    result: str
    backbone: dict[str, Tensor] = field(default_factory=dict)

    def keep_backbone(self, learn: Learner, names: Iterable[str]) -> None:
        """Copy tensors of the backbone before a stage 2 changes them for the first time.

        Args:
            learn: The learner.
            names: Names of tensors in the backbone's state dict.
        """
        state = learn.model.backbone.state_dict()
        missing = [name for name in names if name in state and name not in self.backbone]
        self.backbone |= {name: state[name].detach().clone() for name in missing}


@dataclass
class KeptClassifier:
    """A classifier that a comparison has made.

    Args:
        head: The classifier, on the CPU.
        backbone: The tensors of the backbone that the method has changed, by name.
        stages: A record of each stage after stage 1.
        trajectory: Stage 2 epoch by epoch; None if nothing was trained.
    """

    head: nn.Module
    backbone: dict[str, Tensor]
    stages: list
    trajectory: TrajectoryRecord | None


@dataclass
class ComparedClassifiers:
    """The classifiers of comparisons from one stage 1.

    Args:
        stage1: The fingerprint of that stage 1.
        stage1_name: The method of stage 1.
        best: The method with the best accuracy on the validation images.
        runs: The classifiers by method and seed.
    """

    stage1: str
    stage1_name: str
    best: str = ""
    runs: dict[tuple[str, int], KeptClassifier] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the names of the methods, and the best."""
        names = ", ".join(dict.fromkeys(name for name, _ in self.runs))
        return f"ComparedClassifiers: {names or 'none'}; best on validation: {self.best or 'none'}"

    def __getstate__(self) -> dict:
        # An exported learner has its own classifier alone.
        return {**vars(self), "runs": {}}

    def find(self, name: str, seed: int | None) -> KeptClassifier:
        """Return the classifier of a method and a seed.

        Args:
            name: The method.
            seed: The seed. None: the first.

        Raises:
            UserError: If the method was not compared, or not with this seed.
        """
        of_name = {s: made for (n, s), made in self.runs.items() if n == name}
        if of_name and seed is None:
            return of_name[min(of_name)]
        if seed in of_name:
            return of_name[seed]
        if of_name:
            seeds = ", ".join(map(str, sorted(of_name)))
            raise UserError(f"{name} was compared with seed {seeds}, got seed={seed!r}.")
        names = dict.fromkeys(["stage1", *(n for n, _ in self.runs)])
        raise UserError(
            f"{name!r} was not compared; choose from {', '.join(names)}, or compare it first."
        )


def stage1_of(learn: Learner) -> Stage1State:
    """Return what stage 2 begins from: the state that is kept, or the current one.

    Args:
        learn: An `LTLearner`.
    """
    current, kept = weights_fingerprint(learn.model), learn.stage1_state
    if kept is None or current not in (kept.fingerprint, kept.result):
        warn_without_stage1(learn)
        head = copy.deepcopy(learn.model.head)
        kept = Stage1State(head, list(learn.stages), learn.trajectory, current, current)
        learn.stage1_state = kept
    elif current == kept.fingerprint:
        # The weights of stage 1 came back, maybe by the user's own code.
        learn.stages, learn.trajectory = list(kept.stages), kept.trajectory
        kept.result = current
    return kept


def put_stage1_back(learn: Learner) -> None:
    """Put the classifier of stage 1 and its records back.

    Args:
        learn: An `LTLearner`.
    """
    kept = stage1_of(learn)
    if kept.result == kept.fingerprint:
        return
    _put(learn, copy.deepcopy(kept.head), kept.backbone)
    learn.stages, learn.trajectory = list(kept.stages), kept.trajectory
    kept.result = kept.fingerprint


def _put(learn: Learner, head: nn.Module, backbone: Mapping[str, Tensor]) -> None:
    learn.model.head, learn.opt = head, None
    learn.model.backbone.load_state_dict(backbone, strict=False)


def changed_tensors(learn: Learner, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors of the backbone that differ from those before.

    Args:
        learn: An `LTLearner`.
        before: The backbone's state dict before.
    """
    state = learn.model.backbone.state_dict()
    return {k: v.detach().clone() for k, v in state.items() if not v.equal(before[k])}


@contextmanager
def restored_stage1(learn) -> Iterator[Callable[[], None]]:
    """Put the classifier of stage 1 into the learner, and restore the learner at the end.

    The block gets a function that puts stage 1 back, for the start of each method.

    Args:
        learn: An `LTLearner` after stage 1.
    """
    found_head, records = learn.model.head, (learn.trajectory, list(learn.stages))
    kept, compared = stage1_of(learn), learn.compared
    result, state = kept.result, learn.model.backbone.state_dict()
    found = {name: state[name].detach().clone() for name in kept.backbone}
    put_stage1_back(learn)
    # A head of the user's may be of a kind that the model cannot make from a state dict.
    head, weights = copy.deepcopy(learn.model.head), dict(copied_tensors(learn.model))

    def restart() -> None:
        learn.model.head, learn.opt = copy.deepcopy(head), None
        learn.model.load_state_dict(weights)
        learn.trajectory, learn.stages = kept.trajectory, list(kept.stages)
        learn.stage1_state, kept.result = kept, kept.fingerprint

    try:
        yield restart
    finally:
        restart()
        learn.model.head = found_head
        learn.model.backbone.load_state_dict(found, strict=False)
        learn.trajectory, learn.stages = records
        learn.compared, kept.result = compared, result


def copied_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and copies of the tensors of a module's state dict.

    Args:
        module: The module.
    """
    return ((k, v.detach().clone()) for k, v in module.state_dict().items())


@contextmanager
def _begun(learn: Learner, start: str, changes_statistics: bool = False) -> Iterator[None]:
    """Run a stage 2 inside the block, from stage 1 or from the current classifier.

    Args:
        learn: An `LTLearner`.
        start: "stage1" or "current".
        changes_statistics: Whether the batch statistics of the backbone change.

    Raises:
        UserError: If `start` is unknown.
    """
    check_choice("start", start, STARTS)
    kept = stage1_of(learn)
    backbone = learn.model.backbone
    if changes_statistics:
        kept.keep_backbone(learn, [name for name, _ in backbone.named_buffers()])
    state = backbone.state_dict()
    before = (learn.model.head, {name: state[name].detach().clone() for name in kept.backbone})
    records = (learn.stages, learn.trajectory)
    if start == "stage1":
        if kept.result != kept.fingerprint:
            _log.info("stage 2 begins from the classifier of stage 1, not from the last result")
        put_stage1_back(learn)
    # A list of its own: a stage that fails leaves the records as they were.
    learn.stages = list(learn.stages)
    try:
        yield
    except UserError:
        _put(learn, *before)
        learn.stages, learn.trajectory = records
        raise
    finally:
        kept.result = weights_fingerprint(learn.model)


def fit_from(learn: Learner, given: Mapping[str, Any]) -> None:
    """Train stage 1, on images or, with a method that trains the head alone, on features.

    Args:
        learn: An `LTLearner`.
        given: The arguments of `fit_stage1` by name.

    Raises:
        UserError: If an argument is outside its range, or training diverges.
    """
    is_pretrained = bool(getattr(learn, "pretrained", False))
    plan = resolve_stage1(given, learn.dls, is_pretrained, learn.path / learn.model_dir / "stage1")
    if isinstance(plan, ProbePlan):
        run_probe(learn, plan)
    else:
        run_stage1(learn, plan)


def retrain_from(learn: Learner, given: Mapping[str, Any], start: str) -> None:
    """Retrain the classifier, or correct it if the method is a post-hoc one.

    Args:
        learn: An `LTLearner`.
        given: The arguments of `retrain_classifier` by name.
        start: "stage1" begins from the classifier of stage 1, "current" from the last result.

    Raises:
        UserError: If an argument is outside its range, or training diverges.
    """
    with as_registered(given["method"]) as method:
        given = {**given, "method": method}
        # A new classifier is of no use to a method that begins with a trained one.
        needs_probe = (
            given["reset"] is True and method in METHODS and METHODS[method].needs_trained_head
        )
        plan = resolve_stage2({**given, "reset": None} if needs_probe else given, learn.dls)
        changes_statistics = isinstance(plan, Stage2Plan) and plan.bn != "frozen"
        with _begun(learn, start, changes_statistics):
            if needs_probe:
                _run_probe_before(learn, plan)
            if isinstance(plan, Stage2Plan):
                run_stage2(learn, plan)
            else:
                run_posthoc(learn, plan)


def _run_probe_before(learn: Learner, plan: Stage2Plan | PosthocPlan) -> None:
    """Train a linear probe, on the features that the plan reads."""
    _log.info(
        "%s begins with a trained classifier, and %s leaves none: it begins from a linear probe",
        plan.method, spell("reset", True),
    )  # fmt: skip
    view_seed = plan.view_seed if isinstance(plan, Stage2Plan) else plan.seed
    run_probe(learn, probe_plan(learn.dls, plan.seed, max(plan.views, 1), view_seed))


def correct_from(learn: Learner, method: Any, start: str, **values: Any) -> CorrectionRecord:
    """Correct the classifier without training it.

    Args:
        learn: An `LTLearner`.
        method: Name or row of a post-hoc method.
        start: "stage1" begins from the classifier of stage 1, "current" from the last result.
        **values: Further fields of `PosthocPlan`.

    Returns:
        The result of `run_posthoc`.

    Raises:
        UserError: If the method is not a post-hoc one, or the classifier cannot be corrected.
    """
    check_arguments(learn, values)
    with as_registered(method) as name:
        plan = PosthocPlan(method=name, **values)
        with _begun(learn, start):
            return run_posthoc(learn, plan)


def use_classifier(learn: Learner, name: str, seed: int | None = None) -> None:
    """Put the classifier of stage 1, or one of the last comparison, into a learner.

    Args:
        learn: An `LTLearner`.
        name: "stage1", a method that was compared, or "best".
        seed: Seed of the classifier, for a method that was compared with several. None: the first.

    Raises:
        UserError: If there is no such classifier, or it belongs to another stage 1.
    """
    kept, compared = stage1_of(learn), learn.compared
    if name == "stage1":
        put_stage1_back(learn)
        return
    if compared is None:
        call = spell_call("compare_classifiers", methods=[name] if name in METHODS else ["crt"])
        raise UserError(f"no classifiers were compared, so there is no {name!r}; call {call}.")
    if compared.stage1 != kept.fingerprint:
        raise UserError(
            f"the classifier {name!r} was compared on another stage 1, whose features differ; "
            "compare again."
        )
    name = compared.best if name == "best" else name
    if name == compared.stage1_name:
        put_stage1_back(learn)
        return
    found = compared.find(name, seed)
    put_stage1_back(learn)
    kept.keep_backbone(learn, found.backbone)
    _put(learn, copy.deepcopy(found.head).to(learn.dls.device), found.backbone)
    learn.stages = [*kept.stages, *map(as_stage_record, found.stages)]
    learn.trajectory = found.trajectory
    kept.result = weights_fingerprint(learn.model)
