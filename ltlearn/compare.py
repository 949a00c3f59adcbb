"""Which correction is best on this data, and is the difference real?

Every method starts from the same stage 1 and sees the same cached features. Whatever is chosen (an
epoch, a tau) is chosen on the validation images; the test set is read when all is chosen.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import ltlearn
from ltlearn.comparison import Comparison, Outcome
from ltlearn.errors import UserError, check_choice, check_whole, log_once
from ltlearn.methods import METHODS, find_methods, prior_of
from ltlearn.metrics.accuracy import mean_class_accuracy
from ltlearn.metrics.priors import PRIORS, correct_for_prior, prior_report, prior_vector
from ltlearn.metrics.report import shot_report
from ltlearn.training.checkpoint import describe_options
from ltlearn.training.features import weights_fingerprint
from ltlearn.utils.run_folder import Run

__all__ = ["compare", "check_request"]

_log = logging.getLogger("ltlearn")


@dataclass
class _Done:
    """A method that is trained, or corrected, and not yet tested."""

    head: torch.nn.Module
    stages: list[dict]
    trajectory: dict | None
    seconds: float


@log_once()
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
        stage1_seed: Seed of stage 1, for the record.
        arguments: By method: arguments of `retrain_classifier` that are not to be the table's.
        run: Folder that keeps trained classifiers, so that a method added later costs only itself.
        notify: Called with a line of text at each method.

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
            for seed in range(seeds if row.draws else 1):
                ending = "-last" if select == "last" else ""
                name = f"compare/seed{stage1_seed}-{method}-{seed}{ending}"
                own = dict((arguments or {}).get(method, {}))
                key = _key(learn, fingerprint, method, seed, options | own)
                learn.model.load_state_dict(stage1)
                notify(f"{row.label}, seed {seed}")
                found = _kept(run, name, key, learn)
                if found is None:
                    # Of a file that does not fit, the model may have taken up a part.
                    learn.model.load_state_dict(stage1)
                    found = _do(learn, method, seed, options, own)
                    _keep(run, name, key, learn, found)
                if bn == "train":
                    # The backbone's statistics differ by method: it cannot wait.
                    outcomes.append(_test(learn, method, stage1_seed, seed, found, flip, shares))
                else:
                    done.append((method, seed, found))
        for method, seed, found in done:
            learn.model.head = found.head
            outcomes.append(_test(learn, method, stage1_seed, seed, found, flip, shares))
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


def _remark(learn, options: dict) -> str:
    parts = []
    if options["bn"] == "train":
        parts.append("Stage 2 with batch normalisation in training mode.")
    if options["select"] == "last":
        parts.append("Stage 2 keeps its last epoch.")
    elif learn.select_on == "test":
        parts.append("Stage 2 keeps its best epoch on the test set.")
    return " ".join(parts)


def _key(learn, fingerprint: str, method: str, seed: int, options: dict) -> dict[str, Any]:
    """Say what decides the outcome, in words that a JSON file gives back unchanged."""
    split, row = learn.dls.split, METHODS[method]
    return {
        "stage1": fingerprint,
        "images": f"train {split.train}, valid {split.valid}",
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
    stages = [dict(stage) for stage in learn.stages[noted:]]
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


def _test(learn, method, stage1_seed: int, seed: int, found: _Done, flip: bool, shares) -> Outcome:
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
        stage1_seed=stage1_seed,
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
    where = "selected on test" if learn.select_on == "test" else "on validation"
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
