"""Create a timm model as backbone and head, and load its weights."""

import difflib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)
from ltlearn.errors import UserError
from ltlearn.heads.registry import head_from_state
from ltlearn.models.backbone import HEAD_NAMES, LTModel, evaluating

__all__ = ["create_lt_model"]

_log = logging.getLogger("ltlearn")
_REACH_S = 4.0  # how long to wait for a sign of the host of pre-trained weights
_FORMATS = (
    "give a model's state_dict() as it is saved by safetensors (.safetensors) or by torch.save "
    "(.pth, .pt, .bin)"
)
# What files may hold, though it follows from the rest.
_DERIVED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


def create_lt_model(
    arch: str,
    num_classes: int,
    pretrained: bool | str | Path = True,
    img_size: int | tuple[int, int] | None = None,
    keep_head: bool = False,
    **kwargs,
) -> LTModel:
    """Cut any timm model into a backbone with pooled features and a linear head, new or its own.

    Args:
        arch: A name of `timm.list_models()`.
        num_classes: C, at least 2.
        pretrained: True fetches timm's weights; a path loads a file of them (safetensors or .pth);
            False starts at random.
        img_size: Side of the images in pixels, or (height, width), for models with a fixed one
            (ViT, Swin).
        keep_head: Take the classifier of the file, too, which is of these classes in this order.
        **kwargs: For `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` (close names are suggested) or an argument of it,
            the model cannot take images of this size, the file's classifier is missing or of
            other classes, the file's weights are not all that the backbone has and no others, or
            the weights cannot be had: within 5 seconds where their host cannot be reached.
    """
    config = _find_config(arch)
    if keep_head and not isinstance(pretrained, str | Path):
        raise UserError(
            f"keep_head takes the classifier of a file, but pretrained is {pretrained!r}; give the "
            "path of the file."
        )
    if config is not None and img_size is not None and config.fixed_input_size:
        sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        kwargs.setdefault("img_size", sides[0] if sides[0] == sides[1] else sides)
    state = None
    if isinstance(pretrained, str | Path):
        path = Path(pretrained).expanduser()
        state = _read_weights(path)
        backbone = _create_from_file(arch, path, _backbone_of(state), kwargs)
    else:
        if pretrained and config is not None and not config.has_weights:
            _log.warning("%s has no pre-trained weights; it starts from random ones", arch)
            pretrained = False
        if pretrained or config is None:
            _check_weights_at_hand(arch, config)
        backbone = _create(arch, pretrained, kwargs)
    _check_odd_size(backbone, arch, kwargs)
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    if keep_head:
        return LTModel(backbone, _head_of(state, arch, path, width, num_classes))
    return LTModel(backbone, nn.Linear(width, num_classes))


def check_weights(arch: str) -> bool:
    """Tell whether timm has weights of a model, and make sure that they can be had here.

    Args:
        arch: A name of `timm.list_models()`.

    Raises:
        UserError: If timm does not know `arch`, or its weights cannot be had.
    """
    config = _find_config(arch)
    if config is not None and not config.has_weights:
        return False
    _check_weights_at_hand(arch, config)
    return True


