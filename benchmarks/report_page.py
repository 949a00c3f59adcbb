"""Time and size of report.html for runs of several sizes, on made-up predictions.

    python benchmarks/report_page.py [--json]

No model is trained: the logits are noise with a bias to frequent classes. Times are seconds of the
processor; "plots" is the part of the figures. The images are 32 pixels a side; a thumbnail of a
photo takes about 4 kB.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ltlearn.experiments.report_page as report_page
from tests.reporting.helpers import make_run

CASES = [(10, 500, 2), (1000, 50, 2), (8142, 3, 2)]


def measure(classes: int, per_class: int, methods: int, folder: Path) -> dict:
    names = [f"class number {i}" for i in range(classes)]
    run, dls = make_run(folder, names, per_class, ("ce", "samn", "lws")[:methods], side=32)
    plots, whole = 0.0, report_page.figure_to_svg

    def timed(*arguments):
        nonlocal plots
        start = time.process_time()
        try:
            return whole(*arguments)
        finally:
            plots += time.process_time() - start

    report_page.figure_to_svg = timed
    try:
        start = time.process_time()
        page = report_page.write_report_page(run, dls)
        seconds = time.process_time() - start
    finally:
        report_page.figure_to_svg = whole
    size = page.stat().st_size / 1e6
    return {
        "classes": classes, "images": classes * per_class, "methods": methods,
        "seconds": round(seconds, 2), "plots": round(plots, 2), "megabytes": round(size, 2),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        # The first page of a process loads matplotlib, jinja2 and scikit-learn.
        measure(10, 50, 2, Path(folder) / "first")
        rows = [measure(*case, Path(folder) / str(i)) for i, case in enumerate(CASES)]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{key} {value:,}" for key, value in row.items()))


if __name__ == "__main__":
    main()
