"""Check whether the Hugging Face hub is within reach, before timm waits for it."""

import os
from pathlib import Path
from threading import Thread
from typing import Any

import timm

from ltlearn.errors import UserError, spell

__all__ = ["ask_hub", "check_hub", "config_error", "download_error", "first_line"]

_HUB_SECONDS = 4.0  # until the hub counts as out of reach; HF_HUB_ETAG_TIMEOUT replaces it


def first_line(e: Exception) -> str:
    """Return the first line of an error's message, or the name of its class.

    Args:
        e: The error.
    """
    return next(iter(str(e).splitlines()), type(e).__name__)


def check_hub(arch: str, config: Any, needs_weights: bool = True) -> None:
    """Raise an error before a long wait if the files are neither cached nor within reach.

    Args:
        arch: The architecture.
        config: timm's configuration of its weights; None for a model of the hub or a folder.
        needs_weights: Whether the weights are needed, and not only the configuration.

    Raises:
        UserError: If the files are neither in the cache nor within reach.
    """
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
    files = files if needs_weights else ["config.json"]
    for file in files:
        if isinstance(
            huggingface_hub.try_to_load_from_cache(repo, file, revision=revision or None), str
        ):
            return
    error = download_error if needs_weights else config_error
    if constants.HF_HUB_OFFLINE:
        which = "they are" if needs_weights else "it is"
        raise error(arch, f"HF_HUB_OFFLINE is set and {which} not in the cache")
    try:
        ask_hub(repo, revision or None)
    except Exception as e:  # errors of the HTTP library, which differs between versions of the hub
        raise error(arch, first_line(e)) from e


def ask_hub(repo: str, revision: str | None = None) -> None:
    """Ask the hub for a repository; raise an error if there is no answer within seconds.

    Args:
        repo: Its name, such as "timm/resnet50.a1_in1k".
        revision: Its branch, tag or commit; None takes the main branch.

    Raises:
        TimeoutError: If the hub does not answer in time. Other errors come from the hub's library.
    """
    import huggingface_hub

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", _HUB_SECONDS))
    failed: list[Exception] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=seconds)
        except Exception as e:
            failed.append(e)

    # The search for a name server has no time limit of its own, and can take a minute.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(
            f"no answer within {seconds:g} s, the limit that HF_HUB_ETAG_TIMEOUT sets"
        )
    if failed:
        raise failed[0]


def download_error(arch: str, problem: str) -> UserError:
    """Return the error for weights that cannot be downloaded.

    Args:
        arch: The architecture.
        problem: What went wrong.
    """
    from huggingface_hub import constants

    return UserError(
        f"the pre-trained weights of {arch} cannot be downloaded ({problem.rstrip('.')}); use "
        f"{spell('pretrained', False)} to start from random weights, "
        f"{spell('pretrained', 'FILE')} to load a file, or copy them into {constants.HF_HUB_CACHE} "
        "from a machine with a network and set HF_HUB_OFFLINE=1."
    )


def config_error(arch: str, problem: str) -> UserError:
    """Return the error for a configuration that cannot be read.

    Args:
        arch: The architecture.
        problem: What went wrong.
    """
    name = arch.rpartition("/")[2].partition("@")[0].partition(".")[0]
    hint = "another name that timm knows"
    if timm.is_model(name):
        hint = f"{spell('arch', name)}, which needs no network"
    return UserError(
        f"the configuration of {arch} (config.json), which names the layers, cannot be read "
        f"({problem.rstrip('.')}); give {hint}."
    )
