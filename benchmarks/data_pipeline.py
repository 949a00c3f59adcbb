"""Images per second of the data pipeline alone against torchvision's usual one, in turns.

    python benchmarks/data_pipeline.py [--quick] [--repeats 5] [--json]

Both return normalised float32 batches. "memory" is images of 32 pixels held in memory, with crop
and flip: ours augments a batch at once, without worker processes; torchvision's passes each PIL
image through RandomCrop, RandomHorizontalFlip, ToTensor and Normalize. "files" is JPEG files of
about 500 x 375 pixels, with RandomResizedCrop to 224 pixels and flip: `ImageFiles` against
torchvision's `ImageFolder`. Our worker processes start anew with each epoch, as in fastai's loader;
torchvision's stay. "epoch start" is the time in seconds that the start takes.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from ltlearn.data.benchmarks.cifar import CIFAR_STATS
from ltlearn.data.benchmarks.facts import IMAGENET_STATS
from ltlearn.data.datasets import ImageFiles, ImagesInMemory, NormalizeUint8
from ltlearn.data.images import ImageSet
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.readers.folders import list_class_folders
from ltlearn.utils.parallel import count_cores

THEIRS = "torchvision"
PROCESSES = ("no process", "1 process", "2 processes")


class PilImages(Dataset):
    """Images held as PIL images, transformed one by one."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform):
        self.images = [Image.fromarray(image) for image in images]
        self.targets, self.transform = targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return self.transform(self.images[i]), self.targets[i]


def usual(dataset: Dataset, batch: int, workers: int) -> DataLoader:
    """Return torch's loader as training scripts set it up; its processes outlive the epoch."""
    return DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def ours(dataset, batch: int, workers: int, stats) -> LTDataLoader:
    return LTDataLoader(
        dataset,
        batch,
        training=True,
        num_workers=workers,
        after_batch=[NormalizeUint8(*stats)],
    )


def seconds_of_a_pass(loader) -> float:
    start = time.perf_counter()
    for x, _ in loader:
        assert x.dtype == torch.float32
    return time.perf_counter() - start


def compare(loaders: dict, images: int, repeats: int) -> dict:
    """Time loaders in turns; ratios are to each of torchvision's."""
    seconds = {name: [] for name in loaders}
    for repeat in range(repeats + 1):
        for name, loader in loaders.items():
            taken = seconds_of_a_pass(loader)
            if repeat:  # the first round warms up
                seconds[name].append(taken)
    theirs = [name for name in loaders if name.startswith(THEIRS)]
    return {
        name: {
            "images_per_second": round(images / statistics.median(seconds[name]), 1),
            # Paired by round, so that a change of the machine's speed touches both sides.
            "ratios": [
                round(
                    statistics.median(
                        b / a for a, b in zip(seconds[name], seconds[other], strict=True)
                    ),
                    2,
                )
                for other in theirs
            ],
        }
        for name in loaders
    }


def in_memory(images: int, batch: int, repeats: int) -> dict:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    targets = np.arange(images) % 10
    transform = T.Compose(
        [
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(*CIFAR_STATS),
        ]
    )
    single = PilImages(pixels, targets, transform)
    whole = ImagesInMemory(ImageSet(targets, images=pixels), "crop_flip", 4)
    loaders = {f"{THEIRS}, {PROCESSES[w]}": usual(single, batch, w) for w in range(3)}
    for workers in range(3):
        loaders[f"ltlearn, {PROCESSES[workers]}"] = ours(whole, batch, workers, CIFAR_STATS)
    return compare(loaders, images, repeats)


def photograph(seed: int) -> Image.Image:
    """Make an image that compresses like a photograph: patches, texture and grain."""
    rng = np.random.default_rng(seed)
    width, height = [(500, 375), (375, 500), (500, 333), (400, 400)][seed % 4]

    def noise(side: int) -> np.ndarray:
        small = rng.integers(0, 256, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
        big = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(big, dtype=np.float32)

    pixels = noise(32) + noise(4) / 4 - 32 + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def from_files(images: int, batch: int, repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        for i in range(images):
            path = Path(folder, f"class{i % 4}", f"{i}.jpg")
            path.parent.mkdir(exist_ok=True)
            photograph(i).save(path, quality=87)
        transform = T.Compose(
            [
                T.RandomResizedCrop(224),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(*IMAGENET_STATS),
            ]
        )
        theirs = ImageFolder(folder, transform)
        mine = ImageFiles(list_class_folders(Path(folder))[0], "resized_crop_flip", 224)
        loaders = {f"{THEIRS}, {PROCESSES[w]}": usual(theirs, batch, w) for w in range(3)}
        for workers in range(3):
            name = f"ltlearn, {PROCESSES[workers]}"
            loaders[name] = ours(mine, batch, workers, IMAGENET_STATS)
        return compare(loaders, images, repeats)


def epoch_start(repeats: int) -> dict:
    """Return how many seconds longer an epoch of two batches takes with processes than without."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    whole = ImagesInMemory(ImageSet(np.arange(8) % 2, images=pixels), "crop_flip", 4)
    seconds = [[] for _ in PROCESSES]
    for _ in range(repeats):
        for workers, times in enumerate(seconds):
            times.append(seconds_of_a_pass(ours(whole, 4, workers, CIFAR_STATS)))
    none, *medians = map(statistics.median, seconds)
    return dict(zip(PROCESSES[1:], (round(m - none, 4) for m in medians), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="in memory")
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.images, args.files, args.repeats = 1024, 128, 1
    cores = count_cores()
    result = {
        "memory": in_memory(args.images, args.batch, args.repeats),
        "files": from_files(args.files, args.batch, args.repeats),
        "epoch_start_seconds": epoch_start(max(2, args.repeats)),
        "cores": cores,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"batches of {args.batch}, {cores} {'core' if cores == 1 else 'cores'}")
    for part, label in (("memory", "32 pixels, in memory"), ("files", "JPEG files, 224 pixels")):
        print(f"\n{label:27} {'images/s':>10}   / torchvision with 0, 1, 2 processes")
        for name, row in result[part].items():
            ratios = "" if name.startswith(THEIRS) else "".join(f"{r:8.2f}" for r in row["ratios"])
            print(f"  {name:25} {row['images_per_second']:10.1f}   {ratios}".rstrip())
    print("\nepoch start, seconds")
    for name, value in result["epoch_start_seconds"].items():
        print(f"  {name:25} {value:10.3f}")


if __name__ == "__main__":
    main()
