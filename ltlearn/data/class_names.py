"""Class names that look like mistakes: one class written in several ways, or several labels."""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ltlearn.errors import UserError
from ltlearn.utils.text import clean

__all__ = [
    "check_class_names",
    "find_combined_labels",
    "find_similar_names",
    "similar_text",
    "warn_about_names",
]

_log = logging.getLogger("ltlearn")
_MAX_NAMED = 5  # groups in a message
# Signs that no ordinary name has; those that a few names have; those that many names have.
_SEPARATORS = ("|;", ",", "/+& ")
_LIST = re.compile(r"[\[({]\s*(.*?)\s*[\])}]", re.DOTALL)


def check_class_names(classes: Sequence[str]) -> list[str]:
    """Return the class names that a user gave, as text.

    Args:
        classes: The class names.

    Raises:
        UserError: If they are no list of names, or two are alike.
    """
    if isinstance(classes, str | Mapping) or not isinstance(classes, Iterable):
        raise UserError(f"classes must be a list of class names, got {classes!r:.100}.")
    names = [str(name) for name in classes]
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"classes has {name!r} {times} times; give each class a name of its own.")
    return names


def find_similar_names(classes: Sequence[str]) -> list[list[str]]:
    """Return the groups of class names that probably mean one class.

    Names are similar if they differ only by upper and lower case, spaces and underscores, the
    Unicode form, or the way that a number is written (1, 01 and 1.0).

    Args:
        classes: The class names.

    Example:
        >>> find_similar_names(["Cat", "cat", "dog", "hot_dog", "hot  dog"])
        [['Cat', 'cat'], ['hot_dog', 'hot  dog']]
    """
    groups = defaultdict(list)
    for name in classes:
        groups[_plain(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    # Zero-width characters cannot be seen.
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = re.sub(r"[\s_]+", " ", text).strip() or name
    text = re.sub(r"^([+-]?\d+)\.0+$", r"\1", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def warn_about_names(classes: Sequence[str], where: Path | str) -> None:
    """Log a warning about class names that probably mean one class.

    Args:
        classes: The class names.
        where: Where they come from, for the message.
    """
    similar = find_similar_names(classes)
    if similar:
        _log.warning(
            "%s: %s; if they mean one class, give them one name.", where, similar_text(similar)
        )


def similar_text(groups: Sequence[Sequence[str]]) -> str:
    """Return a sentence part that names classes with similar names.

    Args:
        groups: The groups of similar names.
    """
    shown = "; ".join(" and ".join(_shown(name) for name in group) for group in groups[:_MAX_NAMED])
    more = f"; and {len(groups) - _MAX_NAMED:,} more" if len(groups) > _MAX_NAMED else ""
    return f"some classes differ only in the way they are written: {shown}{more}"


def _shown(name: str) -> str:
    """Quote a name; name the Unicode form if it is not the usual one, as it cannot be seen."""
    form = "" if unicodedata.is_normalized("NFC", name) else " (decomposed Unicode)"
    return repr(clean(name)) + form


def find_combined_labels(classes: Sequence[str]) -> tuple[str, bool] | None:
    """Find a class that looks like several labels of one image, such as "cat|wet".

    The evidence is that the parts of such names occur as classes of their own, or in several
    combinations. In names with spaces, all parts must, or the first part must be a class: a name
    such as "golden retriever" ends with the more general word.

    Args:
        classes: The class names.

    Returns:
        A name that looks like several labels, and whether it certainly is; None if there is none.

    Example:
        >>> find_combined_labels(["cat", "cat|wet", "dog"])
        ('cat|wet', True)
        >>> find_combined_labels(["cat", "golden retriever", "labrador retriever"])
    """
    lists = {name: m[1] for name in classes if (m := _LIST.fullmatch(name.strip()))}
    for strength, signs in enumerate(_SEPARATORS):
        for sign in signs:
            split = {name: _parts(lists.get(name, name), sign) for name in classes}
            combined = {name: parts for name, parts in split.items() if len(parts) > 1}
            alone = {parts[0] for parts in split.values() if len(parts) == 1}
            # No ordinary name is a list in brackets.
            sure = 0 if sign == "," and any(name in lists for name in combined) else strength
            if combined and _is_evident(combined, alone, sure):
                return next(iter(combined)), strength < 2
    return None


def _parts(name: str, sign: str) -> list[str]:
    return [part for p in name.split(sign) if (part := p.strip(" '\"").casefold())]


def _is_evident(combined: dict[str, list[str]], alone: set[str], strength: int) -> bool:
    """Return whether the parts of most combinations are labels of their own."""
    uses = Counter(part for parts in combined.values() for part in set(parts))
    known = alone | {part for part, n in uses.items() if n > 1}
    if strength == 0:
        n = sum(any(part in known for part in parts) for parts in combined.values())
        return 2 * n >= len(combined)
    whole = sum(all(part in known for part in parts) for parts in combined.values())
    if strength == 1:
        return 2 * whole > len(combined) or whole == len(combined)
    # Fewer labels than classes: each name is made of a small vocabulary.
    small = len(set(uses) | alone) < len(combined) + len(alone)
    leads = all(parts[0] in alone and parts[-1] not in alone for parts in combined.values())
    return (2 * whole > len(combined) and small) or leads
