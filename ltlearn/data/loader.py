"""`LTDataLoader`: a fastai loader whose draws depend on seed, epoch and position alone."""

import itertools
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from fastai.data.core import TfmdDL
from fastai.torch_core import TensorCategory, TensorImage
from torch import Tensor

from ltlearn.data.own_transforms import TypedBatch, seeded
from ltlearn.data.samplers import SAMPLERS, InstanceSampler, make_sampler
from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_whole

__all__ = ["LTDataLoader"]

# Keeps the seeds of a user's batch transforms apart from the seeds of the images.
_BATCH = 0xBA7C
_READ_ROWS = 4096  # features read at once


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
        self.training, self.seed, self.epoch = training, seed, 0
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
        if isinstance(self.sampler, InstanceSampler):
            self.sampler.set_epoch(epoch, epochs)
        elif hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)  # a sampler of torch, such as DistributedSampler

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
        batches = super().__iter__()
        if not any(isinstance(tfm, TypedBatch) for tfm in self.after_batch.fs):
            yield from batches
            return
        first = 0
        if self.augment and not self.training:
            # A pass that resumes begins at a later position.
            first = next(iter(self.get_idxs()), 0) // max(self.n, 1) // self.bs
        for number in itertools.count(first):
            with seeded(mix_seed(self.seed, self.epoch, number, _BATCH), self.device):
                batch = next(batches, None)
            if batch is None:
                return
            # A plain tensor, because each step on fastai's types takes longer.
            yield tuple(t.as_subclass(Tensor) for t in batch)

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
        if hasattr(self.dataset, "get"):
            return self.dataset.get(s % self.n, self._seed_at(s))
        return self.dataset[s % self.n]

    def create_batches(self, samps):
        """Yield batches: as a whole if the dataset has `get_batch`, else image by image.

        Args:
            samps: Numbers that `get_idxs` returned.
        """
        if not hasattr(self.dataset, "get_batch"):
            yield from super().create_batches(samps)
            return
        for numbers in self.chunkify(samps):
            yield self.dataset.get_batch([s % self.n for s in numbers], self._seed_at(numbers[0]))

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
