"""Place the labels of a scatter plot."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ltlearn.plots.style import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

__all__ = ["label_points"]


def label_points(
    axes: "Axes",
    labels: Sequence[str],
    means: np.ndarray,
    deviations: np.ndarray,
    seeds: Sequence[np.ndarray],
    colours: Sequence[str],
    taken: Sequence[Any],
) -> None:
    """Write each label beside its point, with a thin line to it where there is no room so near."""
    from matplotlib.patheffects import withStroke

    scale = 72 / axes.figure.dpi

    def place(values: np.ndarray) -> np.ndarray:
        return axes.transData.transform(values) * scale

    def write(label: str, mean: np.ndarray, colour: str, offset=(0, 0), line=None) -> "Annotation":
        text = axes.annotate(
            shorten(label),
            mean,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            zorder=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops=line,
        )
        text.set_in_layout(False)  # or the axes would shrink, and the places no longer fit
        return text

    sizes = []
    for label, mean, colour in zip(labels, means, colours, strict=True):
        text = write(label, mean, colour)
        sizes.append(text.get_window_extent().size * scale)
        text.remove()
    sizes = np.array(sizes)
    cross = np.linspace(-1, 1, 9)[:, None]
    arms = [place(means + t * deviations * axis) for axis in ((1, 0), (0, 1)) for t in cross]
    boxes, ends = _place_labels(
        place(means),
        sizes,
        np.array(axes.bbox.extents).reshape(2, 2) * scale,
        np.concatenate([place(np.concatenate(seeds)), *arms]),
        np.array([t.get_window_extent().extents for t in taken]).reshape(-1, 4) * scale,
    )
    for k, (point, box, end) in enumerate(zip(place(means), boxes, ends, strict=True)):
        line = None
        if np.hypot(*(end - point)) > 9:
            at = tuple((end - box[:2]) / sizes[k])
            line = {"arrowstyle": "-", "lw": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": at}
            line["color"] = colours[k]
        write(labels[k], means[k], colours[k], (box[:2] + box[2:]) / 2 - point, line)


def _place_labels(
    points: np.ndarray,
    sizes: np.ndarray,
    frame: np.ndarray,
    dots: np.ndarray,
    taken: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a place for a label of every point: no label on another, near its point if it can be.

    Every label has places all round its point at several distances, each at a cost: what it lies
    on, what the line to its point crosses, how far it is. One label after the other takes its
    cheapest place, until none moves; the best of several orders is kept.

    Args:
        points: The points.
        sizes: Width and height of the labels.
        frame: Lower left and upper right corner of the axes.
        dots: Small marks that a label should not hide, but may.
        taken: Boxes (left, bottom, right, top) that no label may lie on.

    Shape:
        points and sizes are (N, 2), dots (M, 2), taken (B, 4), all in one unit, a 1/72 inch. The
        results are the boxes, (N, 4), and the ends of the lines at the boxes, (N, 2).
    """
    angle = np.arange(0, 2 * np.pi, np.pi / 12)
    distance = np.array([5, 9, 16, 26, 38, 52, 70, 92, 120, 160, 210])
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    side = np.clip(1.5 * way, -1, 1)
    shift = (distance[:, None, None] * way).reshape(-1, 2)
    side = np.tile(side, (len(distance), 1))
    boxes, ends, own = [], [], []
    for i, (point, size) in enumerate(zip(points, sizes, strict=True)):
        centre = point + shift + side * size / 2
        # In the frame: a place beyond its edge is moved to the edge.
        centre = np.clip(centre, frame[0] + size / 2 + 1, frame[1] - size / 2 - 1)
        box = np.concatenate([centre - size / 2, centre + size / 2], 1)
        end = np.clip(point, box[:, :2], box[:, 2:])
        others = np.delete(points, i, 0)
        others = others[np.hypot(*(others - point).T) > 0.5]
        cost = np.hypot(*(end - point).T)
        cost += np.where(cost > 9, 15, 0)  # a line is more to look at than none
        cost += 500 * _covered(box, point[None], 4.5).sum(1)
        cost += 300 * _covered(box, others, 4.5).sum(1)
        cost += 4 * _covered(box, dots, 1).sum(1)
        cost += 300 * _boxes_meet(box[:, None], taken[None]).sum(1)
        # Nearer to another point it would be taken for that one's.
        gap = np.hypot(*np.moveaxis(_gaps(box, others), 2, 0))
        cost += 40 * (gap < np.hypot(*(end - point).T)[:, None] + 3).sum(1)
        cost += 80 * (_distances(others, point, end) < 4.5).sum(1)
        boxes.append(box)
        ends.append(end)
        own.append(cost)
    best, least = None, np.inf
    rng = np.random.default_rng(0)
    centre = np.median(points, 0)
    for start in range(8):
        # First those at the edge of the crowd, which have places that nobody else wants.
        order = rng.permutation(len(points))
        if start == 0:
            order = np.argsort(-np.hypot(*(points - centre).T), kind="stable")
        chosen = np.array([int(cost.argmin()) for cost in own])
        placed = np.zeros(len(points), dtype=bool)
        for _ in range(12):
            moved, total = False, 0.0
            for i in order:
                among = np.flatnonzero(placed & (np.arange(len(points)) != i))
                box = np.array([boxes[j][chosen[j]] for j in among]).reshape(-1, 4)
                end = np.array([ends[j][chosen[j]] for j in among]).reshape(-1, 2)
                cost = own[i] + 5000 * _boxes_meet(boxes[i][:, None], box[None], 1).sum(1)
                cost += 150 * _line_meets_box(points[i], ends[i][:, None], box[None]).sum(1)
                cost += 150 * _line_meets_box(points[among], end[None], boxes[i][:, None]).sum(1)
                cost += 60 * _lines_cross(points[i], ends[i][:, None], points[among], end).sum(1)
                new = int(cost.argmin())
                moved |= not placed[i] or new != chosen[i]
                chosen[i], placed[i] = new, True
                total += cost[new]
            if not moved:
                break
        if total < least:
            best, least = chosen, total
    rows = range(len(points))
    return (
        np.array([boxes[i][best[i]] for i in rows]),
        np.array([ends[i][best[i]] for i in rows]),
    )


