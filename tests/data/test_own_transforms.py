"""Transforms of a user's own: drawn by (seed, epoch, position), in the right shape, or refused."""

import random

import albumentations as A
import numpy as np
import pytest
import torch
from fastai.data.transforms import Normalize
from fastai.vision.augment import (
    FlipItem,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Rotate,
    aug_transforms,
)
from PIL import Image
from torchvision.transforms import RandAugment, v2

from ltlearn import LTDataLoaders, UserError
from ltlearn.data.datasets import ImageFiles, ImagesInMemory
from ltlearn.data.own_transforms import seeded
from tests.callbacks.helpers import make_lt_learner

MANY = A.Compose(
    [
        A.RandomResizedCrop(size=(16, 16)),
        A.HorizontalFlip(),
        A.OneOf([A.ToGray(p=1), A.GaussianBlur(p=1)], p=0.5),
        A.ColorJitter(),
    ]
)


def mirror(image):
    return image[:, ::-1] if random.random() < 0.5 else image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, n in (("a", 14), ("b", 8), ("c", 4)):
        (root / name).mkdir()
        for i in range(n):
            pixels = generator.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def load(folder, **options):
    return LTDataLoaders.from_folder(
        folder, **{"bs": 8, "device": "cpu", "num_workers": 0, **options}
    )


def epoch_of(dls, epoch):
    dls.train.set_epoch(epoch)
    return torch.cat([x for x, _ in dls.train])


CASES = {
    "albumentations": {"transform": MANY, "size": 16},
    "albumentations from files": {"transform": MANY, "size": 16, "in_memory": False},
    "one step of albumentations": {"transform": A.HorizontalFlip(), "size": 16},
    "a function": {"transform": mirror, "size": 16},
    "torchvision": {"transform": RandAugment(), "size": 16},
    "torchvision v2": {"transform": v2.Compose([v2.RandomHorizontalFlip()]), "size": 16},
    "item transforms": {"item_tfms": [Resize(16), FlipItem()]},
    "a random crop": {"item_tfms": RandomResizedCrop((12, 20))},
    "item transforms and albumentations": {"item_tfms": Resize(16), "transform": MANY},
    "item transforms and ours": {"item_tfms": Resize(16), "transform": "crop_flip"},
    "batch transforms": {"size": 16, "batch_tfms": [*aug_transforms(), RandomErasing(p=1.0)]},
    "both": {"item_tfms": Resize(20), "batch_tfms": aug_transforms(size=16)},
}


@pytest.mark.parametrize("case", CASES)
def test_draws_depend_on_seed_epoch_and_position_alone(folder, case):
    drawn = []
    for own_seed in (1, 2):
        random.seed(own_seed), np.random.seed(own_seed), torch.manual_seed(own_seed)
        dls = load(folder, **CASES[case])
        drawn.append(epoch_of(dls, 3))
    assert torch.equal(*drawn) and drawn[0].shape[2:] == dls.size
    assert not torch.equal(drawn[0], epoch_of(dls, 4))
    assert not torch.equal(drawn[0], epoch_of(load(folder, seed=1, **CASES[case]), 3))
    valid = [torch.cat([x for x, _ in dls.valid]) for _ in range(2)]
    assert torch.equal(*valid) and valid[0].shape[2:] == dls.size


@pytest.mark.parametrize("case", ["albumentations from files", "both"])
def test_workers_change_nothing(folder, case):
    one, two = (load(folder, num_workers=n, **CASES[case]) for n in (0, 2))
    assert torch.equal(epoch_of(one, 1), epoch_of(two, 1))


def test_the_generators_of_the_process_stay_as_they_are():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with pytest.raises(KeyError), seeded(3):
            drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
            raise KeyError
    assert drawn[0] == drawn[1] and states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())


def test_two_images_of_an_epoch_get_different_draws():
    images = np.tile(np.arange(8, dtype=np.uint8)[None, None, :, None] * 30, (24, 8, 1, 3))
    dls = LTDataLoaders.from_arrays(
        images, np.arange(24) % 2, transform=A.HorizontalFlip(), bs=24, device="cpu"
    )
    x = epoch_of(dls, 0)
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, -1]).float()
    assert 0.1 < mirrored.mean() < 0.9


def test_where_the_images_are(folder):
    small = load(folder, size=16, transform=MANY)
    assert isinstance(small.train_ds, ImageFiles) and small.train_ds.data.images is not None
    assert isinstance(small.valid_ds, ImagesInMemory)
    assert isinstance(load(folder, item_tfms=Resize(16)).valid_ds, ImageFiles)
    assert isinstance(load(folder, size=16, batch_tfms=Rotate()).train_ds, ImagesInMemory)


def test_sizes(folder):
    assert load(folder, item_tfms=Resize((12, 20))).size == (12, 20)
    assert load(folder, item_tfms=FlipItem(), size=10).size == (10, 10)
    assert load(folder, item_tfms=FlipItem()).size == (224, 224), "images of different sizes"
    assert load(folder, size=16, batch_tfms=aug_transforms(size=8)).size == (8, 8)
    digits = LTDataLoaders.from_dataset(
        "digits_lt", imbalance_factor=20, item_tfms=Resize(16), device="cpu"
    )
    assert digits.size == (16, 16) and digits.one_batch()[0].shape[2:] == (16, 16)
    own = LTDataLoaders.from_dataset(
        "digits_lt", imbalance_factor=20, transform=mirror, device="cpu"
    )
    assert own.size == (8, 8) and isinstance(own.train_ds, ImageFiles)


def test_item_transforms_reach_validation_and_prediction(folder):
    squish = load(folder, item_tfms=Resize(16, method="squish"))
    path = squish.valid_ds.items[0].image
    expected = np.array(Image.open(path).resize((16, 16), Image.Resampling.BILINEAR))
    found = squish.valid_ds[0][0].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1
    (x,) = squish.test_dl([path]).one_batch()
    assert torch.equal(x[0], squish.valid.one_batch()[0][0])


