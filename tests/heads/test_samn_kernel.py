"""The compiled functions equal NumPy and SciPy, wherever their code can be cached."""

import subprocess
import sys

import numpy as np
import pytest

from ltlearn.heads import samn_kernel
from ltlearn.heads.samn import MIN_RAW
from ltlearn.isotonic.scipy_engine import MonotoneRows
from tests.helpers import ENV


def project(matrix, order, raws, least):
    size = len(order)
    memory, ends = np.empty((raws + 1, size)), np.empty(size + 1, np.int64)
    return samn_kernel.project_rows(matrix, order, memory, ends, raws, least)


def drawn(rng, raws, size):
    """Rows of one of four kinds, from rows in order to rows full of ties."""
    kind = rng.integers(4)
    rows = rng.normal(size=(raws, size))
    if kind == 1:
        rows = rng.integers(0, 4, (raws, size)) / 3
    elif kind == 2:
        rows = np.sort(rows) + 0.01 * rng.normal(size=(raws, size))
    elif kind == 3:
        rows = -np.sort(rows) * 10.0 ** rng.integers(-30, 30)
    return rows.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_projection_equals_scipys_to_the_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        raws, size = int(rng.integers(1, 3)), int(rng.integers(1, 40))
        order, least = rng.permutation(size), float(rng.choice([MIN_RAW, 0.1, -1e38]))
        bias = rng.normal(size=(1, size)).astype(np.float32)
        matrix = np.concatenate([bias, drawn(rng, raws, size)])
        expected = matrix.copy()
        assert MonotoneRows(order, raws, least)(expected[1:].reshape(-1))
        assert project(matrix, order, raws, least)
        assert np.array_equal(matrix, expected)
        assert (np.diff(matrix[1:, order]) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_changes_nothing(value):
    for row in range(2):
        matrix = np.array([[3, 2, 1], [3, 2, 1]], np.float32)
        matrix[row, 1] = value
        before = matrix.copy()
        assert not project(matrix, np.arange(3), 2, MIN_RAW)
        assert np.array_equal(matrix, before, equal_nan=True)


def test_scales_and_slopes_equal_numpys():
    q = np.linspace(MIN_RAW, 40, 4001, dtype=np.float32)
    q[-5:] = 100, 1e4, 1e30, -0.0, 1e-30
    work = np.empty((samn_kernel.WORK_ROWS, len(q)), np.float32)
    weight, logits = np.ones((len(q), 1), np.float32), np.ones((1, len(q)), np.float32)
    samn_kernel.scale_logits(q[None], weight, logits, work, True, False, 1.0)
    wide = q.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        s = 1 / (np.logaddexp(0, wide) + 2e-6)
        slope = -(s**2) / (1 + np.exp(-wide))
    np.testing.assert_allclose(work[0], np.exp(s), rtol=2e-7)
    np.testing.assert_allclose(work[1], slope, rtol=2e-7, atol=1e-44)
    np.testing.assert_array_equal(logits[0], work[0])


# Which folder numba finds, and what else happens before the import that compiles.
NO_CACHE = {
    "no folder": "numba.core.caching.CacheImpl._locator_classes = []",
    "a full disk": (
        "def full(*args): raise OSError(28, 'No space left on device')\n"
        "numba.core.caching.IndexDataCacheFile.save = full"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("happens", NO_CACHE.values(), ids=NO_CACHE)
def test_without_a_cache_each_process_compiles(happens, tmp_path):
    code = (
        f"import numba\nimport numba.core.caching\n{happens}\n"
        "from ltlearn.heads import samn_kernel\n"
        "print(len(samn_kernel.scale_logits.signatures))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**ENV, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["1"]
    assert not list(tmp_path.rglob("*.nbi"))
