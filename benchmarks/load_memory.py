"""Memory and time to load a folder of many small images, held in memory.

python benchmarks/load_memory.py 40000 200000

The images are links to one 32-pixel PNG. The peak counts above the memory of the imports. Pixels
are three bytes each.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def make_links(root: Path, n: int) -> None:
    image = root / "image.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(image)
    for c in range(10):
        folder = root / "set" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(n // 10):
            os.symlink(image, folder / f"{i}.png")


def measure(folder: str) -> None:
    from ltlearn import LTDataLoaders

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, began = peak(), time.perf_counter()
    dls = LTDataLoaders.from_folder(folder, device="cpu")
    seconds = time.perf_counter() - began
    n = dls.train.n + dls.valid.n
    pixels = n * SIDE * SIDE * 3 / 2**20
    took = peak() - before
    print(
        f"{n:,} images, {pixels:.0f} MiB of pixels: {seconds:.1f} s, {took:.0f} MiB at peak, "
        f"{took / pixels:.2f} times the pixels"
    )


if __name__ == "__main__":
    if sys.argv[1] == "--folder":
        measure(sys.argv[2])
    else:
        for n in map(int, sys.argv[1:]):
            with tempfile.TemporaryDirectory() as folder:
                make_links(Path(folder), n)
                subprocess.run([sys.executable, __file__, "--folder", f"{folder}/set"], check=True)
