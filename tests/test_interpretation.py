import matplotlib
import numpy as np
import pytest
import torch
from fastai.interpret import ClassificationInterpretation

from ltlearn import LTInterpretation, UserError, shot_report
from ltlearn.interpretation import ConfusedPairs
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner

COUNTS = [110, 30, 12, 4]


@pytest.fixture(autouse=True)
def no_windows():
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def learn():
    learn = make_lt_learner(make_dls(COUNTS, bs=32))
    learn.fit(1, 0.01)
    return learn


@pytest.fixture(scope="module")
def found(learn):
    return learn.interpret()


def axes_of_figure():
    from matplotlib import pyplot as plt

    return plt.gcf().axes


def test_the_outcomes_are_those_of_fastai(learn, found):
    theirs = ClassificationInterpretation.from_learner(learn)
    torch.testing.assert_close(torch.as_tensor(found.losses), torch.as_tensor(theirs.losses))
    preds, targets, decoded = learn.get_preds(with_decoded=True)
    assert torch.equal(found.outcomes.targets, targets)
    assert torch.equal(found.outcomes.predictions, decoded)
    torch.testing.assert_close(found.outcomes.confidence, preds.amax(1))
    np.testing.assert_array_equal(found.confusion_matrix(), theirs.confusion_matrix())
    assert sorted(found.most_confused()) == sorted(theirs.most_confused())
    assert [n for *_, n in found.most_confused()] == [n for *_, n in theirs.most_confused()]
    assert found.report.all == pytest.approx((decoded == targets).double().mean().item())
    made = LTInterpretation(learn, theirs.dl, theirs.losses)
    assert torch.equal(made.outcomes.predictions, decoded)


@pytest.mark.parametrize("part, number", [("train", sum(COUNTS)), ("valid", 16), ("test", 12)])
def test_parts(learn, part, number):
    found = learn.interpret(part)
    targets = getattr(learn.dls, part).dataset.targets
    assert len(found.losses) == number and torch.equal(found.outcomes.targets, targets)
    again = LTInterpretation.from_learner(learn, learn.dls.loaders.index(getattr(learn.dls, part)))
    assert torch.equal(again.losses, found.losses)


def test_images_of_ones_own(learn, tmp_path):
    images, _ = make_images([1, 2], 8, seed=5)
    vocab = learn.dls.vocab
    dl = learn.dls.test_dl(
        list(zip(images, [vocab[3], vocab[0], 1], strict=True)), with_labels=True
    )
    found = learn.interpret(dl=dl)
    assert found.outcomes.targets.tolist() == [3, 0, 1] and len(found.top_losses()[0]) == 3
    assert found.shots.tolist() == ["few", "many", "medium"]
    with pytest.raises(UserError, match="no labels.*with_labels"):
        learn.interpret(dl=learn.dls.test_dl(list(images)))


def test_top_losses_of_a_group(found):
    losses, index, items = found.top_losses(3, group="few", items=True)
    every, order = found.top_losses()
    own = [i for i in order.tolist() if found.shots[i] == "few"]
    assert index.tolist() == own[:3] and torch.equal(losses, found.losses[index])
    targets = found.outcomes.targets[index].tolist()
    assert [item.label for item in items] == [found.learn.dls.vocab[c] for c in targets]
    smallest = found.top_losses(1, largest=False, group="few")[1]
    assert smallest.tolist() == own[-1:]
    assert len(found.top_losses(1000)[0]) == len(every) == 16
    assert len(found.top_losses(1000, group="many")[0]) == 4


def test_plots_of_top_losses(found):
    found.plot_top_losses(3, by="group")
    grid = axes_of_figure()
    shown = [axes for axes in grid if axes.images]
    assert len(grid) == len(shown) == 9
    assert [axes.texts[0].get_text() for axes in grid[::3]] == ["many", "medium", "few"]
    loss, (i,) = found.top_losses(1, group="few")
    vocab, outcomes = found.learn.dls.vocab, found.outcomes
    title = shown[6].get_title().splitlines()
    confidence = f"({outcomes.confidence[i]:.2f})"
    assert title == [f"{vocab[outcomes.predictions[i]]} {confidence}",
                     f"true: {vocab[outcomes.targets[i]]}", f"loss {loss[0]:.2f}"]  # fmt: skip
    plain = found.dl.dataset[i][0].permute(1, 2, 0).numpy()
    drawn = np.asarray(shown[6].images[0].get_array())
    np.testing.assert_allclose(drawn, plain / 255, atol=1e-5)
    found.plot_top_losses(2, group="medium")
    assert len(axes_of_figure()) == 2
    for k in (2, [0, 3], range(2)):
        found.plot_top_losses(k)
        assert sum("/" in axes.get_title() for axes in axes_of_figure()) == 2, "fastai's"


