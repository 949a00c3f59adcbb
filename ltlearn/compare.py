"""Which correction is best on this data, and is the difference real?

Every method starts from the same stage 1 and sees the same cached features. Whatever is chosen (an
epoch, a tau) is chosen on the validation images; the test set is read when all is chosen.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import ltlearn
from ltlearn.callbacks.checkpoint import describe_options
from ltlearn.errors import UserError, check_choice, check_whole, said_once
from ltlearn.features import weights_fingerprint
from ltlearn.methods import METHODS, find_methods, prior_of
from ltlearn.metrics import ShotReport, mean_class_accuracy, shot_report
from ltlearn.paired import PairedDifference, paired_difference
from ltlearn.priors import PRIORS, correct_for_prior, prior_report, prior_vector
from ltlearn.report import ResultRow, ResultTable
from ltlearn.run import Run

__all__ = ["Comparison", "Outcome", "check_request", "compare", "merge_comparisons"]

_log = logging.getLogger("ltlearn")

_RESAMPLES = 10_000


@dataclass
class Outcome:
    """What one method gave, with one seed, from one stage 1.

    Args:
        method: Its name in the table of methods.
        start: Seed of the stage 1.
        seed: Seed of what came after it.
        report: Its figures on the test set.
        correct: Which test images it got right.
        norms: Norm of each class's weights.
        validation: Class-balanced accuracy on the images that it was chosen on.
        selected: Which weights were tested.
        seconds: Training, extraction of features not included.
        stages: What was trained or corrected, a dictionary each.
        trajectory: Stage 2 epoch by epoch; None where nothing was trained.
        priors: Figures under other class priors, by the prior's name.

    Shape:
        correct is (N,), bool; norms has C numbers.
    """

    method: str
    start: int
    seed: int
    report: ShotReport
    correct: np.ndarray
    norms: list[float]
    validation: float
    selected: str
    seconds: float
    stages: list[dict[str, Any]]
    trajectory: dict[str, Any] | None = None
    priors: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class _Done:
    """A method that is trained, or corrected, and not yet tested."""

    head: torch.nn.Module
    stages: list[dict]
    trajectory: dict | None
    seconds: float


@dataclass
class Comparison:
    """Hold the outcomes of several methods, and say which differences are real.

    Args:
        outcomes: Of every method and seed.
        targets: Classes of the test images.
        class_counts: Training images per class, which make the shot groups.
        about: Facts for the table: protocol, split, fingerprint, few, dataset, classes, and where
            validation images are from.
        note: A remark to print below the table.

    Shape:
        targets is (N,), class_counts (C,).
    """

    outcomes: list[Outcome]
    targets: np.ndarray
    class_counts: list[int]
    about: dict[str, Any]
    note: str = ""
    _differences: dict | None = field(default=None, init=False, repr=False)

    @property
    def methods(self) -> list[str]:
        """List the methods in their order."""
        return list(dict.fromkeys(o.method for o in self.outcomes))

    def of(self, method: str) -> list[Outcome]:
        """List the outcomes of a method."""
        return [o for o in self.outcomes if o.method == method]

    @property
    def stage1(self) -> str | None:
        """Return the method whose classifier is that of stage 1; None if it is not among them."""
        return next((m for m in self.methods if METHODS[m].kind == "stage 1"), None)

    @property
    def best(self) -> str:
        """Return the method with the best class-balanced accuracy on the validation images."""
        means = {m: np.mean([o.validation for o in self.of(m)]) for m in self.methods}
        return max(means, key=means.get)

    def differences(self) -> dict[str, dict[str, PairedDifference]]:
        """Compare each method with stage 1's and the best, image by image; see `difference`."""
        if self._differences is None:
            others = dict.fromkeys(m for m in (self.stage1, self.best) if m is not None)
            self._differences = {
                method: {
                    other: self.difference(method, other) for other in others if other != method
                }
                for method in self.methods
            }
        return self._differences

    def difference(self, method: str, other: str) -> PairedDifference:
        """Compare two methods, image by image.

        The figure is class-balanced accuracy, averaged over seeds; its 95 % interval is that of a
        paired bootstrap over the test images. It says how far another test set of this size could
        move the difference; what other seeds do is in the standard deviation beside it.
        """
        pairs = [self._right(m) for m in (method, other)]
        return paired_difference(*pairs, self.targets, len(self.class_counts), _RESAMPLES)

    def _right(self, method: str) -> np.ndarray:
        """Return which test images were recognised, (S, N).

        One that draws nothing at random stands beside every run of the others.
        """
        starts = self._starts
        runs = max(
            sum(o.start == start for o in self.of(m)) for m in self.methods for start in starts
        )
        rows = []
        for start in starts:
            found = [o.correct for o in self.of(method) if o.start == start]
            rows += [found[min(k, len(found) - 1)] for k in range(runs)]
        return np.stack(rows)

    @property
    def _starts(self) -> list[int]:
        return sorted({o.start for o in self.outcomes})

    def table(self) -> ResultTable:
        """Return the table: figures, their spread over seeds, and the paired differences."""
        differences = self.differences()
        against = list(dict.fromkeys(k for d in differences.values() for k in d))
        rows = []
        for method in self.methods:
            found = self.of(method)
            extra = {"NLL": _mean_sd([o.report.nll for o in found])}
            for other in against:
                label = METHODS[other].label
                d = differences[method].get(other)
                extra[f"to {label}"] = "–" if d is None else _interval(d)
            selected = "; ".join(dict.fromkeys(o.selected for o in found))
            seconds = float(np.mean([o.seconds for o in found]))
            reports = [o.report for o in found]
            rows.append(ResultRow(method, METHODS[method].label, reports, selected, seconds, extra))
        facts = {k: self.about[k] for k in ("protocol", "dataset", "valid_from")}
        seeds = sorted({o.seed for o in self.outcomes})
        best = METHODS[self.best].label
        where = "the test set" if self.about["protocol"] == "paper" else "validation"
        note = (
            f"best on {where}: {best}. Differences in class-balanced accuracy, in points, with "
            "the 95 % interval of a paired bootstrap over the "
            f"{'validation' if self.about['protocol'] == 'untested' else 'test'} images."
        )
        return ResultTable(
            rows,
            split_name=self.about["split"],
            fingerprint=self.about["fingerprint"],
            few_rule=self.about["few"],
            seeds=seeds,
            note=" ".join(part for part in (note, self.note) if part),
            **facts,
        )

    def prior_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return heading and rows of the table of class priors; no rows where none was asked."""
        names = list(dict.fromkeys(name for o in self.outcomes for name in o.priors))
        head = ["method"]
        for name in names:
            head += [name, f"{name}, corrected"]
        rows = []
        for method in self.methods if names else []:
            row = [METHODS[method].label]
            for name in names:
                for key in ("accuracy", "corrected"):
                    row.append(_mean_sd([100 * o.priors[name][key] for o in self.of(method)], 1))
            rows.append(row)
        return head, rows

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, lists and None, as `json.dump` wants them."""
        differences = {
            method: {
                other: {**asdict(d), "excludes_zero": d.excludes_zero} for other, d in found.items()
            }
            for method, found in self.differences().items()
        }
        table = self.table().to_dict()
        for row in table["rows"]:
            found = self.of(row["method"])
            row |= {
                "source": METHODS[row["method"]].source,
                "values_from": METHODS[row["method"]].values_from,
                "validation_balanced": [o.validation for o in found],
                "runs": [{"stage1_seed": o.start, "seed": o.seed} for o in found],
                "differences": differences[row["method"]],
                "norms": [o.norms for o in found],
                "stages": [o.stages for o in found],
                "trajectories": [o.trajectory for o in found],
                "priors": [o.priors for o in found],
            }
        # Under the paper protocol the validation images are the test set, and all is chosen on it.
        chosen_on = "test" if self.about["protocol"] == "paper" else "validation"
        best = {"best_on_validation": self.best, "chosen_on": chosen_on}
        return {**table, **best, "class_counts": self.class_counts}

    def __str__(self) -> str:
        """Return the plain text table."""
        return self.table().to_text()


