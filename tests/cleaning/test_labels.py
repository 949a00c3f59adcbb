import copy

import numpy as np
import pytest
import torch
from cleanlab.count import get_confident_thresholds
from cleanlab.filter import find_label_issues

from ltlearn.cleaning.folds import FoldHeads, assign_folds
from ltlearn.cleaning.labels import UsualConfidence, read_confidence
from ltlearn.training.features import Features
from ltlearn.utils.progress import ProgressLine

COUNTS = np.array([300, 120, 50, 20, 6])


def clouds(counts=COUNTS, noise=0.9, seed=0, rate=0.1):
    """Clouds of points, and labels of which a tenth is permuted, so that counts stay."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(99).normal(size=(len(counts), 16))
    x = (centres[true] + noise * rng.normal(size=(len(true), 16))).astype(np.float32)
    given = true.copy()
    wrong = rng.permutation(len(true))[: int(rate * len(true))]
    given[wrong] = true[rng.permutation(wrong)]
    return Features([x], torch.from_numpy(given)), true


@pytest.fixture(scope="module")
def judged():
    features, true = clouds()
    given = features.targets.numpy()
    heads = FoldHeads(features, len(COUNTS), "cpu")
    usual = UsualConfidence(heads.training_probabilities(), given, np.ones(len(COUNTS), bool))
    return heads, usual, usual.judge(usual.training, given), given, true


def test_planted_errors_are_found(judged):
    _, _, found, given, true = judged
    wrong = given != true
    hits = found.suspicious & wrong
    assert hits.sum() / found.suspicious.sum() > 0.6
    assert hits.sum() / wrong.sum() > 0.8
    assert (found.suggested[hits] == true[hits]).mean() > 0.8
    assert np.median(found.score[wrong]) > 2 and abs(np.median(found.score[~wrong])) < 0.5


def test_rare_classes_are_not_suspected_as_a_whole():
    """Cleanlab's filters suspect most of a class that the classifier never predicts."""
    features, true = clouds([600, 200, 15, 10], noise=4.0, rate=0.0)
    given, rare = features.targets.numpy(), true >= 2
    heads = FoldHeads(features, 4, "cpu")
    probabilities = np.zeros((len(true), 4), np.float32)
    for index, p in heads.training_probabilities():
        probabilities[index] = p
    usual = UsualConfidence(heads.training_probabilities(), given, np.ones(4, bool))
    found = usual.judge(usual.training, given)
    theirs = find_label_issues(given, probabilities, n_jobs=1)
    assert theirs[rare].mean() > 0.5
    assert found.suspicious[rare].mean() < 0.3


def test_averages_are_cleanlab_s_and_no_image_is_judged_by_a_head_that_saw_it(judged):
    heads, usual, _, given, _ = judged
    probabilities, seen = np.zeros((len(given), len(COUNTS)), np.float32), np.zeros(len(given))
    for index, p in heads.training_probabilities():
        probabilities[index] = p
        seen[index] += 1
    assert (seen == 1).all()
    assert np.allclose(usual.average, get_confident_thresholds(given, probabilities), atol=1e-5)
    x, _ = heads.features.get_batch([0])
    own = heads.heads[heads.fold[0]]((x - heads.mean) / heads.std).softmax(1)
    assert np.allclose(own.detach().numpy(), probabilities[0], atol=1e-5)


def test_a_head_is_trained_without_its_fold(judged):
    heads = copy.copy(judged[0])
    targets = heads.features.targets.clone()
    targets[heads.fold == 2] = 0
    heads.features = Features(heads.features.views, targets)
    again = heads._train(2, 0, ProgressLine("", 1))
    assert torch.equal(again.weight, heads.heads[2].weight)


def test_classes_with_few_images_are_neither_suspected_nor_suggested(judged):
    heads, _, _, given, _ = judged
    usual = UsualConfidence(heads.training_probabilities(), given, COUNTS >= 20)
    found = usual.judge(usual.training, given)
    assert not found.suspicious[given == 4].any()
    assert (found.suggested[found.suspicious] != 4).all()


def test_images_of_another_part_get_the_mean_of_all_heads(judged):
    heads = judged[0]
    other, true = clouds(seed=1, rate=0.0)
    (index, p), *rest = heads.probabilities(other)
    assert index.tolist() == list(range(len(true))) and not rest
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == true).mean() > 0.8


def test_images_of_another_part_are_judged_by_what_is_usual_there(judged):
    """Features of a backbone fit its training images best; other parts are no errors for that."""
    heads, usual = judged[:2]
    other, true = clouds(seed=1, rate=0.0, noise=1.3)
    given = true.copy()
    given[[3, 400]] = [1, 0]
    batches = heads.probabilities(Features(other.views, torch.from_numpy(given)))
    found = usual.judge(read_confidence(batches, given, usual.judged), given)
    assert found.suspicious[[3, 400]].all() and found.suspicious.mean() < 0.1


def test_folds_are_even_and_deterministic():
    targets = np.repeat([0, 1, 2, 3, 4, 5, 6], [17, 5, 1, 1, 1, 1, 1])
    fold = assign_folds(targets, 5, 3)
    assert (assign_folds(targets, 5, 3) == fold).all()
    assert sorted(np.bincount(fold[targets == 0])) == [3, 3, 3, 4, 4]
    assert sorted(fold[targets == 1]) == [0, 1, 2, 3, 4]
    assert len(set(fold[targets >= 2].tolist())) == 5, "single images spread over the folds"


def test_small_and_degenerate_features():
    """One image, a constant feature, a class without images, and fewer images than folds."""
    x = np.ones((3, 4), np.float32)
    features = Features([x], torch.tensor([0, 0, 2]))
    heads = FoldHeads(features, 4, "cpu")
    rows = [p for _, p in heads.training_probabilities()]
    assert sum(map(len, rows)) == 3 and np.isfinite(np.concatenate(rows)).all()
    usual = UsualConfidence(heads.training_probabilities(), np.array([0, 0, 2]), np.ones(4, bool))
    found = usual.judge(usual.training, np.array([0, 0, 2]))
    assert np.isfinite(found.score).all() and usual.average[1] < 1e-5


def test_memory_does_not_grow_with_images_times_classes(monkeypatch):
    """Probabilities come in blocks, as 8,142 classes need."""
    from ltlearn.cleaning import folds

    monkeypatch.setattr(folds, "_MAX_LOGITS", 500)
    monkeypatch.setattr(folds, "_EPOCHS", 1)
    features, _ = clouds([30, 20])
    heads = FoldHeads(features, 100, "cpu")
    sizes = [len(index) for index, _ in heads.training_probabilities()]
    assert max(sizes) == 5 and sum(sizes) == 50
