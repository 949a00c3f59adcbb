"""Features and logits of a learner's data, and images in the form that its model takes."""

import copy
import logging
from contextlib import nullcontext

import numpy as np
from fastai.learner import Learner
from torch import Tensor, nn

from ltlearn.data.datasets import ImagesInMemory
from ltlearn.data.feature_rows import GivenFeatures
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.needs_images import check_arguments
from ltlearn.data.transforms import ImageTransform, OneOfFiveCrops
from ltlearn.errors import UserError, spell
from ltlearn.names import PARTS
from ltlearn.training.evaluate import run_model
from ltlearn.training.features import FeatureBank, Features
from ltlearn.training.loop import oom_to_user_error
from ltlearn.utils.settings import load_settings

__all__ = [
    "FEATURE_BATCH",
    "MAX_BANK_BYTES",
    "HeadModel",
    "extract_features",
    "predict_images",
    "predict_part",
]

_log = logging.getLogger("ltlearn")
MAX_BANK_BYTES = 1 << 30  # larger features go to disk
FEATURE_BATCH = 4096


class HeadModel(nn.Module):
    """A model over features that consists of a head alone.

    Args:
        head: The head.

    Shape:
        Input (N, D) features. Output (N, C) logits.
    """

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Classify features."""
        return self.head(x)


def _loader_of(dls, part: str):
    loader = getattr(dls, part) if part in PARTS else None
    if loader is None:
        raise UserError(
            f"these dataloaders have no {part!r} part; there is train, valid and, if given, test."
        )
    return loader


def extract_features(learn: Learner, part: str, views: int = 0, seed: int = 0) -> Features:
    """Return the backbone's features of a part, from the feature bank if it has them.

    Args:
        learn: An `LTLearner`.
        part: "train", "valid" or "test".
        views: Augmented passes; 0 makes one without augmentation.
        seed: Seed of the augmentation.
    """
    split, loader = learn.dls.split, _loader_of(learn.dls, part)
    if isinstance(loader.dataset, GivenFeatures) and isinstance(learn.model.backbone, nn.Identity):
        return loader.dataset
    data = f"{split.train} {split.valid} {split.test} {split.valid_from} {part}"
    if isinstance(loader.dataset, ImagesInMemory):
        # Small batches stay in the cache of a CPU: 64 images are a third faster than 256.
        bs = 64 if learn.dls.device.type == "cpu" else 256
        loader = loader.new(bs=bs, shuffle=False, augment=loader.augment)
    if learn.bank.path is None:
        width = np.dtype(learn.bank.dtype).itemsize * learn.model.head.in_features
        if loader.n * max(views, 1) * width > MAX_BANK_BYTES:
            path = load_settings().cache_path / "features"
            _log.warning("these features would take over 1 GiB of memory: they go to %s", path)
            learn.bank = FeatureBank(path, learn.bank.dtype, learn.bank.compile)
    with oom_to_user_error(loader.bs):
        return learn.bank.features(
            learn.model.backbone, loader, data, views, seed, learn.autocast_or_none()
        )


def predict_part(
    learn: Learner, part: str, flip: bool, cached: bool, crops: int = 1
) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and targets (N,) of a part on the CPU, in the order of its dataset.

    Args:
        learn: An `LTLearner`.
        part: "train", "valid" or "test".
        flip: Whether to average the logits of each image and its mirror image.
        cached: Whether to use the feature bank, without `flip` and with one crop.
        crops: 1 takes the centre of each image, 5 the mean logits of its corners and its centre.

    Raises:
        UserError: If `crops` is another number, or the images cannot be cropped.
    """
    if crops not in (1, OneOfFiveCrops.NUMBER):
        raise UserError(f"crops must be 1 or {OneOfFiveCrops.NUMBER}, got {crops!r}.")
    check_arguments(learn, {"flip": flip, "crops": crops})
    if cached and not flip and crops == 1:
        features = extract_features(learn, part)
        loader = LTDataLoader(features, FEATURE_BATCH, device=learn.dls.device)
        head = HeadModel(learn.model.head)
        return tuple(t.cpu() for t in run_model(head, loader, nullcontext))
    loader = _loader_of(learn.dls, part).new(shuffle=False)
    loaders = [loader] if crops == 1 else _five_crops(loader)
    total = None
    with oom_to_user_error(loader.bs):
        for one in loaders:
            output = run_model(learn.model, one, learn.autocast_context, flip, together=True)
            logits, targets = (t.cpu() for t in output)
            total = logits if total is None else total.add_(logits)
    return total if crops == 1 else total / crops, targets


def _five_crops(loader: LTDataLoader) -> list[LTDataLoader]:
    """Return a loader for each of the five crops of slightly larger images."""
    if not isinstance(getattr(loader.dataset, "plain", None), ImageTransform):
        raise UserError(
            "five crops need square images that the loaders resize, but these are held in memory, "
            f"or pass through item_tfms; take {spell('crops', 1)}."
        )
    loaders = []
    for which in range(OneOfFiveCrops.NUMBER):
        dataset = copy.copy(loader.dataset)
        dataset.plain = OneOfFiveCrops(dataset.shape[0], which)
        loaders.append(loader.new(dataset))
    return loaders


def predict_images(learn: Learner, images) -> Tensor:
    """Return the logits (N, C) of images on the CPU.

    Args:
        learn: An `LTLearner`.
        images: What `LTDataLoaders.test_dl` takes.

    Raises:
        UserError: If there is no image, or one cannot be read.
    """
    loader = learn.dls.test_dl(images)
    with oom_to_user_error(loader.bs):
        return run_model(learn.model, loader, learn.autocast_context)[0].cpu()
