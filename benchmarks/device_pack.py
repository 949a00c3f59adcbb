"""Pack all that `device.py` needs on a GPU machine with PyTorch and without a network.

    python benchmarks/device_pack.py FOLDER --data CIFAR100 [--python 3.12] [--most 60]

CIFAR100 is the folder of the data set `cifar100_lt`. FOLDER gets `wheels`: the packages that a
machine with PyTorch lacks, in the versions of `constraints.txt`; and `data.npz`: the images of
CIFAR-100-LT 100 (`first_n`) and the test set, each a lossless WebP, since plain arrays take 64 MB.
Copy FOLDER beside the checkout, then see `device.py`.
"""

import argparse
import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# PyTorch's machine has torch, torchvision, Triton, NumPy, SciPy, pandas, matplotlib, scikit-learn,
# safetensors, typer, rich, jinja2, filelock, huggingface_hub, pytest with xdist and timeout, and
# OpenCV without a window. These are the others that ltlearn and its GPU tests import.
WHEELS = (
    "albucore", "albumentations", "annotated-types", "beartype", "fastai", "fastcore",
    "fastdownload", "fastprogress", "fasttransform", "plum-dispatch", "pydantic", "pydantic-core",
    "simsimd", "stringzilla", "timm", "typing-inspection",
)  # fmt: skip
PLATFORMS = ("2_28", "2_27", "2_17", "2_24", "2_34", "2_35")


def pinned(names=WHEELS) -> list[str]:
    """Return each package with the version that is tested."""
    text = (ROOT / "constraints.txt").read_text().lower()
    found = {name: re.search(rf"(?m)^{re.escape(name)}==([^\s;]+)", text) for name in names}
    return [f"{name}=={match[1]}" if match else name for name, match in found.items()]


def download(folder: Path, python: str) -> None:
    """Download the wheels for a Python on Linux, x86-64."""
    platforms = [f"manylinux_{p}_x86_64" for p in PLATFORMS] + ["manylinux2014_x86_64"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", python, "--dest", str(folder),
        *(word for p in platforms for word in ("--platform", p)), *pinned(),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return images as lossless WebP files one after the other, and where each ends."""
    from PIL import Image

    files = []
    for pixels in images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=100, method=4)
        files.append(file.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def decode(files: np.ndarray, ends: np.ndarray, threads: int = 16) -> np.ndarray:
    """Return the images that `encode` was given."""
    from PIL import Image

    content = files.tobytes()

    def read(i: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content[ends[i] : ends[i + 1]])).convert("RGB"))

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(read, range(len(ends) - 1))))


def pack_images(data: Path, file: Path) -> None:
    """Write the images of both parts, their classes, and the statistics of the loaders."""
    from ltlearn import LTDataLoaders

    dls = LTDataLoaders.from_dataset(
        "cifar100_lt", data, imbalance_factor=100, split="first_n", protocol="paper", device="cpu"
    )
    # The loaders hold statistics of pixels from 0 to 255, and take those of pixels from 0 to 1.
    stats = [getattr(dls.normalize, name).flatten().numpy() / 255 for name in ("mean", "std")]
    arrays = {"classes": np.array(list(dls.vocab)), "split": np.array(str(dls.split))}
    arrays |= {"mean": stats[0], "std": stats[1]}
    for part in ("train", "test"):
        dataset = getattr(dls, part).dataset
        x, y = dataset.get_batch(range(len(dataset)))
        pixels = x.permute(0, 2, 3, 1).contiguous().numpy()
        files, ends = encode(pixels)
        if not np.array_equal(decode(files, ends[:101]), pixels[:100]):
            raise SystemExit("WebP has changed an image")
        arrays |= {f"{part}_webp": files, f"{part}_ends": ends, f"{part}_y": y.numpy()}
    np.savez(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="folder of CIFAR-100; without it, no images")
    parser.add_argument("--python", default="3.12", help="Python of the other machine")
    parser.add_argument("--most", type=float, default=60, help="largest size in MiB")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    download(args.folder / "wheels", args.python)
    if args.data:
        pack_images(args.data, args.folder / "data.npz")
    size = sum(p.stat().st_size for p in args.folder.rglob("*") if p.is_file()) / 2**20
    print(f"{args.folder}: {size:.1f} MiB")
    if size > args.most:
        sys.exit(f"{args.folder} has more than {args.most:g} MiB, see --most")


if __name__ == "__main__":
    main()
