"""Compare corrections of one classifier: which is best on this data, and is the difference real?

Each method starts from the same stage 1 and uses the same cached features. An epoch or a tau is
chosen on the validation images. The test set is read when all choices are made.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import ltlearn
from ltlearn.comparison import Comparison, ComparisonFacts, Outcome, PriorFigures
from ltlearn.errors import UserError, check_choice, check_whole, log_once
from ltlearn.methods import METHODS, find_methods, is_built_in, label_of, prior_of
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.metrics.priors import correct_for_prior, prior_report, prior_vector
from ltlearn.metrics.report import shot_report
from ltlearn.names import PRIORS, SELECTS
from ltlearn.training.checkpoint import describe_options
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.records import Record, TrajectoryRecord, describe_selection
from ltlearn.utils.older_runs import known_fields, with_todays_keys
from ltlearn.utils.progress import brief_progress
from ltlearn.utils.run_folder import Run

__all__ = ["check_request", "compare", "restored_stage1"]

_log = logging.getLogger("ltlearn")


@log_once()
@brief_progress()
def compare(
    learn,
    methods: Sequence[str] | str | None = None,
    seeds: int = 1,
    *,
    priors: Sequence[str] | str = (),
    select: str = "best",
    views: int = 1,
    bn: str = "frozen",
    flip: bool = False,
    stage1_seed: int = 0,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    run: Run | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Retrain or correct the classifier of a finished stage 1 by each method, then test them all.

    The learner is restored at the end.

    Args:
        learn: An `LTLearner` after stage 1, with a test set.
        methods: Names of methods, a list or separated by commas; None takes all.
        seeds: Runs of each method whose outcome depends on the seed.
        priors: Class priors to report the same classifiers under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        views: Augmented views whose features are cached; 0 trains on the images.
        bn: "frozen", or "train" as in the authors' code.
        flip: Whether logits are averaged over mirror images; with `views=0`.
        stage1_seed: Seed of stage 1, for the record.
        arguments: Arguments of `retrain_classifier` that replace those of the table, by method.
        run: Folder that keeps trained classifiers, so that a later call trains new methods only.
        notify: Called with a line of text at each method.

    Raises:
        UserError: If there is no test set, a method or a prior is unknown, or the stage 1 is not
            finished.

    Example:
        >>> print(compare(learn, ["ce", "crt", "samn"], 3))  # doctest: +SKIP
    """
    methods, priors = check_request(methods, seeds, priors, select, learn.stage1_method)
    _warn_if_changed(learn)
    if learn.dls.test is None:
        raise UserError(
            "there is no test set to compare on; give the data a test part (a folder test/)."
        )
    if select == "best":
        select = learn.settle_select()
    study = _Study(
        learn,
        options={"views": views, "bn": bn, "flip": flip, "select": select},
        shares={name: prior_vector(name, learn.dls.shot_counts) for name in priors},
        stage1_seed=stage1_seed,
        arguments=arguments or {},
        run=run,
    )
    outcomes, waiting = [], []
    with restored_stage1(learn) as restart:
        for method in methods:
            row = METHODS[method]
            for seed in range(seeds if row.draws else 1):
                notify(f"{label_of(method, learn.stage1_method)}, seed {seed}")
                trained = study.load_or_train(method, seed, restart)
                if bn == "train":
                    # Each method leaves other batch statistics in the backbone, so it is tested
                    # before the next one.
                    outcomes.append(study.test(method, seed, trained))
                else:
                    waiting.append((method, seed, trained))
        for method, seed, trained in waiting:
            learn.model.head = trained.head
            outcomes.append(study.test(method, seed, trained))
    return Comparison(
        outcomes,
        np.asarray(learn.dls.test.dataset.targets),
        learn.dls.shot_counts.tolist(),
        _facts(learn),
        _remark(learn, bn, select),
    )


@contextmanager
def restored_stage1(learn) -> Iterator[Callable[[], None]]:
    """Restore the learner's weights and records at the end of the block.

    The block gets a function that restores the weights, for the start of each method.

    Args:
        learn: An `LTLearner` after stage 1.
    """
    weights = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    before = (learn.trajectory, list(learn.stages))

    def restart() -> None:
        learn.model.load_state_dict(weights)

    try:
        yield restart
    finally:
        restart()
        learn.opt = None
        learn.trajectory, learn.stages = before