def test_normalize_gives_its_statistics_to_the_loaders(folder):
    dls = load(folder, size=16, batch_tfms=[Normalize.from_stats([0.5] * 3, [0.25] * 3)])
    assert torch.allclose(dls.normalize.mean.flatten() / 255, torch.tensor(0.5))
    assert dls.stats_given and isinstance(dls.train_ds, ImagesInMemory)
    x = dls.valid.one_batch()[0][0]
    assert torch.allclose(x, (dls.valid_ds[0][0] / 255 - 0.5) / 0.25, atol=1e-5)
    typed = load(folder, size=16, stats=([0.5] * 3, [0.25] * 3), batch_tfms=Rotate())
    assert torch.allclose(typed.valid.one_batch()[0][0], x, atol=1e-5), "as without transforms"
    assert type(typed.valid.one_batch()[0]) is torch.Tensor


def test_adding_batch_transforms_to_loaders(folder):
    dls = load(folder, size=16, transform="none", batch_tfms=None)
    before = dls.valid.one_batch()[0]
    dls.add_tfms([Rotate(90, p=1.0)], "after_batch", "train")
    assert torch.equal(dls.valid.one_batch()[0], before)
    assert (
        not torch.equal(epoch_of(dls, 0), epoch_of(dls, 1)[:0])
        and len(dls.train.after_batch.fs) == 3
    )
    with pytest.raises(UserError, match="after_item.*item_tfms"):
        dls.add_tfms([Resize(8)], "after_item")


# ------------------------------------------------ caches and records


class OwnSharpening(A.ImageOnlyTransform):
    def apply(self, image, **params):
        return image


def keep(image, **params):
    return image


def test_names_of_transforms():
    def name(transform):
        images = np.zeros((8, 8, 8, 3), np.uint8)
        dls = LTDataLoaders.from_arrays(images, np.arange(8) % 2, transform=transform, device="cpu")
        return dls.train_ds.transform.name

    same = [name(A.Compose([A.HorizontalFlip(p=0.5)])) for _ in range(2)]
    assert same[0] == same[1] and same[0].startswith("Compose ")
    assert name(A.Compose([A.HorizontalFlip(p=0.4)])) != same[0]
    assert name(mirror) != name(mirror), "its code may change between two processes"
    for make in (OwnSharpening, lambda: A.Lambda(image=keep, name="mine")):
        assert name(A.Compose([make()])) != name(A.Compose([make()])), "so may the code inside"


def test_features_of_other_item_transforms_are_others(folder, tmp_path):
    found = []
    for method in ("squish", "crop"):
        dls = load(folder, item_tfms=Resize(16, method=method))
        learn = make_lt_learner(dls, cache_path=tmp_path / "cache")
        found.append(torch.as_tensor(np.array(learn.features("valid").views[0])))
    assert not torch.equal(*found)


@pytest.mark.parametrize("case", ["albumentations", "batch transforms", "item transforms"])
def test_training_with_own_transforms(folder, case):
    learn = make_lt_learner(load(folder, **CASES[case]))
    views = [np.array(v) for v in learn.features("train", views=2).views]
    assert not np.array_equal(*views)
    learn.bank._memory = {}
    again = learn.features("train", views=2).views
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    learn.fit_stage1(1, 0.01, method="glmc")
    learn.retrain_classifier(1, 0.01, views=2)
    assert learn.predict(learn.dls.valid_ds.items[0].image)[2].isfinite().all()


# ------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"transform": 3}, "transform.*called.*got 3"),
        ({"transform": A.Compose([A.Normalize()])}, "transform must leave.*float32"),
        ({"transform": lambda image: image[0]}, r"transform must leave.*uint8 \(16, 3\)"),
        ({"transform": lambda image: 1 / 0}, "transform fails.*16 x 16.*ZeroDivisionError"),
        ({"item_tfms": 3}, "item_tfms.*got 3"),
        ({"item_tfms": lambda image: 1 / 0}, "item_tfms fails.*ZeroDivisionError"),
        ({"item_tfms": Resize(8), "in_memory": True}, "item_tfms.*in_memory=True"),
        ({"item_tfms": Resize((8, 12)), "size": None, "transform": "crop_flip"},
         "crop_flip.*12 x 8"),
        ({"batch_tfms": 3}, "batch_tfms.*got 3"),
        ({"batch_tfms": Normalize()}, "Normalize.*from_stats"),
        ({"batch_tfms": Normalize.from_stats([0.5] * 3, [0.5] * 3),
          "stats": ([0.5] * 3, [0.5] * 3)}, "stats.*Normalize"),
    ],
)  # fmt: skip
def test_refused_transforms(folder, options, message):
    with pytest.raises(UserError, match=message):
        load(folder, **{"size": 16, **options}).one_batch()


def test_carved_parts_of_an_array_read_their_own_rows():
    """Item transforms read images one by one, and a carved part shares the array of the whole."""
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    targets = np.repeat([0, 1], 20)
    dls = LTDataLoaders.from_arrays(images, targets, item_tfms=Resize(8), device="cpu")
    seen = []
    for dataset in (dls.train_ds, dls.valid_ds):
        numbers = [int(dataset.get(i)[0].float().mean()) for i in range(len(dataset))]
        assert [targets[n] for n in numbers] == dataset.targets.tolist()
        assert [int(item.image.mean()) for item in dataset.items[:3]] == numbers[:3]
        assert [dataset.name_of(i) for i in range(3)] == [f"[{n}]" for n in numbers[:3]]
        seen += numbers
    assert sorted(seen) == list(range(40))
