import copy
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ltlearn
import ltlearn.training.features
from ltlearn import UserError
from ltlearn.compare import compare
from ltlearn.comparison import Comparison, merge_comparisons
from ltlearn.methods import METHODS, registered_method
from ltlearn.utils.run_folder import Run
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner

SOME = ["ce", "crt", "tau_norm", "samn", "samn_start_adjusted", "ncm"]


def make():
    held = make_images([15, 15, 15], seed=1)
    test = make_images([20, 20, 20], seed=2)
    learn = make_lt_learner(make_dls(valid=held, test=test))
    learn.fit_stage1(2, 0.05)
    return learn


@pytest.fixture(scope="module")
def trained():
    return make()


@pytest.fixture(scope="module")
def found(trained):
    return compare(trained, SOME, 2, priors="uniform,train,reversed")


def test_every_method_and_seed_has_an_outcome(found):
    runs = [(o.method, o.seed) for o in found.outcomes]
    expected = [("ce", 0), ("crt", 0), ("crt", 1), ("tau_norm", 0), ("samn", 0), ("samn", 1)]
    assert sorted(runs) == sorted([*expected, ("samn_start_adjusted", 0), ("ncm", 0)])
    assert found.methods == SOME
    for o in found.outcomes:
        assert o.correct.shape == (60,) and len(o.norms) == 3
        assert o.report.all == pytest.approx(o.correct.mean())
        assert (o.trajectory is None) == (METHODS[o.method].kind != "stage 2")


def test_outcomes_are_those_of_the_learner_alone(trained, found):
    state = copy.deepcopy(trained.model.state_dict())
    for method in ("crt", "samn_start_adjusted", "tau_norm"):
        learn = make_lt_learner(trained.dls, seed=9)
        learn.model.load_state_dict(state)
        learn.retrain_classifier(
            method=method, view_seed=0, **({"seed": 1} if method == "crt" else {})
        )
        logits, targets = learn.predict_logits("test")
        ours = found.of(method)[-1]
        assert np.array_equal(ours.correct, (logits.argmax(1) == targets).numpy())


def test_ce_is_stage_1_untouched_and_the_learner_is_left_as_found(trained, found):
    logits, targets = trained.predict_logits("test")
    assert np.array_equal(found.of("ce")[0].correct, (logits.argmax(1) == targets).numpy())
    assert trained.stages[-1]["stage"] == "stage 1" and type(trained.model.head) is torch.nn.Linear


def test_features_are_extracted_once(monkeypatch):
    learn = make()
    extracted = []
    extract = ltlearn.training.features.FeatureBank._extract

    def count(self, store, backbone, dl, view, *args):
        extracted.append(len(dl.dataset))
        return extract(self, store, backbone, dl, view, *args)

    monkeypatch.setattr(ltlearn.training.features.FeatureBank, "_extract", count)
    compare(learn, ["ce", "crt", "lws", "ncm", "samn", "tau_norm"], 3)
    assert sorted(extracted) == [45, 56, 60]  # validation, training, test


def test_the_test_set_is_read_after_all_is_chosen(monkeypatch):
    learn = make()
    calls = []
    predict = type(learn).predict_logits
    retrain = type(learn).retrain_classifier

    def spy(self, part="valid", *args, **kwargs):
        calls.append(part)
        return predict(self, part, *args, **kwargs)

    def trained(self, *args, **kwargs):
        calls.append("train")
        return retrain(self, *args, **kwargs)

    monkeypatch.setattr(type(learn), "predict_logits", spy)
    monkeypatch.setattr(type(learn), "retrain_classifier", trained)
    compare(learn, ["ce", "crt", "tau_norm", "samn"])
    first = calls.index("test")
    assert "train" in calls[:first] and "train" not in calls[first:]


def test_differences_are_paired_and_their_sign_is_right(found):
    differences = found.differences()
    assert "ce" not in differences["ce"]
    for method in SOME[1:]:
        d = differences[method]["ce"]
        accuracy = {m: np.mean([o.report.balanced for o in found.of(m)]) for m in (method, "ce")}
        assert d.estimate == pytest.approx(accuracy[method] - accuracy["ce"])
        assert d.low <= d.estimate <= d.high and d.n_images == 60
    assert found.difference("crt", "crt").estimate == 0


def test_best_is_chosen_on_validation(found):
    outcomes = [copy.copy(o) for o in found.outcomes]
    for o in outcomes:
        o.validation = 0.9 if o.method == "crt" else 0.1
    chosen = Comparison(outcomes, found.targets, found.class_counts, found.about)
    assert chosen.best == "crt" and "crt" in chosen.differences()["samn"]
    assert "best on validation: cRT" in chosen.table().to_text()