def check_request(
    methods: Sequence[str] | str | None,
    seeds: int,
    priors: Sequence[str] | str,
    select: str,
    stage1: str,
) -> tuple[list[str], list[str]]:
    """Check the arguments of a comparison; return methods and priors as lists.

    Args:
        methods: Names of methods, a list or separated by commas; None takes all.
        seeds: Runs of each method, at least 1.
        priors: Names of class priors, a list or separated by commas.
        select: "best" or "last".
        stage1: The method of stage 1.

    Raises:
        UserError: If a name is unknown or a value outside its range.
    """
    check_whole("seeds", seeds, 1)
    check_choice("select", select, SELECTS)
    priors = priors.split(",") if isinstance(priors, str) else priors
    priors = [name.strip() if isinstance(name, str) else name for name in priors if name]
    for name in priors:
        check_choice("prior", name, PRIORS)
    return find_methods(methods, stage1), priors


def _warn_if_changed(learn) -> None:
    """Warn if a later stage has changed the classifier of stage 1."""
    if learn.stages and learn.stages[-1]["stage"] != "stage 1":
        last = learn.stages[-1]
        _log.warning(
            "the classifier is no longer that of stage 1, from which each method must begin: %s "
            "has changed it; compare right after fit_stage1 instead",
            last.get("method") or last["stage"],
        )


def _facts(learn) -> ComparisonFacts:
    split = learn.dls.split
    factor = split.imbalance_factor
    return ComparisonFacts(
        protocol="paper" if split.valid_from == "test set" else "clean",
        dataset=split.dataset,
        valid_from=split.valid_from,
        split=f"{split.name}, imbalance factor {factor:g}" if factor else split.name,
        fingerprint=split.train,
        few=learn.few,
        classes=learn.dls.vocab,
        stage1=learn.stage1_method,
    )


def _remark(learn, bn: str, select: str) -> str:
    parts = []
    if bn == "train":
        parts.append("Stage 2 with batch normalisation in training mode.")
    if select == "last":
        parts.append("Stage 2 keeps its last epoch.")
    elif learn.select_on == "test":
        parts.append("Stage 2 keeps its best epoch on the test set.")
    return " ".join(parts)


@dataclass(eq=False)
class _KeptClassifier(Record):
    """The record of a classifier that a run keeps.

    Args:
        key: The circumstances that decide the outcome.
        weights: The fingerprint of the weights.
        stages: A record of each stage.
        trajectory: Stage 2 epoch by epoch; None if nothing was trained.
        seconds: Seconds of training.
    """

    key: dict[str, Any]
    weights: str
    stages: list[dict[str, Any]]
    trajectory: TrajectoryRecord | None
    seconds: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "_KeptClassifier":
        trajectory = values["trajectory"]
        if trajectory is not None:
            trajectory = _as_trajectory(trajectory)
        return cls(**{**known_fields(cls, values), "trajectory": trajectory})


def _as_trajectory(values: Mapping[str, Any]) -> TrajectoryRecord:
    return TrajectoryRecord(**known_fields(TrajectoryRecord, values))


@dataclass
class _Trained:
    """A method that is trained or corrected, and not yet tested."""

    head: torch.nn.Module
    stages: list[dict[str, Any]]
    trajectory: TrajectoryRecord | None
    seconds: float
    selected: str = ""


