"""fastai's views show the right image under the right name, however the images are read."""

import albumentations as A
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.interpret import ClassificationInterpretation
from fastai.vision.augment import Resize, aug_transforms
from PIL import Image
from torchvision.transforms import v2

from ltlearn import GLMC, LTDataLoaders
from tests.callbacks.helpers import make_lt_learner

COLOURS = {"blue": (50, 60, 220), "green": (40, 200, 60), "red": (230, 40, 40)}
OPTIONS = {"bs": 8, "device": "cpu", "size": 16}


@pytest.fixture(autouse=True)
def no_windows():
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images in the colour that their class is named after."""
    root = tmp_path_factory.mktemp("photos")
    for part, counts in (("train", (12, 8, 6)), ("test", (3, 3, 3))):
        for (name, colour), n in zip(COLOURS.items(), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                image = Image.new(
                    "RGB", (20, 24), tuple(max(v - i - (part == "test"), 0) for v in colour)
                )
                image.save(root / part / name / f"{i}.png")
    return root


def from_folder(**options):
    return lambda root: LTDataLoaders.from_folder(root, **{**OPTIONS, "num_workers": 0, **options})


def from_table(root):
    paths = sorted(root.rglob("*.png"))
    parts = [path.parts[-3] for path in paths]
    table = pd.DataFrame({"image": paths, "label": [p.parent.name for p in paths], "part": parts})
    return LTDataLoaders.from_df(table, split_col="part", num_workers=0, **OPTIONS)


def from_arrays(root):
    def read(part):
        paths = sorted((root / part).rglob("*.png"))
        images = np.stack([np.array(Image.open(path).resize((16, 16))) for path in paths])
        return images, [list(COLOURS).index(path.parent.name) for path in paths]

    options = {"test": read("test"), "classes": list(COLOURS), "bs": 8, "device": "cpu"}
    return LTDataLoaders.from_arrays(*read("train"), **options)


KINDS = {
    "files": from_folder(),
    "workers": from_folder(num_workers=1),
    "memory": from_folder(in_memory=True),
    "table": from_table,
    "arrays": from_arrays,
    "stats": from_folder(stats=([0.1, 0.5, 0.9], [0.2, 0.3, 0.1])),
    "albumentations": from_folder(transform=A.Compose([A.RandomCrop(12, 12)])),
    "torchvision": from_folder(transform=v2.Compose([v2.RandomCrop(12)])),
    "fastai": from_folder(item_tfms=Resize(20), batch_tfms=aug_transforms(size=16)),
}


@pytest.fixture(params=KINDS)
def dls(request, photos):
    return KINDS[request.param](photos)


def assert_shown(number, lines=1):
    """Each image in the figure has the colour that the first line of its title names."""
    from matplotlib import pyplot as plt

    shown = [axes for axes in plt.gcf().axes if axes.images]
    assert len(shown) == number
    for axes in shown:
        pixels = np.asarray(axes.images[0].get_array())[4:-4, 4:-4]
        assert 0 <= pixels.min() and pixels.max() <= 1, "not denormalised"
        names = axes.get_title().splitlines()
        assert len(names) == lines
        colour = np.array(COLOURS[names[0]]) / 255
        np.testing.assert_allclose(pixels.mean((0, 1)), colour, atol=0.2)


def test_views_of_fastai(dls):
    dls.show_batch(max_n=4, nrows=1)
    assert_shown(4)
    dls.show_batch(max_n=3, unique=True)
    assert_shown(3)
    dls.test.show_batch(max_n=8)
    assert_shown(8)
    learn = make_lt_learner(dls)
    learn.show_results(max_n=4)
    assert_shown(4, lines=2)
    preds, targets = learn.tta(ds_idx=2, n=2)
    assert torch.equal(targets, dls.test.dataset.targets) and preds.shape == (9, 3)
    theirs = ClassificationInterpretation.from_learner(learn, ds_idx=2)
    theirs.plot_top_losses(4)
    found = learn.interpret("test")
    np.testing.assert_array_equal(found.confusion_matrix(), theirs.confusion_matrix())
    found.plot_top_losses(2, by="group")


class ShowBatch(Callback):
    """Show a batch of the loader that trains."""

    def before_train(self):
        self.learn.dls.train.show_batch(max_n=4)
        assert_shown(4)
        self.learn.shown = True


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_a_batch_of_two_views_shows_the_first(photos, kind):
    learn = make_lt_learner(KINDS[kind](photos))
    learn.fit_stage1(1, 0.01, cbs=[GLMC(), ShowBatch()])
    assert learn.shown
    learn.dls.show_batch(max_n=4)
    assert_shown(4)
    learn.interpret("test").plot_top_losses(2, by="group")
