"""A run that is killed at any instant and goes on ends as one that was never stopped."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ltlearn.utils.run_folder import Run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

ROOT = Path(__file__).parents[2]
# A process that trains on request: importing takes longer than the training.
SERVER = """if True:
    import os, sys
    import ltlearn.experiments.runner
    from ltlearn.cli.app import main
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.environ["LTLEARN_CACHE_PATH"], *sys.argv[1:] = line.split()
            print(os.getpid(), flush=True)
            sys.stdin.close()
            main()
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
"""
WORDS = [
    "recipe", "digits_lt", "--seeds", "1", "--device", "cpu", "--precision", "fp32", "--quiet",
    "--set", "model.width=4", "--set", "stage1.epochs=6", "--set", "stage2.epochs=6",
    "--set", 'methods=["ce","lws","samn"]', "--set", "stage1.select=best",
]  # fmt: skip


class Server:
    """Starts runs in processes of their own, and kills them."""

    def __init__(self, folder):
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "NO_ALBUMENTATIONS_UPDATE": "1", "LTLEARN_CHECKPOINT_SECONDS": "0",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=open(folder / "stderr", "a"), text=True,
        )  # fmt: skip
        self.log = folder / "stderr"

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def run(self, out, kill_after=None, resume=True):
        """Return the exit status, negative for a kill, and the seconds it took."""
        words = [*WORDS, "--out", str(out), *["--resume"][:resume]]
        return self.call(f"{out}-cache", words, kill_after)

    def call(self, cache, words, kill_after=None):
        """Run any command; return as `run` does."""
        words = map(str, [cache, *words])
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        began, pid = time.monotonic(), int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        line = self.process.stdout.readline()
        while line and not line.strip().isdigit():
            line = self.process.stdout.readline()  # the table of a finished run
        return os.waitstatus_to_exitcode(int(line)), time.monotonic() - began


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()


def read_results(run):
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    weights = {p.name: Run(run).load_tensors(f"checkpoints/{p.name}")
               for p in (run / "checkpoints").glob("*.safetensors")}  # fmt: skip
    with np.load(run / "predictions.npz") as archive:
        return rows, weights, dict(archive)


def assert_readable(run):
    """All that stands under a final name is whole, at any instant."""
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.name.startswith(".tmp-"):
            continue
        if path.suffix == ".json":
            found = Run(run).read_json(name, sealed="checkpoints" in name)
            if path.name.startswith("epoch-"):
                weights = name.replace(".json", ".safetensors")
                Run(run).load_tensors(weights, checksum=found["tensors"])
        elif path.suffix == ".safetensors":
            Run(run).load_tensors(name)


def check_kills(server, tmp_path, kills, seed):
    code, seconds = server.run(tmp_path / "whole", resume=False)
    assert code == 0, server.log.read_text()
    whole = read_results(tmp_path / "whole")
    rng, done = random.Random(seed), 0
    attempt = 0
    while done < kills:
        attempt += 1
        run = tmp_path / f"killed{attempt}"
        # Late ones too: more than one kill a run, until it has come to its end.
        for part in range(3):
            share = rng.random() * (0.5 if part == 0 else 0.7)
            code, _ = server.run(run, kill_after=share * seconds, resume=part > 0)
            if code == 0:
                break
            assert code == -signal.SIGKILL, server.log.read_text()
            done += 1
            assert_readable(run)
            if done == kills or not (run / "manifest.json").exists():
                break
        if not (run / "manifest.json").exists():
            continue  # killed before there was a run
        if code != 0:
            code, _ = server.run(run)
        assert code == 0, server.log.read_text()
        rows, weights, arrays = read_results(run)
        assert rows == whole[0]
        assert weights.keys() == whole[1].keys()
        for name, tensors in weights.items():
            for key, value in tensors.items():
                assert value.equal(whole[1][name][key]), (name, key)
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, whole[2][key])
        assert not list(run.rglob(".tmp-*")) + list(Path(f"{run}-cache").rglob(".tmp-*"))
        assert not [p for p in (run / "checkpoints").iterdir() if p.is_dir()]
        assert json.loads((run / "manifest.json").read_text())["status"] == "finished"


def test_kills(server, tmp_path):
    check_kills(server, tmp_path, 3, seed=4)


@pytest.mark.slow
def test_many_kills(server, tmp_path):
    check_kills(server, tmp_path, 20, seed=1)


def check_compare_kills(server, tmp_path, kills, seed):
    run, cache = tmp_path / "run", tmp_path / "cache"
    assert server.run(run, resume=False)[0] == 0, server.log.read_text()
    words = ["compare", run, "--methods", "ce,crt,samn,tau_norm", "--device", "cpu", "--quiet"]

    def outcome():
        found = json.loads((run / "compare.json").read_text())
        return [{k: v for k, v in row.items() if k not in TIMES} for row in found["rows"]]

    code, seconds = server.call(tmp_path / "whole", words)
    assert code == 0, server.log.read_text()
    whole, rng, done = outcome(), random.Random(seed), 0
    while done < kills:
        for name in ("compare.json", "compare.md", "compare"):
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(cache, ignore_errors=True)
        code, _ = server.call(cache, words, kill_after=(0.3 + 0.7 * rng.random()) * seconds)
        done += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), server.log.read_text()
        assert server.call(cache, words)[0] == 0, server.log.read_text()
        assert outcome() == whole
        assert not [p for p in (*run.rglob(".*"), *cache.rglob(".*"), *cache.rglob("*.part-*"))]
        assert not list(cache.rglob("*.lock"))


# What differs from one process to the next.
TIMES = ("seconds", "stages", "trajectories")


@pytest.mark.slow
def test_many_kills_of_a_comparison(server, tmp_path):
    check_compare_kills(server, tmp_path, 8, seed=2)


def check_pairs(server, tmp_path, pairs, start, allowed):
    """Start two commands at a time; compare the runs with one that was alone."""
    other = Server(tmp_path)
    try:
        server.run(tmp_path / "alone", resume=False)
        rows, weights, _ = read_results(tmp_path / "alone")
        with ThreadPoolExecutor(2) as pool:
            for k in range(pairs):
                runs, ends = zip(*pool.map(start, (server, other), (k, k), "ab"), strict=True)
                assert sorted(ends) in allowed, server.log.read_text()
                for run in runs:
                    found = read_results(run)
                    assert found[0] == rows and found[1].keys() == weights.keys()
    finally:
        other.close()


@pytest.mark.slow
def test_pairs_of_commands_on_one_cache(server, tmp_path):
    """The second waits for the features of the first."""

    def start(one, k, name):
        run = tmp_path / f"{name}{k}"
        return run, one.call(tmp_path / f"cache{k}", [*WORDS, "--out", run])[0]

    check_pairs(server, tmp_path, 3, start, [[0, 0]])


@pytest.mark.slow
def test_pairs_of_commands_on_one_run(server, tmp_path):
    """One of them trains; the other is refused, or finds the run finished."""

    def start(one, k, name):
        return tmp_path / f"run{k}", one.run(tmp_path / f"run{k}")[0]

    check_pairs(server, tmp_path, 3, start, [[0, 0], [0, 2]])
