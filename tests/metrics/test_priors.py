import logging
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from ltlearn.errors import UserError
from ltlearn.metrics.priors import correct_for_prior, prior_report, prior_vector
from ltlearn.metrics.report import shot_report

COUNTS = [500, 80, 30, 5]


def data(n=400, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, num_classes, generator=generator)
    targets = torch.randint(num_classes, (n,), generator=generator)
    return logits, targets


# ------------------------------------------------------------------ priors


def test_the_named_priors():
    share = np.array(COUNTS) / sum(COUNTS)
    assert prior_vector("uniform", COUNTS).tolist() == [0.25] * 4
    assert prior_vector("train", COUNTS).tolist() == pytest.approx(share)
    assert prior_vector("reversed", COUNTS).tolist() == pytest.approx(share[::-1])
    shuffled = torch.tensor([30, 500, 5, 80])
    assert prior_vector("reversed", shuffled).tolist() == pytest.approx(
        [80 / 615, 5 / 615, 500 / 615, 30 / 615]
    )
    assert shuffled.tolist() == [30, 500, 5, 80]


def test_reversed_is_the_list_from_back_to_front_for_tied_counts_too():
    counts = [9, 9, 4, 2, 2, 2]
    assert (prior_vector("reversed", counts) * 28).tolist() == pytest.approx(counts[::-1])


def test_a_vector_is_normalised():
    got = prior_vector([1, 0, 2, 1], COUNTS)
    assert got.dtype == torch.float64 and got.tolist() == [0.25, 0, 0.5, 0.25]
    assert prior_vector(got, COUNTS).tolist() == got.tolist()


# ------------------------------------------------------------------ correction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correction_equals_numpy(dtype):
    logits, _ = data()
    source, target = prior_vector("train", COUNTS), prior_vector("reversed", COUNTS)
    got = correct_for_prior(logits.to(dtype), source, target)
    expected = logits.double().numpy() + np.log(target.numpy()) - np.log(source.numpy())
    assert got.dtype == dtype
    assert np.allclose(got, expected, atol=1e-5)
    unscaled = correct_for_prior(logits.numpy(), COUNTS, COUNTS[::-1])
    assert np.allclose(unscaled, expected, atol=1e-5)


def test_correction_is_bayes_rule():
    # Two normal classes, of which the logits are known exactly under any prior.
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    likelihood = torch.stack([-((x + 1) ** 2) / 2, -((x - 1) ** 2) / 2], 1)
    source, target = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    trained = (likelihood + source.log()).log_softmax(1)
    wanted = (likelihood + target.log()).log_softmax(1)
    got = correct_for_prior(trained, source, target).log_softmax(1)
    assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("as_array", [False, True])
def test_probabilities_are_refused(as_array):
    """Their correction once gave wrong figures silently."""
    logits, targets = data()
    probs, prior = logits.softmax(1), [1, 1, 1, 1]
    given = probs.numpy() if as_array else probs
    with pytest.raises(UserError, match=r"logits holds probabilities.*logits\.log\(\)"):
        correct_for_prior(given, prior, prior)
    with pytest.raises(UserError, match=r"logits holds probabilities.*logits\.log\(\)"):
        prior_report(given, targets, prior)
    expected = prior_report(logits, targets, prior)
    assert prior_report(probs.log(), targets, prior).ece == pytest.approx(expected.ece)
    # One row of logits can be at least 0 and sum to 1 by chance.
    assert correct_for_prior(probs[:1], prior, prior).allclose(probs[:1])


