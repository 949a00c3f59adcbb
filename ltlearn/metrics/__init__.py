"""Accuracy, precision, recall, F1 by class and shot group; calibration, differences, priors."""

from ltlearn.metrics.accuracy import mean_class_accuracy, per_class_accuracy
from ltlearn.metrics.calibration import (
    CalibrationBins,
    calibration_bins,
    expected_calibration_error,
    negative_log_likelihood,
)
from ltlearn.metrics.report import ShotReport, mean_and_sd, shot_report
from ltlearn.metrics.scores import ClassScores, GroupScores, class_scores
from ltlearn.metrics.shots import SHOTS, shot_groups, shot_thresholds_text
from ltlearn.names import FEW_RULES

__all__ = [
    "CalibrationBins",
    "FEW_RULES",
    "SHOTS",
    "ClassScores",
    "GroupScores",
    "ShotReport",
    "calibration_bins",
    "class_scores",
    "expected_calibration_error",
    "mean_and_sd",
    "mean_class_accuracy",
    "negative_log_likelihood",
    "per_class_accuracy",
    "shot_groups",
    "shot_report",
    "shot_thresholds_text",
]
