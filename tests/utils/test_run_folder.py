import dataclasses
import enum
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ltlearn.errors import UserError
from ltlearn.utils import atomic, run_names
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.run_folder import Run, waits_for_run

ROOT = Path(__file__).parents[2]
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, "r", out=tmp_path / "run")


def figure():
    from matplotlib.figure import Figure

    fig = Figure(figsize=(1, 1))
    fig.subplots().plot([0, 1])
    return fig


WRITERS = {
    "write_text": lambda run, name: run.write_text(name, "new"),
    "write_json": lambda run, name: run.write_json(name, {"a": 1}),
    "write_csv": lambda run, name: run.write_csv(name, [{"a": 1}]),
    "save_npz": lambda run, name: run.save_npz(name, a=np.zeros(100_000)),
    "save_tensors": lambda run, name: run.save_tensors(name, {"a": torch.zeros(100_000)}),
    "save_figure": lambda run, name: run.save_figure(name, figure()),
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def files(run):
    return sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file())


# the folder


def test_create_names_by_time_and_never_twice(tmp_path, monkeypatch):
    class Noon(datetime):
        @classmethod
        def now(cls):
            return cls(2031, 2, 3, 12, 0, 5)

    monkeypatch.setattr(run_names, "datetime", Noon)
    made = [Run.create(tmp_path / "new" / "runs", "digits_lt").path for _ in range(3)]
    stem = tmp_path / "new" / "runs" / "digits_lt-20310203-120005"
    assert [str(path) for path in made] == [str(stem), f"{stem}-2", f"{stem}-3"]
    assert all(path.is_dir() and not any(path.iterdir()) for path in made)


def test_out_is_the_folder_itself(tmp_path):
    assert Run.create(tmp_path / "unused", "r", out=tmp_path / "a/b").path == tmp_path / "a/b"
    assert not (tmp_path / "unused").exists()
    Run.create(tmp_path, "r", out=tmp_path / "a/b")  # it is there, and empty


def test_out_that_is_not_empty(tmp_path):
    (tmp_path / "metrics.csv").write_text("a\n")
    with pytest.raises(UserError, match=rf"{tmp_path} .*resume=True.* out\."):
        Run.create(tmp_path, "r", out=tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path} .*manifest.json.* out\."):
        Run.create(tmp_path, "r", out=tmp_path, resume=True)
    (tmp_path / "manifest.json").write_text("{}")
    assert Run.create(tmp_path, "r", out=tmp_path, resume=True).path == tmp_path
    assert (tmp_path / "metrics.csv").read_text() == "a\n"


def test_remove_if_empty_removes_only_what_create_made(tmp_path):
    made = Run.create(tmp_path, "r", out=tmp_path / "new")
    made.write_json("manifest.json", {})
    made.remove_if_empty()
    assert not made.path.exists()
    (tmp_path / "own").mkdir()
    own = Run.create(tmp_path, "r", out=tmp_path / "own")
    own.write_json("manifest.json", {})
    own.remove_if_empty()
    assert list((tmp_path / "own").iterdir()) == []
    own.write_json("manifest.json", {})
    Run.create(tmp_path, "r", out=tmp_path / "own", resume=True).remove_if_empty()
    assert files(own) == ["manifest.json"]


def test_resume_goes_on_in_the_newest_run_of_that_name(tmp_path, caplog):
    for name in (
        "a-20300101-000000-9",
        "a-20300101-000000-10",
        "a-20291231-235959",
        "ab-20310101-000000",
        "a-b-20310101-000000",
        "a-latest",
    ):
        (tmp_path / name).mkdir()
    assert Run.create(tmp_path, "a", resume=True).path.name == "a-20300101-000000-10"
    assert not caplog.records
    started = Run.create(tmp_path, "c", resume=True).path
    assert re.fullmatch(r"c-\d{8}-\d{6}", started.name)
    assert "nothing to resume" in caplog.text


