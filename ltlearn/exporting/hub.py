"""Write a folder for the Hugging Face hub, and upload it."""

import glob
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ltlearn.errors import UserError, spell
from ltlearn.exporting.card import CardFacts, render_card
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.portable import fold_if_possible
from ltlearn.exporting.source import ExportSource
from ltlearn.exporting.timm_folder import (
    CIFAR_FILE,
    CIFAR_MODULE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    export_timm_folder,
    module_of_export,
    timm_code,
)
from ltlearn.exporting.torchscript_file import export_torchscript_file
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.system_errors import reason_of, unwritable

__all__ = ["HubOptions", "check_repo", "licence_of", "publish", "upload_folder", "write_hub_folder"]

_ONNX, _SCRIPT, _PLOTS = "model.onnx", "model.pt", "plots"
_CARD = "README.md"
_REASON = 300


@dataclass(frozen=True)
class HubOptions:
    """Where and how a model is published.

    Args:
        repo: The repository, such as "user/birds".
        out: Folder to write and keep. None: a temporary one.
        private: Whether a new repository is private.
        license: Identifier of the model's licence on the hub, such as "apache-2.0"; None leaves it
            out.
        dry_run: Whether to write the folder alone, and upload nothing.
        token: The token of the hub. None takes the one that `hf auth login` stored.
    """

    repo: str
    out: Path | None = None
    private: bool = False
    license: str | None = None
    dry_run: bool = False
    token: str | None = None


def publish(
    source: ExportSource, facts: CardFacts, plots: Mapping[str, Path], options: HubOptions
) -> Exported:
    """Write the folder of a model, and upload it unless it is a dry run.

    Args:
        source: The model.
        facts: What the card reports.
        plots: File of each plot, by its title.
        options: Where and how.

    Raises:
        UserError: If the name of the repository is not allowed, a dry run has no folder, the folder
            cannot be written, or the hub refuses it.
    """
    check_repo(options.repo)
    if options.dry_run and options.out is None:
        raise UserError(
            f"{spell('dry_run', True)} writes a folder to look at; name it by {spell('out')}."
        )
    facts = replace(facts, license=options.license)
    if options.out is None:
        place = tempfile.TemporaryDirectory(prefix="ltlearn-")
    else:
        place = nullcontext(options.out)
    with place as folder:
        folder = Path(folder).expanduser()
        done, files = write_hub_folder(source, folder, options.repo, facts, plots)
        if options.dry_run:
            return replace(done, notes=[*done.notes, "Nothing was uploaded."])
        url = upload_folder(folder, files, options)
    return replace(done, url=url)


def licence_of(source: ExportSource) -> str:
    """Name the weights that a model began from, and their licence; "" if it began at random.

    Args:
        source: The model.
    """
    if not source.is_pretrained:
        return ""
    config = getattr(source.model.backbone, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture") or "unknown", config.get("tag")
    licence = config.get("license") or "licence not stated"
    return f"{name}{f'.{tag}' if tag else ''} ({licence})"


def check_repo(repo: str) -> None:
    """Raise a `UserError` unless a text can name a repository.

    Args:
        repo: The name, such as "user/birds".
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"repo must be a name of the hub such as user/birds, got {repo!r}; letters, digits, "
            "-, _ and . are allowed."
        ) from None


def write_hub_folder(
    source: ExportSource, folder: Path, repo: str, facts: CardFacts, plots: Mapping[str, Path]
) -> tuple[Exported, list[str]]:
    """Write the model, its plots and its card into a folder.

    A head that folds leaves as timm's folder. Another one leaves as an ONNX and a TorchScript file,
    which take pixels in [0, 1].

    Args:
        source: The model.
        folder: The folder.
        repo: The repository that it is for.
        facts: What the card reports; the lines that load it are added.
        plots: File of each plot, by its title.

    Returns:
        What was written, and the names of the files. The folder may hold others: the user's own,
        or those of an earlier export.

    Raises:
        UserError: As the exports do, or if the folder cannot be written.
    """
    if (folder / _CARD).is_dir() or (folder / _PLOTS).is_file():
        raise UserError(
            f"{folder} has a folder {_CARD} or a file {_PLOTS}, which are names of the export; "
            "remove it, or give another folder."
        )
    files = [_CARD]
    if isinstance(fold_if_possible(source.model.head), nn.Linear):
        done, library = export_timm_folder(source, folder), "timm"
        module = module_of_export(folder)
        code = timm_code(f"hf-hub:{repo}", module, repo)
        files += [CONFIG_FILE, WEIGHTS_FILE]
        files += [CIFAR_FILE] if module == CIFAR_MODULE else []
    else:
        export_torchscript_file(source, folder / _SCRIPT, normalize=True)
        done, library = export_onnx_file(source, folder / _ONNX, normalize=True), "onnx"
        code = _onnx_code(done.code, folder / _ONNX, repo)
        notes = [
            f"The head ({type(source.model.head).__name__}) cannot be folded into a linear layer, "
            f"so timm cannot hold the model. {_SCRIPT} is the same as TorchScript.",
            *done.notes,
        ]
        done = replace(done, path=folder, notes=notes)
        files += [_ONNX, _SCRIPT]
    try:
        names = []
        for title, file in plots.items():
            (folder / _PLOTS).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / _PLOTS / file.name)
            names.append((title, f"{_PLOTS}/{file.name}"))
    except OSError as e:
        raise unwritable(folder, e, "give another folder") from e
    facts = replace(facts, plots=names).with_loading(code, done.notes)
    card = render_card(repo, facts, library)
    with replaced_file(folder / _CARD, remedy="give another folder") as out:
        out.write(str(card).encode("utf-8", "backslashreplace"))
    return replace(done, kind="hub", code=code), files + [path for _, path in names]


def _onnx_code(code: str, file: Path, repo: str) -> str:
    """Return the lines that load an ONNX file, which download it first."""
    code = code.replace(repr(str(file)), f"hf_hub_download({repo!r}, {_ONNX!r})")
    return code.replace(
        "import onnxruntime\n", "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n"
    )


def upload_folder(folder: Path, files: Sequence[str], options: HubOptions) -> str:
    """Create a repository if there is none, and upload files of a folder as one commit.

    Args:
        folder: The folder.
        files: The files, relative to the folder.
        options: The repository, whether a new one is private, and the token.

    Returns:
        The address of the repository.

    Raises:
        UserError: If the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api, repo = HfApi(token=options.token, library_name="ltlearn"), options.repo
    try:
        url = api.create_repo(repo, private=options.private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message="Upload by ltlearn",
            allow_patterns=[glob.escape(name) for name in files],
        )
    except Exception as e:  # errors of the HTTP library differ between versions of the hub
        reason = re.sub(r"hf_\w+", "hf_...", reason_of(e))[:_REASON].rstrip(".")
        raise UserError(
            f"the hub did not take {repo} ({type(e).__name__}: {reason}); log in with `hf auth "
            "login`, and check the name and the network."
        ) from e
    return str(url)
