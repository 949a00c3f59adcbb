"""Write a model as an ONNX file, and check it with onnxruntime."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.exporting.code import describe_input, pixel_lines
from ltlearn.exporting.exported import Exported
from ltlearn.exporting.portable import PortableModel, check_logits, portable_model
from ltlearn.exporting.source import ExportSource
from ltlearn.utils.atomic import replaced_file
from ltlearn.utils.extras import check_packages
from ltlearn.utils.system_errors import reason_of
from ltlearn.utils.torch_output import torch_silenced

__all__ = ["INPUT", "METADATA_KEY", "OUTPUT", "export_onnx_file", "import_onnxruntime"]

INPUT, OUTPUT = "images", "logits"
# The key of the file's metadata with what ltlearn needs to predict, as JSON.
METADATA_KEY = "ltlearn"
_MAX_BYTES = 2_000_000_000  # a protobuf message holds at most 2 GiB


def export_onnx_file(source: ExportSource, file: Path, normalize: bool = False) -> Exported:
    """Write one ONNX file with a free batch size, once its logits equal the model's.

    Args:
        source: The model.
        file: The file to write.
        normalize: Whether the graph takes pixels in [0, 1] and normalises them itself.

    Raises:
        UserError: If a package is missing, the model cannot be exported, or the file cannot be
            written.
    """
    check_packages("ONNX", "onnx", "onnx", "onnxscript", "onnxruntime")
    portable = portable_model(source, normalize)
    size = sum(v.numel() * v.element_size() for v in portable.state_dict().values())
    if size > _MAX_BYTES:
        raise UserError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB; export a smaller "
            "model, or a timm folder."
        )
    content = _graph(portable, source, normalize)
    session = import_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])

    def classify(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    difference = check_logits(source, classify, not normalize)
    file = file.expanduser()
    with replaced_file(file, remedy="give another file") as out:
        out.write(content)
    steps = source.preprocessing
    notes = [describe_input(f"Input {INPUT!r}", steps, normalize, "the file's metadata")]
    notes += [steps.note()] if steps.is_own else []
    return Exported("onnx", file, difference, _code(file, source, normalize), notes)


def import_onnxruntime():
    """Import onnxruntime.

    Raises:
        UserError: If it is not installed, or cannot be imported.
    """
    check_packages("ONNX", "onnx", "onnxruntime")
    import onnxruntime

    return onnxruntime


def _graph(portable: PortableModel, source: ExportSource, normalize: bool) -> bytes:
    """Return the content of the ONNX file."""
    import onnx

    example = torch.zeros(2, 3, *source.preprocessing.size)
    try:
        with torch_silenced():
            program = torch.onnx.export(
                portable,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as e:  # the exporter raises errors of many kinds about a network
        reason = reason_of(e)[:200]
        raise UserError(
            f"torch cannot export this architecture to ONNX ({reason}); export it to "
            "TorchScript or a timm folder."
        ) from e
    proto = program.model_proto
    facts = source.facts(normalize)
    values = {key: facts[key] for key in ("classes", "mean", "std", "size", "normalize")}
    values[METADATA_KEY] = facts.to_dict()
    props = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    onnx.helper.set_model_props(proto, {**props, "ltlearn_version": facts.version})
    return proto.SerializeToString()


def _code(file: Path, source: ExportSource, normalize: bool) -> str:
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image",
        "",
        f"session = onnxruntime.InferenceSession({str(file)!r})",
        "metadata = session.get_modelmeta().custom_metadata_map",
        *pixel_lines(source.preprocessing),
    ]
    if not normalize:
        lines += [
            'mean, std = (np.float32(json.loads(metadata[k])) for k in ("mean", "std"))',
            "pixels = (pixels - mean[:, None, None]) / std[:, None, None]",
        ]
    lines += [
        f"(logits,) = session.run(None, {{{INPUT!r}: pixels}})",
        'print(json.loads(metadata["classes"])[logits[0].argmax()])',
    ]
    return "\n".join(lines)
