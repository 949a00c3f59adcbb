"""How the process of the command line ends: signals, closed streams, errors of the system."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import COMMAND, ENV, TINY, ltlearn

ROOT = Path(__file__).parents[2]
ENV = {**ENV, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    done = ltlearn(*TINY, "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


# ------------------------------------------------ streams


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("redirection", "code", "sentence"),
    [
        (">/dev/full", 1, os.strerror(errno.ENOSPC)),
        (">&-", 1, "standard output is closed"),
        ("2>&-", 0, ""),
        *[
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("2>/dev/full", 0, ""),
                (">/dev/full 2>/dev/full", 1, ""),
                (">&- 2>&-", 1, ""),
            )
        ],
    ],
)
def test_closed_and_full_streams(redirection, code, sentence, tmp_path):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, "settings"],
        env=ENV, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) <= 1 and "Traceback" not in done.stderr
    if code == 0:
        assert "runs_path" in done.stdout


# ------------------------------------------------ signals


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_while_modules_load(tmp_path):
    code = """if True:
        import importlib.abc, signal, sys
        class Interrupt(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "typer":
                    signal.raise_signal(signal.SIGINT)
        sys.meta_path.insert(0, Interrupt())
        from ltlearn.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", code, "settings"],
        env=ENV, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ltlearn: stopped.\n")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143),
        *[pytest.param(*row, marks=pytest.mark.slow) for row in (("SIGINT", 130), ("SIGHUP", 129))],
    ],
)
def test_a_signal_ends_a_training_with_a_checkpoint(name, code, finished, tmp_path, monkeypatch):
    from ltlearn.training.schedule import LoaderEpoch

    monkeypatch.setenv("LTLEARN_CHECKPOINT_SECONDS", "0")
    run, begin = tmp_path / "run", LoaderEpoch.before_train
    handler = signal.getsignal(getattr(signal, name))

    def stop(self):
        begin(self)
        if self.learn.epoch == 1:
            signal.raise_signal(getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(LoaderEpoch, "before_train", stop)
        done = ltlearn(*TINY, "--out", run)
    assert done.returncode == code
    assert "Continue with: ltlearn recipe digits_lt" in done.stderr.splitlines()[-1]
    assert signal.getsignal(getattr(signal, name)) is handler
    kept = sorted(p.name for p in (run / "checkpoints/seed0-stage1").iterdir())
    assert kept == ["epoch-00001.json", "epoch-00001.safetensors"]
    assert ltlearn(*TINY, "--out", run, "--resume", "--quiet").returncode == 0
    a, b = np.load(finished / "predictions.npz"), np.load(run / "predictions.npz")
    for key in a.files:
        np.testing.assert_array_equal(a[key], b[key])


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            "ltlearn.utils.settings.load_settings", lambda **k: signal.raise_signal(signal.SIGHUP)
        )
        ltlearn("settings", cwd=tmp_path)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ------------------------------------------------ errors of the system


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO), "/data/x"), "/data/x"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), os.strerror(errno.ESTALE)),
        (MemoryError(), "memory is not enough"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate 9"), "memory"),
    ],
)
def test_an_error_of_the_system_is_no_internal_error(error, words, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("ltlearn.utils.settings.load_settings", fail)
    done = ltlearn("settings", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert "internal" not in done.stderr


def test_a_limit_on_the_size_of_files(tmp_path):
    """The weights of this network are larger."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        done = ltlearn(*TINY, "--out", tmp_path / "run", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 2
    assert "ulimit -f" in done.stderr


@pytest.mark.parametrize(
    "value",
    ["model.width=100000", "data.size=100000", f"stage1.batch_size={10**21}"],
)
def test_an_absurd_size_is_refused(value, tmp_path):
    done = ltlearn(*TINY, "--set", value, "--out", tmp_path / "run", "--quiet")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "internal" not in done.stderr
    assert value.partition("=")[0].partition(".")[2] in done.stderr


def test_a_warning_before_the_work_has_the_prefix_and_is_quiet(finished, tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nprecison = fp32\n")
    words = ["compare", finished, "--methods", "ce", "--device", "cpu"]
    done = ltlearn(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert [x for x in done.stderr.splitlines() if "precison" in x][0].startswith("ltlearn: ")
    assert ltlearn(*words, "--quiet", cwd=tmp_path).stderr == ""
    assert ltlearn("settings", cwd=tmp_path).stderr.startswith("ltlearn: ")


# ------------------------------------------------ what faults leave in a run


def test_cut_logs_are_repaired(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    logs = {p.name: p.read_bytes() for p in (run / "logs").iterdir()}
    names = sorted(logs)
    (run / "logs" / names[0]).write_bytes(logs[names[0]][:60])
    (run / "logs" / names[1]).unlink()
    assert ltlearn(*TINY, "--out", run, "--resume", "--quiet").returncode == 0
    assert {p.name: p.read_bytes() for p in (run / "logs").iterdir()} == logs


@pytest.mark.parametrize("command", ["recipe", "compare", "sensitivity"])
def test_each_command_removes_what_a_kill_left(command, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "plots/.tmp-99-0123abcd").write_text("half")
    words = {
        "recipe": [*TINY, "--out", run, "--resume"],
        "compare": ["compare", run, "--methods", "ce"],
        "sensitivity": ["sensitivity", run, "--methods", "max_norm"],
    }[command]
    done = ltlearn(*words, "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(run.rglob(".*"))


def test_predict_removes_what_a_kill_left_of_its_table(finished, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.tmp-99-0123abcd").write_text("half")
    (tmp_path / "out/.tmp-mine").write_text("a user's")
    words = ["predict", finished, tmp_path / "x.png", "--csv", tmp_path / "out/p.csv"]
    assert ltlearn(*words).returncode == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".tmp-mine", "p.csv"]
    assert len((tmp_path / "out/p.csv").read_text().splitlines()) == 2


def test_links_in_a_received_run_are_refused(finished, tmp_path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    shutil.copytree(finished, run)
    (victim / "epoch").mkdir(parents=True)
    (victim / "compare_norms.png").write_text("mine")
    (victim / "epoch/epoch-00001.json").write_text("mine")
    shutil.rmtree(run / "plots")
    (run / "plots").symlink_to(victim)
    done = ltlearn("compare", run, "--methods", "ce", "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and str(run / "plots") in done.stderr
    (run / "checkpoints/seed0-stage1").symlink_to(victim / "epoch")
    done = ltlearn(*TINY, "--out", run, "--resume", "--quiet")
    assert done.returncode == 2 and "seed0-stage1 is a link" in done.stderr
    assert (victim / "compare_norms.png").read_text() == "mine"
    assert {p.name for p in victim.iterdir()} == {"compare_norms.png", "epoch"}
    assert [p.name for p in (victim / "epoch").iterdir()] == ["epoch-00001.json"]


def test_a_run_that_another_process_writes_is_refused(finished, tmp_path):
    code = """if True:
        import sys, time
        from ltlearn.utils.run_folder import Run
        with Run(sys.argv[1]).lock():
            print("ready", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", code, finished], env=ENV, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    try:
        done = ltlearn(*TINY, "--out", finished, "--resume", "--quiet")
        assert done.returncode == 2
        assert f"in use by process {child.pid} on " in done.stderr and "--out" in done.stderr
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "finished"


def test_another_number_of_threads_is_reported(finished, tmp_path, monkeypatch):
    import torch

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    done = ltlearn(*TINY, "--out", run, "--resume")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "number of threads" in line]
    assert len(lines) == 1 and "was 1 " in lines[0] and "is 7 " in lines[0]
