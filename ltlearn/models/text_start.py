"""Rows of a classifier from the names of the classes, by the text tower of CLIP.

open_clip (extra "clip") brings the text tower, and the image projection, which a timm trunk with
pooled features has lost: timm keeps it as the trunk's classifier, which the learner replaces. Both
come from one file, so they belong together.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltlearn.errors import UserError, spell
from ltlearn.heads.linear import unit_rows
from ltlearn.models.hub import ask_hub
from ltlearn.utils.extras import check_packages

__all__ = [
    "TEMPLATES",
    "ClipText",
    "check_class_names",
    "check_templates",
    "load_clip_text",
    "text_rows",
]

TEMPLATES = ("a photo of a {}.",)
_BATCH = 256  # texts that the tower reads at once
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
_NUMBER = re.compile(r"[\s._+-]*\d[\s\d._+-]*")
_WORDNET = re.compile(r"n\d{8}")
_TOLERANCE = 1e-3  # between weights that one side holds in half precision


@dataclass(frozen=True)
class ClipText:
    """The parts of a CLIP model that turn class names into rows of a classifier.

    Args:
        model: The CLIP model of open_clip.
        tokenizer: Turns a list of texts into tokens.
    """

    model: nn.Module
    tokenizer: object

    @property
    def projection(self) -> Tensor:
        """Return the image projection, which maps D features to E numbers, (D, E)."""
        return self.model.visual.proj.detach()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the embedding of each text, of length 1, (N, E), float32."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            tokens = self.tokenizer(list(texts[start : start + _BATCH]))
            parts.append(unit_rows(self.model.encode_text(tokens).float()))
        return torch.cat(parts)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates as a tuple.

    Args:
        templates: Sentences with {} in the place of the class name; one or several.

    Raises:
        UserError: If there is none, or one of them has no {}.
    """
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    wrong = [t for t in given if not isinstance(t, str) or t.count("{}") != 1]
    if wrong or not given:
        raise UserError(
            "templates must be sentences with {} in the place of the class name, such as "
            f"{TEMPLATES[0]!r}, got {(wrong or [templates])[0]!r}."
        )
    return given


def check_class_names(names: Sequence[str] | None, vocab: Sequence[str] | None) -> list[str]:
    """Return the names that texts are made of: those given, or those of the data.

    WordNet ids become the words that ImageNet has for them. Underscores become spaces.

    Args:
        names: The names given; None takes the names of the data.
        vocab: The names of the data; None if it has none.

    Raises:
        UserError: If there are no names, they are numbers, or their number is another one.
    """
    own = None if vocab is None else [str(name) for name in vocab]
    if names is not None and own is not None and len(names) != len(own):
        raise UserError(
            f"class_names has {len(names)} names, but the data has {len(own)} classes; give one "
            "name per class, in the order of the classes."
        )
    found = own if names is None else [str(name) for name in names]
    remedy = "give class_names=[...] in the order of the classes, or start='class_means'"
    if not found:
        raise UserError(f"start='text' needs class names, and the data has none; {remedy}.")
    if all(_WORDNET.fullmatch(name) for name in found):
        return _words_of(found, remedy)
    number = next((name for name in found if _NUMBER.fullmatch(name)), None)
    if number is not None:
        raise UserError(
            f"start='text' needs class names that are words, but a class is called {number!r}; "
            f"{remedy}."
        )
    return [" ".join(name.replace("_", " ").split()) for name in found]


def _words_of(ids: list[str], remedy: str) -> list[str]:
    """Return the words of WordNet ids: CLIP's own for ImageNet, else the first of timm's."""
    if len(ids) == 1000 and ids == sorted(ids):
        check_packages("start='text'", "clip", "open_clip")
        import open_clip

        return list(open_clip.IMAGENET_CLASSNAMES)
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    try:
        return [info.label_name_to_description(name).partition(",")[0] for name in ids]
    except KeyError as e:
        raise UserError(f"the WordNet id {e} is not known; {remedy}.") from None


