import copy
import json
import logging
import re
import sys
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
from ltlearn.metrics.report import shot_report
from ltlearn.utils.run_folder import Run
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner

SOME = ["ce", "crt", "tau_norm", "samn", "samn_smoothed_adjusted", "ncm"]


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
    assert sorted(runs) == sorted(
        [*expected, *(("samn_smoothed_adjusted", seed) for seed in (0, 1)), ("ncm", 0)]
    )
    assert found.methods == SOME
    for o in found.outcomes:
        assert o.correct.shape == (60,) and len(o.norms) == 3
        assert o.report.all == pytest.approx(o.correct.mean())
        assert (o.trajectory is None) == (METHODS[o.method].kind != "stage 2")


def test_outcomes_are_those_of_the_learner_alone(trained, found):
    state = copy.deepcopy(trained.model.state_dict())
    for method in ("crt", "samn_smoothed_adjusted", "tau_norm"):
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
        assert d.n_seeds == len(found.of(method))
    assert found.difference("crt", "crt").estimate == 0
    assert found.difference("tau_norm", "ncm").n_seeds == 1


def test_each_group_has_a_difference(found):
    for group in ("all", "few"):
        accuracy = {
            m: np.mean([getattr(o.report, group) for o in found.of(m)]) for m in ("crt", "ce")
        }
        d = found.difference("crt", "ce", group)
        assert d.estimate == pytest.approx(accuracy["crt"] - accuracy["ce"])
        assert d.low < d.estimate < d.high and d.balanced is (group != "all")
    assert found.difference("crt", "ce", "many") is None
    kept = next(row for row in found.to_dict()["rows"] if row["method"] == "crt")
    groups = kept["differences"]["ce"]["groups"]
    assert groups["many"] is None and groups["all"]["n_images"] == 60
    head, rows = found.difference_rows()
    assert head == ["to CE", "all", "many", "medium", "few", "balanced"] and len(rows) == 5
    assert all(row[2] == "–" and re.match(r"[+-]\d+\.\d \[.*, .*\]$", row[1]) for row in rows)
    with pytest.raises(UserError, match=r"group.*'rare'"):
        found.difference("crt", "ce", "rare")
    with pytest.raises(UserError, match="'lws'"):
        found.difference("lws", "ce")


def comparison_of(found, runs, targets):
    """A comparison of made-up outcomes: `runs` maps (method, stage 1, seed) to what is correct."""
    counts, outcomes = [500, 50, 5], []
    for (method, start, seed), correct in runs.items():
        pred = np.where(correct, targets, (targets + 1) % 3)
        report = shot_report(9 * np.eye(3)[pred], targets, counts)
        changes = {"correct": correct, "report": report}
        outcome = replace(found.of("ce")[0], method=method, stage1_seed=start, seed=seed, **changes)
        outcomes.append(outcome)
    return Comparison(outcomes, targets, counts, found.about)


def test_few_images_have_no_interval_and_a_warning(found):
    targets = np.repeat([0, 1, 2], [60, 30, 2])
    rng = np.random.default_rng(0)
    runs = {(m, 0, 0): rng.random(92) < p for m, p in (("ce", 0.5), ("crt", 0.7))}
    few = comparison_of(found, runs, targets)
    d = few.difference("crt", "ce")
    assert (d.low, d.high, d.excludes_zero) == (None, None, False) and "30" in d.reason
    text = str(few)
    assert re.search(r"^cRT .*[+-]\d+\.\d \[–\]", text, re.MULTILINE)
    assert f"without an interval ([–]): {d.reason}" in text
    for shown in (text, few.table().to_markdown()):
        assert "test images: many 60 in 1 class, medium 30 in 1 class, few 2 in 1 class" in shown
        assert "few rests on 2 images; one image can change its accuracy by 50.0 points" in shown
        assert "medium rests" not in shown
    record = json.loads(json.dumps(few.to_dict(), allow_nan=False))
    assert record["tested"]["few"] == {"classes": 1, "images": 2} and len(record["warnings"]) == 1
    assert record["rows"][1]["differences"]["ce"]["low"] is None
    assert few.difference("crt", "ce", "all").low is not None
    assert few.difference("crt", "ce", "many").low is not None
    runs = {(m, 0, 0): rng.random(180) < p for m, p in (("ce", 0.5), ("crt", 0.7))}
    assert "but not other seeds" in str(comparison_of(found, runs, np.arange(180) % 3))


def test_a_prior_that_rests_on_few_images_names_their_number(found):
    for n, heading in ((12.4, "reversed (like 12 images)"), (31, "reversed"), (None, "reversed")):
        outcomes = [copy.copy(o) for o in found.outcomes]
        for o in outcomes:
            o.priors = {"reversed": replace(o.priors["reversed"], n_effective=n)}
        comparison = Comparison(outcomes, found.targets, found.class_counts, found.about)
        assert comparison.prior_rows()[0] == ["method", heading, "reversed, corrected"]


