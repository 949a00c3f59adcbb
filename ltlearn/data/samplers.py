"""Samplers: choose the images of an epoch. They work in any torch `DataLoader`.

Each pass is the next epoch. Seed and epoch alone decide its draw; `set_epoch` moves to any epoch.
"""

import itertools
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
_PART = 1 << 16  # numbers that are made into Python objects at once


class InstanceSampler(Sampler[int]):
    """Draw every image once per epoch, shuffled.

    Args:
        targets: Class index per image.
        seed: Decides the order, together with the epoch; any integer.

    Raises:
        UserError: If `targets` has another shape than (N,), is empty, or has a negative value.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 1).

    Example:
        >>> sorted(InstanceSampler([0, 0, 1]))
        [0, 1, 2]
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
        """Set the epoch of the next pass.

        Args:
            epoch: The epoch, from 0 up. Together with the seed it decides the draw.
            epochs: Number of epochs of the training, which `ProgressiveSampler` needs. None keeps
                the number that was set before.
        """
        self.epoch = epoch
        if epochs is not None:
            self.epochs = epochs

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); 0 for an empty class."""
        return self.counts / self.counts.sum()

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.targets))

    def __iter__(self) -> Iterator[int]:
        order = self._draw(np.random.default_rng([self.seed % 2**63, self.epoch]))
        # A plain torch DataLoader does not call set_epoch, and the next pass must draw anew.
        self.epoch += 1
        # In parts, because each number takes 36 bytes as a Python object.
        parts = (order[i : i + _PART] for i in range(0, len(order), _PART))
        return itertools.chain.from_iterable(part.tolist() for part in parts)

    def __len__(self) -> int:
        return len(self.targets)


class _ClassProbabilitySampler(InstanceSampler):
    """Draw classes with replacement, then images of each class.

    All images of a class are drawn once, in random order, before one is drawn again.
    """

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        drawn = rng.choice(len(self.counts), size=len(self), p=self.class_probabilities())
        index = np.empty(len(self), dtype=np.int64)
        # Sorted once, because a search for each class would take classes x images operations.
        by_class = np.argsort(self.targets, kind="stable")
        positions_by_class = np.argsort(drawn, kind="stable")
        sizes = np.bincount(drawn, minlength=len(self.counts))
        ends, position_ends = np.cumsum(self.counts), np.cumsum(sizes)
        for c in np.flatnonzero(sizes):
            images = by_class[ends[c] - self.counts[c] : ends[c]]
            positions = positions_by_class[position_ends[c] - sizes[c] : position_ends[c]]
            rounds = -(-len(positions) // len(images))
            order = np.concatenate([rng.permutation(images) for _ in range(rounds)])
            index[positions] = order[: len(positions)]
        return index


class ClassBalancedSampler(_ClassProbabilitySampler):
    """Draw all classes that have images equally often. An epoch has N draws.

    Args:
        targets: Class index per image.
        seed: Decides the draw, together with the epoch; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 0).

    Example:
        >>> ClassBalancedSampler([0, 0, 0, 1]).class_probabilities()
        array([0.5, 0.5])
    """

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); 0 for an empty class."""
        present = (self.counts > 0).astype(float)
        return present / present.sum()


class SquareRootSampler(_ClassProbabilitySampler):
    """Draw each class in proportion to the square root of its number of images.

    Args:
        targets: Class index per image.
        seed: Decides the draw, together with the epoch; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, section 4.1 (q = 1/2).

    Example:
        >>> SquareRootSampler([0, 0, 0, 0, 1]).class_probabilities().round(2)
        array([0.67, 0.33])
    """

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); 0 for an empty class."""
        root = np.sqrt(self.counts)
        return root / root.sum()


class ProgressiveSampler(_ClassProbabilitySampler):
    """Move from instance-balanced draws in the first epoch towards class-balanced ones.

    Epoch t of T mixes the class shares of both with weights 1 - t / T and t / T. `LTLearner` calls
    `set_epoch(t, T)`; other training loops must call it before each epoch.

    Args:
        targets: Class index per image.
        seed: Decides the draw, together with the epoch; any integer.

    Source:
        Kang et al., ICLR 2020, arXiv:1910.09217, equation 2.

    Example:
        >>> sampler = ProgressiveSampler([0, 0, 0, 1])
        >>> sampler.set_epoch(1, epochs=2)
        >>> sampler.class_probabilities()
        array([0.625, 0.375])
    """

    _warned = False

    def class_probabilities(self) -> np.ndarray:
        """Return the share of each class in the draw of this epoch, (C,); 0 for an empty class."""
        if self.epochs is None:
            if self.epoch and not self._warned:
                self._warned = True
                _log.warning(
                    "the progressive sampler does not know the number of epochs, so it stays "
                    "instance-balanced; call set_epoch(epoch, epochs) before each epoch"
                )
            t = 0.0
        else:
            # A pass after the last epoch draws like the end of the training.
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
    """Return the sampler with this name over `targets`; a torch sampler is returned unchanged.

    Args:
        sampler: A name of `SAMPLERS` or a torch sampler.
        targets: Class index per image.
        seed: Seed of the sampler.

    Raises:
        UserError: If it is neither.

    Example:
        >>> len(make_sampler("class_balanced", np.array([0, 0, 1])))
        3
    """
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise UserError(
            f"sampler must be one of {', '.join(SAMPLERS)} or a torch Sampler, got {sampler!r}."
        )
    return SAMPLERS[sampler](targets, seed=seed)
