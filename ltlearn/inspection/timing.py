"""Estimate the training time by a few steps on noise."""

import os
import time
from collections.abc import Mapping

import numpy as np

from ltlearn.data.images import ImageSet
from ltlearn.errors import UserError
from ltlearn.inspection.advise import count_carved_of
from ltlearn.inspection.report import Advice, Inspection, Timing
from ltlearn.inspection.scan import count_threads

__all__ = ["measure_time"]

_FORWARD = 1 / 3  # of the time of a training step


def measure_time(
    found: Inspection, parts: Mapping[str, ImageSet], device: str, seconds: float
) -> Timing:
    """Measure a few steps of what is advised, and multiply."""
    from ltlearn.data.datasets import IN_MEMORY_BYTES, IN_MEMORY_SIDE
    from ltlearn.experiments.build import pick_device

    advice, where = found.advice, pick_device(device)
    on_cpu = where.type == "cpu"
    # On a CPU a larger image takes its time, however many there are in a batch.
    most = {32: 64, 64: 16}.get(advice.size, 8) if on_cpu else advice.batch_size
    batch = min(advice.batch_size, most)
    step, steps, precision = _time_steps(advice, len(found.classes), batch, where, seconds)
    step *= advice.batch_size / batch
    reading = 0.0
    in_memory = advice.size <= IN_MEMORY_SIDE
    in_memory &= found.total * advice.size**2 * 4 <= IN_MEMORY_BYTES
    if parts["train"].images is None and not in_memory:
        bad = {b["path"] for b in found.unreadable}
        each = _time_reading(parts["train"], advice.size, bad, min(1.0, seconds / 3))
        reading = each * advice.batch_size / count_threads()
    # A device trains while the processor reads; a processor has to do both.
    step = step + reading if on_cpu else max(step, reading)
    train = sum(found.counts["train"])
    valid = sum(found.counts["valid"]) if "valid" in found.counts else count_carved_of(found)
    train -= 0 if "valid" in found.counts else valid
    steps_an_epoch = -(-train // advice.batch_size)
    forward = _FORWARD * step / advice.batch_size
    total = advice.epochs * (steps_an_epoch * step + valid * forward)
    total += forward * (train + valid + sum(found.counts.get("test", ())))
    return Timing(
        total, step, reading, advice.epochs * steps_an_epoch, steps, batch, str(where), precision
    )


def _time_steps(advice: Advice, num_classes: int, batch: int, device, seconds: float):
    """Train on noise for a while; return the median seconds of a step, the steps, the precision."""
    import torch
    from fastai.callback.core import Callback, CancelFitException

    from ltlearn.data.loaders import LTDataLoaders
    from ltlearn.learner import LTLearner
    from ltlearn.models.pretrained import create_lt_model

    class Stopwatch(Callback):
        """Times steps until the end, and four at least; the first two warm up and do not count."""

        def before_fit(self):
            self.times = []
            self.end = time.perf_counter() + seconds

        def before_train(self):
            self.last = time.perf_counter()

        def after_batch(self):
            if not self.training:
                return
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            self.times.append(now - self.last)
            self.last = now
            if now >= self.end and len(self.times) > 3:
                raise CancelFitException

    # The draws of whoever calls are to stay what they were.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rng = np.random.default_rng(0)
        shape = (4 * batch, advice.size, advice.size, 3)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        targets = np.arange(4 * batch) % 2
        dls = LTDataLoaders.from_arrays(
            images, targets, valid=(images[:2], targets[:2]), bs=batch, device=device
        )
        model = create_lt_model(advice.arch, num_classes, False, advice.size)
        learn, watch = LTLearner(dls, model), Stopwatch()
        learn.fit(1_000_000, 1e-3, cbs=[watch])
    times = watch.times[2:]
    return float(np.median(times)), len(times), learn.precision


def _time_reading(data: ImageSet, size: int, bad: set[str], seconds: float) -> float:
    """Read and augment some of the images; return the seconds of one."""
    from ltlearn.data.datasets import ImageFiles

    files = ImageFiles(data, "resized_crop_flip", size)
    end, times = time.perf_counter() + seconds, []
    for i in np.random.default_rng(0).permutation(len(data))[:256].tolist():
        if os.path.join(data.root, data.paths[i]) in bad:
            continue
        began = time.perf_counter()
        try:
            files.get(i, 0)
        except UserError:  # headers alone did not tell
            continue
        times.append(time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return float(np.mean(times)) if times else 0.0
