"""Create a timm model as backbone and head, and load its weights."""

import difflib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)
from ltlearn.errors import UserError, spell, spell_call
from ltlearn.models.backbone import (
    HEAD_NAMES,
    LTModel,
    evaluating,
    fit_adapters_to_shapes,
)
from ltlearn.models.efficientnet_names import rename_efficientnet
from ltlearn.models.hub import check_hub, config_error, download_error, first_line
from ltlearn.models.kept_head import head_from_tensors, linear_classifier
from ltlearn.models.origin import Origin, find_origin
from ltlearn.models.weights_file import (
    FoundWeights,
    describe_some,
    find_weights,
    read_weights_file,
)

__all__ = ["LoadedModel", "check_arch_source", "check_weights", "create_lt_model", "load_lt_model"]

_log = logging.getLogger("ltlearn")
# Tensors that a file may hold or lack, because they follow from the other tensors.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the known facts about its weights.

    Args:
        model: The model.
        origin: What the file, or timm, states about the weights.
    """

    model: LTModel
    origin: Origin


def create_lt_model(
    arch: str,
    num_classes: int,
    pretrained: bool | str | Path = True,
    img_size: int | tuple[int, int] | None = None,
    keep_head: bool = False,
    weights_key: str | None = None,
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
            in the same order. The logits are then those of timm's model in evaluation mode.
        weights_key: Which weights of the file are taken if it holds several sets, such as
            "state_dict_ema". None takes the only set.
        **kwargs: Arguments of `timm.create_model`, such as `width=64` for the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` (similar names are suggested) or an argument, the
            model does not accept the image size, the file does not hold exactly the weights of the
            backbone or holds several sets, its classifier is missing, has other classes or is no
            linear layer, or the weights cannot be downloaded.

    Example:
        >>> model = create_lt_model("resnet32_cifar", num_classes=100, pretrained=False)
        >>> model.head
        Linear(in_features=64, out_features=100, bias=True)
    """
    options = {"keep_head": keep_head, "weights_key": weights_key}
    return load_lt_model(arch, num_classes, pretrained, img_size, options, **kwargs).model


def load_lt_model(
    arch: str,
    num_classes: int,
    pretrained: bool | str | Path,
    img_size: int | tuple[int, int] | None,
    options: Mapping[str, Any],
    **kwargs,
) -> LoadedModel:
    """Create a model as `create_lt_model` does, and return what is known about its weights.

    Args:
        arch: As for `create_lt_model`.
        num_classes: As for `create_lt_model`.
        pretrained: As for `create_lt_model`.
        img_size: As for `create_lt_model`.
        options: `keep_head` and `weights_key` of `create_lt_model`.
        **kwargs: Arguments of `timm.create_model`.

    Raises:
        UserError: As `create_lt_model` does.
    """
    config, is_file = _find_config(arch), isinstance(pretrained, str | Path)
    for name in ("keep_head", "weights_key"):
        if options.get(name) and not is_file:
            raise UserError(
                f"{spell(name, options[name])} needs a weights file, but pretrained is "
                f"{pretrained!r}; give the path of the file, or leave {name} out."
            )
    if config is not None and img_size is not None and config.fixed_input_size:
        height, width = _sides(img_size)
        kwargs.setdefault("img_size", height if height == width else (height, width))
    if is_file:
        return _load_file(arch, num_classes, Path(pretrained).expanduser(), options, kwargs)
    if pretrained and config is not None and not config.has_weights:
        _log.warning("%s has no pre-trained weights; it starts from random weights", arch)
        pretrained = False
    if pretrained or config is None:
        check_hub(arch, config, needs_weights=bool(pretrained))
    backbone = _create(arch, pretrained, kwargs)
    origin = find_origin(None, {}, arch, backbone.pretrained_cfg) if pretrained else Origin()
    return LoadedModel(LTModel(backbone, nn.Linear(_width_of(backbone), num_classes)), origin)


def _width_of(backbone: nn.Module) -> int:
    return getattr(backbone, "head_hidden_size", None) or backbone.num_features


def check_weights(arch: str, needed: bool = True) -> bool:
    """Return whether timm has weights of a model; raise an error if they cannot be downloaded.

    Args:
        arch: A name from `timm.list_models()`.
        needed: Whether the weights are wanted; False checks the configuration of a model of the
            hub alone.

    Raises:
        UserError: If timm does not know `arch`, or its weights or its configuration are neither in
            the cache nor within reach.
    """
    config = _find_config(arch)
    if config is not None and not (needed and config.has_weights):
        return False
    check_hub(arch, config, needs_weights=needed)
    return needed


