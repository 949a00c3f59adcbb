"""A model is backbone + head: how any timm model is cut in two, and how the head of any other model is found."""

import difflib
import logging
import os
import threading
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)
from ltlearn.errors import UserError
from ltlearn.models.heads import SAMNLinear

__all__ = ["LTModel", "create_lt_model", "find_head", "set_head"]

_REACH_S = 4.0  # how long to wait for a sign of the host of pre-trained weights

_log = logging.getLogger("ltlearn")


class LTModel(nn.Module):
    """A timm backbone that gives pooled features, and one linear layer.

    A state dict with the other kind of head (`nn.Linear` or `SAMNLinear`) loads too: the head is exchanged.

    Args:
        backbone: Gives (N, D) features.
        head: Takes them to (N, C) logits.

    Shape:
        Input (N, 3, H, W) float. Output (N, C) logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_load_state_dict_pre_hook(_fit_head_to_state)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch."""
        return self.head(self.backbone(x))


def _fit_head_to_state(module: LTModel, state: dict, prefix: str, *_) -> None:
    """Exchange the head where the state dict holds one of the other kind."""
    start = f"{prefix}head."
    parts = {k[len(start) :] for k in state if k.startswith(start)}
    weight = state.get(f"{start}weight")
    if weight is None or not isinstance(module.head, nn.Linear | SAMNLinear):
        return
    counts = state.get(f"{start}class_counts")
    on = tuple(p for p in ("weight", "bias") if f"raw_norm_{p}" in parts)
    fits = isinstance(module.head, SAMNLinear) == bool(on) and (not on or module.head.on == on)
    if fits and module.head.weight.shape == weight.shape:
        return
    if on:
        head = SAMNLinear(weight.shape[1], counts, on=on, bias="bias" in parts)
    elif isinstance(module.head, SAMNLinear):
        head = nn.Linear(weight.shape[1], weight.shape[0], "bias" in parts)
    else:
        return
    module.head = head.to(module.head.weight.device).train(module.training)


def create_lt_model(
    arch: str,
    num_classes: int,
    pretrained: bool | str | Path = True,
    img_size: int | None = None,
    **kwargs,
) -> LTModel:
    """Cut any timm model into a backbone with pooled features and a new linear head.

    Args:
        arch: A name of `timm.list_models()`.
        num_classes: C, at least 2.
        pretrained: True fetches timm's weights; a path loads a file of them (safetensors or .pth); False starts at random.
        img_size: Side of the pictures in pixels, for models with a fixed one (ViT, Swin).
        **kwargs: For `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` (close names are suggested) or an argument of it, or the weights cannot be
            had: within 5 seconds where their host cannot be reached.
    """
    name = arch.split(".")[0]
    if not arch.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` has all names."
        raise UserError(f"timm has no model {arch!r}; {hint}")
    config = timm.get_pretrained_cfg(arch) if timm.is_model(name) else None
    if config is not None and img_size is not None and config.fixed_input_size:
        kwargs.setdefault("img_size", img_size)
    if isinstance(pretrained, str | Path):
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise UserError(f"there is no weights file {path}; give a .safetensors or .pth file, or pretrained=False.")
        kwargs["pretrained_cfg_overlay"] = {"file": str(path)}
    elif pretrained and config is not None and not config.has_weights:
        _log.warning("%s has no pre-trained weights; it starts from random ones", arch)
        pretrained = False
    elif pretrained:
        _check_weights_at_hand(arch, config)
    try:
        backbone = timm.create_model(arch, pretrained=bool(pretrained), num_classes=0, **kwargs)
    except Exception as e:
        if isinstance(pretrained, str | Path):
            raise UserError(f"the weights in {pretrained} do not fit {arch} ({_first_line(e)}).") from e
        if isinstance(e, TypeError) and kwargs:
            raise UserError(f"timm's {arch} does not take {', '.join(kwargs)} ({_first_line(e)}).") from e
        if pretrained:
            raise _no_weights(arch, _first_line(e)) from e
        raise
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return LTModel(backbone, nn.Linear(width, num_classes))


def _first_line(e: Exception) -> str:
    return next(iter(str(e).splitlines()), type(e).__name__)


def _no_weights(arch: str, why: str) -> UserError:
    return UserError(
        f"the pre-trained weights of {arch} cannot be fetched ({why}); pass pretrained=False to start from random "
        "weights, or pretrained='path/to/weights.safetensors' to load a file."
    )


def _check_weights_at_hand(arch: str, config) -> None:
    """Fail at once, instead of after a minute of retries, where weights are neither cached nor reachable."""
    from huggingface_hub import constants, try_to_load_from_cache

    hub_id = getattr(config, "hf_hub_id", None)
    if hub_id:
        hub_id = f"timm/{arch}" if hub_id == "timm/" else hub_id
        names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        repo = hub_id if not hub_id.endswith("/") else hub_id + f"{config.architecture}.{config.tag}"
        if any(isinstance(try_to_load_from_cache(repo, n), str) for n in names):
            return
        url = constants.ENDPOINT
        if constants.HF_HUB_OFFLINE:
            raise _no_weights(arch, "HF_HUB_OFFLINE is set and they are not in the cache")
    elif getattr(config, "url", None):
        url = config.url
        if os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))):
            return
    else:
        return
    reached = threading.Event()

    def look() -> None:
        import urllib.error
        import urllib.request

        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_REACH_S)
        except urllib.error.HTTPError:
            pass  # an answer, so the host is there
        except Exception:
            return
        reached.set()

    threading.Thread(target=look, daemon=True).start()
    if not reached.wait(_REACH_S):
        raise _no_weights(arch, f"{url} cannot be reached")


def find_head(model: nn.Module, num_classes: int | None = None) -> tuple[str, nn.Linear | SAMNLinear]:
    """Find the classifier at the end of a model, and its dotted name ("" for the model itself).

    Asks `get_classifier` (timm) where there is one; else takes the last layer that has parameters.

    Raises:
        UserError: If that is no `nn.Linear` (nor a `SAMNLinear`), or does not give `num_classes` logits.
    """
    wanted = None
    if hasattr(model, "get_classifier"):
        wanted = model.get_classifier()
    name, head = "", None
    for n, module in model.named_modules():
        if wanted is not None:
            if module is wanted:
                name, head = n, module
        elif isinstance(module, SAMNLinear) or (
            not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))
        ):
            name, head = n, module
    if not isinstance(head, nn.Linear | SAMNLinear):
        raise UserError(
            f"the model must end in an nn.Linear classifier, but its last layer with weights is {type(head).__name__} "
            f"({name or 'the model itself'})."
        )
    if num_classes is not None and head.out_features != num_classes:
        raise UserError(
            f"the model ends in a linear layer of {head.out_features} outputs ({name or 'the model itself'}), but there are "
            f"{num_classes} classes."
        )
    return name, head


def set_head(model: nn.Module, name: str, head: nn.Module) -> nn.Module:
    """Put `head` where `find_head` found one; return the model (the head itself where the name is empty)."""
    if not name:
        return head
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, head)
    return model
