"""`ltlearn compare`, `sensitivity` and `methods` on a finished run."""

import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ltlearn import UserError
from ltlearn.cli.app import main
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.manifest import recorded_recipe
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.results import _write_figures
from ltlearn.experiments.sensitivity import (
    SENSITIVITY_METHODS,
    Curve,
    Sensitivity,
    sensitivity,
    sensitivity_run,
)
from ltlearn.experiments.stages import SeedResult, load_stage1
from ltlearn.methods import DEFAULT_STAGE2, METHODS, registered_method
from ltlearn.metrics.report import shot_report
from ltlearn.utils.run_folder import Run
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner
from tests.helpers import TINY, ltlearn

FEW = "ce,tau_norm,crt,samn_from_stage1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    done = ltlearn(*TINY, "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def compared(run):
    done = ltlearn(
        "compare",
        run,
        "--methods",
        FEW,
        "--seeds",
        "2",
        "--priors",
        "train,reversed",
        cwd=run.parent,
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(run, run.parent / "compared")
    return done


@pytest.fixture
def joined(run, compared):
    """The run with its first comparison, which no test changes."""
    return run.parent / "compared"


def test_compare_takes_the_recipe_s_values_of_a_method(tmp_path):
    own = ["--set", "method.samn.lr=0.5", "--set", "method.samn.epochs=1"]
    own += ["--set", "method.tau_norm.tau=0.35"]
    done = ltlearn(*TINY, *own, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = compare_run(Run(tmp_path / "run"), "ce,samn,tau_norm")
    assert found.of("tau_norm")[0].stages[0]["value"] == 0.35
    stage = found.of("samn")[0].stages[0]
    assert (stage["lr"], stage["epochs"]) == (0.5, 1)


def test_compare_writes_table_record_and_plots(run, compared):
    out = compared.stdout
    for name in FEW.split(","):
        assert any(line.startswith(METHODS[name].label) for line in out.splitlines())
    assert "protocol: clean" in out and "best on validation" in out and "reversed, corrected" in out
    record = json.loads((run / "compare.json").read_text())
    assert [row["method"] for row in record["rows"]] == FEW.split(",")
    crt = record["rows"][2]
    assert crt["runs"] == [{"stage1_seed": 0, "seed": s} for s in (0, 1)]
    assert set(crt["differences"]["ce"]) >= {"estimate", "low", "high", "excludes_zero"}
    assert len(crt["norms"][0]) == 10 and crt["priors"][0]["reversed"]["accuracy"] >= 0
    page = (run / "compare.md").read_text()
    for name in ("compare_tradeoff", "compare_norms"):
        assert (run / f"plots/{name}.png").stat().st_size > 10_000 and f"plots/{name}.png" in page
    assert "Kang et al." in page and "Under other class priors" in page
    assert f"report: {run / 'compare.md'}" in compared.stderr


def test_ce_and_samn_are_those_of_the_recipe(run, compared):
    recipe = json.loads((run / "manifest.json").read_text())["results"]["rows"]
    ours = json.loads((run / "compare.json").read_text())["rows"]
    ce = [next(r for r in rows if r["method"] == "ce") for rows in (recipe, ours)]
    assert ce[0]["reports"] == ce[1]["reports"]
    again = compare_run(Run(run), "samn", cache_path=None)
    epochs = again.of("samn")[0].stages[0]["epochs"]
    assert epochs == 20  # the method's own: the recipe's two epochs are a smoke run's


def test_a_second_compare_loads_kept_classifiers(run, compared):
    done = ltlearn(
        "compare", run, "--methods", "ce,crt,lws", "--seeds", "2", "--json", cwd=run.parent
    )
    assert done.returncode == 0, done.stderr
    rows = {r["method"]: r for r in json.loads(done.stdout)["rows"]}
    before = json.loads((run / "compare/seed0-crt-1.json").read_text())
    assert rows["crt"]["stages"][1] == before["stages"]
    assert rows["lws"]["summary"]["all"]["mean"] >= 0


DIGIT = Path(__file__).parents[1] / "fixtures/run_db4ea7a/images/digit3-grey.png"


def test_a_further_comparison_joins_the_table(joined, tmp_path):
    """The table once had the rows of the last comparison alone."""
    shutil.copytree(joined, tmp_path / "run")
    first = json.loads((tmp_path / "run/compare.json").read_text())
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/compare").iterdir()}
    found = compare_run(Run(tmp_path / "run"), "ncm,ce", priors="uniform")
    assert found.methods == ["ce", "crt", "tau_norm", "ncm", "samn_from_stage1"]
    assert [len(found.of(m)) for m in found.methods] == [1, 2, 1, 1, 2]
    assert {p: p.stat().st_mtime_ns for p in files} == files, "no earlier classifier is made again"
    record = json.loads((tmp_path / "run/compare.json").read_text())
    reports = {row["method"]: row["reports"] for row in record["rows"]}
    for row in first["rows"]:
        assert reports[row["method"]] == row["reports"]
        assert set(record["rows"][0]["priors"][0]) == {"train", "reversed", "uniform"}
    page = (tmp_path / "run/compare.md").read_text()
    assert "| NCM |" in page and "| cRT |" in page
    assert not (tmp_path / "run/compare-1.json").exists()


def test_a_table_that_cannot_be_joined_is_kept(joined, tmp_path, caplog):
    shutil.copytree(joined, tmp_path / "run")
    before = (tmp_path / "run/compare.json").read_text()
    found = compare_run(Run(tmp_path / "run"), "crt", select="last")
    assert found.methods == ["ce", "crt"]
    assert "tau_norm, crt, samn_from_stage1" in caplog.text and "select='best'" in caplog.text
    assert json.loads((tmp_path / "run/compare-1.json").read_text()) == json.loads(before)
    page = (tmp_path / "run/compare-1.md").read_text()
    assert "| tau-norm |" in page and "plots/" not in page
    (tmp_path / "run/compare.json").write_text("[]")
    assert compare_run(Run(tmp_path / "run"), "ce").methods == ["ce"]
    assert "compare.json is damaged" in caplog.text


def test_a_classifier_of_the_comparison_predicts(joined, compared):
    """`predict --method crt` once refused what the comparison had called the best."""
    by_name = ltlearn("predict", joined, DIGIT, "--method", "crt")
    assert by_name.returncode == 0, by_name.stderr
    by_file = ltlearn("predict", joined / "compare/seed0-crt-0.safetensors", DIGIT)
    assert by_file.stdout == by_name.stdout
    other = ltlearn("predict", joined / "compare/seed0-crt-1.safetensors", DIGIT)
    assert other.returncode == 0 and other.stdout != by_name.stdout
    best = json.loads((joined / "compare.json").read_text())["best_on_validation"]
    assert f"--method {best}`" in compared.stderr
    done = ltlearn("predict", joined, DIGIT, "--method", "best", "--json")
    assert json.loads(done.stdout)["method"] == best
    done = ltlearn("predict", joined, DIGIT, "--method", "mislas")
    assert done.returncode == 2 and "'mislas'" in done.stderr and "crt" in done.stderr
    assert "ltlearn compare" in done.stderr
    done = ltlearn("predict", joined / "compare/seed0-crt-0.safetensors", DIGIT, "--method", "lws")
    assert done.returncode == 2 and "'crt', not 'lws'" in done.stderr


def test_a_classifier_of_the_comparison_gives_the_logits_of_the_comparison(joined):
    learn = load_stage1(recorded_recipe(Run(joined)), Run(joined), 0, device="cpu")
    rows = {r["method"]: r for r in json.loads((joined / "compare.json").read_text())["rows"]}
    data = learn.dls.test.dataset
    pixels = data.get_batch(range(len(data)))[0]
    for method in ("ce", "tau_norm", "crt", "samn_from_stage1"):
        predictor = Predictor(joined, method, target_prior="train")
        plain = Predictor(joined, method).logits(pixels)
        report = shot_report(plain, data.targets, learn.dls.shot_counts)
        assert report.nll == pytest.approx(rows[method]["reports"][0]["nll"], abs=1e-4)
        corrected = predictor.logits(pixels).softmax(1)
        # Stage 1 assumes the training prior already; the others are corrected for it.
        assert torch.allclose(corrected, plain.softmax(1), atol=1e-5) == (method == "ce")


def test_a_damaged_classifier_of_the_comparison_is_refused(joined, tmp_path):
    def changed(name, change):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(joined, tmp_path / "run")
        change(tmp_path / "run" / name)
        return Predictor(tmp_path / "run", "crt")

    def flip(file):
        content = bytearray(file.read_bytes())
        content[-5] ^= 0x40
        file.write_bytes(content)

    def other(file):
        shutil.copy(file.with_name("seed0-tau_norm-0.safetensors"), file)

    def of_another_stage1(file):
        record = json.loads(file.read_text())
        del record["checksum"]
        record["key"]["stage1"] = "0" * 16
        file.write_text(json.dumps(record))

    weights, record = "compare/seed0-crt-0.safetensors", "compare/seed0-crt-0.json"
    for name, change, words in (
        (weights, flip, r"seed0-crt-0\.safetensors is damaged"),
        (weights, other, r"seed0-crt-0\.safetensors is damaged"),
        (record, flip, r"seed0-crt-0\.json is damaged"),
        (record, lambda file: file.write_text('{"key": []}'), r"seed0-crt-0\.json is damaged"),
        (record, lambda file: file.unlink(), r"seed0-crt-0\.json is missing"),
        (record, of_another_stage1, "another stage 1"),
    ):
        with pytest.raises(UserError, match=words):
            changed(name, change)
    (tmp_path / "run/compare.json").unlink()
    with pytest.raises(UserError, match="no comparison.*compare_run"):
        Predictor(tmp_path / "run", "best")


def test_both_reports_of_a_run_have_one_figure(tmp_path):
    """CE + SAMN once had one figure in report.md and another in compare.md, of other seeds."""
    words = ["--seeds", "2", "--set", "method.samn.epochs=2", "--out", tmp_path / "run"]
    done = ltlearn(*TINY, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = compare_run(Run(tmp_path / "run"), "ce,samn")
    rows = json.loads((tmp_path / "run/manifest.json").read_text())["results"]["rows"]
    for row in rows:
        ours = [o.report.to_dict() for o in found.of(row["method"])]
        assert json.loads(json.dumps(ours)) == row["reports"]
    assert "report.md" not in found.note
    found = compare_run(Run(tmp_path / "run"), "samn", 2)
    assert [(o.stage1_seed, o.seed) for o in found.of("samn")] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert "report.md each method has one run" in found.note


def test_predictions_stand_beside_the_targets_of_their_seed(tmp_path):
    """Without a test set, each seed is tested on validation images of its own."""
    results = []
    for targets in ([0, 1, 2], [0, 1, 2], [2, 0, 1]):
        predictions = {"ce": np.eye(3, dtype=np.float32)[targets]}
        results.append(SeedResult(torch.tensor(targets), predictions=predictions))
    run = Run.create(tmp_path, "run")
    _write_figures(run, results)
    with np.load(run.path / "predictions.npz") as kept:
        assert "seed1/targets" not in kept
        for seed in range(3):
            own = f"seed{seed}/targets"
            targets = kept[own if own in kept else "targets"]
            assert kept[f"seed{seed}/ce"].argmax(1).tolist() == targets.tolist()


def test_other_values_than_those_of_the_run_are_named(run, compared):
    found = compare_run(Run(run), "samn")
    assert "CE + SAMN has epochs 20 here, epochs 2 there" in found.note
    assert "epochs 20 here" in (run / "compare.md").read_text()


def test_sensitivity(run, request):
    brief = ExitStack()
    request.addfinalizer(brief.close)
    for name in ("max_norm", "label_aware_smoothing"):
        row = METHODS[name]
        sweep = replace(row.sweep, values=row.sweep.values[:2], default=row.sweep.values[0])
        values = {**row.values, "epochs": 1}
        brief.enter_context(
            registered_method(name, replace(row, sweep=sweep, values=values), replace=True)
        )
    done = ltlearn("sensitivity", run, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    row = next(line for line in lines if line[0] == "WD + MaxNorm")
    assert row[1:3] == ["weight decay", "0.0001 to 0.001"]
    assert float(row[5]) == pytest.approx(float(row[4]) - float(row[3]), abs=0.11)
    record = json.loads((run / "sensitivity.json").read_text())
    assert list(record["lines"]) == ["CE + SAMN"] and len(record["curves"]) == 2
    assert (run / "plots/sensitivity.png").stat().st_size > 10_000
    wide = sensitivity_run(Run(run), "max_norm,ce,tau_norm")
    curve = wide.curves[0]
    assert np.allclose(curve["accuracy"], record["curves"][0]["accuracy"])
    assert set(wide.lines) == {"CE", "tau-norm"}


def test_sensitivity_without_a_test_part_is_on_the_validation_images():
    learn = make_lt_learner(make_dls(valid=make_images([15, 15, 15], seed=1), test=None))
    learn.retrain_classifier(method="ncm")
    found = sensitivity(learn, "ce,tau_norm")
    assert found.about["accuracy on"] == "validation images"
    assert found.lines["CE"] == learn.use("stage1").shot_report("valid").balanced


def test_the_default_methods_of_sensitivity_are_all_that_have_a_range():
    ranged = {name for name, method in METHODS.items() if method.sweep is not None}
    assert set(SENSITIVITY_METHODS) == ranged | {DEFAULT_STAGE2}


def test_ranges():
    curve = Curve("a", "p", [1, 2, 3], [0.5, 0.7, 0.6])
    found = Sensitivity([curve], {"b": 0.65})
    assert found.ranges() == {"a": (0.5, 0.7), "b": (0.65, 0.65)}
    assert found.rows()[0] == ["a", "p", "1 to 3", "50.0", "70.0", "20.0"]


def test_methods_lists_every_row_and_its_source():
    lines = ltlearn("methods").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == list(METHODS)
    records = json.loads(ltlearn("methods", "--json").stdout)
    rows = {r["name"]: r for r in records}
    assert rows["crt"]["source"].startswith("Kang et al.")
    # A correction without training has neither a sampler nor a head to begin with.
    assert (rows["crt"]["sampler"], rows["crt"]["head"]) == ("class_balanced", "new")
    assert (rows["tau_norm"]["sampler"], rows["tau_norm"]["head"]) == (None, None)
    assert next(line for line in lines if line.startswith("ncm\t")).split("\t")[3:5] == ["–"] * 2


MISTAKES = {
    "unknown": (["--methods", "crtt"], "no method 'crtt'; did you mean crt"),
    "prior": (["--methods", "ce", "--priors", "sideways"], "sideways"),
    "select": (["--methods", "ce", "--select", "middle"], "select must be one of best, last"),
    "seeds": (["--methods", "ce", "--seeds", "0"], "seeds must be a whole number of at least 1"),
}


@pytest.mark.parametrize("words, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(run, words, message):
    done = ltlearn("compare", run, *words, cwd=run.parent)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_folders_that_are_no_run(run, tmp_path):
    done = ltlearn("compare", tmp_path / "none", cwd=tmp_path)
    assert done.returncode == 2 and "there is no run" in done.stderr
    done = ltlearn("sensitivity", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "manifest.json" in done.stderr and str(tmp_path) in done.stderr


def test_a_run_without_a_finished_stage_1(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/checkpoints/seed0-stage1.json").unlink()
    with pytest.raises(UserError, match="no finished stage 1.*digits_lt.*resume"):
        compare_run(Run(tmp_path / "run"), "ce")
    shutil.copy(run / "checkpoints/seed0-stage1.json", tmp_path / "run/checkpoints")
    file = tmp_path / "run/checkpoints/seed0-stage1.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"seed0-stage1\.safetensors.*digits_lt"):
        compare_run(Run(tmp_path / "run"), "ce")


@pytest.mark.parametrize("command", ["compare", "sensitivity"])
def test_ctrl_c_is_one_line(run, command, monkeypatch, capsys):
    import ltlearn.experiments.compare_run
    import ltlearn.experiments.sensitivity

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    module = {
        "compare": ltlearn.experiments.compare_run,
        "sensitivity": ltlearn.experiments.sensitivity,
    }[command]
    monkeypatch.setattr(module, f"{command}_run", interrupted)
    monkeypatch.setattr(sys, "argv", ["ltlearn", command, str(run)])
    with pytest.raises(SystemExit) as left:
        main()
    message = capsys.readouterr().err
    assert left.value.code == 130 and message.startswith("ltlearn: stopped")
    assert ("the same command" in message) == (command == "compare")


def test_a_manifest_of_something_else(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["values"]["stage1"]["epoch"] = 1
    for content, words in (([], r"manifest\.json"), (manifest, r"stage1\.epoch; .*epochs")):
        (tmp_path / "run/manifest.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            compare_run(Run(tmp_path / "run"), "ce")


def test_a_damaged_feature_cache_is_made_anew(run, tmp_path):
    found = [compare_run(Run(run), "ce,tau_norm", cache_path=tmp_path) for _ in range(2)]
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 1_000]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        file.write_bytes(content)
    found.append(compare_run(Run(run), "ce,tau_norm", cache_path=tmp_path))
    for method in ("ce", "tau_norm"):
        assert len({f.of(method)[0].report.nll for f in found}) == 1


def test_the_paper_protocol_is_named(tmp_path):
    done = ltlearn(*TINY, "--protocol", "paper", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = ltlearn(
        "compare", tmp_path / "run", "--methods", "ce,samn_from_stage1,crt", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        "selected on test" in done.stdout and "batch normalisation in training mode" in done.stdout
    )
    assert "best on the test set: " in done.stdout and "best on validation" not in done.stdout
    assert json.loads((tmp_path / "run/compare.json").read_text())["chosen_on"] == "test"
    done = ltlearn("sensitivity", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2 and "paper protocol" in done.stderr


def test_a_sensitivity_in_a_notebook():
    curve = Curve("<b>SLAS", "smoothing", [0.1, 0.3], [0.5, 0.7])
    result = Sensitivity([curve], {"CE": 0.6}, {"dataset": "digits & co"})
    assert repr(result).endswith("<b>SLAS 50.0-70.0; CE 60.0-60.0")
    html = result._repr_html_()
    assert ">&lt;b&gt;SLAS<" in html and ">0.1 to 0.3<" in html and "digits &amp; co" in html