def _interval(d: PairedDifference) -> str:
    low, high = 100 * d.low, 100 * d.high
    return f"{100 * d.estimate:+.1f} [{low:+.1f}, {high:+.1f}]"


def _mean_sd(values: Sequence[float], digits: int = 3) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


@said_once()
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
    start: int = 0,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    run: Run | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Retrain or correct the classifier of a finished stage 1 by each method, then test them all.

    The learner is left as it was found.

    Args:
        learn: An `LTLearner` after stage 1, with a test set.
        methods: Names of methods, a list or with commas between them; None is all.
        seeds: Runs of every method that draws something at random.
        priors: Class priors to report the same classifiers under: "uniform", "train", "reversed".
        select: Which epoch of stage 2 is kept: "best" on validation, or "last".
        views: Augmented views that features are cached of; 0 trains on the images.
        bn: "frozen", or "train" as the authors' code.
        flip: Average logits over mirror images; with `views=0`.
        start: Seed of the stage 1, for the record.
        arguments: By method: arguments of `retrain_classifier` that are not to be the table's.
        run: Folder that keeps trained classifiers, so that a method added later costs only itself.
        say: Called with a line of text at each method.

    Raises:
        UserError: If there is no test set, a method or a prior is unknown, or the stage 1 is not
            finished.
    """
    methods, priors = check_request(methods, seeds, priors, select, learn.stage1_method)
    if learn.stages and learn.stages[-1]["stage"] != "stage 1":
        _log.warning(
            "the classifier is no more the one of stage 1, from which every method is to begin: %s "
            "has changed it; compare right after fit_stage1 instead",
            learn.stages[-1].get("method") or learn.stages[-1]["stage"],
        )
    shares = {name: prior_vector(name, learn.dls.shot_counts) for name in priors}
    if learn.dls.test is None:
        raise UserError(
            "there is no test set to compare on; give the data a test part (a folder test/)."
        )
    if select == "best":
        select = learn.settle_select()
    stage1 = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    fingerprint = weights_fingerprint(learn.model)
    before = (learn.trajectory, list(learn.stages))
    options = {"views": views, "bn": bn, "flip": flip, "select": select}
    outcomes = []
    try:
        done: list[tuple[str, int, _Done]] = []
        for method in methods:
            row = METHODS[method]
            for seed in range(seeds if row.kind == "stage 2" and _draws(row) else 1):
                name = f"compare/seed{start}-{method}-{seed}{'-last' if select == 'last' else ''}"
                own = dict((arguments or {}).get(method, {}))
                key = _key(learn, fingerprint, method, seed, options | own)
                learn.model.load_state_dict(stage1)
                say(f"{row.label}, seed {seed}")
                found = _kept(run, name, key, learn)
                if found is None:
                    # Of a file that does not fit, the model may have taken up a part.
                    learn.model.load_state_dict(stage1)
                    found = _do(learn, method, seed, options, own)
                    _keep(run, name, key, learn, found)
                if bn == "train":
                    # The backbone's statistics differ by method: it cannot wait.
                    outcomes.append(_test(learn, method, start, seed, found, flip, shares))
                else:
                    done.append((method, seed, found))
        for method, seed, found in done:
            learn.model.head = found.head
            outcomes.append(_test(learn, method, start, seed, found, flip, shares))
    finally:
        learn.model.load_state_dict(stage1)
        learn.opt = None
        learn.trajectory, learn.stages = before
    split = learn.dls.split
    factor = split.imbalance_factor
    about = {
        "protocol": "paper" if split.valid_from == "test set" else "clean",
        "dataset": split.dataset,
        "valid_from": split.valid_from,
        "split": f"{split.name}, imbalance factor {factor:g}" if factor else split.name,
        "fingerprint": split.train,
        "few": learn.few,
        "classes": learn.dls.vocab,
    }
    targets = learn.dls.test.dataset.targets
    counts = learn.dls.shot_counts.tolist()
    return Comparison(outcomes, np.asarray(targets), counts, about, _remark(learn, options))


def check_request(
    methods: Sequence[str] | str | None,
    seeds: int,
    priors: Sequence[str] | str,
    select: str,
    stage1: str,
) -> tuple[list[str], list[str]]:
    """Check what is asked of a comparison; return the methods and the priors as lists.

    Raises:
        UserError: If a name is unknown or a value outside its range.
    """
    check_whole("seeds", seeds, 1)
    check_choice("select", select, ("best", "last"))
    priors = priors.split(",") if isinstance(priors, str) else priors
    priors = [name.strip() if isinstance(name, str) else name for name in priors if name]
    for name in priors:
        check_choice("prior", name, PRIORS)
    return find_methods(methods, stage1), priors


def merge_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Put the comparisons of several stage 1, on the same test images, into one."""
    first = parts[0]
    if any(not np.array_equal(p.targets, first.targets) for p in parts):
        raise UserError("these comparisons are of different test images.")
    order = {m: i for i, m in enumerate(first.methods)}
    outcomes = sorted((o for p in parts for o in p.outcomes), key=lambda o: order[o.method])
    return Comparison(outcomes, first.targets, first.class_counts, first.about, first.note)


