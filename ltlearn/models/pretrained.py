"""Create a timm model as backbone and head, and load its weights."""

import difflib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)
from ltlearn.errors import UserError, spell
from ltlearn.heads.registry import head_from_state
from ltlearn.models.backbone import HEAD_NAMES, LTModel, evaluating
from ltlearn.utils.stored_weights import check_stored_weights

__all__ = ["check_weights", "create_lt_model", "is_outside_arch"]

_log = logging.getLogger("ltlearn")
_FORMATS = (
    "give a model's state_dict() as saved by safetensors (.safetensors) or by torch.save "
    "(.pth, .pt, .bin)"
)
# Tensors that a file may hold or lack, because they follow from the other tensors.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


def create_lt_model(
    arch: str,
    num_classes: int,
    pretrained: bool | str | Path = True,
    img_size: int | tuple[int, int] | None = None,
    keep_head: bool = False,
    **kwargs,
) -> LTModel:
    """Create any timm model as a backbone with pooled features and a linear head.

    Args:
        arch: A name from `timm.list_models()`.
        num_classes: C, at least 2.
        pretrained: True downloads timm's weights; a path loads a file (safetensors or .pth); False
            starts from random weights.
        img_size: Side of the images in pixels, or (height, width). Only models with a fixed image
            size (ViT, Swin) use it.
        keep_head: Whether to take the classifier from the file too. Its classes must be the same,
            in the same order.
        **kwargs: Arguments of `timm.create_model`, such as `width=64` for the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` (similar names are suggested) or an argument, the
            model does not accept the image size, the file does not hold exactly the weights of the
            backbone, its classifier is missing or has other classes, or the weights cannot be
            downloaded.

    Example:
        >>> model = create_lt_model("resnet32_cifar", num_classes=100, pretrained=False)
        >>> model.head
        Linear(in_features=64, out_features=100, bias=True)
    """
    config = _find_config(arch)
    if keep_head and not isinstance(pretrained, str | Path):
        raise UserError(
            f"keep_head=True takes the classifier from a weights file, but pretrained is "
            f"{pretrained!r}; give the path of the file."
        )
    if config is not None and img_size is not None and config.fixed_input_size:
        height, width = _sides(img_size)
        kwargs.setdefault("img_size", height if height == width else (height, width))
    state = None
    if isinstance(pretrained, str | Path):
        path = Path(pretrained).expanduser()
        state = _read_weights(path)
        backbone = _create_from_file(arch, path, _backbone_state(state), kwargs)
    else:
        if pretrained and config is not None and not config.has_weights:
            _log.warning("%s has no pre-trained weights; it starts from random weights", arch)
            pretrained = False
        if pretrained or config is None:
            _check_hub(arch, config)
        backbone = _create(arch, pretrained, kwargs)
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    if keep_head:
        return LTModel(backbone, _head_from_file(state, arch, path, width, num_classes))
    return LTModel(backbone, nn.Linear(width, num_classes))


def check_weights(arch: str) -> bool:
    """Return whether timm has weights of a model; raise an error if they cannot be downloaded.

    Args:
        arch: A name from `timm.list_models()`.

    Raises:
        UserError: If timm does not know `arch`, or its weights are neither in the cache nor within
            reach.
    """
    config = _find_config(arch)
    if config is not None and not config.has_weights:
        return False
    _check_hub(arch, config)
    return True


def is_outside_arch(arch: str) -> bool:
    """Return whether timm takes an architecture from the Hugging Face hub, or from a folder."""
    return arch.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


# ------------------------------------------------------------------ timm's models


