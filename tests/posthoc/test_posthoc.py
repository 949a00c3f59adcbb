import logging
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from ltlearn import SAMNLinear
from ltlearn.errors import UserError
from ltlearn.posthoc.choose import TAU_GRID, choose_tau
from ltlearn.posthoc.logit_adjustment import adjust_logits, choose_logit_adjustment
from ltlearn.posthoc.nearest_mean import nearest_class_mean
from ltlearn.posthoc.tau_norm import choose_tau_norm, tau_normalize
from ltlearn.posthoc.temperature import fit_temperature, scale_temperature

COUNTS = [100, 40, 15, 5, 1]


def make_linear(width=6, num_classes=5, bias=True, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    linear = nn.Linear(width, num_classes, bias, dtype=dtype)
    with torch.no_grad():
        linear.weight *= torch.linspace(3, 0.5, num_classes)[:, None]
    return linear


def data(n=300, width=6, num_classes=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (n,), generator=generator)
    centres = torch.randn(num_classes, width, generator=generator)
    x = torch.randn(n, width, generator=generator) + centres[targets]
    return x.to(dtype), targets


def arrays(linear):
    weight = linear.weight.detach().double().numpy()
    bias = 0 if linear.bias is None else linear.bias.detach().double().numpy()
    return weight, bias


def heads():
    """A plain classifier and one that folds into it."""
    linear = make_linear()
    return {"linear": linear, "samn": SAMNLinear.from_linear(linear, COUNTS)}


def numpy_balanced(logits, targets):
    pred = logits.argmax(1)
    return np.mean([(pred[targets == c] == c).mean() for c in np.unique(targets)])


def numpy_nll(logits, targets):
    return -log_softmax(logits, axis=1)[np.arange(len(targets)), targets].mean()


# ------------------------------------------------------------------ corrections


@pytest.mark.parametrize("kind", ["linear", "samn"])
@pytest.mark.parametrize("tau", [0, 0.3, 1.0, 1.9])
@pytest.mark.parametrize("keep_bias", [True, False])
def test_tau_normalize_equals_numpy(kind, tau, keep_bias):
    head = heads()[kind]
    before = {k: v.clone() for k, v in head.state_dict().items()}
    got = tau_normalize(head, tau, keep_bias)
    linear = head.fold() if kind == "samn" else head
    weight, bias = arrays(linear)
    x, _ = data()
    expected = x.numpy() @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T
    expected = expected + (bias if keep_bias else 0)
    assert np.allclose(got(x).detach().numpy(), expected, atol=1e-5)
    assert (got.bias is None) == (not keep_bias)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    if tau == 1:
        assert got.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("kind", ["linear", "samn"])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1, 2])
def test_adjust_logits_equals_numpy(kind, tau):
    head = heads()[kind]
    got = adjust_logits(head, COUNTS, tau)
    x, _ = data()
    share = np.array(COUNTS) / sum(COUNTS)
    expected = head(x).detach().numpy() - np.log(share**tau + 1e-12)
    assert np.allclose(got(x).detach().numpy(), expected, atol=1e-4)


def test_adjust_logits_gives_a_bias_to_a_classifier_without():
    linear = make_linear(bias=False)
    got = adjust_logits(linear, torch.tensor(COUNTS))
    assert linear.bias is None
    share = np.array(COUNTS) / sum(COUNTS)
    assert np.allclose(got.bias.detach().numpy(), -np.log(share), atol=1e-6)


