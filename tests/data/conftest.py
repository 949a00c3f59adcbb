"""Small synthetic images, on disk and in memory."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_image(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def write_classes():
    """Write `{class: images}` images of noise below a folder, each of its own."""

    def write(folder: Path, counts: dict[str, int], side: int = 8, suffix: str = "png") -> Path:
        seed = 0
        for name, n in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                Image.fromarray(make_image(seed, side)).save(folder / name / f"{i}.{suffix}")
                seed += 1
        return folder

    return write


@pytest.fixture
def arrays():
    """Make images of noise and their targets from counts per class."""

    def make(counts, side: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        targets = np.repeat(np.arange(len(counts)), counts)
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (len(targets), side, side, 3), dtype=np.uint8), targets

    return make


@pytest.fixture
def write_cifar_pickles():
    """Write torchvision's layout of CIFAR-10 or CIFAR-100, with a few images a class."""

    def write(folder: Path, num_classes: int, names: list[str], per_class: int, test: int = 1):
        base = folder / ("cifar-10-batches-py" if num_classes == 10 else "cifar-100-python")
        base.mkdir(parents=True)
        rng = np.random.default_rng(num_classes)
        made = {}
        for part, n in (("train", per_class), ("test", test)):
            labels = rng.permutation(np.repeat(np.arange(num_classes), n))
            images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
            made[part] = images, labels

        def dump(name: str, content: dict):
            # Protocol 2, as the published files have it.
            (base / name).write_bytes(pickle.dumps(content, protocol=2))

        def batch(images, labels, key):
            data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            return {"data": np.ascontiguousarray(data), key: labels.tolist()}

        if num_classes == 10:
            images, labels = made["train"]
            for i, index in enumerate(np.array_split(np.arange(len(labels)), 5)):
                dump(f"data_batch_{i + 1}", batch(images[index], labels[index], "labels"))
            dump("test_batch", batch(*made["test"], "labels"))
            dump("batches.meta", {"label_names": names})
        else:
            for part in ("train", "test"):
                dump(part, batch(*made[part], "fine_labels"))
            dump("meta", {"fine_label_names": names})
        return made

    return write


TINY_CLASSES = [f"n{(c + 1) * 37:08d}" for c in range(200)]


@pytest.fixture
def write_tiny():
    """Write Tiny-ImageNet in the layout of its archive, or in class folders, with few images.

    An image has the same pixels in every layout, whatever the number of other images.
    """

    def write(root: Path, counts, archive: bool = False, valid: int = 2) -> Path:
        def save(path: Path, seed: int) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Some are grey, as in the set.
            image = make_image(seed) if seed % 7 else make_image(seed)[..., 0]
            Image.fromarray(image).save(path, quality=95)

        inner, rows = "images" if archive else "", []
        for c, (name, n) in enumerate(zip(TINY_CLASSES, counts, strict=True)):
            for i in range(n):
                save(root / "train" / name / inner / f"{name}_{i}.JPEG", 100 * c + i)
            if archive:
                (root / "train" / name / f"{name}_boxes.txt").write_text("a box\n")
        # The numbers of the validation images do not go class by class.
        for k, c in enumerate(np.random.default_rng(0).permutation(200 * valid) % 200):
            file, name = f"val_{k}.JPEG", TINY_CLASSES[c]
            save(root / "val" / (inner or name) / file, 100_000 + k)
            rows.append(f"{file}\t{name}\t0\t32\t44\t62\n")
        if archive:
            # In the archive they are not in order either.
            (root / "val" / "val_annotations.txt").write_text("".join(rows[::-1]))
        return root

    return write


@pytest.fixture
def bad_images():
    """Files that look like images by name and are none: {file name: content}."""
    whole = io.BytesIO()
    Image.fromarray(make_image(0, 64)).save(whole, "PNG")
    jpeg = io.BytesIO()
    Image.fromarray(make_image(0, 64)).save(jpeg, "JPEG")
    return {
        "truncated.png": whole.getvalue()[:300],
        "truncated.jpg": jpeg.getvalue()[:700],
        "text.png": b"this is no image",
        "empty.jpg": b"",
    }
