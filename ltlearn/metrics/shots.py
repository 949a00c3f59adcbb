"""Shot groups: the split of the classes into many-, medium- and few-shot."""

from torch import Tensor

from ltlearn.errors import UserError, check_choice
from ltlearn.metrics.rows import IntVector, read_whole_numbers
from ltlearn.names import FEW_RULES, SHOTS

__all__ = [
    "SHOTS",
    "shot_groups",
    "shot_thresholds_text",
    "read_class_counts",
]

_MANY = 100  # a class with more training images is many-shot


def shot_groups(class_counts: IntVector, few: str = "<20") -> dict[str, Tensor]:
    """Split the classes into many-, medium- and few-shot by their number of training images.

    Args:
        class_counts: Training images per class; a tensor, an array or a list.
        few: The few-shot rule: "<20" (medium starts at 20) or "<=20" (medium starts at 21). The two
            rules differ for a class with exactly 20 images.

    Shape:
        class_counts is (C,), integer. The result holds three masks (C,), bool, on the device of
        class_counts; every class is in exactly one.

    Raises:
        UserError: If `few` is not allowed, or a count is negative or no whole number.

    Source:
        "<20": Kang et al., ICLR 2020, arXiv:1910.09217. "<=20": Du et al., CVPR 2023 (GLMC), and
        Liu et al., CVPR 2019, arXiv:1904.05160, where a class with 100 images is many-shot.

    Example:
        >>> shot_groups([500, 50, 5])["few"]
        tensor([False, False,  True])
    """
    check_choice("few", few, FEW_RULES)
    device = class_counts.device if isinstance(class_counts, Tensor) else None
    counts = read_class_counts(class_counts).to(device)
    is_many = counts > _MANY
    is_few = counts < 20 if few == "<20" else counts <= 20
    return {"many": is_many, "medium": ~is_many & ~is_few, "few": is_few}


def shot_thresholds_text(few: str = "<20", group_sizes: dict[str, int] | None = None) -> str:
    """Describe the thresholds of the shot groups, such as "many >100, medium 20-100, few <20".

    Args:
        few: The few-shot rule, as in `shot_groups`.
        group_sizes: Number of classes per group, to add in brackets.

    Raises:
        UserError: If `few` is not allowed.
    """
    check_choice("few", few, FEW_RULES)
    first_medium = 20 if few == "<20" else 21
    parts = {
        "many": f"many >{_MANY}",
        "medium": f"medium {first_medium}-{_MANY}",
        "few": f"few {few}",
    }
    if group_sizes is None:
        return ", ".join(parts.values())
    noun = "class" if group_sizes["many"] == 1 else "classes"
    sizes = {name: f"{group_sizes[name]:,}" for name in SHOTS}
    sizes["many"] += f" {noun}"
    return ", ".join(f"{parts[name]} ({sizes[name]})" for name in SHOTS)


def read_class_counts(class_counts: IntVector) -> Tensor:
    """Read class counts as int64; raise a `UserError` if one is negative."""
    counts = read_whole_numbers(class_counts, "class_counts")
    if not len(counts):
        raise UserError("class_counts is empty; it must hold one number per class.")
    if counts.min() < 0:
        c = int((counts < 0).nonzero()[0])
        raise UserError(f"class_counts is {int(counts[c])} for class {c}; it cannot be negative.")
    return counts
