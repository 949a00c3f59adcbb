"""A damaged checkpoint: the one before is used, or an error is raised, and no code runs."""

import json
import logging
import os
import pickle
import random
import shutil

import pytest
import torch
from safetensors.torch import load, save

from ltlearn import Checkpoint, UserError
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.runner import run_recipe
from ltlearn.utils.run_folder import Run, checksum_of
from tests.callbacks.helpers import make_dls, make_lt_learner

EPOCHS, LAST, BEFORE = 4, 3, 2


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def train(checkpoint=None):
    learn = make_lt_learner(make_dls([16, 6, 4]))
    learn.fit_stage1(EPOCHS, 0.05, select="best", cbs=[checkpoint] if checkpoint else None)
    return learn


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    learn = train(Checkpoint(folder, min_seconds=0))
    return folder, dict(learn.model.state_dict())


def note_of(folder, epoch):
    return folder / f"epoch-{epoch:05d}.json"


def tensors_of(folder, epoch):
    return folder / f"epoch-{epoch:05d}.safetensors"


def flip(path, rng, bits=1):
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        position = rng.randrange(len(content))
        content[position] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def reseal(folder, epoch, change):
    """Change a note, or tensors, so that all checksums fit again."""
    run, name = Run(folder), f"epoch-{epoch:05d}"
    note = run.read_json(f"{name}.json", sealed=True)
    tensors = load((folder / f"{name}.safetensors").read_bytes())
    change(note, tensors)
    content = save(tensors)
    (folder / f"{name}.safetensors").write_bytes(content)
    note["tensors"] = checksum_of(content)
    run.write_json(f"{name}.json", note, sealed=True)


def a_key(tensors, *words):
    return next(k for k in sorted(tensors) if all(w in k for w in words))


def other_shape(*words):
    def change(note, tensors):
        tensors[a_key(tensors, *words)] = torch.zeros(3, 1)

    return change


def leave_out(*words):
    def change(note, tensors):
        del tensors[a_key(tensors, *words)]

    return change


def put(*keys, value):
    def change(note, tensors):
        for key in keys[:-1]:
            note = note[key]
        note[keys[-1]] = value

    return change