def _find_config(arch: str):
    """Return what timm knows of a model's weights; None where that is not in its tables."""
    if not isinstance(arch, str):
        raise UserError(f"arch must be a name of timm.list_models(), got {arch!r}.")
    name = arch.split(".")[0]
    if not arch.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = (
            f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` has all names."
        )
        raise UserError(f"arch (--arch): timm has no model {arch!r}; {hint}")
    return timm.get_pretrained_cfg(arch) if timm.is_model(name) else None


def _size_refused(arch: str, img_size, e: Exception) -> UserError:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return UserError(
        f"{arch} does not take images of {height} x {width} pixels ({_first_line(e)}); give the "
        "data another size, or take a convolutional model."
    )


def _is_odd_size(arch: str, img_size) -> bool:
    """Tell whether a size was asked for that is not the model's own."""
    config = timm.get_pretrained_cfg(arch) if timm.is_model(arch.split(".")[0]) else None
    if img_size is None or config is None:
        return False
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    return sides != tuple(config.input_size[1:])


@torch.no_grad()
def _check_odd_size(backbone: nn.Module, arch: str, kwargs: dict) -> None:
    """Try an image of a size that is not the model's own: some models say only then."""
    size = kwargs.get("img_size")
    if not _is_odd_size(arch, size):
        return
    sides = (size, size) if isinstance(size, int) else tuple(size)
    try:
        with evaluating(backbone):
            backbone(torch.zeros(1, kwargs.get("in_chans", 3), *sides))
    except Exception as e:
        raise _size_refused(arch, size, e) from e


def _create(arch: str, pretrained: bool, kwargs: dict) -> nn.Module:
    try:
        return timm.create_model(arch, pretrained=pretrained, num_classes=0, **kwargs)
    except Exception as e:
        # ValueError and RuntimeError are also what a failed download raises.
        kinds = (AssertionError, ArithmeticError)
        kinds += () if pretrained else (ValueError, RuntimeError)
        if isinstance(e, kinds) and _is_odd_size(arch, kwargs.get("img_size")):
            raise _size_refused(arch, kwargs["img_size"], e) from e
        if isinstance(e, TypeError) and kwargs:
            raise UserError(
                f"timm's {arch} does not take {', '.join(kwargs)} ({_first_line(e)})."
            ) from e
        if pretrained:
            raise _no_weights(arch, _first_line(e)) from e
        raise


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: of a timm model, or of an `LTModel`."""
    if not path.is_file():
        raise UserError(
            f"there is no weights file {path}; give a .safetensors or .pth file, or "
            "pretrained=False."
        )
    try:
        state = timm.models.load_state_dict(path, weights_only=True)
    except Exception as e:
        if "Unsupported global" in f"{e} {e.__cause__}":
            raise UserError(
                f"{path} holds Python objects beside its tensors, which could run code as they are "
                "read, so it is not opened; save the model's state_dict() alone, best as "
                ".safetensors."
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
        raise UserError(f"{path} holds {names}, and no tensors by their names; {_FORMATS}.")
    return tensors


def _part_of(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}


def _backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone of an `LTModel`; all of another model."""
    return _part_of(state, "backbone.") or state


def _head_of(
    state: dict[str, Tensor], arch: str, path: Path, width: int, num_classes: int
) -> nn.Module:
    """Make the classifier that a state dict ends in."""
    name = "head"
    if _part_of(state, "backbone."):
        parts = _part_of(state, "head.")
    else:
        name = getattr(_find_config(arch), "classifier", None)
        if not isinstance(name, str):
            kind = "has several classifiers" if name else "has no classifier that timm names"
            raise UserError(f"{arch} {kind}, so none can be kept; begin with a new one (--reset).")
        parts = {k: v for k, v in _part_of(state, f"{name}.").items() if k in ("weight", "bias")}
        if "weight" in parts:
            # Of a 1 x 1 convolution, too.
            parts["weight"] = parts["weight"].flatten(1)
    head = head_from_state(parts)
    if head is None:
        raise UserError(
            f"{path} has no classifier (no {name}.weight) to keep; give the file of the whole "
            "model, or begin with a new one (--reset)."
        )
    if head.out_features != num_classes:
        raise UserError(
            f"the classifier in {path} tells {head.out_features} classes apart, but the data has "
            f"{num_classes}; both must be the same classes in the same order, or begin with a new "
            "classifier (--reset)."
        )
    if head.in_features != width:
        raise UserError(
            f"the classifier in {path} takes {head.in_features} features, but {arch} gives {width}."
        )
    head.load_state_dict(parts)
    return head


def _create_from_file(arch: str, path: Path, state: dict[str, Tensor], kwargs: dict) -> nn.Module:
    """Create a backbone with the weights of a file: all that it needs, and all that there are."""
    # A name of the hub or of a folder would bring its own weights, in place of these.
    overlay = {"state_dict": dict(state), "source": ""}
    try:
        with _watch_loading() as found:
            backbone = timm.create_model(
                arch, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **kwargs
            )
    except Exception as e:
        # If it is the arguments, this says so.
        _check_odd_size(_create(arch, False, kwargs), arch, kwargs)
        raise _no_fit(path, arch, kwargs, _why_not(e)) from e
    missing, unused = _differences(backbone, arch, found)
    why = []
    if missing:
        why.append(f"the file lacks {_some(missing)}")
    if unused:
        why.append(
            f"{'it' if missing else 'the file'} has {_some(unused)}, which {arch} does not use"
        )
    if why or not found:
        raise _no_fit(path, arch, kwargs, ", and ".join(why) or "timm loads none of them")
    return backbone


@contextmanager
def _watch_loading() -> Iterator[list]:
    """Note what the state dicts that are loaded in here lack, and what of them is not used.

    timm loads the weights while it makes a model, passes a state on that its filters have changed,
    and only logs the rest: there is no other place to learn of it.
    """
    found, thread, load = [], threading.get_ident(), nn.Module.load_state_dict

    def watched(self, state_dict, strict=True, *args, **kwargs):
        if threading.get_ident() != thread:
            return load(self, state_dict, strict, *args, **kwargs)
        result = load(self, state_dict, False, *args, **kwargs)
        found.append((list(result.missing_keys), list(result.unexpected_keys)))
        # Or timm prints all their names.
        result.missing_keys.clear()
        result.unexpected_keys.clear()
        return result

    nn.Module.load_state_dict = watched
    try:
        yield found
    finally:
        nn.Module.load_state_dict = load


def _differences(backbone: nn.Module, arch: str, found: list) -> tuple[list[str], list[str]]:
    """Return what a backbone needs and was not loaded, and what was left over, in order."""
    needed = {k for k, _ in backbone.named_parameters()}
    needed |= {
        k for k, _ in backbone.named_buffers() if k.endswith(("running_mean", "running_var"))
    }
    missing = [k for keys, _ in found for k in keys if k in needed]
    # Classifiers are for the caller; the tables of attention follow from the size of the images.
    named = getattr(_find_config(arch), "classifier", None) or ()
    heads = {*HEAD_NAMES, *((named,) if isinstance(named, str) else named)}
    unused = [
        k
        for _, keys in found
        for k in keys
        if not any(k.startswith(f"{head}.") for head in heads)
        and k.rpartition(".")[2] not in _DERIVED
    ]
    return missing, unused


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"a tensor {names[0]}"
    return f"{len(names)} tensors such as {names[0]}"


def _why_not(e: Exception) -> str:
    """Say why torch does not take a state dict: the first size that differs, if it is that."""
    sizes = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", str(e))
    if not sizes:
        return " ".join(line.strip() for line in str(e).splitlines()[:2]) or type(e).__name__
    name, given, wanted = (text.replace(", ", " x ") for text in sizes[0])
    more = f", and {len(sizes) - 1} more differ" if len(sizes) > 1 else ""
    return f"{name} is {given or 'a number'} in the file, but {wanted or 'a number'} there{more}"


def _no_fit(path: Path, arch: str, kwargs: dict, why: str) -> UserError:
    remedy = "give the arch (--arch) that the file is of"
    if "width" in kwargs or arch.split(".")[0].endswith("_cifar"):
        remedy += ", and its width (--set model.width=N)"
    return UserError(f"the weights in {path} do not fit {arch} ({why.rstrip('.')}); {remedy}.")


def _first_line(e: Exception) -> str:
    return next(iter(str(e).splitlines()), type(e).__name__)


def _no_weights(arch: str, why: str) -> UserError:
    return UserError(
        f"the pre-trained weights of {arch} cannot be fetched ({why}); pass pretrained=False "
        "(--no-pretrained) to start from random weights, or "
        "pretrained='path/to/weights.safetensors' (--weights FILE) to load a file."
    )


def _check_weights_at_hand(arch: str, config) -> None:
    """Fail at once, not after a minute of retries, where weights cannot be had."""
    from huggingface_hub import constants, try_to_load_from_cache

    scheme, _, rest = arch.partition(":")
    hub_id = getattr(config, "hf_hub_id", None)
    if scheme in ("hf-hub", "hf_hub"):
        hub_id = rest
    if hub_id:
        names = ["model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"]
        given = getattr(config, "hf_hub_filename", None)
        if given:
            names = [given, str(Path(given).with_suffix(".safetensors")), *names]
        repo, _, revision = hub_id.partition("@")
        found = (try_to_load_from_cache(repo, n, revision=revision or None) for n in names)
        if any(isinstance(path, str) for path in found):
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
    if not _is_reachable(url):
        raise _no_weights(arch, f"{url} cannot be reached")


def _is_reachable(url: str) -> bool:
    """Ask a host for a sign of life, for some seconds at most, however long its name takes."""
    answers = queue.SimpleQueue()

    def look() -> None:
        import urllib.error
        import urllib.request

        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_REACH_S):
                answers.put(True)
        except urllib.error.HTTPError:
            answers.put(True)  # an answer, so the host is there
        except Exception:
            answers.put(False)

    threading.Thread(target=look, daemon=True).start()
    try:
        return answers.get(timeout=_REACH_S)
    except queue.Empty:
        return False
