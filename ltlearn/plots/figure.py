"""The figure of every plot. A notebook shows it without any set-up."""

import io
from functools import cache

__all__ = ["blank_figure"]


def blank_figure(
    width: float | None = None, height: float | None = None, layout: str | None = None
):
    """Create an empty matplotlib figure of 150 dots per inch.

    Args:
        width: Width in inches; None takes matplotlib's.
        height: Height in inches; None takes matplotlib's.
        layout: matplotlib's layout engine, such as "constrained".
    """
    size = None if width is None or height is None else (width, height)
    return _figure_class()(figsize=size, dpi=150, layout=layout)


@cache
def _figure_class() -> type:
    # matplotlib takes a second to load, so it waits for the first plot.
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that Jupyter draws, also where pyplot has drawn nothing before."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=96, bbox_inches="tight")
            return file.getvalue()

        def __reduce_ex__(self, protocol):
            # The class has no name in this module, so a copy or a pickle is a plain figure.
            return (object.__new__, (Figure,), *super().__reduce_ex__(protocol)[2:])

    return ShownFigure