def test_seeds_of_stage_1_are_in_the_interval_and_in_the_text(found):
    targets = np.arange(300) % 3
    easy = np.random.default_rng(0).random(300)
    runs = {("ce", start, 0): easy < 0.5 for start in range(3)}
    for start, level in enumerate((0.5, 0.6, 0.7)):
        runs |= {("crt", start, seed): easy < level + 0.01 * seed for seed in range(2)}
    several = comparison_of(found, runs, targets)
    d = several.difference("crt", "ce")
    assert d.n_seeds == 3 and d.low < 0 < d.high  # 0, 10 and 20 points
    means = {m: np.mean([o.report.balanced for o in several.of(m)]) for m in ("crt", "ce")}
    assert d.estimate == pytest.approx(means["crt"] - means["ce"])
    one = comparison_of(found, {k: v for k, v in runs.items() if k[1] == 1}, targets)
    assert one.difference("crt", "ce").excludes_zero
    text = str(several)
    assert "seeds of stage 1: 0, 1, 2\n" in text and "seeds of later stages: 0, 1\n" in text
    assert "other seeds of stage 1 (Student's t, 3 seeds)" in text
    assert "mean ± standard deviation over runs" in text and "runs: CE 3; cRT 6" in text
    one_later = comparison_of(found, {k: v for k, v in runs.items() if k[2] == 0}, targets)
    assert "deviation over seeds" in str(one_later)
    assert "seeds of stage 1: 0, 1, 2\nseed of later stages: 0\n" in str(one_later)


def test_unequal_numbers_of_seeds(found):
    """Two seeds and five once had the interval of one training, and a caption that named five."""
    targets = np.arange(300) % 3
    easy = np.random.default_rng(0).random(300)
    levels = {"crt": (0.5, 0.6, 0.7, 0.5, 0.6), "samn": (0.5, 0.45), "ncm": (0.3,)}
    runs = {(m, 0, k): easy < p for m, row in levels.items() for k, p in enumerate(row)}
    unequal = comparison_of(found, runs, targets)
    d = unequal.difference("crt", "samn")
    means = {m: np.mean([o.report.balanced for o in unequal.of(m)]) for m in levels}
    assert d.estimate == pytest.approx(means["crt"] - means["samn"]) and d.n_seeds == 2
    # 0 and 15 points: t of one degree of freedom times 7.5 points.
    assert d.estimate - d.low > 0.9 and unequal.difference("crt", "ncm").n_seeds == 5
    assert "Student's t, 2 to 5 seeds)" in str(unequal)
    del runs["samn", 0, 1]
    one = comparison_of(found, runs, targets)
    assert "Student's t, 5 seeds, but a single one of CE + SAMN)" in str(one)


def test_runs_that_cannot_be_paired_are_averaged(found):
    targets = np.arange(90) % 3
    right = np.random.default_rng(0).random((5, 90)) < 0.6
    names = [("ce", 0, 0), ("ce", 0, 1), ("crt", 0, 2), ("crt", 0, 3), ("crt", 0, 4)]
    d = comparison_of(found, dict(zip(names, right, strict=True)), targets).difference("crt", "ce")
    assert d.n_seeds == 1 and d.estimate == pytest.approx(right[2:].mean() - right[:2].mean())
    apart = [("ce", 0, 0), ("crt", 1, 0)]
    other = comparison_of(found, dict(zip(apart, right[:2], strict=True)), targets)
    assert other.difference("crt", "ce").estimate == pytest.approx(
        right[1].mean() - right[0].mean()
    )


def test_rows_are_sorted_by_balanced_accuracy_after_stage_1(found):
    lines = found.table().rows
    assert lines[0].method == "ce" and sorted(row.method for row in lines) == sorted(SOME)
    balanced = [np.mean([r.balanced for r in row.reports]) for row in lines[1:]]
    assert balanced == sorted(balanced, reverse=True)
    assert [row[0] for row in found.prior_rows()[1]] == [row.label for row in lines]
    assert [row["method"] for row in found.to_dict()["rows"]] == SOME  # as asked for


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
    assert "protocol: clean" in text and "95 % interval that covers other test images and" in text
    assert "other seeds after this stage 1 (Student's t, 2 seeds)" in text
    assert "test images: medium 20 in 1 class, few 40 in 2 classes" in text
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


