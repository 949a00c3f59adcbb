"""Two ranks train as one process does. One pair of processes runs all trainings."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai.learner import load_learner

from ltlearn.data.samplers import SAMPLERS
from tests.training import ranked_program as program

ROOT = Path(__file__).parents[2]
EXACT = ("batches", "figures", "report")
LAUNCH = (
    "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
    "--local-addr=127.0.0.1",
)  # fmt: skip
SAME_AS_ONE = [
    *(f"sampler {name}" for name in SAMPLERS), *program.CALLBACKS, *program.EXPERTS, "weighted",
    "AdaptFormer", "LoRA", "vit", "after an error", "frozen", "smaller than the ranks", "files 0",
    "files 1", "files glmc", "features", "probe", "stage 2, 1 views", "stage 2, 0 views", "test",
    "resumed by one", "resumed by two",
]  # fmt: skip


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """Return the folder, the results of each rank and of this process, and the ended launcher."""
    folder = tmp_path_factory.mktemp("ranked")
    program.make_folder(folder / "images")
    program.stopped(folder / "stopped by one")
    copy = shutil.copytree(folder / "stopped by one", folder / "copy")
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "LTLEARN_CHECKPOINT_SECONDS": "0", "LTLEARN_CACHE_PATH": str(folder / "cache"),
    }  # fmt: skip
    words = ["torch.distributed.run", *LAUNCH, "-m", program.__name__, str(folder)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", *words],
        env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        # This process trains while the others import torch.
        own = program.results(folder)
        own["resumed by two"] = own["resumed by one"] = program.resumed(copy)
        output = launcher.communicate(timeout=300)
    finally:
        launcher.terminate()
    ended = subprocess.CompletedProcess(words, launcher.returncode, *output)
    assert (folder / "rank1.pt").is_file(), ended.stderr[-3000:]
    ranks = [torch.load(folder / f"rank{r}.pt") for r in range(2)]
    by_one = program.resumed(folder / "stopped by two")
    ranks = [{**found, "resumed by one": by_one} for found in ranks]
    return folder, ranks, own, ended


@pytest.mark.parametrize("name", SAME_AS_ONE)
def test_two_ranks_train_as_one_process(ranked, name):
    _, ranks, own, _ = ranked
    for key, expected in own[name].items():
        first, second = (found[name][key] for found in ranks)
        torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
        tolerance = 0 if key in EXACT else 1e-5
        torch.testing.assert_close(first, expected, rtol=0, atol=tolerance, equal_nan=True)


def test_the_trainings_differ(ranked):
    """Otherwise the comparisons above would hold for any code."""
    own = ranked[2]
    weights = [own[name]["weights"] for name in ("plain", "glmc", "mixup", "cutmix", "sam", "ema")]
    assert all((weights[0] - other).abs().max() > 1e-3 for other in weights[1:])
    assert own["samn"]["figures"].unique().numel() > 3


def test_batch_normalisation_has_the_statistics_of_a_part_and_ranks_agree(ranked):
    _, (first, second), own, _ = ranked
    for key, value in first["norm"].items():
        assert torch.equal(value, second["norm"][key])
    assert (first["norm"]["weights"] - own["norm"]["weights"]).abs().max() > 1e-5


def test_a_learner_that_is_exported_in_a_fit_loads_in_one_process(ranked):
    learn = load_learner(ranked[0] / "exported.pkl")
    name, _, _ = learn.predict(program.make_images(program.COUNTS, 8)[0][0])
    assert name in learn.dls.vocab


def test_a_model_that_hides_its_parameters_is_refused(ranked):
    for found in ranked[1]:
        assert re.search(r"use_reentrant=True.* 2 devices", found["refused"])


def test_torch_warns_of_no_strides(ranked):
    """Those of a class token differ in a dimension of size 1."""
    assert "strides" not in ranked[3].stderr


def test_the_command_prints_and_writes_once(ranked):
    folder, _, _, ended = ranked
    assert ended.stdout.count("protocol: clean") == 1
    assert ended.stderr.count("seed 0: stage 2") == 1
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["command"].startswith("torchrun --nproc_per_node 2 -m ltlearn recipe digits_lt")
    assert not list((folder / "run").rglob(".*"))


def test_a_rank_that_is_killed_ends_the_others_with_one_sentence(ranked):
    folder, _, _, ended = ranked
    killed = ended.stderr.rpartition("seed 0: stage 1")[2]
    # The launcher also sends SIGTERM to the others, which may come first.
    sentences = re.findall(r"^ltlearn: (.*)", killed, re.M)
    assert len(sentences) == 1
    assert re.match(r"another process .* 2 devices has ended|stopped[;.]", sentences[0])
    assert killed.count("Traceback") == 1  # the launcher's own
    assert ended.returncode
    assert list((folder / "killed").rglob("epoch-00001.json"))
