"""What an export needs to know: the model, its classes, and how an image becomes its input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ltlearn.data.datasets import ImagesInMemory
from ltlearn.data.own_transforms import EvaluationSteps, ToShape
from ltlearn.data.transforms import MIN_CROPPED, ImageTransform, side_before_crop
from ltlearn.errors import UserError
from ltlearn.exporting.facts import FACTS_FORMAT, ExportFacts
from ltlearn.models.backbone import LTModel

__all__ = ["ExportSource", "Preprocessing", "source_of_learner"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a model.

    Args:
        size: Height and width of the input in pixels.
        mean: Mean per channel for pixels in [0, 1].
        std: Standard deviation per channel for pixels in [0, 1].
        in_memory: Whether the whole image is resized smoothly (Pillow, bilinear). Else OpenCV
            resizes it: the shorter side with a crop of the centre, or the whole image below 96
            pixels.
        bits: Bits that the values of 16-bit images take, from 8 to 15; None for 16.
        is_own: Whether transforms of the user's own come first, which no file describes.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_memory: bool
    bits: int | None = None
    is_own: bool = False

    @property
    def crops(self) -> bool:
        """Return whether the centre of the image is cropped."""
        return not self.in_memory and self.size[0] >= MIN_CROPPED

    @property
    def enlarged(self) -> int:
        """Return the shorter side in pixels that an image gets before the crop."""
        return side_before_crop(self.size[0])

    def timm_config(self) -> dict[str, Any]:
        """Return the entries of timm's `pretrained_cfg` for the same steps."""
        crop = 1.0
        if self.crops:
            side = self.size[0]
            # timm resizes to floor(side / crop_pct).
            is_plain = math.floor(side / 0.875) == self.enlarged
            crop = 0.875 if is_plain else side / (self.enlarged + 0.5)
        return {
            "input_size": [3, *self.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": "bilinear",
            "crop_pct": crop,
            "crop_mode": "center" if self.crops else "squash",
        }

    def note(self) -> str:
        """Describe how timm's transforms differ from the steps; "" if they do not."""
        if self.is_own:
            return (
                "The images had transforms of your own (item_tfms or batch_tfms), which the export "
                "does not contain: apply them first."
            )
        if self.in_memory:
            return ""
        return (
            "timm's transforms smooth an image that they make smaller (Pillow), and the training "
            "did not (OpenCV): at 96 to 224 pixels, the pixels of photos differ by 3 to 11 of 255 "
            "on average. ONNX and TorchScript come with lines that resize as the training did."
        )


@dataclass(frozen=True)
class ExportSource:
    """A trained model, and what leaves with it.

    Args:
        model: Backbone and head.
        classes: The names of the classes, in the order of the logits.
        class_counts: Training images per class.
        preprocessing: How an image becomes the input.
        prior: The class prior that the logits assume: "train" or "uniform".
        method: The method that made the classifier; "" if none is known.
        is_pretrained: Whether the backbone began from pre-trained weights, whose licence then
            matters.
    """

    model: LTModel
    classes: Sequence[str]
    class_counts: Sequence[int]
    preprocessing: Preprocessing
    prior: str = "train"
    method: str = ""
    is_pretrained: bool = False

    def facts(self, normalize: bool = False) -> ExportFacts:
        """Return what ltlearn writes into each file, so that it can predict with it again.

        Args:
            normalize: Whether the exported model normalises.
        """
        import ltlearn

        steps = self.preprocessing
        return ExportFacts(
            format=FACTS_FORMAT,
            version=ltlearn.__version__,
            classes=list(self.classes),
            class_counts=list(self.class_counts),
            size=list(steps.size),
            mean=list(steps.mean),
            std=list(steps.std),
            in_memory=steps.in_memory,
            bits=steps.bits,
            prior=self.prior,
            method=self.method,
            normalize=normalize,
        )


def source_of_learner(learn) -> ExportSource:
    """Return what an export of a learner's model needs.

    Args:
        learn: An `LTLearner`.

    Raises:
        UserError: If its model has no backbone and head.
    """
    if not isinstance(learn.model, LTModel):
        raise UserError(
            f"the model must be an LTModel, with a backbone and a head, got "
            f"{type(learn.model).__name__}; make the learner by lt_learner."
        )
    last = learn.stages[-1] if learn.stages else {}
    return ExportSource(
        learn.model,
        list(learn.dls.vocab),
        learn.dls.shot_counts.tolist(),
        _preprocessing_of(learn.dls),
        learn.assumed_prior,
        last.get("method") or "",
        bool(getattr(learn, "pretrained", False)),
    )


def _preprocessing_of(dls) -> Preprocessing:
    dataset, (mean, std) = dls.valid.dataset, dls.normalize.stats
    steps = getattr(dataset, "plain", None)
    if isinstance(steps, EvaluationSteps):
        steps = None if steps.items is not None else steps.fit
    in_memory = isinstance(dataset, ImagesInMemory) or isinstance(steps, ToShape)
    known = in_memory or isinstance(steps, ImageTransform)
    is_own = not known or bool(getattr(dataset, "tfms_name", "")) or _has_batch_steps(dls)
    bits = dls.bits if getattr(dls, "bits", 16) < 16 else None
    return Preprocessing(tuple(dls.size), tuple(mean), tuple(std), in_memory, bits, is_own)


def _has_batch_steps(dls) -> bool:
    steps = getattr(dls.valid.after_batch, "fs", [dls.normalize])
    return len(steps) > 1
