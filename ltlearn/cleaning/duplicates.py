"""Near-duplicates: images that look alike although their pixels differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ltlearn.cleaning.hashes import Hashes

__all__ = ["Twins", "find_twins", "near_codes"]

# Measured on Tiny-ImageNet and CIFAR-10: JPEG at quality 75, half and double size, grey and a fifth
# more light change at most 6 bits of 95 % of the images, and leave a correlation above 0.97.
MAX_BITS = 6
MIN_CORRELATION = 0.95
# An image of fewer pixels than its thumbnail looks much like any other: thousands of
# pairs of 8 x 8 digits correlate at 0.95.
MIN_CORRELATION_SMALL = 0.99
_FLAT = 2.0  # standard deviation of grey values below which an image shows nothing
_FLAT_DIFFERENCE = 3.0  # grey values that two such images may differ by
_MAX_ROUNDS = 50  # groups that images of one hash are split into
_PAIRS = 1 << 22  # pairs that are compared at a time


@dataclass(frozen=True)
class Twins:
    """Images that have a near-duplicate earlier in the data.

    Args:
        index: The images, ascending.
        twin: The first image of the same group, which is in training if any of the group is.
        similarity: Correlation of the grey values of the two, in [-1, 1]. Groups are chains of
            similar images, so that it may be below the limit.

    Shape:
        All are (M,).
    """

    index: np.ndarray
    twin: np.ndarray
    similarity: np.ndarray


def find_twins(hashes: Hashes) -> Twins:
    """Find the images that are nearly equal to an earlier one.

    Two images are nearly equal if their perceptual hashes differ in at most 6 of 64 bits, and the
    grey values of their thumbnails correlate.

    Args:
        hashes: The hashes of all images.
    """
    readable = np.ones(len(hashes.codes), dtype=bool)
    readable[list(hashes.unreadable)] = False
    numbers = np.flatnonzero(readable)
    codes, inverse = np.unique(hashes.codes[numbers], return_inverse=True)
    order = numbers[np.argsort(inverse, kind="stable")]
    ends = np.cumsum(np.bincount(inverse, minlength=len(codes)))
    starts = ends - np.diff(ends, prepend=0)
    pairs = [*_pairs_of_equal_codes(hashes, order, starts, ends)]
    for a, b in near_codes(codes, MAX_BITS):
        # The first image of each hash stands for the others.
        first, second = order[starts[a]], order[starts[b]]
        good = _similar(hashes, first, second)
        pairs.append(np.stack([first[good], second[good]]))
    return _earliest_twins(hashes, np.concatenate(pairs, axis=1))


def near_codes(codes: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of different codes that differ in few bits, some of them more than once.

    Codes that differ in at most `bits` bits agree in one of `bits + 1` bands. So only codes with
    an equal band are compared.

    Args:
        codes: Different codes, (N,), uint64.
        bits: The most bits in which a pair differs.
    """
    bands = bits + 1
    edges = np.linspace(0, 64, bands + 1).astype(int)
    for low, high in zip(edges, edges[1:], strict=False):
        mask = np.uint64((1 << int(high - low)) - 1)
        band = (codes >> np.uint64(low)) & mask
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order], append=band[order[-1:]] + np.uint64(1))) + 1
        # Members of a bucket that follow each one.
        following = np.repeat(ends, np.diff(ends, prepend=0)) - 1 - np.arange(len(codes))
        for rows in _in_blocks(following):
            counts = following[rows]
            first = np.repeat(np.arange(rows.start, rows.stop), counts)
            offset = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
            a, b = order[first], order[first + 1 + offset]
            near = np.bitwise_count(codes[a] ^ codes[b]) <= bits
            yield a[near], b[near]


def _in_blocks(counts: np.ndarray) -> Iterator[slice]:
    """Split rows so that the counts of each block add up to a bounded number of pairs."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = total[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(total, before + _PAIRS, side="right")))
        yield slice(start, end)
        start = end


def _pairs_of_equal_codes(
    hashes: Hashes, order: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield pairs of images of one hash that are similar, too.

    Every image is compared with the first of its hash. Those that differ from it are compared with
    the first among themselves, and so on.
    """
    members, sizes = order, ends - starts
    for _ in range(_MAX_ROUNDS):
        first = np.repeat(members[np.cumsum(sizes) - sizes], sizes)
        good = _similar(hashes, first, members) | (members == first)
        pairs = members != first
        yield np.stack([first[good & pairs], members[good & pairs]])
        group = np.repeat(np.arange(len(sizes)), sizes)[~good]
        members, sizes = members[~good], np.unique(group, return_counts=True)[1]
        if not len(members):
            return


def _similar(hashes: Hashes, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    is_small = hashes.small[a] | hashes.small[b]
    least = np.where(is_small, MIN_CORRELATION_SMALL, MIN_CORRELATION)
    return _correlation(hashes, a, b) >= least


def _correlation(hashes: Hashes, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of the grey values of pairs; 1 for two flat images of one grey."""
    result = np.empty(len(a), dtype=np.float32)
    for start in range(0, len(a), 1 << 14):
        rows = slice(start, start + (1 << 14))
        x, y = (hashes.thumbnails[k[rows]].astype(np.float32) for k in (a, b))
        difference = np.abs(x.mean(1) - y.mean(1))
        x -= x.mean(1, keepdims=True)
        y -= y.mean(1, keepdims=True)
        deviation = np.sqrt((x * x).mean(1)), np.sqrt((y * y).mean(1))
        value = (x * y).mean(1) / np.maximum(deviation[0] * deviation[1], 1e-6)
        are_flat = (deviation[0] < _FLAT) & (deviation[1] < _FLAT)
        value[are_flat] = difference[are_flat] <= _FLAT_DIFFERENCE
        result[rows] = value
    return result


def _earliest_twins(hashes: Hashes, pairs: np.ndarray) -> Twins:
    """Join pairs to groups; each image of a group gets its first image as the twin."""
    members, places = np.unique(pairs, return_inverse=True)
    n = len(members)
    a, b = places.reshape(pairs.shape)
    links = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(n, n))
    _, group = connected_components(links, directed=False)
    # `members` is ascending, so the first of a group is its earliest image.
    _, first = np.unique(group, return_index=True)
    twin = members[first[group]]
    later = members != twin
    index, twin = members[later], twin[later]
    return Twins(index, twin, _correlation(hashes, index, twin))
