"""Crops whose least share of the image rises over the training, and five crops for the test."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ltlearn import LTDataLoaders, UserError, lt_learner
from ltlearn.data.transforms import ImageTransform, OneOfFiveCrops, least_scale

SIDE = 40


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, counts in (("train", (8, 4)), ("valid", (3, 3)), ("test", (3, 3))):
        for c, n in enumerate(counts):
            (tmp_path / part / f"class{c}").mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(0, 255, (SIDE, SIDE + 8 * c, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / f"class{c}" / f"{i}.png")
    return tmp_path


def make(folder, **kwargs):
    kwargs = {"transform": "rising_crop", "size": 16, "bs": 4, "num_workers": 0, **kwargs}
    return LTDataLoaders.from_folder(folder, in_memory=False, device="cpu", **kwargs)


def test_the_least_share_rises_from_eight_percent_to_all():
    assert least_scale(0) == 0.08 and least_scale(1) == 1 and least_scale(None) == 1
    for t in (0.25, 0.5, 0.9):
        assert least_scale(t) == pytest.approx(0.08 + 0.92 * (1 - math.sqrt(1 - t**2)))
    values = [least_scale(t) for t in np.linspace(0, 1, 20)]
    assert (np.diff(values, 2) > 0).all(), "convex"


def shares(progress, n=200):
    """Measure which share of a horizontal ramp each crop has, and check that none is mirrored."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    transform = ImageTransform("rising_crop", 64)
    found = []
    for seed in range(n):
        crop = transform(np.ascontiguousarray(ramp), seed, progress).astype(int)
        width = crop[0, -1, 0] - crop[0, 0, 0]
        assert width >= 0, "mirrored"
        found.append((width / 199) ** 2)
    return np.array(found)


def test_crops_are_square_and_at_least_that_large():
    early, middle = shares(0.0), shares(0.8)
    assert 0.04 < early.min() < 0.2 and early.max() > 0.8
    assert middle.min() > least_scale(0.8) - 0.08 and middle.min() < 0.6
    assert (shares(1.0, 5) > 0.97).all() and (shares(None, 5) > 0.97).all()


def test_at_the_end_the_crop_is_the_centre_square():
    image = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    crop = ImageTransform("rising_crop", 30)(image, 3, 1.0)
    assert np.array_equal(crop, image[:, 10:40])


def test_the_loader_knows_how_far_the_training_is(folder):
    dl = make(folder).train
    assert dl.progress is None
    dl.set_epoch(0, 5)
    assert dl.progress == 0
    dl.set_epoch(2)
    assert dl.progress == 0.5
    dl.set_epoch(4)
    assert dl.progress == 1
    dl.set_epoch(0, 1)
    assert dl.progress == 0
    assert dl.new().progress is None


def images_of(dl, epoch, epochs):
    dl.set_epoch(epoch, epochs)
    return torch.cat([x for x, _ in dl])


def test_seed_epoch_and_position_decide_the_crops(folder):
    first, second = make(folder).train, make(folder, num_workers=1).train
    a = images_of(first, 1, 4)
    assert torch.equal(a, images_of(first, 1, 4))
    assert torch.equal(a, images_of(second, 1, 4)), "in a worker process"
    assert not torch.equal(a, images_of(first, 1, 40)), "another length of the training"
    assert torch.equal(images_of(first, 3, 4), images_of(first, 3, 4))


def test_a_training_and_a_resumed_training_agree(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ltlearn.training.checkpoint.Checkpoint.clear", lambda self: None)
    seen = {}

    def train(name, folder_of, stop=None):
        torch.manual_seed(0)
        learn = lt_learner(make(folder), "test_vit", pretrained=False, precision="fp32")
        kept, own = seen.setdefault(name, []), learn.dls.train.dataset.transform
        call = type(own).__call__

        def spy(self, image, seed=None, progress=None):
            if seed is not None:
                if stop is not None and progress == stop:
                    raise ArithmeticError("stop")
                kept.append((seed, progress))
            return call(self, image, seed, progress)

        monkeypatch.setattr(type(own), "__call__", spy)
        from ltlearn import Checkpoint

        try:
            learn.fit_stage1(3, 0.01, cbs=Checkpoint(folder_of, resume=True, keep_all=True))
        except ArithmeticError:
            pass
        monkeypatch.setattr(type(own), "__call__", call)
        return learn.model.state_dict()

    whole = train("whole", tmp_path / "a")
    train("stopped", tmp_path / "b", stop=1.0)
    resumed = train("stopped", tmp_path / "b")
    assert {p for _, p in seen["whole"]} == {0.0, 0.5, 1.0}
    assert seen["stopped"] == seen["whole"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_five_crops_show_corners_and_centre():
    image = np.random.default_rng(0).integers(0, 255, (248, 300, 3), dtype=np.uint8)
    crops = [OneOfFiveCrops(224, which)(image) for which in range(5)]
    assert np.array_equal(crops[0], image[:224, :224])
    assert np.array_equal(crops[1], image[:224, -224:])
    assert np.array_equal(crops[2], image[-224:, :224])
    assert np.array_equal(crops[3], image[-224:, -224:])
    assert np.array_equal(crops[4], image[12:236, 38:262])


def test_the_mean_logits_of_five_crops(folder):
    learn = lt_learner(make(folder), "test_vit", pretrained=False, precision="fp32")
    logits, targets = learn.predict_logits("test", crops=5)
    model, normalize = learn.model.eval(), learn.dls.normalize
    data, sums = learn.dls.test.dataset, 0
    for which in range(5):
        crop = OneOfFiveCrops(16, which)
        pixels = [crop(np.array(Image.open(data.name_of(i)))) for i in range(len(data))]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        with torch.no_grad():
            sums = sums + model(normalize((x,))[0])
    torch.testing.assert_close(logits, sums / 5, rtol=1e-4, atol=1e-4)
    assert targets.tolist() == [0] * 3 + [1] * 3
    assert learn.shot_report(crops=5).all >= 0
    assert not torch.allclose(logits, learn.predict_logits("test")[0])


def test_what_is_refused(folder):
    learn = lt_learner(make(folder), "test_vit", pretrained=False, precision="fp32")
    with pytest.raises(UserError, match="crops must be.*3"):
        learn.predict_logits("test", crops=3)
    small = LTDataLoaders.from_folder(folder, size=16, device="cpu")
    learn = lt_learner(small, "test_vit", pretrained=False, precision="fp32")
    with pytest.raises(UserError, match="held in memory.*crops=1"):
        learn.shot_report(crops=5)
    with pytest.raises(UserError, match="transform.*rising_crop.*in_memory=False"):
        LTDataLoaders.from_folder(folder, size=16, transform="rising_crop", in_memory=True)


def test_small_images_of_a_benchmark_are_enlarged_one_by_one(tmp_path):
    stats = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    small = LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, device="cpu")
    dls = LTDataLoaders.from_dataset(
        "digits_lt", imbalance_factor=20, size=112, transform="rising_crop", num_workers=0,
        stats=stats, device="cpu",
    )  # fmt: skip
    assert dls.size == (112, 112) and dls.train.one_batch()[0].shape[-2:] == (112, 112)
    assert dls.split.images == small.split.images, "the images are the same"
    mean, std = dls.normalize.stats
    assert (mean, std) == tuple(map(list, stats))
    assert dls.train.dataset.transform.name == "rising_crop"
    for options in ({"size": 50}, {"transform": "rising_crop"}, {"num_workers": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            LTDataLoaders.from_dataset("digits_lt", imbalance_factor=20, **options)
