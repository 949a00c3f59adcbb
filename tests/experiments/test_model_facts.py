"""`model.json`, which describes the model of a run."""

import pytest

from ltlearn.errors import UserError
from ltlearn.experiments.model_facts import ModelFacts
from ltlearn.experiments.predictor import Predictor
from ltlearn.utils.run_folder import Run

FACTS = {
    "format": 1, "arch": "resnet20_cifar", "arguments": {}, "classes": ["a", "b"],
    "class_counts": [5, 2], "size": [8, 8], "in_memory": True, "transform": "none",
    "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "methods": {"ce": {"label": "CE", "head": "Linear", "prior": "train"}}, "weights": "",
}  # fmt: skip


def test_the_facts_of_another_version_are_read():
    assert ModelFacts.from_dict({**FACTS, "a_later_key": 1}).to_dict() == FACTS
    with_bits = {**FACTS, "bits": 12}
    assert ModelFacts.from_dict(with_bits).to_dict() == with_bits


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", [8, "8"]),
        ("size", [8]),
        ("mean", [0.5, 0.5]),
        ("classes", ["a"]),
        ("class_counts", None),
        ("arguments", []),
        ("methods", {"ce": None}),
        ("bits", 4),
        ("bits", "12"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, key, value):
    """It once ended in an error of torch or Python."""
    Run(tmp_path).write_json("model.json", {**FACTS, key: value})
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        Predictor(tmp_path)
