"""`PartLoaders`: loaders of training, validation and test images with fastai's methods."""

import copy

from fastai.data.core import DataLoaders
from fastcore.basics import listify
from fasttransform import Pipeline

from ltlearn.data.feature_rows import GivenFeatures
from ltlearn.data.given_features import further_features
from ltlearn.data.items import Item, ItemImages, LabelledItems, label_items, list_items
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.needs_images import needs_images
from ltlearn.data.own_transforms import BatchSteps
from ltlearn.errors import UserError

__all__ = ["PartLoaders"]


class PartLoaders(DataLoaders):
    """Training, validation and test loaders, and what fastai's documentation does with them."""

    @property
    def test(self) -> LTDataLoader | None:
        """Return the test loader; None without a test set."""
        return self.loaders[2] if len(self.loaders) > 2 else None

    def new_empty(self) -> "PartLoaders":
        """Return a copy of the loaders without images, for `learn.export()`."""
        empty = copy.copy(self)
        # Not shuffled, because no sampler draws from an empty set.
        empty.loaders = [dl.new(dl.dataset.new_empty(), shuffle=False) for dl in self.loaders]
        return empty

    def test_dl(
        self, test_items, rm_type_tfms=None, with_labels: bool = False, *, augment=None, **kwargs
    ) -> LTDataLoader:
        """Return a loader of further images, which treats them as the validation loader does.

        Args:
            test_items: One image or several: paths, PIL images, (H, W, 3) uint8 arrays, or the
                items of a dataset of these loaders. Or a dataset, or a loader. For loaders of
                features: an array (N, D), a table, or a row or several.
            rm_type_tfms: Without effect; fastai passes it.
            with_labels: Whether the items have labels: pairs of an image and a class name, or paths
                in folders named after their classes. For features: pairs, or (features, labels).
            augment: Dataset whose augmentation the images get, such as `train_ds`; None augments
                none.
            **kwargs: Settings of the loader that change, such as `bs` or `num_workers`.

        Raises:
            UserError: If there is no image, one is of another kind, or a label is no class.
        """
        kwargs.pop("process", None)  # for fastai's tables
        like = self.valid.dataset
        if isinstance(test_items, LTDataLoader):
            test_items = test_items.dataset
        if isinstance(like, GivenFeatures):
            kwargs.pop("num_workers", None)  # nothing is read or decoded
            return self.valid.new(
                further_features(test_items, with_labels, like), shuffle=False, **kwargs
            )
        if hasattr(test_items, "get") and hasattr(test_items, "decode"):
            return self.valid.new(test_items, shuffle=False, **kwargs)
        if isinstance(test_items, LabelledItems):
            items, targets = test_items.images, test_items.targets if with_labels else None
        elif with_labels:
            items, targets = label_items(list_items(test_items), self.vocab)
        else:
            items, targets = list_items(test_items), None
            items = [item.image if isinstance(item, Item) else item for item in items]
        if not len(items):
            raise UserError("at least one image is needed, got none.")
        kwargs = {"num_workers": 0, "augment": augment is not None, **kwargs}
        return self.valid.new(ItemImages(items, targets, like, augment), shuffle=False, **kwargs)

    @needs_images
    def add_tfms(self, tfms, event, loaders=None) -> None:
        """Add fastai's batch transforms to loaders.

        Args:
            tfms: The transforms, such as `aug_transforms()`.
            event: "after_batch".
            loaders: Numbers of the loaders; None takes all.

        Raises:
            UserError: If the event is another one.
        """
        if event != "after_batch":
            raise UserError(
                f"transforms cannot be added at {event!r}; pass item_tfms= to the method that made "
                "these loaders, such as from_folder."
            )
        steps = BatchSteps(tfms)
        if steps.stats is not None:
            self.normalize.set(*steps.stats)
            self.stats_given = True
        for i in range(len(self.loaders)) if loaders is None else listify(loaders):
            loader = self.loaders[{"train": 0, "valid": 1}.get(i, i)]
            loader.after_batch = Pipeline([*loader.after_batch.fs, *steps.added()])
            loader.dataset.tfms_name += steps.name
