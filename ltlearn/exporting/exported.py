"""What an export returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Exported"]


@dataclass(frozen=True)
class Exported:
    """A model that was exported.

    Args:
        kind: "timm", "onnx", "torchscript" or "hub".
        path: The folder or file that was written.
        difference: Largest absolute difference between a logit of the exported model and of the
            model it was made from, on random images.
        code: Lines of Python that load and use it.
        notes: Sentences on what differs from the training.
        url: Address of the repository on the hub; "" if nothing was uploaded.
    """

    kind: str
    path: Path
    difference: float
    code: str
    notes: Sequence[str] = ()
    url: str = ""

    def __str__(self) -> str:
        """Describe the export in lines of text."""
        where = self.url or str(self.path)
        lines = [f"{where}: the logits differ by at most {self.difference:.1e}", *self.notes]
        return "\n".join([*lines, "", *self.code.splitlines()])

    __repr__ = __str__
