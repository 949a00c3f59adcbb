"""Corrections of a trained classifier that need no training, one published method per module."""

from ltlearn.posthoc.choose import TAU_GRID, TauChoice, choose_tau
from ltlearn.posthoc.data import PosthocData
from ltlearn.posthoc.logit_adjustment import adjust_logits, choose_logit_adjustment
from ltlearn.posthoc.nearest_mean import nearest_class_mean
from ltlearn.posthoc.prior_matching import match_prior
from ltlearn.posthoc.tau_norm import choose_tau_norm, tau_normalize
from ltlearn.posthoc.temperature import fit_temperature, scale_temperature

__all__ = [
    "TAU_GRID",
    "PosthocData",
    "TauChoice",
    "adjust_logits",
    "choose_logit_adjustment",
    "choose_tau",
    "choose_tau_norm",
    "fit_temperature",
    "match_prior",
    "nearest_class_mean",
    "scale_temperature",
    "tau_normalize",
]
