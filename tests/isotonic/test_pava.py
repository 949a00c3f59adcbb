import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import isotonic_regression
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ltlearn.isotonic import ops, pava, scipy_engine, tensor_ops

ENGINES = ("scipy", "tensor_ops")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
DTYPES = tuple(TOLERANCE)

engines = pytest.mark.parametrize("engine", ENGINES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("f64", "f32"))
law = settings(max_examples=40, deadline=None, derandomize=True)


def exact(y, weights=None, increasing=True):
    w = None if weights is None else weights.double().numpy()
    fit = isotonic_regression(y.double().numpy(), weights=w, increasing=increasing)
    return torch.from_numpy(fit.x.copy())


def assert_exact(y, weights=None, increasing=True, engine=None):
    x = pava(y, weights, increasing, engine)
    assert x.dtype == y.dtype and x.shape == y.shape
    error = (x.double() - exact(y, weights, increasing)).abs().max()
    assert error <= TOLERANCE[y.dtype] * y.abs().max()


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_over_six_decades(*shape, seed=1):
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 10 ** (6 * u - 3)


def one_low_last_value(n, low):
    y = torch.arange(n, dtype=torch.float64)
    y[-1] = low
    return y


CASES = {
    "one element": torch.tensor([3.25]),
    "two rising": torch.tensor([1.0, 2.0]),
    "two falling": torch.tensor([2.0, 1.0]),
    "negative zero": torch.tensor([0.0, -0.0, 0.0]),
    "random": randn(10_000),
    "random, 2^n + 1 values": randn(1025),
    "random on a trend": randn(10_000) + torch.linspace(0, 3, 10_000),
    "offset": randn(3_000) + 1e6,
    "sorted": randn(10_000).sort().values,
    "reversed": randn(10_000).sort(descending=True).values,
    "constant": torch.full((10_000,), 0.1),
    "tied": torch.randint(0, 5, (10_000,), generator=torch.Generator().manual_seed(0)).double(),
    "ramp": -torch.arange(10_000.0),
    "sawtooth": torch.arange(10_000.0) % 7,
    "low last": one_low_last_value(10_000, -1.0),
    "very low last": one_low_last_value(10_000, -1e9),
    "high first": one_low_last_value(10_000, -1e5).flip(0).neg(),
    "small": randn(100) * 1e-30,
    "large": randn(100) * 1e30,
}
cases = pytest.mark.parametrize("y", CASES.values(), ids=CASES.keys())


@engines
@dtypes
@cases
def test_equals_scipy(y, dtype, engine):
    assert_exact(y.to(dtype), engine=engine)
    assert_exact(y.to(dtype), increasing=False, engine=engine)


@engines
@dtypes
@cases
def test_equals_scipy_under_weights(y, dtype, engine):
    weights = weights_over_six_decades(len(y)).to(dtype)
    assert_exact(y.to(dtype), weights, engine=engine)
    assert_exact(y.to(dtype), weights, increasing=False, engine=engine)


@engines
def test_weights_of_eighteen_decades(engine):
    for seed in range(50):
        assert_exact(
            randn(100, seed=seed), weights_over_six_decades(100, seed=seed) ** 3, True, engine
        )


@engines
def test_default_engine_is_one_of_the_two(engine):
    y = randn(1_000)
    torch.testing.assert_close(pava(y), pava(y, engine=engine), rtol=0, atol=1e-14)


@engines
@dtypes
@cases
def test_monotone_to_the_bit_and_idempotent(y, dtype, engine):
    y = y[-2_000:]
    for w in (None, weights_over_six_decades(len(y)).to(dtype)):
        x = pava(y.to(dtype), w, engine=engine)
        assert (x.diff() >= 0).all()
        again = pava(x, w, engine=engine)
        if engine == "tensor_ops":
            assert torch.equal(again, x)
        else:  # SciPy takes the mean of equal values anew
            assert (again - x).abs().max() <= TOLERANCE[dtype] * x.abs().max()


# -- laws, over drawn inputs -------------------------------------------------------------------


def rows(ties):
    if ties:
        values = st.integers(-4, 4).map(float)
    else:
        values = st.floats(-1e6, 1e6, allow_subnormal=False)
    return st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float64, n, elements=values),
            hnp.arrays(np.float64, n, elements=st.floats(1e-3, 1e3)),
        )
    )


