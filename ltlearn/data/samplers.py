"""Which images an epoch shows: torch samplers, usable in any `DataLoader` as well as in ours.

Each pass is the next epoch, with a draw of its own that (seed, epoch) alone decide; `set_epoch`
goes to any other.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from ltlearn.errors import UserError

__all__ = [
    "SAMPLERS",
    "ClassBalancedSampler",
    "InstanceSampler",
    "ProgressiveSampler",
    "SquareRootSampler",
    "make_sampler",
]

_log = logging.getLogger("ltlearn")


class InstanceSampler(Sampler[int]):
    """Show every image once an epoch, shuffled: a class appears as often as it has images.

    Args:
        targets: Class index per image.
        seed: With the epoch, decides the order; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 1).
    """

    def __init__(self, targets: Sequence[int] | np.ndarray | Tensor, seed: int = 0):
        self.targets = np.asarray(targets, dtype=np.int64)
        if self.targets.ndim != 1 or not len(self.targets):
            raise UserError(
                f"{type(self).__name__} needs a target per image, got shape {self.targets.shape}."
            )
        if self.targets.min() < 0:
            raise UserError(
                f"{type(self).__name__} needs class indices from 0 up, got {self.targets.min()}."
            )
        self.seed, self.epoch, self.epochs = seed, 0, None
        self.counts = np.bincount(self.targets)

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Say which epoch comes next.

        Args:
            epoch: From 0 up. With the seed it decides the draw, and nothing else does.
            epochs: Of how many; only `ProgressiveSampler` asks. None leaves it as it was.
        """
        self.epoch = epoch
        if epochs is not None:
            self.epochs = epochs

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        return self.counts / self.counts.sum()

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.targets))

    def __iter__(self) -> Iterator[int]:
        order = self._draw(np.random.default_rng([self.seed % 2**63, self.epoch]))
        # In a plain torch DataLoader nobody calls set_epoch; the next pass must not repeat it.
        self.epoch += 1
        return iter(order.tolist())

    def __len__(self) -> int:
        return len(self.targets)


class _ClassProbabilitySampler(InstanceSampler):
    """Draw classes with replacement, then images of each class.

    All images of a class come once, in random order, before any comes again.
    """

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        drawn = rng.choice(len(self.counts), size=len(self), p=self.class_probabilities())
        index = np.empty(len(self), dtype=np.int64)
        for c in np.flatnonzero(np.bincount(drawn, minlength=len(self.counts))):
            places = np.flatnonzero(drawn == c)
            images = np.flatnonzero(self.targets == c)
            rounds = -(-len(places) // len(images))
            order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
            index[places] = order[: len(places)]
        return index


class ClassBalancedSampler(_ClassProbabilitySampler):
    """Draw every class that has images equally often; an epoch is as long as the training set.

    Args:
        targets: Class index per image.
        seed: With the epoch, decides the draw; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 0).
    """

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        present = (self.counts > 0).astype(float)
        return present / present.sum()


class SquareRootSampler(_ClassProbabilitySampler):
    """Draw each class in proportion to the square root of its number of images.

    Args:
        targets: Class index per image.
        seed: With the epoch, decides the draw; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 1/2).
    """

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        root = np.sqrt(self.counts)
        return root / root.sum()


class ProgressiveSampler(_ClassProbabilitySampler):
    """Move from instance-balanced in the first epoch towards class-balanced in the last.

    The class shares of both mix by t / T in epoch t of T. T comes with `set_epoch(t, T)`, which
    `LTLearner` calls; elsewhere call it before each epoch.

    Args:
        targets: Class index per image.
        seed: With the epoch, decides the draw; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, equation 2.
    """

    _warned = False

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        if self.epochs is None:
            if self.epoch and not self._warned:
                self._warned = True
                _log.warning(
                    "the progressive sampler was not told how many epochs there are, so it stays "
                    "instance-balanced; call set_epoch(epoch, epochs) before each epoch"
                )
            t = 0.0
        else:
            # A pass after the last epoch draws as the end of the training.
            t = min(self.epoch / max(self.epochs, 1), 1.0)
        present = self.counts > 0
        return (1 - t) * self.counts / self.counts.sum() + t * present / present.sum()


SAMPLERS = {
    "instance": InstanceSampler,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRootSampler,
    "progressive": ProgressiveSampler,
}


def make_sampler(sampler: str | Sampler, targets: np.ndarray, seed: int = 0) -> Sampler:
    """Turn a name of `SAMPLERS` into a sampler over `targets`; a sampler is returned as it is.

    Raises:
        UserError: If it is neither.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise UserError(
            f"sampler must be one of {', '.join(SAMPLERS)} or a torch Sampler, got {sampler!r}."
        )
    return SAMPLERS[sampler](targets, seed=seed)
