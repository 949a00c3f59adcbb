import numpy as np
import pytest

from ltlearn.errors import UserError
from ltlearn.plots import plot_confusion_map


def draw(*args, **kwargs):
    figure = plot_confusion_map(*args, **kwargs)
    figure.draw_without_rendering()
    return figure.axes[0]


def numbers(axes):
    return [text.get_text() for text in axes.texts]


def names(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def long_tail(num_classes):
    counts = (1000 * 500 ** (-np.arange(num_classes) / (num_classes - 1))).astype(int)
    return np.random.default_rng(0).permutation(counts)


def test_the_most_frequent_class_comes_first():
    target, predicted, counts = [0, 0, 0, 0, 2], [0, 0, 0, 2, 0], [5, 50, 500]
    axes = draw(target, predicted, counts, ["a", "$b", "c"], title="CE")
    assert names(axes) == ["c", r"\$b", "a"]
    assert numbers(axes) == ["0", "0", "100", "25", "0", "75"], "a row without images is empty"
    assert axes.get_title(loc="left").startswith("CE: %")
    axes = draw(target, predicted, counts, normalize=False)
    assert numbers(axes) == ["0", "0", "1", "0", "0", "0", "1", "0", "3"]
    assert "number of images" in axes.get_title(loc="left")
    assert {line.get_ydata()[0] for line in axes.lines[::2]} == {0.5, 1.5}, "between the groups"


def test_the_groups():
    target, predicted = [0, 0, 1, 2, 2], [0, 1, 1, 0, 2]
    axes = draw(target, predicted, [500, 300, 5], by="group")
    assert names(axes) == ["many", "few"], "no class is medium"
    assert numbers(axes) == ["100", "0", "50", "50"]


@pytest.mark.parametrize("num_classes", [21, 100, 1000])
def test_many_classes(num_classes):
    counts = long_tail(num_classes)
    target = np.arange(num_classes)
    axes = draw(target, np.roll(target, 1), counts, [f"n{c}" for c in target])
    matrix = axes.images[0].get_array()
    assert len(matrix) == min(num_classes, 200) and not numbers(axes)
    np.testing.assert_allclose(matrix.sum(1), 100)
    if num_classes > 40:
        sizes = [int(name.split("(")[1][:-1]) for name in names(axes)]
        assert sizes == [(counts > 100).sum(), ((counts <= 100) & (counts >= 20)).sum(),
                         (counts < 20).sum()]  # fmt: skip
    else:
        assert names(axes)[0] == f"n{counts.argmax()}"
    assert ("5 classes a row" in axes.get_title(loc="left")) == (num_classes == 1000)


def test_what_is_not_allowed():
    with pytest.raises(UserError, match="by.*'size'"):
        draw([0], [0], [5, 4], by="size")
    with pytest.raises(UserError, match="target.*3"):
        draw([3], [0], [5, 4])