def test_there_and_back():
    logits, _ = data()
    there = correct_for_prior(logits, COUNTS, [1, 1, 1, 1])
    back = correct_for_prior(there, [1, 1, 1, 1], COUNTS)
    assert torch.allclose(back.softmax(1), logits.softmax(1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_impossible_class_is_finite_and_never_predicted(dtype):
    logits, _ = data()
    logits = (logits * 1000).to(dtype)
    logits[:, 1] = 3e4
    got = correct_for_prior(logits, COUNTS, [1, 0, 1, 0])
    assert got.dtype == dtype and got.isfinite().all()
    assert (got.argmax(1) % 2 == 0).all()
    assert (got.float().softmax(1)[:, 1::2] == 0).all()


def test_a_class_unknown_to_the_source_is_raised_as_the_rarest(caplog):
    logits = torch.zeros(1, 3)
    with caplog.at_level(logging.WARNING, "ltlearn"):
        got = correct_for_prior(logits, [90, 10, 0], [1, 1, 1])
    assert "the source has no class 2" in caplog.text
    assert got[0].tolist() == pytest.approx(
        [math.log(1 / 3 / 0.9), math.log(1 / 3 / 0.1), math.log(1 / 3 / 0.1)]
    )
    caplog.clear()
    assert correct_for_prior(logits, [90, 10, 0], [1, 1, 0]).isfinite().all()
    assert not caplog.records  # it cannot occur: nothing to say


def test_correction_leaves_its_input_and_read_only_arrays(recwarn):
    logits, _ = data()
    before = logits.clone()
    correct_for_prior(logits, COUNTS, [1, 0, 1, 1])
    assert torch.equal(logits, before)
    array = logits.numpy()
    array.setflags(write=False)
    correct_for_prior(array, COUNTS, [1, 1, 1, 1])
    assert not len(recwarn)


# ------------------------------------------------------------------ report


def numpy_report(logits, targets, prior):
    logits, targets, prior = logits.double().numpy(), targets.numpy(), np.asarray(prior, float)
    prior = prior / prior.sum()
    share = np.bincount(targets, minlength=len(prior)) / len(targets)
    weight = (prior[targets] / share[targets]) / len(targets)
    weight = weight / weight.sum()
    log_p = log_softmax(logits, axis=1)
    correct = logits.argmax(1) == targets
    confidence = np.exp(log_p).max(1)
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        ece += abs((weight * (correct - confidence))[inside].sum())
    return (
        (weight * correct).sum(),
        -(weight * log_p[np.arange(len(targets)), targets]).sum(),
        ece,
    )


def as_tuple(report):
    return report.accuracy, report.nll, report.ece


@pytest.mark.parametrize("prior", [[1, 1, 1, 1], COUNTS, COUNTS[::-1], [0, 1, 0, 3]])
@pytest.mark.parametrize("as_array", [False, True])
def test_report_equals_numpy(prior, as_array):
    logits, targets = data()
    targets[:100] = 0  # not balanced
    args = (logits.numpy(), targets.numpy()) if as_array else (logits, targets)
    report = prior_report(*args, prior)
    assert as_tuple(report) == pytest.approx(numpy_report(logits, targets, prior), abs=1e-12)
    assert (report.covered, report.n_images) == (1, 400)


def test_a_report_names_how_many_images_of_equal_weight_it_rests_on():
    logits, targets = data()
    targets[:397], targets[397:] = 0, 1
    assert prior_report(logits, targets, [397, 3, 0, 0]).n_effective == pytest.approx(400)
    # Three images have half of the weight: 1 / (0.25 / 397 + 0.25 / 3).
    assert prior_report(logits, targets, [1, 1, 0, 0]).n_effective == pytest.approx(11.91, abs=0.01)


def test_report_under_the_test_distribution_is_the_plain_report():
    logits, targets = data()
    plain = shot_report(logits, targets, COUNTS)
    own = prior_report(logits, targets, torch.bincount(targets))
    assert as_tuple(own) == pytest.approx((plain.all, plain.nll, plain.ece))
    uniform = prior_report(logits, targets, prior_vector("uniform", COUNTS))
    assert uniform.accuracy == pytest.approx(plain.balanced)


def test_report_equals_repeating_the_images():
    logits, targets = data(n=40)
    targets = torch.arange(40) % 4
    times = torch.tensor([4, 1, 2, 3])[targets]
    repeated = shot_report(
        logits.repeat_interleave(times, 0), targets.repeat_interleave(times), COUNTS
    )
    report = prior_report(logits, targets, [4, 1, 2, 3])
    assert as_tuple(report) == pytest.approx((repeated.all, repeated.nll, repeated.ece))


def test_classes_without_test_images_are_named_and_the_rest_is_renormalised(caplog):
    logits, targets = data()
    keep = targets != 2
    logits, targets = logits[keep], targets[keep]
    with caplog.at_level(logging.WARNING, "ltlearn"):
        report = prior_report(logits, targets, [4, 3, 2, 1])
    assert "no test images of class 2, 20 % of the prior" in caplog.text
    assert report.covered == pytest.approx(0.8)
    assert as_tuple(report) == pytest.approx(numpy_report(logits, targets, [4, 3, 0, 1]))
    caplog.clear()
    assert prior_report(logits, targets, [4, 3, 0, 1]).covered == 1
    assert not caplog.records


def test_correcting_for_the_right_prior_gives_the_smaller_nll():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    targets, target_prior = torch.tensor([0, 1]), [0.9, 0.1]
    corrected = correct_for_prior(logits, [0.5, 0.5], target_prior)
    nll = prior_report(corrected, targets, target_prior).nll
    assert nll == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)))
    assert nll < prior_report(logits, targets, target_prior).nll


LOGITS, Y = data(n=8)
Y = torch.arange(8) % 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prior_vector("test", COUNTS), "prior must be one of uniform, train, reversed"),
        (lambda: prior_vector([1, 2], COUNTS), "prior has 2 numbers, .* 4 classes in class_counts"),
        (lambda: prior_vector([1, -2, 0, 0], COUNTS), r"prior\[1\] is -2"),
        (lambda: prior_vector([0, 0, 0, 0], COUNTS), "prior must not be 0 for all 4"),
        (lambda: prior_vector("train", [0, 0]), "class_counts must not be 0 for all 2"),
        (lambda: correct_for_prior(LOGITS, COUNTS, [1, 2]), "target_prior has 2 .* in logits"),
        (lambda: correct_for_prior(LOGITS, [1, 2], COUNTS), "source_prior has 2 numbers"),
        (lambda: correct_for_prior(LOGITS[0], COUNTS, COUNTS), r"logits has shape \(4,\)"),
        (lambda: correct_for_prior(Y[None], [1] * 8, [1] * 8), "must be .N, C. of a floating"),
        (lambda: prior_report(LOGITS, Y, "train"), "prior must be a vector of numbers"),
        (lambda: prior_report(LOGITS, Y[:3], COUNTS), "logits has 8 rows but targets has 3"),
        (lambda: prior_report(LOGITS, Y + 2, COUNTS), "targets is 4 in row 2"),
        (lambda: prior_report(LOGITS[0], Y, COUNTS), r"logits has shape \(4,\)"),
        (
            lambda: prior_report(LOGITS, Y, [0, 0, 0, 1]),
            "prior is 0 for every class that has test images",
        ),
        (lambda: prior_report(LOGITS * math.nan, Y, COUNTS), "logits is nan in row 0"),
        (lambda: prior_report(LOGITS[:0], Y[:0], COUNTS), "logits is empty: there is no image"),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()