def _draws(row) -> bool:
    """Tell whether a method's outcome depends on its seed."""
    return row.values.get("epochs") != 0 or row.reset


def _remark(learn, options: dict) -> str:
    parts = []
    if options["bn"] == "train":
        parts.append("Stage 2 with batch normalisation in training mode.")
    if options["select"] == "last":
        parts.append("Stage 2 keeps its last epoch.")
    elif learn._select_on == "test":
        parts.append("Stage 2 keeps its best epoch on the test set.")
    return " ".join(parts)


def _key(learn, fingerprint: str, method: str, seed: int, options: dict) -> dict[str, Any]:
    """Say what decides the outcome, in words that a JSON file gives back unchanged."""
    split, row = learn.dls.split, METHODS[method]
    return {
        "stage1": fingerprint,
        "pictures": f"train {split.train}, valid {split.valid}",
        "precision": learn.precision,
        "method": method,
        "values": _spelled_out(row),
        "library": ltlearn.__version__,
        "seed": seed,
        **options,
    }


def _spelled_out(row) -> str:
    """Say all that the table has of a method: another loss or callback makes another outcome."""
    arguments = row.arguments()
    arguments["cbs"] = [describe_options(cb) for cb in arguments["cbs"]]
    return f"{sorted(arguments.items())}, then {row.post}"


