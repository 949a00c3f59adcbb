"""Classify images with the trained model of a run."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ltlearn.errors import UserError, check_whole, spell_call
from ltlearn.experiments.compared import find_compared, kept_methods
from ltlearn.experiments.manifest import stage_name
from ltlearn.experiments.model_facts import MODEL_FILE, ModelFacts, read_model_facts
from ltlearn.methods import METHODS
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.models.backbone import LTModel
from ltlearn.models.pretrained import check_arch_source, create_lt_model
from ltlearn.models.weights_file import check_sizes
from ltlearn.training.kept import KEPT_FOLDER, KeptName
from ltlearn.utils.parallel import compute_ahead, count_threads
from ltlearn.utils.run_folder import Run
from ltlearn.utils.stored_weights import check_stored_weights, read_shapes
from ltlearn.utils.text import clean

__all__ = ["Prediction", "Predictor", "find_images"]

_BATCH = 64
_MAX_FREE_HEAD = 10_000_000  # weights of a head that may be made before its file is read
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
        where: A run's folder, or one of the .safetensors files in its `checkpoints` or `compare`.
        method: The method whose classifier is used, of the run or of a comparison of it; "best" is
            the one that the comparison found best on the validation images. None takes the last
            of the run.
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
        folder, weights, method = _find(Path(where).expanduser(), method)
        self.facts = facts = read_model_facts(folder)
        check_arch_source(facts.arch, folder, allow_hub)
        if method is None:
            method = list(facts.methods)[-1]
        compared = find_compared(folder, weights, method, facts.methods)
        if compared is not None:
            method, weights = compared.method, compared.stage1_file
        elif method not in facts.methods:
            names = ", ".join(dict.fromkeys([*facts.methods, *kept_methods(Run(folder))]))
            compare = spell_call("compare_run", run=str(folder), methods=method)
            # A comparison adds only a method that exists.
            adds = f" {compare} adds it." if method in METHODS else ""
            raise UserError(f"the run {folder} has no method {method!r}; it has {names}.{adds}")
        self.method, self.classes = method, facts.classes
        is_first = method in METHODS and METHODS[method].kind == "stage 1"
        name = stage_name(0, "stage1" if is_first else method)
        self.device = torch.device(device)
        weights = weights or folder / f"{name}.safetensors"
        model = _load_model(facts, weights)
        if compared is not None:
            compared.put_into(model)
            _check_finite(model, compared.run.path / f"{compared.name}.safetensors")
        self.model = model.to(self.device).eval()
        self._normalize = NormalizeUint8(facts.mean, facts.std)
        self._transform = None if facts.in_memory else ImageTransform("none", facts.size[0])
        self._priors = None
        if target_prior is not None:
            own = facts.methods
            assumed = own[method]["prior"] if compared is None else compared.prior(own)
            priors = (assumed, target_prior)
            self._priors = [prior_vector(prior, facts.class_counts) for prior in priors]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Classify images that are in memory.

        Args:
            pixels: The images.

        Shape:
            pixels is (N, 3, H, W), uint8, with the height and width of `facts.size`. The result is
            (N, C), float32, on the CPU.
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
        bs = min(bs, max(1, _MAX_PIXELS // math.prod(self.facts.size)))
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
        height, width = self.facts.size
        if os.path.isdir(path):
            kinds = ", ".join(sorted(EXTENSIONS))
            return str(path), f"the folder {path} holds no images ({kinds}); give another one"
        if not os.path.exists(path):
            return str(path), f"there is no image {path}; give a file, or a folder of images"
        try:
            # The same resizing as in the validation loader of the training.
            if self._transform is not None:
                image = self._transform(read_image(Path(path), None, self.facts.bits))
            elif height == width:
                image = read_image(Path(path), height, self.facts.bits)
            else:
                image = _resized(read_image(Path(path), None, self.facts.bits), width, height)
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


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    resample = Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize((width, height), resample))


def _find(where: Path, method: str | None) -> tuple[Path, Path | None, str | None]:
    """Return the run's folder, the file of weights if one was given, and the method."""
    if where.is_dir():
        return where, None, method
    if where.suffix != ".safetensors":
        if where.is_file():
            retrain = spell_call("retrain", checkpoint=str(where), data="DIR", arch="NAME")
            raise UserError(
                f"{where} does not name its architecture and classes; make a run of it with "
                f"{retrain}, and give the folder of the run."
            )
        raise UserError(f"there is no run {where}; give a run's folder, or a .safetensors file.")
    if not where.is_file():
        raise UserError(
            f"there is no file {where}; give one of a run's checkpoints, or the run's folder."
        )
    folders = (where.parent, where.absolute().parent.parent)
    folder = next((f for f in folders if (f / MODEL_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"there is no {MODEL_FILE} beside {where} or in the folder above, and it describes the "
            "model; give the run's folder, or copy its file there."
        )
    kept = KeptName.from_stem(where.stem) if where.absolute().parent.name == KEPT_FOLDER else None
    own = where.stem.partition("-")[2] if kept is None else kept.method
    if own == "stage1":
        known = read_model_facts(folder).methods
        # A run may have no method of stage 1: its classifier is then not trained.
        own = next((m for m in known if m in METHODS and METHODS[m].kind == "stage 1"), own)
    if method is not None and method != own:
        raise UserError(f"{where} holds the method {own or where.stem!r}, not {method!r}.")
    return folder, where, own


def _load_model(facts: ModelFacts, weights: Path) -> LTModel:
    """Make the model and load its weights, once both are known to be what the run states."""
    # Before anything takes memory, the network is made without memory and compared with the file.
    shapes = read_shapes(weights)
    with torch.device("meta"):
        _check_shapes(_make_model(facts), shapes, weights, facts)
    # Only now, because the size of the file is now known to be right.
    check_stored_weights(weights)
    state = Run(weights.parent).load_tensors(weights.name)
    model = _make_model(facts)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise _foreign_error(weights, facts) from None
    _check_finite(model, weights)
    return model


def _check_finite(model: LTModel, weights: Path) -> None:
    for name, values in model.state_dict().items():
        if values.is_floating_point() and not values.isfinite().all():
            raise UserError(
                f"the weights in {weights} are not finite ({clean(name)}): the training diverged, "
                "or the file was changed; train again with a lower learning rate."
            )


def _make_model(facts: ModelFacts) -> LTModel:
    classes, size = len(facts.classes), tuple(facts.size)
    try:
        return create_lt_model(facts.arch, classes, False, size, **facts.arguments)
    except UserError:
        raise
    except Exception as e:  # timm passes on whatever a network raises about its arguments
        raise UserError(
            f"the network {facts.arch} of the run cannot be made ({type(e).__name__}: {e})."
        ) from e


def _check_shapes(
    model: LTModel, shapes: Mapping[str, tuple[int, ...]], weights: Path, facts: ModelFacts
) -> None:
    """Raise a `UserError` unless the header of a file has the shapes of a model."""
    own = {f"backbone.{k}": tuple(v.shape) for k, v in model.backbone.state_dict().items()}
    for key in own.keys() | shapes.keys():
        if not key.startswith("head.") and own.get(key) != shapes.get(key):
            raise _foreign_error(weights, facts)
    check_sizes(weights, model)
    head = (len(facts.classes), model.head.in_features)
    # Kinds of heads from outside may have other tensors.
    if head[0] * head[1] > _MAX_FREE_HEAD and head not in shapes.values():
        raise _foreign_error(weights, facts)


def _foreign_error(weights: Path, facts: ModelFacts) -> UserError:
    return UserError(f"the weights in {weights} are not those of {facts.arch}.")


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
