"""Classify images with the trained model of a run."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.datasets import NormalizeUint8
from ltlearn.data.images import EXTENSIONS, natural_key, read_image
from ltlearn.data.opening import HEIF_SUFFIXES
from ltlearn.data.transforms import ImageTransform
from ltlearn.errors import UserError, check_whole, spell
from ltlearn.experiments.manifest import MANIFEST_FILE
from ltlearn.experiments.model_facts import MODEL_FILE
from ltlearn.experiments.opened_export import is_timm_folder, open_onnx, open_timm
from ltlearn.experiments.opened_run import open_run
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.utils.parallel import compute_ahead, count_threads

__all__ = ["Prediction", "Predictor", "find_images"]

_BATCH = 64
# HEIC files are images even where they cannot be read, and are reported then.
_IMAGES = EXTENSIONS | HEIF_SUFFIXES
_MAX_PIXELS = _BATCH * 512 * 512  # of a batch, so that large images take no more memory


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image.

    Args:
        path: The image.
        classes: The likeliest classes, in descending order of probability.
        probabilities: Their probabilities.
        error: Why the image cannot be read. Classes and probabilities are then empty.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Predictor:
    """A trained model, ready for images.

    Args:
        where: A run's folder, or one of the .safetensors files in its `checkpoints` or `compare`;
            a folder of a model as timm saves it; or an ONNX file that ltlearn wrote, which runs on
            the CPU.
        method: The method whose classifier is used, of the run or of a comparison of it; "best" is
            the one that the comparison found best on the validation images. None takes the last
            of the run, or the one of the export.
        device: A torch device.
        target_prior: How often the classes occur among the images: "uniform", "train", "reversed"
            or C numbers. None leaves the logits unchanged.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.

    Raises:
        UserError: If there is no finished run, an earlier version made it, it has no such method,
            or a file is damaged.

    Example:
        >>> Predictor("runs/digits").classes[:2]  # doctest: +SKIP
        ['0', '1']
    """

    def __init__(
        self,
        where: str | Path,
        method: str | None = None,
        device: str | torch.device = "cpu",
        target_prior=None,
        allow_hub: bool = False,
    ):
        where, self.device = Path(where).expanduser(), torch.device(device)
        is_onnx = where.suffix.lower() == ".onnx" and where.is_file()
        if is_onnx or _is_export(where):
            opened = open_onnx(where) if is_onnx else open_timm(where, self.device)
            if method not in (None, opened.method):
                holds = f"the method {opened.method}" if opened.method else "no named method"
                raise UserError(f"{where} holds {holds}, not {method!r}.")
            self.model, self.method, self.classes = opened.model, opened.method, opened.classes
            prior = None if opened.facts is None else opened.facts.prior
        else:
            opened = open_run(where, method, allow_hub)
            self.model, self.method = opened.model.to(self.device).eval(), opened.method
            self.classes, prior = opened.facts.classes, opened.prior
        self.facts = opened.facts
        self._steps = steps = opened.preprocessing
        self._normalize = NormalizeUint8(steps.mean, steps.std)
        self._transform = getattr(opened, "transform", None)
        if self._transform is None and not steps.in_memory:
            self._transform = ImageTransform("none", steps.size[0])
        self._priors = None
        if target_prior is not None:
            if opened.facts is None:
                raise UserError(
                    f"{where} does not state how many training images each class had, so the "
                    f"predictions cannot be corrected; leave {spell('target_prior')} out."
                )
            counts = opened.facts.class_counts
            self._priors = [prior_vector(one, counts) for one in (prior, target_prior)]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Classify images that are in memory.

        Args:
            pixels: The images.

        Shape:
            pixels is (N, 3, H, W), uint8, with the height and width of the model's input. The
            result is (N, C), float32, on the CPU.
        """
        (x,) = self._normalize.encodes((pixels.to(self.device),))
        logits = self.model(x).float().cpu()
        return logits if self._priors is None else correct_for_prior(logits, *self._priors)

    def predict(
        self, paths: Iterable[str | Path], top: int = 5, bs: int = _BATCH
    ) -> Iterator[Prediction]:
        """Classify files in order, and hold only a few batches of them in memory.

        Args:
            paths: The images. One that cannot be read gives a `Prediction` with an `error`.
            top: How many classes each prediction has, at least 1.
            bs: Images per batch, at least 1. Batches of images above 512 pixels a side are smaller.

        Raises:
            UserError: If `top` or `bs` is below 1.
        """
        check_whole("top", top, 1)
        check_whole("bs", bs, 1)
        bs = min(bs, max(1, _MAX_PIXELS // math.prod(self._steps.size)))
        top = min(top, len(self.classes))
        waiting: list[tuple[str, Tensor | str]] = []
        threads = count_threads()
        for future in compute_ahead(self._read, paths, threads, bs):
            waiting.append(future.result())
            if len(waiting) == bs:
                yield from self._classify(waiting, top)
                waiting = []
        yield from self._classify(waiting, top)

    def _read(self, path: str | Path) -> tuple[str, Tensor | str]:
        (height, width), bits = self._steps.size, self._steps.bits
        if os.path.isdir(path):
            kinds = ", ".join(sorted(EXTENSIONS))
            return str(path), f"the folder {path} holds no images ({kinds}); give another one"
        if not os.path.exists(path):
            return str(path), f"there is no image {path}; give a file, or a folder of images"
        try:
            # The same resizing as in the validation loader of the training.
            if self._transform is not None:
                image = self._transform(read_image(Path(path), None, bits))
            elif height == width:
                image = read_image(Path(path), height, bits)
            else:
                image = _resized(read_image(Path(path), None, bits), width, height)
        except UserError as e:
            # The part after the semicolon is advice for training, not for prediction.
            fault = e.message.rpartition(";")[0] or e.message
            return str(path), fault.rstrip(".")
        return str(path), torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)

    def _classify(self, read: Sequence[tuple[str, Any]], top: int) -> Iterator[Prediction]:
        good = [pixels for _, pixels in read if not isinstance(pixels, str)]
        rows = iter(())
        if good:
            values, index = self.logits(torch.stack(good)).softmax(1).topk(top, 1)
            rows = zip(values.tolist(), index.tolist(), strict=True)
        for path, pixels in read:
            if isinstance(pixels, str):
                yield Prediction(path, error=pixels)
                continue
            probabilities, classes = next(rows)
            if not all(map(math.isfinite, probabilities)):
                yield Prediction(path, error=f"the model gives no finite numbers for {path}")
                continue
            names = tuple(self.classes[c] for c in classes)
            yield Prediction(path, names, tuple(probabilities))


def _is_export(where: Path) -> bool:
    has_run = any((where / name).is_file() for name in (MODEL_FILE, MANIFEST_FILE))
    return not has_run and is_timm_folder(where)


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    resample = Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize((width, height), resample))


def find_images(paths: Iterable[Path]) -> Iterator[str]:
    """Yield files, and the images in folders in the natural order of their names.

    Args:
        paths: Files and folders. Hidden files in folders are left out. A folder without an image
            is yielded itself.
    """
    return chain.from_iterable(map(_images_in, paths))


def _images_in(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield str(path)
        return
    is_empty = True
    # os.walk does not follow links to folders, so a loop of links cannot trap it.
    for base, inner, files in os.walk(path):
        inner[:] = sorted((d for d in inner if d[0] != "."), key=natural_key)
        for name in sorted(files, key=natural_key):
            if name[0] != "." and os.path.splitext(name)[1].lower() in _IMAGES:
                is_empty = False
                yield os.path.join(base, name)
    if is_empty:
        yield str(path)