TENSORS = {
    "empty": lambda path, rng, harm: path.write_bytes(b""),
    "one byte": lambda path, rng, harm: path.write_bytes(b"\x80"),
    "half": lambda path, rng, harm: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no end": lambda path, rng, harm: path.write_bytes(path.read_bytes()[:-1]),
    "too long": lambda path, rng, harm: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit": lambda path, rng, harm: flip(path, rng),
    "many bits": lambda path, rng, harm: flip(path, rng, 100),
    "huge header": lambda path, rng, harm: path.write_bytes(b"\xff" * 16),
    "pickle": lambda path, rng, harm: path.write_bytes(pickle.dumps(Harm(harm))),
    "torch pickle": lambda path, rng, harm: torch.save({"model": Harm(harm)}, path),
    "gone": lambda path, rng, harm: path.unlink(),
}
NOTE = {
    **TENSORS,
    "list": lambda path, rng, harm: path.write_text("[1, 2]"),
    "null": lambda path, rng, harm: path.write_text("null"),
    "deep": lambda path, rng, harm: path.write_text("[" * 100_000),
    "no text": lambda path, rng, harm: path.write_bytes(b'{"a": "\xff\xfe"}'),
    "no seal": lambda path, rng, harm: path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"})
    ),
}
SEALED = {
    "weights": other_shape("model/", "conv1"),
    "head": other_shape("model/head.bias"),
    "momentum": other_shape("momentum_buffer"),
    "best": other_shape("best_state"),
    "random": other_shape("random/torch"),
    "python": other_shape("random/python"),
    "norms": other_shape("norms"),
    "a weight is gone": leave_out("model/head.weight"),
    "a momentum is gone": leave_out("momentum_buffer"),
    "a note is gone": lambda note, tensors: note["state"].pop("optimizer"),
    "state": put("state", value=[]),
    "seconds": put("seconds", value="long"),
    "endless seconds": put("seconds", value=10**400),
    "python's numbers": put("state", "random", "python", 0, value=10**400),
    "version": put("version", value=99),
    "epoch": put("epochs_done", value=1),
    "callbacks": put("state", "callbacks", value={}),
    "groups": put("state", "optimizer", "hypers", value=[]),
    "loaders": put("state", "loaders", value=[{}]),
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def check(folder, weights, caplog, epoch):
    """Go on; the good checkpoint (None: none) is used, with a warning, and the end is the same."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ltlearn"):
        checkpoint = Checkpoint(folder, resume=True, min_seconds=0)
        learn = train(checkpoint)
    assert learn.first_epoch == (epoch or 0)
    assert same(dict(learn.model.state_dict()), weights)
    assert learn.trajectory["epoch"] == list(range(1, EPOCHS + 1))
    assert caplog.records
    assert all("\n" not in r.getMessage() for r in caplog.records)
    if epoch is None:
        assert "starts anew" in caplog.text
    assert checkpoint.epochs() == [BEFORE, LAST]
    Checkpoint(folder).clear()


def prepare(made, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(made[0], folder)
    return folder, made[1], random.Random(7)


@pytest.mark.parametrize("how", TENSORS)
def test_damaged_tensors(how, made, tmp_path, caplog):
    folder, weights, rng = prepare(made, tmp_path)
    TENSORS[how](tensors_of(folder, LAST), rng, tmp_path / "harm")
    check(folder, weights, caplog, BEFORE)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("how", [k for k in NOTE if k not in ("gone", "no end")])
def test_a_damaged_note(how, made, tmp_path, caplog):
    folder, weights, rng = prepare(made, tmp_path)
    NOTE[how](note_of(folder, LAST), rng, tmp_path / "harm")
    check(folder, weights, caplog, BEFORE)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("how", SEALED)
def test_what_fits_its_checksum_but_not_the_training(how, made, tmp_path, caplog):
    folder, weights, _ = prepare(made, tmp_path)
    reseal(folder, LAST, SEALED[how])
    check(folder, weights, caplog, BEFORE)


def test_without_a_good_one_it_starts_anew(made, tmp_path, caplog):
    folder, weights, rng = prepare(made, tmp_path)
    flip(tensors_of(folder, LAST), rng)
    tensors_of(folder, BEFORE).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    check(folder, weights, caplog, None)
    assert not (tmp_path / "harm").exists()


def test_an_impossible_state_restores_nothing(made, tmp_path, caplog):
    for how in ("best", "random", "python", "callbacks", "momentum"):
        folder, weights, _ = prepare(made, tmp_path / how)
        for epoch in (BEFORE, LAST):
            reseal(folder, epoch, SEALED[how])
        check(folder, weights, caplog, None)


def test_random_bits_are_always_seen(made, tmp_path):
    """Each flipped bit is detected before the file is used."""
    folder, _, rng = prepare(made, tmp_path)
    run, name = Run(folder), note_of(folder, LAST).name
    checksum = run.read_json(name, sealed=True)["tensors"]
    for path in (note_of(folder, LAST), tensors_of(folder, LAST)):
        content = path.read_bytes()
        for _ in range(60):
            flip(path, rng)
            with pytest.raises(UserError, match="is damaged"):
                if path.suffix == ".json":
                    run.read_json(name, sealed=True)
                else:
                    run.load_tensors(path.name, checksum=checksum)
            path.write_bytes(content)


# ------------------------------------------------ the run around it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "run"
    go(folder, resume=False)
    return folder, Run(folder).load_tensors("checkpoints/seed0-samn.safetensors")


def go(folder, resume=True, **kwargs):
    values = ["model.width=4", "stage1.epochs=2", "stage2.epochs=2", "seeds=1"]
    recipe = load_recipe("digits_lt", values)
    run = Run.create(folder.parent, "r", folder, resume)
    return run_recipe(recipe, run, device="cpu", precision="fp32", **kwargs)


MANIFEST = {
    "empty": b"", "half": b'{"values": {"na', "list": b"[]", "null": b"null", "number": b"3",
    "values": b'{"values": [1]}', "no values": b"{}", "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("how", [*MANIFEST, "pickle"])
def test_a_damaged_manifest_is_reported(how, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    content = MANIFEST.get(how) if how != "pickle" else pickle.dumps(Harm(tmp_path / "harm"))
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest.json is damaged") as caught:
        go(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
    assert (folder / "manifest.json").read_bytes() == content


DAMAGE = ["bit of the record", "bit of the weights", "list", "empty", "pickle", "shape", "keys"]


@pytest.mark.parametrize(
    ("stage", "how"),
    [("samn", how) for how in DAMAGE] + [("stage1", "bit of the weights"), ("stage1", "shape")],
)
def test_a_damaged_stage_is_done_again(how, stage, finished, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    record = folder / f"checkpoints/seed0-{stage}.json"
    weights = record.with_suffix(".safetensors")
    rng = random.Random(3)
    if how == "bit of the record":
        flip(record, rng)
    elif how == "bit of the weights":
        flip(weights, rng)
    elif how == "list":
        record.write_text("[]")
    elif how == "keys":
        record.write_text("{}")
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "pickle":
        weights.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    else:
        tensors = load(weights.read_bytes())
        tensors["head.weight" if stage == "stage1" else "head.bias"] = torch.zeros(2, 2)
        content = save(tensors)
        weights.write_bytes(content)
        note = Run(folder).read_json(f"checkpoints/{record.name}", sealed=True)
        note["weights"] = checksum_of(content)
        Run(folder).write_json(f"checkpoints/{record.name}", note, sealed=True)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        go(folder)
    assert "This stage is trained again" in caplog.text
    assert not (tmp_path / "harm").exists()
    assert same(Run(folder).load_tensors("checkpoints/seed0-samn.safetensors"), finished[1])
