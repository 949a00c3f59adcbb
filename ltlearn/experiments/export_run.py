"""Export the model of a run."""

from pathlib import Path

from ltlearn.errors import UserError, check_choice, spell
from ltlearn.experiments.manifest import MANIFEST_FILE, recorded_recipe
from ltlearn.experiments.opened_run import OpenedRun, open_run
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.source import ExportSource
from ltlearn.exporting.timm_folder import export_timm_folder
from ltlearn.exporting.torchscript_file import export_torchscript_file
from ltlearn.names import EXPORT_KINDS
from ltlearn.utils.run_folder import Run

__all__ = ["export_run"]

_FOLDER = "export"
_ENDINGS = {"timm": "", "onnx": ".onnx", "torchscript": ".pt"}


def export_run(
    where: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    seed: int | None = None,
    normalize: bool = False,
    allow_hub: bool = False,
) -> Exported:
    """Export the model of a run for programs without ltlearn.

    Args:
        where: The run's folder, or one of its files of weights.
        to: "timm" (a folder), "onnx" or "torchscript" (a file).
        out: The folder or file to write. None takes `export/METHOD-timm`, `export/METHOD.onnx` or
            `export/METHOD.pt` in the run's folder.
        method: The method whose classifier is exported, as for `Predictor`.
        seed: Seed of the run whose model is exported. None: the first.
        normalize: Whether the model takes pixels in [0, 1] and normalises them itself; not for
            "timm", whose transforms normalise.
        allow_hub: Whether the architecture may be one of the Hugging Face hub or of a local folder.

    Returns:
        What was written, the largest difference of the logits, and the lines that load it.

    Raises:
        UserError: If a value is unknown, the run has no such method or seed, the head cannot be
            folded for timm, or nothing can be written.

    Example:
        >>> print(export_run("runs/birds", "onnx", "birds.onnx"))  # doctest: +SKIP
    """
    kinds = [kind for kind in EXPORT_KINDS if kind in _ENDINGS]
    check_choice(spell("to"), to, kinds)
    if normalize and to == "timm":
        raise UserError(
            f"{spell('normalize', True)} has no meaning for timm, whose transforms normalise; "
            "leave it out."
        )
    opened = open_run(Path(where).expanduser(), method, allow_hub, seed)
    source = source_of_run(opened)
    if out is None:
        name = f"{opened.method}-timm" if to == "timm" else f"{opened.method}{_ENDINGS[to]}"
        out = opened.folder / _FOLDER / name
    out = Path(out).expanduser()
    _check_out(out, to)
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


def _check_out(out: Path, to: str) -> None:
    if to == "timm" and out.is_file():
        raise UserError(f"{spell('out', str(out))} is a file; give a folder.")
    if to != "timm" and out.is_dir():
        raise UserError(f"{spell('out', str(out))} is a folder; give the path of a file.")