def _do(learn, method: str, seed: int, options: dict, own: dict) -> _Done:
    row = METHODS[method]
    noted = len(learn.stages)
    trajectory = None
    if row.kind == "stage 2":
        # One draw of augmented views for all: features are extracted once.
        trajectory = learn.retrain_classifier(
            method=method, seed=seed, view_seed=0, **{**options, **own}
        )
    elif row.kind == "post hoc":
        learn.correct_classifier(method, views=max(1, options["views"]), seed=0)
    stages = learn.stages[noted:]
    seconds = sum(stage["seconds"] for stage in stages)
    return _Done(copy.deepcopy(learn.model.head), stages, trajectory, seconds)


def _keep(run: Run | None, name: str, key: dict, learn, found: _Done) -> None:
    if run is None or not found.stages:
        return
    whole = key["bn"] == "train"
    state = learn.model.state_dict()
    state = {k: v for k, v in state.items() if whole or k.startswith("head.")}
    run.save_tensors(f"{name}.safetensors", state, {"method": key["method"]})
    # A kill may come between the two files: the record says which weights it is of.
    record = {
        "weights": _fingerprint(learn, whole),
        "stages": found.stages,
        "trajectory": found.trajectory,
        "seconds": found.seconds,
    }
    run.write_json(f"{name}.json", {"key": key, **record})


def _fingerprint(learn, whole: bool) -> str:
    return weights_fingerprint(learn.model if whole else learn.model.head)


def _kept(run: Run | None, name: str, key: dict, learn) -> _Done | None:
    """Load a classifier that was trained before from the same stage 1 in the same way."""
    if run is None or not (run.path / f"{name}.json").is_file():
        return None
    try:
        record, state = run.read_json(f"{name}.json"), run.load_tensors(f"{name}.safetensors")
        if record["key"] != key:
            return None
        learn.model.load_state_dict({**_backbone_state(learn.model), **state})
        if record["weights"] != _fingerprint(learn, key["bn"] == "train"):
            raise UserError("the weights are not those of the record")
        found = _Done(
            copy.deepcopy(learn.model.head), record["stages"], record["trajectory"],
            float(record["seconds"]),
        )  # fmt: skip
        _selected(found, learn)  # reads all that is read of a record later
    except (UserError, RuntimeError, KeyError, TypeError, ValueError) as e:
        _log.warning("%s cannot be used (%s): it is made again.", run.path / name, e)
        return None
    return found


def _backbone_state(model) -> dict:
    return {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}


def _test(learn, method, start: int, seed: int, found: _Done, flip: bool, shares) -> Outcome:
    logits, targets = learn.predict_logits("test", flip)
    valid_logits, valid_targets = learn.predict_logits("valid", flip)
    counts, classes = learn.dls.shot_counts, learn.dls.vocab
    report = shot_report(logits, targets, counts, classes=classes, few=learn.few)
    priors = {}
    assumed = prior_of(method, learn.stage1_method)
    for name, share in shares.items():
        source = prior_vector(assumed, counts)
        corrected = correct_for_prior(logits, source, share)
        priors[name] = {
            **asdict(prior_report(logits, targets, share)),
            "corrected": prior_report(corrected, targets, share).accuracy,
        }
    return Outcome(
        method=method,
        start=start,
        seed=seed,
        report=report,
        correct=(logits.argmax(1) == targets).numpy(),
        norms=learn.head_norms().tolist(),
        validation=mean_class_accuracy(valid_logits.argmax(1), valid_targets, learn.dls.c),
        selected=_selected(found, learn),
        seconds=found.seconds,
        stages=found.stages,
        trajectory=found.trajectory,
        priors=priors,
    )


def _selected(found: _Done, learn) -> str:
    """Say which weights are tested, and what they were chosen on."""
    where = "selected on test" if learn._select_on == "test" else "on validation"
    parts = []
    t = found.trajectory
    if t is not None:
        last = t["select"] == "last" or t["chosen"] is None
        parts.append("last epoch" if last else f"epoch {t['chosen']} {where}")
    for stage in found.stages:
        if stage["stage"] == "post hoc" and stage["value"] is not None:
            chosen = where if stage["chosen_on"] != "not chosen" else "not chosen"
            parts.append(f"{stage['method']} {stage['value']:.3g} {chosen}")
    return ", ".join(parts) or ("stage 1" if not found.stages else "nothing to choose")