drawn = st.booleans().flatmap(rows).map(lambda pair: tuple(map(torch.from_numpy, pair)))


@engines
@law
@given(drawn)
def test_law_equals_scipy(engine, pair):
    for dtype in DTYPES:
        y, weights = (t.to(dtype) for t in pair)
        for increasing in (True, False):
            assert_exact(y, None, increasing, engine)
            assert_exact(y, weights, increasing, engine)


@engines
@law
@given(drawn)
def test_law_kkt(engine, pair):
    y, w = pair
    x = pava(y, w, engine=engine)
    scale = 1e-11 * w.sum() * y.abs().max()
    # multiplier of x_i <= x_{i+1}: lambda_i = sum_{j<=i} w_j (y_j - x_j)
    multiplier = (w * (y - x)).cumsum(0)
    assert (x.diff() >= 0).all()  # primal
    assert (multiplier >= -scale).all()  # dual
    assert multiplier[-1].abs() <= scale  # stationarity: keeps the weighted mean
    slack = multiplier[:-1] * x.diff()
    assert (slack.abs() <= scale * y.abs().max()).all()  # complementary slackness


@engines
@law
@given(drawn)
def test_law_negating_and_flipping(engine, pair):
    y, w = pair
    x = pava(y, w, engine=engine)
    close = dict(rtol=0, atol=1e-12 * max(1e-300, y.abs().max().item()))
    torch.testing.assert_close(-pava(-y, w, False, engine), x, **close)
    torch.testing.assert_close(-pava(-y.flip(0), w.flip(0), True, engine).flip(0), x, **close)


@engines
@law
@given(drawn, st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.data())
def test_law_no_silent_nan(engine, pair, bad, data):
    y = pair[0].clone()
    for index in data.draw(st.sets(st.integers(0, len(y) - 1), min_size=1, max_size=3)):
        y[index] = bad
    chosen = None if engine == "scipy" else engine  # None: the short way through the function
    for dtype in DTYPES:
        with pytest.raises(ValueError, match="y must be finite"):
            pava(y.to(dtype), engine=chosen)
    y[0], y[-1] = float("inf"), float("-inf")
    with pytest.raises(ValueError, match="y must be finite"):
        pava(y, engine=chosen)


@engines
@law
@given(drawn)
def test_law_gradient_is_the_mean_over_blocks(engine, pair):
    y, w = (t.clone().requires_grad_() for t in pair)
    x = pava(y, w, engine=engine)
    g = randn(len(y))
    grad_y, grad_w = torch.autograd.grad(x, (y, w), g)
    y, w, x = y.detach(), w.detach(), x.detach()
    expected_y, expected_w = torch.zeros_like(y), torch.zeros_like(w)
    for value in x.unique():
        block = x == value
        mean = g[block].sum() / w[block].sum()
        expected_y[block] = w[block] * mean
        expected_w[block] = (y[block] - value) * mean
    torch.testing.assert_close(grad_y, expected_y)
    torch.testing.assert_close(grad_w, expected_w, rtol=1e-7, atol=1e-9 * max(1, y.abs().max()))


# -- batches and layouts -----------------------------------------------------------------------


@engines
@pytest.mark.parametrize("increasing", (True, False))
@pytest.mark.parametrize("weighted", ("none", "shared", "own"))
def test_batch_equals_loop_and_its_gradient(engine, increasing, weighted):
    y = randn(3, 4, 37).requires_grad_()
    w = {
        "none": None,
        "shared": weights_over_six_decades(37),
        "own": weights_over_six_decades(3, 4, 37),
    }
    w = w[weighted]
    g = randn(3, 4, 37, seed=5)
    inputs = [y]
    if w is not None:
        inputs.append(w.requires_grad_())
    x = pava(y, w, increasing, engine)
    looped = torch.stack(
        [
            pava(
                row, None if w is None else w.expand(y.shape).reshape(12, 37)[i], increasing, engine
            )
            for i, row in enumerate(y.reshape(12, 37))
        ]
    ).view(y.shape)
    torch.testing.assert_close(x, looped, rtol=0, atol=1e-14)
    grads = torch.autograd.grad(x, inputs, g)
    for grad, expected in zip(grads, torch.autograd.grad(looped, inputs, g), strict=True):
        torch.testing.assert_close(grad, expected)


