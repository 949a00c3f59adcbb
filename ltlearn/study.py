"""The former place of `ltlearn.experiments.compare_run` and `ltlearn.experiments.sensitivity`."""

from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.sensitivity import Sensitivity, sensitivity, sensitivity_run

__all__ = ["Sensitivity", "compare_run", "sensitivity", "sensitivity_run"]
