"""The former place of `ltlearn.metrics.priors`."""

from ltlearn.metrics.priors import (
    PRIORS,
    PriorReport,
    correct_for_prior,
    prior_report,
    prior_vector,
)

__all__ = ["PRIORS", "PriorReport", "correct_for_prior", "prior_report", "prior_vector"]
