import csv
import errno
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers import COMMAND, ENV, TINY, ltlearn


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    done = ltlearn(*TINY, "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_version_and_help():
    done = ltlearn("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("ltlearn 0.")
    done = ltlearn("recipe", "--help")
    assert done.returncode == 0
    for word in ("--data", "--set", "--seeds", "--smoke", "--out", "--json", "--resume"):
        assert word in done.stdout


def test_recipes_lists_dataset_method_and_figure():
    done = ltlearn("recipes")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("cifar10_lt"))
    assert "samn 83.83 (paper)" in line
    assert "published top-1 in %\tmeasured here" in done.stdout
    listed = {r["name"]: r for r in json.loads(ltlearn("recipes", "--json").stdout)}
    (result,) = listed["digits_lt"]["measured"]
    figures = ", ".join(f"{r['method']} {r['accuracy']['all']:.1f}" for r in result["rows"])
    line = next(line for line in done.stdout.splitlines() if line.startswith("digits_lt"))
    assert f"\tnone\t{figures} (clean)\t" in line
    # Accuracies of pre-trained and of random weights do not compare.
    scratch, pretrained = done.stdout.split("Trained from pre-trained weights")
    assert "\nimagenet_lt\t" in scratch and "_lift\t" not in scratch
    assert "\nimagenet_lt_lift\t" in pretrained and "adaptformer 77 (clean)" in pretrained


def test_a_run_leaves_the_folder_that_is_promised(finished):
    run, done = finished
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert names >= {
        "manifest.json", "metrics.csv", "predictions.npz", "report.md", "trajectories.json",
        "checkpoints/seed0-stage1.safetensors", "checkpoints/seed0-samn.safetensors",
        "plots/class_counts.png", "plots/per_class_accuracy.png", "plots/norms.png",
        "plots/trajectory.png", "plots/confusion.png", "classes.csv",
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["split"]["train"] in done.stdout
    assert manifest["values"]["stage1"]["epochs"] == 2
    assert manifest["class_counts"][0] == 124
    assert manifest["versions"]["torch"]
    assert [s["method"] for s in manifest["stages"]] == ["ce", "samn"]
    report = (run / "report.md").read_text()
    for word in ("CE + SAMN", "clean", "first_n", "plots/norms.png", "Epoch 0"):
        assert word in report


def test_a_run_lists_its_classes(finished):
    run, done = finished
    saved = np.load(run / "predictions.npz")
    predicted, targets = saved["seed0/samn"].argmax(1), saved["targets"]
    with open(run / "classes.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)]
    for c, row in enumerate(rows):
        own = predicted[targets == c]
        assert float(row["accuracy_samn"]) == pytest.approx((own == c).mean(), abs=1e-6)
        assert int(row["test_images"]) == len(own)
        if (own != c).any():
            share = 100 * np.bincount(own[own != c]).max() / len(own)
            assert f"({share:.1f} %)" in row["taken_for_samn"].split(";")[0]
    report = (run / "report.md").read_text()
    assert "| class | group | training images | test images | CE % | CE + SAMN % |" in report
    assert "[classes.csv](classes.csv)" in report and "plots/confusion.png" in report
    assert any(line.startswith("0\tmany\t124\t") for line in done.stdout.splitlines())


def test_predict_names_the_csv_file_that_it_writes(finished, tmp_path):
    run, _ = finished
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    out = tmp_path / "classes.csv"
    done = ltlearn("predict", run, tmp_path / "a.png", "--csv", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"classes of 1 image: {out}" in done.stderr and done.stdout == ""


def test_the_table_agrees_with_the_predictions(finished):
    run, _ = finished
    manifest = json.loads((run / "manifest.json").read_text())
    saved = np.load(run / "predictions.npz")
    for row in manifest["results"]["rows"]:
        right = (saved[f"seed0/{row['method']}"].argmax(1) == saved["targets"]).mean()
        assert right == pytest.approx(row["reports"][0]["all"])


def test_stage2_in_the_csv_begins_before_the_first_step(finished):
    run, _ = finished
    lines = (run / "metrics.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    assert [r["epoch"] for r in rows if r["method"] == "samn"] == ["0", "1", "2"]
    assert [r["epoch"] for r in rows if r["method"] == "ce"] == ["1", "2"]


def test_results_alone_go_to_stdout(finished):
    _, done = finished
    assert "stage 1" in done.stderr
    assert "seed 0" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0].startswith("digits_lt")


def test_resume_loads_finished_stages(finished):
    run, first = finished
    weights = (run / "checkpoints/seed0-stage1.safetensors").stat().st_mtime_ns
    done = ltlearn(*TINY, "--out", run, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints/seed0-stage1.safetensors").stat().st_mtime_ns == weights
    again = json.loads(done.stdout)
    assert again["run"] == str(run)
    assert done.stderr.strip() in ("", "ltlearn: 1 class has a single training image: 9")
    other = ltlearn(*TINY, "--set", "stage1.lr=0.01", "--out", run, "--resume")
    assert other.returncode == 2
    assert "stage1.lr = 0.05, not 0.01" in other.stderr
    taken = ltlearn(*TINY, "--out", run)
    assert taken.returncode == 2
    assert "--resume" in taken.stderr


def test_a_damaged_checkpoint_is_made_again(finished, tmp_path):
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    head = copy / "checkpoints/seed0-samn.safetensors"
    head.write_bytes(head.read_bytes()[:100])
    done = ltlearn(*TINY, "--out", copy, "--resume")
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert "This stage is trained again" in done.stderr
    a, b = np.load(run / "predictions.npz"), np.load(copy / "predictions.npz")
    np.testing.assert_array_equal(a["seed0/samn"], b["seed0/samn"])


def test_same_seed_same_numbers(finished, tmp_path):
    run, _ = finished
    done = ltlearn(*TINY, "--out", tmp_path / "again", "--quiet")
    assert done.returncode == 0
    assert done.stderr == ""
    a, b = np.load(run / "predictions.npz"), np.load(tmp_path / "again" / "predictions.npz")
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


def test_quiet_is_over_when_the_command_is(finished):
    run, _ = finished
    log = logging.getLogger("ltlearn")
    before = (log.level, list(log.handlers))
    assert ltlearn(*TINY, "--out", run, "--resume", "--quiet").returncode == 0
    assert (log.level, list(log.handlers)) == before


def test_the_table_names_the_paper_protocol(tmp_path):
    done = ltlearn(*TINY, "--protocol", "paper", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "selected on test" in done.stdout
    assert "flip-averaged" in done.stdout
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["split"]["valid_from"] == "test set"
    assert manifest["stages"][1]["bn"] == "train"
    assert manifest["training_images"] == sum(manifest["class_counts"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recipe", "digit_lt"], "did you mean digits_lt"),
        (["recipe", "digits_lt", "--set", "stage1.epoch=2"], "did you mean epochs"),
        (["recipe", "digits_lt", "--set", "stage1.lr=-1"], "stage1.lr=-1"),
        (
            ["recipe", "digits_lt", "--set", "model.arch=resnet32_cifr"],
            "did you mean resnet32_cifar",
        ),
        (["recipe", "digits_lt", "--device", "cuda:7"], "cuda:7"),
        (["recipe", "digits_lt", "--precision", "fp16", "--device", "cpu"], "fp16"),
        (["recipe", "digits_lt", "--protocol", "best"], "clean"),
        (["recipe", "cifar10_lt", "--data", "nowhere"], "untar_data(URLs.CIFAR)"),
    ],
)
def test_a_user_error_is_one_line_and_exit_2(words, expected, tmp_path):
    done = ltlearn(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert expected in done.stderr.strip().splitlines()[-1]
    # A run that could not start leaves nothing behind.
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_an_internal_error_is_exit_1(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("boom")

    monkeypatch.setattr("ltlearn.experiments.read_recipe.load_recipe", broken)
    done = ltlearn("recipe", "digits_lt", cwd=tmp_path)
    assert done.returncode == 1
    assert "internal error: RuntimeError: boom" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_reported_and_nothing_is_lost(tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith("predictions.npz"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = ltlearn(*TINY, "--out", tmp_path / "run", "--quiet")
    assert done.returncode == 2
    assert "full" in done.stderr
    assert "--resume" in done.stderr
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    monkeypatch.setattr(os, "replace", real)
    done = ltlearn(*TINY, "--out", tmp_path / "run", "--quiet", "--resume")
    assert done.returncode == 0, done.stderr


def test_bad_images_are_named_or_skipped(tmp_path):
    write_cifar(tmp_path, 0)
    bad = tmp_path / "cifar10" / "train" / "class0" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    words = [
        "recipe", "cifar10_lt", "--smoke", "--data", tmp_path, "--set", "data.imbalance_factor=5",
        "--set", "model.width=4", "--set", "stage1.epochs=1", "--device", "cpu",
    ]  # fmt: skip
    done = ltlearn(*words, "--out", tmp_path / "a")
    assert done.returncode == 2
    assert str(bad) in done.stderr
    assert "--skip-bad" in done.stderr
    done = ltlearn(*words, "--out", tmp_path / "b", "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "1 unreadable image" in done.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["skipped_images"] == [str(bad)]


def test_ctrl_c_prints_the_command_that_continues(tmp_path):
    words = [*TINY, "--set", "stage1.epochs=500", "--out", str(tmp_path / "run"), "--seeds", "2"]
    process = subprocess.Popen(
        [*COMMAND, *words], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "run/logs/seed0-stage1.csv", time.monotonic() + 240
    while not log.exists():  # it is written after the first epoch
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "Continue with: ltlearn recipe digits_lt" in rest
    assert "--resume" in rest
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "running"


def test_settings_come_from_flag_then_environment_then_file(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nruns_path = from_file\nprecision = fp32\n")
    rows = {
        r["key"]: r
        for r in json.loads(
            ltlearn("settings", "--json", cwd=tmp_path, env={"LTLEARN_PRECISION": "bf16"}).stdout
        )
    }
    assert rows["runs_path"]["value"] == str(tmp_path / "from_file")
    assert rows["precision"]["value"] == "bf16"


def write_cifar(root, seed):
    rng = np.random.default_rng(seed)
    for part, n in (("train", 24), ("test", 12)):
        for c in range(10):
            folder = root / "cifar10" / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def test_resume_refuses_other_images_and_another_precision(tmp_path):
    words = [
        "recipe", "cifar10_lt", "--smoke", "--set", "data.imbalance_factor=5", "--device", "cpu",
        "--set", "model.width=4", "--set", "stage1.epochs=1", "--out", tmp_path / "run",
        "--precision", "fp32",
    ]  # fmt: skip
    first = write_cifar(tmp_path / "a", 0)
    second = write_cifar(tmp_path / "b", 1)
    done = ltlearn(*words, "--data", first)
    assert done.returncode == 0, done.stderr
    assert "Published" not in done.stdout, "nobody published an imbalance factor of 5"
    done = ltlearn(*words, "--data", second, "--resume")
    assert done.returncode == 2
    assert "was made with images" in done.stderr
    done = ltlearn(*words[:-1], "bf16", "--data", first, "--resume")
    assert done.returncode == 2
    assert "precision" in done.stderr
    assert ltlearn(*words, "--data", first, "--resume").returncode == 0


def test_values_that_exclude_each_other_are_refused_before_stage_1(tmp_path):
    for words in (
        ["--protocol", "paper", "--set", "stage2.views=1"],
        ["--set", "stage2.bn=train", "--set", "stage2.views=1"],
    ):
        done = ltlearn(*TINY, *words, "--out", tmp_path / "run")
        assert done.returncode == 2
        assert "stage2.views=0" in done.stderr
        assert not (tmp_path / "run").exists()


def test_a_users_own_folder_and_files_stay(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    done = ltlearn("recipe", "cifar10_lt", "--data", tmp_path / "nowhere", "--out", own)
    assert done.returncode == 2
    assert "untar_data" in done.stderr
    assert list(own.iterdir()) == []
    (own / ".tmp-precious").write_text("mine")
    done = ltlearn(*TINY, "--out", own, "--resume")
    assert done.returncode == 2
    assert "manifest.json" in done.stderr and "--out" in done.stderr
    assert [p.name for p in own.iterdir()] == [".tmp-precious"]


def test_the_recorded_command_names_the_program_that_was_called(monkeypatch, tmp_path):
    monkeypatch.setenv("LTLEARN_PROGRAM", "scripts/ltlearn")
    done = ltlearn(*TINY, "--out", tmp_path / "run", "--quiet")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["command"].startswith("scripts/ltlearn recipe digits_lt")
    provenance = manifest["values"]["provenance"]
    for section in ("data", "model", "stage1", "stage2"):
        for key in manifest["values"][section]:
            assert provenance[f"{section}.{key}"]
    assert provenance["seeds"] == "command line"
    assert provenance["stage2.bn"] == "protocol: clean"
    assert manifest["seeds"][0]["split"]["valid"]


def test_resume_refuses_a_method_s_own_values_that_are_gone(tmp_path):
    words = ["recipe", "digits_lt", "--smoke", "--device", "cpu", "--out", tmp_path / "run"]
    assert ltlearn(*words, "--set", "method.samn.lr=0.5").returncode == 0
    done = ltlearn(*words, "--resume")
    assert done.returncode == 2
    assert "holds a run with method.samn.lr = 0.5, not None" in done.stderr


def test_resume_goes_on_in_the_middle_of_a_stage(finished, tmp_path, monkeypatch):
    from ltlearn.training.schedule import LoaderEpoch

    monkeypatch.setenv("LTLEARN_CHECKPOINT_SECONDS", "0")
    run, begin = tmp_path / "run", LoaderEpoch.before_train
    for stage in ("stage1", "samn"):

        def stop(self, stage=stage):
            begin(self)
            if self.learn.epoch == 1 and hasattr(self.learn.model, "backbone") == (
                stage == "stage1"
            ):
                raise KeyboardInterrupt

        monkeypatch.setattr(LoaderEpoch, "before_train", stop)
        done = ltlearn(*TINY, "--out", run, *["--resume"][: run.exists()])
        assert done.returncode == 130, done.stderr
        names = sorted(p.name for p in (run / f"checkpoints/seed0-{stage}").iterdir())
        assert names == ["epoch-00001.json", "epoch-00001.safetensors"]
        other = ltlearn(*TINY, "--out", run, "--resume", "--precision", "bf16")
        assert other.returncode == 2
        assert "precision" in other.stderr.splitlines()[-1]
    assert re.search(r"stage 1, 2 epochs .* epoch 1\n", done.stderr)
    monkeypatch.setattr(LoaderEpoch, "before_train", begin)
    done = ltlearn(*TINY, "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    assert re.search(r"stage 2, CE \+ SAMN, 2 epochs .* epoch 1\n", done.stderr)
    for name, epochs in (("stage1", "12"), ("samn", "012")):
        lines = (run / f"logs/seed0-{name}.csv").read_text().splitlines()
        assert [line[0] for line in lines[1:]] == list(epochs)
    a, b = np.load(finished[0] / "predictions.npz"), np.load(run / "predictions.npz")
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])
    assert not [p for p in (run / "checkpoints").iterdir() if p.is_dir()]


def test_a_run_logs_each_epoch(finished):
    run, done = finished
    for stage, epochs in (("stage1", ["1", "2"]), ("samn", ["0", "1", "2"])):
        with open(run / f"logs/seed0-{stage}.csv") as file:
            rows = list(csv.DictReader(file))
        assert [r["epoch"] for r in rows] == epochs
        method = "ce" if stage == "stage1" else stage
        with open(run / "metrics.csv") as file:
            whole = [r for r in csv.DictReader(file) if r["method"] == method]
        assert rows == [{k: r[k] for k in rows[0]} for r in whole]
    assert not (run / "tensorboard").exists()


def test_epochs_are_printed_where_there_is_no_terminal(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("ltlearn.utils.progress._DELAY_S", 0.0)
    for words, printed in (([], True), (["--quiet"], False), (["--json"], False)):
        done = ltlearn(*TINY, "--out", tmp_path / "-".join(["run", *words]), *words)
        assert done.returncode == 0, done.stderr
        assert ("stage 1: epoch 2/2, loss " in done.stderr) is printed
        assert ("stage 2: epoch 2/2, loss " in done.stderr) is printed
        # The first epoch ends less than half a minute after the start.
        assert "epoch 1/2, loss" not in done.stderr
        assert "images/s" not in done.stdout


def test_tensorboard(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            "importlib.util.find_spec",
            lambda name, *args: None if name == "tensorboard" else find(name, *args),
        )
        done = ltlearn(*TINY, "--tensorboard", "--out", tmp_path / "none")
    assert done.returncode == 2
    assert "tensorboard: pip install 'ltlearn[tensorboard]'." in done.stderr
    assert not (tmp_path / "none").exists()
    pytest.importorskip("tensorboard")
    done = ltlearn(*TINY, "--tensorboard", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for stage in ("stage1", "samn"):
        assert list((tmp_path / f"run/tensorboard/seed0-{stage}").glob("events.out.tfevents.*"))


def test_keep_all_and_on_nan(tmp_path):
    done = ltlearn(*TINY, "--out", tmp_path / "run", "--keep-all", "--on-nan", "skip")
    assert done.returncode == 0, done.stderr
    for folder in ("seed0-stage1", "seed0-samn"):
        assert len(list((tmp_path / "run/checkpoints" / folder).iterdir())) == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("compare", "RUN", "--methods", ""), "--methods ''"),
        (("compare", "RUN", "--priors", ","), "--priors ','"),
        (("compare", "RUN", "--priors", "train,flat"), "--priors .*uniform, train.* 'flat'"),
        (("compare", "RUN", "--select", "first"), "--select .*best, last.* 'first'"),
        (("compare", "RUN", "--seeds", "0"), "--seeds .* 0"),
        (("sensitivity", "RUN", "--methods", " "), "--methods ' '"),
        (("sensitivity", "RUN", "--select", "first"), "--select .*best, last.* 'first'"),
        (("inspect", ".", "--few", "<9"), "--few .*<20, <=20.* '<9'"),
        (("predict", "RUN", "x.png", "--target-prior", "flat"), "--target-prior .* 'flat'"),
        (("recipe", "digits_lt", "--on-nan", "go"), "--on-nan .*stop, skip.* 'go'"),
        (("recipe", "digits_lt", "--out", "/proc/1/run"), "/proc/1/run .*--out"),
        (("train", ".", "--out", "runs"), "--out runs .*class"),
        (("train", ".", "--weights", "x.pth", "--no-pretrained"), "--weights and --no-pretrained"),
        (("recipe", "digits_lt", "--seeds", "0"), "--seeds 0"),
        (("recipe", "cifar10_lt", "--protocol", "x"), "--protocol x"),
        (("recipe", "digits_lt", "--check", "."), "manifest.json"),
    ],
)
def test_a_bad_value_is_named_by_its_flag(tmp_path, words, expected):
    words = [tmp_path if word == "RUN" else word for word in words]
    done = ltlearn(*words, cwd=tmp_path)
    assert done.returncode == 2 and re.search(expected, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_a_large_download_needs_a_confirmation(tmp_path, monkeypatch):
    from ltlearn.data.benchmarks import download
    from ltlearn.data.benchmarks.registry import BENCHMARKS

    fetched = []

    def fetch(root):
        fetched.append(root)
        assert (root / ".download.lock").exists(), "a second process has to wait"

    row = replace(BENCHMARKS["places_lt"], fetch=fetch)
    monkeypatch.setitem(BENCHMARKS, "places_lt", row)
    room = namedtuple("Room", "free")(10**15)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: room)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = ("data", "places_lt", "--root", tmp_path, "--download")
    done = ltlearn(*words)
    assert done.returncode == 2 and not fetched
    assert done.stderr.splitlines()[-1].endswith("give --yes.")
    done = ltlearn(*words, "--yes")
    assert not list(tmp_path.iterdir())
    assert fetched == [tmp_path] and "Fetch it" not in done.stdout + done.stderr
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert ltlearn(*words).returncode == 2 and len(fetched) == 1
