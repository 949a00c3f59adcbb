"""Features of a backbone that torch compiles equal those of the backbone, which stays as it was."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn import FeatureBank
from tests.callbacks.helpers import make_dls, make_lt_learner


@pytest.fixture
def dl():
    """52 images in batches of 8, so that the last batch has 4."""
    return make_dls([36, 12, 4]).train


def small_backbone():
    """A network that is traced quickly, after one batch of training."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(144, 8),
    )  # fmt: skip
    net(torch.randn(16, 3, 8, 8))
    net[1].eval()
    return net


def features(backbone, dl, compile, views=0, path=None):
    bank = FeatureBank(path, "float32", compile=compile)
    return np.array(bank.features(backbone, dl, "data", views).views)


def state_of(net):
    """Return all that an extraction must leave as it was."""
    state = net.state_dict(keep_vars=True)
    tensors = {k: (v.detach().clone(), v.stride(), dict(vars(v))) for k, v in state.items()}
    return tensors, [(id(m), m.training, set(vars(m))) for m in net.modules()]


def same_state(one, two):
    (tensors, modules), (others, other_modules) = one, two
    return modules == other_modules and all(
        torch.equal(value, others[k][0]) and tuple(rest) == others[k][1:]
        for k, (value, *rest) in tensors.items()
    )


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "ltlearn" and r.levelno > 20]


@pytest.mark.parametrize("views", [0, 2])
def test_they_are_the_eager_ones_in_order(views, dl, compiler, caplog):
    backbone = small_backbone()
    expected = features(backbone, dl, False, views)
    assert compiler.graphs == 0
    got = features(backbone, dl, True, views)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert compiler.graphs == 1, "one compilation for all views"
    assert compiler.sizes == [8] * 6 * max(views, 1), "the last batch is smaller"
    assert not warnings_of(caplog)


def test_less_than_a_batch_is_not_worth_a_compilation(compiler):
    features(small_backbone(), make_dls([4, 2, 1]).train, True)
    assert compiler.graphs == 0


def test_the_backbone_is_as_before_and_trains(dl, compiler):
    learn = make_lt_learner(make_dls([36, 12, 4]))
    learn.model.backbone, learn.model.head = small_backbone(), nn.Linear(8, 3)
    backbone = learn.model.backbone
    before = state_of(backbone)
    features(backbone, dl, True)
    assert compiler.graphs == 1 and same_state(state_of(backbone), before)
    learn.fit_stage1(1, 0.05)
    after = state_of(backbone)
    assert not same_state(after, before)
    np.testing.assert_allclose(
        features(backbone, dl, True), features(backbone, dl, False), rtol=1e-5, atol=1e-6
    )
    assert compiler.graphs == 2, "new weights are new constants"
    assert same_state(state_of(backbone), after)


def test_each_of_many_extractions_is_compiled(compiler):
    """torch compiles the code of one function 8 times, and then no more."""
    backbone, dl = small_backbone(), make_dls([6, 1, 1]).train
    with torch._dynamo.config.patch(recompile_limit=2):
        for _ in range(3):
            with torch.no_grad():
                backbone[0].weight.mul_(1.1)
            got = features(backbone, dl, True)
    np.testing.assert_allclose(got, features(backbone, dl, False), rtol=1e-5, atol=1e-6)
    assert compiler.graphs == 3


def test_autocast_applies(dl, compiler):
    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    bf16.dtype = torch.bfloat16
    banks = [FeatureBank(None, "float32", compile) for compile in (False, True)]
    one, two = (b.features(small_backbone(), dl, "d", autocast=bf16).views[0] for b in banks)
    assert compiler.sizes == [8] * 6
    np.testing.assert_allclose(one, two, rtol=1e-2, atol=1e-2)
    assert not np.allclose(two, features(small_backbone(), dl, False)[0], rtol=1e-5)


def test_their_key_is_another(dl, compiler, tmp_path):
    features(small_backbone(), dl, False, path=tmp_path)
    features(small_backbone(), dl, True, path=tmp_path)
    keys = [json.loads(note.read_text())["key"] for note in tmp_path.glob("*/key.json")]
    keys.sort(key=len)
    assert len(keys) == 2 and keys[1] == {**keys[0], "compiled": True}
    features(small_backbone(), dl, True, path=tmp_path)
    assert compiler.graphs == 1


def test_a_bank_that_moves_to_the_disk_still_compiles(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr("ltlearn.training.prediction.MAX_BANK_BYTES", 0)
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path))
    learn = make_lt_learner(make_dls([60, 12, 4]))
    learn.bank = FeatureBank(compile=True)
    learn.features("train")
    assert learn.bank.path is not None and learn.bank.compile
    assert compiler.sizes == [64]


class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("what", ["backend", "torch.compile", "copy"])
def test_where_torch_cannot_compile_the_backbone_runs(what, dl, compiler, caplog, monkeypatch):
    backbone, reason = small_backbone(), "no C++ compiler"
    if what == "backend":
        compiler.error = RuntimeError(f"{reason}\nat all")
    elif what == "copy":
        backbone, reason = Uncopied(*backbone), "cannot be copied"
    else:

        def refuse(*_, **__):
            raise RuntimeError(reason)

        monkeypatch.setattr(torch, "compile", refuse)
    got = features(backbone, dl, True, 2)
    assert np.array_equal(got, features(backbone, dl, False, 2))
    (warning,) = warnings_of(caplog)
    assert warning.startswith("torch.compile cannot compile") and reason in warning
    assert "\n" not in warning and not compiler.sizes


class Branched(nn.Module):
    """A network that torch cannot export, because its layers depend on its values."""

    def forward(self, x):
        x = x.mean((2, 3))
        return 2 * x if x.sum() > 0 else x


def test_torch_prints_no_graph_of_a_network_that_it_cannot_export(dl, compiler, caplog, capfd):
    features(Branched(), dl, True)
    (warning,) = warnings_of(caplog)
    assert "data-dependent" in warning and not compiler.graphs
    assert "forward" not in capfd.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_is_no_failure_of_the_compiler_is_raised(error, dl, compiler):
    backbone = small_backbone()
    before = state_of(backbone)
    backbone[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        features(backbone, dl, True)
    backbone[2]._forward_hooks.clear()
    assert same_state(state_of(backbone), before)


@pytest.mark.slow
def test_inductor_folds_batch_normalisation(dl):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    backbone = small_backbone()
    before = state_of(backbone)
    for _ in range(2):
        counters.clear()
        got, expected = (features(backbone, dl, compile) for compile in (True, False))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert counters["inductor"]["binary_folding"] > 0
        assert same_state(state_of(backbone), before)
        with torch.no_grad():
            backbone[0].weight.mul_(2)
            backbone[1].running_mean.add_(1)
        before = state_of(backbone)