def test_stages_1_with_validation_images_of_their_own_are_merged(found):
    """Rows of a table are in any order, so the carved images of two seeds differ in theirs."""
    rng = np.random.default_rng(0)
    targets = np.arange(90) % 3
    parts = []
    for seed in range(2):
        order = rng.permutation(targets)
        right = {(m, seed, seed): order == k for k, m in enumerate(("ce", "crt"))}
        part = comparison_of(found, right, order)
        part.about = replace(part.about, protocol="untested")
        parts.append(part)
    both = merge_comparisons(parts)
    assert both.targets.tolist() == sorted(targets)
    for outcome in both.outcomes:
        assert (outcome.correct == (both.targets == ["ce", "crt"].index(outcome.method))).all()
    assert both.difference("crt", "ce").estimate == 0 and len(both.outcomes) == 4


def test_mistakes():
    learn = make_lt_learner()
    with pytest.raises(UserError, match="'sam'"):
        compare(learn, "sam")
    with pytest.raises(UserError, match="seeds.*0"):
        learn.compare_classifiers("ce", 0)
    with pytest.raises(UserError, match="select.*best, last.*'middle'"):
        compare(learn, "ce", select="middle")


def test_no_file_is_written_without_a_run(found, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make().compare_classifiers(["ce", "samn"])
    assert list(Path().iterdir()) == []


def figures(comparison, method):
    return [(o.report.nll, o.validation) for o in comparison.of(method)]


def test_each_method_begins_from_stage_1_whatever_came_before(found):
    """A comparison after cRT once called the classifier of cRT stage 1."""
    learn = make()
    learn.retrain_classifier(method="crt", view_seed=0, bn="train")
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    records = list(learn.stages)
    again = learn.compare_classifiers(SOME, 2)
    for method in SOME:
        assert figures(again, method) == figures(found, method)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert learn.stages == records
    learn.correct_classifier("tau_norm")
    assert learn.stages[:-1] == records[:1]


def test_a_classifier_that_was_compared_can_be_used(tmp_path):
    learn = make()
    found = learn.compare_classifiers(["ce", "crt", "samn", "ncm", "temperature"], 2)
    for outcome in found.outcomes:
        assert learn.use(outcome.method, outcome.seed) is learn
        assert learn.shot_report("test").nll == pytest.approx(outcome.report.nll)
        assert [dict(s) for s in learn.stages[1:]] == outcome.stages
    learn.use("crt", 1)
    assert learn.assumed_prior == "uniform"
    learn.use("temperature")
    assert learn.assumed_prior == "train"
    # A method after that begins from stage 1 all the same.
    learn.retrain_classifier(method="crt", view_seed=0)
    assert learn.shot_report("test").nll == pytest.approx(found.of("crt")[0].report.nll)
    best = learn.use("best").shot_report("test").nll
    assert best == pytest.approx(found.of(found.best)[0].report.nll)
    assert learn.use("stage1").shot_report("test").nll == found.of("ce")[0].report.nll
    learn.compare_classifiers(["lws"])
    assert learn.use("crt", 1).shot_report("test").nll == pytest.approx(figures(found, "crt")[1][0])
    with pytest.raises(UserError, match=r"'mislas'.*crt"):
        learn.use("mislas")
    with pytest.raises(UserError, match=r"samn.*0, 1.*seed=7"):
        learn.use("samn", 7)
    learn.path = tmp_path
    learn.export("model.pkl")
    assert learn.compared.runs, "the export alone has none"


def test_a_classifier_of_another_stage_1_cannot_be_used():
    learn = make()
    with pytest.raises(UserError, match="'crt'.*compare_classifiers"):
        learn.use("crt")
    learn.compare_classifiers(["samn"])
    learn.fit(1, 0.05)
    with pytest.raises(UserError, match="samn.*another stage 1"):
        learn.use("samn")


def test_batch_statistics_are_used_with_their_classifier():
    learn = make()
    found = compare(learn, ["ce", "samn"], views=0, bn="train", select="last")
    for method in ("samn", "ce"):
        learn.use(method)
        assert learn.shot_report("test").nll == pytest.approx(found.of(method)[0].report.nll)


def double(learn):
    with torch.no_grad():
        for parameter in learn.model.head.parameters():
            parameter.mul_(2)


def drawn(learn, seed):
    learn.retrain_classifier(2, 0.05, seed=seed, reset=True)


def whole(learn):
    learn.fit(1, 0.05)


class Two(torch.nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.in_features, self.out_features = width, classes
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, 4), torch.nn.Linear(4, classes))

    def forward(self, x):
        return self.layers(x)


def foreign(learn):
    learn.model.head = Two(learn.model.head.in_features, 3)


