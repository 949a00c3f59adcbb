"""`CleaningMixin`: the learner's method that finds images to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltlearn.data.needs_images import needs_images

if TYPE_CHECKING:
    from ltlearn.cleaning.issues import Issues

__all__ = ["CleaningMixin"]


class CleaningMixin:
    """Gives a learner `find_issues`."""

    @needs_images
    def find_issues(self, kinds: Sequence[str] | str | None = None, seed: int = 0) -> "Issues":
        """Find likely label errors, near-duplicates and images unlike their class, in all parts.

        See `ltlearn.cleaning.find_issues`. It needs the extra `clean`.

        Args:
            kinds: The kinds to search, of `ltlearn.cleaning.KINDS`, such as "label"; None searches
                all.
            seed: Decides the folds and the order of training, in [0, 2**32).

        Returns:
            The findings: print them, or use `show()`, `to_csv()`, `to_html()` and `cleaned()`.

        Raises:
            UserError: If the extra is not installed, a kind is unknown, or there are no images.

        Example:
            >>> learn.find_issues().to_html("clean.html")
        """
        # Imports SciPy's graphs and Pillow, which training does not need.
        from ltlearn.cleaning.find import find_issues

        return find_issues(self, kinds, seed)
