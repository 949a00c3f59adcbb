import math

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelValidException

from ltlearn import SAMN, UserError
from ltlearn.callbacks.history import FlipAverage, Trajectory, head_norms
from tests.callbacks.helpers import COUNTS, make_learner, make_lt_learner


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
def test_what_is_chosen(select):
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
    with torch.no_grad(), learn.autocast():
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
