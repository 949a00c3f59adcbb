"""Write a model as a folder that timm loads without ltlearn."""

import errno
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ltlearn.models.cifar_resnet as cifar_resnet
from ltlearn.errors import UserError
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.portable import check_logits, copy_for_export
from ltlearn.exporting.source import ExportSource
from ltlearn.heads.registry import as_linear
from ltlearn.models.adapters import has_branches, merge_lora
from ltlearn.utils.interrupts import deferred_interrupt
from ltlearn.utils.locks import locked
from ltlearn.utils.system_errors import reason_of, unwritable
from ltlearn.utils.text import short_repr

__all__ = [
    "CIFAR_FILE",
    "CIFAR_MODULE",
    "CONFIG_FILE",
    "FACTS_KEY",
    "WEIGHTS_FILE",
    "export_timm_folder",
    "module_of_export",
    "timm_code",
]

_log = logging.getLogger("ltlearn")
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
CIFAR_MODULE, CIFAR_FILE = cifar_resnet.__name__, "cifar_resnet.py"
# The key of config.json with what ltlearn needs to predict; timm ignores it.
FACTS_KEY = "ltlearn"
# Entries of timm's configuration about other weights than the exported ones.
_OF_OTHER_WEIGHTS = (
    "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag", "custom_load",
    "label_offset", "label_names", "label_descriptions", "test_input_size", "test_crop_pct",
    "min_input_size", "pool_size", "test_pool_size", "notes", "architecture",
)  # fmt: skip


def export_timm_folder(
    source: ExportSource, folder: Path, label_descriptions: Mapping[str, str] | None = None
) -> Exported:
    """Write a folder with `config.json` and `model.safetensors`, and load it to check the logits.

    Args:
        source: The model.
        folder: The folder; it is made if there is none, and the files in it are replaced.
        label_descriptions: A longer text for each class name.

    Raises:
        UserError: If a description is no text or of no class, timm has no such architecture, the
            head does not fold into a linear layer, or the folder cannot be written.
    """
    _check_descriptions(label_descriptions, source.classes)
    model = copy_for_export(source.model)
    whole = _whole_model(model, len(source.classes))
    config = _config(source, whole, dict(label_descriptions or {}))
    architecture = config["architecture"]
    module = _module_of(architecture)
    folder = folder.expanduser()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as temporary:
            _write(Path(temporary), config, whole.state_dict(), module)
            loaded = _load(temporary, architecture)
            difference = check_logits(source, loaded, normalized=True)
            folder.mkdir(exist_ok=True)
            _move_files(Path(temporary), folder)
    except OSError as e:
        raise unwritable(folder, e, "give another folder") from e
    notes = [text for text in (_module_note(architecture, module), source.preprocessing.note())
             if text]  # fmt: skip
    return Exported("timm", folder, difference, timm_code(f"local-dir:{folder}", module), notes)


def _check_descriptions(descriptions: Any, classes: Sequence[str]) -> None:
    if descriptions is None:
        return
    if not isinstance(descriptions, Mapping):
        raise UserError(
            "label_descriptions must be a dictionary of class name and text, got a "
            f"{type(descriptions).__name__}."
        )
    known = set(classes)
    for name, text in descriptions.items():
        if name not in known or not isinstance(text, str):
            raise UserError(
                f"label_descriptions has {short_repr(name)}: {short_repr(text)}; give a text for "
                "the name of a class."
            )


