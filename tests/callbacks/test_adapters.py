"""AdaptFormer, LoRA and BitFit in a fit, and the files of what they train."""

import logging
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD

from ltlearn import AdaptFormer, BitFit, Checkpoint, LoRA, UserError, WeightAverage
from ltlearn.models.adapters import merge_lora
from ltlearn.models.backbone import is_adapter_tensor
from tests.callbacks.helpers import make_dls, make_lt_learner, make_vit_learner
from tests.training.helpers import Kill, Killed, check_resumed

ADAPTERS = {"adaptformer": AdaptFormer, "lora": LoRA}
ALL = {**ADAPTERS, "bitfit": BitFit}


class Gradients(Callback):
    """Record which parameters have a gradient, and which modules are in training mode."""

    order = 80

    def before_step(self):
        model = self.learn.model
        self.names = {n for n, p in model.named_parameters() if p.grad is not None}
        self.modes = {n for n, m in model.backbone.named_modules() if m.training and n}


def states(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def small():
    return make_vit_learner(make_dls([20, 6, 4]), drop_path_rate=0.2, proj_drop_rate=0.2)


def fit(learn, cbs, epochs=2, **kwargs):
    learn.fit_stage1(epochs, 0.05, cbs=cbs, **kwargs)
    return learn


@pytest.mark.parametrize("name", ALL)
def test_only_the_part_and_the_head_train(name, caplog):
    caplog.set_level(logging.INFO, "ltlearn")
    learn, seen, cb = small(), Gradients(), ALL[name]()
    before = states(learn)
    fit(learn, [cb, seen])
    trained = {n for n, _ in learn.model.named_parameters() if n.startswith("head.")}
    own = is_adapter_tensor if name != "bitfit" else lambda n: n.endswith("bias")
    trained |= {n for n, _ in learn.model.backbone.named_parameters(prefix="backbone") if own(n)}
    assert seen.names == trained and not seen.modes
    moved = {k for k, v in states(learn).items() if k not in before or not v.equal(before[k])}
    assert moved == trained
    assert all(p.requires_grad for p in learn.model.parameters())
    count = sum(p.numel() for n, p in learn.model.named_parameters() if n in trained)
    stage = learn.stages[-1]
    assert stage["trained_parameters"] == count < stage["parameters"]
    assert stage["trained"] == f"{cb.trained_part} + head"
    assert [r.message for r in caplog.records if f"{count:,} of" in r.message]
    # A later fit trains the same part further, and one without the callback trains all.
    fit(learn, [ALL[name](), seen], 1)
    assert seen.names == trained
    fit(learn, [seen], 1)
    assert seen.names == {n for n, _ in learn.model.named_parameters()}


@pytest.mark.parametrize("opt_func", [None, partial(SGD, mom=0.9)], ids=["torch", "fastai"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_new_part_joins_an_optimiser(name, opt_func):
    learn = make_vit_learner(make_dls([20, 6, 4]), **({"opt_func": opt_func} if opt_func else {}))
    learn.fit(1, 0.05)
    learn.fit(1, 0.05, cbs=ADAPTERS[name]())
    groups = learn.opt.param_lists
    ids = [{id(p) for p in group} for group in groups]
    assert ids == [
        {id(p) for p in m.parameters()} for m in (learn.model.backbone, learn.model.head)
    ]
    ups = [v for k, v in states(learn).items() if k.endswith(("lora_up", "adapter.up.weight"))]
    assert ups and all(v.any() for v in ups)


def test_sizes_and_seeds(caplog):
    def made(cb, learn=None):
        learn = learn or make_vit_learner(make_dls([4] * 9, bs=16))
        learn.fit_stage1(0, 0.05, cbs=cb)
        return learn

    block = made(AdaptFormer()).model.backbone.blocks[0]
    assert block.adapter.down.out_features == 2  # 9 classes, 2 blocks
    one = made(LoRA(rank=3))
    attention = one.model.backbone.blocks[0].attn
    assert attention.qkv.rank == 3
    for seed, same in ((0, True), (1, False)):
        other = made(LoRA(rank=3, seed=seed)).model.backbone.blocks[0].attn.qkv.lora_down
        assert other.equal(attention.qkv.lora_down) == same
    made(LoRA(rank=5), one)
    assert (
        attention.qkv.rank == 3 and "keeps the adapters it already has, with rank=3" in caplog.text
    )
    for make, match in (
        (lambda: AdaptFormer(0), "bottleneck must be .*, got 0"),
        (lambda: LoRA(2.5), "rank must be .*, got 2.5"),
        (lambda: LoRA(seed=-1), "seed must be .*, got -1"),
    ):
        with pytest.raises(UserError, match=match):
            make()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_backbone_without_blocks_gets_one_sentence(name):
    learn = make_lt_learner()
    with pytest.raises(UserError, match=r"(?s)needs .*CifarResNet.*none.*bitfit, last_block, full"):
        learn.fit_stage1(1, 0.05, method=name)
    assert learn.fit_stage1(1, 0.05)["epoch"] == [1]


@pytest.mark.parametrize("name", ALL)
def test_it_goes_on_bit_for_bit(name, tmp_path):
    cbs = lambda: [ALL[name](), WeightAverage(0.9)]  # noqa: E731
    train = lambda learn, cbs: fit(learn, cbs, 5, select="best")  # noqa: E731
    check_resumed(train, tmp_path / "c", small, cbs=cbs)


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_leaves_out_the_trunk_and_refuses_another(name, tmp_path):
    def stopped(folder, cbs):
        with pytest.raises(Killed):
            fit(small(), [*cbs, WeightAverage(), Kill(2)], 4, select="best")
        return (folder / "epoch-00002.safetensors").stat().st_size

    folder = tmp_path / "c"
    least = stopped(folder, [ALL[name](), Checkpoint(folder, min_seconds=0)])
    whole = stopped(tmp_path / "w", [Checkpoint(tmp_path / "w", min_seconds=0)])
    assert least < whole / 2
    other = make_vit_learner(make_dls([20, 6, 4]), seed=1, drop_path_rate=0.2, proj_drop_rate=0.2)
    with pytest.raises(UserError, match="frozen weights"):
        cbs = [ALL[name](), WeightAverage(), Kill(2)]
        fit(other, cbs, 4, select="best", resume=folder)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_saved_model_opens_without_and_with_adapters(name, tmp_path):
    learn = fit(make_vit_learner(path=tmp_path), [ADAPTERS[name]()])
    expected = learn.predict_logits("valid", cached=False)[0]
    learn.save("adapted")
    plain = make_vit_learner(path=tmp_path, seed=1)
    before = plain.predict_logits("valid", cached=False)[0]
    plain.save("plain")
    draws = torch.get_rng_state()
    plain.load("adapted")
    assert torch.get_rng_state().equal(draws)
    assert torch.equal(plain.predict_logits("valid", cached=False)[0], expected)
    plain.fit(1, 0.05)  # the optimiser has the adapters
    assert any(map(is_adapter_tensor, states(plain)))
    plain.load("plain")
    assert torch.equal(plain.predict_logits("valid", cached=False)[0], before)
    assert not any(map(is_adapter_tensor, states(plain)))
    other = make_vit_learner(path=tmp_path, embed_dim=32)
    with pytest.raises(UserError, match="adapted"):
        other.load("adapted")


def test_a_weights_file_with_adapters_begins_a_learner(tmp_path):
    learn = fit(make_vit_learner(), [AdaptFormer(), LoRA()])
    torch.save(learn.model.state_dict(), tmp_path / "w.pth")
    again = make_vit_learner(pretrained=tmp_path / "w.pth", keep_head=True, check=False)
    x = torch.randn(2, 3, 8, 8)
    for kept in (learn, again):
        kept.model.eval()
    assert torch.equal(again.model(x), learn.model(x))


def test_exports(tmp_path):
    learn = fit(make_vit_learner(), [LoRA()])
    assert learn.export_timm(tmp_path / "lora").difference < 1e-5
    expected = learn.predict_logits("valid", cached=False)[0]
    assert merge_lora(learn.model) == 2
    merged = learn.predict_logits("valid", cached=False)[0]
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    fit(learn, [AdaptFormer()])
    with pytest.raises(UserError, match=r"AdaptFormer.*ONNX or TorchScript"):
        learn.export_timm(tmp_path / "adaptformer")
    assert learn.export_torchscript(tmp_path / "model.pt").difference < 1e-5


@pytest.mark.slow
def test_onnx_exports(tmp_path):
    learn = fit(make_vit_learner(), [LoRA(), AdaptFormer()])
    assert learn.export_onnx(tmp_path / "model.onnx").difference < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_the_loop_without_events_trains_the_same(name):
    learns = [small(), small()]
    for learn, resident in zip(learns, ("never", "always"), strict=True):
        learn.resident = resident
        fit(learn, [ALL[name]()])
    assert learns[1].loop_ran == "resident"
    for a, b in zip(*(states(learn).values() for learn in learns), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ADAPTERS)
def test_bfloat16_keeps_small_changes(name):
    learn = fit(make_vit_learner(precision="bf16"), [ADAPTERS[name]()])
    assert learn.trajectory["loss"][-1] < learn.trajectory["loss"][0] + 1
    moved = [v for k, v in states(learn).items() if k.endswith(("lora_up", "up.weight"))]
    assert moved and all(v.dtype == torch.float32 and v.any() for v in moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_compiled_backbone_trains_the_same(name):
    learns = [make_vit_learner(), make_vit_learner()]
    for learn, compile in zip(learns, (False, True), strict=True):
        fit(learn, [ADAPTERS[name]()], 1, compile=compile)
    assert learns[1].stages[-1]["compiled"] is True
    for a, b in zip(*(states(learn).values() for learn in learns), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
