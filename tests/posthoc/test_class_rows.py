import numpy as np
import pytest
import torch

from ltlearn import UserError
from ltlearn.posthoc.class_rows import class_mean_rows, logistic_rows


def clouds(counts, width=8, seed=0):
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    centres = generator.normal(size=(len(counts), width)) * 3
    return (centres[y] + generator.normal(size=(len(y), width))).astype(np.float32), y


def test_class_means_equal_a_slow_loop():
    x, y = clouds([5, 3, 2])
    rows = class_mean_rows(x.astype(np.float16), y, 4)
    for c in range(3):
        units = [f / np.linalg.norm(f) for f in x.astype(np.float16)[y == c].astype(np.float64)]
        mean = sum(units) / len(units)
        torch.testing.assert_close(
            rows[c], torch.from_numpy(mean / np.linalg.norm(mean)).float(), rtol=1e-5, atol=1e-6
        )
    assert rows.dtype == torch.float32 and not rows[3].any(), "a class without images"


@pytest.mark.parametrize("counts", [[40, 12, 4], [30, 2]], ids=str)
def test_logistic_rows_classify_rare_classes_too(counts):
    x, y = clouds(counts)
    rows = logistic_rows(x, y, len(counts) + 1)
    torch.testing.assert_close(rows[:-1].norm(dim=1), torch.ones(len(counts)))
    assert not rows[-1].any()
    assert ((torch.from_numpy(x) @ rows.t()).argmax(1).numpy() == y).mean() > 0.95


def test_logistic_rows_use_few_features_of_a_class_and_the_seed():
    x, y = clouds([60, 40])
    x[0] = np.nan  # raises where it is used
    kept = [seed for seed in range(12) if _works(x, y, seed)]
    assert 0 < len(kept) < 12
    assert torch.equal(*(logistic_rows(x, y, 2, per_class=20, seed=kept[0]) for _ in range(2)))


def _works(x, y, seed):
    try:
        logistic_rows(x, y, 2, per_class=20, seed=seed)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("function", [class_mean_rows, logistic_rows])
def test_bad_input(function):
    x, y = clouds([5, 3])
    x[3, 0] = np.inf
    with pytest.raises(UserError, match="features.*not finite|features.*3"):
        function(x, y, 2)
    with pytest.raises(UserError, match="targets"):
        function(x[:, :2], y + 9, 2)
    with pytest.raises(UserError, match="per_class"):
        logistic_rows(x, y, 2, per_class=0)