def _move_files(source: Path, folder: Path) -> None:
    """Move all files or none, so that no configuration stands beside weights of another export."""
    files = list(source.iterdir())
    with locked(folder / ".lock", _report_wait), deferred_interrupt():
        for file in files:
            if (folder / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{file.name} is a folder there")
        for file in files:
            file.replace(folder / file.name)


def _report_wait(holder: str) -> None:
    _log.warning("another export writes to the folder (%s); waiting for it.", holder)


def _load(folder: str, architecture: str) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as e:  # timm passes on whatever an architecture raises
        reason = reason_of(e)[:200].rstrip(".")
        raise UserError(
            f"timm cannot load {architecture} from a folder ({reason}); export it to ONNX or "
            "TorchScript."
        ) from e


def timm_code(name: str, module: str = "", repo: str = "") -> str:
    """Return lines of Python that load a folder with timm.

    Args:
        name: The name for `timm.create_model`.
        module: The module to import first; "" if timm has the architecture.
        repo: The repository of the hub, if it is there.
    """
    lines = ["import timm", "from PIL import Image"]
    if module == CIFAR_MODULE:
        folder = repr(name.removeprefix("local-dir:"))
        if repo:
            lines.insert(1, "from huggingface_hub import snapshot_download")
            folder = f"snapshot_download({repo!r})"
        lines = ["import sys", "", *lines, "", f"sys.path.insert(0, {folder})",
                 "import cifar_resnet  # registers the architecture"]  # fmt: skip
    elif module:
        lines += [f"import {module}  # registers the architecture"]
    return "\n".join([
        *lines,
        "",
        f"model = timm.create_model({name!r}, pretrained=True).eval()",
        "config = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**config, is_training=False)",
        'image = Image.open("photo.jpg").convert("RGB")',
        "logits = model(transform(image)[None])",
        'print(model.pretrained_cfg["label_names"][logits[0].argmax()])',
    ])  # fmt: skip


def module_of_export(folder: Path) -> str:
    """Return the module that registers the architecture of an export; "" for timm's own.

    Args:
        folder: The folder that `export_timm_folder` wrote.
    """
    return _module_of(json.loads((folder / CONFIG_FILE).read_text("utf-8"))["architecture"])


def _whole_model(model: nn.Module, classes: int) -> nn.Module:
    """Return timm's model with its own classifier, which holds the folded head."""
    backbone, head = model.backbone, model.head
    others = "export it to ONNX or TorchScript, which keep it as it is"
    try:
        linear = as_linear(head)
    except UserError:
        raise UserError(
            f"timm's models end in a linear layer, and this head ({type(head).__name__}) cannot "
            f"be folded into one; {others}."
        ) from None
    if has_branches(backbone):
        raise UserError(
            "timm's models have no place for AdaptFormer's branches, which no weights of theirs "
            f"replace; {others}."
        )
    merge_lora(backbone)
    config = getattr(backbone, "pretrained_cfg", None) or {}
    architecture = getattr(backbone, "model_name", None) or config.get("architecture")
    if not architecture or not timm.is_model(architecture):
        raise UserError(f"the backbone ({type(backbone).__name__}) is no model of timm; {others}.")
    args = {**_model_args(backbone), "num_classes": classes}
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(architecture, pretrained=False, **args).eval()
    state = {**backbone.state_dict(), **_classifier_state(whole, linear)}
    try:
        whole.load_state_dict(state, strict=False)
    except RuntimeError as e:  # learners that earlier versions exported do not have the arguments
        raise UserError(
            f"the arguments that {architecture} was made with are not known; make the learner by "
            "lt_learner with them, and load the weights into it."
        ) from e
    whole.model_args, whole.model_name = args, architecture
    return whole


def _model_args(backbone: nn.Module) -> dict[str, Any]:
    """Return the arguments that the backbone was made with."""
    recorded = getattr(backbone, "model_args", {})
    args = {**getattr(backbone, "pretrained_model_args", {}), **recorded}
    args = {k: list(v) if isinstance(v, tuple) else v for k, v in args.items()}
    args.pop("num_classes", None)
    try:
        json.dumps(args)
    except TypeError as e:
        raise UserError(
            f"an argument of the architecture cannot be written to {CONFIG_FILE} ({e}); give "
            "arguments of lt_learner as numbers, texts and lists."
        ) from None
    return args


def _classifier_state(whole: nn.Module, linear: nn.Linear) -> dict[str, Tensor]:
    """Return the weights of timm's classifier, or of each of several that are averaged."""
    layers = whole.get_classifier()
    layers = layers if isinstance(layers, tuple | list) else (layers,)
    state = {}
    for name, module in whole.named_modules():
        if not any(module is layer for layer in layers):
            continue
        own = module.state_dict()
        weight = [
            k for k in own if k.endswith("weight") and own[k].numel() == linear.weight.numel()
        ]
        bias = [k for k in own if k == weight[0].replace("weight", "bias")] if weight else []
        if len(weight) != 1 or (linear.bias is not None and not bias):
            break
        state[f"{name}.{weight[0]}"] = linear.weight.reshape(own[weight[0]].shape)
        if bias:
            values = linear.bias
            state[f"{name}.{bias[0]}"] = (
                torch.zeros(len(own[bias[0]])) if values is None else values
            )
    else:
        if state:
            return state
    raise UserError(
        f"the classifier of {type(whole).__name__} is not a linear layer with a bias, so that timm "
        "cannot hold the trained one; export it to ONNX or TorchScript."
    )


def _config(
    source: ExportSource, whole: nn.Module, label_descriptions: dict[str, str]
) -> dict[str, Any]:
    """Return the content of config.json, as timm writes it."""
    own = {k: v for k, v in whole.pretrained_cfg.items() if k not in _OF_OTHER_WEIGHTS}
    if not source.is_pretrained:
        own = {k: v for k, v in own.items() if k not in ("license", "description", "origin_url",
                                                         "paper_name", "paper_ids")}  # fmt: skip
    classes = len(source.classes)
    cfg = {**own, **source.preprocessing.timm_config(), "num_classes": classes}
    cfg["pool_size"] = None
    config = {
        "architecture": whole.model_name,
        "num_classes": classes,
        "num_features": whole.num_features,
        "label_names": list(source.classes),
        "model_args": whole.model_args,
        "pretrained_cfg": {k: v for k, v in cfg.items() if v is not None or k == "pool_size"},
        FACTS_KEY: source.facts().to_dict(),
    }
    if label_descriptions:
        config["label_descriptions"] = label_descriptions
    return config


def _module_of(architecture: str) -> str:
    """Return the module that registers an architecture; "" for timm's own."""
    module = timm.models.model_entrypoint(architecture).__module__
    return "" if module.partition(".")[0] == "timm" else module


def _module_note(architecture: str, module: str) -> str:
    if module == CIFAR_MODULE:
        return (
            f"timm does not have {architecture}: import cifar_resnet.py first, which is in the "
            "folder and needs torch and timm alone."
        )
    if module:
        return f"timm does not have {architecture}; import {module}, which adds it, first."
    return ""


def _write(folder: Path, config: dict, state: Mapping[str, Tensor], module: str) -> None:
    # Weights that two layers share are written twice: timm reads them so.
    tensors = {k: v.detach().clone().contiguous() for k, v in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    if module == CIFAR_MODULE:
        shutil.copyfile(sys.modules[module].__file__, folder / CIFAR_FILE)
