"""Measure the terms of the cost model on one core. `python benchmarks/scale.py fit` calls this.

All times are CPU seconds of this process (`time.process_time`), so other work on the machine counts
little. Each is the least of several runs.
"""

import io
import logging
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cost_model import Terms
from PIL import Image
from scipy.optimize import nnls
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ltlearn import SAMN, LTDataLoaders, pava
from ltlearn.data.datasets import ImageFiles
from ltlearn.data.digests import hash_file
from ltlearn.data.images import ImageSet
from ltlearn.data.loader import LTDataLoader
from ltlearn.data.readers.tables import list_table
from ltlearn.data.readers.webdataset_index import SampleFields, index_shard
from ltlearn.data.samplers import ClassBalancedSampler
from ltlearn.learner import LTLearner
from ltlearn.models.backbone import LTModel
from ltlearn.models.pretrained import create_lt_model
from ltlearn.training.features import Features


def best(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the least CPU seconds of a call."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds)


def memory(key: str) -> int:
    """Return a value of /proc/self/status in bytes, such as VmRSS or the peak, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def fit(rows: list[list[float]], seconds: list[float]) -> list[float]:
    """Return non-negative terms that fit the seconds with the least relative error."""
    weights = 1 / np.array(seconds)
    return nnls(np.array(rows) * weights[:, None], np.ones(len(seconds)))[0].tolist()


def photo(width: int, height: int, seed: int = 0) -> bytes:
    """Return a JPEG with a spectrum like a photograph's: smooth areas and some noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    pixels = pixels + rng.normal(0, 6, pixels.shape).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode_terms(folder: Path) -> dict:
    rows, seconds = [], []
    for width, height in ((160, 128), (320, 240), (500, 400), (800, 600)):
        paths = []
        for i in range(8):
            paths.append(f"{width}-{i}.jpg")
            (folder / paths[-1]).write_bytes(photo(width, height, i))
        data = ImageSet(np.zeros(8, dtype=np.int64), paths=paths, root=folder)
        files = ImageFiles(data, "resized_crop_flip", 224)
        seconds.append(best(lambda f=files: [f.get(i, i) for i in range(8)], 5) / 8)
        rows.append([1, width * height])
    size = (folder / "500-0.jpg").stat().st_size
    file = folder / "large.bin"
    file.write_bytes(os.urandom(1 << 24))
    each, pixel = fit(rows, seconds)
    return {"decode_s": each, "decode_pixel_s": pixel, "jpeg_bytes": size,
            "hash_byte_s": best(lambda: hash_file(file)) / (1 << 24)}  # fmt: skip


def network_terms() -> dict:
    """Measure FLOPs per CPU second of two networks, in float32, and take the mean per FLOP."""
    train, extract = [], []
    for arch, side, batch in (("resnet32_cifar", 32, 64), ("resnet50", 224, 4)):
        model = create_lt_model(arch, 100, pretrained=False).to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        y = torch.arange(batch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        forward = counter.get_total_flops()
        optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def step(model=model, x=x, y=y, optimiser=optimiser):
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            optimiser.zero_grad()

        def infer(model=model, x=x):
            with torch.no_grad():
                model(x)

        step()
        train.append(best(step) / (3 * forward))
        model.eval()
        extract.append(best(infer) / forward)
    return {"train_flop_s": float(np.mean(train)), "extract_flop_s": float(np.mean(extract)),
            "train_flop_s_each": train, "extract_flop_s_each": extract}  # fmt: skip


class _OnFeatures(LTLearner):
    """A learner whose features are random numbers in memory."""

    given: dict = {}

    def features(self, part, views=0, seed=0):
        return self.given[part]


def head_seconds(classes: int, width: int, batch: int, steps: int, samn: bool) -> float:
    """Return the CPU seconds of a step of stage 2, batch included, validation not."""
    from fastai.callback.core import Callback

    class Timer(Callback):
        def before_train(self):
            self.began = time.process_time()

        def after_train(self):
            seconds.append((time.process_time() - self.began) / steps)

    seconds: list[float] = []
    rng = np.random.default_rng(0)
    n = max(steps * batch, classes)
    # Labels in a cycle give each class an image.
    targets = {"train": np.arange(n) % classes, "valid": np.arange(64) % classes}
    images = {p: np.zeros((len(t), 1, 1, 3), np.uint8) for p, t in targets.items()}
    dls = LTDataLoaders.from_arrays(
        images["train"], targets["train"], valid=(images["valid"], targets["valid"]),
        classes=[str(c) for c in range(classes)], transform="none", device="cpu",
    )  # fmt: skip
    learn = _OnFeatures(
        dls, LTModel(nn.Sequential(nn.Flatten(), nn.Linear(3, width)), nn.Linear(width, classes)),
        precision="fp32",
    )  # fmt: skip
    keep = rng.permutation(n)[: steps * batch]
    shown = {"train": targets["train"][keep], "valid": targets["valid"]}
    learn.given = {
        part: Features(
            [rng.standard_normal((len(t), width), dtype=np.float32)], torch.from_numpy(t)
        )
        for part, t in shown.items()
    }
    # Its warnings do not matter for a time.
    logging.getLogger("ltlearn").setLevel(logging.ERROR)
    learn.retrain_classifier(2, bs=batch, cbs=[Timer(), *([SAMN()] if samn else [])])
    return min(seconds)


def head_terms() -> dict:
    grid = [(10, 64, 64), (100, 64, 64), (1_000, 64, 64), (1_000, 512, 256), (8_142, 512, 64),
            (8_142, 2_048, 64), (8_142, 1_024, 256)]  # fmt: skip
    plain, samn, rows, more = [], [], [], []
    for classes, width, batch in grid:
        steps = int(np.clip(3e9 / (batch * classes * width), 8, 200))
        plain.append(head_seconds(classes, width, batch, steps, False))
        samn.append(head_seconds(classes, width, batch, steps, True))
        rows.append([1, 6 * batch * classes * width, classes * width])
        more.append([1, classes, classes * width])
    added = [max(s - p, 1e-6) for s, p in zip(samn, plain, strict=True)]
    names = ("head_step_s", "head_flop_s", "head_weight_s")
    terms = dict(zip(names, fit(rows, plain), strict=True))
    names = ("samn_step_s", "samn_class_s", "samn_weight_s")
    terms |= dict(zip(names, fit(more, added), strict=True))
    terms["head_steps"] = [
        {"classes": c, "width": d, "batch": b, "plain_s": p, "samn_s": s}
        for (c, d, b), p, s in zip(grid, plain, samn, strict=True)
    ]
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    return terms | {"pava_class_s": best(lambda: pava(values)) / len(values)}


def order_terms() -> dict:
    n, classes = 1_000_000, 10_000
    rng = np.random.default_rng(0)
    sampler = ClassBalancedSampler(rng.integers(0, classes, n))
    return {"order_s": best(lambda: sum(1 for _ in sampler)) / n, "order_bytes": 8.0}


def write_table(file: Path, n: int, classes: int = 10_000) -> Path:
    """Write a table of n images, one of which exists."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    with file.open("w") as out:
        out.write("image,label\n")
        for first in range(0, n, 100_000):
            part = enumerate(labels[first : first + 100_000].tolist(), first)
            out.write("".join(f"f{c % 1000:03}/{i:09}.jpg,c{c}\n" for i, c in part))
    (file.parent / "f000").mkdir(exist_ok=True)
    (file.parent / "f000" / "000000000.jpg").touch()
    return file


def load_rows(file: Path) -> dict:
    """List the images of a table, and draw the orders of an epoch; return seconds and bytes."""
    import fastai.vision.all  # noqa: F401  (the imports do not count)
    import pandas  # noqa: F401

    before, began = memory("VmRSS"), time.process_time()
    data = list_table(file, problems=[]).parts["train"]  # missing images count, too
    seconds, n = time.process_time() - began, len(data)
    facts = {"images": n, "list_s": seconds, "list_peak_bytes": memory("VmHWM") - before}
    paths = sum(8 + len(p) + 49 for p in data.paths[:1_000]) / 1_000
    facts["index_bytes"] = int(n * (paths + data.targets.itemsize))
    for name in ("instance", "class_balanced"):
        # The images are not opened, so a loader needs the targets alone.
        loader = LTDataLoader(
            ImageFiles(data, "none"), bs=256, training=True, augment=True, sampler=name
        )
        began = time.process_time()
        order = loader.get_idxs()
        facts[f"{name}_s"] = time.process_time() - began
        facts["order_bytes"] = order.itemsize * len(order)
    return facts


def shard_terms(folder: Path, n: int = 5_000) -> dict:
    file = folder / "s.tar"
    with tarfile.open(file, "w") as archive:
        for i in range(n):
            for extension, content in (("jpg", b"\0" * 4_096), ("cls", b"%d" % (i % 100))):
                member = tarfile.TarInfo(f"{i:09}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def run() -> object:
        file.with_name("s.tar.index.npz").unlink(missing_ok=True)
        return index_shard(file, SampleFields())

    index = run()
    taken = index.offsets.itemsize + index.sizes.itemsize + index.codes.itemsize
    # The row numbers of the images take eight bytes more.
    return {"shard_sample_s": best(run) / n, "shard_sample_bytes": float(taken + 8)}


def measure(folder: str | None, rows: Callable[[Path], dict]) -> tuple[Terms, dict]:
    """Return the terms, and what they were fitted to.

    Args:
        folder: Where files are written; None takes the system's.
        rows: Calls `load_rows` in a process of its own.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        found = decode_terms(root) | network_terms() | head_terms() | order_terms()
        found |= shard_terms(root)
        facts = rows(write_table(root / "table.csv", 1_000_000))
    n = facts["images"]
    found |= {
        "table_row_s": facts["list_s"] / n,
        "table_row_bytes": facts["index_bytes"] / n - 8,  # targets count by themselves
        "table_row_peak_bytes": facts["list_peak_bytes"] / n,
    }
    names = Terms.__dataclass_fields__
    terms = Terms(**{key: found.pop(key) for key in names})
    for row in found["head_steps"]:
        for kind in ("plain", "samn"):
            size = row["batch"], row["classes"], row["width"]
            row[f"{kind}_model_s"] = terms.head_step(*size, samn=kind == "samn")
    return terms, found | {"rows": facts}


def many_classes(classes: int, width: int, batch: int) -> dict:
    """Take steps of a SAMN head with very many classes in a plain PyTorch loop."""
    from ltlearn import SAMNLinear

    torch.set_num_threads(1)
    counts = torch.from_numpy((1e4 * np.arange(1, classes + 1.0) ** -0.5).astype(np.int64) + 1)
    head = SAMNLinear.from_linear(nn.Linear(width, classes), counts)
    optimiser = torch.optim.SGD(head.parameters(), 0.01, momentum=0.9, fused=True)
    x, y = torch.randn(batch, width), torch.randint(classes, (batch,))
    parts = {"forward_backward_s": [], "update_s": [], "project_s": []}

    def timed(name: str, run: Callable[[], object]) -> None:
        began = time.process_time()
        run()
        parts[name].append(time.process_time() - began)

    for _ in range(3):
        optimiser.zero_grad()
        timed("forward_backward_s", lambda: nn.functional.cross_entropy(head(x), y).backward())
        timed("update_s", optimiser.step)
        timed("project_s", head.project_)
    weights = sum(p.numel() for p in head.parameters())
    return {"classes": classes, "width": width, "batch": batch, "weights_bytes": 4 * weights,
            "logits_bytes": 4 * batch * classes, "peak_bytes": memory("VmHWM"),
            **{name: min(values) for name, values in parts.items()}}  # fmt: skip
