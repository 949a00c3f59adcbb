"""`LTDataLoader`: a fastai loader whose draws depend on seed, epoch and position alone."""

import copy
import itertools
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.data.load import _loaders
from fastai.torch_core import TensorCategory, TensorImage, apply, defaults
from torch import Tensor

from ltlearn.data.device import OnDevice, asynchronous
from ltlearn.data.draws import EpochDraws, draw_epoch
from ltlearn.data.needs_images import needs_images
from ltlearn.data.own_transforms import TypedBatch, seeded
from ltlearn.data.samplers import SAMPLERS, InstanceSampler, make_sampler
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_whole
from ltlearn.utils import ranks

__all__ = ["LTDataLoader"]

# Keeps the seeds of a user's batch transforms apart from the seeds of the images.
_BATCH = 0xBA7C
_READ_ROWS = 4096  # features read at once


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


class LTDataLoader(TfmdDL):
    """A fastai data loader whose draws depend on (seed, epoch, position) alone.

    The order and the augmentations are drawn. So the number of workers changes nothing, no two
    epochs or workers repeat a draw, and an epoch can be repeated. Each full pass is the next epoch;
    `set_epoch` moves to any epoch.

    Args:
        dataset: `ImagesInMemory`, `ImageFiles` or any dataset with `targets`.
        bs: Images per batch, at least 1. A partial last batch is kept, except a single image for
            training.
        training: Whether to draw the images with `sampler` instead of in their order.
        sampler: A name of `ltlearn.data.samplers.SAMPLERS` or a torch sampler; only for training.
        augment: Whether to augment; None augments for training.
        seed: Decides the order and the augmentation, together with the epoch.
        num_workers: Processes that read images, at least 0; 0 reads in this process.
        **kwargs: For fastai's `TfmdDL`.

    Raises:
        UserError: If `bs` or `num_workers` is outside its range, or the sampler is unknown or made
            for another dataset.

    Example:
        >>> dl = LTDataLoader(ImageFiles(data, size=224), bs=32, training=True)  # doctest: +SKIP
        >>> dl.set_sampler("class_balanced")  # doctest: +SKIP
    """

    is_cut = False  # whether each rank gets its own rows of a batch
    epochs: int | None = None  # of the training; learners that earlier versions exported lack it

    def __init__(
        self,
        dataset,
        bs=64,
        training=False,
        sampler="instance",
        augment=None,
        seed=0,
        num_workers=0,
        **kwargs,
    ):
        # fastai passes these; here the sampler and the property `drop_last` decide them.
        kwargs.pop("shuffle", None)
        kwargs.pop("drop_last", None)
        bs = kwargs.pop("batch_size", None) or bs
        check_whole("bs", bs, 1)
        check_whole("num_workers", num_workers, 0)
        self.training, self.seed, self.epoch, self.epochs = training, seed, 0, None
        self.augment = training if augment is None else augment
        self.sampler_name = self.sampler = None
        super().__init__(dataset, bs=bs, shuffle=False, num_workers=num_workers, **kwargs)
        self.set_sampler(sampler)

    @property
    def drop_last(self) -> bool:
        """Return whether the last batch is dropped: in training, if it has a single image.

        Batch normalisation raises for a batch of one image.
        """
        drawn = self._drawn()
        return self.training and drawn > 1 and drawn % self.bs == 1

    @drop_last.setter
    def drop_last(self, _) -> None:
        """Ignore the value, which fastai sets."""

    def _drawn(self) -> int:
        """Return the number of images in an epoch."""
        return self.n if self.sampler is None else len(self.sampler)

    def __len__(self) -> int:
        drawn = self._drawn()
        return drawn // self.bs if self.drop_last else -(-drawn // self.bs)

    def set_sampler(self, sampler) -> None:
        """Replace the sampler. It has no effect on a loader that does not train.

        Args:
            sampler: A name of `ltlearn.data.samplers.SAMPLERS` or a torch sampler.

        Raises:
            UserError: If the sampler is unknown, or made for another dataset.
        """
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
        """Set the epoch of the next pass.

        Args:
            epoch: The epoch, from 0 up.
            epochs: Number of epochs of the training; None keeps the number that was set before.
        """
        self.epoch = epoch
        self.epochs = self.epochs if epochs is None else epochs
        if isinstance(self.sampler, InstanceSampler):
            self.sampler.set_epoch(epoch, epochs)
        elif hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)  # a sampler of torch, such as DistributedSampler

    @property
    def progress(self) -> float | None:
        """Return the epoch divided by the last one; None without a training of known length."""
        return None if self.epochs is None else min(1.0, self.epoch / max(1, self.epochs - 1))

    @contextmanager
    def cut_by_rank(self) -> Iterator[None]:
        """Give each rank its rows of each batch inside the block.

        The batches are those of one process: a batch is cut, and the loader draws as before. A
        batch is (x, y): x holds the rows of this rank, y the targets of the whole batch.
        """
        self.is_cut = ranks.world() > 1
        try:
            yield
        finally:
            self.is_cut = False

    def rows_of(self, n: int) -> slice:
        """Return the rows that this process loads of a batch.

        Args:
            n: Rows of the whole batch.
        """
        return ranks.part_of(n) if self.is_cut else slice(0, n)

    def new(self, dataset=None, cls=None, **kwargs):
        """Return a loader with the same settings, except those given (fastai's protocol).

        A sampler that was given by name is made anew. A sampler object is kept unless the dataset
        changes, because it fits its own dataset only.

        Args:
            dataset: The new dataset; None keeps it.
            cls: Class of the new loader; None keeps it.
            **kwargs: The settings that change.
        """
        shuffle = kwargs.pop("shuffle", None)
        settings = {
            "training": self.training if shuffle is None else bool(shuffle),
            "seed": self.seed,
            "sampler": "instance",
        }
        if self.sampler_name in SAMPLERS:
            settings["sampler"] = self.sampler_name
        elif self.sampler is not None and dataset is None:
            settings["sampler"] = self.sampler
        if shuffle is None:
            settings["augment"] = self.augment
        return super().new(dataset, cls, **{**settings, **kwargs})

    def _one_pass(self):
        # fastai reads an image to find out the parts of a batch, which are known here.
        if hasattr(self.dataset, "decode"):
            self._n_inp, self._types = 1, {tuple: [TensorImage, TensorCategory]}
        elif hasattr(self.dataset, "get") or hasattr(self.dataset, "get_batch"):
            self._n_inp, self._types = 1, {tuple: [Tensor, Tensor]}
        else:
            super()._one_pass()

    def get_idxs(self) -> Sequence[int]:
        """Return the images of the epoch by index, in eight bytes each.

        With augmentation a number also encodes the position in the epoch: index + position * n.
        """
        order = self.sampler if self.training else range(self.n)
        if not self.augment:
            return array("q", order)
        return array("q", (i + position * self.n for position, i in enumerate(order)))

    def draws(self, epoch: int, epochs: int | None = None) -> EpochDraws:
        """Return all draws of an epoch, without reading an image. The loader stays as it is.

        A pass over the loader uses the same functions, so it sees the same images. A torch sampler
        without a seed of its own draws anew in each call, and may count it.

        Args:
            epoch: The epoch, from 0 up.
            epochs: Number of epochs of the training; None keeps the number that was set before.

        Raises:
            UserError: If the dataset does not make whole batches, as `ImageFiles` does not.
        """
        if not hasattr(self.dataset, "draw"):
            raise UserError(
                f"{type(self.dataset).__name__} reads and augments images one by one, so the draws "
                "of an epoch cannot be made at once."
            )
        loader = self._at_epoch(epoch, epochs)
        return loader._with_mixes(loader._draw_images(loader.get_idxs()))

    def _at_epoch(self, epoch: int, epochs: int | None) -> "LTDataLoader":
        """Return a copy of the loader at another epoch."""
        loader = copy.copy(self)
        # A sampler without `set_epoch` may count its passes. A copy would repeat the last pass.
        if hasattr(self.sampler, "set_epoch"):
            loader.sampler = copy.copy(self.sampler)
        loader.set_epoch(epoch, epochs)
        return loader

    def _with_mixes(self, draws: EpochDraws) -> EpochDraws:
        """Add the draws of mixes of images; this loader has none."""
        return draws

    def _draw_images(self, numbers) -> EpochDraws:
        """Draw which images each step gets, and how they are augmented."""
        numbers = np.asarray(numbers, dtype=np.int64)
        sizes = self._sizes(len(numbers))
        seeds = [self._seed_at(int(number)) for number in numbers[:: self.bs][: len(sizes)]]
        return draw_epoch(numbers[None] % self.n, sizes, self.dataset.draw, seeds)

    def _sizes(self, n: int) -> list[int]:
        """Return the sizes of the batches of n images."""
        sizes = [min(self.bs, n - first) for first in range(0, n, self.bs)]
        return sizes[:-1] if self.drop_last and n % self.bs else sizes

    def __iter__(self) -> Iterator:
        self.set_epoch(self.epoch)
        error = None
        try:
            yield from self._batches()
        except UserError as e:
            # The message of an error from a worker has the worker's traceback before the sentence.
            marker = f"{UserError.__module__}.{UserError.__qualname__}: "
            error = UserError(e.message.rpartition(marker)[2].rstrip("\n"))
            # The frames keep torch's iterator alive, and a worker that the garbage collector ends
            # takes five seconds.
            e.__traceback__ = None
        if error:
            raise error
        # The next pass then draws anew, even if no LTLearner sets the epoch.
        self.epoch += 1

    def _batches(self) -> Iterator:
        """Yield the batches; a user's batch transforms draw by (seed, epoch, batch) alone."""
        batches = self._read()
        if not any(isinstance(tfm, TypedBatch) for tfm in self.after_batch.fs):
            yield from batches
            return
        first = 0
        # Each rank has other images, so its draws must differ.
        own = (ranks.rank(),) if self.is_cut and ranks.rank() else ()
        if self.augment and not self.training:
            # A pass that resumes begins at a later position.
            first = next(iter(self.get_idxs()), 0) // max(self.n, 1) // self.bs
        for number in itertools.count(first):
            with seeded(mix_seed(self.seed, self.epoch, number, _BATCH, *own), self.device):
                batch = next(batches, None)
            if batch is None:
                return
            # A plain tensor, because each step on fastai's types takes longer.
            yield tuple(t.as_subclass(Tensor) for t in batch)

    def _read(self) -> Iterator:
        """Return the batches as fastai's loader does, but do not wait for their copy to CUDA."""
        on_cuda = _is_cuda(self.device) and defaults.use_cuda is not False
        return self._read_to_cuda() if on_cuda else super().__iter__()

    def _read_to_cuda(self) -> Iterator:
        self.randomize()
        self.before_iter()
        self._DataLoader__idxs = self.get_idxs()  # where fastai's `sample` reads them
        alone = self.fake_l.num_workers == 0
        # With worker processes, a thread moves batches into pinned memory, from which copies are
        # asynchronous.
        self.fake_l.pin_memory = self.pin_memory or (not alone and torch.accelerator.is_available())
        for batch in _loaders[alone](self.fake_l):
            batch = tuple(batch) if isinstance(batch, list) else batch
            yield self.after_batch(apply(asynchronous, batch, device=self.device))
        self.after_iter()

    def stored(self):
        """Return the copy of the dataset on the device of the batches, or else the dataset itself.

        Small images in memory and cached features are copied to a CUDA device at the first call, if
        the setting `device_megabytes` allows.
        """
        data = self.dataset
        if not (_is_cuda(self.device) and isinstance(data, OnDevice)) or self.fake_l.num_workers:
            return data
        return data.on(self.device)

    def feature_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch of `Features`, as the loader itself does, in less time."""
        self.set_epoch(self.epoch)
        numbers = np.asarray(self.get_idxs(), dtype=np.int64)[: len(self) * self.bs]
        drawn = self.augment and len(self.dataset.views) > 1
        # One read for several batches, unless each draws its views with a seed of its own.
        read = self.bs if drawn else self.bs * max(1, _READ_ROWS // self.bs)
        for start in range(0, len(numbers), read):
            part = numbers[start : start + read]
            x, y = self.dataset.get_batch(part % self.n, self._seed_at(int(part[0])))
            yield from zip(x.split(self.bs), y.split(self.bs), strict=True)
        self.epoch += 1

    def before_iter(self):
        """Let fastai's transforms know whether to augment."""
        super().before_iter()
        self.after_batch.split_idx = 0 if self.augment else 1

    def _seed_at(self, number: int) -> int | None:
        return mix_seed(self.seed, self.epoch, number // self.n) if self.augment else None

    def create_item(self, s):
        """Return one image with its target, augmented with a seed of its own.

        Args:
            s: A number that `get_idxs` returned; None takes the first image.
        """
        s = s or 0  # fastai tries the loader with None
        if getattr(self.dataset, "takes_progress", False):
            return self.dataset.get(s % self.n, self._seed_at(s), self.progress)
        if hasattr(self.dataset, "get"):
            return self.dataset.get(s % self.n, self._seed_at(s))
        return self.dataset[s % self.n]

    def create_batches(self, samps):
        """Yield batches: as a whole if the dataset has `get_batch`, else image by image.

        Args:
            samps: Numbers that `get_idxs` returned.
        """
        at_once = hasattr(self.dataset, "get_batch")
        if not at_once and not self.is_cut:
            yield from super().create_batches(samps)
            return
        data = self.stored()
        if data is not self.dataset:
            draws = self._draw_images(list(samps)).images_on(self.device)
            for step in range(len(draws.sizes)):
                x, y = data.take(*draws.of_step(step))
                yield self._own_rows(x), y
            return
        for numbers in self.chunkify(samps):
            index = [s % self.n for s in numbers]
            if at_once:
                # The whole batch has one seed, so all its rows are drawn.
                x, *y = self.dataset.get_batch(index, self._seed_at(numbers[0]))
                yield (self._own_rows(x), *y)
            else:
                own = numbers[self.rows_of(len(numbers))]
                x, *y = self.do_batch([self.do_item(s) for s in own])
                yield (x, self.dataset.targets[index]) if y else (x,)

    def _own_rows(self, x: Tensor) -> Tensor:
        """Return the rows of a batch that this process keeps."""
        return x[self.rows_of(len(x))] if self.is_cut else x

    @property
    def vocab(self):
        """Return the class names as fastai's `CategoryMap`, which its interpretation needs."""
        from fastai.data.transforms import CategoryMap

        return CategoryMap(list(self.dataset.vocab), sort=False)

    def decode(self, b):
        """Return a batch in the form that fastai shows.

        Args:
            b: The batch.
        """
        # It registers how images are shown: batches, results and top losses.
        import fastai.vision.learner  # noqa: F401

        return super().decode(b)

    @needs_images
    def show_batch(self, b=None, max_n=9, ctxs=None, show=True, unique=False, **kwargs):
        """Show images of a batch with their classes.

        Args:
            b: The batch; None takes the first one of the epoch.
            max_n: Most images that are shown, at least 1.
            ctxs: Axes to draw on; None makes a grid.
            show: Whether to draw; False returns what would be drawn.
            unique: Whether to show the first image in several augmentations.
            **kwargs: For fastai's `show_batch`, such as `nrows` or `figsize`.
        """
        if b is None and unique:
            views = [position * self.n for position in range(max_n)]
            b = self.new(get_idxs=lambda: views, bs=max_n, num_workers=0).one_batch()
        return super().show_batch(b, max_n, ctxs, show, **kwargs)
