"""Experiment trackers: fastai's callbacks for TensorBoard and Weights & Biases on both stages.

Nothing here needs an account or the network. Each test reads back what was written to disk.
"""

import json
import logging
import math
import struct
import time

import pytest
from fastai.callback.tensorboard import TensorBoardCallback

from ltlearn import SAMN
from ltlearn.names import FIGURES
from tests.callbacks.helpers import make_dls, make_lt_learner

COUNTS = [120, 24, 4]  # a class of each shot group


def make_learner(**kwargs):
    return make_lt_learner(make_dls(counts=COUNTS, bs=32), **kwargs)


def read_events(folder):
    """Return the scalars of TensorBoard's event files: tag to {step: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    scalars = {t: {e.step: e.value for e in events.Scalars(t)} for t in tags["scalars"]}
    return scalars, tags


def after_steps(trajectory, name):
    """Return a figure of each epoch; stage 2 evaluates before the first step, too."""
    return [v for e, v in zip(trajectory["epoch"], trajectory[name], strict=True) if e > 0]


def check_scalars(scalars, trajectory, epochs):
    """Compare the figures of each epoch with those that the trajectory has."""
    for name in FIGURES:
        assert list(scalars[name].values()) == pytest.approx(after_steps(trajectory, name)), name
        assert len(scalars[name]) == epochs
    assert len(scalars["train_loss"]) >= epochs and len(scalars["valid_loss"]) == epochs
    assert all(math.isfinite(v) for v in scalars["train_loss"].values())


def test_tensorboard_on_both_stages(tmp_path):
    learn = make_learner()
    learn.fit_stage1(2, cbs=TensorBoardCallback(tmp_path / "stage1"))
    scalars, tags = read_events(tmp_path / "stage1")
    check_scalars(scalars, learn.trajectory, 2)
    assert tags["graph"], "the model was traced"
    learn.retrain_classifier(
        3, cbs=[SAMN(), TensorBoardCallback(tmp_path / "stage2", log_preds=False)]
    )
    scalars, _ = read_events(tmp_path / "stage2")
    check_scalars(scalars, learn.trajectory, 3)
    rates = list(scalars["lr_0"].values())
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1], "the cosine schedule"


def test_a_logger_of_predictions_finds_none_in_features(tmp_path, caplog):
    learn = make_learner()
    board = TensorBoardCallback(tmp_path, trace_model=False)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        learn.retrain_classifier(1, cbs=board)
    check_scalars(read_events(tmp_path)[0], learn.trajectory, 1)
    assert "TensorBoardCallback" in caplog.text and "views=0" in caplog.text
    assert board.log_preds, "another fit logs them"


def test_predictions_are_logged_on_images(tmp_path):
    learn = make_learner()
    learn.retrain_classifier(1, views=0, cbs=TensorBoardCallback(tmp_path, trace_model=False))
    assert read_events(tmp_path)[1]["images"]


def test_a_logger_of_the_learner_serves_both_stages(tmp_path):
    board = TensorBoardCallback(tmp_path, trace_model=False)
    learn = make_learner(cbs=board)
    learn.fit_stage1(1)
    learn.retrain_classifier(1)
    assert learn.tensor_board is board and board.learn is learn and board.log_preds
    assert len(list(tmp_path.glob("events*"))) == 2, "an event file for each stage"


def read_records(file):
    """Yield the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    content, block, place, parts = file.read_bytes(), 1 << 15, 7, []
    while place + 7 <= len(content):
        left = block - place % block
        if left < 7:  # a record's header is never split
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if place > len(content):  # half-written
            return
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def read_offline_run(folder, epochs, seconds=60):
    """Return the rows that a run of Weights & Biases logged, and its configuration."""
    from wandb.proto.wandb_internal_pb2 import Record

    end = time.monotonic() + seconds
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    while True:
        rows, config = [], {}
        for record in map(Record.FromString, read_records(file)):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                pairs = ((i.key or ".".join(i.nested_key), i.value_json) for i in items)
                rows.append({key: json.loads(value) for key, value in pairs})
            elif kind == "config":
                config |= {i.key: json.loads(i.value_json) for i in record.config.update}
        # Another process writes the file, and still does when the run has ended here.
        if sum("valid_loss" in row for row in rows) >= epochs or time.monotonic() > end:
            return rows, config
        time.sleep(0.1)


# In a process of its own: Weights & Biases keeps settings and a service for the whole process.
@pytest.mark.slow
def test_weights_and_biases_offline_on_both_stages(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = wandb.Settings(console="off", silent=True, disable_git=True)
    learn, trajectories = make_learner(), []
    with wandb.init(project="ltlearn-test", dir=tmp_path, settings=settings):
        learn.fit_stage1(2, cbs=WandbCallback(log_preds=False))
        trajectories.append(learn.trajectory)
        learn.retrain_classifier(2, cbs=[SAMN(), WandbCallback()])
        trajectories.append(learn.trajectory)
    rows, config = read_offline_run(tmp_path, epochs=4)
    for name in FIGURES:
        logged = [row[name] for row in rows if name in row]
        expected = [v for t in trajectories for v in after_steps(t, name)]
        assert logged == pytest.approx(expected), name
    epochs = [row["epoch"] for row in rows if "valid_loss" in row]
    assert epochs == [1, 2, 3, 4], "the second stage goes on counting"
    assert all(math.isfinite(row["train_loss"]) for row in rows if "train_loss" in row)
    assert config["arch"] == "resnet8_cifar" and "split" in config
