"""Runs of earlier versions named images by their pixels after resizing, or by path and size."""

import hashlib

import numpy as np
import pytest
from PIL import Image

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
