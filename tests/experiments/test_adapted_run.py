"""A run whose stage 1 trains adapters: its files open, and later stages go on from them."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltlearn import UserError
from ltlearn.experiments.predictor import Predictor
from ltlearn.models.adapters import ADAPTFORMER
from tests.callbacks.helpers import make_vit_learner
from tests.helpers import ltlearn
from tests.training.ranked_program import make_folder

WORDS = [
    "train", "images", "--arch", "vit_two_blocks", "--size", "8", "--no-pretrained", "--epochs",
    "2", "--device", "cpu", "--set", "stage2.epochs=1", "--out", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    make_folder(folder / "images")
    done = ltlearn(
        *WORDS, "--stage1", "adaptformer", "--set", "stage1.bottleneck=3", "--method", "crt",
        "--grad-checkpointing", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"trained: [\d,]+ of [\d,]+ parameters \(\d", done.stderr)
    return folder


def test_a_run_predicts_compares_and_resumes(folder):
    state = load_file(folder / "run/checkpoints/seed0-stage1.safetensors")
    assert state["backbone.blocks.1.adapter.down.weight"].shape == (3, 24)
    manifest = json.loads((folder / "run/manifest.json").read_text())
    assert '"grad_checkpointing": true' in json.dumps(manifest)
    first, crt = (Predictor(folder / "run", method) for method in ("adaptformer", "crt"))
    images = sorted(map(str, (folder / "images").rglob("*.png")))[::8]
    for predictor in (first, crt):
        assert len(list(predictor.predict(images))) == len(images)
    done = ltlearn("compare", "run", "--methods", "los", "--device", "cpu", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Predictor(folder / "run", "los").method == "los"
    assert "AdaptFormer + LOS" in done.stdout


def test_a_file_of_another_trunk_is_refused(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    facts = json.loads((run / "model.json").read_text())
    name = "checkpoints/seed0-stage1.safetensors"
    learn = make_vit_learner(depth=1)
    for site in ADAPTFORMER.sites(learn.model.backbone).values():
        ADAPTFORMER.add(site, 3)
    state = {k: v.contiguous() for k, v in learn.model.state_dict().items()}
    save_file(state, run / name)
    assert facts["arch"] == "vit_two_blocks"
    with pytest.raises(UserError, match="seed0-stage1.*not those of vit_two_blocks"):
        Predictor(run, "adaptformer")


def test_a_method_without_its_blocks_ends_in_one_sentence(tmp_path):
    make_folder(tmp_path / "images")
    words = [word if word != "vit_two_blocks" else "resnet8_cifar" for word in WORDS]
    done = ltlearn(*words, "--stage1", "lora", "--method", "crt", cwd=tmp_path)
    assert done.returncode == 2 and "bitfit, last_block, full" in done.stderr.splitlines()[-1]


def test_a_stage_1_that_was_stopped_is_loaded_with_its_adapters(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    shutil.copytree(folder / "images", tmp_path / "images")
    before = load_file(run / "checkpoints/seed0-crt.safetensors")
    (run / "checkpoints/seed0-crt.json").unlink()
    done = ltlearn(
        *WORDS, "--stage1", "adaptformer", "--set", "stage1.bottleneck=3", "--method", "crt",
        "--grad-checkpointing", "--resume", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stage 2" in done.stderr and "AdaptFormer\n" not in done.stderr
    after = load_file(run / "checkpoints/seed0-crt.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