@engines
def test_permuting_rows_permutes_the_result(engine):
    y, w = randn(20, 33), weights_over_six_decades(20, 33)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pava(y[order], w[order], engine=engine), pava(y, w, engine=engine)[order])


@engines
def test_rows_that_join_at_equal_values_are_apart_in_backward(engine):
    y = torch.tensor([[2.0, 1.0], [1.5, 1.5], [3.0, 0.0]], requires_grad=True)
    pava(y, engine=engine).backward(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 6.0]]))
    assert torch.equal(y.grad[0], torch.tensor([0.5, 0.5]))
    assert torch.equal(y.grad[2], torch.tensor([3.0, 3.0]))


@engines
def test_non_contiguous_inputs(engine):
    y, w = randn(40, 6), weights_over_six_decades(40, 6)
    expected = pava(y.T.contiguous(), w.T.contiguous(), engine=engine)
    assert torch.equal(pava(y.T, w.T, engine=engine), expected)
    torch.testing.assert_close(pava(y[:, 0], engine=engine), exact(y[:, 0]))
    torch.testing.assert_close(pava(y[::3, 1], engine=engine), exact(y[::3, 1]))
    assert_exact(torch.ones(()).expand(5), engine=engine)
    leaf = y.clone().requires_grad_()
    pava(leaf.T, engine=engine).sum().backward()  # a gradient of stride 0
    torch.testing.assert_close(leaf.grad, torch.ones_like(leaf))


@engines
def test_no_rows(engine):
    for shape in ((0, 5), (2, 0, 5)):
        y = torch.empty(shape, requires_grad=True)
        x = pava(y, torch.ones(5), engine=engine)
        assert x.shape == y.shape
        x.sum().backward()
        assert y.grad.shape == y.shape


@engines
@dtypes
@pytest.mark.parametrize("n", (1, 4, 5))
def test_input_is_neither_changed_nor_shared(engine, dtype, n):
    for shape in ((n,), (2, n)):
        for y in (
            torch.arange(2.0 * n, dtype=dtype)[: n * len(shape)].view(shape),
            randn(*shape).to(dtype),
        ):
            w = torch.full((n,), 2.0, dtype=dtype)
            kept = y.clone()
            for increasing in (True, False):
                for weights in (None, w):
                    pava(y, weights, increasing, engine).add_(7)
                    assert torch.equal(y, kept) and torch.equal(w, torch.full_like(w, 2.0))
            for leaf in (y.clone().requires_grad_(), torch.nn.Parameter(y.clone())):
                with torch.no_grad():
                    x = pava(leaf)
                    assert not x.requires_grad
                    x.add_(7)
                assert torch.equal(leaf, kept)
                pava(leaf).mul_(2).sum().backward()  # the result may be changed in place
                assert torch.equal(leaf.grad, torch.full_like(leaf, 2.0))


@engines
def test_values_whose_sign_is_kept_by_the_tensor(engine):
    z = torch.complex(randn(9), randn(9, seed=1))
    y = z.conj().imag  # NumPy refuses it as it is
    assert y.is_neg()
    for chosen in (None, engine):
        assert torch.equal(pava(y, engine=chosen), pava(y.clone(), engine=chosen))
    weights = torch.complex(randn(9), -weights_over_six_decades(9)).conj().imag
    leaf, other = (y.clone().requires_grad_() for _ in range(2))
    ours = pava(leaf, weights, engine=engine)
    theirs = pava(other, weights.clone(), engine=engine)
    assert torch.equal(ours, theirs)
    ours.backward(y)
    theirs.backward(y.clone())
    assert torch.equal(leaf.grad, other.grad)


@engines
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision(engine, dtype):
    for shape in ((200,), (3, 50)):
        y = (randn(*shape) * 3).to(dtype).requires_grad_()
        w = (torch.rand(shape[-1], generator=torch.Generator().manual_seed(2)) + 0.5).to(dtype)
        for weights in (None, w.requires_grad_()):
            x = pava(y, weights, engine=engine)
            wide = pava(y.detach().double(), None if weights is None else w.detach().double())
            assert x.dtype == dtype
            assert torch.equal(x.detach(), wide.to(dtype))  # one rounding, at the end
            x.sum().backward()
            assert y.grad.dtype == dtype
        assert w.grad.dtype == dtype and w.grad.isfinite().all()