def _find_config(arch: str):
    """Return timm's configuration of a model's weights; None for a model of the hub or a folder."""
    if not isinstance(arch, str):
        raise UserError(f"arch must be a name from timm.list_models(), got {arch!r}.")
    name = arch.split(".")[0]
    if not is_outside_arch(arch) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` has all names."
        )
        raise UserError(f"timm has no model {spell('arch', arch)}; {hint}")
    return timm.get_pretrained_cfg(arch) if timm.is_model(name) else None


def _create(arch: str, pretrained: bool, kwargs: dict) -> nn.Module:
    try:
        backbone = timm.create_model(arch, pretrained=pretrained, num_classes=0, **kwargs)
    except Exception as e:
        size_errors = (AssertionError, ArithmeticError)
        if not pretrained:  # a failed download can raise these two as well
            size_errors += (ValueError, RuntimeError)
        if isinstance(e, size_errors) and _is_odd_size(arch, kwargs.get("img_size")):
            raise _size_error(arch, kwargs["img_size"], e) from e
        if isinstance(e, TypeError) and kwargs:
            raise UserError(
                f"timm's {arch} does not take {', '.join(kwargs)} ({_first_line(e)})."
            ) from e
        if pretrained:
            raise _download_error(arch, _first_line(e)) from e
        raise
    _check_odd_size(backbone, arch, kwargs)
    return backbone


@torch.no_grad()
def _check_odd_size(backbone: nn.Module, arch: str, kwargs: dict) -> None:
    """Run one image of an unusual size: some models raise an error only in their first pass."""
    size = kwargs.get("img_size")
    if not _is_odd_size(arch, size):
        return
    try:
        with evaluating(backbone):
            backbone(torch.zeros(1, kwargs.get("in_chans", 3), *_sides(size)))
    except Exception as e:
        raise _size_error(arch, size, e) from e


def _is_odd_size(arch: str, img_size: int | tuple[int, int] | None) -> bool:
    """Return whether an image size is given that differs from the model's own."""
    config = timm.get_pretrained_cfg(arch) if timm.is_model(arch.split(".")[0]) else None
    if img_size is None or config is None:
        return False
    return _sides(img_size) != tuple(config.input_size[1:])


def _sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


def _size_error(arch: str, img_size: int | tuple[int, int], e: Exception) -> UserError:
    height, width = _sides(img_size)
    return UserError(
        f"{arch} does not take images of {height} x {width} pixels ({_first_line(e)}); choose "
        "another image size, or a convolutional model."
    )


def _first_line(e: Exception) -> str:
    return next(iter(str(e).splitlines()), type(e).__name__)


# ------------------------------------------------------------------ weights from a file


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a timm model or of an `LTModel`."""
    if not path.is_file():
        raise UserError(
            f"there is no weights file {path}; give a .safetensors or .pth file, or "
            f"{spell('pretrained', False)}."
        )
    check_stored_weights(path)
    try:
        state = timm.models.load_state_dict(path, weights_only=True)
    except Exception as e:
        if "Unsupported global" in f"{e} {e.__cause__}":
            raise UserError(
                f"{path} holds Python objects besides tensors, which could run code when loaded, "
                "so it is not opened; save the model's state_dict() alone, best as .safetensors."
            ) from None
        if isinstance(e, OSError):
            raise UserError(f"the weights in {path} cannot be read ({e.strerror or e}).") from e
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch tensors"
        raise UserError(
            f"{path} cannot be read: it is no file of {kind}, or damaged; {_FORMATS}."
        ) from e
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        names = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise UserError(f"{path} holds {names}, but no named tensors; {_FORMATS}.")
    return tensors


def _select(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _backbone_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's part of an `LTModel`; all tensors of another model."""
    return _select(state, "backbone.") or state


def _head_from_file(
    state: dict[str, Tensor], arch: str, path: Path, width: int, num_classes: int
) -> nn.Module:
    """Build the classifier that a state dict holds."""
    new = f"start with a new one ({spell('keep_head', False)})"
    name = "head"
    if _select(state, "backbone."):
        parts = _select(state, "head.")
    else:
        name = getattr(_find_config(arch), "classifier", None)
        if not isinstance(name, str):
            problem = "has several classifiers" if name else "has no classifier known to timm"
            raise UserError(f"{arch} {problem}, so none can be kept; {new}.")
        parts = {k: v for k, v in _select(state, f"{name}.").items() if k in ("weight", "bias")}
        if "weight" in parts:
            # A classifier can also be a 1 x 1 convolution.
            parts["weight"] = parts["weight"].flatten(1)
    head = head_from_state(parts)
    if head is None:
        raise UserError(
            f"{path} has no classifier (no {name}.weight) to keep; give the file of the whole "
            f"model, or {new}."
        )
    if head.out_features != num_classes:
        raise UserError(
            f"the classifier in {path} has {head.out_features} classes, but the data has "
            f"{num_classes}; both must have the same classes in the same order, or {new}."
        )
    if head.in_features != width:
        raise UserError(
            f"the classifier in {path} takes {head.in_features} features, but {arch} gives {width}."
        )
    head.load_state_dict(parts)
    return head


def _create_from_file(arch: str, path: Path, state: dict[str, Tensor], kwargs: dict) -> nn.Module:
    """Create a backbone with the weights of a file, which must hold exactly those it needs."""
    backbone = _create(arch, False, kwargs)
    try:
        state = _filter_of(backbone)(dict(state), backbone)
    except Exception as e:  # timm's filters expect the layout of published files
        raise _fit_error(path, arch, kwargs, _first_line(e)) from e
    own = backbone.state_dict()
    wrong = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    if wrong:
        raise _fit_error(path, arch, kwargs, _describe_sizes(wrong, state, own))
    missing, unused = _find_differences(backbone, arch, state)
    problems = []
    if missing:
        problems.append(f"the file lacks {_some(missing)}")
    if unused:
        owner = "it" if missing else "the file"
        problems.append(f"{owner} has {_some(unused)}, which {arch} does not use")
    if problems:
        raise _fit_error(path, arch, kwargs, ", and ".join(problems))
    backbone.load_state_dict(state, strict=False)
    return backbone


def _filter_of(backbone: nn.Module) -> Callable[[dict, nn.Module], dict]:
    """Return timm's filter, which converts published files to the layout of a model.

    It also resizes position embeddings to another image size. A model without a filter takes the
    tensors of a file unchanged.
    """
    name = backbone.pretrained_cfg.get("architecture")
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    return getattr(module, "checkpoint_filter_fn", lambda state, _: state)


def _find_differences(
    backbone: nn.Module, arch: str, state: dict[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Return the tensors that a backbone needs and the file lacks, and those it does not use."""
    own = backbone.state_dict()
    parameters = {k for k, _ in backbone.named_parameters()}
    missing = [
        k
        for k in own
        if k not in state and (k in parameters or k.endswith(("running_mean", "running_var")))
    ]
    # A file may hold classifiers, which the caller reads, and tables of attention.
    classifiers = getattr(_find_config(arch), "classifier", None) or ()
    heads = {*HEAD_NAMES, *((classifiers,) if isinstance(classifiers, str) else classifiers)}
    unused = [
        k
        for k in state
        if k not in own
        and not k.startswith(tuple(f"{head}." for head in heads))
        and k.rpartition(".")[2] not in _DERIVED
    ]
    return missing, unused


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"a tensor {names[0]}"
    return f"{len(names)} tensors such as {names[0]}"


def _describe_sizes(wrong: list[str], state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Describe the first tensor whose size differs between the file and the model."""
    in_file, in_model = (
        " x ".join(map(str, tensors[wrong[0]].shape)) or "a number" for tensors in (state, own)
    )
    more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    return f"{wrong[0]} is {in_file} in the file, but {in_model} in the model{more}"


def _fit_error(path: Path, arch: str, kwargs: dict, problem: str) -> UserError:
    remedy = f"give the {spell('arch')} of the file"
    if "width" in kwargs or arch.split(".")[0].endswith("_cifar"):
        remedy += f", and its width ({spell('model.width', 64)} for example)"
    return UserError(f"the weights in {path} do not fit {arch} ({problem.rstrip('.')}); {remedy}.")


# ------------------------------------------------------------------ weights from the hub


def _check_hub(arch: str, config) -> None:
    """Raise an error before a long download if the weights are neither cached nor within reach."""
    import huggingface_hub
    from huggingface_hub import constants

    scheme, _, name = arch.partition(":")
    hub_id = name if scheme in ("hf-hub", "hf_hub") else getattr(config, "hf_hub_id", None)
    if not hub_id:
        return
    repo, _, revision = hub_id.partition("@")
    files = ["model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"]
    own_file = getattr(config, "hf_hub_filename", None)
    if own_file:
        files = [own_file, str(Path(own_file).with_suffix(".safetensors")), *files]
    for file in files:
        if isinstance(
            huggingface_hub.try_to_load_from_cache(repo, file, revision=revision or None), str
        ):
            return
    if constants.HF_HUB_OFFLINE:
        raise _download_error(arch, "HF_HUB_OFFLINE is set and they are not in the cache")
    try:
        huggingface_hub.HfApi().model_info(
            repo, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception as e:  # errors of the HTTP library, which differs between versions of the hub
        raise _download_error(arch, _first_line(e)) from e


def _download_error(arch: str, problem: str) -> UserError:
    return UserError(
        f"the pre-trained weights of {arch} cannot be downloaded ({problem.rstrip('.')}); use "
        f"{spell('pretrained', False)} to start from random weights, or "
        f"{spell('pretrained', 'FILE')} to load a file."
    )
