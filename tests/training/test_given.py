"""Models that were trained elsewhere: normalisation, order of the outputs, and the check."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from ltlearn import LTDataLoaders, UserError, lt_learner
from ltlearn.defaults import IMAGENET_STATS
from ltlearn.training.given import check_given, describe_origin, describe_weights

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ARCH = {"arch": "resnet20_cifar", "width": 4}
COUNTS = {"10": 60, "2": 40, "1": 25, "3": 16, "11": 10}


def make_arrays(seed=0):
    """Images whose classes differ in their colours, and in a pattern."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(COUNTS)), list(COUNTS.values()))
    images = rng.integers(0, 160, (len(targets), 12, 12, 3)).astype(np.uint8)
    for c in range(len(COUNTS)):
        images[targets == c, :, :, c % 3] += 60
        images[targets == c, 2 * c : 2 * c + 3] //= 3
    return images, targets


def make_dls(names=tuple(COUNTS), stats=None, seed=0):
    """Loaders of the images, with the classes in the order of `names`."""
    images, targets = make_arrays(seed)
    place = np.array([list(names).index(name) for name in COUNTS])
    targets = place[targets]
    return LTDataLoaders.from_arrays(
        images, targets, valid=(images[::4], targets[::4]), classes=list(names), transform="none",
        bs=16, device="cpu", stats=stats,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that was trained with 0.5 as mean and standard deviation, and its file."""
    torch.manual_seed(0)
    learn = lt_learner(make_dls(stats=HALF), pretrained=False, precision="fp32", **ARCH)
    with learn.no_bar(), learn.no_logging():
        learn.fit_stage1(8, 0.05)
    file = tmp_path_factory.mktemp("given") / "w.pth"
    torch.save(learn.model.state_dict(), file)
    return learn, file


def keep(file, dls, **options):
    options = {"precision": "fp32", "keep_head": True, **ARCH, **options}
    return lt_learner(dls, pretrained=file, **options)


def test_the_right_use_of_a_model_is_measured_and_raises_no_warning(trained, caplog):
    source, file = trained
    learn = keep(file, make_dls(stats=HALF))
    result = learn.as_given
    assert result.accuracy > 0.7 and result.warnings == () and not caplog.records
    index = np.arange(len(learn.dls.train.dataset.targets))
    assert result.images == len(index), "few images are all looked at"
    logits, targets = learn.predict_logits("train")
    assert result.accuracy == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    torch.testing.assert_close(logits, source.predict_logits("train")[0])
    assert f"{100 * result.accuracy:.1f} %" in str(result)
    assert keep(file, make_dls(stats=HALF), check=False).as_given is None


def test_another_normalisation_is_named(trained, caplog):
    learn = keep(trained[1], make_dls())
    assert learn.origin.mean == IMAGENET_STATS[0]
    (warning,) = learn.as_given.warnings
    assert "Inception's" in warning and "stats" in warning and warning in caplog.text


def test_another_order_of_the_classes_is_named(trained, caplog):
    names = sorted(COUNTS)
    learn = keep(trained[1], make_dls(names, HALF))
    (warning,) = learn.as_given.warnings
    assert "another order" in warning and warning in caplog.text
    assert "looks like" not in warning, "the true order, 10 2 1 3 11, is no usual one"
    assert learn.shot_report("train").all < 0.5
    assert "assumed" in learn.origin.classes_from
    # With the order, the logits are those of the model.
    right = keep(trained[1], make_dls(names, HALF), classes=list(COUNTS))
    assert right.as_given.warnings == ()
    assert right.shot_report("train").all == pytest.approx(trained[0].shot_report("train").all)
    assert any("10, 2, 1, 3, 11; as given" in line for line in describe_origin(right.origin))


def test_the_usual_orders_of_names_are_recognised(trained, caplog):
    learn = copy.copy(trained[0])
    number_order, names = ["1", "2", "3", "10", "11"], sorted(COUNTS)
    model = copy.deepcopy(learn.model)
    order = [list(COUNTS).index(name) for name in number_order]
    for part in (model.head.weight, model.head.bias):
        part.data = part.data[order]
    file = trained[1].with_name("numbers.pth")
    torch.save(model.state_dict(), file)
    found = keep(file, make_dls(names, HALF))
    assert "it looks like 1, 2, 3, 10, 11" in found.as_given.warnings[0]


def test_a_file_states_its_classes_and_statistics(trained, caplog):
    learn, file = trained
    stated = file.with_name("stated.pth")
    content = {"state_dict": learn.model.state_dict(), "classes": list(COUNTS)}
    torch.save({**content, "mean": HALF[0], "std": HALF[1]}, stated)
    names = sorted(COUNTS)
    found = keep(stated, make_dls(names))
    assert (found.origin.mean, found.origin.std) == HALF and found.as_given.warnings == ()
    assert found.shot_report("train").all == pytest.approx(learn.shot_report("train").all)
    assert not caplog.records
    # The user's statement comes first.
    given = keep(stated, make_dls(names, IMAGENET_STATS))
    assert given.origin.mean == pytest.approx(IMAGENET_STATS[0])
    with pytest.raises(UserError, match=r"not in the data: 'x'.*classes"):
        keep(stated, make_dls(names), classes=["1", "2", "3", "10", "x"])
    for options, match in (
        ({"classes": names, "keep_head": False}, "classes.*keep_head"),
        ({"classes": "1,2"}, "classes must be a list"),
    ):
        with pytest.raises(UserError, match=match):
            keep(stated, make_dls(names), **options)


@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_weak_model_raises_no_warning(epochs, seed, tmp_path, caplog):
    """It is trained for a moment on imbalanced classes, so that it answers with frequent ones."""
    torch.manual_seed(seed)
    learn = lt_learner(make_dls(seed=seed), pretrained=False, precision="fp32", **ARCH)
    with learn.no_bar(), learn.no_logging():
        learn.fit_stage1(epochs, 0.05)
    torch.save(learn.model.state_dict(), tmp_path / "w.pth")
    assert keep(tmp_path / "w.pth", make_dls(seed=seed)).as_given.warnings == ()
    assert not caplog.records


def test_the_check_leaves_the_learner_unchanged(trained):
    learn = keep(trained[1], make_dls(stats=HALF), check=False)
    learn.model.train()
    before = copy.deepcopy(learn.model.state_dict())
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    check_given(learn)
    assert torch.equal(torch.random.get_rng_state(), state) and learn.model.training
    after = learn.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_random_weights_after_given_ones_are_normalised_as_usual(trained):
    dls = make_dls()
    file = trained[1].with_name("other.pth")
    torch.save({"net": trained[0].model.state_dict(), "mean": HALF[0], "std": HALF[1]}, file)
    keep(file, dls, check=False)
    assert dls.normalize.mean.flatten().tolist() == [127.5] * 3
    learn = lt_learner(dls, pretrained=False, precision="fp32", **ARCH)
    assert dls.normalize.mean.flatten()[0] == pytest.approx(0.485 * 255)
    assert "random weights" in describe_origin(learn.origin)[0]


def test_the_description_of_weights_is_read_again(trained):
    facts = json.loads(describe_weights(trained[0])["config"])
    assert facts["mean"] == [0.5] * 3 and facts["classes"] == list(COUNTS)


def test_a_crop_of_timm_is_reported(trained):
    from dataclasses import replace

    origin = replace(trained[0].origin, crop=0.95, interpolation="bicubic")
    assert "0.95 of the image, bicubic; here it is 0.875" in describe_origin(origin, 224)[-1]
    assert "evaluation" not in describe_origin(replace(origin, crop=0.875), 224)[-1]


def test_a_collapsed_model_raises_no_warning(trained, tmp_path):
    model = copy.deepcopy(trained[0].model)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data[0] = 1.0
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert keep(tmp_path / "w.pth", make_dls(stats=HALF)).as_given.warnings == ()
