"""Weights of the experts for images whose class prior is unknown."""

import logging
from pathlib import Path

import torch
from fastai.data.transforms import get_image_files
from fastai.learner import Learner
from torch import Tensor
from torch.nn import functional as F

from ltlearn.data.items import is_one_image
from ltlearn.data.loader import LTDataLoader
from ltlearn.errors import UserError, check_number, check_whole
from ltlearn.heads.experts import ExpertHead
from ltlearn.training.evaluate import run_model
from ltlearn.training.loop import oom_to_user_error

__all__ = ["ExpertsMixin", "agreement_weights"]

_log = logging.getLogger("ltlearn")
_BATCH = 128
_MOMENTUM = 0.9
_LEAST = 0.05  # the authors' code stops after an epoch that brings a weight below it


class ExpertsMixin:
    """What a learner can do with a classifier of several experts."""

    def weigh_experts(self, images, epochs: int = 5, lr: float = 0.1, seed: int = 0) -> Tensor:
        """Weight the experts for images without labels, whose class prior may be any.

        Experts that are good at the classes of these images predict alike for two augmented views
        of one image. So weights are learnt that let the predictions of two views agree. The head
        keeps them: predictions, reports and exports use them. An expert that is more confident than
        the others also agrees more, so check the result where some images have labels.

        Args:
            images: A folder; several paths, PIL images or (H, W, 3) uint8 arrays; or a loader, such
                as `dls.test`. None weights all experts alike again.
            epochs: Passes over the images, at least 1.
            lr: Learning rate, > 0.
            seed: Seed of the augmentation and of the order.

        Returns:
            The weights, (E,), float32, with sum 1.

        Raises:
            UserError: If the classifier has no experts, or there are not two images.

        Source:
            Zhang et al., NeurIPS 2022, arXiv:2107.09249 (SADE), test-time aggregation. Departure:
            each image has the same two views in all epochs, so that the network runs only twice.

        Example:
            >>> learn.weigh_experts("new_photos/")
            tensor([0.1512, 0.3120, 0.5368])
        """
        head = self.model.head
        if not isinstance(head, ExpertHead):
            raise UserError(
                f"the classifier is a {type(head).__name__}, not one of several experts; train "
                "stage 1 with method='sade' or 'balpoe', or put it back: use('stage1')."
            )
        check_whole("epochs", epochs, 1)
        check_number("lr", lr, 0, above=True)
        check_whole("seed", seed, 0)
        if images is None:
            head.set_weights(None)
        else:
            first, second = (_features(self, images, 2 * seed + view) for view in range(2))
            head.set_weights(agreement_weights(head, first, second, epochs, lr, seed))
        weights = head.expert_weights.float().cpu().clone()
        _log.info("weights of the experts: %s", ", ".join(f"{w:.3f}" for w in weights.tolist()))
        return weights


def _features(learn: Learner, images, seed: int) -> Tensor:
    """Return the features of one augmented view of each image, on the CPU."""
    if isinstance(images, str | Path) and Path(images).is_dir():
        found = sorted(get_image_files(images))
        if len(found) < 2:
            raise UserError(f"the folder {images} has {len(found)} images; give at least two.")
        images = found
    elif isinstance(images, LTDataLoader):
        images = images.items
    elif is_one_image(images):
        raise UserError("the experts are weighted for several images, got one; give at least two.")
    dataset = learn.dls.train.dataset
    loader = learn.dls.test_dl(images, augment=dataset, seed=seed)
    loader.augment = True
    with oom_to_user_error(loader.bs):
        return run_model(learn.model.backbone, loader, learn.autocast_context)[0].cpu()


def agreement_weights(
    head: ExpertHead, first: Tensor, second: Tensor, epochs: int, lr: float, seed: int
) -> Tensor:
    """Learn the weights with which the predictions of two views agree.

    Args:
        head: The classifier.
        first: Features of one view of each image.
        second: Features of the other view.
        epochs: Passes over the images, at least 1. An epoch after which a weight is below 0.05 is
            the last.
        lr: Learning rate of SGD with momentum 0.9, > 0.
        seed: Seed of the order.

    Shape:
        first and second are (N, D). The result is (E,), float32, with sum 1.
    """
    device = head.weight.device
    raw = torch.zeros(head.experts, device=device, requires_grad=True)
    optimiser = torch.optim.SGD([raw], lr, momentum=_MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(first), generator=generator).split(_BATCH):
            with torch.no_grad():
                views = [head.expert_logits(x[index].to(device)).float() for x in (first, second)]
            share = raw.softmax(0)[:, None]
            probs = [(share * logits).sum(1).softmax(1) for logits in views]
            optimiser.zero_grad()
            (-F.cosine_similarity(*probs).mean()).backward()
            optimiser.step()
        if raw.softmax(0).min() < _LEAST:
            break
    return raw.detach().softmax(0).cpu()
