"""Write a model as a TorchScript file, which torch loads without the model's code."""

import io
import json
import warnings
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from ltlearn.errors import UserError
from ltlearn.exporting.code import describe_input, pixel_lines
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.portable import check_logits, portable_model
from ltlearn.exporting.source import ExportSource
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.system_errors import reason_of

__all__ = ["FACTS_FILE", "export_torchscript_file", "is_torchscript"]

# The file inside the archive with classes, mean, std and so on, as JSON.
FACTS_FILE = "ltlearn.json"


def export_torchscript_file(source: ExportSource, file: Path, normalize: bool = False) -> Exported:
    """Write a trace of the model, once its logits equal the model's at several batch sizes.

    Args:
        source: The model.
        file: The file to write.
        normalize: Whether the model takes pixels in [0, 1] and normalises them itself.

    Raises:
        UserError: If the model cannot be traced, or the file cannot be written.
    """
    portable = portable_model(source, normalize)
    example = torch.rand(2, 3, *source.preprocessing.size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of shapes in Python and of its own retirement.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(portable, example, check_trace=False)
            buffer = io.BytesIO()
            facts = json.dumps(source.facts(normalize).to_dict(), ensure_ascii=False)
            torch.jit.save(traced, buffer, _extra_files={FACTS_FILE: facts})
            buffer.seek(0)
            loaded = torch.jit.load(buffer)
    except Exception as e:  # the tracer raises errors of many kinds about a network
        reason = reason_of(e)[:200]
        raise UserError(
            f"torch cannot trace this architecture ({reason}); export it to ONNX or a timm folder."
        ) from e
    difference = check_logits(source, loaded, not normalize)
    file = file.expanduser()
    with replaced_file(file, remedy="give another file") as out:
        out.write(buffer.getvalue())
    steps = source.preprocessing
    notes = [describe_input("Input", steps, normalize, FACTS_FILE)]
    notes += [steps.note()] if steps.is_own else []
    return Exported("torchscript", file, difference, _code(file, source, normalize), notes)


def is_torchscript(file: Path) -> bool:
    """Return whether a file is a TorchScript file that ltlearn wrote.

    Args:
        file: The file.
    """
    try:
        with ZipFile(file) as archive:
            return any(name.endswith(f"/extra/{FACTS_FILE}") for name in archive.namelist())
    except (OSError, BadZipFile, ValueError):
        return False


def _code(file: Path, source: ExportSource, normalize: bool) -> str:
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import torch",
        "from PIL import Image",
        "",
        f"extra = {{{FACTS_FILE!r}: ''}}",
        f"model = torch.jit.load({str(file)!r}, _extra_files=extra)",
        f"facts = json.loads(extra[{FACTS_FILE!r}])  # classes, mean, std, size",
        *pixel_lines(source.preprocessing),
        "images = torch.from_numpy(pixels)",
    ]
    if not normalize:
        lines += [
            'mean, std = (torch.tensor(facts[k]).view(3, 1, 1) for k in ("mean", "std"))',
            "images = (images - mean) / std",
        ]
    lines += ["with torch.no_grad():", "    logits = model(images)",
              'print(facts["classes"][logits[0].argmax()])']  # fmt: skip
    return "\n".join(lines)
