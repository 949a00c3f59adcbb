"""Look-alikes of the large benchmarks: their layouts and file formats, with tiny images.

Each writer takes the training counts per class, and returns the images that a reader should find:
{part: [(path on disk, label), ...]} in the order of the list.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ltlearn.data.benchmarks.facts import ListedSet, counts_name
from ltlearn.data.benchmarks.registry import BENCHMARKS

SYNSETS = [f"n{1440764 + 37 * c:08d}" for c in range(40)]
# Plain names, names with a kind, and one whose kind has an underscore.
SCENES = [
    "airfield", "apartment_building-outdoor", "arena-hockey", "arena-rodeo", "art_gallery",
    "bus_station-indoor", "canal-natural", "canal-urban", "zen_garden",
]  # fmt: skip
SUPER = ["Plantae", "Insecta", "Aves"]


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def facts_of(name: str, counts, valid: int = 2, test: int = 3) -> ListedSet:
    """Return the row of a benchmark with these counts as the published ones."""
    each = {"valid": valid, "test": test}
    each = {part: n for part, n in each.items() if part in BENCHMARKS[name].sizes}
    counts = np.asarray(counts)
    many, few = int((counts > 100).sum()), int((counts < 20).sum())
    return replace(
        BENCHMARKS[name],
        classes=len(counts),
        sizes={"train": int(counts.sum())} | {p: n * len(counts) for p, n in each.items()},
        each=each,
        largest=int(counts.max()),
        smallest=int(counts.min()),
        shots={"<20": (many, len(counts) - many - few, few)},
        counts_sha256=counts_name(counts),
        sorted_sha256=counts_name(np.sort(counts)),
    )


def write_list(file: Path, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{path} {label}\n" for path, label in rows), encoding="utf-8")


def write_imagenet_lt(root: Path, counts, valid: int = 2, test: int = 3, lists: str = "") -> dict:
    """Write `train/<synset>/` and `val/<synset>/`; the validation list points into train/."""
    made = {"train": [], "valid": [], "test": []}
    number = 0
    for c, n in enumerate(counts):
        for part, many in (("train", n), ("valid", valid), ("test", test)):
            for _ in range(many):
                number += 1
                if part == "test":
                    path = f"val/{SYNSETS[c]}/ILSVRC2012_val_{number:08d}.JPEG"
                else:
                    path = f"train/{SYNSETS[c]}/{SYNSETS[c]}_{number}.JPEG"
                save_image(root / path, number)
                made[part].append((path, c))
    for part, file in (("train", "train"), ("valid", "val"), ("test", "test")):
        write_list(root / lists / f"ImageNet_LT_{file}.txt", made[part])
    return made


def places_path(style: str, part: str, scene: str, number: int) -> str:
    if part == "test":
        folder = f"val/{scene}" if style == "hyphens" else "val_256"
        return f"{folder}/Places365_val_{number:08d}.jpg"
    folder = f"train/{scene}"
    if style == "nested":
        folder = f"data_256/{scene[0]}/{scene.replace('-', '/')}"
    return f"{folder}/{number:08d}.jpg"


def write_places_lt(
    root: Path, counts, list_style: str, disk_style: str, valid: int = 2, test: int = 3
) -> dict:
    """Write Places-LT; each style is "hyphens" (train/arena-hockey/) or "nested" (data_256/a/)."""
    made = {"train": [], "valid": [], "test": []}
    listed = {"train": [], "valid": [], "test": []}
    number = 0
    for c, n in enumerate(counts):
        for part, many in (("train", n), ("valid", valid), ("test", test)):
            for _ in range(many):
                number += 1
                path = places_path(disk_style, part, SCENES[c], number)
                save_image(root / path, number)
                made[part].append((path, c))
                listed[part].append((places_path(list_style, part, SCENES[c], number), c))
    for part, file in (("train", "train"), ("valid", "val"), ("test", "test")):
        write_list(root / f"Places_LT_{file}.txt", listed[part])
    return made


def annotations(rows, categories: dict[int, str], year: int = 2018) -> dict:
    """Return COCO-style annotations of [(file name, category id), ...], as iNaturalist has them."""
    return {
        "info": {"year": year, "description": "", "date_created": "2018-02-13 10:42:54"},
        "images": [
            {
                "license": 3,
                "file_name": path,
                "rights_holder": 'Ana María {Pérez} \\ "ñ"',
                "height": 4,
                "width": 5,
                "id": 1000 + i,
            }
            for i, (path, _) in enumerate(rows)
        ],
        "licenses": [{"url": "http://creativecommons.org/", "id": 1, "name": "CC [BY]"}],
        "annotations": [
            {"image_id": 1000 + i, "category_id": c, "id": 1000 + i}
            for i, (_, c) in enumerate(rows)
        ],
        "categories": [
            {"name": name, "supercategory": SUPER[i % 3], "id": one, "class": "x"}
            for i, (one, name) in enumerate(categories.items())
        ],
    }


def write_json(file: Path, content: dict, **kw) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, **kw), encoding="utf-8")
    return file


def write_inat(root: Path, counts, form: str = "json", test: int = 3, top: str = "") -> dict:
    """Write iNaturalist 2018; `form` is "json" or "list", `top` the folder if not as published."""
    made = {"train": [], "test": []}
    rows = {"train": [], "test": []}
    number = 0
    for c, n in enumerate(counts):
        for part, many in (("train", n), ("test", test)):
            for _ in range(many):
                number += 1
                inner = f"{SUPER[c % 3]}/{c}/{number:032x}.jpg"
                save_image(root / (top or "train_val2018") / inner, number)
                made[part].append((f"{top or 'train_val2018'}/{inner}", c))
                rows[part].append((f"train_val2018/{inner}", c))
    for part, file in (("train", "train"), ("test", "val")):
        if form == "json":
            names = {c: f"species {c}" for c in range(len(counts))}
            write_json(root / f"{file}2018.json", annotations(rows[part], names))
        else:
            write_list(root / f"iNaturalist18_{file}.txt", rows[part])
    return made
