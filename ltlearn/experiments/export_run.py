"""Export the model of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltlearn.errors import UserError, check_choice, spell
from ltlearn.experiments.manifest import MANIFEST_FILE, recorded_recipe
from ltlearn.experiments.opened_run import OpenedRun, open_run
from ltlearn.experiments.run_card import card_of_run, plots_of_run
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.hub import HubOptions, check_repo, publish
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.source import ExportSource
from ltlearn.exporting.timm_folder import export_timm_folder
from ltlearn.exporting.torchscript_file import export_torchscript_file
from ltlearn.names import EXPORT_KINDS
from ltlearn.utils.run_folder import Run

__all__ = ["export_run"]

_FOLDER = "export"
_ENDINGS = {"timm": "-timm", "onnx": ".onnx", "torchscript": ".pt", "hub": "-hub"}


def export_run(
    where: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    seed: int | None = None,
    normalize: bool = False,
    allow_hub: bool = False,
    repo: str | None = None,
    private: bool = False,
    license: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
) -> Exported:
    """Export the model of a run for programs without ltlearn.

    Args:
        where: The run's folder, or one of its files of weights.
        to: "timm" (a folder), "onnx" or "torchscript" (a file), or "hub": a folder with a model
            card, which is uploaded to the Hugging Face hub.
        out: The folder or file to write. None takes `export/METHOD-timm`, `export/METHOD.onnx`,
            `export/METHOD.pt` or `export/METHOD-hub` in the run's folder.
        method: The method whose classifier is exported, as for `Predictor`.
        seed: Seed of the run whose model is exported. None: 0, or the one of the file.
        normalize: Whether the model takes pixels in [0, 1] and normalises them itself; for "onnx"
            and "torchscript" alone.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.
        repo: For "hub": the repository, such as "user/birds".
        private: For "hub": whether a new repository is private.
        license: For "hub": identifier of the model's licence, such as "apache-2.0".
        dry_run: For "hub": whether to write the folder alone, and upload nothing.
        token: For "hub": the token. None takes the one that `hf auth login` stored.

    Returns:
        What was written, the largest difference of the logits, and the lines that load it.

    Raises:
        UserError: If a value is unknown, the run has no such method or seed, the head cannot be
            folded for timm, or nothing can be written.

    Example:
        >>> print(export_run("runs/birds", "onnx", "birds.onnx"))  # doctest: +SKIP
    """
    check_choice(spell("to"), to, EXPORT_KINDS)
    given = {"repo": repo, "private": private, "license": license, "dry_run": dry_run}
    _check_options(to, normalize, given)
    opened = open_run(Path(where).expanduser(), method, allow_hub, seed)
    source = source_of_run(opened)
    if out is None:
        out = Run(opened.folder).inside(f"{_FOLDER}/{opened.method}{_ENDINGS[to]}")
    out = Path(out).expanduser()
    _check_out(out, to)
    if to == "hub":
        options = HubOptions(repo, out, private, license, dry_run, token)
        facts = card_of_run(opened, source)
        return publish(source, facts, plots_of_run(opened.folder), options)
    if to == "timm":
        return export_timm_folder(source, out)
    write = export_onnx_file if to == "onnx" else export_torchscript_file
    return write(source, out, normalize)


def source_of_run(opened: OpenedRun) -> ExportSource:
    """Return what an export of a run's model needs.

    Args:
        opened: The run.
    """
    is_pretrained = False
    if (opened.folder / MANIFEST_FILE).is_file():
        is_pretrained = bool(recorded_recipe(Run(opened.folder)).model.pretrained)
    facts = opened.facts
    return ExportSource(
        opened.model, facts.classes, facts.class_counts, opened.preprocessing, opened.prior,
        opened.method, is_pretrained,
    )  # fmt: skip


def _check_options(to: str, normalize: bool, for_hub: Mapping[str, Any]) -> None:
    if normalize and to not in ("onnx", "torchscript"):
        raise UserError(
            f"{spell('normalize', True)} is for onnx and torchscript; timm's transforms normalise."
        )
    if to == "hub":
        if for_hub["repo"] is None:
            raise UserError(f"{spell('repo')} is missing: the repository, such as user/birds.")
        check_repo(for_hub["repo"])
        return
    for name, value in for_hub.items():
        if value not in (None, False):
            raise UserError(f"{spell(name, value)} is for {spell('to', 'hub')}; leave it out.")


def _check_out(out: Path, to: str) -> None:
    if to in ("timm", "hub") and out.is_file():
        raise UserError(f"{spell('out', str(out))} is a file; give a folder.")
    if to not in ("timm", "hub") and out.is_dir():
        raise UserError(f"{spell('out', str(out))} is a folder; give the path of a file.")
