"""The records of a run, as this version and earlier ones write them."""

import json

import pytest
import typer

from ltlearn.cli.app import app
from ltlearn.cli.flags import FlagSpelling
from ltlearn.errors import UserError, spelled_by
from ltlearn.experiments.manifest import FinishedStage, Manifest, read_manifest, recorded_recipe
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.training.records import TrajectoryRecord
from ltlearn.utils.run_folder import Run

TRAJECTORY = {
    "epoch": [1], "loss": [0.5], "all": [0.6], "balanced": [0.6], "many": [None], "medium": [0.6],
    "few": [None], "norms": [[1.0, 2.0]], "seconds": [3.0], "chosen": 1, "select_on": "validation",
    "select": "best",
}  # fmt: skip


def test_a_manifest_of_a_running_run_is_partial(tmp_path):
    manifest = Manifest(recipe="toy", values={"seeds": 1})
    assert "split" not in manifest.to_dict() and manifest.to_dict()["cache_path"] is None
    manifest.split, manifest.columns = {"name": "first_n"}, {}
    run = Run(tmp_path)
    run.write_json("manifest.json", manifest.to_dict())
    assert read_manifest(run).to_dict() == manifest.to_dict()
    assert list(manifest)[:3] == ["recipe", "title", "status"] and not manifest.is_finished


def test_a_manifest_of_another_version_is_read(tmp_path):
    old = {"recipe": "toy", "status": "finished", "values": {}, "skipped_pictures": ["a.png"]}
    Run(tmp_path).write_json("manifest.json", {**old, "a_later_key": 1})
    manifest = read_manifest(Run(tmp_path))
    assert manifest.is_finished and manifest.skipped_images == ["a.png"]
    assert manifest.follow_links is False and manifest.get("split") is None


@pytest.mark.parametrize("content", [[], {}, {"values": 3}])
def test_a_manifest_without_values_is_damaged(tmp_path, content):
    Run(tmp_path).write_json("manifest.json", content)
    with pytest.raises(UserError, match=r"manifest\.json.*values"):
        read_manifest(Run(tmp_path))


def test_a_recorded_value_is_not_spelled_as_a_flag_of_the_command(tmp_path):
    values = load_recipe("digits_lt", ["stage1.method=mixup", "methods=['samn']"]).model_dump()
    values["stage1"]["method"] = "of_a_package"  # which is not installed any more
    Run(tmp_path).write_json("manifest.json", {"values": values})
    spelling = FlagSpelling(typer.main.get_command(app).commands["compare"])
    with spelled_by(spelling), pytest.raises(UserError, match="of_a_package") as raised:
        recorded_recipe(Run(tmp_path))
    assert "--" not in str(raised.value)


def test_the_record_of_a_stage_of_another_version_is_read():
    stage = {"stage": "stage 1", "seconds": 3.0}
    record = {"trajectory": TRAJECTORY, "stage": stage, "precision": "fp32"}
    finished = FinishedStage.from_dict({**record, "pictures": "train a, valid b, test c"})
    assert finished.images == "train a, valid b, test c" and finished.weights is None
    assert isinstance(finished.trajectory, TrajectoryRecord)
    assert finished.describe_selection() == "epoch 1 on validation"
    written = json.loads(json.dumps(finished.to_dict()))
    assert written["trajectory"] == TRAJECTORY
    assert list(written) == ["trajectory", "stage", "images", "precision", "weights"]


def test_a_correction_is_described_by_its_strength():
    """The report of a run once stated "last epoch" for a correction that has no epochs."""
    stage = {"stage": "post hoc", "method": "tau_norm", "value": 0.7, "seconds": 0.1}
    stage["chosen_on"] = "validation"
    finished = FinishedStage.from_dict({"trajectory": TRAJECTORY, "stage": stage})
    assert finished.describe_selection() == "tau 0.7, chosen on validation"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"stage": {}},
        {"stage": {}, "trajectory": 1},
        {"stage": {}, "trajectory": TRAJECTORY},
        {"stage": {"stage": "stage 1", "seconds": 3.0}, "trajectory": {**TRAJECTORY, "epoch": 3}},
        {"stage": {"stage": "stage 1", "seconds": 3.0}, "trajectory": {**TRAJECTORY, "few": []}},
    ],
)
def test_a_file_that_is_no_record_of_a_stage_is_refused(content):
    with pytest.raises(UserError, match="stage"):
        FinishedStage.from_dict(content)
