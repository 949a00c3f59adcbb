"""Open a model that was exported: a folder of timm, or an ONNX file that ltlearn wrote."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

    config, facts = _read_config(folder / CONFIG_FILE)
    with _loading(folder), torch.random.fork_rng(devices=[]):
        # The configuration may ask for a network of any size, so it is made without memory first.
        with torch.device("meta"):
            _check_size(timm.create_model(f"local-dir:{folder}"), folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).to(device).eval()
    stated = config.get("num_classes", model.num_classes)
    if stated != model.num_classes:  # timm then leaves the stored classifier out
        raise UserError(
            f"{folder / CONFIG_FILE} is damaged: num_classes is {stated!r}, but the arguments of "
            f"the model make {model.num_classes} classes; copy the folder again."
        )
    if facts is not None:
        opened = OpenedExport(model, facts.classes, _preprocessing(facts), None, facts)
    else:
        with _loading(folder):
            steps, transform = _steps_of_timm(model)
        opened = OpenedExport(model, _label_names(model, folder), steps, transform, None)
    _check_output(opened, folder, device)
    return opened


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Name the folder in whatever timm raises about its files inside the block."""
    try:
        yield
    except Exception as e:  # timm passes on whatever reading the files raises
        raise UserError(
            f"timm cannot load the folder {folder} ({_reason(e)}); give a folder with "
            f"{CONFIG_FILE} and model.safetensors, as timm and ltlearn write it."
        ) from e


def _steps_of_timm(model: Any) -> tuple[Preprocessing, Callable[[np.ndarray], np.ndarray]]:
    """Return the input of a model and how an image gets its shape, by timm's configuration."""
    import timm

    config = timm.data.resolve_model_data_config(model)
    channels, *size = map(int, config["input_size"])
    if channels != 3:
        raise UserError(f"it takes {channels} channels, not RGB images")
    if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
        raise UserError(f"input_size = {config['input_size']} is no size of an image")
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise UserError(f"mean = {mean} and std = {std} cannot normalise an image")
    # With a prefetcher, timm leaves the pixels as whole numbers, and normalises later.
    resize = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)

    def transform(image: np.ndarray) -> np.ndarray:
        return np.asarray(resize(Image.fromarray(image))).transpose(1, 2, 0)

    return Preprocessing((size[0], size[1]), mean, std, in_memory=False), transform


@torch.no_grad()
def _check_output(opened: OpenedExport, where: Path, device: torch.device) -> None:
    """Raise a `UserError` unless the model gives a finite number for each class."""
    images = torch.zeros(1, 3, *opened.preprocessing.size, device=device)
    try:
        logits = opened.model(images)
    except Exception as e:  # torch and onnxruntime raise errors of many kinds
        raise UserError(
            f"the model in {where} does not take images of {images.shape[2]} x {images.shape[3]} "
            f"pixels, the size that is stored with it ({_reason(e)}); export it again."
        ) from e
    if logits.shape != (1, len(opened.classes)):
        raise UserError(
            f"the model in {where} gives logits of shape {tuple(logits.shape)} for one image, but "
            f"it has the names of {len(opened.classes)} classes; export it again."
        )
    if not logits.isfinite().all():
        raise UserError(
            f"the model in {where} gives no finite logits: its weights are damaged, or the "
            "training diverged; export it again, or train with a lower learning rate."
        )


def _check_size(model: torch.nn.Module, folder: Path) -> None:
    """Raise a `ValueError` if a model would take far more memory than its files."""
    numbers = sum(values.numel() for values in model.state_dict().values())
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if numbers > stored:
        raise ValueError(f"it describes {numbers:,} numbers, but its files have {stored:,} bytes")


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

    opened = OpenedExport(model, facts.classes, steps, None, facts)
    _check_output(opened, file, torch.device("cpu"))
    return opened


def _read_config(path: Path) -> tuple[dict[str, Any], ExportFacts | None]:
    """Return a config.json, and what ltlearn wrote into it; None if another program made it."""
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
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is damaged: it holds a {type(content).__name__} in place of keys and values; "
            "copy the folder again."
        )
    own: Any = content.get(FACTS_KEY)
    try:
        return content, None if own is None else ExportFacts.from_dict(own)
    except UserError as e:
        raise UserError(
            f"{path} is damaged: {e.message.rstrip('.')}; copy the folder or export it again."
        ) from None


def _label_names(model, folder: Path) -> list[str]:
    """Return the class names in a configuration of timm; numbers if it has none."""
    names = model.pretrained_cfg.get("label_names") or ()
    if isinstance(names, dict):  # the number of an output, as a text, to its name
        names = [names.get(str(c), str(c)) for c in range(model.num_classes)]
    if not isinstance(names, list | tuple) or len(names) != model.num_classes:
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
