from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ltlearn.data.transforms import BatchCropFlip, ImageTransform, mix_seed
from ltlearn.errors import UserError
from ltlearn.names import TRANSFORM_NAMES


def tiny(h=3, w=3):
    """Make an image whose every pixel differs from every other and from the border."""
    return np.arange(1, 1 + h * w * 3, dtype=np.uint8).reshape(h, w, 3)


def outcomes_by_hand(image, pad, flip=True):
    """Map the bytes of each possible result to its (top, left, mirrored), in a plain loop."""
    h, w, _ = image.shape
    padded = np.zeros((h + 2 * pad, w + 2 * pad, 3), dtype=np.uint8)
    padded[pad : pad + h, pad : pad + w] = image
    outcomes = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = padded[top : top + h, left : left + w]
            for mirrored in (False, True) if flip else (False,):
                result = crop[:, ::-1] if mirrored else crop
                outcomes[result.tobytes()] = top, left, mirrored
    return outcomes


def batch_outcomes(image, pad, draws, flip=True, seed=0):
    augment = BatchCropFlip(torch.from_numpy(image)[None], pad, flip)
    generator = torch.Generator().manual_seed(seed)
    index = torch.zeros(draws, dtype=torch.int64)
    out = augment(index, augment.draw(draws, generator)).permute(0, 2, 3, 1).numpy()
    return Counter(np.ascontiguousarray(x).tobytes() for x in out)


@pytest.mark.parametrize("flip", [True, False])
def test_batch_crops_are_equally_likely(flip):
    possible = outcomes_by_hand(tiny(), 1, flip)
    assert len(possible) == (18 if flip else 9)
    seen = batch_outcomes(tiny(), 1, 40_000, flip)
    assert set(seen) == set(possible)
    assert chisquare([seen[k] for k in possible]).pvalue > 1e-3


@pytest.mark.parametrize("name", ["crop_flip", "crop"])
def test_crops_image_by_image_have_the_same_law(name):
    possible = outcomes_by_hand(tiny(), 1, name == "crop_flip")
    transform = ImageTransform(name, 3, pad=1)
    seen = Counter(transform(tiny(), mix_seed(0, 0, i)).tobytes() for i in range(4000))
    assert set(seen) == set(possible) == set(batch_outcomes(tiny(), 1, 4000, name == "crop_flip"))
    assert chisquare([seen[k] for k in possible]).pvalue > 1e-3


def test_seeds_of_neighbouring_batches_share_nothing():
    # One draw from each of many batches: the law must hold across seeds too.
    possible = outcomes_by_hand(tiny(), 1)
    augment = BatchCropFlip(torch.from_numpy(tiny())[None], 1)
    seen = Counter()
    for position in range(4000):
        generator = torch.Generator().manual_seed(mix_seed(0, 0, 64 * position))
        drawn = augment.draw(1, generator)
        out = augment(torch.zeros(1, dtype=torch.int64), drawn)[0].permute(1, 2, 0)
        seen[np.ascontiguousarray(out.numpy()).tobytes()] += 1
    assert set(seen) == set(possible)
    assert chisquare([seen[k] for k in possible]).pvalue > 1e-3


def test_batches_of_oblong_images():
    image = tiny(2, 4)
    assert set(batch_outcomes(image, 1, 4000)) == set(outcomes_by_hand(image, 1))


def test_without_a_generator_images_come_as_they_are():
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    )
    augment = BatchCropFlip(images, 2)
    assert len(augment) == 5
    out = augment(torch.tensor([3, 0]))
    assert out.dtype == torch.uint8
    torch.testing.assert_close(out, images[[3, 0]].permute(0, 3, 1, 2))
    assert out.is_contiguous(memory_format=torch.channels_last) or out[0, 0].shape == (4, 6)


@pytest.mark.parametrize("name", TRANSFORM_NAMES)
def test_a_seed_decides_the_result_and_nothing_else_does(name):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one, other = ImageTransform(name, 32), ImageTransform(name, 32)
    other(image, 5)  # another history
    assert (one(image, 7) == other(image, 7)).all()
    results = {one(image, s, 0.0).tobytes() for s in range(8)}
    assert len(results) == 1 if name == "none" else len(results) > 3