def test_confusion_plots(found):
    found.plot_confusion_matrix()
    (axes,) = axes_of_figure()
    assert len(axes.texts) == 16 and len(axes.lines) == 4, "many, medium and few are set apart"
    found.plot_confusion_matrix(by="group", normalize=False)
    (axes,) = axes_of_figure()
    assert sum(float(text.get_text()) for text in axes.texts) == 16
    found.plot_confusion_matrix(True, "A title", "Reds", 1, True, by="label", figsize=(4, 4))
    (axes,) = axes_of_figure()
    assert axes.get_title() == "A title" and "." in axes.texts[0].get_text()


def test_confused_pairs(learn):
    found = learn.interpret("test")
    pairs = found.most_confused()
    assert len(pairs) and all(n >= pairs[-1][2] for *_, n in pairs)
    tail = found.most_confused(tail=True)
    few = {learn.dls.vocab[2], learn.dls.vocab[3]}
    assert list(tail) == [pair for pair in pairs if pair[0] in few]
    assert found.most_confused(1000) == [] and len(found.most_confused(1000).to_frame()) == 0
    frame = tail.to_frame()
    assert set(frame.true_shot) == {"few"} and set(frame.true_train_images) <= {12, 4}
    assert frame.share.tolist() == [n / 3 for *_, n in tail]
    text, html = str(tail), tail._repr_html_()
    for name in frame.true:
        assert f"{name} (few, " in text and f"{name} (few, " in html
    assert str(found.most_confused(1000)).startswith("true class")


def test_without_few_shot_images_the_tail_is_the_rarest_group():
    learn = make_lt_learner(make_dls([120, 40, 30], bs=32))
    found = learn.interpret()
    assert {a for a, *_ in found.most_confused(tail=True)} <= set(learn.dls.vocab[1:])
    with pytest.raises(UserError, match="group 'few'"):
        found.plot_top_losses(2, group="few")


def test_scores(found, capsys):
    table = found.classification_report()
    assert len(table.rows) == 4 + 4 and table.head[-3:] == ["precision", "recall", "F1"]
    found.print_classification_report()
    assert "macro avg" in capsys.readouterr().out
    found.show_results([0, 1])
    assert len(axes_of_figure()) >= 2


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda learn, found: learn.interpret("dev"), "part.*'dev'"),
        (lambda learn, found: LTInterpretation.from_learner(learn, 5), "loader 5.*3 parts"),
        (lambda learn, found: found.top_losses(2, group="tail"), "group.*'tail'"),
        (lambda learn, found: found.top_losses(0), "k.*0"),
        (lambda learn, found: found.plot_top_losses(2, by="class"), "by.*'class'"),
        (lambda learn, found: found.plot_top_losses(2, by="group", group="few"), "by.*group"),
        (lambda learn, found: found.plot_confusion_matrix(by="size"), "by.*'size'"),
        (lambda learn, found: found.most_confused(0), "min_val.*0"),
    ],
)
def test_what_is_not_allowed(learn, found, call, message):
    with pytest.raises(UserError, match=message):
        call(learn, found)


def test_classes_with_one_name_keep_their_own_counts():
    report = shot_report([1, 1, 0, 0, 0], [0, 0, 1, 1, 2], [200, 5, 50], classes=["a", "a", "b"])
    pairs = ConfusedPairs([("a", "a", 2), ("a", "a", 2)], report, [(0, 1), (1, 0)])
    assert [row["true_train_images"] for row in pairs.rows()] == [200, 5]
    assert [row["share"] for row in pairs.rows()] == [1, 1]
