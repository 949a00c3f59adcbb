"""What ltlearn writes into each exported file, so that it can predict with the file again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ltlearn.errors import UserError
from ltlearn.training.records import Record
from ltlearn.utils.older_runs import checked_fields

__all__ = ["FACTS_FORMAT", "MAX_SIDE", "ExportFacts"]

FACTS_FORMAT = 1
MAX_SIDE = 4096  # of an image in pixels; a changed file could ask for all memory
_Three = Field(min_length=3, max_length=3)


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
    classes: Annotated[list[str], Field(min_length=1)]
    class_counts: list[Annotated[int, Field(ge=0, le=10**12)]]
    size: Annotated[
        list[Annotated[int, Field(ge=1, le=MAX_SIDE)]], Field(min_length=2, max_length=2)
    ]
    mean: Annotated[list[float], _Three]
    std: Annotated[list[Annotated[float, Field(gt=0)]], _Three]
    in_memory: bool
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
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