def test_the_table_describes_the_comparison(found):
    text = found.table().to_text()
    head = text.splitlines()[1]
    for word in ("all", "many", "medium", "few", "balanced", "ECE", "NLL", "to CE"):
        assert word in head
    assert "protocol: clean" in text and "95 % interval of a paired bootstrap" in text
    assert "±" in next(line for line in text.splitlines() if line.startswith("cRT"))
    assert "±" not in next(line for line in text.splitlines() if line.startswith("tau-norm"))
    assert re.search(r"tau [\d.]+, chosen on validation", text) and "tau_norm" not in text
    assert len(repr(found)) < 200 and "best on validation" in repr(found)
    html = found._repr_html_()
    assert all(f">{label}<" in html for label in ("CE", "cRT", "tau-norm"))
    assert "under other class priors" in html
    json.dumps(found.to_dict(), allow_nan=False)


def test_priors(found):
    head, rows = found.prior_rows()
    assert head[:3] == ["method", "uniform", "uniform, corrected"] and len(rows) == len(SOME)
    for o in found.outcomes:
        # Images of every class are as many: under the uniform prior nothing changes.
        assert o.priors["uniform"]["accuracy"] == pytest.approx(o.report.all)
        if METHODS[o.method].prior == "uniform":
            assert o.priors["uniform"]["corrected"] == pytest.approx(o.report.all)
    with pytest.raises(UserError, match="prior.*'sideways'"):
        compare(make(), ["ce"], priors="sideways")
    assert set(compare(make(), "ce", priors="uniform, train").outcomes[0].priors) == {
        "uniform", "train",
    }  # fmt: skip


def test_a_run_keeps_classifiers_and_a_method_added_later_costs_itself(tmp_path, monkeypatch):
    learn, run = make(), Run(tmp_path)
    first = compare(learn, ["crt", "samn", "ncm", "ldam_drw", "lws"], 2, run=run)
    calls = []
    retrain = type(learn).retrain_classifier

    def count(self, *args, method=None, **kwargs):
        calls.append(method)
        return retrain(self, *args, method=method, **kwargs)

    monkeypatch.setattr(type(learn), "retrain_classifier", count)
    again = compare(learn, ["crt", "samn", "ncm", "ldam_drw", "lws", "mislas"], 2, run=run)
    assert calls == ["mislas", "mislas"]
    for o in first.outcomes:
        other = next(p for p in again.of(o.method) if p.seed == o.seed)
        assert np.array_equal(o.correct, other.correct)
        assert o.report.nll == pytest.approx(other.report.nll)
        assert (o.stages, o.trajectory, o.seconds) == (other.stages, other.trajectory, o.seconds)


