import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F

from ltlearn import SAMNLinear, UserError, pava
from ltlearn.heads import head_from_state
from ltlearn.heads import samn as heads

COUNTS = [
    [500, 120, 30, 5],
    [5, 500, 120, 30],
    [1, 2],
    [1000, 999, 998, 1],
    [0, 3, 70],
    [int(500 * 0.01 ** (c / 99)) for c in range(100)],
]


def norm_of(q: float) -> float:
    return math.exp(1 / (math.log1p(math.exp(q)) + 2e-6))


def make_linear(counts, width=6, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(width, len(counts), bias)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_starting_norms_and_shifts_are_the_published_ones(counts):
    linear = make_linear(counts)
    head = SAMNLinear.from_linear(linear, counts)
    n = np.array(counts, dtype=float)
    expected = [norm_of((c - n.min()) / (n.max() - n.min()) + 1e-6) for c in n]
    norms = head.norms().tolist()
    shifts = (head.effective()[1] - linear.bias).tolist()
    assert norms == pytest.approx(expected, abs=5e-5)
    assert shifts == pytest.approx(expected, abs=5e-5)
    for got in (norms, shifts):
        assert got[int(n.argmin())] == pytest.approx(4.2321, abs=5e-5)
        assert got[int(n.argmax())] == pytest.approx(2.1414, abs=5e-5)
    assert torch.allclose(
        F.normalize(head.effective()[0], dim=1), F.normalize(linear.weight, dim=1), atol=1e-6
    )


def test_equal_counts_start_at_the_norm_of_the_rarest():
    head = SAMNLinear.from_linear(make_linear([7, 7, 7]), [7, 7, 7])
    assert head.norms().tolist() == pytest.approx([norm_of(1e-6)] * 3, abs=5e-5)
    assert head.rank_to_class.tolist() == [0, 1, 2]


def test_ties_keep_the_order_of_the_classes():
    head = SAMNLinear(4, [9, 3, 9, 3, 3, 9] * 20)
    expected = sorted(range(120), key=lambda c: ([9, 3, 9, 3, 3, 9] * 20)[c])
    assert head.rank_to_class.tolist() == expected
    assert head.class_to_rank[head.rank_to_class].tolist() == list(range(120))


# ------------------------------------------------ the authors' head, written out plainly


def slow_pava(y):
    """Serial pool-adjacent-violators; returns the fit and the block of each place."""
    blocks = []
    for i, v in enumerate(y):
        blocks.append([v, 1, [i]])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            v2, n2, i2 = blocks.pop()
            v1, n1, i1 = blocks.pop()
            blocks.append([(v1 * n1 + v2 * n2) / (n1 + n2), n1 + n2, i1 + i2])
    fit, members = [0.0] * len(y), [None] * len(y)
    for value, _, index in blocks:
        for i in index:
            fit[i], members[i] = value, index
    return fit, members


class SlowSAMN:
    """The authors' head in float64, forward and backward by hand, with SGD and momentum."""

    def __init__(self, weight, bias, counts, raw=None, lr=0.1, momentum=0.9, wd=0.0):
        n = [float(c) for c in counts]
        span = max(n) - min(n)
        start = [(c - min(n)) / span + 1e-6 if span else 1e-6 for c in n]
        self.order = sorted(range(len(n)), key=lambda c: n[c])
        self.p = {
            "weight": weight.detach().double().clone(),
            "bias": bias.detach().double().clone(),
            "raw_norm_weight": torch.tensor(start if raw is None else raw, dtype=torch.float64),
            "raw_norm_bias": torch.tensor(start if raw is None else raw, dtype=torch.float64),
        }
        self.velocity = {k: torch.zeros_like(v) for k, v in self.p.items()}
        self.lr, self.momentum, self.wd = lr, momentum, wd
        self.pooled = 0

    def scale(self, raw):
        fit, members = slow_pava([raw[c].item() for c in self.order])
        self.pooled = max(self.pooled, max(len(m) for m in members))
        q, block = torch.zeros_like(raw), [None] * len(fit)
        for place, c in enumerate(self.order):
            q[c], block[c] = fit[place], [self.order[j] for j in members[place]]
        s = 1 / (torch.log1p(torch.exp(q)) + 1e-6 + 1e-6)
        return q, s, block

    def step(self, x, target):
        x = x.double()
        w, b = self.p["weight"], self.p["bias"]
        qw, sw, block_w = self.scale(self.p["raw_norm_weight"])
        qb, sb, block_b = self.scale(self.p["raw_norm_bias"])
        length = w.norm(dim=1, keepdim=True)
        unit = w / length
        logits = x @ (unit * sw.exp()[:, None]).T + b + sb.exp()
        loss = -logits.log_softmax(1)[range(len(x)), target].mean()
        dz = (logits.softmax(1) - F.one_hot(target, len(b))) / len(x)
        dw_hat, db_hat = dz.T @ x, dz.sum(0)
        # d norm = <d w_hat, u>;  dW = exp(s) / |W| (I - u u') d w_hat
        along = (dw_hat * unit).sum(1)
        grads = {
            "weight": sw.exp()[:, None] / length * (dw_hat - along[:, None] * unit),
            "bias": db_hat,
        }
        for name, g, q, s, block in (
            ("raw_norm_weight", along, qw, sw, block_w),
            ("raw_norm_bias", db_hat, qb, sb, block_b),
        ):
            dq = -g * s.exp() * s**2 * torch.sigmoid(q)
            grads[name] = torch.stack([dq[m].mean() for m in block])
        for name, p in self.p.items():
            g = grads[name] + self.wd * p
            self.velocity[name] = self.momentum * self.velocity[name] + g
            p -= self.lr * self.velocity[name]
        return loss.item()


@pytest.mark.parametrize("wd", [0.0, 0.05])
@pytest.mark.parametrize("pooling", [False, True])
def test_forward_mode_follows_the_authors_step_for_step(pooling, wd):
    counts = [40, 40, 12, 9, 4, 1]
    linear = make_linear(counts, width=5, seed=3)
    head = SAMNLinear.from_linear(linear, counts, project="forward")
    raw = None
    if pooling:
        raw = [-0.3, 0.9, 1.4, -0.8, 0.6, 0.55]
        with torch.no_grad():
            head.raw_norm_weight.copy_(torch.tensor(raw))
            head.raw_norm_bias.copy_(torch.tensor(raw))
        raw = head.raw_norm_weight.tolist()
    slow = SlowSAMN(linear.weight, linear.bias, counts, raw, lr=0.05, wd=wd)
    opt = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=wd)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        x = torch.randn(16, 5, generator=generator)
        target = torch.randint(6, (16,), generator=generator)
        loss = F.cross_entropy(head(x), target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        head.project_()
        assert loss.item() == pytest.approx(slow.step(x, target), rel=1e-5)
    assert slow.pooled >= (3 if pooling else 1)
    for name, p in head.named_parameters():
        error = (p.double() - slow.p[name]).abs().max() / slow.p[name].abs().max()
        assert error < 1e-5, name
    start = SAMNLinear.from_linear(linear, counts).raw_norm_weight
    assert (head.raw_norm_weight - start).abs().max() > 0.01, "nothing was trained"


def is_monotone(head):
    return all(
        bool((raw[head.rank_to_class].diff() >= 0).all())
        for raw in (head.raw_norm_weight, head.raw_norm_bias)
        if raw is not None
    )


def test_step_mode_is_projected_gradient():
    counts = [50, 20, 10, 3]
    head = SAMNLinear.from_linear(make_linear(counts), counts)
    with torch.no_grad():
        head.raw_norm_weight.copy_(torch.tensor([0.2, 0.8, -1.0, 0.5]))
    assert not is_monotone(head)
    assert head.project_() is head
    fit, _ = slow_pava([0.5, -1.0, 0.8, 0.2])
    assert head.raw_norm_weight[[3, 2, 1, 0]].tolist() == pytest.approx(fit)
    assert is_monotone(head)


@pytest.mark.parametrize("project", ["step", "forward"])
def test_norms_at_the_limit_are_finite_and_can_come_back(project):
    counts = [50, 20, 3]
    head = SAMNLinear.from_linear(make_linear(counts), counts, project=project)
    with torch.no_grad():
        head.raw_norm_weight.fill_(-50)
        head.raw_norm_bias.fill_(-50)
    x, target = torch.randn(32, 6), torch.arange(32) % 3
    logits = head(x)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    F.cross_entropy(logits, target).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    # In training the norm is too large for such labels, so it has to come down again.
    opt = torch.optim.SGD(head.parameters(), lr=0.5)
    before = head.norms().max()
    for _ in range(200):
        opt.zero_grad()
        F.cross_entropy(head(x), target).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        opt.step()
        head.project_()
    assert before > 20_000
    assert head.norms().max() < 10
    assert all(p.isfinite().all() for p in head.parameters())


def test_norms_that_are_no_numbers_stop_training_with_a_sentence():
    head = SAMNLinear(3, [5, 2])
    with torch.no_grad():
        head.raw_norm_weight[0] = math.nan
    with pytest.raises(UserError, match="training has diverged; lower the learning rate"):
        head.project_()


@pytest.mark.parametrize("project", ["step", "forward"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("on", [("weight",), ("bias",), ("weight", "bias")])
def test_folded_logits_agree(on, bias, project):
    counts = [500, 30, 30, 2]
    head = SAMNLinear.from_linear(make_linear(counts, bias=bias), counts, on=on, project=project)
    with torch.no_grad():
        for p in head.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    head.project_()
    linear = head.fold()
    assert type(linear) is nn.Linear
    assert (linear.bias is not None) == (bias or "bias" in on)
    x = torch.randn(64, 6) * 10
    expected = head(x)
    assert (linear(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_part_that_is_not_rescaled_is_the_linear_layers():
    counts = [40, 12, 4]
    linear = make_linear(counts)
    weight, bias = SAMNLinear.from_linear(linear, counts, on=("weight",)).effective()
    assert torch.equal(bias, linear.bias)
    weight, bias = SAMNLinear.from_linear(linear, counts, on=("bias",)).effective()
    assert torch.equal(weight, linear.weight)
    assert (bias - linear.bias).tolist() == pytest.approx(
        [2.1414, norm_of(8 / 36), 4.2321], abs=5e-5
    )


@pytest.mark.parametrize("project", ["step", "forward"])
def test_state_dict_and_deepcopy(project):
    counts = [40, 12, 4]
    head = SAMNLinear.from_linear(make_linear(counts), counts, [3, 1, 2], project=project)
    with torch.no_grad():
        head.raw_norm_weight.add_(torch.tensor([0.5, 0.1, 0.2]))
    head(torch.randn(2, 6))
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    fresh = SAMNLinear(6, [1, 1, 1])
    fresh.project_()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(8, 6)
    for other in (fresh, copy.deepcopy(head)):
        assert other.project == project
        assert other.rank_to_class.tolist() == [1, 2, 0]
        assert other.class_counts.tolist() == counts
        assert torch.equal(other(x), head(x))
    with torch.no_grad():
        fresh.weight.zero_()
    assert head.weight.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("on", [("weight",), ("bias",), ("weight", "bias")])
def test_inputs_of_other_dtypes(dtype, on):
    counts = [100_000, 1200, 4]
    head = SAMNLinear.from_linear(make_linear(counts), counts, on=on)
    x = torch.randn(16, 6)
    expected = head(x)
    for other in (head, copy.deepcopy(head).to(dtype)):
        out = other(x.to(dtype))
        assert out.dtype == dtype
        assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
        out.sum().backward()
        # In half precision 100,000 would be infinite.
        assert other.class_counts.tolist() == counts
        assert other.fold()(x.to(other.weight.dtype)).dtype == other.weight.dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(x)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_gradient_is_exact():
    head = SAMNLinear(3, [9, 5, 2], project="forward").double()
    with torch.no_grad():
        head.weight.normal_()
        head.raw_norm_weight.copy_(torch.tensor([0.3, 0.9, -0.2]))
    names, values = zip(*head.named_parameters(), strict=True)
    x = torch.randn(4, 3, dtype=torch.float64)

    def run(*parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, values)


# ------------------------------------------------ the gradient in closed form


PARTS = [("weight",), ("bias",), ("weight", "bias")]


def compose(head, x):
    """The head's logits in torch's own operations, each with its own gradient."""

    def scale(raw):
        if head.project == "forward":
            raw = pava(raw[head.rank_to_class])[head.class_to_rank]
        lowest = math.log(math.expm1(0.1 - 2e-6))  # gives a norm of exp(10)
        raw = raw.detach().clamp(min=lowest) + (raw - raw.detach())
        return (1 / (F.softplus(raw) + 2e-6)).exp()

    weight, bias = head.weight, head.bias
    if "weight" in head.on:
        weight = F.normalize(weight, dim=1) * scale(head.raw_norm_weight)[:, None]
        weight = weight if head.norm_scale is None else weight * head.norm_scale
    if "bias" in head.on:
        bias = bias + scale(head.raw_norm_bias)
    return F.linear(x, weight, bias)


def make_odd_head(
    on=("weight", "bias"),
    project="step",
    bias=True,
    width=7,
    dtype=torch.float64,
    start="published",
):
    """A head away from its start, one norm of which is at the limit."""
    counts = [90, 40, 41, 9, 3, 1]
    linear = make_linear(counts, width, bias=bias).to(dtype)
    head = SAMNLinear.from_linear(linear, counts, on=on, project=project, start=start)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in head.named_parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=dtype))
            if name.startswith("raw"):
                p[5] = -9.0
    return head


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(16, 7), (2, 5, 7), (7,), (0, 7)], ids=str)
@pytest.mark.parametrize("project", ["step", "forward"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("on", PARTS)
def test_values_and_gradients_are_those_of_torchs_own_operations(on, bias, project, shape, dtype):
    head = make_odd_head(on, project, bias, dtype=dtype)
    inputs = [torch.randn(shape, dtype=dtype).requires_grad_(), *head.parameters()]
    expected, logits = compose(head, inputs[0]), head(inputs[0])
    assert logits.grad_fn.name() == "_LogitsBackward", "the other way was taken"
    grad = torch.randn(logits.shape, dtype=dtype)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    ours, theirs = (torch.autograd.grad(z, inputs, grad) for z in (logits, expected))
    for a, b in zip((logits, *ours), (expected, *theirs), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert b.numel() == 0 or (a - b).abs().max() <= limit * b.abs().max()
    with torch.no_grad():
        assert torch.allclose(head(inputs[0]), expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("project", ["step", "forward"])
def test_gradients_with_a_scale_of_the_norms(project):
    head = make_odd_head(project=project, start="stage1")
    assert 0 < head.norm_scale < 1
    inputs = [torch.randn(16, 7, dtype=torch.float64).requires_grad_(), *head.parameters()]
    expected, logits = compose(head, inputs[0]), head(inputs[0])
    grad = torch.randn_like(logits)
    ours, theirs = (torch.autograd.grad(z, inputs, grad) for z in (logits, expected))
    for a, b in zip((logits, *ours), (expected, *theirs), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    head = make_odd_head(start="stage1")
    with torch.no_grad():
        head.project_()  # away from the limit, so that all derivatives exist
    assert gradgradcheck(
        lambda x: head(x).square().sum(), (torch.randn(3, 7).double().requires_grad_(),)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("on", PARTS)
def test_first_and_second_derivative(on, bias):
    head = make_odd_head(on, bias=bias, width=3)
    with torch.no_grad():
        for name, p in head.named_parameters():
            if name.startswith("raw"):
                p[5] = -0.7  # at the limit the gradient is not that of a finite difference
    names, values = zip(*head.named_parameters(), strict=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, (x, *values))
    assert gradgradcheck(run, (x, *values))


def test_no_second_derivative_through_the_projection():
    head = make_odd_head(project="forward")
    loss = head(torch.randn(4, 7, dtype=torch.float64)).square().sum()
    with pytest.raises(RuntimeError, match="pava has no second derivative"):
        torch.autograd.grad(loss, head.raw_norm_weight, create_graph=True)


@pytest.mark.parametrize("on", PARTS)
@pytest.mark.parametrize("frozen", [0b1, 0b10, 0b100, 0b1000, 0b10000, 0b111, 0b11001, 0b11111])
def test_a_frozen_parameter_gets_no_gradient_and_changes_no_other(frozen, on):
    head = make_odd_head(on)
    x = torch.randn(16, 7, dtype=torch.float64)
    inputs = [x.requires_grad_(), *head.parameters()]
    everything = torch.autograd.grad(head(x).square().sum(), inputs)
    for i, value in enumerate(inputs):
        value.requires_grad_(not frozen >> i & 1)
    trained = [i for i, value in enumerate(inputs) if value.requires_grad]
    loss = head(x).square().sum()
    if not trained:
        assert not loss.requires_grad
        return
    grads = torch.autograd.grad(loss, [inputs[i] for i in trained])
    for i, grad in zip(trained, grads, strict=True):
        assert torch.equal(grad, everything[i])


def test_backward_twice_and_gradients_that_add_up():
    head, x = make_odd_head(), torch.randn(16, 7, dtype=torch.float64)
    loss = head(x).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in head.parameters()]
    loss.backward()
    for p, grad in zip(head.parameters(), once, strict=True):
        assert torch.allclose(p.grad, 2 * grad, rtol=1e-12)


def test_weights_changed_before_backward_are_noticed():
    head = make_odd_head()
    loss = head(torch.randn(16, 7, dtype=torch.float64)).sum()
    head.project_()
    with torch.no_grad():
        head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_row_of_zeros_is_no_direction_and_no_nan():
    head = make_odd_head()
    with torch.no_grad():
        head.weight[2] = 0
    x = torch.randn(16, 7, dtype=torch.float64)
    inputs = list(head.parameters())
    ours = torch.autograd.grad(head(x).square().sum(), inputs)
    theirs = torch.autograd.grad(compose(head, x).square().sum(), inputs)
    assert head.effective()[0][2].abs().max() == 0
    for a, b in zip(ours, theirs, strict=True):
        assert b.isfinite().all() and torch.allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("on", PARTS)
def test_autocast_runs_the_linear_map_alone_in_low_precision(on):
    head = make_odd_head(on, dtype=torch.float32)
    x = torch.randn(64, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
        low = F.linear(x, *head.effective())
        weight, bias = head.effective()
    assert weight.dtype == bias.dtype == torch.float32
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, low)
    inputs, grad = [x, *head.parameters()], torch.randn_like(logits)
    ours = torch.autograd.grad(logits, inputs, grad)
    theirs = torch.autograd.grad(low, inputs, grad)
    exact = torch.autograd.grad(compose(head, x), inputs, grad.float())
    # As exact as torch's own operations in this precision.
    for a, b, e in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.float32
        assert ((a - e).norm() <= 1.05 * (b - e).norm() + 1e-6 * e.norm()).all()


# ------------------------------------------------ torch's tracers and transforms


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph(backend):
    torch._dynamo.reset()
    head, x = make_odd_head(), torch.randn(16, 7, dtype=torch.float64)
    fresh = SAMNLinear(7, [1] * 6).double()
    fresh.load_state_dict(head.state_dict())
    expected = head(x)
    grads = torch.autograd.grad(expected.square().sum(), list(head.parameters()))
    # A head that has just been loaded, and one that has been used.
    for other in (fresh, head):
        logits = torch.compile(other, backend=backend, fullgraph=True)(x)
        assert torch.allclose(logits, expected, rtol=1e-12)
        ours = torch.autograd.grad(logits.square().sum(), list(other.parameters()))
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(ours, grads, strict=True))


@pytest.mark.parametrize("grad", [True, False])
def test_exported(grad):
    head, x = make_odd_head(), torch.randn(16, 7, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(head, (x,))
    assert torch.allclose(program.module()(x), head(x), rtol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_traced():
    head, x = make_odd_head(), torch.randn(16, 7, dtype=torch.float64)
    traced = torch.jit.trace(head, (x,))
    assert torch.allclose(traced(x), head(x), rtol=1e-12)


def test_transforms():
    head, x = make_odd_head(), torch.randn(16, 7, dtype=torch.float64)
    parameters = {k: v.detach() for k, v in head.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(head, parameters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    tangents = {k: torch.randn_like(v) for k, v in parameters.items()}
    slope = torch.func.jvp(lambda p: loss(p, x), (parameters,), (tangents,))[1]
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(v, tangents[k]) for k, v in parameters.items()}
        dual = forward_ad.unpack_dual(loss(duals, x)).tangent
    head(x).square().sum().backward()
    expected = 0
    for name, p in head.named_parameters():
        assert torch.allclose(each[name].sum(0), p.grad, rtol=1e-10)
        expected = expected + (p.grad * tangents[name]).sum()
    assert torch.allclose(slope, expected, rtol=1e-10)
    assert torch.allclose(dual, expected, rtol=1e-10)


# ------------------------------------------------ projection on other devices


def test_projection_of_both_vectors_at_once(monkeypatch):
    """The code path of an accelerator, on CPU tensors that report `is_cpu = False`."""

    class Elsewhere(nn.Parameter):
        is_cpu = False

    def refuse(*_):
        raise AssertionError("waited for the device")

    here, there = make_odd_head(), make_odd_head()
    there.weight = Elsewhere(there.weight.detach())
    rows = []

    def fit(y):
        rows.append(tuple(y.shape))
        return pava(y)

    monkeypatch.setattr(heads, "pava", fit)
    there.project_()
    assert rows == [(2, 6)]
    assert here.project_() is here and len(rows) == 1
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b)
    # A pava that checks nothing, as on a device: nothing else may ask for a value either.
    monkeypatch.setattr(heads, "pava", lambda y: y.clone())
    for name in ("item", "__bool__", "tolist", "nonzero", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    there.project_()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("on", PARTS)
def test_a_step_on_a_gpu_equals_the_cpu_and_never_waits_for_the_device(on):
    here, there = make_odd_head(on), make_odd_head(on).cuda()
    x = torch.randn(16, 7, dtype=torch.float64)
    away = x.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there(away).square().sum().backward()
        there.project_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here(x).square().sum().backward()
    here.project_()
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-10)
        assert torch.allclose(a.grad, b.grad.cpu(), rtol=1e-10)


def test_two_classes_and_batch_dimensions():
    head = SAMNLinear.from_linear(make_linear([9, 1]), [9, 1])
    x = torch.randn(2, 3, 6)
    assert head(x).shape == (2, 3, 2)
    assert torch.equal(head(x)[1, 2], head(x[1, 2]))


def test_order_by_the_norms_of_stage_1():
    linear = make_linear([40, 12, 4])
    with torch.no_grad():
        linear.weight.copy_(F.normalize(linear.weight, dim=1) * torch.tensor([[2.0], [3], [1]]))
    head = SAMNLinear.from_linear(linear, [40, 12, 4], order="stage1_norm")
    assert head.rank_to_class.tolist() == [2, 0, 1]
    assert head.norms().tolist() == pytest.approx([norm_of(0.5), 2.1414, 4.2321], abs=5e-5)
    assert head.class_counts.tolist() == [40, 12, 4]


def _linear_with_norms(norms):
    linear = make_linear([40] * len(norms))
    with torch.no_grad():
        linear.weight.copy_(F.normalize(linear.weight, dim=1) * torch.tensor(norms)[:, None])
    return linear


def test_a_start_at_the_norms_of_stage_1():
    # Norms that grow with the frequency: the closest monotone ones are all equal.
    linear = _linear_with_norms([0.9, 0.6, 0.3])
    head = SAMNLinear.from_linear(linear, [40, 12, 4], start="stage1")
    assert head.norms().tolist() == pytest.approx([0.6] * 3)
    assert (head.effective()[1] - linear.bias).diff().abs().max() < 1e-6
    # Norms that fall with the frequency stay.
    head = SAMNLinear.from_linear(_linear_with_norms([0.5, 0.6, 0.9]), [40, 12, 4], start="stage1")
    assert head.norms().tolist() == pytest.approx([0.5, 0.6, 0.9])
    head.project_()
    assert head.norms().tolist() == pytest.approx([0.5, 0.6, 0.9])
    assert head.fold()(torch.eye(8)[:, : linear.in_features]).shape[1] == 3
    # Only the part that is rescaled changes.
    head = SAMNLinear.from_linear(linear, [40, 12, 4], on=["bias"], start="stage1")
    assert head.norm_scale is None
    assert torch.equal(head.effective()[0], linear.weight)
    with pytest.raises(UserError, match=r"start.*published, stage1.*'mine'"):
        SAMNLinear.from_linear(linear, [40, 12, 4], start="mine")


def test_a_head_with_a_scale_is_rebuilt_and_keeps_it_in_half_precision():
    head = SAMNLinear.from_linear(_linear_with_norms([0.9, 0.6, 0.3]), [40, 12, 4], start="stage1")
    rebuilt = head_from_state(head.state_dict())
    rebuilt.load_state_dict(head.state_dict())
    x = torch.randn(4, head.in_features)
    assert torch.equal(rebuilt(x), head(x))
    scale = head.norm_scale.clone()
    assert torch.equal(head.half().norm_scale, scale)
    # A head from before loads as ever.
    old = SAMNLinear.from_linear(_linear_with_norms([0.9, 0.6, 0.3]), [40, 12, 4])
    assert "norm_scale" not in old.state_dict()


def test_order_by_a_vector():
    linear = make_linear([40, 12, 4])
    for order in ([0.5, 0, 1], torch.tensor([0.5, 0, 1]), np.array([0.5, 0, 1])):
        head = SAMNLinear.from_linear(linear, [40, 12, 4], order=order)
        assert head.norms().tolist() == pytest.approx([norm_of(0.5), 4.2321, 2.1414], abs=5e-5)


def test_the_linear_layer_is_not_changed():
    linear = make_linear([40, 12, 4]).double().eval()
    before = copy.deepcopy(linear.state_dict())
    head = SAMNLinear.from_linear(linear, [40, 12, 4])
    assert not head.training and head.weight.dtype == torch.float64
    with torch.no_grad():
        head.weight.zero_()
    assert all(torch.equal(linear.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"project": "epoch"}, "project must be .*step, forward.* got 'epoch'"),
        ({"on": "weight"}, "on must hold 'weight', 'bias' or both, got 'weight'"),
        ({"on": ()}, r"on must hold 'weight', 'bias' or both, got \(\)"),
        ({"on": ("norm",)}, "on must hold 'weight', 'bias' or both"),
        ({"order": "rank"}, "order must be 'frequency' or a vector of 3 numbers .* got 'rank'"),
        ({"order": [1, 2]}, "order has 2 numbers for 3 classes"),
        ({"order": [1, 2, math.nan]}, r"order\[2\] is nan; it must be finite and not negative"),
        ({"class_counts": [3, -1, 2]}, r"class_counts\[1\] is -1; it must be finite"),
        ({"class_counts": [[1, 2]]}, r"class_counts must be a vector .* got shape \(1, 2\)"),
        ({"class_counts": []}, "class_counts must be a vector"),
    ],
)
def test_errors(kwargs, message):
    kwargs = {"class_counts": [3, 2, 1], **kwargs}
    with pytest.raises(UserError, match=message):
        SAMNLinear(4, **kwargs)


def test_errors_of_from_linear():
    linear = make_linear([3, 2, 1])
    with pytest.raises(UserError, match="2 class counts for a classifier of 3 classes"):
        SAMNLinear.from_linear(linear, [3, 2])
    with pytest.raises(UserError, match="needs an nn.Linear, got Conv2d"):
        SAMNLinear.from_linear(nn.Conv2d(1, 3, 1), [3, 2, 1])
    with torch.no_grad():
        linear.weight[1] = 0
        linear.weight[2, 0] = math.inf
    with pytest.raises(UserError, match="the weights of class 1, 2 are all zero or not finite"):
        SAMNLinear.from_linear(linear, [3, 2, 1])


@pytest.mark.parametrize("counts", [["a", "b"], [[1], [2, 3]], None])
def test_class_counts_that_are_no_numbers(counts):
    with pytest.raises(UserError, match="class_counts must be a vector of numbers, got"):
        SAMNLinear(4, counts)
