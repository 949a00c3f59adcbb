"""The methods, which the Python API, the command line and the recipes take by name."""

from ltlearn.methods.base import KINDS, Method, Sweep
from ltlearn.methods.candidates import Candidate, as_registered, offered
from ltlearn.methods.labels import GIVEN_MODEL, label_of, labels_of
from ltlearn.methods.learning_rate import LARGEST_SCALED_BATCH, head_rate, usual_rate
from ltlearn.methods.registry import (
    DEFAULT_STAGE1,
    METHODS,
    find_method,
    find_methods,
    is_built_in,
    prior_of,
    register_method,
    registered_method,
    stage1_methods,
    unregister_method,
    usual_stage2,
)
from ltlearn.names import DEFAULT_STAGE2, DEFAULT_WITH_RESET

__all__ = [
    "Candidate",
    "DEFAULT_STAGE1",
    "DEFAULT_STAGE2",
    "DEFAULT_WITH_RESET",
    "GIVEN_MODEL",
    "KINDS",
    "LARGEST_SCALED_BATCH",
    "METHODS",
    "Method",
    "Sweep",
    "as_registered",
    "find_method",
    "find_methods",
    "head_rate",
    "is_built_in",
    "label_of",
    "labels_of",
    "offered",
    "prior_of",
    "register_method",
    "registered_method",
    "stage1_methods",
    "unregister_method",
    "usual_rate",
    "usual_stage2",
]