def test_the_newest_run_is_known_after_the_clock_went_back(tmp_path, monkeypatch):
    class Clock(datetime):
        hour = 2

        @classmethod
        def now(cls):
            return cls(2031, 10, 26, cls.hour, 30, 0)

    monkeypatch.setattr(run_names, "datetime", Clock)
    summer = Run.create(tmp_path, "a").path
    Clock.hour = 1
    winter = [Run.create(tmp_path, "a").path for _ in range(2)]
    assert Run.create(tmp_path, "a", resume=True).path == winter[1] != summer
    assert Run.create(tmp_path, "b").path.name == "b-20311026-013000", "other runs do not matter"
    Clock.hour = 4
    later = Run.create(tmp_path, "a").path
    assert Run.create(tmp_path, "a", resume=True).path == later
    assert later.name == "a-20311026-043000"


def test_resume_removes_half_written_files_and_nothing_else(run):
    run.write_text("checkpoints/a.txt", "kept")
    run.write_json("manifest.json", {})
    for name in (".tmp-1-0123abcd", "checkpoints/.tmp-23-0123abcd"):
        (run.path / name).write_text("half")
    for name in (".tmp-mine", "x.tmp-1"):
        (run.path / name).write_text("kept")
    Run.create(run.path.parent, "r", out=run.path, resume=True)
    assert files(run) == [".tmp-mine", "checkpoints/a.txt", "manifest.json", "x.tmp-1"]


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_where_the_folder_should_be(tmp_path, inside):
    file = tmp_path / "taken"
    file.write_text("")
    for arguments in ({"out": file / inside}, {"runs_path": file / inside}):
        with pytest.raises(UserError, match="file.* out") as caught:
            Run.create(**{"runs_path": tmp_path, "name": "r", **arguments})
        assert str(file) in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_not_even_root_can_make():
    with pytest.raises(UserError, match=r"/proc/ltlearn/run .*No such file"):
        Run.create("runs", "r", out="/proc/ltlearn/run")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch, code):
    def refuse(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(atomic, "open", refuse, raising=False)
    with pytest.raises(UserError) as caught:
        Run.create(tmp_path, "r", out=tmp_path / "run")
    assert os.strerror(code) in str(caught.value)
    assert str(tmp_path / "run") in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0"])
def test_a_name_that_is_no_file_name(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        Run.create(tmp_path, name)


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "."])
def test_nothing_is_written_outside_the_folder(run, name):
    with pytest.raises(ValueError, match="name"):
        run.write_text(name, "x")


def test_a_link_that_leads_out_is_not_written_through(run, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "norms.png").write_text("mine")
    (run.path / "plots").symlink_to(victim)
    (run.path / "file").symlink_to(victim / "norms.png")
    (run.path / "gone").symlink_to(victim / "nothing")
    for name in ("plots/norms.png", "plots/deep/norms.png", "file", "gone"):
        for write in WRITERS.values():
            with pytest.raises(UserError, match=rf"{run.path / name.split('/')[0]} is a link"):
                write(run, name)
    assert [p.name for p in victim.iterdir()] == ["norms.png"]
    assert (victim / "norms.png").read_text() == "mine"


def test_links_inside_a_run_and_to_a_run_are_fine(run, tmp_path):
    (run.path / "real").mkdir()
    (run.path / "plots").symlink_to("real")
    run.write_text("plots/a", "x")
    (tmp_path / "other name").symlink_to(run.path)
    Run(tmp_path / "other name").write_text("plots/b", "y")
    assert sorted(p.name for p in (run.path / "real").iterdir()) == ["a", "b"]


def test_half_written_files_are_not_removed_through_links(run, tmp_path):
    (tmp_path / "victim").mkdir()
    left = tmp_path / "victim/.tmp-1-0123abcd"
    left.write_text("another run writes this")
    (run.path / "plots").symlink_to(left.parent)
    with run.lock():
        assert left.exists()


# two processes