@pytest.mark.parametrize("name", TRANSFORM_NAMES)
def test_threads_may_call_at_once(name):
    # Each step of albumentations holds the parameters of its call.
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + i, 90 - i, 3), dtype=np.uint8) for i in range(50)]
    want = [ImageTransform(name, 32)(image, i) for i, image in enumerate(images)]
    shared = ImageTransform(name, 32)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            results = pool.map(shared, images, range(50))
            assert all((a == b).all() for a, b in zip(results, want, strict=True))


@pytest.mark.parametrize("name", TRANSFORM_NAMES)
def test_any_image_gets_the_requested_size(name):
    for size in (32, 112):
        transform = ImageTransform(name, size)
        for shape in [(40, 50), (300, 20), (7, 7), (1, 1), (120, 120)]:
            out = transform(np.full((*shape, 3), 200, dtype=np.uint8), 3)
            assert out.shape == (size, size, 3) and out.dtype == np.uint8


def test_the_border_is_an_eighth_of_the_side_unless_given():
    assert [ImageTransform("crop", s).pad for s in (32, 8, 4)] == [4, 1, 1]
    assert ImageTransform("crop", 32, 0).pad == 0


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match=r"transform.*crop_flip, .*, got 'cutout'"):
        ImageTransform("cutout", 32)
    with pytest.raises(UserError, match=r"size.*at least 1, got 0"):
        ImageTransform("crop", 0)
    for pad in (-1, 1.5):
        with pytest.raises(UserError, match=rf"pad.*at least 0, got {pad}"):
            ImageTransform("crop", 32, pad)
        with pytest.raises(UserError, match=rf"pad.*at least 0, got {pad}"):
            BatchCropFlip(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), pad)


def test_mixed_seeds_differ_and_fit_in_32_bits():
    seeds = {mix_seed(s, e, p) for s in range(10) for e in range(10) for p in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= s < 2**32 for s in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert 0 <= mix_seed(-1, 2**70) < 2**32


@pytest.mark.parametrize("name", ["resized_crop_flip", "resized_crop_flip_jitter", "crop_flip"])
def test_the_flip_does_not_follow_from_the_crop(name):
    # Seeding a Compose seeds each of its steps alike: the upper crops were all mirrored.
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = np.arange(60, 188, 4)[:, None], np.arange(60, 188, 4)
    transform = ImageTransform(name, 32)
    flips, tops, lefts = [], [], []
    for seed in range(500):
        out = transform(image, seed)[8:24, 8:24].astype(float)
        flips.append(out[:, -1, 1].mean() < out[:, 0, 1].mean())
        tops.append(out[..., 0].mean())
        lefts.append(out[..., 1].mean())
    assert 180 < sum(flips) < 320
    measured = (tops, lefts) if name == "resized_crop_flip" else (tops,)
    for positions in measured:
        assert abs(np.corrcoef(flips, positions)[0, 1]) < 0.2


def test_the_strong_augmentation_greys_and_blurs_some():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    plain, strong = (
        ImageTransform(f"resized_crop_flip_{name}", 32) for name in ("jitter", "strong")
    )

    def share_grey(transform):
        out = [transform(image, mix_seed(7, i)) for i in range(300)]
        return np.mean(
            [(x[..., 0] == x[..., 1]).all() and (x[..., 1] == x[..., 2]).all() for x in out]
        )

    def roughness(transform):
        out = np.stack([transform(image, mix_seed(7, i)) for i in range(300)]).astype(float)
        return np.abs(np.diff(out, axis=2)).mean((1, 2, 3))

    assert share_grey(plain) == 0 and 0.13 < share_grey(strong) < 0.28
    blurred = (roughness(strong) < 0.5 * np.median(roughness(plain))).mean()
    assert 0.2 < blurred < 0.6


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 20_000)])
def test_a_very_long_image_takes_little_memory(shape):
    image = np.zeros((*shape, 3), np.uint8)
    middle = tuple(slice(n // 2 - 40, n // 2 + 40) if n > 80 else slice(None) for n in shape)
    image[middle] = 200
    seen = []
    transform = ImageTransform("none", 112)
    compose, resize = transform._idle.pop()
    transform._idle.append((lambda image: seen.append(image.shape) or compose(image=image), resize))
    out = transform(image)
    assert out.shape == (112, 112, 3) and (out[20:-20, 20:-20] == 200).all()
    assert max(seen[0]) <= 16 * min(shape)
    wide = np.zeros((100, 1600, 3), np.uint8)
    assert transform(wide).shape == (112, 112, 3) and seen[1] == wide.shape
