"""A model is backbone + head: how a timm model is cut in two, how another's head is found."""

import difflib
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import ltlearn.models.cifar_resnet  # noqa: F401  (registers the CIFAR ResNets)
from ltlearn.errors import UserError
from ltlearn.models.head_kinds import head_from_state, is_head, is_trainable

__all__ = ["LTModel", "create_lt_model", "evaluating", "find_head", "set_head"]

_REACH_S = 4.0  # how long to wait for a sign of the host of pre-trained weights

_log = logging.getLogger("ltlearn")


class LTModel(nn.Module):
    """A timm backbone that gives pooled features, and one linear layer.

    A state dict with another kind of head (one of `ltlearn.models.head_kinds`) loads too: the head
    is exchanged.

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
    """Exchange the head where the state dict holds one of another kind."""
    start = f"{prefix}head."
    parts = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
    head = module.head
    if not is_head(head) or parts.keys() == head.state_dict().keys():
        return
    new = head_from_state(parts)
    # What is no head, and another number of classes or features, is for torch to refuse.
    if new is None or _size(new) != _size(head):
        return
    new.requires_grad_(is_trainable(head))
    like = next(v for v in head.state_dict().values() if v.is_floating_point())
    module.head = new.to(like.device, like.dtype).train(head.training)


def _size(head: nn.Module) -> tuple[int, int]:
    return head.in_features, head.out_features


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; each module is left in the mode it had."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


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
        img_size: Side of the pictures in pixels, or (height, width), for models with a fixed one
            (ViT, Swin).
        keep_head: Take the classifier of the file, too, which is of these classes in this order.
        **kwargs: For `timm.create_model`, such as `width=64` of the CIFAR ResNets.

    Raises:
        UserError: If timm does not know `arch` (close names are suggested) or an argument of it,
            the model cannot take pictures of this size, the file's classifier is missing or of
            other classes, or the weights cannot be had: within 5 seconds where their host cannot be
            reached.
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
    if _is_odd_size(arch, kwargs.get("img_size")):
        _check_size(backbone, arch, kwargs["img_size"], kwargs.get("in_chans", 3))
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
        raise UserError(f"timm has no model {arch!r}; {hint}")
    return timm.get_pretrained_cfg(arch) if timm.is_model(name) else None


def _size_refused(arch: str, img_size, e: Exception) -> UserError:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return UserError(
        f"{arch} does not take pictures of {height} x {width} pixels ({_first_line(e)}); give the "
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
def _check_size(backbone: nn.Module, arch: str, img_size, in_chans: int) -> None:
    """Try a picture of a size that is not the model's own: some models say only then."""
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    try:
        with evaluating(backbone):
            backbone(torch.zeros(1, in_chans, *sides))
    except Exception as e:
        raise _size_refused(arch, img_size, e) from e


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
        return timm.models.load_state_dict(path, weights_only=True)
    except Exception as e:
        if "Unsupported global" in f"{e} {e.__cause__}":
            raise UserError(
                f"{path} holds Python objects beside its tensors, which could run code as they are "
                "read, so it is not opened; save the model's state_dict() alone, best as "
                ".safetensors."
            ) from None
        why = "no file of tensors" if "weights_only" in str(e) else _first_line(e)
        raise UserError(f"the weights in {path} cannot be read ({why}).") from e


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
    """Create a backbone with the weights of a file, and check that they came to be used."""
    # timm only logs what the file lacks. Two models made from one state of the generator differ in
    # what was loaded, and in nothing else.
    generator = torch.get_rng_state()
    random = _create(arch, False, kwargs).state_dict()
    torch.set_rng_state(generator)
    overlay = {"state_dict": dict(state)}
    try:
        backbone = timm.create_model(
            arch, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **kwargs
        )
    except Exception as e:
        raise UserError(f"the weights in {path} do not fit {arch} ({_first_line(e)}).") from e
    matrices = {k: p.detach() for k, p in backbone.named_parameters() if p.ndim > 1}
    missing = [
        k
        for k, p in matrices.items()
        if torch.equal(p, random[k]) and not (k in state and torch.equal(p, state[k]))
    ]
    if missing:
        what = f"{len(missing)} of {len(matrices)} weights, such as {missing[0]}"
        if len(missing) == len(matrices):
            raise UserError(f"the weights in {path} do not fit {arch} (it lacks {what}).")
        _log.warning("%s lacks %s of %s; they start at random", path, what, arch)
    return backbone


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


def find_head(model: nn.Module, num_classes: int | None = None) -> tuple[str, nn.Module]:
    """Find the classifier at the end of a model, and its dotted name ("" for the model itself).

    Asks `get_classifier` (timm) where there is one; else takes the last layer that has parameters,
    or a head of ours.

    Raises:
        UserError: If that is no `nn.Linear` (nor a head of ours, see `ltlearn.models.head_kinds`),
            or does not give `num_classes` logits.
    """
    wanted = None
    if hasattr(model, "get_classifier"):
        wanted = model.get_classifier()
    name, head = "", None
    for n, module in model.named_modules():
        if wanted is not None:
            if module is wanted:
                name, head = n, module
        elif is_head(module) or (
            not any(True for _ in module.children())
            and any(True for _ in module.parameters(recurse=False))
        ):
            name, head = n, module
    if not is_head(head):
        raise UserError(
            "the model must end in an nn.Linear classifier, but its last layer with weights is "
            f"{type(head).__name__} ({name or 'the model itself'})."
        )
    if num_classes is not None and head.out_features != num_classes:
        raise UserError(
            f"the model ends in a linear layer of {head.out_features} outputs "
            f"({name or 'the model itself'}), but there are {num_classes} classes."
        )
    return name, head


def set_head(model: nn.Module, name: str, head: nn.Module) -> nn.Module:
    """Put `head` where `find_head` found one; return the model, or the head where it is all."""
    if not name:
        return head
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, head)
    return model
