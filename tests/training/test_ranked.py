"""Two ranks train as one process does. One pair of processes runs everything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import ranked_program as program

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """Folder, results of both ranks and of this process, and what the command printed."""
    folder = tmp_path_factory.mktemp("ranked")
    program.make_folder(folder / "images")
    program.stopped(folder / "stopped by one")
    copy = shutil.copytree(folder / "stopped by one", folder / "again")
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "LTLEARN_CHECKPOINT_SECONDS": "0",
        "LTLEARN_CACHE_PATH": str(folder / "cache"),
    }  # fmt: skip
    ended = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
            "--master_addr", "127.0.0.1", "--master_port", "0", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
            "-m", "tests.training.ranked_program", str(folder),
        ],
        env=env, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (folder / "rank0.pt").is_file(), ended.stderr[-3000:]
    ranks = [torch.load(folder / f"rank{r}.pt") for r in range(2)]
    own = program.results(folder)
    own["resumed by two"] = program.resumed(copy)
    ranks = [{**r, "resumed by one": program.resumed(folder / "stopped by two")} for r in ranks]
    own["resumed by one"] = own["resumed by two"]
    return folder, ranks, own, ended


def test_two(ranked):
    folder, ranks, own, ended = ranked
    for name, values in own.items():
        for key, value in values.items():
            d = [(r[name][key] - value).abs().nan_to_num().max().item() for r in ranks]
            print(f"{name:30s} {key:10s} {d}")
    print(ended.stdout[-2500:])
    print(ended.stderr[-6000:])
    assert 0
