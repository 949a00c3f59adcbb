"""Accuracy per shot group and class, calibration, paired differences, class priors."""

from ltlearn.metrics.accuracy import mean_class_accuracy, per_class_accuracy
from ltlearn.metrics.calibration import (
    CalibrationBins,
    calibration_bins,
    expected_calibration_error,
    negative_log_likelihood,
)
from ltlearn.metrics.report import ShotReport, mean_and_sd, shot_report
from ltlearn.metrics.shots import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.names import FEW_RULES

__all__ = [
    "CalibrationBins",
    "FEW_RULES",
    "SHOTS",
    "ShotReport",
    "calibration_bins",
    "expected_calibration_error",
    "mean_and_sd",
    "mean_class_accuracy",
    "negative_log_likelihood",
    "per_class_accuracy",
    "shot_groups",
    "shot_report",
    "shot_thresholds_text",
]
