"""`LTDataLoader`: a fastai loader whose draws depend on seed, epoch and position alone."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

import numpy as np
from fastai.data.core import TfmdDL
from torch import Tensor
from torch.utils.data import get_worker_info

from ltlearn.data.datasets import ImageFiles
from ltlearn.data.samplers import SAMPLERS, InstanceSampler, make_sampler
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_whole
from ltlearn.utils.parallel import compute_ahead, count_cores

__all__ = ["LTDataLoader"]

_MOST_THREADS = 8


class LTDataLoader(TfmdDL):
    """A fastai data loader whose draws depend on (seed, epoch, position) alone.

    Draws are the order and the augmentations. So the number of workers changes nothing, no two
    epochs or workers repeat a draw, and an epoch can be made again. Each full pass is the next
    epoch; `set_epoch` goes to any other.

    Args:
        dataset: `ImagesInMemory`, `ImageFiles` or any dataset with `targets`.
        bs: Images a batch, at least 1. The last, partial batch is kept, unless it is a single image
            for training.
        training: Whether to draw the images with `sampler` instead of in their order.
        sampler: A name of `ltlearn.data.samplers.SAMPLERS` or a torch sampler; only for training.
        augment: Whether to augment; None does so for training.
        seed: Of order and augmentation.
        num_workers: Processes that read images; 0 reads in this one.
        threads: Threads of this process that read images from disk, up to a batch ahead, where
            there are no workers; 0 reads without, None takes one a core, at most 8, or none where
            there is one core.
        **kwargs: For fastai's `TfmdDL`.

    Raises:
        UserError: If `bs`, `num_workers` or `threads` is no such number, or the sampler is unknown
            or made for another dataset.
    """

    def __init__(
        self,
        dataset,
        bs=64,
        training=False,
        sampler="instance",
        augment=None,
        seed=0,
        num_workers=0,
        threads=0,
        **kwargs,
    ):
        # fastai's own arguments, which the sampler and `drop_last` below decide here.
        kwargs.pop("shuffle", None)
        kwargs.pop("drop_last", None)
        bs = kwargs.pop("batch_size", None) or bs
        check_whole("bs", bs, 1)
        check_whole("num_workers", num_workers, 0)
        if threads is not None:
            check_whole("threads", threads, 0)
        self.training, self.seed, self.epoch, self.threads = training, seed, 0, threads
        self.augment = training if augment is None else augment
        self.sampler_name = self.sampler = None
        super().__init__(dataset, bs=bs, shuffle=False, num_workers=num_workers, **kwargs)
        self.set_sampler(sampler)

    @property
    def drop_last(self) -> bool:
        """Whether the last batch is dropped: it is one of a single image, for training.

        Such a batch would stop batch normalisation.
        """
        drawn = self._drawn()
        return self.training and drawn > 1 and drawn % self.bs == 1

    @drop_last.setter
    def drop_last(self, _) -> None:
        """Ignore what fastai sets."""

    def _drawn(self) -> int:
        """Count the images of an epoch."""
        return self.n if self.sampler is None else len(self.sampler)

    def __len__(self) -> int:
        drawn = self._drawn()
        return drawn // self.bs if self.drop_last else -(-drawn // self.bs)

    def set_sampler(self, sampler) -> None:
        """Draw the images of an epoch with this sampler (a name or a torch sampler) from now on."""
        if not self.training:
            self.sampler_name, self.sampler = None, None
            return
        targets = np.asarray(self.dataset.targets)
        made = make_sampler(sampler, targets, self.seed)
        if isinstance(made, InstanceSampler) and len(made.targets) != len(targets):
            raise UserError(
                f"the sampler was made for {len(made.targets)} images, but there are "
                f"{len(targets)}."
            )
        self.sampler_name = sampler if isinstance(sampler, str) else type(sampler).__name__
        self.sampler = made

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Make the next pass the one of this epoch (0-based), of how many."""
        self.epoch = epoch
        if isinstance(self.sampler, InstanceSampler):
            self.sampler.set_epoch(epoch, epochs)
        elif hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)  # torch's own, such as DistributedSampler's

    def new(self, dataset=None, cls=None, **kwargs):
        """Return a loader with the same settings but for those given (fastai's protocol).

        A sampler that was given by name is made afresh; another one goes along unless the dataset
        changes, for it knows only its own.
        """
        shuffle = kwargs.pop("shuffle", None)
        settings = {
            "training": self.training if shuffle is None else bool(shuffle),
            "seed": self.seed,
            "sampler": "instance",
            "threads": self.threads,
        }
        if self.sampler_name in SAMPLERS:
            settings["sampler"] = self.sampler_name
        elif self.sampler is not None and dataset is None:
            settings["sampler"] = self.sampler
        if shuffle is None:
            settings["augment"] = self.augment
        return super().new(dataset, cls, **{**settings, **kwargs})

    def _one_pass(self):
        # fastai reads an item to learn what a batch is made of, which is known here.
        if hasattr(self.dataset, "get") or hasattr(self.dataset, "get_batch"):
            self._n_inp, self._types = 1, {tuple: [Tensor, Tensor]}
        else:
            super()._one_pass()

    def get_idxs(self) -> list[int]:
        """Return the epoch's images.

        With augmentation each number also carries its position in the epoch.
        """
        order = self.sampler if self.training else range(self.n)
        if not self.augment:
            return list(order)
        return [i + position * self.n for position, i in enumerate(order)]

    def __iter__(self) -> Iterator:
        self.set_epoch(self.epoch)
        mistake = None
        try:
            yield from super().__iter__()
        except UserError as e:
            # What a worker raises arrives with the worker's whole traceback as its message.
            marker = f"{UserError.__module__}.{UserError.__qualname__}: "
            mistake = UserError(e.message.rpartition(marker)[2].rstrip("\n"))
            # Its frames hold torch's iterator; each worker that is left to the garbage collector
            # takes five seconds to end.
            e.__traceback__ = None
        if mistake:
            raise mistake
        # Whoever trains without an LTLearner gets another draw in the next epoch all the same.
        self.epoch += 1

    def _threads_now(self) -> int:
        """Count the threads that are to read; 0 where there are none."""
        # Decoding a file lets other threads run. What a user puts in place may not stand them.
        ours = getattr(self.create_item, "__func__", None) is LTDataLoader.create_item
        data = self.dataset.data if isinstance(self.dataset, ImageFiles) else None
        if not ours or data is None or data.images is not None or get_worker_info() is not None:
            return 0
        if self.threads is not None:
            return self.threads
        cores = count_cores()
        return min(cores, _MOST_THREADS) if cores > 1 else 0

    def _seed_at(self, number: int) -> int | None:
        return mix_seed(self.seed, self.epoch, number // self.n) if self.augment else None

    def create_item(self, s):
        """Read one image, augmented by its own seed."""
        if isinstance(s, Future):
            return s.result()
        s = s or 0  # fastai tries the loader out with None
        if hasattr(self.dataset, "get"):
            return self.dataset.get(s % self.n, self._seed_at(s))
        return self.dataset[s % self.n]

    def create_batches(self, samps):
        """Make batches: at once where the dataset can, else image by image."""
        if not hasattr(self.dataset, "get_batch"):
            threads = self._threads_now()
            if not threads:
                yield from super().create_batches(samps)
                return
            # A batch ahead, so that a device need not wait for the next one.
            ahead = max(self.bs, 2 * threads)
            with closing(compute_ahead(self.create_item, samps, threads, ahead)) as items:
                yield from super().create_batches(items)
            return
        for numbers in self.chunkify(samps):
            yield self.dataset.get_batch([s % self.n for s in numbers], self._seed_at(numbers[0]))
