import json

import pytest
from typer.testing import CliRunner

from ltlearn.cli.app import app
from ltlearn.errors import UserError
from ltlearn.experiments.expected import check_run
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.utils.run_folder import Run


def finished(path, name="cifar10_lt", accuracy=(0.8, 0.84), overrides=(), **facts):
    """Write the manifest of a run that gave these accuracies."""
    recipe = load_recipe(name, ["protocol=paper", *overrides]).settled()
    rows = [
        {"method": method, "summary": {"all": {"mean": value, "sd": None}}}
        for method, value in zip(recipe.methods, accuracy, strict=False)
    ]
    manifest = {
        "recipe": name, "status": "finished", "values": recipe.model_dump(mode="json"),
        "results": {"rows": rows}, **facts,
    }  # fmt: skip
    run = Run(path / "run")
    run.write_json("manifest.json", manifest)
    return run


def test_figures_stand_beside_each_other(tmp_path):
    checks, changes = check_run("cifar10_lt", finished(tmp_path))
    assert [(c.expected.method, c.passed) for c in checks] == [("ce", True), ("samn", True)]
    assert checks[0].difference == pytest.approx(80 - 80.02)
    assert checks[0].row() == ["CE", "all", "80.02", "80.00", "-0.02", "1", "inside"]
    assert changes == []


@pytest.mark.parametrize("off, passed", [(0.99, True), (1.0, True), (1.01, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_tolerance_has_two_sides(tmp_path, off, passed, sign):
    run = finished(tmp_path, accuracy=[(80.02 + sign * off) / 100])
    assert check_run("cifar10_lt", run)[0][0].passed is passed


def test_the_imbalance_factor_decides_which_figure(tmp_path):
    run = finished(tmp_path, "cifar10_lt_glmc", overrides=["data.imbalance_factor=10"])
    checks, changes = check_run("cifar10_lt_glmc", run)
    assert [c.expected.accuracy for c in checks] == [95.12, 95.16] and changes == []


def test_what_the_run_changed_is_named(tmp_path):
    run = finished(tmp_path, overrides=["stage1.epochs=60"])
    assert check_run("cifar10_lt", run)[1] == ["stage1.epochs = 60, not 200"]


def test_values_of_one_method_are_compared_too(tmp_path):
    run = finished(tmp_path, overrides=["method.slas_samn.lr=0.5"])
    assert check_run("cifar10_lt", run)[1] == ["method.slas_samn.lr = 0.5, not None"]
    manifest = run.read_json("manifest.json")
    manifest["values"]["method"] = {}
    run.write_json("manifest.json", manifest)
    assert "method.slas_samn.head_smoothing = None, not 0.3" in check_run("cifar10_lt", run)[1]


@pytest.mark.parametrize(
    "results", [None, [], {"rows": 3}, {"rows": [{}]}, {"rows": [{"method": "ce", "summary": 1}]}]
)
def test_a_damaged_manifest_is_reported(tmp_path, results):
    with pytest.raises(UserError, match=r"manifest\.json.*results"):
        check_run("cifar10_lt", finished(tmp_path, results=results))
    with pytest.raises(UserError, match=r"manifest\.json.*values"):
        check_run("cifar10_lt", finished(tmp_path, values=[]))


REFUSED = {
    "width": ({"overrides": ["model.width=16"]}, r"model\.width = 16.*64"),
    "protocol": ({"overrides": ["protocol=clean"]}, "protocol = clean.*paper"),
    "methods": (
        {"overrides": ['methods=["crt"]']}, "crt.*ce, samn, label_aware"
    ),
    "own": ({"name": "digits_lt", "overrides": ["protocol=clean"]}, "no published figures"),
    "half": ({"status": "running"}, "no finished run.*cifar10_lt.*resume"),
    "other": ({"recipe": "digits_lt"}, "digits_lt.*cifar10_lt"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused(tmp_path, case):
    kwargs, words = REFUSED[case]
    name = kwargs.get("name", "cifar10_lt")
    with pytest.raises(UserError, match=words):
        check_run(name, finished(tmp_path, **kwargs))


def test_the_command_exits_with_what_it_found(tmp_path):
    good, bad = finished(tmp_path / "a"), finished(tmp_path / "b", accuracy=(0.7, 0.84))
    done = CliRunner().invoke(app, ["recipe", "cifar10_lt", "--check", str(good.path)])
    assert done.exit_code == 0 and "inside" in done.output and "80.02" in done.output
    done = CliRunner().invoke(app, ["recipe", "cifar10_lt", "--check", str(bad.path), "--json"])
    assert done.exit_code == 1
    assert [c["passed"] for c in json.loads(done.output)["checks"]] == [False, True]


@pytest.mark.parametrize(
    "measured, difference, passed",
    [
        (36.0, -1.73, False),
        (37.0, -0.73, True),
        (38.0, 0.0, True),
        (39.7, 1.38, True),
        (40.0, 1.68, False),
    ],
)
def test_a_figure_that_several_groups_published_is_a_range(tmp_path, measured, difference, passed):
    run = finished(tmp_path, "cifar100_lt_w16", accuracy=[measured / 100])
    [check] = check_run("cifar100_lt_w16", run)[0]
    assert check.difference == pytest.approx(difference) and check.passed == passed
    assert check.row()[2] == "37.73 to 38.32"
    done = CliRunner().invoke(app, ["recipe", "cifar100_lt_w16", "--check", str(run.path)])
    assert done.exit_code == 1 - passed
    for source in ("37.73 BagofTricks", "38.32 the reference"):
        assert source in done.output


def test_a_run_that_averages_mirror_images_is_not_held_to_figures_without(tmp_path):
    run = finished(tmp_path, "cifar100_lt_w16", overrides=["data.flip_average=true"])
    with pytest.raises(UserError, match=r"data\.flip_average = True"):
        check_run("cifar100_lt_w16", run)


def test_a_run_of_an_earlier_version_averaged_them(tmp_path):
    run = finished(tmp_path, "cifar100_lt_w16")
    manifest = run.read_json("manifest.json")
    del manifest["values"]["data"]["flip_average"]
    run.write_json("manifest.json", manifest)
    with pytest.raises(UserError, match=r"data\.flip_average = True.*flip_average=False"):
        check_run("cifar100_lt_w16", run)
