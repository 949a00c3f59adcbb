"""Time and memory at scale: measured at the size of iNaturalist 2018, and a cost model for more.

    python benchmarks/scale.py fit [--folder DIR]      # about two minutes on one core
    python benchmarks/scale.py model
    python benchmarks/scale.py rows [--images 10000000] [--folder DIR]
    python benchmarks/scale.py classes [--classes 1000000] [--width 64] [--batch 64]
    python benchmarks/scale.py index [--shares 0.01 0.1 1] [--repeats 3] [--folder DIR] [--json]
    python benchmarks/scale.py stage2 [--shares 0.01 0.1 1] [--batch 512] [--folder DIR] [--json]

"fit" measures the terms of the cost model (`cost_model.py`) on one core and writes `scale.json`
beside this file; "model" prints its tables from that file. "rows" lists the images of a large table
without images and draws the orders of an epoch. "classes" takes steps of a SAMN head with a million
classes. Their times are CPU seconds of one thread.

"index" lists the images of 437,513 training entries in 8,142 classes, and of 1 % and 10 % of
the entries: from annotations, from a list, and with `check_benchmark` on the annotations.
"json.load" parses the annotations only, for comparison. Each figure is the best of several runs,
each in its own process. "peak" is the peak memory of the process, and "over imports" is the peak
without the memory that the imports use. The images are hard links to one file per class. No image
is opened, so their content does not matter. The time per entry should be constant.

"stage2" trains one epoch of SAMN with all 8,142 classes on 437,513 random float16 features of 2,048
numbers in a memory-mapped file, and on 1 % and 10 % of them. A tenth as many images validate, and
the evaluation before and after training is included. "peak" includes the mapped pages of the file;
"own" is the memory without files at the end.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ENTRIES, CLASSES, LARGEST, SMALLEST = 437_513, 8_142, 1_000, 2
SUPER = ["Plantae", "Insecta", "Aves", "Actinopterygii", "Fungi", "Reptilia", "Mollusca"]
VAL_EACH = 3


# ---------------------------------------------------------------- index


def counts_like_inat() -> np.ndarray:
    """Return exponentially falling counts with the total, maximum and minimum of iNaturalist."""

    def at(rate: float) -> np.ndarray:
        falling = LARGEST * np.exp(-rate * np.arange(CLASSES))
        return np.maximum(SMALLEST, np.floor(falling)).astype(np.int64)

    low, high = 1e-5, 1.0  # the total falls with the rate
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() > ENTRIES else (low, middle)
    counts = at(high)
    counts[1 : 1 + ENTRIES - counts.sum()] += 1
    return counts


def write_set(root: Path, share: float) -> int:
    """Write annotations, lists and files; return the number of training entries."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), counts_like_inat()))
    labels = labels[: round(ENTRIES * share)]
    made: dict[str, str] = {}
    for part, file, of in (
        ("train", "train", labels),
        ("test", "val", np.repeat(np.arange(CLASSES), max(1, round(VAL_EACH * share)))),
    ):
        names = [rng.bytes(16).hex() for _ in of]
        paths = []
        for c, name in zip(of.tolist(), names, strict=True):
            folder = f"train_val2018/{SUPER[c % len(SUPER)]}/{c}"
            path = f"{folder}/{name}.jpg"
            paths.append(path)
            if folder not in made:
                os.makedirs(root / folder)
                (root / path).write_bytes(b"image")
                made[folder] = path
            else:
                os.link(root / made[folder], root / path)
        rows = list(zip(paths, of.tolist(), strict=True))
        (root / f"iNaturalist18_{file}.txt").write_text("".join(f"{p} {c}\n" for p, c in rows))
        write_annotations(root / f"{file}2018.json", rows, part)
    return len(labels)


def write_annotations(file: Path, rows: list, part: str) -> None:
    """Write annotations with the fields of the published files, including names of people."""
    first = 1 if part == "train" else 900_001
    content = {
        "info": {"year": 2018, "version": 1, "description": "like iNaturalist 2018"},
        "images": [
            {
                "id": first + i,
                "width": 800,
                "height": 533,
                "file_name": path,
                "license": 3,
                "rights_holder": f"Ana María Photographer {i % 9_973}",
            }
            for i, (path, _) in enumerate(rows)
        ],
        "licenses": [{"id": 3, "name": "CC BY-NC", "url": "https://creativecommons.org/"}],
        "annotations": [
            {"id": first + i, "image_id": first + i, "category_id": c}
            for i, (_, c) in enumerate(rows)
        ],
        "categories": [
            {"id": c, "name": f"species {c}", "supercategory": SUPER[c % len(SUPER)]}
            for c in range(CLASSES)
        ],
    }
    with file.open("w", encoding="utf-8") as out:
        json.dump(content, out)