def test_a_class_without_images_is_raised_as_the_rarest(caplog):
    linear = make_linear(bias=False)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        got = adjust_logits(linear, [100, 0, 20, 4, 0])
    assert len(caplog.records) == 1
    assert "no training images of class 1, 4; its logit is raised as" in caplog.text
    share = np.array([100, 4, 20, 4, 4]) / 124
    assert np.allclose(got.bias.detach().numpy(), -np.log(share), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_scale_temperature_equals_numpy(bias):
    linear = make_linear(bias=bias)
    x, _ = data()
    got = scale_temperature(linear, 2.5)
    assert torch.allclose(got(x), linear(x) / 2.5, atol=1e-6)
    assert (got.bias is None) == (not bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "correct",
    [tau_normalize, lambda h: adjust_logits(h, COUNTS), lambda h: scale_temperature(h, 2)],
)
def test_a_new_head_has_dtype_and_mode_and_takes_no_chance(correct, dtype):
    linear = make_linear(dtype=dtype).eval()
    state = torch.get_rng_state()
    got = correct(linear)
    assert type(got) is nn.Linear and got is not linear
    assert got.weight.dtype == dtype and not got.training
    assert got.weight.data_ptr() != linear.weight.data_ptr()
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------ temperature


def useful_logits(scale=4.0):
    """Logits that are right more often than not, but too sure."""
    generator = torch.Generator().manual_seed(2)
    targets = torch.arange(300) % 5
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    return scale * (logits + 1.5 * nn.functional.one_hot(targets, 5)), targets


@pytest.mark.parametrize("as_array", [False, True])
def test_fit_temperature_is_the_minimum_of_a_fine_grid(as_array):
    logits, targets = useful_logits()
    got = fit_temperature(logits.numpy() if as_array else logits, targets)
    assert 1 < got < 10
    z, y = logits.double().numpy(), targets.numpy()
    nll = numpy_nll(z / got, y)
    grid = np.geomspace(1e-3, 1e3, 2000)
    assert nll <= min(numpy_nll(z / t, y) for t in grid) + 1e-12
    assert nll <= min(numpy_nll(z / (got * f), y) for f in (0.9999, 1.0001))


@pytest.mark.parametrize("factor", [1e-2, 7.0, 50.0])
def test_fit_temperature_undoes_a_scale(factor):
    logits, targets = useful_logits()
    expected = fit_temperature(logits, targets)
    assert fit_temperature(logits * factor, targets) == pytest.approx(expected * factor, rel=1e-6)


def test_fit_temperature_refuses_probabilities():
    logits, targets = useful_logits()
    with pytest.raises(UserError, match="logits holds probabilities"):
        fit_temperature(logits.softmax(1), targets)
    expected = fit_temperature(logits, targets)
    assert fit_temperature(logits.log_softmax(1), targets) == pytest.approx(expected, rel=1e-6)


def test_fit_temperature_is_finite_where_there_is_no_minimum():
    sure = 5 * torch.eye(4)
    assert fit_temperature(sure, torch.arange(4)) == 1e-3  # all right
    assert fit_temperature(sure, (torch.arange(4) + 1) % 4) == 1e3  # all wrong
    assert fit_temperature(torch.full((4, 3), 2.0), [0, 1, 2, 0]) == 1.0  # all alike
    masked = torch.randn(40, 3)
    masked[:, 2] = -1e30
    assert math.isfinite(fit_temperature(masked, torch.arange(40) % 3))
    assert math.isfinite(fit_temperature(masked, torch.arange(40) % 2))


def test_blocks_do_not_change_a_result(monkeypatch):
    x, targets = data(dtype=torch.float64)
    linear = make_linear(dtype=torch.float64)

    def results():
        logits = linear(x).detach() + 2 * nn.functional.one_hot(targets, 5)
        head = nearest_class_mean(x, targets, 5)
        return (
            fit_temperature(logits, targets),
            head.means.tolist(),
            choose_tau_norm(linear, x, targets),
            choose_tau(lambda tau: logits * tau, targets, 5),
        )

    whole = results()
    monkeypatch.setattr("ltlearn.posthoc.choose._BLOCK_NUMBERS", 42)  # 7 rows at a time
    parts = results()
    assert parts[0] == pytest.approx(whole[0], rel=1e-9)
    assert np.allclose(parts[1], whole[1], atol=1e-6)
    assert parts[2:] == whole[2:]


# ------------------------------------------------------------------ nearest class mean


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_nearest_class_mean_equals_numpy(centre, normalize, dtype, tmp_path):
    x, targets = data()
    np.save(tmp_path / "x.npy", x.numpy().astype(dtype))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    head = nearest_class_mean(mapped, targets, 5, centre, normalize)
    phi = mapped.astype(np.float64)
    phi = phi - (phi.mean(0) if centre else 0)
    phi = phi / (np.linalg.norm(phi, axis=1, keepdims=True) if normalize else 1)
    means = np.stack([phi[targets.numpy() == c].mean(0) for c in range(5)])
    assert np.allclose(head.means, means, atol=1e-6)
    expected = -((phi[:, None] - means) ** 2).sum(-1)
    got = head(torch.from_numpy(np.array(mapped)))
    assert np.allclose(got, expected, atol=1e-5 if normalize else 1e-4)
    assert (got.argmax(1).numpy() == expected.argmax(1)).all()


def test_nearest_class_mean_does_not_depend_on_the_order_of_images():
    x, targets = data()
    order = torch.randperm(len(x))
    a, b = (nearest_class_mean(x[i], targets[i], 5) for i in (slice(None), order))
    assert torch.allclose(a.means, b.means, atol=1e-6)


def test_nearest_class_mean_of_a_class_without_images(caplog):
    x, targets = data(num_classes=3)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        head = nearest_class_mean(x, targets, 5)
    assert [r.getMessage() for r in caplog.records] == [
        "no training images of class 3, 4; it is never predicted."
    ]
    assert head(x).argmax(1).max() < 3 and head(x).isfinite().all()
    assert head.has_images.tolist() == [True] * 3 + [False] * 2


def test_nearest_class_mean_of_one_image_and_of_images_all_alike():
    head = nearest_class_mean(torch.ones(1, 3), [0], 1)
    assert head(torch.ones(2, 3)).tolist() == [[0.0], [0.0]]
    head = nearest_class_mean(torch.ones(4, 3), [0, 0, 1, 1], 2)
    assert head(torch.ones(2, 3)).isfinite().all()


# ------------------------------------------------------------------ choosing


def numpy_choice(make_logits, targets, default=1.0):
    curve, keys = [], []
    for tau in TAU_GRID:
        logits = make_logits(tau)
        accuracy = numpy_balanced(logits, targets)
        curve.append((tau, accuracy))
        nll = numpy_nll(logits, targets)
        keys.append((-round(accuracy, 12), round(nll, 12), abs(tau - default), tau))
    return min(keys)[-1], curve


def assert_same(choice, expected):
    value, curve = expected
    assert choice.value == value
    assert [t for t, _ in choice.curve] == [t for t, _ in curve]
    assert [a for _, a in choice.curve] == pytest.approx([a for _, a in curve], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep_bias", [True, False])
def test_choose_tau_norm_equals_numpy(seed, keep_bias):
    x, targets = data(n=120, seed=seed, dtype=torch.float64)
    linear = make_linear(seed=seed, dtype=torch.float64)
    weight, bias = arrays(linear)
    norms = np.linalg.norm(weight, axis=1, keepdims=True)

    def make_logits(tau):
        return x.numpy() @ (weight / norms**tau).T + (bias if keep_bias else 0)

    expected = numpy_choice(make_logits, targets.numpy())
    assert_same(choose_tau_norm(linear, x, targets, keep_bias), expected)
    assert_same(choose_tau(make_logits, targets, 5), expected)
    heads = choose_tau(lambda t: tau_normalize(linear, t, keep_bias)(x), targets, 5)
    assert_same(heads, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("counts", [COUNTS, [50, 0, 20, 3, 0]])
def test_choose_logit_adjustment_equals_numpy(seed, counts):
    x, targets = data(n=120, seed=seed, dtype=torch.float64)
    linear = make_linear(seed=seed, dtype=torch.float64)
    weight, bias = arrays(linear)
    n = np.array(counts, dtype=float)
    share = np.maximum(n / n.sum(), n[n > 0].min() / n.sum())

    def make_logits(tau):
        return x.numpy() @ weight.T + bias - np.log(share**tau + 1e-12)

    expected = numpy_choice(make_logits, targets.numpy())
    assert_same(choose_logit_adjustment(linear, x, targets, counts), expected)
    heads = choose_tau(lambda t: adjust_logits(linear, counts, t)(x), targets, 5)
    assert_same(heads, expected)


def test_choosing_takes_half_precision_arrays_and_heads_that_fold():
    x, targets = data()
    samn = heads()["samn"]
    choice = choose_logit_adjustment(samn, x.numpy().astype(np.float16), targets.numpy(), COUNTS)
    assert choice.value in TAU_GRID and len(choice.curve) == 21
    expected = choose_logit_adjustment(samn.fold(), x.half(), targets, COUNTS)
    assert choice == expected


def test_classes_without_held_out_images_are_left_out():
    x, targets = data(num_classes=3)
    linear = make_linear()
    choice = choose_tau_norm(linear, x, targets)
    logits = linear(x).detach().numpy()
    assert choice.curve[0][1] == pytest.approx(numpy_balanced(logits, targets.numpy()))


def test_ties_go_to_the_likelihood_then_to_the_default():
    targets = torch.arange(4) % 2
    right = torch.nn.functional.one_hot(targets, 2).double()
    # All equally accurate: the surest is the likeliest.
    assert choose_tau(lambda tau: right * (1 + tau), targets, 2).value == 2.0
    assert choose_tau(lambda tau: right * (3 - tau), targets, 2).value == 0.0
    # All alike: the nearest to the default, of two as near the smaller.
    assert choose_tau(lambda tau: right, targets, 2).value == 1.0
    assert choose_tau(lambda tau: right, targets, 2, default=0.3).value == 0.3
    assert choose_tau(lambda tau: right, targets, 2, [0.5, 1.5]).value == 0.5
    assert choose_tau(lambda tau: right, targets, 2, [1.5, 0, 1.5]).curve == [(0, 1), (1.5, 1)]


def test_the_grid_is_the_published_one():
    assert TAU_GRID[0] == 0 and TAU_GRID[-1] == 2 and len(TAU_GRID) == 21
    assert TAU_GRID[3] == 0.3 and 1.0 in TAU_GRID


# ------------------------------------------------------------------ errors


def zero_row(num=2):
    linear = make_linear()
    with torch.no_grad():
        linear.weight[num] = 0
    return linear


def test_a_row_of_zeros_is_no_trouble_where_nothing_is_divided():
    linear = zero_row()
    assert torch.equal(tau_normalize(linear, 0).weight, linear.weight)


LINEAR, (X, Y) = make_linear(), data()
BAD = X.clone()
BAD[7, 3] = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tau_normalize(zero_row()), "class 2 .*zero"),
        (lambda: choose_tau_norm(zero_row(4), X, Y), "class 4 .*zero"),
        (lambda: tau_normalize(LINEAR, -1), "tau must be .* got -1"),
        (lambda: tau_normalize(LINEAR, float("nan")), "tau must be .* got nan"),
        (lambda: tau_normalize(nn.ReLU()), "classifier must be .* got ReLU"),
        (
            lambda: tau_normalize(nearest_class_mean(X, Y, 5)),
            "NearestClassMean head cannot be folded",
        ),
        (
            lambda: scale_temperature(make_linear(dtype=torch.float16), 1e-7),
            "class 0, 1, 2, 3, 4 .*torch.float16",
        ),
        (lambda: adjust_logits(LINEAR, COUNTS[:3]), "class_counts.* 5 classes, got 3"),
        (lambda: adjust_logits(LINEAR, [0] * 5), "class_counts .*0 for all 5"),
        (lambda: adjust_logits(LINEAR, [1, -1, 2, 3, 4]), r"class_counts\[1\] is -1"),
        (lambda: scale_temperature(LINEAR, 0), "temperature must be .* above 0, got 0"),
        (lambda: fit_temperature(X, Y[:5]), "logits.* 300 .*targets.* 5"),
        (lambda: fit_temperature(X, Y + 2), "targets.* 6 in row .* 6 classes"),
        (lambda: fit_temperature(BAD, Y), "logits.* nan in row 7, column 3"),
        (lambda: fit_temperature(X[:0], Y[:0]), "no image to evaluate"),
        (lambda: fit_temperature(X[0], Y), r"logits .* got shape \(6,\)"),
        (lambda: nearest_class_mean(BAD, Y, 5), "features.* nan in row 7, column 3"),
        (lambda: nearest_class_mean(X, Y, 3), "targets.* 3 classes"),
        (lambda: nearest_class_mean(X, Y, 0), "num_classes must be .* got 0"),
        (lambda: choose_tau(lambda t: X, Y, 5), "make_logits .* got 6"),
        (lambda: choose_tau(lambda t: BAD, Y, 6), "logits.* nan in row 7"),
        (lambda: choose_tau(lambda t: X, Y, 6, []), "candidates .* got none"),
        (lambda: choose_tau(lambda t: X, Y, 6, [-0.1]), "each of candidates must be .* got -0.1"),
        (lambda: choose_tau_norm(LINEAR, X[:, :4], Y), "features .* 6 columns .* got 4"),
        (lambda: choose_tau_norm(LINEAR, BAD, Y), "features.* nan in row 7"),
        (lambda: choose_logit_adjustment(LINEAR, X, Y, [1, 2]), "class_counts.* got 2"),
    ],
)
def test_errors_name_the_fault(call, message):
    with pytest.raises(UserError, match=message):
        call()
