import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from ltlearn.cleaning.duplicates import MAX_BITS, find_twins, near_codes
from ltlearn.cleaning.hashes import Hashes, hash_images
from ltlearn.cleaning.images import LoadedImages
from tests.callbacks.helpers import make_dls


def scene(seed, side=64):
    """A smooth image with light and dark regions, as photographs have."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(side / 12))
    pixels = np.asarray(image).astype(float)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def saved_as_jpeg(image, quality=75):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


class Images(LoadedImages):
    """Images of one part, given as a list."""

    def __init__(self, images):
        self.images, self.targets = images, np.zeros(len(images), int)

    def pixels(self, i):
        return np.asarray(self.images[i])


COPIES = {
    "jpeg": saved_as_jpeg,
    "half": lambda image: image.resize((32, 32)),
    "double": lambda image: image.resize((128, 128)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "bright": (
        lambda image: ImageEnhance.Brightness(image).enhance(1.1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_changed_copies_are_found_and_other_images_are_not(copy):
    originals = [scene(seed) for seed in range(40)]
    twins = find_twins(hash_images(Images([*originals, *map(copy, originals[:10])])))
    pairs = dict(zip(twins.index.tolist(), twins.twin.tolist(), strict=True))
    assert pairs == {40 + i: i for i in range(10)}
    assert (twins.similarity > 0.95).all()


def test_a_group_has_its_first_image_as_the_twin():
    image = scene(1)
    images = [scene(0), image, scene(2), saved_as_jpeg(image), saved_as_jpeg(image, 50)]
    twins = find_twins(hash_images(Images(images)))
    assert twins.index.tolist() == [3, 4] and twins.twin.tolist() == [1, 1]


def test_near_codes_equal_a_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    # Few high bits, so that many pairs are near.
    codes = np.unique(rng.integers(0, 2**22, 800).astype(np.uint64) * np.uint64(2**40 + 77))
    distance = np.bitwise_count(codes[:, None] ^ codes[None])
    expected = {tuple(pair) for pair in np.argwhere(np.triu(distance <= MAX_BITS, 1)).tolist()}
    found = {
        (min(pair), max(pair))
        for a, b in near_codes(codes, MAX_BITS)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    }
    assert expected and found == expected


def hashes_of(codes, thumbnails, small=False):
    n = len(codes)
    return Hashes(np.array(codes, np.uint64), thumbnails, np.full(n, small), {})


def test_equal_hashes_need_similar_pixels():
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (6, 256), dtype=np.uint8)
    thumbnails[3], thumbnails[5] = thumbnails[0], thumbnails[2]
    twins = find_twins(hashes_of([7] * 6, thumbnails))
    assert dict(zip(twins.index.tolist(), twins.twin.tolist(), strict=True)) == {3: 0, 5: 2}


def test_flat_images_are_equal_if_their_grey_is():
    thumbnails = np.repeat(np.array([[10], [200], [11]], np.uint8), 256, axis=1)
    twins = find_twins(hashes_of([0] * 3, thumbnails))
    assert twins.index.tolist() == [2] and twins.twin.tolist() == [0]


def test_tiny_images_must_be_more_alike():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, 256)
    second = np.clip(first + rng.normal(0, 16, 256), 0, 255)
    assert 0.95 < np.corrcoef(first, second)[0, 1] < 0.99
    thumbnails = np.stack([first, second]).astype(np.uint8)
    assert len(find_twins(hashes_of([1, 1], thumbnails)).index) == 1
    assert len(find_twins(hashes_of([1, 1], thumbnails, small=True)).index) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair(n):
    assert len(find_twins(hashes_of([3] * n, np.zeros((n, 256), np.uint8))).index) == 0


def test_images_of_a_learner_are_hashed_part_by_part():
    dls = make_dls(counts=[6, 5])
    images = LoadedImages(dls)
    assert images.parts == ["train", "valid", "test"] and len(images) == 11 + 8 + 6
    assert [images.name_of(i) for i in (0, 10, 11, 24)] == [
        "train[0]", "train[10]", "valid[0]", "test[5]",
    ]  # fmt: skip
    assert hash_images(images).small.all()


@pytest.mark.slow
def test_a_hundred_thousand_hashes_take_little_memory_of_pairs():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**63, 100_000, dtype=np.uint64)
    thumbnails = rng.integers(0, 256, (100_000, 256), dtype=np.uint8)
    copies = np.arange(99_000, 100_000)
    codes[copies], thumbnails[copies] = codes[copies - 50_000] ^ np.uint64(5), 0
    thumbnails[copies] = thumbnails[copies - 50_000]
    codes[:20_000] = 0  # as flat images have
    twins = find_twins(hashes_of(codes, thumbnails))
    assert twins.index.tolist() == copies.tolist()
    assert twins.twin.tolist() == (copies - 50_000).tolist()
