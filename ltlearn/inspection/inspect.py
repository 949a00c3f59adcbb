"""Inspect a dataset."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltlearn.data.counts import count_classes
from ltlearn.data.images import ImageSet
from ltlearn.data.readers.folders import find_class_folders
from ltlearn.errors import UserError, check_choice
from ltlearn.inspection.advise import advise
from ltlearn.inspection.report import KINDS, PARTS, Duplicates, Inspection
from ltlearn.inspection.scan import HASH_BYTES, Scan, scan_images
from ltlearn.inspection.text import PART_LABELS, name_some
from ltlearn.inspection.timing import measure_time
from ltlearn.metrics.shots import FEW_RULES
from ltlearn.utils.text import clean as _clean

__all__ = ["inspect_path", "inspect_images"]


def inspect_path(
    path: str | Path,
    *,
    quick: bool = False,
    few: str = "<20",
    device: str = "auto",
    timing_s: float = 3.0,
    **reading: Any,
) -> Inspection:
    """Inspect images as `LTDataLoaders.from_path` would read them.

    Args:
        path: A folder per class; or `train/` and any of `valid/` and `test/`, each with a folder
            per class; or a table or annotations.
        quick: Read headers alone and look for no copies.
        few: The few-shot convention, "<20" or "<=20".
        device: What the time is measured on: "auto" or a torch device.
        timing_s: Seconds to measure training steps for; 0 measures nothing.
        **reading: How a list is read: `image_col` and the like as for `LTDataLoaders.from_csv`, and
            `images`, the folder that its paths start from.

    Raises:
        UserError: If there is no such folder, or it has no class folders or no training images.
    """
    from ltlearn.data.readers.kinds import reading_options

    path = Path(path).expanduser()
    reading = reading_options(path, reading)
    ignored: Counter = Counter()
    stops: list[str] = []
    parts, classes, source, columns = _list_parts(path, reading, ignored, stops)
    shell = f"ltlearn train {shlex.quote(str(path))} {_as_flags(reading)}".strip()
    found = inspect_images(
        parts, classes, name=str(path), source=source, quick=quick, few=few, device=device,
        timing_s=0 if stops else timing_s, shell=shell,
    )  # fmt: skip
    if stops:
        found.stops, found.advice = stops + found.stops, None
    found.columns, found.ignored = columns, dict(ignored.most_common())
    return found


def _list_parts(path: Path, reading: dict[str, Any], ignored: Counter, stops: list[str]):
    """List the images: by part, classes, the Python call that would read them, and columns.

    Files in class folders that are taken for no images are counted in `ignored`; what a list
    says against itself is added to `stops`.
    """
    from ltlearn.data.readers.any import list_images
    from ltlearn.data.readers.kinds import source_kind

    kind = source_kind(path)
    if kind == "folder":
        return *_list_folder(path, ignored), {}
    listed = list_images(path, stops=stops, **reading)
    name = "from_json" if kind == "json" else "from_csv"
    said = "".join(f", {key}={value!r}" for key, value in reading.items())
    call = f"LTDataLoaders.{name}({str(path)!r}{said}"
    return listed.parts, listed.classes, call, listed.columns


def _as_flags(reading: Mapping[str, Any]) -> str:
    """Write how a list is read as options of the command line."""
    from ltlearn.data.readers.kinds import flag_of

    words = []
    for key, value in reading.items():
        words += [flag_of(key), "none" if value is False else str(value)]
    return shlex.join(words)


def _list_folder(root: Path, ignored: Counter) -> tuple[dict[str, ImageSet], list[str], str]:
    from ltlearn.data.readers.folders import list_class_folders
    from ltlearn.data.readers.split_folders import find_split_folders

    folders = find_split_folders(root)
    train, classes = list_class_folders(folders.get("train", root), others=ignored)
    parts = {"train": train}
    # A class that training has not is to be said here, not to stop the listing.
    later = {p.name for part in folders if part != "train" for p in _class_folders(folders[part])}
    classes = classes + sorted(later - set(classes))
    for part in PARTS[1:]:
        if part not in folders:
            continue
        try:
            parts[part] = list_class_folders(folders[part], classes, ignored)[0]
        except UserError:  # no class folders, or no images
            parts[part] = ImageSet(np.zeros(0, dtype=np.int64), paths=[], root=folders[part])
    return parts, classes, f"LTDataLoaders.from_folder({str(root)!r}"


def _class_folders(folder: Path) -> list[Path]:
    try:
        return find_class_folders(folder)
    except OSError:
        return []


def inspect_images(
    parts: Mapping[str, ImageSet],
    classes: Sequence[str],
    *,
    name: str = "images",
    source: str | None = None,
    quick: bool = False,
    few: str = "<20",
    device: str = "auto",
    timing_s: float = 3.0,
    shell: str | None = None,
) -> Inspection:
    """Look at every image, and say how to begin with them.

    Each is decoded once, in threads, and only its size, kind and two hashes are kept. Copies are
    images with the same pixels as `read_image` gives them, so that a PNG saved again is found,
    and images that differ in transparency alone are the same.

    Args:
        parts: "train" and any of "valid" and "test" to images.
        classes: Class names in label order.
        name: What the images are called; paths that begin with it are printed without it.
        source: The call of `LTDataLoaders` that reads them, without its closing bracket, for the
            code that is suggested.
        quick: Read headers alone and look for no copies.
        few: The few-shot convention, "<20" or "<=20".
        device: What the time is measured on: "auto" or a torch device.
        timing_s: Seconds to measure training steps for; 0 measures nothing.
        shell: The command that trains on them, without options; None suggests none.

    Raises:
        UserError: If there is no part "train", a part is unknown, a target is outside the classes,
            or `few` or `device` is not allowed.
    """
    check_choice("few", few, FEW_RULES)
    if "train" not in parts:
        raise UserError(f"parts must hold a part 'train', got {', '.join(parts) or 'none'}.")
    for part in parts:
        check_choice("part", part, PARTS)
    parts = {part: parts[part] for part in PARTS if part in parts}
    counts = {p: count_classes(d.targets, len(classes)).tolist() for p, d in parts.items()}
    found = Inspection(name, list(classes), counts, few, quick)
    scan = scan_images(parts, quick)
    found.seconds = scan.seconds
    found.formats = dict(scan.formats.most_common())
    found.kinds = {
        kind: n for i, kind in enumerate(KINDS) if (n := int((scan.kinds >> i & 1).sum()))
    }
    found.sizes = _sizes(scan)
    where = _Where(parts, classes)
    found.unreadable = [
        {"path": path, "part": part, "class": label, "reason": scan.bad[i]}
        for i in sorted(scan.bad)
        for path, part, label in [where(i)]
    ]
    if not quick:
        found.duplicates = _duplicates(scan, where, found.counts)
    found.stops = _stops(found, scan, parts)
    if not found.stops:
        found.advice = advise(found, scan, source, shell)
        if timing_s > 0:
            found.timing = measure_time(found, parts, device, timing_s)
    return found


def _stops(found: Inspection, scan: "Scan", parts: Mapping[str, ImageSet]) -> list[str]:
    """Say what would keep `LTDataLoaders` from reading the images, or a model from learning."""
    train = np.asarray(found.counts["train"])
    reasons = []
    if not train.any():
        reasons.append("there is no training image.")
    elif (train > 0).sum() < 2:
        only = _clean(found.classes[int(train.argmax())])
        reasons.append(f"only the class {only} has training images; a classifier needs two.")
    elif "valid" not in parts and train.max() < 2:
        reasons.append("no class has two training images, so no validation split can be carved.")
    elif not scan.good[: len(parts["train"])].any():
        reasons.append("no training image can be read.")
    untrained = found.untrained()
    if untrained:
        reasons.append(f"without a training image, but tested: {name_some(untrained)}.")
    for part in PARTS[1:]:
        if part in parts and not len(parts[part]):
            reasons.append(f"the {PART_LABELS[part]} folder has no images in class folders.")
    return reasons


def _sizes(scan: Scan) -> dict[str, Any]:
    good = np.flatnonzero(scan.good)
    if not len(good):
        return {}
    width, height = scan.width[good].astype(np.int64), scan.height[good].astype(np.int64)
    order = np.argsort(width * height, kind="stable")
    pick = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    sizes: dict[str, Any] = {k: [int(width[i]), int(height[i])] for k, i in pick.items()}
    sizes["different"] = len(np.unique(width << 32 | height))
    return sizes


class _Where:
    """Tells the path, part and class of the image at a place of the scan."""

    def __init__(self, parts: Mapping[str, ImageSet], classes: Sequence[str]):
        self.parts, self.classes = parts, classes
        self.ends = np.cumsum([len(data) for data in parts.values()])
        self.targets = np.concatenate([data.targets for data in parts.values()])

    def part_of(self, index) -> np.ndarray:
        """Return the number of the part of each."""
        return np.searchsorted(self.ends, index, side="right")

    def __call__(self, i: int) -> tuple[str, str, str]:
        part = list(self.parts)[int(self.part_of(i))]
        data, label = self.parts[part], self.classes[self.targets[i]]
        k = i - int(self.ends[int(self.part_of(i))]) + len(data)
        if data.images is not None:
            return f"{part}[{k}]", part, label
        return os.path.join(data.root, data.paths[k]), part, label


def _duplicates(scan: Scan, where: _Where, counts: Mapping[str, list[int]]) -> Duplicates:
    good = np.flatnonzero(scan.good)
    keys = np.ascontiguousarray(scan.pixel_hash[good]).view(f"V{HASH_BYTES}").ravel()
    _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(sizes)
    members = [good[order[end - n : end]] for end, n in zip(ends, sizes, strict=True) if n > 1]
    found = Duplicates(leaks={part: 0 for part in counts if part != "train"})
    names = list(counts)
    for group in sorted(members, key=lambda g: g[0]):
        parts, targets = where.part_of(group), where.targets[group]
        several = Counter(zip(parts.tolist(), targets.tolist(), strict=True))
        found.copies_within += sum(several.values()) - len(several)
        if len(set(targets.tolist())) > 1:
            found.conflicts += 1
            found.conflict_images += len(group)
        if len(set(parts.tolist())) > 1:
            found.across_parts += 1
            if parts[0] == 0:
                for part, n in Counter(parts[parts > 0].tolist()).items():
                    found.leaks[names[part]] += n
        paths, part_names, labels = zip(*(where(int(i)) for i in group), strict=True)
        found.groups.append(
            {
                "paths": list(paths),
                "parts": list(part_names),
                "classes": list(labels),
                "same_file": bool((scan.file_hash[group] == scan.file_hash[group[0]]).all()),
            }
        )
    return found
