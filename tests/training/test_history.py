import csv
import logging
import math
import sys
import types

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelValidException
from fastai.callback.progress import CSVLogger
from fastai.metrics import accuracy

from ltlearn import SAMN, Checkpoint, UserError
from ltlearn.names import FIGURES
from ltlearn.training import history
from ltlearn.training.history import FlipAverage, Trajectory, head_norms
from ltlearn.training.logs import EpochLog, check_tensorboard
from tests.callbacks.helpers import COUNTS, Stop, make_learner, make_lt_learner


def trajectory_of(learn, **kwargs):
    def predict():
        # Not `get_preds`, which calls `before_fit` again.
        data = learn.dls.valid_ds
        with torch.no_grad():
            return learn.model.eval()(data.x), data.y

    return Trajectory(torch.tensor(COUNTS), predict=predict, **kwargs)


def test_epoch_0_comes_first_and_figures_are_those_of_the_model():
    learn = make_learner()
    start = (learn.get_preds()[0].argmax(1) == learn.get_preds()[1]).float().mean()
    trajectory = trajectory_of(learn)
    learn.fit(2, 0.05, cbs=trajectory)
    record = trajectory.record
    assert record["epoch"] == [0, 1, 2]
    assert record["loss"][0] is None and record["loss"][2] < record["loss"][1]
    assert record["all"][0] == pytest.approx(start.item())
    preds, targets = learn.get_preds()
    correct = preds.argmax(1) == targets
    per_class = [correct[targets == c].float().mean().item() for c in range(3)]
    assert record["all"][2] == pytest.approx(correct.float().mean().item())
    assert record["balanced"][2] == pytest.approx(sum(per_class) / 3)
    assert record["norms"][2] == pytest.approx(head_norms(learn.model).tolist())
    assert {len(v) for v in record.values() if isinstance(v, list)} == {3}


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_chosen_epoch(select):
    learn = make_learner()
    trajectory = trajectory_of(learn, select=select)
    learn.fit(3, 0.05, cbs=trajectory)
    balanced = trajectory.record["balanced"]
    if select == "last":
        assert trajectory.record["chosen"] == 3 and trajectory.best_state is None
    else:
        assert trajectory.record["chosen"] == balanced.index(max(balanced))
        learn.model.load_state_dict(trajectory.best_state)
        preds, targets = learn.get_preds()
        correct = preds.argmax(1) == targets
        got = torch.stack([correct[targets == c].float().mean() for c in range(3)]).mean()
        assert got.item() == pytest.approx(max(balanced))


class CancelValidation(Callback):
    def __init__(self, error):
        self.error = error

    def before_batch(self):
        if not self.learn.training and self.learn.epoch == 0 and self.learn.iter == 1:
            raise self.error


def test_a_validation_that_was_cut_short_does_not_count():
    learn = make_learner()
    trajectory = trajectory_of(learn, start=False)
    learn.fit(2, 0.05, cbs=[trajectory, CancelValidation(CancelValidException)])
    assert trajectory.record["epoch"] == [2]


def test_a_cancelled_batch_is_not_counted_twice():
    learn = make_learner()
    trajectory = trajectory_of(learn, start=False)
    seen = []

    class Look(Callback):
        order = 71

        def before_validate(self):
            seen.append(trajectory._targets)

    learn.fit(1, 0.05, cbs=[trajectory, CancelValidation(CancelBatchException), Look()])
    assert len(seen[0]) == len(learn.dls.valid) - 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flip_average(precision):
    learn = make_lt_learner(precision=precision)
    dtypes = []
    learn.model.backbone.conv1.register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))

    class Keep(Callback):
        def after_pred(self):
            self.last = (self.learn.xb[0], self.learn.pred)

    keep = Keep()
    learn.validate(cbs=[FlipAverage(), keep])
    # The mirror image goes through the network in the same precision.
    assert set(dtypes) == {torch.float32 if precision == "fp32" else torch.bfloat16}
    x, pred = keep.last
    learn.model.eval()
    with torch.no_grad(), learn.autocast_context():
        expected = (learn.model(x).float() + learn.model(x.flip(-1)).float()) / 2
    assert pred.dtype == torch.float32 and torch.allclose(pred, expected, atol=1e-6)


def test_flip_average_leaves_training_alone():
    learn = make_lt_learner()
    calls = []
    learn.model.register_forward_hook(lambda m, i, o: calls.append(m.training))
    learn.fit(1, 0.01, cbs=FlipAverage())
    assert calls.count(True) == len(learn.dls.train)
    assert calls.count(False) == 2 * len(learn.dls.valid)


