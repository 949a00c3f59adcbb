"""Plots of class counts, accuracy, norms, trajectories and comparisons."""

from ltlearn.plots.calibration import plot_calibration
from ltlearn.plots.classes import plot_class_counts, plot_per_class_accuracy
from ltlearn.plots.confusion import plot_confusion
from ltlearn.plots.confusion_map import plot_confusion_map
from ltlearn.plots.norms import plot_norms, plot_norms_by_method
from ltlearn.plots.sensitivity import plot_sensitivity
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.plots.trajectory import plot_trajectory

__all__ = [
    "plot_calibration",
    "plot_class_counts",
    "plot_confusion",
    "plot_confusion_map",
    "plot_norms",
    "plot_norms_by_method",
    "plot_per_class_accuracy",
    "plot_sensitivity",
    "plot_tradeoff",
    "plot_trajectory",
]