def index_once(way: str, root: Path) -> dict:
    """Read the set in one way in this process, and measure it."""
    from ltlearn.data.benchmarks.check import check_benchmark
    from ltlearn.data.readers.annotations import read_annotations
    from ltlearn.data.readers.listing import find_images, read_list

    before, start = peak_mib(), time.perf_counter()
    if way == "json.load":
        with (root / "train2018.json").open(encoding="utf-8") as file:
            entries = len(json.load(file)["images"])
    elif way == "check":
        report = check_benchmark("inat2018", root)
        assert not report.missing and not report.absent
        entries = ENTRIES
    else:
        reader, file = {
            "annotations": (read_annotations, "train2018.json"),
            "list": (read_list, "iNaturalist18_train.txt"),
        }[way]
        listing = reader(root / file)
        data, missing = find_images(listing, root)
        assert not len(missing)
        entries = len(data)
    seconds = time.perf_counter() - start
    return {"entries": entries, "s": seconds, "peak": peak_mib(), "before": before}


def peak_mib() -> float:
    """Return the peak memory of this process, in MiB."""
    # getrusage would count the memory of the process that started this one.
    own = status_mib("VmHWM")
    return own or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status_mib(key: str) -> float:
    """Return a memory figure of this process from Linux, in MiB; 0 on another system."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(key)), 0.0)


def in_a_process(*args: str) -> dict:
    """Run this script with the arguments and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *args], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def index(args) -> list[dict]:
    rows = []
    for share in args.shares:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            entries = write_set(Path(folder), share)
            size = (Path(folder) / "train2018.json").stat().st_size / 1e6
            print(f"{entries:,} entries, {size:.0f} MB of annotations", file=sys.stderr)
            for way in ("annotations", "list", "check", "json.load"):
                runs = [
                    in_a_process("index-once", way, folder) for _ in range(max(1, args.repeats))
                ]
                best = min(runs, key=lambda run: run["s"])
                rows.append({**best, "way": way, "entries": entries})
    return rows


def print_index(rows: list[dict]) -> None:
    heads = "us an entry", "peak MiB", "over imports"
    print(f"{'way':12} {'entries':>8} {'s':>6}" + "".join(f" {h:>12}" for h in heads))
    for row in rows:
        added = row["peak"] - row["before"]
        print(
            f"{row['way']:12} {row['entries']:8,} {row['s']:6.2f} "
            f"{row['s'] / row['entries'] * 1e6:12.1f} {row['peak']:12.0f} {added:12.0f}"
        )


# ---------------------------------------------------------------- stage 2


WIDTH = 2_048


def write_features(path: Path, rows: int) -> None:
    """Write random features, in pieces."""
    rng = np.random.default_rng(0)
    piece = rng.standard_normal((4096, WIDTH), dtype=np.float32).astype(np.float16)
    array = np.lib.format.open_memmap(path, "w+", np.float16, (rows, WIDTH))
    for start in range(0, rows, len(piece)):
        array[start : start + len(piece)] = piece[: rows - start]
    array.flush()


def stage2_once(folder: Path, batch: int) -> dict:
    """Train an epoch of SAMN on the features of a folder; return seconds and peak MiB."""
    import torch
    from torch import nn

    from ltlearn import SAMN, LTDataLoaders
    from ltlearn.learner import LTLearner
    from ltlearn.models.backbone import LTModel
    from ltlearn.training.features import Features

    arrays = {p: np.load(folder / f"{p}.npy", mmap_mode="r") for p in ("train", "valid")}
    imports = peak_mib()
    labels = np.repeat(np.arange(CLASSES), counts_like_inat())
    rng = np.random.default_rng(0)
    # Every class keeps an image, so that counts, order and logits have their full size.
    targets = {p: rng.permutation(np.resize(rng.permutation(labels), len(a)))
               for p, a in arrays.items()}  # fmt: skip
    targets["train"][: min(CLASSES, len(targets["train"]))] = np.arange(CLASSES)[
        : len(targets["train"])
    ]
    images = {p: np.zeros((len(a), 1, 1, 3), np.uint8) for p, a in arrays.items()}
    dls = LTDataLoaders.from_arrays(
        images["train"], targets["train"], valid=(images["valid"], targets["valid"]),
        classes=[str(c) for c in range(CLASSES)], transform="none", device="cpu",
    )  # fmt: skip

    class OnFeatures(LTLearner):
        """A learner that reads the features from the files instead of computing them."""

        def features(self, part, views=0, seed=0):
            return Features([arrays[part]], torch.from_numpy(targets[part]))

    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, WIDTH))
    learn = OnFeatures(dls, LTModel(backbone, nn.Linear(WIDTH, CLASSES)), precision="fp32")
    began = time.perf_counter()
    learn.retrain_classifier(1, bs=batch, cbs=SAMN())
    seconds = time.perf_counter() - began
    record = learn.trajectory["seconds"]
    epoch = record[1] - record[0]
    return {
        "images": len(arrays["train"]), "seconds": seconds, "epoch": epoch,
        "images_per_second": len(arrays["train"]) / epoch, "peak": peak_mib(),
        "own": status_mib("RssAnon"), "imports": imports,
    }  # fmt: skip