def test_head_norms_of_both_heads():
    learn = make_learner()
    assert torch.allclose(head_norms(learn.model), learn.model[2].weight.norm(dim=1))
    SAMN().install(learn)
    assert head_norms(learn.model).tolist() == pytest.approx([2.1414, 3.4347, 4.2321], abs=1e-4)


def test_logits_that_are_not_finite_end_the_fit_with_advice():
    learn = make_learner()
    trajectory = trajectory_of(learn, start=False)
    message = "training diverged in epoch 1 of training: .*; lower the learning rate"
    with pytest.raises(UserError, match=message):
        learn.fit(2, math.nan, cbs=trajectory)
    assert trajectory.record["epoch"] == []
    trajectory = trajectory_of(learn, start=True)
    with pytest.raises(UserError, match="not finite before the first step of training"):
        learn.fit(1, 0.1, cbs=trajectory)


# ------------------------------------------------ fastai's metrics, CSV and TensorBoard


STAGES = {
    "stage 1": lambda learn, epochs, **kwargs: learn.fit_stage1(epochs, 0.05, **kwargs),
    "features": lambda learn, epochs, **kwargs: learn.retrain_classifier(epochs, 0.05, **kwargs),
    "images": lambda learn, epochs, **kwargs: learn.retrain_classifier(
        epochs, 0.05, views=0, **kwargs
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_fastais_csv_logger_has_the_figures(stage, tmp_path, monkeypatch):
    reports = []
    real = history.shot_report
    monkeypatch.setattr(
        history, "shot_report", lambda *args, **kw: reports.append(1) or real(*args, **kw)
    )
    learn = make_lt_learner()
    learn.path = tmp_path
    learn.metrics = [accuracy]
    logger = learn.logger
    record = STAGES[stage](learn, 3, cbs=CSVLogger("history.csv"))
    rows = list(csv.DictReader(open(tmp_path / "history.csv")))
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss", "accuracy", *FIGURES, "time"]
    for row, epoch in zip(rows, (1, 2, 3), strict=True):
        i = record["epoch"].index(epoch)
        for name in FIGURES:
            value = float(row[name])
            expected = record[name][i]
            assert math.isnan(value) if expected is None else value == pytest.approx(expected)
        assert float(row["accuracy"]) == pytest.approx(float(row["all"]))
        assert math.isfinite(float(row["train_loss"]) + float(row["valid_loss"]))
    # Nothing is evaluated twice.
    assert len(reports) == len(record["epoch"])
    assert [m.name for m in learn.metrics] == ["accuracy"] and learn.logger is logger


def test_a_stopped_fit_gives_metrics_and_logger_back(tmp_path):
    learn = make_lt_learner()
    learn.path, logger = tmp_path, learn.logger
    for error in (KeyboardInterrupt, ArithmeticError("no")):
        with pytest.raises((KeyboardInterrupt, ArithmeticError)):
            learn.fit_stage1(2, 0.05, cbs=[CSVLogger(), Stop(error, 9)])
        assert list(learn.metrics) == [] and learn.logger is logger
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    learn.fit(1, 0.05)


def test_a_validation_that_was_cut_short_has_no_figures(tmp_path):
    learn = make_lt_learner()
    learn.fit_stage1(2, 0.05, cbs=CancelValidation(CancelBatchException))
    values = learn.recorder.values
    assert len(values) == 2 and len(values[1]) == 2 + len(FIGURES)


class Writer:
    """What TensorBoard's writer is called with."""

    made = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.open = folder, purge_step, [], True
        self.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        pass

    def close(self):
        self.open = False


@pytest.fixture
def tensorboard(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter, Writer.made = Writer, []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("ltlearn.training.logs.check_tensorboard", lambda: None)
    return Writer.made


def read(path):
    return list(csv.DictReader(open(path)))


@pytest.mark.parametrize("stage", STAGES)
def test_an_epoch_log_has_what_the_trajectory_has(stage, tmp_path, tensorboard):
    log = EpochLog(tmp_path / "log.csv", tmp_path / "events", min_seconds=0)
    learn = make_lt_learner()
    record = STAGES[stage](learn, 2, cbs=log)
    rows = read(tmp_path / "log.csv")
    assert [int(r["epoch"]) for r in rows] == record["epoch"]
    for name in ("loss", "seconds", *FIGURES):
        expected = ["" if v is None else pytest.approx(v) for v in record[name]]
        assert [r[name] and float(r[name]) for r in rows] == expected
    assert {r["evaluated_on"] for r in rows} == {"validation"}
    (writer,) = tensorboard
    assert not writer.open and writer.purge_step == 0
    steps = [step for tag, _, step in writer.scalars if tag == "validation/balanced"]
    assert steps == record["epoch"]
    rates = {step: value for tag, value, step in writer.scalars if tag == "train/lr"}
    assert rates == {1: 0.05, 2: pytest.approx(0.025)}
    assert "EpochLog" not in learn.stages[-1]["callbacks"]


def test_an_epoch_log_does_not_change_the_training(tmp_path):
    a, b = make_lt_learner(), make_lt_learner()
    b.path = tmp_path
    torch.manual_seed(1)
    a.fit_stage1(2, 0.05)
    torch.manual_seed(1)
    b.fit_stage1(2, 0.05, cbs=[EpochLog(tmp_path / "log.csv", min_seconds=0), CSVLogger()])
    before, after = a.model.state_dict(), b.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_fit_that_goes_on_has_each_epoch_once(stage, tmp_path, tensorboard):
    learn = make_lt_learner()
    n = 7 if stage != "features" else 1

    def cbs(every):
        # With and without a log: it decides nothing, so a checkpoint does not ask for it.
        return [Checkpoint(tmp_path / "kept", resume=True, every=every, min_seconds=0)]

    stop = Stop(KeyboardInterrupt, 3 * n)
    log = EpochLog(tmp_path / "log.csv", min_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        STAGES[stage](learn, 5, cbs=[*cbs(2), stop, log])
    written = [int(r["epoch"]) for r in read(tmp_path / "log.csv")]
    assert written[-1] == 3
    del tensorboard[:]
    log = EpochLog(tmp_path / "log.csv", tmp_path / "events", min_seconds=60)
    record = STAGES[stage](make_lt_learner(), 5, cbs=[*cbs(2), Stop(KeyboardInterrupt, 100), log])
    assert record["epoch"][-1] == 5
    assert [int(r["epoch"]) for r in read(tmp_path / "log.csv")] == record["epoch"]
    steps = [s for t, _, s in tensorboard[0].scalars if t == "validation/all"]
    assert steps == record["epoch"]


def test_an_interrupted_fit_leaves_its_log(tmp_path):
    learn = make_lt_learner()
    log = EpochLog(tmp_path / "log.csv", min_seconds=60)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_stage1(5, 0.05, cbs=[log, Stop(KeyboardInterrupt, 3 * 7)])
    assert [int(r["epoch"]) for r in read(tmp_path / "log.csv")] == [1, 2, 3]


def test_a_log_that_cannot_be_written_ends_no_fit(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = EpochLog(tmp_path / "file" / "log.csv", min_seconds=0)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        assert len(make_lt_learner().fit_stage1(3, 0.05, cbs=log)["epoch"]) == 3
    assert len(caplog.records) == 1 and "no longer logged" in caplog.text


def test_a_log_without_figures_is_none(tmp_path):
    make_lt_learner().fit(1, 0.05, cbs=EpochLog(tmp_path / "log.csv"))
    assert not (tmp_path / "log.csv").exists()


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ltlearn\[tensorboard\]'"):
        EpochLog(tensorboard=tmp_path)
    with pytest.raises(UserError, match="package tensorboard"):
        check_tensorboard()
    EpochLog(tmp_path / "log.csv")


def test_event_files_can_be_read(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs in (3, 2):  # the second gives its place to none of the first's epochs
        log = EpochLog(tensorboard=tmp_path, min_seconds=0)
        record = make_lt_learner().fit_stage1(epochs, 0.05, cbs=log)
    found = EventAccumulator(str(tmp_path)).Reload()
    balanced = found.Scalars("validation/balanced")
    assert [e.step for e in balanced] == record["epoch"]
    assert [e.value for e in balanced] == pytest.approx(record["balanced"])


@pytest.mark.parametrize("stage", STAGES)
def test_fastais_tensorboard_callback_has_the_figures(stage, tmp_path):
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cb = TensorBoardCallback(tmp_path, trace_model=False, log_preds=False)
    record = STAGES[stage](make_lt_learner(), 2, cbs=cb)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert {"train_loss", "valid_loss", *FIGURES} <= set(found.Tags()["scalars"])
    assert [e.value for e in found.Scalars("balanced")] == pytest.approx(record["balanced"][-2:])
