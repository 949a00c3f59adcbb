"""Runs of earlier versions named images by their pixels after resizing, or by path and size."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from fastai.callback.core import Callback
from PIL import Image

from ltlearn import Checkpoint, UserError, lt_learner
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.older import keep_older_names


def older_name(folder, rows, size):
    digests = []
    for path, target in rows:
        if size is None:
            content = f"{path}\0{(folder / path).stat().st_size}".encode()
        else:
            image = Image.open(folder / path).resize((size, size), Image.Resampling.BILINEAR)
            content = np.asarray(image).tobytes()
        digests.append(hashlib.sha256(target.to_bytes(4, "little") + content).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:12]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("carved", [True, False])
def test_a_run_of_an_earlier_version_keeps_its_names(tmp_path, write_classes, in_memory, carved):
    write_classes(tmp_path / "train", {"a": 5, "b": 4}, 120)
    if not carved:
        write_classes(tmp_path / "valid", {"a": 2, "b": 2}, 121)
        write_classes(tmp_path / "test", {"a": 2, "b": 3}, 122)
    options = {"device": "cpu", "bs": 4, "size": 16, "in_memory": in_memory, "num_workers": 0}
    dls = LTDataLoaders.from_folder(tmp_path, **options)
    today = dls.split

    def older(part, rows=None):
        folder = tmp_path / part
        files = sorted(folder.rglob("*.png")) if folder.exists() else []
        rows = rows or [(f"{f.parent.name}/{f.name}", "ab".index(f.parent.name)) for f in files]
        return older_name(folder, rows, 16 if in_memory else None) if rows else None

    recorded = {"train": older("train"), "valid": older("valid"), "test": older("test")}
    if carved:
        data = dls.valid.dataset.targets.tolist()
        # The images of the carved part, in its order.
        from ltlearn.data.splits import carve_validation

        files = [(f"{c}/{i}.png", "ab".index(c)) for c, n in (("a", 5), ("b", 4)) for i in range(n)]
        index = carve_validation(np.array([t for _, t in files]), 0.2)[1]
        assert [files[i][1] for i in index] == data
        recorded["valid"] = older("train", [files[i] for i in index])
    keep_older_names(dls, None)
    keep_older_names(dls, {})
    keep_older_names(dls, {**recorded, "train": "0123456789ab"})
    assert dls.split == today, "other images keep the names of today"
    keep_older_names(dls, recorded)
    assert {name: getattr(dls.split, name) for name in recorded} == recorded
    assert recorded["train"] != today.train


def test_a_run_without_the_order_of_its_images_is_recognised():
    def load():
        return LTDataLoaders.from_dataset("digits_lt", imbalance_factor=50, device="cpu")

    dls = load()
    today = dls.split
    keep_older_names(dls, today.to_dict())
    assert dls.split == today
    keep_older_names(dls, {k: v for k, v in today.to_dict().items() if k != "order"})
    assert dls.split == replace(today, order=None)
    assert dls.split.images == f"train {today.train}, valid {today.valid}, test {today.test}"


def test_a_checkpoint_without_the_order_of_the_images_is_resumed(tmp_path, monkeypatch):
    data = LTDataLoaders.from_dataset("digits_lt", imbalance_factor=50, device="cpu", bs=256)
    data.order = data.split.order
    learn = lt_learner(data, "resnet32_cifar", width=2, pretrained=False, precision="fp32")
    data.split = replace(data.split, order=None)  # as an earlier version had it

    seen = []

    class Stop(Callback):
        stops = True

        def before_epoch(self):
            seen.append(self.learn.epoch)
            if self.stops and self.learn.epoch == 1:
                raise KeyboardInterrupt

    def fit(folder, stops):
        stop = Stop()
        stop.stops = stops
        checkpoint = Checkpoint(tmp_path / folder, resume=not stops, min_seconds=0)
        learn.fit_stage1(2, 0.1, cbs=[checkpoint, stop])

    with pytest.raises(KeyboardInterrupt):
        fit("c", stops=True)
    data.split = replace(data.split, order=data.order)
    seen.clear()
    fit("c", stops=False)
    assert seen == [1]
    with pytest.raises(KeyboardInterrupt):
        fit("d", stops=True)
    data.split = replace(data.split, order="0123456789ab")
    with pytest.raises(UserError, match="images.*order.*0123456789ab"):
        fit("d", stops=False)
