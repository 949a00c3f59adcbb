"""Runs that commit db4ea7a made are read, checked and gone on with by the code of today."""

import csv
import hashlib
import io
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from ltlearn.cli import main
from ltlearn.experiments.predictor import Predictor

FIXTURE = Path(__file__).parent / "fixtures" / "run_db4ea7a"
RECORDED = json.loads((FIXTURE / "recorded.json").read_text())
COMPARED = RECORDED["compare"]
# What both kinds of run were asked for.
SAME = [
    "recipe", "digits_lt", "--device", "cpu", "--precision", "fp32", "--seeds", "1",
    "--set", "model.width=2",
]  # fmt: skip
FINISHED = [
    *SAME, "--set", "stage1.epochs=24", "--set", "stage2.epochs=6",
    "--set", 'methods=["ce","lws","samn"]',
]  # fmt: skip
STOPPED = [
    *SAME, "--set", "stage1.epochs=20", "--set", "stage1.lr=0.01", "--set", "stage2.epochs=16",
    "--set", 'methods=["ce","crt","samn"]',
]  # fmt: skip

Done = namedtuple("Done", "returncode stdout stderr")


@pytest.fixture
def ltlearn(tmp_path):
    """Return the command line, which runs in this process, in a folder of its own."""

    def run(*words):
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ltlearn", *map(str, words)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
            patch.chdir(tmp_path)
            try:
                main()
            except SystemExit as e:
                code = e.code or 0
        return Done(code, out.getvalue(), err.getvalue())

    return run


def copy_of(name, tmp_path):
    """Copy a run of the fixture, which no test may change."""
    return Path(shutil.copytree(FIXTURE / name, tmp_path / name))


def read_json(path):
    return json.loads(path.read_text())


