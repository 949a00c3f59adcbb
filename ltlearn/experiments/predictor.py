"""Classify images with the trained model of a run."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ltlearn.data.datasets import ImagesInMemory, NormalizeUint8
from ltlearn.data.images import EXTENSIONS, natural_key, read_image
from ltlearn.data.transforms import ImageTransform
from ltlearn.errors import UserError, check_whole, spell, spell_call
from ltlearn.experiments.manifest import MANIFEST_FILE, read_manifest, stage_name
from ltlearn.experiments.recipe import Recipe
from ltlearn.methods import METHODS, prior_of
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.models.backbone import LTModel
from ltlearn.models.pretrained import create_lt_model
from ltlearn.training.records import Record
from ltlearn.utils.older_runs import known_fields
from ltlearn.utils.parallel import compute_ahead, count_threads
from ltlearn.utils.run_folder import Run

__all__ = ["MODEL_FILE", "ModelFacts", "Prediction", "Predictor", "describe_model", "find_images"]

MODEL_FILE = "model.json"
_FORMAT = 1
_BATCH = 64


@dataclass(eq=False, kw_only=True)
class ModelFacts(Record):
    """What it takes to use the weights of a run: the content of its `model.json`.

    Args:
        format: The version of the file's format.
        arch: The architecture.
        arguments: Further arguments of `create_lt_model`, such as width.
        classes: The names of the classes.
        class_counts: Training images per class.
        size: Height and width of the images.
        in_memory: Whether the training held the images in memory, at one size.
        transform: The augmentation of the training.
        mean: The mean of the pixels per channel, from 0 to 1.
        std: The standard deviation of the pixels per channel.
        methods: Label, head and prior of each method, by its name.
        weights: Where the weights of a method are.
    """

    format: int
    arch: str
    arguments: dict[str, Any]
    classes: list[str]
    class_counts: list[int]
    size: list[int]
    in_memory: bool
    transform: str = ""
    mean: list[float]
    std: list[float]
    methods: dict[str, dict[str, str]]
    weights: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelFacts":
        """Return the facts in a file, which another version may have written.

        Args:
            values: What the file holds.

        Raises:
            TypeError: If a field is missing.
            ValueError: If a field has the wrong type.
        """
        values = known_fields(cls, values)
        hints = get_type_hints(cls)
        for name, value in values.items():
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        facts = cls(**values)
        if not (len(facts.size) == 2 and len(facts.mean) == len(facts.std) == 3):
            raise ValueError("size needs two values, mean and std need three each")
        if len(facts.classes) != len(facts.class_counts):
            raise ValueError("each class needs a count")
        return facts


def describe_model(recipe: Recipe, learn, heads: Mapping[str, str]) -> ModelFacts:
    """Return what it takes to use the weights of a run.

    Args:
        recipe: The run's recipe.
        learn: A learner of the recipe, which has its data.
        heads: The kind of the classifier that each method left, by the method's name.
    """
    dls = learn.dls
    mean, std = (getattr(dls.normalize, key).flatten() / 255 for key in ("mean", "std"))
    train = dls.train.dataset
    return ModelFacts(
        format=_FORMAT,
        arch=recipe.model.arch,
        arguments=recipe.model.model_dump(
            exclude={"arch", "pretrained", "keep_head", "classes", "weights_key"},
            exclude_none=True,
        ),
        classes=dls.vocab,
        class_counts=dls.shot_counts.tolist(),
        size=list(dls.size),
        in_memory=isinstance(dls.valid.dataset, ImagesInMemory),
        transform=getattr(train.transform, "name", train.transform),
        mean=[round(v, 7) for v in mean.tolist()],
        std=[round(v, 7) for v in std.tolist()],
        methods={
            name: {
                "label": METHODS[name].label, "head": heads[name], "prior": _prior(recipe, name)
            }
            for name in recipe.methods
        },
        weights="checkpoints/seed{seed}-{method}.safetensors; for a method of stage 1: -stage1",
    )  # fmt: skip


def _prior(recipe: Recipe, method: str) -> str:
    """Return the class prior that a method's logits assume: "train" or "uniform"."""
    row = METHODS[method]
    if row.kind != "stage 1" and row.prior != "stage 1":
        return row.prior
    # A sampler that balances the classes leaves a classifier that assumes a uniform prior.
    return prior_of(recipe.stage1.method) if recipe.stage1.sampler == "instance" else "uniform"


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
        where: A run's folder, or one of the .safetensors files in its `checkpoints`.
        method: The method of the run whose classifier is used; None takes the last.
        device: A torch device.
        target_prior: How often the classes occur among the images: "uniform", "train", "reversed"
            or C numbers. None leaves the logits unchanged.

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
    ):
        folder, weights, method = _find(Path(where).expanduser(), method)
        self.facts = facts = _read_facts(folder)
        if method is None:
            method = list(facts.methods)[-1]
        if method not in facts.methods:
            raise UserError(
                f"the run {folder} has no method {method!r}; it has {', '.join(facts.methods)}."
            )
        self.method, self.classes = method, facts.classes
        is_first = method in METHODS and METHODS[method].kind == "stage 1"
        name = stage_name(0, "stage1" if is_first else method)
        self.device = torch.device(device)
        weights = weights or folder / f"{name}.safetensors"
        self.model = _load_model(facts, weights).to(self.device).eval()
        self._normalize = NormalizeUint8(facts.mean, facts.std)
        self._transform = None if facts.in_memory else ImageTransform("none", facts.size[0])
        self._priors = None
        if target_prior is not None:
            priors = (facts.methods[method]["prior"], target_prior)
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
            bs: Images per batch, at least 1.

        Raises:
            UserError: If `top` or `bs` is below 1.
        """
        check_whole("top", top, 1)
        check_whole("bs", bs, 1)
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
                image = self._transform(read_image(Path(path)))
            elif height == width:
                image = read_image(Path(path), height)
            else:
                image = _resized(read_image(Path(path)), width, height)
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
    own = where.stem.partition("-")[2]
    if own == "stage1":
        known = _read_facts(folder).methods
        # A run may have no method of stage 1: its classifier is then not trained.
        own = next((m for m in known if m in METHODS and METHODS[m].kind == "stage 1"), own)
    if method is not None and method != own:
        raise UserError(f"{where} holds the method {own or where.stem!r}, not {method!r}.")
    return folder, where, own


def _read_facts(folder: Path) -> ModelFacts:
    run = Run(folder)
    if not (folder / MODEL_FILE).is_file():
        finished = read_manifest(run).is_finished
        why = "an earlier version of ltlearn made it" if finished else "it is not finished"
        raise UserError(
            f"the run {folder} has no {MODEL_FILE}, because {why}; the command in its "
            f"{MANIFEST_FILE} with {spell('resume', True)} writes one."
        )
    content = run.read_json(MODEL_FILE)
    content = content if isinstance(content, dict) else {}
    if content.get("format", _FORMAT) != _FORMAT:
        raise UserError(
            f"{folder / MODEL_FILE} has the format {content['format']!r}, which this version of "
            "ltlearn does not read; use a newer version."
        )
    try:
        return ModelFacts.from_dict(content)
    except (TypeError, ValueError):
        raise UserError(
            f"{folder / MODEL_FILE} is damaged: it does not describe a model."
        ) from None


def _load_model(facts: ModelFacts, weights: Path) -> LTModel:
    state = Run(weights.parent).load_tensors(weights.name)
    size = tuple(facts.size)
    model = create_lt_model(facts.arch, len(facts.classes), False, size, **facts.arguments)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"the weights in {weights} are not those of {facts.arch}.") from None
    return model


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
            if name[0] != "." and os.path.splitext(name)[1].lower() in EXTENSIONS:
                is_empty = False
                yield os.path.join(base, name)
    if is_empty:
        yield str(path)