def _covered(boxes: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Say of (K, 4) boxes and (M, 2) points whether a box, with a margin, holds a point: (K, M)."""
    return (_gaps(boxes, points) < margin).all(2)


def _gaps(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return how far (M, 2) points are from (K, 4) boxes across and up: (K, M, 2)."""
    low, high = boxes[:, None, :2] - points, points - boxes[:, None, 2:]
    return np.maximum(np.maximum(low, high), 0)


def _boxes_meet(a: np.ndarray, b: np.ndarray, margin: float = 0) -> np.ndarray:
    apart = (a[..., :2] - margin >= b[..., 2:]) | (b[..., :2] >= a[..., 2:] + margin)
    return ~apart.any(-1)


def _line_meets_box(start: np.ndarray, end: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Say whether a part of the line is in the box: between both pairs of sides at once."""
    way = end - start
    way = np.where(np.abs(way) < 1e-9, 1e-9, way)
    low, high = (box[..., :2] - start) / way, (box[..., 2:] - start) / way
    enter = np.minimum(low, high).max(-1)
    leave = np.maximum(low, high).min(-1)
    return np.maximum(enter, 0) < np.minimum(leave, 1)


def _lines_cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Say whether the line from a to b crosses the one from c to d; a shared end is no crossing."""

    def turn(p, q, r):
        u, v = q - p, r - p
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    return (turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)


def _distances(points: np.ndarray, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the distance of (M, 2) points to the lines from start to (K, 2) ends: (K, M)."""
    line = ends - start
    length = np.maximum((line**2).sum(1), 1e-9)[:, None]
    along = np.clip(((points - start)[None] * line[:, None]).sum(2) / length, 0, 1)
    return np.hypot(*np.moveaxis(start + along[..., None] * line[:, None] - points, 2, 0))
