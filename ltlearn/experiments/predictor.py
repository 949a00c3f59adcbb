"""Classify images with the trained model of a run, whose folder is all that is needed."""

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
from ltlearn.data.transforms import ImageTransform
from ltlearn.errors import UserError, check_whole
from ltlearn.experiments.recipe import Recipe
from ltlearn.methods import METHODS, prior_of
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.models.backbone import LTModel
from ltlearn.models.pretrained import create_lt_model
from ltlearn.utils.parallel import compute_ahead, count_cores
from ltlearn.utils.run_folder import Run

__all__ = ["MODEL_FILE", "describe_model", "Prediction", "Predictor", "find_images"]

MODEL_FILE = "model.json"
_FORMAT = 1
_BATCH = 64
_MOST_THREADS = 8
_KEYS = ("arch", "arguments", "classes", "class_counts", "size", "in_memory", "mean", "std")


def describe_model(recipe: Recipe, learn, heads: dict[str, str]) -> dict[str, Any]:
    """Say all that it takes to use the weights of a run, for its `model.json`.

    Args:
        recipe: The run's recipe.
        learn: A learner of it, which has its data.
        heads: Kind of the classifier that each method left, by the method's name.
    """
    dls = learn.dls
    mean, std = (getattr(dls.normalize, key).flatten() / 255 for key in ("mean", "std"))
    methods = {}
    for name in recipe.methods:
        methods[name] = {
            "label": METHODS[name].label, "head": heads[name], "prior": _prior(recipe, name)
        }  # fmt: skip
    return {
        "format": _FORMAT,
        "arch": recipe.model.arch,
        "arguments": recipe.model.model_dump(
            exclude={"arch", "pretrained", "keep_head"}, exclude_none=True
        ),
        "classes": dls.vocab,
        "class_counts": dls.shot_counts.tolist(),
        "size": list(dls.size),
        "in_memory": hasattr(dls.valid.dataset, "get_batch"),
        "transform": getattr(dls.train.dataset.transform, "name", dls.train.dataset.transform),
        "mean": [round(v, 7) for v in mean.tolist()],
        "std": [round(v, 7) for v in std.tolist()],
        "methods": methods,
        "weights": "checkpoints/seed{seed}-{method}.safetensors; of a method of stage 1: -stage1",
    }


def _prior(recipe: Recipe, method: str) -> str:
    """Return the class prior that a method's logits assume: "train" or "uniform"."""
    row = METHODS[method]
    if row.kind != "stage 1" and row.prior != "stage 1":
        return row.prior
    # As the images come; another sampler makes the classes alike.
    return prior_of(recipe.stage1.method) if recipe.stage1.sampler == "instance" else "uniform"


