"""Shot groups: which classes are many, medium and few."""

from typing import Any

from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.metrics.rows import read_whole_numbers

__all__ = [
    "SHOTS",
    "FEW_RULES",
    "shot_groups",
    "shot_thresholds_text",
    "read_class_counts",
    "check_few",
]

SHOTS = ("many", "medium", "few")
FEW_RULES = ("<20", "<=20")


def shot_groups(class_counts: Tensor, few: str = "<20", many: int = 100) -> dict[str, Tensor]:
    """Split the classes into many-, medium- and few-shot by their number of training images.

    Args:
        class_counts: Training images per class; a tensor, an array or a list.
        few: Which classes are few-shot: "<20" (then medium starts at 20) or "<=20" (at 21).
            A class with exactly 20 images is what the two conventions differ in.
        many: Classes with more images than this are many-shot, at least 20.

    Shape:
        class_counts is (C,), integer. The result holds three masks (C,), bool, on the device of
        class_counts; every class is in exactly one.

    Raises:
        UserError: If `few` or `many` is not allowed, or a count is negative or no whole number.

    Source:
        "<20": Kang et al., ICLR 2020, arXiv:1910.09217. "<=20": Du et al., CVPR 2023 (GLMC), and
        Liu et al., CVPR 2019, arXiv:1904.05160, who count 100 images as many-shot already.
    """
    check_few(few)
    if isinstance(many, bool) or not isinstance(many, int) or many < 20:
        raise UserError(f"`many` is {many!r}; it must be a whole number of images, at least 20.")
    device = class_counts.device if isinstance(class_counts, Tensor) else None
    counts = read_class_counts(class_counts).to(device)
    is_many = counts > many
    is_few = counts < 20 if few == "<20" else counts <= 20
    return {"many": is_many, "medium": ~is_many & ~is_few, "few": is_few}


def shot_thresholds_text(few: str = "<20", group_sizes: dict[str, int] | None = None) -> str:
    """Say in words which training counts make a class many-, medium- or few-shot.

    Args:
        few: The convention, as in `shot_groups`.
        group_sizes: Classes per group, added in brackets where given.

    Raises:
        UserError: If `few` is not allowed.
    """
    check_few(few)
    first_medium = 20 if few == "<20" else 21
    parts = {"many": "many >100", "medium": f"medium {first_medium}-100", "few": f"few {few}"}
    if group_sizes is None:
        return ", ".join(parts.values())
    many, medium, few_shot = (group_sizes[name] for name in SHOTS)
    noun = "class" if many == 1 else "classes"
    return (
        f"{parts['many']} ({many:,} {noun}), {parts['medium']} ({medium:,}), "
        f"{parts['few']} ({few_shot:,})"
    )


def read_class_counts(class_counts: Any) -> Tensor:
    """Read class counts as int64; raise a `UserError` if one is negative."""
    counts = read_whole_numbers(class_counts, "class_counts")
    if not len(counts):
        raise UserError("`class_counts` is empty; it must hold one number per class.")
    if counts.min() < 0:
        c = int((counts < 0).nonzero()[0])
        raise UserError(f"`class_counts` is {int(counts[c])} for class {c}; it cannot be negative.")
    return counts


def check_few(few: str) -> None:
    """Raise a `UserError` if the rule for few is unknown."""
    if few not in FEW_RULES:
        allowed = " or ".join(f'"{rule}"' for rule in FEW_RULES)
        raise UserError(f"The few-shot rule `few` is {few!r}; it must be {allowed}.")
