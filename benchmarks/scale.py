"""Time and peak memory of what grows with a data set, at the size of iNaturalist 2018.

    python benchmarks/scale.py index [--shares 0.01 0.1 1] [--repeats 3] [--folder DIR] [--json]

"index" lists the pictures of 437,513 training entries in 8,142 classes, and of 1 % and 10 % of
them: from annotations, from a list, and `check_benchmark` on the annotations. "json.load" is what
parsing the annotations in one piece would take, for comparison. Each is the best of some runs in a
process of its own; "peak" is the most memory the process held, "over imports" what of it the work
added. The pictures are hard links to one file a class. Nothing is opened, so their content does not
matter. Time per entry should stay the same, and memory grow with the paths alone.
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
    """Return counts that fall exponentially to a floor, with iNaturalist's total and extremes."""

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
    """Write annotations, lists and files; return how many training entries there are."""
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
                (root / path).write_bytes(b"picture")
                made[folder] = path
            else:
                os.link(root / made[folder], root / path)
        rows = list(zip(paths, of.tolist(), strict=True))
        (root / f"iNaturalist18_{file}.txt").write_text("".join(f"{p} {c}\n" for p, c in rows))
        write_annotations(root / f"{file}2018.json", rows, part)
    return len(labels)


def write_annotations(file: Path, rows: list, part: str) -> None:
    """Write what the published files have, the people's names included."""
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
    """Do one thing in this process and measure it."""
    from ltlearn.data.benchmarks import check_benchmark
    from ltlearn.data.listed import find_pictures, read_annotations, read_list

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
        data, missing = find_pictures(listing, root)
        assert not len(missing)
        entries = len(data)
    seconds = time.perf_counter() - start
    return {"entries": entries, "s": seconds, "peak": peak_mib(), "before": before}


def peak_mib() -> float:
    """Return the most memory this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count the memory of the process that started this one.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("index", help="list the pictures of a set")
    one.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--folder", help="where to write the files; None takes the system's")
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=index, show=print_index)
    once = parts.add_parser("index-once")
    once.add_argument("way")
    once.add_argument("root", type=Path)
    args = parser.parse_args()
    if args.part == "index-once":
        print(json.dumps(index_once(args.way, args.root)))
        return
    rows = args.run(args)
    if args.json:
        print(json.dumps({"machine": platform.platform(), args.part: rows}, indent=1))
    else:
        args.show(rows)


if __name__ == "__main__":
    main()
