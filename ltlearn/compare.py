"""Compare corrections of one classifier: which is best on this data, and is the difference real?

Each method starts from the same stage 1 and uses the same cached features. An epoch or a tau is
chosen on the validation images. The test set is read when all choices are made.
"""

import copy
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

import ltlearn
from ltlearn.comparison import Comparison, ComparisonFacts, Outcome, PriorFigures
from ltlearn.errors import UserError, check_choice, check_whole, log_once
from ltlearn.heads.registry import is_head
from ltlearn.methods import METHODS, Candidate, find_methods, is_built_in, label_of, offered
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.metrics.priors import correct_for_prior, prior_report, prior_vector
from ltlearn.metrics.report import shot_report
from ltlearn.models.weights_file import check_sizes
from ltlearn.names import BATCHED, PRIORS, SELECTS
from ltlearn.training.checkpoint import describe_options
from ltlearn.training.features import weights_fingerprint
from ltlearn.training.kept import ClassifierRecord, KeptName
from ltlearn.training.prior import assumed_prior
from ltlearn.training.records import TrajectoryRecord, describe_selection
from ltlearn.training.selection import default_select, tested_part
from ltlearn.training.start import (
    ComparedClassifiers,
    KeptClassifier,
    changed_tensors,
    copied_tensors,
    restored_stage1,
)
from ltlearn.training.together import retrain_together
from ltlearn.utils.older_runs import with_todays_keys
from ltlearn.utils.progress import brief_progress
from ltlearn.utils.run_folder import Run

__all__ = ["check_request", "compare"]

_log = logging.getLogger("ltlearn")


@log_once()
@brief_progress()
def compare(
    learn,
    methods: Sequence[Any] | str | None = None,
    seeds: int = 1,
    *,
    priors: Sequence[str] | str = (),
    select: str = "best",
    views: int = 1,
    bn: str = "frozen",
    flip: bool = False,
    stage1_seed: int = 0,
    first_seed: int = 0,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    run: Run | None = None,
    earlier: Mapping[str, Collection[int]] | None = None,
    notify: Callable[[str], None] = lambda text: None,
    batched: str = "auto",
) -> Comparison:
    """Retrain or correct the classifier of a finished stage 1 by each method, then test them all.

    Without a test set the figures are those of the validation images, and the table reports it. The
    learner is restored at the end; its `use` puts one of the classifiers into it.

    Args:
        learn: An `LTLearner` after stage 1.
        methods: Names of methods, a list or separated by commas; None takes all. A list may also
            hold a `Method`, a pair of a name and a `Method`, and a pair of a name and a function.
            The function gets the learner, and the seed if it has a parameter `seed`. It changes the
            learner's classifier.
        seeds: Runs of each method whose outcome depends on the seed.
        priors: Class priors to report the same classifiers under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        views: Augmented views whose features are cached; 0 trains on the images.
        bn: "frozen", or "train" as in the authors' code.
        flip: Whether logits are averaged over mirror images; with `views=0`.
        stage1_seed: Seed of stage 1, for the record.
        first_seed: The first seed of each method, at least 0. The augmented views have it, too.
        arguments: Arguments of `retrain_classifier` or `correct_classifier` that replace those of
            the table, by method.
        run: Folder that keeps trained classifiers, so that a later call trains new methods only.
        earlier: Seeds by method of an earlier comparison. Those that `run` keeps are tested, too.
        notify: Called with a line of text at each method.
        batched: Whether methods and seeds that train on the same features take their steps
            together: "auto" on CUDA alone, "always", or "never". The classifiers are equal up to
            rounding. An interruption loses the methods that are trained together.

    Raises:
        UserError: If a method or a prior is unknown, or a name of your own method is taken.

    Example:
        >>> print(compare(learn, ["ce", "crt", "samn"], 3))  # doctest: +SKIP
        >>> print(compare(learn, ["ce", ("mine", my_function)]))  # doctest: +SKIP
    """
    with offered(methods, learn.stage1_method) as candidates:
        names = [candidate.name for candidate in candidates]
        check_whole("first_seed", first_seed, 0)
        check_choice("batched", batched, BATCHED)
        _, priors = check_request(names, seeds, priors, select, learn.stage1_method)
        if select == "best":
            select = default_select(learn.dls)
        study = _Study(
            learn,
            options={"views": views, "bn": bn, "flip": flip, "select": select},
            shares={name: prior_vector(name, learn.dls.shot_counts) for name in priors},
            stage1_seed=stage1_seed,
            first_seed=first_seed,
            arguments=arguments or {},
            run=run,
            together=batched == "always" or (batched == "auto" and learn.dls.device.type == "cuda"),
        )
        with restored_stage1(learn) as restart:
            study.begin()
            made = study.make_all(
                candidates, range(first_seed, first_seed + seeds), restart, notify
            )
            made += study.load_earlier(earlier or {}, made, restart)
            # The test set is read here, after all choices.
            outcomes = [study.test_one(one, restart) for one in made]
        part = tested_part(learn.dls)
        comparison = Comparison(
            outcomes,
            np.asarray(getattr(learn.dls, part).dataset.targets),
            learn.dls.shot_counts.tolist(),
            _facts(learn, flip),
            _remark(learn, bn, select),
            {one.method: METHODS[one.method] for one in made},
        )
        study.compared.best = comparison.best
        learn.compared = study.compared
        return comparison


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