@dataclass(frozen=True)
class Prediction:
    """What an image shows.

    Args:
        path: The image.
        classes: The likeliest classes, the first of all first.
        probabilities: Theirs.
        error: Why the image cannot be read; the others are empty then.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


class Predictor:
    """A trained model, ready for images.

    Args:
        where: A run's folder, or one of the .safetensors files in its `checkpoints`.
        method: Whose classifier of the run; None takes the last.
        device: A torch device.
        target_prior: How often the classes occur where the images are from: "uniform", "train",
            "reversed" or C numbers. None takes the logits as they are.

    Raises:
        UserError: If that is no finished run, an earlier version made it, the method is not among
            its own, or a file is damaged.
    """

    def __init__(
        self,
        where: str | Path,
        method: str | None = None,
        device: str | torch.device = "cpu",
        target_prior=None,
    ):
        folder, weights, method = _find(Path(where).expanduser(), method)
        self.facts = _read_facts(folder)
        known = self.facts["methods"]
        if method is None:
            method = list(known)[-1]
        if method not in known:
            raise UserError(
                f"the run {folder} has no method {method!r}; it has {', '.join(known)}."
            )
        self.method, self.classes = method, self.facts["classes"]
        kind = METHODS[method].kind if method in METHODS else ""
        name = "stage1" if kind == "stage 1" else method
        weights = weights or folder / "checkpoints" / f"seed0-{name}.safetensors"
        self.device = torch.device(device)
        self.model = _load_model(self.facts, weights).to(self.device).eval()
        self._normalize = NormalizeUint8(self.facts["mean"], self.facts["std"])
        side = self.facts["size"][0]
        self._transform = None if self.facts["in_memory"] else ImageTransform("none", side)
        self._priors = None
        if target_prior is not None:
            counts = self.facts["class_counts"]
            self._priors = [
                prior_vector(prior, counts) for prior in (known[method]["prior"], target_prior)
            ]

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Classify images that are read already.

        Shape:
            pixels is (N, 3, H, W), uint8, of the model's size. The result is (N, C), float32, on
            the CPU.
        """
        (x,) = self._normalize.encodes((pixels.to(self.device),))
        logits = self.model(x).float().cpu()
        return logits if self._priors is None else correct_for_prior(logits, *self._priors)

    def predict(
        self, paths: Iterable[str | Path], top: int = 5, bs: int = _BATCH
    ) -> Iterator[Prediction]:
        """Classify files, in order; no more than some batches of them are in memory.

        Args:
            paths: The images. One that cannot be read gives a `Prediction` with an `error`.
            top: How many classes to tell, at least 1.
            bs: Images a batch, at least 1.
        """
        check_whole("top", top, 1)
        check_whole("bs", bs, 1)
        top = min(top, len(self.classes))
        waiting: list[tuple[str, Tensor | str]] = []
        threads = min(count_cores(), _MOST_THREADS)
        for future in compute_ahead(self._read, paths, threads, bs):
            waiting.append(future.result())
            if len(waiting) == bs:
                yield from self._classify(waiting, top)
                waiting = []
        yield from self._classify(waiting, top)

    def _read(self, path: str | Path) -> tuple[str, Tensor | str]:
        height, width = self.facts["size"]
        if os.path.isdir(path):
            kinds = ", ".join(sorted(EXTENSIONS))
            return str(path), f"the folder {path} holds no images ({kinds}); give another one"
        if not os.path.exists(path):
            return str(path), f"there is no image {path}; give a file, or a folder of images"
        try:
            # As the validation loader of the training did.
            if self._transform is not None:
                image = self._transform(read_image(Path(path)))
            elif height == width:
                image = read_image(Path(path), height)
            else:
                image = _resized(read_image(Path(path)), width, height)
        except UserError as e:
            # The advice that goes with it is for training.
            said = e.message.rpartition(";")[0] or e.message
            return str(path), said.rstrip(".")
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
    """Return the run's folder, the file of weights if it was given, and the method."""
    if where.is_dir():
        return where, None, method
    if where.suffix != ".safetensors":
        if where.is_file():
            raise UserError(
                f"{where} does not say what model and classes it is of; make a run of it, with "
                f"`ltlearn retrain --arch NAME --checkpoint {where} --data DIR`, and give its "
                "folder."
            )
        raise UserError(f"there is no run {where}; give a run's folder, or a .safetensors file.")
    if not where.is_file():
        raise UserError(
            f"there is no file {where}; give one of a run's checkpoints, or its folder."
        )
    beside = (folder for folder in (where.parent, where.absolute().parent.parent))
    folder = next((f for f in beside if (f / MODEL_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"there is no {MODEL_FILE} beside {where} or in the folder above, which says what the "
            "weights are of; give the run's folder, or copy its file there."
        )
    own = where.stem.partition("-")[2]
    if own == "stage1":
        known = _read_facts(folder)["methods"]
        # Where no row of the run is stage 1's, its classifier is not trained.
        own = next((m for m in known if m in METHODS and METHODS[m].kind == "stage 1"), own)
    if method is not None and method != own:
        raise UserError(f"{where} holds the method {own or where.stem!r}, not {method!r}.")
    return folder, where, own


def _read_facts(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    if not (folder / MODEL_FILE).is_file():
        manifest = run.read_json("manifest.json")
        finished = isinstance(manifest, dict) and manifest.get("status") == "finished"
        why = "an earlier version of ltlearn made it" if finished else "it is not finished"
        raise UserError(
            f"the run {folder} has no {MODEL_FILE}, as {why}; its own command (in manifest.json) "
            "with --resume writes one."
        )
    facts = run.read_json(MODEL_FILE)
    if not isinstance(facts, dict) or any(k not in facts for k in (*_KEYS, "methods")):
        raise UserError(f"{folder / MODEL_FILE} is damaged: it does not describe a model.")
    if facts.get("format") != _FORMAT:
        raise UserError(
            f"{folder / MODEL_FILE} is of format {facts.get('format')!r}, which this version of "
            "ltlearn does not know; take a newer one."
        )
    return facts


def _load_model(facts: dict[str, Any], weights: Path) -> LTModel:
    state = Run(weights.parent).load_tensors(weights.name)
    size = tuple(facts["size"])
    model = create_lt_model(facts["arch"], len(facts["classes"]), False, size, **facts["arguments"])
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"the weights in {weights} are not those of {facts['arch']}.") from None
    return model


def find_images(paths: Iterable[Path]) -> Iterator[str]:
    """Yield files as they are, and the images in folders, in the natural order of their names.

    Args:
        paths: Files and folders; hidden files in folders are left out. A folder without an image
            comes itself.
    """
    return chain.from_iterable(map(_images_in, paths))


def _images_in(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield str(path)
        return
    found = False
    # os.walk does not follow links to folders, so a loop of links cannot trap it.
    for base, inner, files in os.walk(path):
        inner[:] = sorted((d for d in inner if d[0] != "."), key=natural_key)
        for name in sorted(files, key=natural_key):
            if name[0] != "." and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found = True
                yield os.path.join(base, name)
    if not found:
        yield str(path)