@engines
def test_half_precision_sum_beyond_its_range_is_no_error(engine):
    y = torch.full((100,), 60_000.0, dtype=torch.float16)
    assert torch.equal(pava(y, engine=engine), y)


# -- gradient ----------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16))
def test_nothing_of_the_result_is_kept_for_backward(engine, dtype):
    factor, w = torch.arange(1.0, 10).to(dtype), torch.ones(9, dtype=dtype)
    for weights in (None, w.requires_grad_()):
        for chosen in (None, engine):
            y = randn(9).to(dtype).requires_grad_()
            x = pava(y, weights, engine=chosen)
            expected = torch.autograd.grad(x, y, factor, retain_graph=True)[0]
            changed = x.mul_(factor)  # ends each block that there was
            assert torch.equal(torch.autograd.grad(changed.sum(), y)[0], expected)


@engines
@pytest.mark.parametrize("increasing", (True, False))
@pytest.mark.parametrize("shape", ((1,), (8,), (2, 1, 5)))
def test_gradcheck(engine, increasing, shape):
    y = randn(*shape, seed=3).requires_grad_()
    own = (weights_over_six_decades(*shape) ** 0.25).requires_grad_()
    shared = (weights_over_six_decades(shape[-1]) ** 0.25).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda y: pava(y, None, increasing, engine), (y,), eps=1e-7)
    assert check(lambda y, w: pava(y, w, increasing, engine), (y, own), eps=1e-7)
    assert check(lambda y, w: pava(y, w, increasing, engine), (y, shared), eps=1e-7)
    assert check(lambda w: pava(y.detach(), w, increasing, engine), (shared,), eps=1e-7)


@pytest.mark.parametrize("shape", ((12,), (3, 9)))
def test_gradcheck_of_the_default_call(shape):
    assert torch.autograd.gradcheck(pava, (randn(*shape, seed=3).requires_grad_(),), eps=1e-7)


@dtypes
def test_gradient_of_the_default_call_on_a_long_row(dtype):
    y = (randn(10_000) + torch.linspace(0, 3, 10_000)).to(dtype).requires_grad_()
    g = randn(10_000, seed=1).to(dtype)
    ours = torch.autograd.grad(pava(y), y, g)[0]
    other = torch.autograd.grad(pava(y, engine="tensor_ops"), y, g)[0]
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, other)


@engines
def test_second_derivative_is_refused(engine):
    for chosen in (None, engine):
        for weights in (None, torch.ones(9)):
            y = randn(9).requires_grad_()
            loss = pava(y, weights, engine=chosen).square().sum() + y.square().sum()
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(loss, y, create_graph=True)


@pytest.mark.parametrize("increasing", (True, False))
@engines
def test_unchecked_rows_that_are_not_finite_come_back_as_nan(engine, increasing):
    y, w = randn(5, 9), weights_over_six_decades(5, 9)
    good = pava(y, w, increasing, engine)
    y[1, 3], y[2, 0] = NAN, INF
    w[3, 8], w[4, 0] = 0.0, NAN
    for dtype in (*DTYPES, torch.bfloat16):
        x = pava(y.to(dtype), w.to(dtype), increasing, engine, check=False)
        assert x.dtype == dtype and x[1:].isnan().all()
        if dtype == torch.float64:
            assert torch.equal(x[0], good[0])
        assert pava(y[2].to(dtype), None, increasing, engine, check=False).isnan().all()
        assert pava(y[3].to(dtype), None, increasing, engine, check=False).isfinite().all()
    with pytest.raises(ValueError, match=r"got nan at index 3 of row 1\.$"):
        pava(y, None, increasing, engine, check=True)


@pytest.mark.parametrize("far", [0.0, 3000.0])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("compiled", [True, False])
def test_projection_of_rows_is_the_projection_of_each(rows, far, compiled, monkeypatch):
    assert scipy_engine._compiled_pava is not None
    if not compiled:  # as with a SciPy that no longer has the function
        monkeypatch.setattr(scipy_engine, "_compiled_pava", None)
    values, order = randn(rows, 50).float(), torch.randperm(50)
    values[0] += far
    expected = values.clone()
    for row in expected:
        assert scipy_engine.project_(row, order, -0.5)
    project = scipy_engine.MonotoneRows(order.numpy(), rows, -0.5)
    assert project(values.reshape(-1).numpy())
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    values[-1, 7] = NAN
    kept = values.clone()
    assert not project(values.reshape(-1).numpy())
    torch.testing.assert_close(values, kept, rtol=0, atol=0, equal_nan=True)


