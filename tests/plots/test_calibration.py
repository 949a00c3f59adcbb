import numpy as np
import pytest

from ltlearn import UserError
from ltlearn.metrics.calibration import calibration_bins
from ltlearn.plots import plot_calibration


def test_bars_are_the_accuracies_and_shares_of_the_bins():
    sharp = calibration_bins([0.9, 0.95, 0.2], [True, False, False], 5)
    soft = calibration_bins([0.4, 0.5, 0.3], [True, False, False], 5)
    figure = plot_calibration({"CE": sharp, "a $ in the name": soft})
    upper, lower = figure.axes[0], figure.axes[2]
    accuracy, gap = upper.containers
    assert [bar.get_height() for bar in accuracy] == [0, 50]
    np.testing.assert_allclose([b.get_y() + b.get_height() for b in gap], [20, 92.5])
    shares = [bar.get_height() for bar in lower.containers[0]]
    np.testing.assert_allclose(shares, [100 / 3, 0, 0, 0, 200 / 3])
    assert "ECE" in upper.get_title(loc="left")
    figure.draw_without_rendering()


def test_it_needs_a_classifier():
    with pytest.raises(UserError, match="bins is empty"):
        plot_calibration({})
