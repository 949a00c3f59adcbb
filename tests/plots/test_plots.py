import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ltlearn.errors import UserError
from ltlearn.plots.classes import plot_class_counts, plot_per_class_accuracy
from ltlearn.plots.confusion import plot_confusion
from ltlearn.plots.norms import plot_norms, plot_norms_by_method
from ltlearn.plots.sensitivity import plot_sensitivity
from ltlearn.plots.tradeoff import plot_tradeoff
from ltlearn.plots.trajectory import plot_trajectory

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


def make_points(methods, seeds=3, crowd=0.05, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal((0.85, 0.5), crowd, size=(methods, 2))
    points = np.clip(centres[:, None] + rng.normal(0, 0.01, (methods, seeds, 2)), 0, 1)
    return {f"a method called {i}": values.tolist() for i, values in enumerate(points)}


def make_curve(**values):
    return {
        "label": "SLAS",
        "parameter": "smoothing of the most frequent class",
        "values": [0.001, 0.01, 0.1, 1.0],
        "accuracy": [0.612, 0.65, 0.689, 0.64],
        "default": 0.1,
        "log": True,
    } | values


def extent(text):
    """The extent of the text without the line that an annotation has."""
    return Text.get_window_extent(text)


def labels_of(axes, names):
    labels = {text.get_text(): text for text in axes.texts}
    return [labels[name] for name in names]


def numbers_of(axes):
    return [text for text in axes.texts if text.get_text().isdigit()]


def assert_apart(texts):
    boxes = [extent(text) for text in texts]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
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
        assert [text.get_text() for text in axes.texts] == ["no image"]
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


@pytest.mark.parametrize(("methods", "seeds"), [(1, 3), (2, 1), (20, 3)])
def test_tradeoff(methods, seeds):
    points = make_points(methods, seeds)
    names = list(points)
    figure = draw(plot_tradeoff(points, ("many", "few"), highlight=names[-1]))
    (axes,) = figure.axes
    assert_tick_labels_apart(axes)
    assert axes.get_xlabel() == "many-shot accuracy (%)"
    assert axes.get_ylabel() == "few-shot accuracy (%)"
    drawn = {line.get_label(): line for line in axes.lines}
    for name in names:
        np.testing.assert_allclose(drawn[name].get_xydata()[0], 100 * np.mean(points[name], 0))
        assert drawn[name].get_marker() == ("s" if name == names[-1] else "o")
    numbers = numbers_of(axes)
    assert [text.get_text() for text in numbers] == [str(k + 1) for k in range(methods)]
    assert_apart(numbers)
    for number in numbers:
        box, frame = extent(number), axes.bbox
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert ("one seed" in texts(figure)) == (seeds > 1)
    assert {f"{names[-1]}, for reference", "equal mean of many and few"} <= set(texts(figure))
    assert any(text.get_text().startswith("mean ") for text in axes.texts)


def test_numbers_count_from_the_top_and_the_legend_names_them():
    points = {f"m{i}": [(0.5, i / 20)] for i in range(12)}
    figure = draw(plot_tradeoff(points, highlight="m3"))
    rows = [text.split() for text in texts(figure) if text.strip()[0].isdigit()]
    assert rows == [[str(k + 1), f"m{11 - k}"] for k in range(12)]
    heights = [extent(text).y0 for text in numbers_of(figure.axes[0])]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("crowd", [0.0, 0.005])
def test_numbers_of_20_methods_in_a_crowd_are_apart(crowd):
    points = make_points(20, 1, crowd)
    if not crowd:
        points = {name: [(0.9, 0.4)] for name in points}
    points["far off"] = [(0.1, 0.1)]
    (axes,) = draw(plot_tradeoff(points)).axes
    numbers = numbers_of(axes)
    assert_apart(numbers)
    # There is no room for all numbers beside the dot: some have a line to it.
    assert any(number.arrow_patch is not None for number in numbers)


def test_tradeoff_numbers_stay_apart_at_another_resolution(tmp_path):
    figure = plot_tradeoff(make_points(20))
    figure.savefig(tmp_path / "figure.png", dpi=60)
    assert_apart(numbers_of(draw(figure).axes[0]))


def test_tradeoff_colours_the_pareto_optimal():
    points = {"a": [(0.9, 0.3)], "b": [(0.8, 0.5)], "c": [(0.8, 0.4)], "d": [(0.8, 0.5)]}
    figure = draw(plot_tradeoff(points, highlight="a"))
    colours = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert colours["b"] == colours["d"] != colours["c"]
    assert colours["a"] not in (colours["b"], colours["c"])
    assert texts(figure)[:2] == ["Pareto-optimal", "dominated by another method"]


def test_tradeoff_error_bars_are_one_standard_deviation():
    (axes,) = draw(plot_tradeoff({"CE": [(0.8, 0.3), (0.9, 0.5), (0.7, 0.4)]})).axes
    across, up = [c.get_segments()[0] for c in axes.collections]
    np.testing.assert_allclose(across, [[70, 40], [90, 40]])
    np.testing.assert_allclose(up, [[80, 30], [80, 50]])


def test_tradeoff_without_accuracy_in_a_group():
    points = {"CE": [(0.8, None)], "cRT": [(0.7, 0.5), (0.9, float("nan"))]}
    (axes,) = draw(plot_tradeoff(points, ("many", "all"), highlight="CE")).axes
    assert axes.get_ylabel() == "all accuracy (%)"
    assert axes.get_title(loc="left") == "without accuracy in a group, not drawn: CE"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert "CE" not in drawn
    np.testing.assert_allclose(drawn["cRT"], [[70, 50]])
    draw(plot_tradeoff({"CE": [(0.8, None)]}))


@pytest.mark.parametrize(("num_classes", "methods"), [(2, 5), (100, 1), (1000, 9)])
def test_norms_by_method(num_classes, methods):
    counts = long_tail(num_classes)
    rng = np.random.default_rng(0)
    norms = {"CE": rng.uniform(1, 3, num_classes)}
    norms |= {f"m{i}": rng.uniform(0.01, 0.02, num_classes) for i in range(1, methods)}
    figure = draw(plot_norms_by_method(norms, counts))
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(norms)
    assert figure.get_supxlabel() == "training images per class (log scale)"
    assert "mean norm" in figure.get_supylabel()
    for axes, (name, values) in zip(figure.axes, norms.items(), strict=True):
        assert_tick_labels_apart(axes)
        assert axes.get_xscale() == "log" and axes.get_ylim() == figure.axes[0].get_ylim()
        (dots,) = [line for line in axes.lines if line.get_linestyle() == "None"]
        np.testing.assert_array_equal(dots.get_xdata(), counts)
        np.testing.assert_allclose(dots.get_ydata(), values / values.mean())
        assert axes.texts[0].get_text() == f"mean norm {values.mean():.3g}"
        grey = [line for line in axes.lines if line.get_color() == "#999999"]
        assert len(grey) == (name != "CE")
    assert ("CE, for reference" in texts(figure)) == (methods > 1)


def test_curve_of_norms_is_an_average():
    counts = np.repeat([1, 1000], 50)
    values = np.tile([1.0, 3.0], 50)
    (axes,) = draw(plot_norms_by_method({"CE": values}, counts, reference=None)).axes
    curve = axes.lines[-1]
    np.testing.assert_array_equal(curve.get_xdata(), [1, 1000])
    np.testing.assert_allclose(curve.get_ydata(), 1)


@pytest.mark.parametrize("counts", [[5, 0], [0, 0], [7, 7]])
def test_norms_that_are_zero_or_unknown(counts):
    norms = {"CE": [0, 0], "cRT": [None, float("nan")], "LWS": [1, None]}
    figure = draw(plot_norms_by_method(norms, counts))
    means = [axes.texts[0].get_text() for axes in figure.axes]
    assert means == ["mean norm 0", "no norms", "mean norm 1"]


def test_norms_far_above_the_mean_get_a_log_axis():
    (axes,) = draw(plot_norms_by_method({"CE": [1e-3] * 99 + [1]}, [5] * 100)).axes
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize("number", [1, 4])
def test_sensitivity(number):
    curves = [make_curve(label=f"m{i}") for i in range(number)]
    lines = {"SAMN": 0.682, "CE": 0.681, "NCM": 0.584, "cRT": None}
    figure = draw(plot_sensitivity(curves, lines))
    assert len(figure.axes) == number
    assert figure.get_supylabel() == "class-balanced accuracy (%)"
    for i, axes in enumerate(figure.axes):
        assert_tick_labels_apart(axes)
        assert axes.get_title(loc="left") == f"m{i}" and axes.get_xscale() == "log"
        assert " ".join(axes.get_xlabel().split()) == curves[i]["parameter"]
        assert axes.texts[0].get_text() == "61.2 to 68.9 %"
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 4]
        np.testing.assert_allclose(curve.get_xydata().T[0], curves[i]["values"])
        np.testing.assert_allclose(curve.get_ydata(), 100 * np.array(curves[i]["accuracy"]))
        (default,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert default.get_xdata()[0] == 0.1
        (ring,) = [line for line in axes.lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(ring.get_xydata(), [[0.1, 68.9]])
        assert len([line for line in axes.lines if line.is_dashed()]) == 4  # three and the default
    labels = labels_of(figure.axes[-1], ["SAMN 68.2", "CE 68.1", "NCM 58.4"])
    assert_apart(labels)
    for label in labels:
        assert extent(label).x1 <= figure.bbox.x1


def test_20_lines_are_labelled_apart():
    lines = {f"method {i}": 0.6 + 0.001 * i for i in range(20)}
    (axes,) = draw(plot_sensitivity([make_curve()], lines)).axes
    labels = labels_of(axes, [f"{name} {100 * value:.1f}" for name, value in lines.items()])
    assert_apart(labels)
    heights = [extent(label).y0 for label in labels]
    assert heights == sorted(heights)
    assert heights[0] >= 0 and extent(labels[-1]).y1 <= axes.figure.bbox.y1


def test_sensitivity_of_unordered_missing_and_single_values():
    curves = [
        make_curve(values=[1.0, 0, 0.5, 2], log=False, default=None),
        make_curve(accuracy=[None, float("nan"), None, None]),
        make_curve(values=[0.3], accuracy=[0.5], default=0.2),
        make_curve(accuracy=[0.6, None, 0.7, 0.65]),
    ]
    figure = draw(plot_sensitivity(curves))
    first, empty, single, gap = figure.axes
    np.testing.assert_array_equal(first.lines[-1].get_xdata(), [0, 0.5, 1, 2])
    assert first.get_xscale() == "linear"
    assert not [line for line in first.lines if line.is_dashed()]
    assert empty.texts[0].get_text() == "no accuracy"
    assert single.get_xlim()[0] < 0.2 and single.get_xlim()[1] > 0.3
    assert gap.texts[0].get_text() == "60.0 to 70.0 %"
    for axes in figure.axes:
        assert_tick_labels_apart(axes)
    draw(plot_sensitivity(curves[1:2], {"CE": None}))


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
    assert labels[0] == "\\$\\alpha" and len(labels[1]) == 30
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_class_counts([3, 4], ["a"]), "classes has 1 names"),
        (lambda: plot_class_counts([]), "class_counts is empty"),
        (lambda: plot_class_counts([3, 4], few="20"), "few must be .* got '20'"),
        (lambda: plot_per_class_accuracy([1], [1, 0], [3, 4]), "before has 1 values"),
        (lambda: plot_norms([1, 1], [1], [3, 4]), "after has 1 values"),
        (lambda: plot_trajectory([]), "trajectory is empty"),
        (lambda: plot_trajectory(make_trajectory(0)), "has no epochs|values of"),
        (
            lambda: plot_trajectory({**make_trajectory(), "all": [0.5]}),
            "5 epochs but 1 values of 'all'",
        ),
        (lambda: plot_tradeoff({}), "points is empty"),
        (lambda: plot_tradeoff({"CE": []}), "no seed of 'CE'"),
        (lambda: plot_tradeoff({"CE": [0.5, 0.4]}), "a seed is two accuracies"),
        (lambda: plot_tradeoff({"CE": [(0.5, 0.4, 0.1)]}), "a seed is two accuracies"),
        (lambda: plot_tradeoff({"CE": [(50, 40)]}), "not all fractions"),
        (lambda: plot_tradeoff({"CE": [(0.5, 0.4)]}, ("all",)), "groups has 1 names"),
        (
            lambda: plot_tradeoff({"CE": [(0.5, 0.4)]}, highlight="x"),
            "highlight must be one of CE, got 'x'",
        ),
        (lambda: plot_norms_by_method({}, [3, 4]), "norms is empty"),
        (lambda: plot_norms_by_method({"CE": [1]}, [3, 4]), r"norms\['CE'\] has 1 values"),
        (lambda: plot_sensitivity([]), "curves is empty"),
        (lambda: plot_sensitivity([make_curve(values=[], accuracy=[])]), "'SLAS' has no values"),
        (lambda: plot_sensitivity([make_curve(values=[1])]), "1 values but 4 accuracies"),
        (lambda: plot_sensitivity([make_curve(values=[0, 1, 2, 3])]), "a value of 0 or less"),
    ],
)
def test_errors_name_the_parameter_and_its_value(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_labels_of_levels_are_in_a_tight_image():
    figure = plot_sensitivity([make_curve()], {"a method with a long name": 0.7})
    label = next(t for t in figure.axes[0].texts if t.get_text().startswith("a method"))
    figure.draw_without_rendering()
    assert label.get_window_extent().x1 <= figure.dpi * figure.get_tightbbox().x1 + 1


def test_names_that_are_no_text_are_drawn_with_escapes():
    figure = plot_class_counts([5, 3], [os.fsdecode(b"caf\xe9"), "a\x1bb"])
    figure.draw_without_rendering()
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [r"caf\udce9", r"a\x1bb"]


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [(21, ["each class", "moving average over 3 classes"]),
     (100, ["each class", "moving average over 5 classes"]),
     (1200, ["moving average over 3 classes", "moving average over 61 classes"])],
)  # fmt: skip
def test_the_legend_explains_thin_and_thick_lines(num_classes, expected):
    values = np.linspace(1, 0, num_classes)
    figure = draw(plot_per_class_accuracy(values, values, long_tail(num_classes)))
    legend = figure.axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()] == expected
    thin, thick = legend.get_lines()
    assert thin.get_linewidth() < thick.get_linewidth()
    drawn = {line.get_linewidth() for line in figure.axes[0].get_lines()}
    assert drawn == {thin.get_linewidth(), thick.get_linewidth()}


