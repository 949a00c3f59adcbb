import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from ltlearn.errors import UserError
from ltlearn.plots import (
    plot_class_counts,
    plot_norms,
    plot_per_class_accuracy,
    plot_trajectory,
)

SIZES = [2, 10, 21, 1000]


def long_tail(num_classes, seed=0):
    counts = (1000 * 500 ** (-np.arange(num_classes) / (num_classes - 1))).astype(int)
    return np.random.default_rng(seed).permutation(counts)


def make_trajectory(epochs=5, seed=0, few=True, chosen=1, select_on="validation"):
    rng = np.random.default_rng(seed)
    lists = {name: rng.uniform(0.2, 0.8, epochs).tolist() for name in ("all", "balanced", "many")}
    return {
        **lists,
        "epoch": list(range(epochs)),
        "loss": [None] + [1.0] * (epochs - 1),
        "medium": rng.uniform(size=epochs).tolist(),
        "few": rng.uniform(size=epochs).tolist() if few else [None] * epochs,
        "norms": rng.uniform(2, 4, (epochs, 7)).tolist(),
        "chosen": chosen,
        "select_on": select_on,
    }


def draw(figure):
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


def texts(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def assert_tick_labels_apart(axes):
    """No tick label may lie on its neighbour."""
    for axis in (axes.xaxis, axes.yaxis):
        boxes = [
            tick.label1.get_window_extent()
            for tick in axis.get_major_ticks()
            if tick.label1.get_visible() and tick.label1.get_text()
        ]
        for a, b in zip(boxes, boxes[1:], strict=False):
            assert not a.overlaps(b)


@pytest.mark.parametrize("num_classes", SIZES)
def test_class_counts(num_classes):
    counts = long_tail(num_classes)
    names = [f"name {c}" for c in range(num_classes)]
    figure = draw(plot_class_counts(counts, names))
    (axes,) = figure.axes
    assert_tick_labels_apart(axes)
    if num_classes <= 20:
        assert axes.get_xlabel() == "training images per class (log scale)"
        widths = [patch.get_width() for patch in axes.patches]
        assert sorted(widths) == sorted(counts)
        order = np.argsort(-counts, kind="stable")
        assert [t.get_text() for t in axes.get_yticklabels()] == [names[c] for c in order]
    else:
        assert axes.get_ylabel() == "training images per class (log scale)"
        assert axes.get_xlabel() == "class, by rank (most frequent first)"
        drawn = np.concatenate([patch.get_data().values for patch in axes.patches])
        np.testing.assert_array_equal(drawn, np.sort(counts)[::-1])
    assert any(text.startswith("many >100 (") for text in texts(figure))


def test_class_counts_follow_the_few_rule():
    assert "few <=20 (1)" in texts(plot_class_counts([500, 20], few="<=20"))
    assert "medium 20-100 (1)" in texts(plot_class_counts([500, 20]))


@pytest.mark.parametrize("counts", [[5, 0], [0, 0], [7, 7, 7], [0] * 30 + [4], [100] * 40])
def test_degenerate_counts_can_be_drawn(counts):
    values = np.linspace(0.1, 0.9, len(counts))
    draw(plot_class_counts(counts))
    draw(plot_norms(values, values, counts))
    draw(plot_per_class_accuracy(values, values, counts))


@pytest.mark.parametrize("num_classes", SIZES)
def test_per_class_accuracy(num_classes):
    counts = long_tail(num_classes)
    before, after = np.random.default_rng(1).uniform(size=(2, num_classes))
    figure = draw(plot_per_class_accuracy(before, after, counts, labels=("LWS", "cRT")))
    (axes,) = figure.axes
    assert_tick_labels_apart(axes)
    assert {"LWS", "cRT"} < set(texts(figure))
    order = np.argsort(-counts, kind="stable")
    if num_classes <= 20:
        assert axes.get_xlabel() == "accuracy (%)"
        drawn = [line.get_xdata() for line in axes.lines]
        np.testing.assert_allclose(drawn, [100 * before[order], 100 * after[order]])
    else:
        assert axes.get_ylabel() == "accuracy (%)"
        lines = {len(line.get_ydata()) for line in axes.lines}
        assert len(axes.lines) == 4 and lines == {num_classes}
        np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * before[order])


@pytest.mark.parametrize("num_classes", [3, 30])
def test_class_without_a_test_image(num_classes):
    counts = long_tail(num_classes)
    accuracy = np.full(num_classes, 0.5)
    accuracy[np.argmax(counts)] = np.nan
    figure = draw(plot_per_class_accuracy(accuracy, accuracy, counts))
    (axes,) = figure.axes
    if num_classes <= 20:
        assert [text.get_text() for text in axes.texts] == ["no test image"]
    else:
        smooth = axes.lines[1].get_ydata()  # the average is over the classes that have images
        np.testing.assert_allclose(smooth, 50)