def test_methods_of_one_s_own_are_compared():
    learn, registered = make(), list(METHODS)
    mine = replace(METHODS["samn"], label="mine", values={"epochs": 2})
    own = [("twice", double), ("Drawn anew", drawn), ("whole", whole), ("foreign", foreign)]
    changed = ("samn_changed", replace(METHODS["samn"], values={"epochs": 1}))
    found = learn.compare_classifiers(["ce", "samn", mine, *own, changed], 2, priors="uniform")
    assert list(METHODS) == registered
    names = ["ce", "samn", "mine", "twice", "drawn_anew", "whole", "foreign", "samn_changed"]
    assert found.methods == names
    assert [len(found.of(name)) for name in names] == [1, 2, 2, 1, 2, 1, 1, 2]
    assert found.of("mine")[0].stages[0]["epochs"] == 2
    assert found.of("samn_changed")[0].stages[0]["epochs"] == 1
    assert np.array_equal(found.of("twice")[0].correct, found.of("ce")[0].correct)
    assert found.of("twice")[0].norms == pytest.approx([2 * n for n in found.of("ce")[0].norms])
    nlls = [nll for nll, _ in figures(found, "drawn_anew")]
    assert nlls[0] != nlls[1]
    text = found.table().to_text()
    for label in ("mine", "Drawn anew", "foreign", "samn_changed"):
        assert any(line.startswith(label) for line in text.splitlines())
    json.dumps(found.to_dict(), allow_nan=False)
    for name in ("whole", "foreign", "mine", "twice"):
        learn.use(name)
        assert learn.shot_report("test").nll == pytest.approx(figures(found, name)[0][0])
    assert learn.use("stage1").shot_report("test").nll == figures(found, "ce")[0][0]
    assert learn.compare_classifiers(("twice", double)).methods == ["twice"]
    assert learn.compare_classifiers(mine).methods == ["mine"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (("crt", double), "'crt'.*another name"),
        (("mine", "crt"), "no method 'mine'"),
        (("mine", 3), "'mine'.*Method.* 3"),
        (replace(METHODS["samn"], values={"epochs": 1}), "label 'CE [+] SAMN'"),
        (replace(METHODS["mixup"], label="mine"), "mine is a method of stage 1"),
        (3, "3"),
        ({}, "{}"),
    ],
)
def test_candidates_that_are_refused(method, words):
    learn, registered = make_lt_learner(), list(METHODS)
    with pytest.raises(UserError, match=words):
        learn.compare_classifiers(["ce", method] if method != ("mine", "crt") else method)
    assert list(METHODS) == registered


def test_without_a_test_part_the_validation_images_are_tested():
    learn = make_lt_learner(make_dls(valid=make_images([15, 15, 15], seed=1), test=None))
    learn.fit_stage1(1, 0.05)
    found = learn.compare_classifiers(["ce", "samn"])
    assert found.about.protocol == "untested" and len(found.targets) == 45
    text = found.table().to_text()
    assert "validation accuracy" in text and "no test set" in text and "test images" not in text
    assert found.of("ce")[0].report.balanced == found.of("ce")[0].validation


def test_a_row_assumes_the_prior_that_its_training_left():
    """The correction of CE once subtracted the training prior, whatever the sampler of stage 1."""
    learn = make()
    learn.fit_stage1(1, 0.05, sampler="class_balanced")
    found = learn.compare_classifiers(["ce", "temperature"], priors="uniform")
    for outcome in found.outcomes:
        figure = outcome.priors["uniform"]
        assert figure.corrected == pytest.approx(figure.accuracy)


def test_methods_trained_together_have_the_outcomes_of_those_alone(trained, found, tmp_path):
    run, lines = Run(tmp_path / "run"), []
    batched = compare(
        trained, SOME, 2, priors="uniform", run=run, notify=lines.append, batched="always"
    )
    assert lines[0].startswith("6 trainings") and "cRT, seed 0" not in lines
    for one, other in zip(batched.outcomes, found.outcomes, strict=True):
        assert (one.method, one.seed, one.selected) == (other.method, other.seed, other.selected)
        np.testing.assert_allclose(one.norms, other.norms, rtol=1e-5)
        assert one.validation == other.validation
        assert np.array_equal(one.correct, other.correct)
        for ours, alone in zip(one.stages, other.stages, strict=True):
            assert {**ours, "seconds": 0} == {**alone, "seconds": 0}
    # They are kept, so a second comparison trains nothing, together or not.
    for how in ("always", "never"):
        again = compare(trained, SOME, 2, run=run, batched=how)
        assert [o.seconds for o in again.outcomes] == [o.seconds for o in batched.outcomes]


def test_methods_train_together_on_a_device_alone(trained, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sys.modules["ltlearn.compare"], "retrain_together", lambda *args: asked.append(args) or {}
    )
    for batched in ("auto", "never"):
        compare(trained, ["crt"], batched=batched)
        assert not asked
    compare(trained, ["crt"], batched="always")
    assert asked
    with pytest.raises(UserError, match="batched.*'sometimes'"):
        compare(trained, ["crt"], batched="sometimes")