def _facts(learn, flip: bool) -> ComparisonFacts:
    split = learn.dls.split
    factor = split.imbalance_factor
    protocol = "paper" if split.valid_from == "test set" else "clean"
    return ComparisonFacts(
        protocol="untested" if tested_part(learn.dls) == "valid" else protocol,
        dataset=split.dataset,
        valid_from=split.valid_from,
        split=f"{split.name}, imbalance factor {factor:g}" if factor else split.name,
        fingerprint=split.train,
        few=learn.few,
        classes=learn.dls.vocab,
        stage1=learn.stage1_method,
        averages_flips=flip,
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


@dataclass
class _Trained:
    """A method that is trained or corrected, and not yet tested."""

    method: str
    seed: int
    classifier: KeptClassifier
    seconds: float
    selected: str = ""


@dataclass
class _Study:
    """The methods of one stage 1: how they are trained, kept and tested."""

    learn: Any
    options: dict[str, Any]
    shares: dict[str, Any]
    stage1_seed: int
    first_seed: int
    arguments: Mapping[str, Mapping[str, Any]]
    run: Run | None
    together: bool = False
    fingerprint: str = field(init=False)
    backbone: dict[str, torch.Tensor] = field(init=False)
    stages: list = field(init=False)
    compared: ComparedClassifiers = field(init=False)

    def begin(self) -> None:
        """Note the stage 1 that the learner has now, from which all methods begin."""
        learn = self.learn
        self.fingerprint = weights_fingerprint(learn.model)
        self.backbone = dict(copied_tensors(learn.model.backbone))
        self.stages = list(learn.stages)
        before = learn.compared
        runs = dict(before.runs) if before and before.stage1 == self.fingerprint else {}
        self.compared = ComparedClassifiers(self.fingerprint, learn.stage1_method, runs=runs)

    def make_all(
        self, candidates: Sequence[Candidate], seeds: range, restart: Callable, notify: Callable
    ) -> list[_Trained]:
        """Take or make the classifier of each method and seed."""
        wanted = [(c, seed) for c in candidates for seed in (seeds if c.draws else seeds[:1])]
        ready = self._train_together(wanted, restart, notify) if self.together else {}
        made = []
        for candidate, seed in wanted:
            if (candidate.name, seed) in ready:
                made.append(ready[candidate.name, seed])
                continue
            notify(self._label(candidate.name, seed))
            restart()
            # A function has no description that would show whether it has changed.
            make = self._load_or_train if candidate.call is None else self._call
            made.append(make(candidate, seed, restart))
        return made

    def _label(self, method: str, seed: int) -> str:
        return f"{label_of(method, self.compared.stage1_name)}, seed {seed}"

    def _train_together(
        self, wanted: Sequence[tuple[Candidate, int]], restart: Callable, notify: Callable
    ) -> dict[tuple[str, int], _Trained]:
        """Take the classifiers that the run keeps, and train the others of stage 2 together."""
        ready, requests = {}, {}
        for method, seed in [(c.name, seed) for c, seed in wanted if c.call is None]:
            if METHODS[method].kind == "stage 2":
                restart()
                if (kept := self._load(method, seed)) is not None:
                    ready[method, seed] = kept
                else:
                    requests[self._label(method, seed)] = method, seed
        if requests:
            notify(f"{len(requests)} trainings, together where possible")
        restart()
        of_label = {label: self._request(*key) for label, key in requests.items()}
        for label, trained in retrain_together(self.learn, of_label).items():
            restart()
            self.learn.model.head = trained.model.head
            stages = [dict(record) for record in trained.stages[len(self.stages) :]]
            seconds = sum(stage["seconds"] for stage in stages)
            one = self._as_trained(*requests[label], stages, trained.trajectory, seconds)
            ready[requests[label]] = one
            self._keep(one)
        return ready

    def _request(self, method: str, seed: int) -> dict[str, Any]:
        """Return the arguments of `retrain_classifier` for a method."""
        # All methods share one draw of augmented views: features are extracted once.
        own = {"method": method, "seed": seed, "view_seed": self.first_seed}
        return {**own, **self.options, **self.arguments.get(method, {})}

    def load_earlier(
        self, earlier: Mapping[str, Collection[int]], made: Sequence[_Trained], restart: Callable
    ) -> list[_Trained]:
        """Take further classifiers of an earlier comparison, where the run still keeps them."""
        done = {(one.method, one.seed) for one in made}
        wanted = [(name, seed) for name, seeds in earlier.items() for seed in sorted(seeds)]
        found = []
        for method, seed in wanted:
            if method not in METHODS or (method, seed) in done:
                continue
            restart()
            if METHODS[method].kind == "stage 1":
                one = self._train(method, seed, {}) if method == self.compared.stage1_name else None
            else:
                one = self._load(method, seed)
            found += [] if one is None else [one]
        return found

    def test_one(self, made: _Trained, restart: Callable) -> Outcome:
        """Put a classifier into the learner and test it."""
        restart()
        self._put(made.classifier)
        self.compared.runs[made.method, made.seed] = made.classifier
        return self._test(made)

    def _put(self, classifier: KeptClassifier) -> None:
        """Put a classifier into the learner, which has stage 1."""
        learn = self.learn
        learn.model.head = copy.deepcopy(classifier.head).to(learn.dls.device)
        learn.model.backbone.load_state_dict(classifier.backbone, strict=False)

    def _load_or_train(
        self, candidate: Candidate, seed: int, restart: Callable[[], None]
    ) -> _Trained:
        """Take a classifier that the run keeps, or make it from stage 1."""
        method = candidate.name
        trained = self._load(method, seed)
        if trained is None:
            # A file that does not fit may have changed a part of the model.
            restart()
            trained = self._train(method, seed, self.arguments.get(method, {}))
            self._keep(trained)
        return trained

    def _call(self, candidate: Candidate, seed: int, restart: Callable[[], None]) -> _Trained:
        """Let a function of the user's change the classifier."""
        learn, began = self.learn, time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            candidate.run(learn, seed)
        if not isinstance(learn.model.head, torch.nn.Module):
            raise UserError(
                f"the function {candidate.name!r} must leave a classifier in learn.model.head, got "
                f"{type(learn.model.head).__name__}."
            )
        stages = [dict(record) for record in learn.stages if record not in self.stages]
        is_trained = any(stage["stage"] != "post hoc" for stage in stages)
        trajectory = learn.trajectory if is_trained else None
        seconds = time.perf_counter() - began
        trained = self._as_trained(candidate.name, seed, stages, trajectory, seconds)
        return replace(trained, selected=trained.selected if stages else "as the function left it")

    def _name(self, method: str, seed: int) -> str:
        return str(KeptName(self.stage1_seed, method, seed, self.options["select"]))

    def _key(self, method: str, seed: int) -> dict[str, Any]:
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
            # Classifiers that earlier versions kept have no such key; their views had the seed 0.
            **({"view_seed": self.first_seed} if self.first_seed else {}),
            **self.options,
            **self.arguments.get(method, {}),
        }

    def _train(self, method: str, seed: int, own: Mapping[str, Any]) -> _Trained:
        learn, row, views = self.learn, METHODS[method], self.options["views"]
        trajectory = None
        if row.kind == "stage 2":
            trajectory = learn.retrain_classifier(**{**self._request(method, seed), **own})
        elif row.kind == "post hoc":
            learn.correct_classifier(method, views=max(1, views), seed=self.first_seed, **own)
        stages = [dict(record) for record in learn.stages[len(self.stages) :]]
        seconds = sum(stage["seconds"] for stage in stages)
        return self._as_trained(method, seed, stages, trajectory, seconds)

    def _as_trained(
        self,
        method: str,
        seed: int,
        stages: list[dict[str, Any]],
        trajectory: TrajectoryRecord | None,
        seconds: float,
    ) -> _Trained:
        # On the CPU: the classifiers of all methods stay until the next comparison.
        head = copy.deepcopy(self.learn.model.head).cpu()
        backbone = changed_tensors(self.learn, self.backbone)
        classifier = KeptClassifier(head, backbone, stages, trajectory)
        selected = describe_selection(stages, trajectory)
        return _Trained(method, seed, classifier, seconds, selected)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return what a method may change: the head, or the whole model."""
        whole = self.options["bn"] == "train"
        state = self.learn.model.state_dict()
        return {k: v for k, v in state.items() if whole or k.startswith("head.")}

    def _weights_fingerprint(self) -> str:
        whole = self.options["bn"] == "train"
        return weights_fingerprint(self.learn.model if whole else self.learn.model.head)

    def _keep(self, trained: _Trained) -> None:
        made, method = trained.classifier, trained.method
        if self.run is None or not made.stages:
            return
        name = self._name(method, trained.seed)
        self.run.save_tensors(f"{name}.safetensors", self._weights(), {"method": method})
        # A kill may come between the two files, so the record identifies the weights.
        record = ClassifierRecord(
            self._key(method, trained.seed), self._weights_fingerprint(), made.stages,
            made.trajectory, trained.seconds, self._prior(made.stages),
        )  # fmt: skip
        self.run.write_json(f"{name}.json", record.to_dict(), sealed=True)

    def _prior(self, stages: Sequence[Mapping]) -> str:
        """Return the class prior that the logits assume after stage 1 and these stages."""
        return assumed_prior([*self.stages, *stages])

    def _load(self, method: str, seed: int) -> _Trained | None:
        """Load a classifier that was made before from the same stage 1 in the same way."""
        run, model, name = self.run, self.learn.model, self._name(method, seed)
        if run is None or not (run.path / f"{name}.json").is_file():
            return None
        try:
            # Early versions wrote no checksum.
            record = ClassifierRecord.from_dict(run.read_json(f"{name}.json", sealed=None))
            if with_todays_keys(record.key) != self._key(method, seed):
                return None
            check_sizes(run.path / f"{name}.safetensors", model)
            state = run.load_tensors(f"{name}.safetensors")
            backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
            model.load_state_dict({**backbone, **state})
            if record.weights != self._weights_fingerprint():
                raise UserError("the weights are not those of the record")
            seconds = float(record.seconds)
            return self._as_trained(method, seed, record.stages, record.trajectory, seconds)
        except (UserError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as e:
            _log.warning("%s cannot be used (%s): it is made again.", run.path / name, e)
            return None

    def _test(self, trained: _Trained) -> Outcome:
        """Test the classifier that the learner has."""
        learn, flip, made = self.learn, self.options["flip"], trained.classifier
        logits, targets = learn.predict_logits(tested_part(learn.dls), flip)
        valid_logits, valid_targets = learn.predict_logits("valid", flip)
        counts, classes = learn.dls.shot_counts, learn.dls.vocab
        assumed = prior_vector(self._prior(made.stages), counts)
        return Outcome(
            method=trained.method,
            stage1_seed=self.stage1_seed,
            seed=trained.seed,
            report=shot_report(logits, targets, counts, classes=classes, few=learn.few),
            correct=(logits.argmax(1) == targets).numpy(),
            norms=learn.head_norms().tolist() if is_head(learn.model.head) else [],
            validation=mean_class_accuracy(valid_logits.argmax(1), valid_targets, learn.dls.c),
            selected=trained.selected,
            seconds=trained.seconds,
            stages=made.stages,
            trajectory=made.trajectory,
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
