"""Linear classifiers on features, each trained without one fold of the training images."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltlearn.training.features import Features
from ltlearn.utils.progress import ProgressLine

__all__ = ["FoldHeads", "assign_folds"]

FOLDS = 5
_EPOCHS = 20
_LR = 0.01
_WEIGHT_DECAY = 0.1
# Small sets need small batches to be learned, large ones take large batches to be fast.
_MIN_BATCH, _MAX_BATCH, _STEPS = 32, 4096, 40
_READ = 4096  # images whose logits are computed at a time
_MAX_LOGITS = 1 << 25  # logits that are held at a time


def assign_folds(targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deal the images of each class out to the folds in turn, in random order.

    Args:
        targets: Class index per image.
        folds: Number of folds.
        seed: Decides the order.

    Shape:
        targets and the result are (N,), integer.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    # Counting goes on from class to class, so that classes of one image spread over all folds.
    fold[order] = np.arange(len(targets)) % folds
    return fold


class FoldHeads:
    """A linear classifier for each fold, trained with cross-entropy on all other folds.

    The probabilities of a training image are from the classifier that was trained without it. Those
    of other images are the mean over all classifiers.

    Args:
        features: Features of the training images.
        num_classes: Number of classes.
        device: Where the classifiers are trained.
        seed: Decides folds and order.

    Source:
        Northcutt et al., JAIR 2021, arXiv:1911.00068: confident learning takes probabilities from
        cross-validation.
    """

    def __init__(
        self, features: Features, num_classes: int, device: torch.device | str, seed: int = 0
    ):
        self.features, self.num_classes, self.device = features, num_classes, torch.device(device)
        self.fold = assign_folds(features.targets.numpy(), FOLDS, seed)
        self.mean, self.std = self._statistics()
        line = ProgressLine("training classifiers", FOLDS * _EPOCHS)
        try:
            self.heads = [self._train(k, seed, line) for k in range(FOLDS)]
        finally:
            line.close()

    def training_probabilities(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers of training images, and their probabilities.

        Shape:
            Numbers (B,), probabilities (B, C), float32. Every image comes once.
        """
        for k, head in enumerate(self.heads):
            for index in self._blocks(np.flatnonzero(self.fold == k)):
                yield index, self._probabilities(self.features, index, [head])

    def probabilities(self, features: Features) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers of images of another part, and their probabilities.

        Args:
            features: Their features.

        Shape:
            As for `training_probabilities`.
        """
        for index in self._blocks(np.arange(len(features))):
            yield index, self._probabilities(features, index, self.heads)

    def _blocks(self, index: np.ndarray) -> Iterator[np.ndarray]:
        size = max(1, min(_READ, _MAX_LOGITS // self.num_classes))
        return (index[k : k + size] for k in range(0, len(index), size))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each feature."""
        total, squares = 0.0, 0.0
        for index in self._blocks(np.arange(len(self.features))):
            x = self.features.get_batch(index)[0].double()
            total, squares = total + x.sum(0), squares + (x * x).sum(0)
        mean = total / len(self.features)
        variance = squares / len(self.features) - mean * mean
        # A feature that is always the same carries nothing; it must not become noise.
        std = variance.clamp(min=0).sqrt()
        std[std <= 1e-6 * (1 + mean.abs())] = torch.inf
        return mean.float().to(self.device), std.float().to(self.device)

    def _read(self, features: Features, index: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = features.get_batch(index)
        return (x.to(self.device) - self.mean) / self.std, y.to(self.device)

    def _train(self, k: int, seed: int, line: ProgressLine) -> nn.Linear:
        index = np.flatnonzero(self.fold != k)
        head = nn.utils.skip_init(nn.Linear, len(self.mean), self.num_classes)
        head = head.to(self.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        bs = min(_MAX_BATCH, max(_MIN_BATCH, len(index) // _STEPS))
        optimizer = torch.optim.AdamW(head.parameters(), _LR, weight_decay=_WEIGHT_DECAY)
        steps = _EPOCHS * max(1, -(-len(index) // bs))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rng = np.random.default_rng((seed, k))
        for _ in range(_EPOCHS):
            order = rng.permutation(index)
            for start in range(0, len(order), bs):
                x, y = self._read(self.features, order[start : start + bs])
                loss = F.cross_entropy(head(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            line.advance(1)
        return head

    @torch.no_grad()
    def _probabilities(self, features: Features, index: np.ndarray, heads) -> np.ndarray:
        x, _ = self._read(features, index)
        return (sum(head(x).softmax(1) for head in heads) / len(heads)).cpu().numpy()