def test_a_classifier_of_another_stage_1_or_a_damaged_one_is_made_again(tmp_path, caplog):
    learn, run = make(), Run(tmp_path)
    compare(learn, ["crt", "samn"], run=run)
    good = compare(learn, ["crt", "samn"])
    file = tmp_path / "compare/seed0-crt-0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "compare/seed0-samn-0.json").write_text("{")
    with caplog.at_level(logging.WARNING, "ltlearn"):
        again = compare(learn, ["crt", "samn"], run=run)
    assert caplog.text.count("it is made again") == 2
    for a, b in zip(good.outcomes, again.outcomes, strict=True):
        assert np.array_equal(a.correct, b.correct)
    learn.fit_stage1(1, 0.05)
    other = compare(learn, ["crt"], run=run)
    fresh = compare(learn, ["crt"])
    assert other.outcomes[0].report.nll == fresh.outcomes[0].report.nll


def test_a_file_that_does_not_fit_leaves_no_trace(tmp_path, caplog):
    # torch copies the tensors that fit before it refuses the rest.
    names = ["tau_norm", "lws", "crt", "ncm"]
    learn, run = make(), Run(tmp_path)
    good = compare(learn, names, run=run)
    for name in names:
        file = f"compare/seed0-{name}-0.safetensors"
        state = {
            k: v + 1 if v.is_floating_point() else v for k, v in run.load_tensors(file).items()
        }
        run.save_tensors(file, state | {"head.foreign": torch.ones(2)})
    with caplog.at_level(logging.WARNING, "ltlearn"):
        again = compare(learn, names, run=run)
    assert caplog.text.count("it is made again") == len(names)
    for a, b in zip(good.outcomes, again.outcomes, strict=True):
        assert a.report.nll == b.report.nll


def test_weights_that_are_not_those_of_their_record_are_made_again(tmp_path, caplog):
    # As a kill between the two files leaves them, or a copy from elsewhere.
    learn, run = make(), Run(tmp_path)
    good = compare(learn, ["crt"], 2, run=run)
    file = "compare/seed0-crt-{}.safetensors"
    run.save_tensors(file.format(0), run.load_tensors(file.format(1)))
    record = run.read_json("compare/seed0-crt-1.json")
    run.write_json("compare/seed0-crt-1.json", {**record, "stages": "none"})
    with caplog.at_level(logging.WARNING, "ltlearn"):
        again = compare(learn, ["crt"], 2, run=run)
    assert caplog.text.count("it is made again") == 2
    for a, b in zip(good.outcomes, again.outcomes, strict=True):
        assert a.report.nll == b.report.nll


@pytest.mark.parametrize("part", ["loss_options", "callbacks", "reset", "library"])
def test_a_method_that_has_changed_is_made_again(tmp_path, monkeypatch, request, part):
    learn, run = make(), Run(tmp_path)
    compare(learn, ["label_aware_smoothing"], run=run)
    row = METHODS["label_aware_smoothing"]
    if part == "library":
        monkeypatch.setattr(ltlearn, "__version__", "another")
    else:
        other = {"loss_options": "slas_samn", "callbacks": "samn", "reset": "crt"}[part]
        new = getattr(METHODS[other], part)
        changed = registered_method(
            "label_aware_smoothing", replace(row, **{part: new}), replace=True
        )
        changed.__enter__()
        request.addfinalizer(lambda: changed.__exit__(None, None, None))
    seen = []
    retrain = type(learn).retrain_classifier

    def note(self, *args, **kwargs):
        seen.append(kwargs["method"])
        return retrain(self, *args, **kwargs)

    monkeypatch.setattr(type(learn), "retrain_classifier", note)
    compare(learn, ["label_aware_smoothing"], run=run)
    compare(learn, ["label_aware_smoothing"], run=run)
    assert seen == ["label_aware_smoothing"]


def test_a_warning_about_the_data_is_given_once(caplog):
    held, test = make_images([15, 15, 15], seed=1), make_images([20, 0, 20], seed=2)
    learn = make_lt_learner(make_dls(valid=held, test=test))
    with caplog.at_level(logging.WARNING, "ltlearn"):
        found = compare(learn, ["ce", "tau_norm", "ncm"], priors="uniform")
        compare(learn, ["ce"], priors="uniform")
    assert caplog.text.count("no test images of class 1") == 2  # once for each comparison
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_epoch_is_the_last_where_validation_is_too_small_to_choose(caplog):
    learn = make_lt_learner()  # 12 validation images
    with caplog.at_level(logging.WARNING, "ltlearn"):
        found = compare(learn, ["samn", "tau_norm"])
    assert "too few to choose on: stage 2 keeps its last epoch" in caplog.text
    assert found.of("samn")[0].selected == "last epoch"
    assert "not chosen" in found.of("tau_norm")[0].selected


def test_batch_statistics_in_training_mode():
    learn = make()
    before = copy.deepcopy(learn.model.state_dict())
    found = compare(learn, ["ce", "samn"], views=0, bn="train", flip=True)
    text = found.table().to_text()
    assert "batch normalisation in training mode" in text
    # Validation images were carved: nothing was chosen on the test set.
    assert "on the test set" not in text and "best on validation" in text
    after = learn.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert found.of("samn")[0].stages[0]["bn"] == "train"


def test_several_stage_1(trained, found):
    other = compare(trained, SOME, 2, stage1_seed=1)
    both = merge_comparisons([found, other])
    assert both.methods == SOME and len(both.outcomes) == 2 * len(found.outcomes)
    estimate = both.difference("crt", "ce").estimate
    assert estimate == pytest.approx(found.difference("crt", "ce").estimate)
    smaller = Comparison(other.outcomes, other.targets[:-1], other.class_counts, other.about)
    with pytest.raises(UserError, match="different test images"):
        merge_comparisons([found, smaller])


def test_mistakes():
    learn = make_lt_learner()
    with pytest.raises(UserError, match="'sam'"):
        compare(learn, "sam")
    with pytest.raises(UserError, match="seeds.*0"):
        learn.compare_classifiers("ce", 0)
    with pytest.raises(UserError, match="select.*best, last.*'middle'"):
        compare(learn, "ce", select="middle")
    without = make_lt_learner(make_dls(test=None))
    with pytest.raises(UserError, match="no test set"):
        compare(without, "ce")


def test_no_file_is_written_without_a_run(found, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make().compare_classifiers(["ce", "samn_start"])
    assert list(Path().iterdir()) == []


def test_a_classifier_that_a_later_stage_changed_gives_a_warning(caplog):
    """Its row was once called CE, stage 1, although another stage had changed it."""
    learn = make()
    with caplog.at_level(logging.WARNING, "ltlearn"):
        compare(learn, ["ce", "samn_start"])
        assert "no longer that of stage 1" not in caplog.text
        learn.retrain_classifier(method="crt")
        compare(learn, ["ce", "samn_start"])
    assert "no longer that of stage 1" in caplog.text and "crt has changed it" in caplog.text
