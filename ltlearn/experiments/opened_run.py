"""Open the model of a run: find the weights of a method, and load them once they are checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ltlearn.errors import UserError, spell_call
from ltlearn.experiments.compared import ComparedClassifier, find_compared, kept_methods
from ltlearn.experiments.manifest import stage_name
from ltlearn.experiments.model_facts import MODEL_FILE, ModelFacts, read_model_facts
from ltlearn.exporting.source import Preprocessing
from ltlearn.exporting.torchscript_file import is_torchscript
from ltlearn.methods import METHODS
from ltlearn.models.backbone import LTModel, fit_to_shapes
from ltlearn.models.pretrained import check_arch_source, create_lt_model
from ltlearn.models.weights_file import check_sizes
from ltlearn.training.kept import KEPT_FOLDER, KeptName
from ltlearn.utils.run_folder import Run
from ltlearn.utils.stored_weights import check_stored_weights, read_shapes
from ltlearn.utils.text import clean

__all__ = ["OpenedRun", "open_run"]

_MAX_FREE_HEAD = 10_000_000  # weights of a head that may be made before its file is read


@dataclass(frozen=True)
class OpenedRun:
    """The model of a run.

    Args:
        folder: The run's folder.
        facts: What its `model.json` states.
        model: The model, on the CPU.
        method: The method that made the classifier.
        prior: The class prior that the logits assume: "train" or "uniform".
    """

    folder: Path
    facts: ModelFacts
    model: LTModel
    method: str
    prior: str

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how an image becomes the model's input."""
        facts = self.facts
        mean, std, size = tuple(facts.mean), tuple(facts.std), tuple(facts.size)
        return Preprocessing(size, mean, std, facts.in_memory, facts.bits)


def open_run(
    where: Path, method: str | None = None, allow_hub: bool = False, seed: int | None = None
) -> OpenedRun:
    """Load the model of a run.

    Args:
        where: The run's folder, or one of its files of weights.
        method: As for `Predictor`.
        allow_hub: As for `Predictor`.
        seed: Seed of the run whose weights are loaded. None: 0, or the one of the file.

    Raises:
        UserError: As `Predictor`, or if the run has no such seed.
    """
    folder, weights, method = _find(where, method)
    facts = read_model_facts(folder)
    check_arch_source(facts.arch, folder, allow_hub)
    if method is None:
        method = list(facts.methods)[-1]
    compared = find_compared(folder, weights, method, facts.methods, seed)
    if compared is not None:
        method, weights = compared.method, compared.stage1_file
    elif method not in facts.methods:
        names = ", ".join(dict.fromkeys([*facts.methods, *kept_methods(Run(folder))]))
        compare = spell_call("compare_run", run=str(folder), methods=method)
        # A comparison adds only a method that exists.
        adds = f" {compare} adds it." if method in METHODS else ""
        raise UserError(f"the run {folder} has no method {method!r}; it has {names}.{adds}")
    is_first = method in METHODS and METHODS[method].kind == "stage 1"
    name = stage_name(seed or 0, "stage1" if is_first else method)
    weights = weights or folder / f"{name}.safetensors"
    if seed is not None:
        _check_seed(folder, weights, seed)
    model = _load_model(facts, weights)
    if compared is not None:
        compared.put_into(model)
        _check_finite(model, compared.run.path / f"{compared.name}.safetensors")
    return OpenedRun(folder, facts, model.eval(), method, _prior_of(facts, method, compared))


def _prior_of(facts: ModelFacts, method: str, compared: ComparedClassifier | None) -> str:
    return facts.methods[method]["prior"] if compared is None else compared.prior(facts.methods)


def _check_seed(folder: Path, weights: Path, seed: int) -> None:
    if weights.is_file():
        return
    files = (folder / "checkpoints").glob("seed*-stage1.safetensors")
    seeds = sorted(int(number) for f in files if (number := f.name[4:].split("-")[0]).isdigit())
    names = ", ".join(map(str, seeds)) or "none"
    raise UserError(f"the run {folder} has no weights of the seed {seed}; it has {names}.")


