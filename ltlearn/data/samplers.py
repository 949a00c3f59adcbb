"""Which images an epoch shows: torch samplers, usable in any `DataLoader` as well as in ours."""

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
            raise UserError(f"{type(self).__name__} needs a target per image, got shape {self.targets.shape}.")
        self.seed, self.epoch, self.epochs = seed, 0, 1
        self.counts = np.bincount(self.targets)

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Say which epoch (0-based) of how many comes next; the draw depends on nothing else but the seed."""
        self.epoch = epoch
        if epochs is not None:
            self.epochs = epochs

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        return self.counts / self.counts.sum()

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**63, self.epoch])

    def __iter__(self) -> Iterator[int]:
        return iter(self._rng().permutation(len(self.targets)).tolist())

    def __len__(self) -> int:
        return len(self.targets)


class _ClassProbabilitySampler(InstanceSampler):
    """Draw classes with replacement, then images of the class: all of them once, in random order, before any again."""

    def __iter__(self) -> Iterator[int]:
        rng = self._rng()
        drawn = rng.choice(len(self.counts), size=len(self), p=self.class_probabilities())
        index = np.empty(len(self), dtype=np.int64)
        for c in np.flatnonzero(np.bincount(drawn, minlength=len(self.counts))):
            places = np.flatnonzero(drawn == c)
            images = np.flatnonzero(self.targets == c)
            rounds = -(-len(places) // len(images))
            order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
            index[places] = order[: len(places)]
        return iter(index.tolist())


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
    """Move from instance-balanced in the first epoch towards class-balanced in the last: shares mix by t / T.

    Args:
        targets: Class index per image.
        seed: With the epoch, decides the draw; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, equation 2.
    """

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); an empty class has 0."""
        t = self.epoch / max(self.epochs, 1)
        present = self.counts > 0
        return (1 - t) * self.counts / self.counts.sum() + t * present / present.sum()


SAMPLERS = {
    "instance": InstanceSampler,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRootSampler,
    "progressive": ProgressiveSampler,
}


def make_sampler(sampler: str | Sampler, targets: np.ndarray, seed: int = 0) -> Sampler:
    """Turn a name of `SAMPLERS` into a sampler over `targets`; a sampler is returned as it is."""
    if isinstance(sampler, Sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise UserError(f"sampler must be one of {', '.join(SAMPLERS)} or a torch Sampler, got {sampler!r}.")
    return SAMPLERS[sampler](targets, seed=seed)