def stage2(args) -> list[dict]:
    """Measure stage 2 at each share, each in its own process."""
    rows = []
    for share in args.shares:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            images = round(ENTRIES * share)
            write_features(Path(folder) / "train.npy", images)
            write_features(Path(folder) / "valid.npy", max(CLASSES // 10, images // 10))
            rows.append(in_a_process("stage2-once", folder, str(args.batch)))
    return rows


def print_stage2(rows: list[dict]) -> None:
    """Print the table of stage 2."""
    head = f"{'images':>10}{'epoch, s':>10}{'images/s':>10}{'peak MiB':>10}{'of it imports':>15}"
    print(head + f"{'own MiB':>10}")
    for r in rows:
        print(
            f"{r['images']:>10,}{r['epoch']:>10.1f}{r['images_per_second']:>10.0f}"
            f"{r['peak']:>10.0f}{r['imports']:>15.0f}{r['own']:>10.0f}"
        )


# ---------------------------------------------------------------- the cost model


TERMS = Path(__file__).with_name("scale.json")


def rows_in_a_process(file: Path) -> dict:
    return in_a_process("rows-once", str(file))


def fit(args) -> dict:
    """Measure the terms of the cost model, and write them."""
    from cost_terms import measure

    terms, facts = measure(args.folder, rows_in_a_process)
    machine = {"platform": platform.platform(), "processor": processor(), "threads": 1}
    content = {"machine": machine, "terms": terms.to_dict(), "measured": facts}
    TERMS.write_text(json.dumps(content, indent=1) + "\n")
    return content


def processor() -> str:
    """Return the name of the processor from Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def model(args) -> dict:
    """Return the terms that "fit" wrote."""
    return json.loads(TERMS.read_text())


def print_model(content: dict) -> None:
    from cost_model import Terms, tables

    for name, value in content["terms"].items():
        print(f"{name:22} {value:.3g}")
    print(f"\n{tables(Terms(**content['terms']))}")


def rows(args) -> dict:
    """List a table of many images in a process of its own."""
    from cost_terms import write_table

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return rows_in_a_process(write_table(Path(folder) / "table.csv", args.images))


def classes(args) -> dict:
    from cost_terms import many_classes

    return many_classes(args.classes, args.width, args.batch)


def print_facts(facts: dict) -> None:
    for name, value in facts.items():
        print(f"{name:20} {value:,.3f}" if name.endswith("_s") else f"{name:20} {value:,}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("index", help="list the images of a set")
    one.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--folder", help="where to write the files; None takes the system's")
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=index, show=print_index)
    once = parts.add_parser("index-once")
    once.add_argument("way")
    once.add_argument("root", type=Path)
    two = parts.add_parser("stage2", help="an epoch of SAMN on features from disk")
    two.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    two.add_argument("--batch", type=int, default=512)
    two.add_argument("--folder", help="where to write the features; None takes the system's")
    two.add_argument("--json", action="store_true")
    two.set_defaults(run=stage2, show=print_stage2)
    once = parts.add_parser("stage2-once")
    once.add_argument("folder", type=Path)
    once.add_argument("batch", type=int)
    for name, run, show in (
        ("fit", fit, print_model), ("model", model, print_model), ("rows", rows, print_facts),
        ("classes", classes, print_facts),
    ):  # fmt: skip
        part = parts.add_parser(name, help=run.__doc__)
        part.add_argument("--folder", help="where to write files; None takes the system's")
        part.add_argument("--json", action="store_true")
        part.set_defaults(run=run, show=show)
        if name == "rows":
            part.add_argument("--images", type=int, default=10_000_000)
        if name == "classes":
            part.add_argument("--classes", type=int, default=1_000_000)
            part.add_argument("--width", type=int, default=64)
            part.add_argument("--batch", type=int, default=64)
    once = parts.add_parser("rows-once")
    once.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.part == "rows-once":
        from cost_terms import load_rows

        print(json.dumps(load_rows(args.file)))
        return
    if args.part == "stage2-once":
        print(json.dumps(stage2_once(args.folder, args.batch)))
        return
    if args.part == "index-once":
        print(json.dumps(index_once(args.way, args.root)))
        return
    result = args.run(args)
    if args.json:
        print(json.dumps({"machine": platform.platform(), args.part: result}, indent=1))
    else:
        args.show(result)


if __name__ == "__main__":
    main()
