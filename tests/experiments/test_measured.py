"""Results in files: written from runs, read by lists and pages."""

import json
import shutil
from pathlib import Path

import pytest

from ltlearn.errors import UserError
from ltlearn.experiments import measured
from ltlearn.experiments.measured import MeasuredResult, measured_results, results_folder
from ltlearn.experiments.read_recipe import load_recipe, recipe_names
from ltlearn.names import FIGURES
from ltlearn.utils.run_folder import Run
from ltlearn.utils.terminal import render_recipes
from scripts import record

RUN = Path(__file__).parents[1] / "fixtures" / "run_db4ea7a" / "finished"
MANIFEST = json.loads((RUN / "manifest.json").read_text())
COMMIT = "db4ea7a"


def test_the_results_that_come_with_the_library_are_readable():
    results = measured_results()
    assert results
    for result in results:
        assert result.recipe in recipe_names()
        assert result.row(result.stage1) is not None and len(result.to_json()) < 20_000


def test_a_result_has_the_figures_of_its_run_and_all_that_decides_them(tmp_path, capsys):
    assert record.main([str(RUN), "--commit", COMMIT, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    assert file.stem == "digits_lt-ce-50-clean" and str(file) in capsys.readouterr().out
    (result,) = measured_results(tmp_path)
    for row, before in zip(result.rows, MANIFEST["results"]["rows"], strict=True):
        for group in FIGURES:
            mean = before["summary"][group]["mean"]
            assert row.accuracy[group] == pytest.approx(100 * mean, abs=1e-3)
        assert (row.method, row.label, row.published) == (before["method"], before["label"], None)
    assert result.fingerprints["train"] == MANIFEST["split"]["train"]
    assert (result.kind, result.seeds, result.commit) == ("run", [0], COMMIT)
    assert "model.width = 2" in result.changed and "stage1.epochs = 24" in result.changed
    assert not any(text.startswith(("protocol", "methods")) for text in result.changed)
    assert result.command.startswith("ltlearn recipe digits_lt") and "/" not in result.command
    assert result.hardware.device == MANIFEST["device"]
    assert result.describe().startswith("ce 43.4, lws ")


def test_a_result_has_each_epoch_of_a_stage_2(tmp_path):
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    (run / "logs").mkdir()
    text = "epoch,loss,all,balanced,evaluated_on\n0,,0.3,0.25,test\n1,1.5,0.4,0.35125,test\n"
    (run / "logs" / "seed0-samn.csv").write_text(text)
    (run / "logs" / "seed0-stage1.csv").write_text(text)
    (run / "logs" / "seed0-lws.csv").write_text(text[: text.index("1,1.5")])
    (result,) = record.results_of_run(Run(run), COMMIT)
    assert result.row("samn").by_epoch == [25.0, 35.12]
    assert not any(row.by_epoch for row in result.rows if row.method != "samn")
    assert MeasuredResult.model_validate_json(result.to_json()) == result


def test_a_comparison_is_a_result_of_its_own(tmp_path):
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    row = json.loads(json.dumps(MANIFEST["results"]["rows"][0]))
    other = {**row, "method": "crt", "label": "cRT"}
    other["differences"] = {"ce": {"estimate": 0.12345, "low": None, "high": 0.2}}
    table = {**MANIFEST["results"], "rows": [row, other], "stage1_seeds": [0]}
    (run / "compare.json").write_text(json.dumps(table))
    one, two = record.results_of_run(Run(run), COMMIT)
    assert (one.kind, two.kind) == ("run", "comparison")
    assert two.name == f"{one.name}-compared"
    assert two.row("crt").to_stage1 == (12.345, None, 20.0)


def test_the_published_figure_is_that_of_protocol_and_values(tmp_path):
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    recipe = load_recipe(
        "cifar100_lt_losses_w16",
        ["stage1.method=balanced_softmax_stage1", "protocol=paper", "data.split=first_n"],
    )
    row = {**manifest["results"]["rows"][0], "method": "balanced_softmax_stage1"}
    manifest |= {"recipe": recipe.name, "values": recipe.settled().model_dump(mode="json")}
    manifest |= {"protocol": "paper", "results": {**manifest["results"], "rows": [row]}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (result,) = record.results_of_run(Run(run), COMMIT)
    assert result.changed == ["data.split = first_n"]
    assert result.name == "cifar100_lt_losses_w16-balanced_softmax_stage1-100-paper"
    figure = result.rows[0].published
    assert (figure.accuracy, figure.tolerance) == (42.99, 1.5)
    assert result.rows[0].passed is True, "43.4 is inside 42.99 +- 1.5"
    result.rows[0].accuracy["all"] = 45.0
    assert result.rows[0].passed is False


def test_a_range_of_published_figures_is_recorded_with_its_sources(tmp_path, capsys):
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    recipe = load_recipe("cifar100_lt_w16", ["protocol=paper"])
    row = json.loads(json.dumps(MANIFEST["results"]["rows"][0]))
    row["summary"]["all"]["mean"] = 0.396
    values = recipe.settled().model_dump(mode="json")
    results = {**MANIFEST["results"], "rows": [row]}
    facts = {"recipe": recipe.name, "values": values, "protocol": "paper", "results": results}
    (run / "manifest.json").write_text(json.dumps({**MANIFEST, **facts}))
    out = tmp_path / "results"
    assert record.main([str(run), "--commit", COMMIT, "--out", str(out)]) == 0
    assert "CE: 39.60, published 37.73 to 38.32 (inside)" in capsys.readouterr().out
    (result,) = measured_results(out)
    figure = result.row("ce").published
    assert figure.each[1:] == [(38.32, "the reference that BagofTricks-LT quotes")]
    assert figure.passes(39.81) and not figure.passes(39.83)
    assert result.changed == []
    # A run of an earlier version averaged mirror images, so no published figure is its own.
    del values["data"]["flip_average"]
    (run / "manifest.json").write_text(json.dumps({**MANIFEST, **facts}))
    (result,) = record.results_of_run(Run(run), COMMIT)
    assert result.row("ce").published is None
    assert result.changed == ["data.flip_average = True"]


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("--data /x/y --out ../r --resume -q", "--data DIR --out RUN"),
        ("--data=/x --cache /c --set b=1", "--data DIR --set b=1"),
    ],
)
def test_a_command_names_no_folder_of_the_machine(command, kept):
    assert record.plain_command(f"ltlearn recipe a {command}") == f"ltlearn recipe a {kept}"


def test_what_cannot_be_recorded(tmp_path, capsys):
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert record.main([str(run), "--out", str(tmp_path / "results")]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    with pytest.raises(SystemExit):
        record.main([str(RUN), "--commit", "main", "--out", str(tmp_path / "results")])
    assert "hexadecimal digits, not 'main'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "run"}', "\xff"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json holds no result"):
        measured_results(tmp_path)


def test_no_folder_is_no_result(tmp_path, monkeypatch):
    assert measured_results(tmp_path) == []
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "x" / "y" / "measured.py"))
    assert results_folder() is None and measured_results() == []


def test_the_list_of_recipes_has_the_figures(tmp_path, capsys):
    record.main([str(RUN), "--commit", COMMIT, "--out", str(tmp_path)])
    results: list[MeasuredResult] = measured_results(tmp_path)
    capsys.readouterr()
    render_recipes([load_recipe("digits_lt"), load_recipe("imagenet_lt")], results)
    shown = " ".join(capsys.readouterr().out.split())
    assert "measured here" in shown and "43.4" in shown