def hold(path, fork=False):
    """Start a process that holds the lock of a run; return it and the pid of the one it forks."""
    code = """if True:
        import os, sys, time
        from ltlearn.utils.run_folder import Run
        with Run(sys.argv[1]).lock():
            worker = os.fork() if sys.argv[2] == "True" else -1
            if worker <= 0:  # the worker, once the hooks after its fork have run
                print(os.getpid(), flush=True)
            time.sleep(60)
    """
    words = [sys.executable, "-c", code, path, str(fork)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
    return child, int(child.stdout.readline())


def test_a_second_process_is_refused_and_a_kill_frees_the_run(run):
    run.write_json("manifest.json", {})
    child, _ = hold(run.path)
    try:
        words = rf"{run.path} is in use by process {child.pid} on {socket.gethostname()}: .* out\."
        with pytest.raises(UserError, match=words), run.lock():
            pass
        with pytest.raises(UserError, match=words):
            Run.create(run.path.parent, "r", out=run.path, resume=True)
        waits = []
        with run.lock(on_wait=lambda text: (waits.append(text), child.kill())):
            assert len(waits) == 1 and f"process {child.pid}" in waits[0]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert files(run) == ["manifest.json"]


def test_a_study_waits_for_another_process(run, caplog):
    child, _ = hold(run.path)
    stop = threading.Timer(0.5, child.kill)
    stop.start()
    try:
        assert waits_for_run(lambda run, word: word)(run, "done") == "done"
        assert child.wait() == -signal.SIGKILL
        assert f"{run.path} is in use by process {child.pid} on" in caplog.text
    finally:
        stop.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def test_locks_nest_in_a_thread_and_exclude_other_threads(run):
    refused = []

    def work():
        try:
            with Run(run.path).lock():
                pass
        except UserError as error:
            refused.append(error)

    with run.lock():
        with Run(run.path).lock():
            pass
        assert files(run) == [".lock"], "the inner block keeps the lock"
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(refused) == 1 and files(run) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_that_outlives_a_killed_process_does_not_hold_the_lock(run):
    """Processes that read images live on for seconds."""
    child, worker = hold(run.path, fork=True)
    child.kill()
    child.wait()
    try:
        os.kill(worker, 0)
        with run.lock():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        child.stdout.close()
    assert files(run) == []


def test_a_disk_without_locks_is_used_without(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ltlearn.utils.locks.FileLock.acquire", refuse)
    monkeypatch.setattr(atomic, "lock_descriptor", refuse)
    with run.lock():
        run.write_text("file", "new")
    assert files(run) == ["file"]


def test_only_files_of_killed_processes_are_removed(run):
    with replaced_file(run.path / "file") as file:
        (run.path / ".tmp-1-0123abcd").write_text("left by a kill")
        with run.lock():
            pass
        file.write(b"whole")
    assert files(run) == ["file"] and (run.path / "file").read_text() == "whole"


# atomic writing


@each_writer
def test_a_writer_makes_sub_folders_keeps_the_umask_and_leaves_one_file(run, write):
    old = os.umask(0o027)
    try:
        path = write(run, "plots/deep/file")
    finally:
        os.umask(old)
    assert path == run.path / "plots/deep/file"
    assert files(run) == ["plots/deep/file"]
    assert path.stat().st_size > 0
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o640


@each_writer
def test_a_file_is_on_disk_before_it_takes_the_name(run, write, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append((a, b)), replace(a, b)))
    write(run, "file")
    assert calls[0] == "fsync"
    temporary, target = calls[1]
    assert target == run.path / "file"
    assert temporary.parent == run.path and temporary.name.startswith(".tmp-")


@needs_dev_full
@each_writer
def test_a_full_disk_leaves_the_old_file_and_one_sentence(run, write, monkeypatch):
    (run.path / "file").write_text("old")
    opened = []

    def full(path, mode="r", *args, **kwargs):
        if "x" not in mode:
            return open(path, mode, *args, **kwargs)
        opened.append(open(path, mode))  # the temporary name exists, as it would
        opened[-1].close()
        return open("/dev/full", "wb")

    monkeypatch.setattr(atomic, "open", full, raising=False)
    with pytest.raises(UserError) as caught:
        write(run, "file")
    for part in (str(run.path / "file"), "full", "resume=True"):
        assert part in str(caught.value)
    assert opened
    assert files(run) == ["file"]
    assert (run.path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, ("full", "resume=True")),
        (errno.EDQUOT, ("quota", "resume=True")),
        (errno.EROFS, ("read-only", "another out")),
        (errno.EACCES, ("permission", "another out")),
        (errno.EPERM, ("permission", "another out")),
        (errno.EFBIG, ("larger than the system allows", "resume=True")),
        (errno.EIO, (os.strerror(errno.EIO), "resume=True")),
        (errno.ESTALE, (os.strerror(errno.ESTALE), "resume=True")),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_causes_of_a_failed_write(run, monkeypatch, code, words, call):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    run.write_text("file", "old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError) as caught:
        run.write_text("file", "new")
    assert all(word in str(caught.value) for word in (str(run.path / "file"), *words))
    assert files(run) == ["file"]
    assert (run.path / "file").read_text() == "old"


def test_an_error_of_another_file_passes_unchanged(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"), replaced_file(run.path / "file"):
        open(tmp_path / "nothing")
    assert files(run) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    code = """if True:
        import sys
        from ltlearn.utils.run_folder import Run
        run = Run(sys.argv[1])
        print("ready", flush=True)
        for i in range(10**9):
            run.write_json("file.json", {"i": i, "filler": "x" * 200_000, "again": i})
    """
    for delay in (0.02, 0.05, 0.11):
        child = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE
        )
        child.stdout.readline()
        deadline = time.monotonic() + 30
        while not (tmp_path / "file.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        found = json.loads((tmp_path / "file.json").read_text())
        assert found["i"] == found["again"] and len(found["filler"]) == 200_000
    (tmp_path / "manifest.json").write_text("{}")
    run = Run.create(tmp_path, "r", out=tmp_path, resume=True)
    assert files(run) == ["file.json", "manifest.json"]


# an interrupt


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_a_write(run, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (interrupt(), fsync(fd)))
    with pytest.raises(KeyboardInterrupt):
        run.write_text("file", "new")
    assert files(run) == ["file"]
    assert (run.path / "file").read_text() == "new"


def test_deferred_interrupt_does_nothing_in_another_thread(run):
    errors = []

    def work():
        try:
            run.write_text("file", "new")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert files(run) == ["file"]


# the content of files


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Inner:
    path: Path
    value: object


def test_json_keeps_order_and_knows_our_types(run):
    run.write_json(
        "a/manifest.json",
        {
            "z": 1,
            "nan": float("nan"),
            "inf": [float("inf"), np.float32("-inf"), torch.tensor(float("nan"))],
            "a": (np.int64(3), np.float32(0.5), np.bool_(True), np.str_("é")),
            "tensor": torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True),
            "array": np.arange(4).reshape(2, 2),
            "inner": Inner(Path("/x/y"), {Path("k"): torch.tensor([1, 2])}),
            "set": {3, 1},
            "day": date(2031, 2, 3),
            "colour": Colour.RED,
            1: None,
        },
    )
    assert list(run.read_json("a/manifest.json").items()) == [
        ("z", 1),
        ("nan", None),
        ("inf", [None, None, None]),
        ("a", [3, 0.5, True, "é"]),
        ("tensor", 2.5),
        ("array", [[0, 1], [2, 3]]),
        ("inner", {"path": "/x/y", "value": {"k": [1, 2]}}),
        ("set", [1, 3]),
        ("day", "2031-02-03"),
        ("colour", "red"),
        ("1", None),
    ]
    assert "é" in (run.path / "a/manifest.json").read_text(encoding="utf-8")


def test_json_takes_pydantic_models_and_odd_file_names(run):
    from pydantic import BaseModel

    class Model(BaseModel):
        path: Path = Path(os.fsdecode(b"/data/\xff"))

    run.write_json("m.json", Model())
    assert run.read_json("m.json") == {"path": "/data/\udcff"}


def test_json_refuses_the_rest_and_keeps_the_old_file(run):
    run.write_json("a.json", 1)
    with pytest.raises(TypeError, match="cannot write a object as JSON"):
        run.write_json("a.json", {"x": [object()]})
    assert run.read_json("a.json") == 1


def test_reading_missing_or_damaged_files(run):
    (run.path / "bad").write_text('{"a": 1')
    for read in (run.read_json, run.load_tensors):
        with pytest.raises(UserError, match="nothing is missing"):
            read("nothing")
        with pytest.raises(UserError, match="bad is damaged"):
            read("bad")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "is_file", "read_bytes"])
