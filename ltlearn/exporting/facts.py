"""What ltlearn writes into each exported file, so that it can predict with the file again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ltlearn.defaults import MAX_SIDE
from ltlearn.errors import UserError
from ltlearn.training.records import Record
from ltlearn.utils.older_runs import checked_fields

__all__ = ["FACTS_FORMAT", "Bits", "ClassCounts", "Classes", "ExportFacts", "Means", "Size", "Stds"]

FACTS_FORMAT = 1
# The fields of a run's model.json, too. The limits stop a stranger's file that takes all memory.
_Three = Field(min_length=3, max_length=3)
Bits = Annotated[int, Field(ge=8, le=16)] | None
ClassCounts = list[Annotated[int, Field(ge=0, le=10**12)]]
Classes = Annotated[list[str], Field(min_length=1)]
Means = Annotated[list[Annotated[float, Field(ge=-100, le=100)]], _Three]
Size = Annotated[list[Annotated[int, Field(ge=1, le=MAX_SIDE)]], Field(min_length=2, max_length=2)]
Stds = Annotated[list[Annotated[float, Field(gt=0, le=100)]], _Three]


@dataclass(eq=False, kw_only=True)
class ExportFacts(Record):
    """The content of `config.json`'s key "ltlearn", of ONNX metadata, and so on.

    Args:
        format: The version of the format.
        version: The version of ltlearn that wrote it.
        classes: The names of the classes, in the order of the logits.
        class_counts: Training images per class.
        size: Height and width of the input in pixels.
        mean: Mean per channel for pixels in [0, 1].
        std: Standard deviation per channel for pixels in [0, 1].
        in_memory: As in `Preprocessing`.
        bits: As in `Preprocessing`.
        prior: The class prior that the logits assume: "train" or "uniform".
        method: The method that made the classifier; "" if none is known.
        normalize: Whether the model takes pixels in [0, 1] and normalises them itself.
    """

    format: int
    version: str
    classes: Classes
    class_counts: ClassCounts
    size: Size
    mean: Means
    std: Stds
    in_memory: bool
    bits: Bits = None
    prior: Annotated[str, Field(pattern="^(train|uniform)$")] = "train"
    method: Annotated[str, Field(max_length=100)] = ""
    normalize: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExportFacts":
        """Return the facts in a file, which another version or a stranger may have written.

        Args:
            values: What the file holds.

        Raises:
            UserError: If a field is missing or impossible. The caller names the file.
        """
        facts = cls(**checked_fields(cls, values))
        if facts.format > FACTS_FORMAT:
            raise UserError(f"it has the format {facts.format}; use a newer version of ltlearn.")
        if len(facts.classes) != len(facts.class_counts):
            raise UserError(
                f"it has {len(facts.classes)} classes, but counts of {len(facts.class_counts)}."
            )
        return facts
