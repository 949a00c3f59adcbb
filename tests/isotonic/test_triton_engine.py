"""The Triton engine: interpreted and compiled everywhere, run where there is a CUDA device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.optimize import isotonic_regression

from ltlearn.isotonic import pava

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_over_six_decades(*shape):
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 10 ** (6 * u - 3)


def one_low_last_value(n):
    y = torch.arange(n, dtype=torch.float64)
    y[-1] = -3.0 * n
    return y


def make_cases():
    cases = {}
    for n in (1, 3, 8):
        w = weights_over_six_decades(n)
        y = randn(2, n, seed=n)
        cases[f"weighted {n}"] = (y, w, True)
        cases[f"weighted down {n}"] = (y.float(), w.expand(2, n).float(), False)
    for i, dtype in enumerate(TOLERANCE):
        cases[f"random {dtype}"] = (randn(2, 7, seed=i).to(dtype), None, i % 2 == 0)
    rows = {
        "random": randn(17),
        "tied": torch.randint(0, 3, (15,), generator=torch.Generator().manual_seed(0)).double(),
        "constant": torch.full((11,), 0.1, dtype=torch.float64),
        "ramp": -torch.arange(13.0, dtype=torch.float64),
        "sorted": randn(14).sort().values,
        "low last": one_low_last_value(16),
        "negative zero": torch.tensor([0.0, -0.0, 0.0], dtype=torch.float64),
        "offset": randn(9) + 1e6,
        "large": randn(9) * 1e30,
        "deep": randn(2, 1, 1, 5),
    }
    for name, y in rows.items():
        cases[name] = (y, None, True)
    for name in ("random", "tied", "sorted", "deep"):
        y = rows[name].float()
        cases[f"{name} f32 weighted"] = (y, weights_over_six_decades(y.shape[-1]), True)
    bad = randn(5, 6)
    w = weights_over_six_decades(5, 6)
    bad[1, 3], bad[2, 0], w[3, 5], w[4, 2] = float("nan"), float("-inf"), 0.0, float("inf")
    cases["bad rows"] = (bad, w, True)
    cases["bad rows down"] = (bad.float(), None, False)
    full = {name: (*case, randn(*case[0].shape, seed=2).to(case[0].dtype), 2_048)
            for name, case in cases.items()}  # fmt: skip
    # In tiles that cut halves and blocks, as rows of thousands are cut on a device.
    for name in ("tied", "low last", "sorted f32 weighted", "weighted 8"):
        full[f"{name} in tiles"] = (*full[name][:4], 4)
    return full


CASES = make_cases()


def exact(y, weights, increasing):
    rows = y.double().reshape(-1, y.shape[-1])
    w = None if weights is None else weights.double().expand(y.shape).reshape(rows.shape)
    fits = []
    for i, row in enumerate(rows):
        bad = not row.isfinite().all()
        if w is not None:
            bad = bad or not ((w[i] > 0) & w[i].isfinite()).all()
        if bad:
            fits.append(torch.full_like(row, torch.nan))
            continue
        weights_row = None if w is None else w[i].numpy()
        fit = isotonic_regression(row.numpy(), weights=weights_row, increasing=increasing)
        fits.append(torch.from_numpy(fit.x.copy()))
    return torch.stack(fits).view(y.shape)


def assert_right(case, result):
    y, weights, increasing, grad, _ = case
    bare, x, grads = result
    assert bare.dtype == x.dtype == y.dtype and x.shape == y.shape
    torch.testing.assert_close(bare, x, rtol=0, atol=0, equal_nan=True)
    expected = exact(y, weights, increasing)
    assert torch.equal(x.isnan(), expected.isnan())
    good = ~expected.isnan().any(-1)
    error = (x.double() - expected)[good].abs().max()
    assert error <= TOLERANCE[y.dtype] * y[good].abs().max()
    step = x[good].diff(dim=-1) * (1 if increasing else -1)
    assert (step >= 0).all()  # to the bit
    leaves = [t.clone().requires_grad_() for t in (y, weights) if t is not None]
    reference = pava(*leaves, increasing=increasing, engine="tensor_ops", check=False)
    for ours, theirs in zip(grads, torch.autograd.grad(reference, leaves, grad), strict=True):
        assert ours.dtype == theirs.dtype
        if theirs.shape == y.shape:
            ours, theirs = ours[good], theirs[good]
        scale = theirs.double().abs().max().clamp(min=1)
        assert (ours - theirs).double().abs().max() <= 4 * TOLERANCE[ours.dtype] * scale


def run(folder, script, *args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")}
    env |= {"PYTHONPATH": str(HERE.parents[1]), "TRITON_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, HERE / script, *args], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    torch.save(CASES, folder / "cases.pt")
    run(folder, "interpret_triton.py", folder / "cases.pt", folder / "results.pt")
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_equals_scipy(interpreted, name):
    assert_right(CASES[name], interpreted[name])


def check_compiled(folder, variants):
    built = json.loads(run(folder, "compile_triton.py", variants))
    assert len(built) == 3 * 2 * {"few": 2, "all": 7}[variants]
    for name, facts in built.items():
        capability = name.split("sm_")[1].split()[0]
        assert facts["target"].startswith(f"sm_{capability}"), name
        assert facts["binary_bytes"] > 1_000, name
        assert facts["barriers"] >= 2, name
        # Scratch memory is written between barriers: a load through the read-only cache is stale.
        assert facts["cached_read_only"] == 0, name
        assert facts["spills"] == 0, name


def test_compiles_for_every_architecture(tmp_path):
    check_compiled(tmp_path, "few")


@pytest.mark.slow
def test_each_variant_compiles_for_every_architecture(tmp_path):
    check_compiled(tmp_path, "all")


def test_a_cpu_tensor_is_refused():
    with pytest.raises(ValueError, match="engine 'triton' needs CUDA tensors .* got y on cpu"):
        pava(randn(3), engine="triton")


# -- on a device -------------------------------------------------------------------------------

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def on_device(name):
    y, weights, increasing, grad, tile = CASES[name]
    return y.cuda(), None if weights is None else weights.cuda(), increasing, grad.cuda(), tile


def solved(y, weights, increasing, grad, tile=None):
    bare = pava(y, weights, increasing)
    leaves = [t.clone().requires_grad_() for t in (y, weights) if t is not None]
    x = pava(*leaves, increasing=increasing)
    return bare, x.detach(), torch.autograd.grad(x, leaves, grad)


def to_cpu(result):
    bare, x, grads = result
    return bare.cpu(), x.cpu(), [g.cpu() for g in grads]


LONG = {
    "random": lambda n: randn(n),
    "trend": lambda n: randn(n) + torch.linspace(0, 3, n),
    "ramp": lambda n: -torch.arange(n, dtype=torch.float64),
    "low last": one_low_last_value,
}


class TestOnADevice:
    pytestmark = gpu

    @pytest.mark.parametrize("name", CASES)
    def test_equals_scipy(self, name):
        assert_right(CASES[name], to_cpu(solved(*on_device(name))))

    @pytest.mark.parametrize("n", (100, 1_000, 2_049, 8_142, 16_384, 16_385, 100_000))
    @pytest.mark.parametrize("shape", LONG)
    @pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
    def test_long_rows(self, n, shape, dtype):
        y = LONG[shape](n).to(dtype)
        for weights in (None, weights_over_six_decades(n).to(dtype)):
            case = (y, weights, True, randn(n, seed=3).to(dtype), None)
            moved = [t.cuda() if torch.is_tensor(t) else t for t in case]
            assert_right(case, to_cpu(solved(*moved)))

    def test_bits_are_the_same_from_run_to_run(self):
        y, g = randn(64, 8_142).cuda().float(), randn(64, 8_142, seed=1).cuda().float()
        first = solved(y, None, True, g)
        for _ in range(20):
            again = solved(y, None, True, g)
            assert torch.equal(first[1], again[1]) and torch.equal(first[2][0], again[2][0])

    def test_never_waits_for_the_host(self):
        y, g = randn(3, 1_000).cuda(), randn(3, 1_000).cuda()
        w = weights_over_six_decades(1_000).cuda()
        solved(y, w, True, g)
        solved(y, None, True, g)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(100):
                solved(y, None, True, g)
                solved(y, w, False, g)
                pava(y, engine="tensor_ops")
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_allocates_nothing_from_the_driver_after_the_first_call(self):
        y = randn(64, 8_142).cuda()
        pava(y)
        before = torch.cuda.memory_stats()["num_device_alloc"]
        for _ in range(20):
            pava(y)
        assert torch.cuda.memory_stats()["num_device_alloc"] == before

    def test_one_launch(self):
        y = randn(64, 1_000).cuda()
        pava(y)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            pava(y)
            torch.cuda.synchronize()
        kernels = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) == 1, kernels

    def test_cuda_graph(self):
        y = randn(4, 1_000).cuda()
        pava(y)
        pava(y, increasing=False)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            up, down = pava(y), pava(y, increasing=False)
        for seed in (5, 6):
            y.copy_(randn(4, 1_000, seed=seed))
            graph.replay()
            assert torch.equal(up, pava(y)) and torch.equal(down, pava(y, increasing=False))

    def test_bad_rows_and_their_check(self):
        y = randn(2, 9).cuda()
        y[1, 4] = float("nan")
        assert pava(y)[1].isnan().all() and pava(y)[0].isfinite().all()
        with pytest.raises(ValueError, match="got nan at index 4 of row 1"):
            pava(y, check=True)

    def test_compiles(self):
        y = randn(3, 50).cuda().float()
        compiled = torch.compile(lambda y: pava(2 * y) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(y), pava(2 * y) + 1)

    def test_samn_trains(self):
        from ltlearn import SAMN, LTDataLoaders, lt_learner

        counts = [40, 12, 4]
        targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts)).numpy()
        images = torch.randint(0, 256, (56, 32, 32, 3), dtype=torch.uint8).numpy()
        dls = LTDataLoaders.from_arrays(
            images, targets, valid=(images[::7], targets[::7]), bs=16, device="cuda"
        )
        learn = lt_learner(dls, "resnet20_cifar", pretrained=False)
        learn.retrain_classifier(2, 0.1, cbs=SAMN())
        head = learn.model.head
        assert head.weight.is_cuda
        norms = head.norms().cpu()
        assert norms.isfinite().all() and (norms.diff() >= 0).all()  # classes 0, 1, 2: head to tail