def test_the_cause_of_a_failed_read(run, monkeypatch, code, call):
    run.save_tensors("w", {"a": torch.zeros(1)})

    def fail(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, call, fail)
    checksum = "0" * 64 if call == "read_bytes" else None
    with pytest.raises(UserError, match=f"{run.path / 'w'} .*{os.strerror(code)}"):
        run.load_tensors("w", checksum=checksum)


def test_csv_round_trip(run):
    assert run.read_csv("metrics.csv") == []
    rows = [
        {"epoch": 0, "loss": torch.tensor(0.5), "note": 'a, "b"\nc'},
        {"note": None, "epoch": np.int64(1), "loss": float("nan")},
    ]
    assert run.write_csv("metrics.csv", rows).read_bytes() == (
        b'epoch,loss,note\n0,0.5,"a, ""b""\nc"\n1,nan,\n'
    )
    assert run.read_csv("metrics.csv") == [
        {"epoch": "0", "loss": "0.5", "note": 'a, "b"\nc'},
        {"epoch": "1", "loss": "nan", "note": ""},
    ]


@pytest.mark.parametrize("row", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 2}])
def test_csv_refuses_rows_with_other_columns(run, row):
    with pytest.raises(ValueError, match=r"t.csv .*\['a', 'b'\]"):
        run.write_csv("t.csv", [{"a": 0, "b": 0}, row])
    assert files(run) == []