def _find(where: Path, method: str | None) -> tuple[Path, Path | None, str | None]:
    """Return the run's folder, the file of weights if one was given, and the method."""
    if where.is_dir():
        return where, None, method
    if where.suffix != ".safetensors":
        if where.suffix.lower() == ".onnx" or is_torchscript(where):
            raise UserError(
                f"{where} is a model that was exported from a run; give the run's folder, or for "
                "predictions a timm folder or an ONNX file."
            )
        if where.is_file():
            retrain = spell_call("retrain", checkpoint=str(where), data="DIR", arch="NAME")
            raise UserError(
                f"{where} does not name its architecture and classes; make a run of it with "
                f"{retrain}, and give the folder of the run."
            )
        raise UserError(f"there is no run {where}; give a run's folder, or a .safetensors file.")
    if not where.is_file():
        raise UserError(
            f"there is no file {where}; give one of a run's checkpoints, or the run's folder."
        )
    folders = (where.parent, where.absolute().parent.parent)
    folder = next((f for f in folders if (f / MODEL_FILE).is_file()), None)
    if folder is None:
        raise UserError(
            f"there is no {MODEL_FILE} beside {where} or in the folder above, and it describes the "
            "model; give the run's folder, or copy its file there."
        )
    kept = KeptName.from_stem(where.stem) if where.absolute().parent.name == KEPT_FOLDER else None
    own = where.stem.partition("-")[2] if kept is None else kept.method
    if own == "stage1":
        known = read_model_facts(folder).methods
        # A run may have no method of stage 1: its classifier is then not trained.
        own = next((m for m in known if m in METHODS and METHODS[m].kind == "stage 1"), own)
    if method is not None and method != own:
        raise UserError(f"{where} holds the method {own or where.stem!r}, not {method!r}.")
    return folder, where, own


def _load_model(facts: ModelFacts, weights: Path) -> LTModel:
    """Make the model and load its weights, once both are known to be what the run states."""
    # Before anything takes memory, the network is made without memory and compared with the file.
    shapes = read_shapes(weights)
    with torch.device("meta"):
        empty = _make_model(facts)
        fit_to_shapes(empty, shapes)
        _check_shapes(empty, shapes, weights, facts)
    # Only now, because the size of the file is now known to be right.
    check_stored_weights(weights)
    state = Run(weights.parent).load_tensors(weights.name)
    model = _make_model(facts)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise _foreign_error(weights, facts) from None
    _check_finite(model, weights)
    return model


def _check_finite(model: LTModel, weights: Path) -> None:
    for name, values in model.state_dict().items():
        if values.is_floating_point() and not values.isfinite().all():
            raise UserError(
                f"the weights in {weights} are not finite ({clean(name)}): the training diverged, "
                "or the file was changed; train again with a lower learning rate."
            )


def _make_model(facts: ModelFacts) -> LTModel:
    classes, size = len(facts.classes), tuple(facts.size)
    try:
        return create_lt_model(facts.arch, classes, False, size, **facts.arguments)
    except UserError:
        raise
    except Exception as e:  # timm passes on whatever a network raises about its arguments
        raise UserError(
            f"the network {facts.arch} of the run cannot be made ({type(e).__name__}: {e})."
        ) from e


def _check_shapes(
    model: LTModel, shapes: Mapping[str, tuple[int, ...]], weights: Path, facts: ModelFacts
) -> None:
    """Raise a `UserError` unless the header of a file has the shapes of a model."""
    own = {f"backbone.{k}": tuple(v.shape) for k, v in model.backbone.state_dict().items()}
    for key in own.keys() | shapes.keys():
        if not key.startswith("head.") and own.get(key) != shapes.get(key):
            raise _foreign_error(weights, facts)
    check_sizes(weights, model)
    heads = ((len(facts.classes), model.head.in_features), tuple(model.head.weight.shape))
    # Kinds of heads from outside may have other tensors.
    if math.prod(heads[0]) > _MAX_FREE_HEAD and not set(heads) & set(shapes.values()):
        raise _foreign_error(weights, facts)


def _foreign_error(weights: Path, facts: ModelFacts) -> UserError:
    return UserError(f"the weights in {weights} are not those of {facts.arch}.")
