"""A recipe of authors who test each image once: the paper protocol without mirror images."""

import numpy as np
import pytest

from ltlearn.errors import UserError
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.manifest import FinishedStage, recorded_recipe
from ltlearn.experiments.page_tables import result_table
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.report_page import write_report_page
from ltlearn.experiments.runner import run_recipe
from ltlearn.experiments.stages import load_stage1
from ltlearn.utils.run_folder import Run
from scripts import record

VALUES = [
    "protocol=paper", "model.width=4", "stage1.epochs=2", "stage2.epochs=2", "seeds=1",
    "methods=['ce','crt','tau_norm']", "method.crt.epochs=2", "data.flip_average=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that averages no mirror images, with a comparison in it."""
    run = Run(tmp_path_factory.mktemp("flips") / "run")
    run_recipe(load_recipe("digits_lt", VALUES), run, device="cpu")
    compare_run(run, ["ce", "crt", "tau_norm"])
    return run


def test_all_stages_test_each_image_once(run):
    learn = load_stage1(recorded_recipe(run), run, 0, device="cpu")
    once, mean = (learn.predict_logits("test", flip)[0].numpy() for flip in (False, True))
    with np.load(run.path / "predictions.npz") as stored:
        np.testing.assert_allclose(stored["seed0/ce"], once, atol=1e-5)
    assert not np.allclose(once, mean, atol=1e-2)
    rows = {row["method"]: row for row in run.read_json("manifest.json")["results"]["rows"]}
    compared = {row["method"]: row for row in run.read_json("compare.json", sealed=None)["rows"]}
    for method, stage in {"ce": "stage1", "crt": "crt"}.items():
        # The test images stand in for validation images, so both figures are of the same logits.
        record = FinishedStage.from_dict(run.read_json(f"checkpoints/seed0-{stage}.json"))
        chosen = record.trajectory.epoch.index(record.trajectory.chosen)
        for group in ("all", "balanced"):
            figure = pytest.approx(rows[method]["summary"][group]["mean"], abs=1e-6)
            assert record.trajectory[group][chosen] == figure
    for method, row in rows.items():
        assert compared[method]["reports"][0]["all"] == row["reports"][0]["all"], method


def test_the_last_epoch_stands_beside_the_selected_one(run):
    rows = {
        row["method"]: row["summary"] for row in run.read_json("manifest.json")["results"]["rows"]
    }
    (of_seed,) = run.read_json("trajectories.json")
    for method in ("ce", "crt"):
        last = rows[method]["last_epoch"]
        assert last == {"mean": pytest.approx(of_seed[method]["all"][-1], abs=1e-6), "sd": None}
    assert rows["ce"]["last_epoch"]["mean"] < rows["ce"]["all"]["mean"], "epoch 1 of 2 is kept"
    assert "last_epoch" not in rows["tau_norm"], "a correction has no epochs"
    write_report_page(run)
    for file in ("report.md", "report.html"):
        assert "last epoch" in (run.path / file).read_text(encoding="utf-8"), file
    (result, _) = record.results_of_run(run, "0123abc")
    percent = 100 * rows["crt"]["last_epoch"]["mean"]
    assert result.row("crt").last_epoch == pytest.approx(percent, abs=1e-3)
    assert result.row("tau_norm").last_epoch is None


def test_the_page_marks_the_best_last_epoch(run):
    table = result_table(run.read_json("manifest.json")["results"], {})
    column = [c.label for c in table.columns].index("last epoch")
    known = [row[column] for row in table.rows if row[column].value is not None]
    best = max(cell.value for cell in known)
    assert len({cell.value for cell in known}) == 2
    assert [cell.is_best for cell in known] == [cell.value == best for cell in known]


def test_a_stage_1_as_given_has_no_last_epoch(tmp_path):
    values = [*VALUES, "stage1.epochs=0", "methods=['ce','crt']"]
    done = run_recipe(load_recipe("digits_lt", values), Run(tmp_path / "run"), device="cpu")
    ce, crt = (row["summary"] for row in done.manifest.results["rows"])
    assert "last_epoch" not in ce and crt["last_epoch"]["mean"] <= crt["all"]["mean"]


def test_reports_name_no_mirror_images(run):
    write_report_page(run)
    for file in ("report.md", "report.html", "compare.md"):
        text = (run.path / file).read_text(encoding="utf-8")
        assert "selected on test" in text, file
        assert "flip-averaged" not in text and "mirror image" not in text, file


def test_the_run_goes_on_with_the_same_evaluation_only(run):
    before = run.read_json("manifest.json")["results"]["rows"]
    again = run_recipe(load_recipe("digits_lt", VALUES), run, device="cpu")
    assert again.manifest.results["rows"] == before
    other = load_recipe("digits_lt", [*VALUES, "data.flip_average=true"])
    with pytest.raises(UserError, match=r"data\.flip_average = False, not True"):
        run_recipe(other, run, device="cpu")


def test_a_run_of_an_earlier_version_goes_on_averaging(run, tmp_path):
    """Earlier versions had no such key: the paper protocol always averaged."""
    manifest = run.read_json("manifest.json")
    del manifest["values"]["data"]["flip_average"]
    older = Run(tmp_path / "run")
    older.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match=r"data\.flip_average = True, not False"):
        run_recipe(load_recipe("digits_lt", VALUES), older, device="cpu")
    assert recorded_recipe(older).averages_flips