@dtypes
def test_projection_in_place_is_pava_in_another_order(dtype):
    values, order = randn(50).to(dtype), torch.randperm(50)
    expected = values.clone()
    expected[order] = pava(values[order]).clamp(min=-0.5)
    assert scipy_engine.project_(values, order, -0.5)
    assert torch.equal(values, expected)
    values[7] = NAN
    kept = values.clone()
    assert not scipy_engine.project_(values, order, -0.5)
    torch.testing.assert_close(values, kept, rtol=0, atol=0, equal_nan=True)


def test_tensor_ops_never_asks_for_a_value():
    # Fake tensors hold no data: whatever would synchronise with a device raises.
    for shape in ((13,), (2, 3, 16)):
        y, w, g = randn(*shape), weights_over_six_decades(shape[-1]), randn(*shape)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            y, w, g = (mode.from_tensor(t) for t in (y, w, g))
            _, x = tensor_ops.solve(y, w)
            means = tensor_ops.block_means(g, tensor_ops.blocks(x), w)
        assert x.shape == means.shape == shape


# -- torch's own transformations ---------------------------------------------------------------


def both_gradients(function, y, w, g):
    y, w = y.clone().requires_grad_(), w.clone().requires_grad_()
    x = function(y, w)
    return x.detach(), *torch.autograd.grad(x, (y, w), g)


@engines
@pytest.mark.parametrize(
    ("dtype", "increasing"),
    [(torch.float64, True), (torch.float32, False), (torch.bfloat16, True)],
)
def test_compiles_without_a_graph_break(engine, dtype, increasing):
    torch._dynamo.reset()
    y, w, g = randn(3, 17).to(dtype), weights_over_six_decades(17).to(dtype), randn(3, 17).to(dtype)

    def function(y, w):
        return pava(2 * y, w, increasing, engine)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    expected = both_gradients(function, y, w, g)
    for ours, theirs in zip(both_gradients(compiled, y, w, g), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs)
    lone = torch.compile(lambda y: pava(y), backend="aot_eager", fullgraph=True)
    assert torch.equal(lone(y[0]), pava(y[0]))
    y[1, 0] = NAN  # nothing is checked in there
    assert compiled(y, w)[1].isnan().all() and compiled(y, w)[0].isfinite().all()


@engines
@dtypes
def test_a_compiled_function_may_change_the_result_in_place(engine, dtype):
    torch._dynamo.reset()
    y, factor = randn(9).to(dtype).requires_grad_(), torch.arange(9.0, dtype=dtype)

    def function(y):
        return pava(y, engine=engine).mul_(factor)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    ours, theirs = (torch.autograd.grad(f(y).sum(), y)[0] for f in (compiled, function))
    torch.testing.assert_close(ours, theirs)


@engines
def test_operators_pass_the_checks_of_torch(engine):
    y, w, g = randn(3, 17), weights_over_six_decades(3, 17), randn(3, 17)
    y, w = y.requires_grad_(), w.requires_grad_()
    torch.library.opcheck(ops.isotonic, (y, w, True, engine))
    torch.library.opcheck(ops.isotonic, (y.detach().float(), None, False, engine))
    solution = pava(y, w, engine=engine).detach()
    torch.library.opcheck(ops.isotonic_block_means, (g, solution, w.detach(), engine))
    torch.library.opcheck(ops.isotonic_block_means, (g, solution, None, engine))


@engines
def test_exports_and_keeps_the_gradient_out_of_sight_of_values(engine):
    class Fit(torch.nn.Module):
        def forward(self, y):
            return pava(y, engine=engine) * 2

    y = randn(4, 9).float()
    for strict in (True, False):
        program = torch.export.export(Fit(), (y,), strict=strict)
        assert torch.equal(program.module()(y), pava(y, engine=engine) * 2)


