import numpy as np
import pytest
import torch

from ltlearn import UserError
from ltlearn.metrics.calibration import calibration_bins, expected_calibration_error


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_bins_hold_the_calibration_error(n_bins):
    torch.manual_seed(0)
    probs, target = torch.randn(300, 4, dtype=torch.float64).softmax(1), torch.arange(300) % 4
    confidence, predicted = probs.max(1)
    bins = calibration_bins(confidence, predicted == target, n_bins)
    assert bins.error == expected_calibration_error(probs, target, n_bins)
    assert bins.images.sum() == 300 and len(bins.edges) == n_bins + 1
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence)) * bins.images / 300
    assert gaps.sum() == pytest.approx(bins.error)


def test_a_bin_includes_its_upper_edge_and_an_empty_one_has_no_mean():
    bins = calibration_bins([0.5, 1.0, 1.0], [True, True, False], 2)
    assert bins.images.tolist() == [1, 2]
    assert bins.accuracy.tolist() == [1, 0.5] and bins.confidence.tolist() == [0.5, 1]
    assert np.isnan(calibration_bins([0.9], [True], 2).accuracy[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5], [True, False]), "confidence has 1 rows but correct has 2"),
        (([], []), "confidence is empty"),
        (([0.5], [True], 0), "n_bins must be .* got 0"),
    ],
)
def test_impossible_bins(arguments, words):
    with pytest.raises(UserError, match=words):
        calibration_bins(*arguments)