def read_rows(path):
    """Read a table without the seconds, which differ from run to run."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def stage1_of(rows):
    return [row for row in rows if row["stage"] == "1"]


def without_losses(rows):
    return [{k: v for k, v in row.items() if k != "loss"} for row in rows]


def processor():
    """Name the kind of processor: sums are rounded in another way on another one."""
    keys = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags")
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return None
    kept = "\n".join(line for line in lines if line.partition(":")[0].strip() in keys)
    return hashlib.sha256(kept.encode()).hexdigest()


def is_same_machine(before, now):
    """Tell whether figures must be the same bit for bit, by two manifests."""
    facts = [(m["versions"]["torch"], m["versions"]["numpy"], m["threads"]) for m in (before, now)]
    return facts[0] == facts[1] and processor() == RECORDED["processor"]


def results_of(run):
    """Return the mean accuracies on the test set by method and group, from the manifest."""
    rows = read_json(run / "manifest.json")["results"]["rows"]
    groups = ("all", "balanced", "many", "medium", "few")
    return {r["method"]: {g: r["summary"][g]["mean"] for g in groups} for r in rows}


def assert_results(run, recorded):
    found = results_of(run)
    assert list(found) == list(recorded)
    for method, figures in recorded.items():
        assert found[method] == pytest.approx(figures, abs=1e-6), method


def times_of(run, pattern):
    return {p.name: p.stat().st_mtime_ns for p in run.glob(pattern)}


def assert_compared(done):
    """The accuracies of a comparison are those that db4ea7a had."""
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == list(COMPARED)
    for method, figures in COMPARED.items():
        found = {k: rows[method]["reports"][0][k] for k in figures if k != "validation"}
        found["validation"] = rows[method]["validation_balanced"][0]
        assert found == pytest.approx(figures, abs=1e-6), method


def test_compare_trains_the_same_classifiers_again(ltlearn, tmp_path):
    run = copy_of("finished", tmp_path)
    shutil.rmtree(run / "compare")
    words = ("compare", run, "--methods", ",".join(COMPARED), "--device", "cpu", "--json")
    assert_compared(ltlearn(*words))
    assert (run / "compare.md").is_file()


def test_predict_takes_up_a_classifier_that_was_compared():
    run = FIXTURE / "finished"
    own = read_json(run / "model.json")["methods"]
    for method in set(COMPARED) - set(own):
        predictor = Predictor(run, method, target_prior="uniform")
        assert predictor.method == method and predictor.model.head is not None


def test_compare_takes_up_the_classifiers_that_were_kept(ltlearn, tmp_path):
    run = copy_of("finished", tmp_path)
    before = times_of(run, "compare/*")
    assert len(before) == 2 * (len(COMPARED) - 1), "all but stage 1 were kept"
    words = ("compare", run, "--methods", ",".join(COMPARED), "--device", "cpu", "--json")
    assert_compared(ltlearn(*words))
    version = ltlearn("--version").stdout.split()[-1]
    if version == read_json(FIXTURE / "finished" / "manifest.json")["versions"]["ltlearn"]:
        # Another version makes them again, by intent.
        assert times_of(run, "compare/*") == before


@pytest.mark.parametrize("method", RECORDED["predict"])
def test_predict_names_the_same_classes(ltlearn, tmp_path, method):
    run, table = copy_of("finished", tmp_path), tmp_path / "classes.csv"
    words = ("predict", run, FIXTURE / "images", "--method", method, "--device", "cpu")
    done = ltlearn(*words, "--csv", table)
    assert done.returncode == 0, done.stderr
    with table.open(newline="") as file:
        found = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    recorded = RECORDED["predict"][method]
    assert {name: row["class 1"] for name, row in found.items()} == {
        name: label for name, (label, _) in recorded.items()
    }
    for name, (_, probability) in recorded.items():
        assert float(found[name]["p 1"]) == pytest.approx(probability, abs=1e-4)


def test_predict_reads_a_checkpoint_and_takes_the_last_method(ltlearn, tmp_path):
    run = copy_of("finished", tmp_path)
    image = FIXTURE / "images" / "digit0-grey.png"
    tables = []
    for model in (run, run / "checkpoints" / "seed0-samn.safetensors"):
        table = tmp_path / f"{model.stem}.csv"
        done = ltlearn("predict", model, image, "--device", "cpu", "--csv", table)
        assert done.returncode == 0, done.stderr
        tables.append(table.read_text())
    assert tables[0] == tables[1]
    assert tables[0].splitlines()[1].startswith(f"{image},0,")


def test_check_measures_the_same(ltlearn, tmp_path):
    run = copy_of("finished", tmp_path)
    done = ltlearn("recipe", FIXTURE / "with_figures.toml", "--check", run, "--json")
    # One figure is inside its tolerance, one is outside.
    assert done.returncode == 1, done.stderr
    found, recorded = json.loads(done.stdout), RECORDED["check"]
    assert found["changes"] == recorded["changes"]
    assert len(found["checks"]) == len(recorded["checks"]) == 2
    for check, before in zip(found["checks"], recorded["checks"], strict=True):
        assert {k: check[k] for k in before} == before
    done = ltlearn("recipe", "digits_lt", "--check", run)
    assert done.returncode == 2
    assert "no published figures" in done.stderr


def test_resume_takes_a_finished_run_as_it_is(ltlearn, tmp_path):
    run = copy_of("finished", tmp_path)
    (run / "metrics.csv").unlink()
    (run / "model.json").unlink()
    before = times_of(run, "checkpoints/*")
    done = ltlearn(*FINISHED, "--out", run, "--resume", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert times_of(run, "checkpoints/*") == before
    old = FIXTURE / "finished"
    assert (run / "metrics.csv").read_bytes() == (old / "metrics.csv").read_bytes()
    new, recorded = read_json(run / "model.json"), read_json(old / "model.json")
    assert new.pop("checksum"), "today's file has a checksum"
    # "weights" describes in prose where the weights are.
    assert {**new, "weights": ""} == {**recorded, "weights": ""}
    assert_results(run, RECORDED["results"]["finished"])


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("stopped_in_stage1", 16),
        ("stopped_in_stage2", 6),
    ],
)
def test_resume_ends_as_if_the_run_had_never_been_stopped(ltlearn, tmp_path, name, epoch):
    run = copy_of(name, tmp_path)
    before = times_of(run, "checkpoints/*.*")
    done = ltlearn(*STOPPED, "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"epoch {epoch}" in done.stderr
    after = times_of(run, "checkpoints/*.*")
    assert {k: after[k] for k in before} == before, "a finished stage is not done again"
    found = read_rows(run / "metrics.csv")
    recorded = read_rows(FIXTURE / "never_stopped.csv")
    manifest = read_json(run / "manifest.json")
    if is_same_machine(read_json(FIXTURE / name / "manifest.json"), manifest):
        assert stage1_of(found) == stage1_of(recorded)
    assert without_losses(found) == without_losses(recorded)
    losses = [[float(row["loss"]) for row in rows if row["loss"]] for rows in (found, recorded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    if is_same_machine(read_json(FIXTURE / name / "manifest.json"), manifest):
        # Stage 2 rounds in another way than 0.1.0.
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_results(run, RECORDED["results"]["never_stopped"])
    assert manifest["status"] == "finished"
    assert not [p for p in (run / "checkpoints").iterdir() if p.is_dir()]


@pytest.mark.parametrize("name", ["stopped_in_stage1", "finished"])
def test_resume_refuses_other_values(ltlearn, tmp_path, name):
    run, words = copy_of(name, tmp_path), STOPPED if name.startswith("stopped") else FINISHED
    done = ltlearn(*words, "--set", "stage1.lr=0.3", "--out", run, "--resume")
    assert done.returncode == 2
    assert "stage1.lr" in done.stderr.splitlines()[-1]