@engines
def test_fake_and_meta_tensors_have_the_shape_and_dtype(engine):
    with FakeTensorMode():
        y = torch.empty(2, 5, dtype=torch.float32, requires_grad=True)
        x = pava(y, torch.empty(5), engine=engine)
        assert x.shape == (2, 5) and x.dtype == torch.float32
        x.sum().backward()
        assert y.grad.shape == (2, 5)
    y = torch.empty(2, 5, device="meta", dtype=torch.bfloat16)
    x = pava(y, engine="tensor_ops")
    assert x.is_meta and x.shape == (2, 5) and x.dtype == torch.bfloat16


@engines
def test_make_fx_keeps_the_operator_and_not_its_result(engine):
    y = randn(7)
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda y: pava(y, engine=engine))(y)
    other = randn(7, seed=1)
    assert torch.equal(graph(other), pava(other, engine=engine))


@engines
@pytest.mark.filterwarnings("ignore")  # it warns that it is deprecated, and of each comparison
def test_jit_trace_keeps_the_operator_and_not_its_result(engine):
    y, other = randn(7), randn(7, seed=1)
    traced = torch.jit.trace(lambda y: pava(y, engine=engine), (y,))
    assert torch.equal(traced(other), pava(other, engine=engine))


@engines
@pytest.mark.parametrize("in_dims", ((0, None), (1, None), (None, 0), (0, 0), (1, 1)))
def test_vmap_equals_a_loop(engine, in_dims):
    y = randn(*((4, 3, 9) if in_dims[0] is not None else (3, 9)))
    w = weights_over_six_decades(*((4, 9) if in_dims[1] is not None else (9,)))
    y = y if in_dims[0] != 1 else y.movedim(0, 1)
    w = w if in_dims[1] != 1 else w.movedim(0, 1)
    x = torch.func.vmap(lambda y, w: pava(y, w, engine=engine), in_dims)(y, w)
    rows = [
        pava(
            y if in_dims[0] is None else y.select(in_dims[0], i),
            w if in_dims[1] is None else w.select(in_dims[1], i),
            engine=engine,
        )
        for i in range(4)
    ]
    torch.testing.assert_close(x, torch.stack(rows), rtol=0, atol=1e-14)


@engines
def test_functional_gradients(engine):
    y, w, g = randn(4, 9), weights_over_six_decades(9), randn(4, 9)

    def loss(y, w, g):
        return (pava(y, w, engine=engine) * g).sum()

    grads = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None, 0))(y, w, g)
    for i in range(4):
        expected = both_gradients(lambda y, w: pava(y, w, engine=engine), y[i], w, g[i])[1:]
        for ours, theirs in zip(grads, expected, strict=True):
            torch.testing.assert_close(ours[i], theirs)
    jacobian = torch.func.jacrev(lambda y: pava(y, engine=engine))(y[0])
    torch.testing.assert_close(jacobian, jacobian.T)  # a projection
    torch.testing.assert_close(jacobian @ jacobian, jacobian)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda y: torch.func.grad(loss)(y, w, g[0]).square().sum())(y[0])
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jacfwd(lambda y: pava(y, engine=engine))(y[0])


@pytest.mark.parametrize("engine", (None, *ENGINES))
def test_forward_mode_is_refused_and_not_taken_for_zero(engine):
    y, w = randn(9), weights_over_six_decades(9)
    with forward_ad.dual_level():
        y_dual, w_dual = (forward_ad.make_dual(t, torch.ones_like(t)) for t in (y, w))
        for args in ((y_dual, None), (y_dual, w), (y, w_dual)):
            with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                pava(*args, engine=engine)
        torch.testing.assert_close(pava(y, w, engine=engine), exact(y, w))  # no tangent, no error
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.linearize(lambda y: pava(y, engine=engine), y)


def test_check_is_refused_where_there_are_no_values():
    with pytest.raises(ValueError, match="check must not be True"):
        torch.func.vmap(lambda y: pava(y, check=True))(randn(2, 3))


