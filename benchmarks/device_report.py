"""Print tables of the lines that `device.py` wrote, for the page on speed.

    python benchmarks/device_report.py [FOLDER]

FOLDER holds a file device-GPU.jsonl for each GPU that was measured, with the lines of `device.py`.
"""

import json
import sys
from pathlib import Path

NONE_YET = "No GPU was measured yet."
TITLES = {
    "floor": "The least that a step can take",
    "headline": "CIFAR-100-LT 100, ResNet-32 of width 64: GLMC, then SAMN",
    "loops": "Loops of stage 1",
    "waits": "Waits and kernels in a step",
    "pava": "`pava`, microseconds",
    "tests": "Tests",
}
# A table leaves these out; the file has them.
LEFT_OUT = {"part", "where", "longest", "stages", "versions", "failed_tests", "seconds_left"}
# A table has the lines with one of these keys; the others describe the run itself.
SHOWN = {
    "floor": ("gpu", "matmul_tflops", "copy_tb_per_s", "launch_us", "launch_in_graph_us"),
    "headline": ("method",),
    "loops": ("ms_per_step", "what"),
    "waits": ("what",),
    "pava": ("n",),
    "tests": ("pytest",),
}


def report(folder: Path) -> str:
    """Return the tables of all files as Markdown, or a sentence if there are none."""
    files = sorted(Path(folder).glob("device-*.jsonl"))
    if not files:
        return NONE_YET
    texts = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        gpu = next((row["gpu"] for row in rows if row.get("gpu")), file.stem)
        texts.append(f"#### {gpu}")
        for part, title in TITLES.items():
            lines = [row for row in rows if row["part"] == part]
            if tables := _tables([row for row in lines if any(k in row for k in SHOWN[part])]):
                texts += [f"**{title}**", *tables]
            texts += [
                f"Failed: {row['failed']} ({row['error']})" for row in lines if "failed" in row
            ]
    return "\n\n".join(texts)


def _tables(rows: list[dict]) -> list[str]:
    """Return a table for each set of columns, in the order of the rows."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        kept = {key: value for key, value in row.items() if key not in LEFT_OUT}
        groups.setdefault(tuple(kept), []).append(kept)
    tables = []
    for columns, group in groups.items():
        lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in group)]
        tables.append("\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines))
    return tables


def _text(value) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 0.01 else str(value)


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "results" / "speed"
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