@pytest.mark.parametrize("num_classes", SIZES)
def test_norms(num_classes):
    counts = long_tail(num_classes)
    before, after = np.random.default_rng(1).uniform(1, 3, size=(2, num_classes))
    figure = draw(plot_norms(before, after, counts))
    (axes,) = figure.axes
    assert_tick_labels_apart(axes)
    assert axes.get_xlabel() == "training images per class (log scale)"
    assert axes.get_ylabel() == "norm of the class's weights"
    assert [line.get_label() for line in axes.lines] == ["CE", "SAMN"]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), counts)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), after)
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0


def test_norms_of_different_size_get_a_log_axis():
    (axes,) = draw(plot_norms([0.1, 0.2], [20.0, 30.0], [50, 5])).axes
    assert axes.get_yscale() == "log"


def test_trajectory_of_one_run():
    run = make_trajectory()
    figure = draw(plot_trajectory(run))
    left, right = figure.axes
    assert left.get_ylabel() == "accuracy on validation (%)"
    assert "epoch" in left.get_xlabel() and right.get_ylabel() == "norm of a class's weights"
    lines = {line.get_label(): line for line in left.lines}
    for name in ("all", "balanced", "many", "medium", "few"):
        np.testing.assert_allclose(lines[name].get_ydata(), 100 * np.array(run[name]))
        assert lines[name].get_xdata()[0] == 0
    norms = {line.get_label(): line.get_ydata() for line in right.lines}
    np.testing.assert_allclose(norms["largest"], np.max(run["norms"], axis=1))
    np.testing.assert_allclose(norms["median"], np.median(run["norms"], axis=1))
    np.testing.assert_allclose(norms["smallest"], np.min(run["norms"], axis=1))
    assert figure.get_suptitle() == "dotted: epoch 1, chosen on validation"
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [1]


def test_trajectory_of_several_seeds():
    runs = [make_trajectory(5, 0), make_trajectory(5, 1), make_trajectory(4, 2, chosen=0)]
    figure = draw(plot_trajectory(runs))
    left = figure.axes[0]
    (mean,) = [line for line in left.lines if line.get_label() == "all"]
    expected = 100 * np.mean([run["all"][:4] for run in runs], axis=0)
    np.testing.assert_allclose(mean.get_ydata(), expected)
    assert len(left.lines) == 5 * 4 + 2  # five values of three seeds and a mean, two chosen epochs
    assert "mean of 3 seeds" in figure.get_suptitle()


def test_empty_group_has_no_line():
    (left, _) = draw(plot_trajectory(make_trajectory(few=False, select_on="test"))).axes
    assert "few" not in [t.get_text() for t in left.get_legend().get_texts()]
    assert left.get_ylabel() == "accuracy on test (%)"


def test_trajectory_of_epoch_zero_alone():
    left, _ = draw(plot_trajectory(make_trajectory(epochs=1, chosen=0))).axes
    assert [t for t in left.get_xticks()] == [0]


def test_8142_classes_need_few_artists(tmp_path):
    counts = long_tail(8142)
    values = np.random.default_rng(0).uniform(size=8142)
    for figure in (
        plot_class_counts(counts, [str(c) for c in range(8142)]),
        plot_per_class_accuracy(values, values, counts),
        plot_norms(values, 2 * values, counts),
    ):
        # A bar or a label per class would take minutes to draw.
        assert len(figure.axes[0].get_children()) < 50
        figure.savefig(tmp_path / "figure.png")


def test_names_are_cut_and_not_read_as_formulas(tmp_path):
    figure = plot_class_counts([9, 8], ["$\\alpha", "a" * 200])
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[0] == "\\$\\alpha" and len(labels[1]) == 28
    figure.savefig(tmp_path / "figure.png")


def test_import_leaves_matplotlib_alone():
    code = "import sys, ltlearn.plots, ltlearn.report\n"
    code += "assert not {'matplotlib', 'rich', 'fastai', 'timm'} & set(sys.modules)\n"
    code += "ltlearn.plots.plot_class_counts([3, 4]).draw_without_rendering()\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_class_counts([3, 4], ["a"]), "`classes` has 1 names"),
        (lambda: plot_class_counts([]), "`class_counts` is empty"),
        (lambda: plot_class_counts([3, 4], few="20"), "`few` is '20'"),
        (lambda: plot_per_class_accuracy([1], [1, 0], [3, 4]), "`before` has 1 values"),
        (lambda: plot_norms([1, 1], [1], [3, 4]), "`after` has 1 values"),
        (lambda: plot_trajectory([]), "`trajectory` is empty"),
        (lambda: plot_trajectory(make_trajectory(0)), "has no epochs|values of"),
        (
            lambda: plot_trajectory({**make_trajectory(), "all": [0.5]}),
            "5 epochs but 1 values of 'all'",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(UserError, match=message):
        call()