# -- a user's mistakes -------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ROW = torch.tensor([1.0, 3.0, 2.0])
VALUE_ERRORS = {
    "nan": ((torch.tensor([0.0, NAN, 1.0]),), r"y must be finite, got nan at index 1\.$"),
    "inf": ((torch.tensor([0.0, 1.0, -INF]),), r"y must be finite, got -inf at index 2\.$"),
    "nan in a row": (
        (torch.tensor([[0.0, 1.0], [0.0, 1.0], [NAN, 1.0]]),),
        r"y must be finite, got nan at index 0 of row 2\.$",
    ),
    "inf in a deep row": (
        (torch.tensor([[[0.0, 1.0], [0.0, INF]]]),),
        r"y must be finite, got inf at index 1 of row \(0, 1\)\.$",
    ),
    "nan, decreasing": ((torch.tensor([NAN]), None, False), "got nan at index 0"),
    "empty": ((torch.empty(0),), r"at least one value in its last dimension, got shape \(0,\)"),
    "empty rows": ((torch.empty(4, 0),), r"last dimension, got shape \(4, 0\)"),
    "0-dim": ((torch.tensor(1.0),), "y must have at least one dimension, got a 0-dim"),
    "zero weight": (
        (ROW, torch.tensor([1.0, 0.0, 1.0])),
        r"weights must be positive and finite, got 0\.0 at index 1\.$",
    ),
    "negative weight": ((ROW, torch.tensor([-2.0, 1, 1])), r"got -2\.0 at index 0"),
    "nan weight": ((ROW, torch.tensor([1.0, 1, NAN])), "got nan at index 2"),
    "inf weight": (
        (ROW.expand(2, 3), torch.tensor([[1.0, 1, 1], [1, INF, 1]])),
        "got inf at index 1 of row 1",
    ),
    "weights too short": (
        (ROW, torch.ones(2)),
        r"weights must have shape \(3,\), got \(2,\)\.$",
    ),
    "weights of another batch": (
        (ROW.expand(2, 3), torch.ones(1, 3)),
        r"weights must have shape \(2, 3\) or \(3,\), got \(1, 3\)\.$",
    ),
    "weights elsewhere": ((ROW, torch.ones(3, device="meta")), "on y's device cpu, got meta"),
    "unknown engine": (
        (ROW, None, True, "cuda"),
        r"engine must be 'scipy', 'tensor_ops', 'triton' or None, got 'cuda'\.$",
    ),
    "scipy elsewhere": (
        (torch.ones(3, device="meta"), None, True, "scipy"),
        "engine 'scipy' .* got y on meta",
    ),
}
TYPE_ERRORS = {
    "list": (([1.0, 2.0],), r"y must be a torch\.Tensor, got list\.$"),
    "integer": (
        (torch.tensor([1, 2]),),
        r"y must have a dtype among .*float64.*, got torch\.int64",
    ),
    "complex": ((torch.ones(2, dtype=torch.cfloat),), r"got torch\.complex64"),
    "weights list": ((ROW, [1, 1, 1]), r"weights must be a torch\.Tensor, got list"),
    "integer weights": ((ROW, torch.tensor([1, 1, 1])), r"weights must .*, got torch\.int64"),
    "engine": ((ROW, None, True, 3), "engine must be .*, got int"),
}


@pytest.mark.parametrize("args, message", VALUE_ERRORS.values(), ids=VALUE_ERRORS.keys())
def test_value_errors(args, message):
    with pytest.raises(ValueError, match=message):
        pava(*args)


@pytest.mark.parametrize("args, message", TYPE_ERRORS.values(), ids=TYPE_ERRORS.keys())
def test_type_errors(args, message):
    with pytest.raises(TypeError, match=message):
        pava(*args)


@engines
def test_both_engines_refuse_values_that_are_not_finite(engine):
    for requires_grad in (False, True):
        y = torch.tensor([[1.0, 2.0], [NAN, 0.0]], requires_grad=requires_grad)
        with pytest.raises(ValueError, match="nan at index 0 of row 1"):
            pava(y, engine=engine)
        with pytest.raises(ValueError, match="nan at index 0"):
            pava(y[1], torch.ones(2), engine=engine)


@pytest.mark.filterwarnings("error")
def test_finite_values_whose_sums_overflow():
    for y in (torch.tensor([3e38, -3e38, 3e38]), torch.tensor([1e38, 3e38, 3.1e38, 3e38])):
        assert_exact(y)
        assert_exact(y, engine="tensor_ops")
    for y in ([-1e200, 2e200, 1e200], [1e308, 1.2e308]):
        assert_exact(torch.tensor(y, dtype=torch.float64))