def check_arch_source(arch: str, run: Path, allow_hub: bool) -> None:
    """Refuse the architecture of a run that timm takes from the hub or a folder, unless allowed.

    Args:
        arch: The architecture.
        run: The run's folder, for the message.
        allow_hub: Whether the user allows it.

    Raises:
        UserError: If it comes from outside and that is not allowed.
    """
    if _is_outside(arch) and not allow_hub:
        raise UserError(
            f"the run {run} has the architecture {arch!r}, which is fetched from outside; give "
            f"{spell('allow_hub', True)} if you trust it."
        )


def _is_outside(arch: str) -> bool:
    return arch.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


# ------------------------------------------------------------------ timm's models


def _find_config(arch: str):
    """Return timm's configuration of a model's weights; None for a model of the hub or a folder."""
    if not isinstance(arch, str):
        name = getattr(arch, "__name__", None)
        hint = f"; give arch={name!r}" if name and timm.is_model(name) else ""
        raise UserError(f"arch must be a name from timm.list_models(), got {arch!r}{hint}.")
    name = arch.split(".")[0]
    if not _is_outside(arch) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` has all names."
        )
        raise UserError(f"timm has no model {spell('arch', arch)}; {hint}")
    return timm.get_pretrained_cfg(arch) if timm.is_model(name) else None


def _create(arch: str, pretrained: bool, kwargs: dict) -> nn.Module:
    try:
        backbone = timm.create_model(arch, pretrained=pretrained, **{"num_classes": 0, **kwargs})
    except Exception as e:
        size_errors = (AssertionError, ArithmeticError)
        if not pretrained:  # a failed download can raise these two as well
            size_errors += (ValueError, RuntimeError)
        if isinstance(e, size_errors) and _is_odd_size(arch, kwargs.get("img_size")):
            raise _size_error(arch, kwargs["img_size"], e) from e
        if isinstance(e, TypeError) and kwargs:
            raise UserError(
                f"timm's {arch} does not take {', '.join(kwargs)} ({first_line(e)})."
            ) from e
        if pretrained:
            raise download_error(arch, first_line(e)) from e
        if ":" in arch:
            raise config_error(arch, first_line(e)) from e
        raise
    _check_odd_size(backbone, arch, kwargs)
    # An export states how the backbone was made.
    backbone.model_args = dict(kwargs)
    backbone.model_name = None if _is_outside(arch) else arch.split(".")[0]
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
        f"{arch} does not take images of {height} x {width} pixels ({first_line(e)}); choose "
        "another image size, or a convolutional model."
    )


# ------------------------------------------------------------------ weights from a file


def _load_file(
    arch: str, num_classes: int, path: Path, options: Mapping[str, Any], kwargs: dict
) -> LoadedModel:
    """Create a model with the weights of a file."""
    content = read_weights_file(path)
    if _find_config(arch) is None:
        check_hub(arch, None, needs_weights=False)
    backbone = _create(arch, False, kwargs)
    found = find_weights(content, path, backbone.state_dict(), options.get("weights_key"))
    _load(backbone, arch, path, found.inside, kwargs)
    if options.get("keep_head"):
        head = _kept_head(backbone, arch, path, found, num_classes, kwargs)
    else:
        head = nn.Linear(_width_of(backbone), num_classes)
    config = backbone.pretrained_cfg
    is_ours = found.key.endswith("backbone") and any(k.startswith("head.") for k in found.outside)
    origin = find_origin(path, content, config.get("architecture") or arch, config, is_ours)
    return LoadedModel(LTModel(backbone, head), origin)


def _kept_head(
    backbone: nn.Module,
    arch: str,
    path: Path,
    found: FoundWeights,
    num_classes: int,
    kwargs: dict,
) -> nn.Module:
    """Return the classifier of a file, which gives the file's logits on the backbone's features."""
    # Random numbers are drawn for the new model and then overwritten. The caller's draws stay.
    with torch.random.fork_rng(devices=[]):
        whole = _create(arch, False, {**kwargs, "num_classes": num_classes})
    new = f"start with a new one ({spell('keep_head', False)})"
    names = backbone.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    state = _converted(whole, arch, path, found.inside, kwargs)
    if not names or not all(f"{name}.weight" in state for name in names):
        beside = head_from_tensors(found.outside, path)
        if beside is None:
            wanted = " or ".join(f"{name}.weight" for name in names) or "none is known to timm"
            raise UserError(
                f"{path} has no classifier (no {wanted}) to keep; give the file of the whole "
                f"model, or {new}."
            )
        name, head = beside
        _check_classes(path, head.out_features, num_classes, new)
        if head.in_features != _width_of(backbone):
            raise UserError(
                f"the classifier {name} in {path} takes {head.in_features} features, but {arch} "
                f"gives {_width_of(backbone)}; {new}."
            )
        return head
    for name in names:
        _check_classes(path, len(state[f"{name}.weight"]), num_classes, new)
    _load(whole, arch, path, found.inside, kwargs, is_whole=True)
    shape = _image_shape(whole, kwargs)
    head = linear_classifier(whole, names, backbone, shape)
    if head is None:
        raise UserError(
            f"the classifier of {arch} is more than a linear layer on pooled features, so the "
            f"model in {path} cannot be cut without other logits; {new}."
        )
    return head


def _check_classes(path: Path, given: int, num_classes: int, new: str) -> None:
    if given != num_classes:
        raise UserError(
            f"the classifier in {path} has {given} classes, but the data has {num_classes}; both "
            f"must have the same classes, or {new}."
        )


def _image_shape(model: nn.Module, kwargs: dict) -> tuple[int, int, int]:
    """Return channels, height and width of an image that a model takes."""
    channels, *sides = model.pretrained_cfg["input_size"]
    if kwargs.get("img_size"):
        sides = _sides(kwargs["img_size"])
    return (kwargs.get("in_chans", channels), *sides)


def _load(
    model: nn.Module,
    arch: str,
    path: Path,
    state: dict[str, Tensor],
    kwargs: dict,
    is_whole: bool = False,
) -> None:
    """Load the weights of a file, which must hold exactly those that the model needs."""
    if any(".experts." in k for k in state) and not any(
        ".experts." in k for k in model.state_dict()
    ):
        raise UserError(
            f"the weights in {path} are of several experts on shared layers, so they do not fit "
            f"{arch}; compare classifiers of experts in the run that trained them "
            f"({spell_call('compare_run', run='RUN')})."
        )
    state = _converted(model, arch, path, state, kwargs)
    fit_adapters_to_shapes(model, {k: v.shape for k, v in state.items()})
    own = model.state_dict()
    wrong = [k for k, v in own.items() if k in state and state[k].shape != v.shape]
    if is_whole:  # a classifier can be a 1 x 1 convolution, and a linear layer in the file
        for k in [k for k in wrong if state[k].numel() == own[k].numel()]:
            state[k] = state[k].reshape(own[k].shape)
            wrong.remove(k)
    if wrong:
        raise _fit_error(path, arch, kwargs, _describe_sizes(wrong, state, own))
    missing, unused = _find_differences(model, state)
    problems = []
    if missing:
        problems.append(f"the file lacks {describe_some(missing)}")
    if unused:
        owner = "it" if missing else "the file"
        problems.append(f"{owner} has {describe_some(unused)}, which {arch} does not use")
    if problems:
        raise _fit_error(path, arch, kwargs, ", and ".join(problems))
    model.load_state_dict(state, strict=False)


def _converted(
    model: nn.Module, arch: str, path: Path, state: dict[str, Tensor], kwargs: dict
) -> dict[str, Tensor]:
    """Return the tensors of a file with the names and shapes of timm's model."""
    try:
        return dict(_filter_of(model)(rename_efficientnet(dict(state), model), model))
    except Exception as e:  # timm's filters expect the layout of published files
        raise _fit_error(path, arch, kwargs, first_line(e)) from e


def _filter_of(backbone: nn.Module) -> Callable[[dict, nn.Module], dict]:
    """Return timm's filter, which converts published files to the layout of a model.

    It also resizes position embeddings to another image size. A model without a filter takes the
    tensors of a file unchanged.
    """
    name = backbone.pretrained_cfg.get("architecture")
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    return getattr(module, "checkpoint_filter_fn", lambda state, _: state)


def _find_differences(model: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Return the tensors that a model needs and the file lacks, and those it does not use."""
    own = model.state_dict()
    parameters = {k for k, _ in model.named_parameters()}
    missing = [
        k
        for k in own
        if k not in state and (k in parameters or k.endswith(("running_mean", "running_var")))
    ]
    # A file may hold classifiers, which the caller reads, and tables of attention.
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = {*HEAD_NAMES, *((classifiers,) if isinstance(classifiers, str) else classifiers)}
    unused = [
        k
        for k in state
        if k not in own
        and not k.startswith(tuple(f"{head}." for head in heads))
        and k.rpartition(".")[2] not in _DERIVED
    ]
    return missing, unused


def _describe_sizes(wrong: list[str], state: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Describe the first tensor whose size differs between the file and the model."""
    in_file, in_model = (
        " x ".join(map(str, tensors[wrong[0]].shape)) or "a number" for tensors in (state, own)
    )
    more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    return f"{wrong[0]} is {in_file} in the file, but {in_model} in the model{more}"


def _fit_error(path: Path, arch: str, kwargs: dict, problem: str) -> UserError:
    remedy = f"give the {spell('arch')} of the file"
    if "0.0.weight" in problem:
        remedy = (
            "its layers have numbers for names, as in fastai's vision_learner of a torchvision "
            "model; save a model of timm, or the model's state_dict() before it is cut"
        )
    if "width" in kwargs or arch.split(".")[0].endswith("_cifar"):
        remedy += f", and its width ({spell('model.width', 64)} for example)"
    return UserError(f"the weights in {path} do not fit {arch} ({problem.rstrip('.')}); {remedy}.")