def test_npz_round_trip(run):
    path = run.save_npz(
        "p.npz",
        logits=torch.arange(6.0, requires_grad=True).reshape(2, 3),
        half=torch.ones(2, dtype=torch.bfloat16),
        names=np.array(["a", "é"]),
        scalar=3,
    )
    with np.load(path, allow_pickle=False) as arrays:
        assert list(arrays) == ["logits", "half", "names", "scalar"]
        np.testing.assert_array_equal(arrays["logits"], [[0, 1, 2], [3, 4, 5]])
        assert arrays["half"].dtype == np.float32
        assert arrays["names"].tolist() == ["a", "é"]
        assert arrays["scalar"] == 3


def test_npz_refuses_objects(run):
    with pytest.raises(TypeError, match="'a' must hold numbers or text"):
        run.save_npz("p.npz", a=np.array([object()]))
    assert files(run) == []


def test_tensors_round_trip(run):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "same": base,
        "row": base[1],
        "strided": base.t(),
        "parameter": torch.nn.Parameter(base[:, 0]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "empty too": torch.empty(0),
    }
    run.save_tensors("c/w.safetensors", tensors, {"epoch": "3"})
    loaded = run.load_tensors("c/w.safetensors")
    assert set(loaded) == set(tensors)
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value), key
    with safe_open(run.path / "c/w.safetensors", "pt") as file:
        assert file.metadata() == {"epoch": "3"}


def test_tensors_refuse_what_safetensors_cannot_hold(run):
    with pytest.raises(TypeError, match=r"tensors\['a'\] must be a dense tensor, got list"):
        run.save_tensors("w", {"a": [1]})
    with pytest.raises(TypeError, match=r"tensors\['a'\] .* got torch.sparse_coo"):
        run.save_tensors("w", {"a": torch.eye(2).to_sparse()})
    with pytest.raises(TypeError, match=r"metadata\['a'\] must be text, got int"):
        run.save_tensors("w", {}, {"a": 1})


def test_figures_have_the_format_of_their_name(run):
    assert run.save_figure("a.png", figure()).read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in run.save_figure("a.svg", figure()).read_bytes()
