"""Open a model that was exported: a folder of timm, or an ONNX file that ltlearn wrote."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltlearn.defaults import MAX_SIDE
from ltlearn.errors import UserError
from ltlearn.exporting.facts import ExportFacts
from ltlearn.exporting.onnx_file import INPUT, METADATA_KEY, OUTPUT, import_onnxruntime
from ltlearn.exporting.source import Preprocessing
from ltlearn.exporting.timm_folder import CONFIG_FILE, FACTS_KEY
from ltlearn.utils.system_errors import reason_of, unreadable

__all__ = ["OpenedExport", "is_timm_folder", "open_onnx", "open_timm"]

_log = logging.getLogger("ltlearn")
_MAX_CONFIG_BYTES = 64 << 20
_REASON = 200  # characters of an error of another library in a message


@dataclass(frozen=True)
class OpenedExport:
    """An exported model.

    Args:
        model: Returns logits of normalised images.
        classes: The names of the classes.
        preprocessing: How an image becomes the input.
        transform: Brings an image into its final shape, if timm's configuration decides how.
        facts: What ltlearn wrote into the export; None if another program made it.
    """

    model: Callable[[Tensor], Tensor]
    classes: Sequence[str]
    preprocessing: Preprocessing
    transform: Callable[[np.ndarray], np.ndarray] | None
    facts: ExportFacts | None

    @property
    def method(self) -> str:
        """Return the method that made the classifier; "" if none is known."""
        return "" if self.facts is None else self.facts.method


def is_timm_folder(folder: Path) -> bool:
    """Return whether a folder holds a model as timm saves it.

    Args:
        folder: The folder.
    """
    return (folder / CONFIG_FILE).is_file()


def open_timm(folder: Path, device: torch.device) -> OpenedExport:
    """Load a folder of timm, which ltlearn or any other program wrote.

    Args:
        folder: The folder.
        device: Where the model runs.

    Raises:
        UserError: If timm cannot load it, its model does not take RGB images, or is far larger
            than the weights in the folder.
    """
    import timm

    import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)

    facts = _facts_of_config(folder / CONFIG_FILE)
    try:
        # Its configuration may ask for a network of any size, so it is made without memory first.
        with torch.device("meta"):
            _check_size(timm.create_model(f"local-dir:{folder}"), folder)
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as e:  # timm passes on whatever reading the files raises
        raise UserError(
            f"timm cannot load the folder {folder} ({_reason(e)}); give a folder with "
            f"{CONFIG_FILE} and model.safetensors, as timm and ltlearn write it."
        ) from e
    model = model.to(device).eval()
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    if channels != 3:
        raise UserError(f"the model in {folder} takes {channels} channels, not RGB images.")
    if facts is not None:
        return OpenedExport(model, facts.classes, _preprocessing(facts), None, facts)
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    steps = Preprocessing(tuple(size), mean, std, in_memory=False)
    # With a prefetcher, timm leaves the pixels as whole numbers, and normalises later.
    resize = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)

    def transform(image: np.ndarray) -> np.ndarray:
        return np.asarray(resize(Image.fromarray(image))).transpose(1, 2, 0)

    return OpenedExport(model, _label_names(model, folder), steps, transform, None)


def _check_size(model: torch.nn.Module, folder: Path) -> None:
    """Raise a `ValueError` if a model or its images would take far more memory than the files."""
    numbers = sum(values.numel() for values in model.state_dict().values())
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if numbers > stored:
        raise ValueError(f"it describes {numbers:,} numbers, but its files have {stored:,} bytes")
    size = model.pretrained_cfg["input_size"]
    if max(size) > MAX_SIDE:
        raise ValueError(f"its input_size is {size}, and the largest side is {MAX_SIDE}")


def open_onnx(file: Path) -> OpenedExport:
    """Load an ONNX file that ltlearn wrote. It runs on the CPU.

    Args:
        file: The file.

    Raises:
        UserError: If onnxruntime is missing, or the file is damaged or from elsewhere.
    """
    onnxruntime = import_onnxruntime()
    try:
        # From bytes, so that the graph cannot name further files.
        session = onnxruntime.InferenceSession(
            file.read_bytes(), providers=["CPUExecutionProvider"]
        )
    except OSError as e:
        raise unreadable(file, e) from e
    except Exception as e:  # onnxruntime has errors of its own, without a common class
        raise UserError(f"onnxruntime cannot load {file} ({_reason(e)}); export it again.") from e
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    names = [[one.name for one in ends] for ends in (session.get_inputs(), session.get_outputs())]
    if text is None or names != [[INPUT], [OUTPUT]]:
        raise UserError(
            f"{file} does not name its classes and its statistics, because ltlearn did not write "
            "it; export the model with ltlearn."
        )
    try:
        facts = ExportFacts.from_dict(json.loads(text))
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"the metadata of {file} is damaged ({_reason(e)}); export it again."
        ) from e
    steps = _preprocessing(facts)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (steps.mean, steps.std))

    def model(images: Tensor) -> Tensor:
        if facts.normalize:
            images = images.cpu() * std + mean
        pixels = np.ascontiguousarray(images.cpu().numpy())
        return torch.from_numpy(session.run([OUTPUT], {INPUT: pixels})[0])

    return OpenedExport(model, facts.classes, steps, None, facts)


def _facts_of_config(path: Path) -> ExportFacts | None:
    """Return what ltlearn wrote into a config.json; None if another program made it."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise UserError(f"{path} is too large for the configuration of a model.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise unreadable(path, e) from e
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path} is no JSON ({_reason(e)}); copy the folder again.") from e
    own: Any = content.get(FACTS_KEY) if isinstance(content, dict) else None
    if own is None:
        return None
    try:
        return ExportFacts.from_dict(own)
    except UserError as e:
        raise UserError(f"{path} is damaged: {e}") from None


def _label_names(model, folder: Path) -> list[str]:
    """Return the class names in a configuration of timm; numbers if it has none."""
    names = model.pretrained_cfg.get("label_names") or ()
    if isinstance(names, dict):  # the number of an output, as a text, to its name
        names = [names.get(str(c), str(c)) for c in range(model.num_classes)]
    if len(names) != model.num_classes:
        _log.warning(
            "%s does not name its %d classes (label_names), so they have numbers",
            folder / CONFIG_FILE, model.num_classes,
        )  # fmt: skip
        names = range(model.num_classes)
    return [str(name) for name in names]


def _preprocessing(facts: ExportFacts) -> Preprocessing:
    mean, std, size = tuple(facts.mean), tuple(facts.std), tuple(facts.size)
    return Preprocessing(size, mean, std, facts.in_memory, facts.bits)


def _reason(e: Exception) -> str:
    return reason_of(e)[:_REASON].rstrip(".")
