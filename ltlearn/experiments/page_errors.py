"""The most confident errors of a run, with their images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data import LTDataLoaders
from ltlearn.data.items import pixels_of
from ltlearn.data.older import keep_older_names
from ltlearn.errors import UserError, mute_log
from ltlearn.experiments.build import make_loaders
from ltlearn.experiments.manifest import (
    read_manifest,
    recorded_data_path,
    recorded_recipe,
    recorded_split,
)
from ltlearn.experiments.options import RunOptions
from ltlearn.experiments.recorded import Predicted, RecordedRun
from ltlearn.names import SHOTS
from ltlearn.reporting.page import ErrorGroup, Errors, ErrorThumbnail, Text, thumbnail
from ltlearn.reporting.page.thumbnails import SMALL_SIDE
from ltlearn.training.selection import tested_part
from ltlearn.utils.run_folder import Run

__all__ = ["error_parts", "load_images"]

_PER_GROUP = 16


def load_images(
    run: Run, seed: int, data_path: str | Path | None = None
) -> tuple[LTDataLoaders | None, str]:
    """Return the loaders of a run, or None and the reason why there are none.

    Args:
        run: The run.
        seed: One of its seeds.
        data_path: Where the images are; None takes the path in the run's manifest.
    """
    try:
        manifest = read_manifest(run)
        options = RunOptions(
            data_path=data_path or recorded_data_path(manifest, run),
            device="cpu",
            num_workers=0,
            skip_bad=bool(manifest.skipped_images),
            follow_links=bool(manifest.follow_links),
        )
        # The run has reported its warnings.
        with mute_log():
            dls = make_loaders(recorded_recipe(run), seed, options)
        keep_older_names(dls, recorded_split(run, seed))
    except UserError as e:
        return None, e.message
    return dls, ""


def error_parts(recorded: RecordedRun, dls: LTDataLoaders | None, why: str) -> list[Any]:
    """Return the most confident errors of each shot group, with their images if they are there.

    Args:
        recorded: The run.
        dls: The loaders of its last seed; None if there are none.
        why: The reason for that.
    """
    method, seed = recorded.ends[1], recorded.seeds[-1]
    predicted = recorded.predicted(method, seed)
    if predicted is None:
        return []
    image_of, reason = _reader(recorded, predicted, dls, why)
    of_seed = f", seed {seed}" if len(recorded.seeds) > 1 else ""
    about = f"{recorded.labels[method]}{of_seed}: misclassified {recorded.part} images. "
    if image_of is None:
        about += f"The images cannot be shown: {reason.rstrip('.')}."
    else:
        about += "Some may be labelled wrongly. A number is the probability of the predicted class."
    shots = np.asarray(recorded.shots, dtype=object)[predicted.targets]
    groups = [_group(recorded, predicted, shots == name, name, image_of) for name in SHOTS]
    return [Text(about), Errors([group for group in groups if group.images])]


def _group(
    recorded: RecordedRun,
    predicted: Predicted,
    is_in_group: np.ndarray,
    name: str,
    image_of: Callable[[int], ErrorThumbnail] | None,
) -> ErrorGroup:
    wrong = np.flatnonzero(is_in_group & ~predicted.correct)
    first = wrong[np.argsort(-predicted.confidence[wrong], kind="stable")][:_PER_GROUP]
    shown = [] if image_of is None else [image_of(int(i)) for i in first]
    return ErrorGroup(name, len(wrong), int(is_in_group.sum()), shown)


def _reader(
    recorded: RecordedRun, predicted: Predicted, dls: LTDataLoaders | None, why: str
) -> tuple[Callable[[int], ErrorThumbnail] | None, str]:
    """Return a function that makes a thumbnail, or None and the reason."""
    if dls is None:
        return None, why or "this page was written without reading images"
    part = tested_part(dls)
    dataset, split = getattr(dls, part).dataset, dls.split.to_dict()
    seeds = [s.get("split") for s in recorded.manifest.seeds if isinstance(s, dict)]
    then = seeds[-1] if seeds and isinstance(seeds[-1], dict) else {}
    is_same = np.array_equal(np.asarray(dataset.targets), predicted.targets)
    if not is_same or then.get(part) != split[part]:
        return None, "the images are not those of the run any more"
    root, classes = Path(recorded.manifest.data_path), recorded.classes

    def make(i: int) -> ErrorThumbnail:
        source, is_small, name = "", False, f"image {i}"
        try:
            image = dataset.items[i].image
            name = _name_of(image, root) or name
            pixels = pixels_of(image, dataset.bits)
            source, is_small = thumbnail(pixels), max(pixels.shape[:2]) <= SMALL_SIDE
        except UserError:
            pass  # the file is gone since the images were listed
        of_true = float(predicted.of_true[i])
        return ErrorThumbnail(
            source,
            classes[predicted.targets[i]],
            classes[predicted.classes[i]],
            float(predicted.confidence[i]),
            None if np.isnan(of_true) else of_true,
            is_small,
            name,
        )

    return make, ""


def _name_of(image: Any, root: Path) -> str:
    """Return the path of an image below the folder of the data; empty if it has none."""
    if not isinstance(image, str | Path):
        return ""
    path = Path(image)
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