@dataclass
class _Study:
    """The methods of one stage 1: how they are trained, kept and tested."""

    learn: Any
    options: dict[str, Any]
    shares: dict[str, Any]
    stage1_seed: int
    arguments: Mapping[str, Mapping[str, Any]]
    run: Run | None
    fingerprint: str = field(init=False)

    def __post_init__(self):
        self.fingerprint = weights_fingerprint(self.learn.model)

    def load_or_train(self, method: str, seed: int, restart: Callable[[], None]) -> _Trained:
        """Take a classifier that the run keeps, or make it from stage 1."""
        own = dict(self.arguments.get(method, {}))
        ending = "-last" if self.options["select"] == "last" else ""
        name = f"compare/seed{self.stage1_seed}-{method}-{seed}{ending}"
        key = self._key(method, seed, own)
        restart()
        trained = self._load(name, key)
        if trained is None:
            # A file that does not fit may have changed a part of the model.
            restart()
            trained = self._train(method, seed, own)
            self._keep(name, key, trained)
        return trained

    def _key(self, method: str, seed: int, own: dict[str, Any]) -> dict[str, Any]:
        """Return what decides the outcome, in values that a JSON file preserves."""
        split = self.learn.dls.split
        return {
            "stage1": self.fingerprint,
            "images": f"train {split.train}, valid {split.valid}",
            "precision": self.learn.precision,
            "method": method,
            "values": _describe_row(method),
            "library": ltlearn.__version__,
            "seed": seed,
            **self.options,
            **own,
        }

    def _train(self, method: str, seed: int, own: dict[str, Any]) -> _Trained:
        learn, row = self.learn, METHODS[method]
        n_before, trajectory = len(learn.stages), None
        if row.kind == "stage 2":
            # All methods share one draw of augmented views: features are extracted once.
            trajectory = learn.retrain_classifier(
                method=method, seed=seed, view_seed=0, **{**self.options, **own}
            )
            trajectory = _as_trajectory(trajectory)
        elif row.kind == "post hoc":
            learn.correct_classifier(method, views=max(1, self.options["views"]), seed=0)
        stages = [dict(record) for record in learn.stages[n_before:]]
        return self._as_trained(stages, trajectory, sum(stage["seconds"] for stage in stages))

    def _as_trained(
        self, stages: list[dict[str, Any]], trajectory: TrajectoryRecord | None, seconds: float
    ) -> _Trained:
        head = copy.deepcopy(self.learn.model.head)
        return _Trained(head, stages, trajectory, seconds, describe_selection(stages, trajectory))

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return what a method may change: the head, or the whole model."""
        whole = self.options["bn"] == "train"
        state = self.learn.model.state_dict()
        return {k: v for k, v in state.items() if whole or k.startswith("head.")}

    def _weights_fingerprint(self) -> str:
        whole = self.options["bn"] == "train"
        return weights_fingerprint(self.learn.model if whole else self.learn.model.head)

    def _keep(self, name: str, key: dict[str, Any], trained: _Trained) -> None:
        if self.run is None or not trained.stages:
            return
        self.run.save_tensors(f"{name}.safetensors", self._weights(), {"method": key["method"]})
        # A kill may come between the two files, so the record identifies the weights.
        record = _KeptClassifier(
            key, self._weights_fingerprint(), trained.stages, trained.trajectory, trained.seconds
        )
        self.run.write_json(f"{name}.json", record.to_dict())

    def _load(self, name: str, key: dict[str, Any]) -> _Trained | None:
        """Load a classifier that was made before from the same stage 1 in the same way."""
        run, model = self.run, self.learn.model
        if run is None or not (run.path / f"{name}.json").is_file():
            return None
        try:
            record = _KeptClassifier.from_dict(run.read_json(f"{name}.json"))
            state = run.load_tensors(f"{name}.safetensors")
            if with_todays_keys(record.key) != key:
                return None
            backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
            model.load_state_dict({**backbone, **state})
            if record.weights != self._weights_fingerprint():
                raise UserError("the weights are not those of the record")
            return self._as_trained(record.stages, record.trajectory, float(record.seconds))
        except (UserError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as e:
            _log.warning("%s cannot be used (%s): it is made again.", run.path / name, e)
            return None

    def test(self, method: str, seed: int, trained: _Trained) -> Outcome:
        """Test the classifier that the learner has."""
        learn, flip = self.learn, self.options["flip"]
        logits, targets = learn.predict_logits("test", flip)
        valid_logits, valid_targets = learn.predict_logits("valid", flip)
        counts, classes = learn.dls.shot_counts, learn.dls.vocab
        assumed = prior_vector(prior_of(method, learn.stage1_method), counts)
        return Outcome(
            method=method,
            stage1_seed=self.stage1_seed,
            seed=seed,
            report=shot_report(logits, targets, counts, classes=classes, few=learn.few),
            correct=(logits.argmax(1) == targets).numpy(),
            norms=learn.head_norms().tolist(),
            validation=mean_class_accuracy(valid_logits.argmax(1), valid_targets, learn.dls.c),
            selected=trained.selected,
            seconds=trained.seconds,
            stages=trained.stages,
            trajectory=trained.trajectory,
            priors={
                name: _prior_figures(logits, targets, assumed, share)
                for name, share in self.shares.items()
            },
        )


def _describe_row(method: str) -> str:
    """Describe the values, the loss and the callbacks of a method, which decide the outcome."""
    row = METHODS[method]
    arguments = row.arguments()
    arguments["cbs"] = [describe_options(cb) for cb in arguments["cbs"]]
    if not is_built_in(method):
        # `describe_options` gives only the class of a loss or callback from outside ltlearn.
        loss = arguments["loss"]
        arguments["loss"] = loss if loss is None else describe_options(loss)
        arguments["options"] = dict(row.options)
    return f"{sorted(arguments.items())}, then {row.post}"


def _prior_figures(logits, targets, assumed, share) -> PriorFigures:
    plain = prior_report(logits, targets, share)
    corrected = prior_report(correct_for_prior(logits, assumed, share), targets, share)
    return PriorFigures(**vars(plain), corrected=corrected.accuracy)