def load_clip_text(backbone: nn.Module) -> ClipText:
    """Load the CLIP model whose image tower a trunk is.

    Args:
        backbone: A trunk of timm.

    Raises:
        UserError: If open_clip is missing, the trunk is of no known CLIP model, its weights are
            other ones, or the file cannot be fetched.
    """
    check_packages("start='text'", "clip", "open_clip")
    import open_clip

    config = getattr(backbone, "pretrained_cfg", None) or {}
    repo = config.get("hf_hub_id") or ""
    repo = f"timm/{_full_name(config)}" if repo == "timm/" else repo
    name, tag = _known_as(open_clip, repo, config)
    _check_reachable(repo)
    try:
        model = open_clip.create_model(name, pretrained=tag).eval()
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as e:  # errors of the HTTP library, of safetensors and of open_clip
        raise _fetch_error(repo, e) from e
    _check_same(backbone, model, repo)
    return ClipText(model, tokenizer)


def _full_name(config) -> str:
    return ".".join(filter(None, (config.get("architecture"), config.get("tag"))))


def _known_as(open_clip, repo: str, config) -> tuple[str, str]:
    """Return model and tag under which open_clip knows the file of a timm trunk."""
    found = []
    for name, tag in open_clip.list_pretrained():
        facts = open_clip.pretrained.get_pretrained_cfg(name, tag)
        if repo and facts.get("hf_hub", "").rstrip("/") == repo:
            # A model with another activation reads the same file, with worse embeddings.
            fits = name.endswith("quickgelu") == bool(facts.get("quick_gelu"))
            found.append((not fits, name, tag))
    if not found:
        raise UserError(
            f"start='text' needs the trunk of a CLIP model that open_clip knows, and "
            f"{_full_name(config) or type(config).__name__} is none; take "
            f"{spell('arch', 'vit_base_patch16_clip_quickgelu_224.openai')}, or "
            "start='class_means'."
        )
    return min(found)[1:]


def _check_reachable(repo: str) -> None:
    """Raise an error before a long wait if the file is neither in the cache nor within reach."""
    import huggingface_hub
    from huggingface_hub import constants

    if any(
        isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in _FILES[:2]
    ):
        return
    if constants.HF_HUB_OFFLINE:
        raise _fetch_error(repo, "HF_HUB_OFFLINE is set, and it is not in the cache")
    try:
        ask_hub(repo)
    except Exception as e:  # errors of the HTTP library, which differs between versions of the hub
        raise _fetch_error(repo, e) from e


def _fetch_error(repo: str, problem: object) -> UserError:
    reason = next(iter(str(problem).splitlines()), type(problem).__name__).rstrip(".")
    return UserError(
        f"the text tower of {repo} cannot be fetched ({reason}); copy the folder of a machine that "
        "has it and set HF_HOME to it, or take start='class_means', which needs no text."
    )


def _check_same(backbone: nn.Module, model: nn.Module, repo: str) -> None:
    """Raise an error unless trunk and image tower have the same weights where both are fixed."""
    visual = model.visual
    if not isinstance(getattr(visual, "proj", None), Tensor):
        raise UserError(
            f"the image tower of {repo} has no linear projection, through which texts become rows "
            "of a classifier; take start='class_means'."
        )
    pairs = (
        (getattr(visual, "class_embedding", None), getattr(backbone, "cls_token", None)),
        (
            getattr(getattr(visual, "conv1", None), "weight", None),
            getattr(getattr(getattr(backbone, "patch_embed", None), "proj", None), "weight", None),
        ),
    )
    for theirs, ours in pairs:
        same = (
            theirs is not None
            and ours is not None
            and theirs.numel() == ours.numel()
            and torch.allclose(
                theirs.detach().float().flatten(),
                ours.detach().float().cpu().flatten(),
                atol=_TOLERANCE,
            )
        )
        if not same:
            raise UserError(
                f"the weights of the trunk are not those of {repo}, so texts and images would not "
                f"match; load them ({spell('pretrained', True)}), or take start='class_means'."
            )


def text_rows(clip: ClipText, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return a normalised row per class: the text embedding, taken back to the trunk's features.

    The cosine of an image embedding f W and a text embedding t is, up to the length of f W, the
    product of the feature f and W t. So the row of a class is normalize(W t), where t is the
    normalised mean of the embeddings of its sentences.

    Args:
        clip: The text tower and the image projection.
        names: The class names.
        templates: Sentences with {} in the place of the name.

    Shape:
        The result is (C, D), float32, for D features.

    Source:
        Radford et al., ICML 2021, arXiv:2103.00020 (the mean over sentences); Shi et al., ICML
        2024, arXiv:2309.10019 (the rows).
    """
    means = torch.stack(
        [clip.embed([t.replace("{}", name) for name in names]) for t in templates]
    ).mean(0)
    return unit_rows(unit_rows(means) @ clip.projection.float().t())