def cells(figure):
    return [t.get_text() for t in figure.axes[0].texts]


def test_a_confusion_matrix_has_the_most_frequent_class_first():
    target, predicted = [0, 0, 0, 0, 2], [0, 0, 0, 2, 0]
    figure = draw(plot_confusion(target, predicted, [5, 50, 500], ["a", "$b", "c"], "CE"))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "c (500)", r"\$b (50), no image", "a (5)"
    ]  # fmt: skip
    assert cells(figure) == ["0", "0", "100", "0", "0", "0", "25", "0", "75"]
    assert axes.get_title(loc="left").startswith("CE: %")


def test_of_many_classes_the_rarest_are_shown():
    counts = long_tail(100)
    target = np.delete(np.arange(100), np.argmin(counts))  # the rarest has no image
    figure = draw(plot_confusion(target, np.roll(target, 1), counts, label="CE"))
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.get_xticklabels()]
    order = np.argsort(-counts, kind="stable")
    rarest = [c for c in order if c in target][-15:]
    assert names == ["85 other classes", *(f"class {c}" for c in rarest)]
    assert "15 rarest" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [([0, 3], [0, 0], "target.*3"), ([0], [-1], "predicted.*-1"), ([0, 1], [0], "1.*2")],
)
def test_a_confusion_matrix_of_impossible_labels(target, predicted, message):
    with pytest.raises(UserError, match=message):
        plot_confusion(target, predicted, [5, 4, 3])


def test_a_last_epoch_is_not_called_chosen():
    record = make_trajectory(chosen=4)
    last = plot_trajectory({**record, "select": "last"})
    assert last.get_suptitle() == "dotted: epoch 4, the last"
    assert plot_trajectory(record).get_suptitle() == "dotted: epoch 4, chosen on validation"
