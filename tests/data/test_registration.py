"""A dataset with list files needs one row, which a user can register from outside."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ltlearn.data import LTDataLoaders
from ltlearn.data.benchmarks import (
    BENCHMARKS,
    Download,
    ListedSet,
    benchmark_names,
    check_benchmark,
    dataset_names,
    download_benchmark,
    how_to_get,
    is_listed,
    listed_names,
    load_benchmark,
    register_benchmark,
)
from ltlearn.data.benchmarks.facts import counts_name
from ltlearn.errors import UserError
from tests.data.lookalikes import save_image, write_list

COUNTS, TEST = {"robin": 6, "wren": 3, "tit": 2}, 2


def fetch(root) -> None:
    """Write the images and the lists; the images are not in the folders that the lists name."""
    number = 0
    for part, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, TEST))):
        rows = []
        for label, (bird, n) in enumerate(counts.items()):
            for _ in range(n):
                number += 1
                save_image(root / "photos" / bird / f"{number}.jpg", number)
                rows.append((f"images/{bird}/{number}.jpg", label))
        write_list(root / "lists" / f"{part}.txt", rows)


TOY = ListedSet(
    name="toy_birds",
    title="Toy birds",
    classes=3,
    class_order="as in the list",
    sizes={"train": 11, "test": 6},
    each={"test": TEST},
    largest=6,
    smallest=2,
    counts_sha256=counts_name(list(COUNTS.values())),
    shots={"<20": (0, 0, 3)},
    stats=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    transform="crop_flip",
    forms=({"train": "train.txt", "test": "test.txt"},),
    folders=("lists",),
    class_of=lambda folder: folder.rpartition("/")[2],
    image_tops=("photos",),
    image_folders=lambda base, classes: lambda folder, label: [f"photos/{classes[label]}"],
    fetch=fetch,
    sources=(Download("images", "https://birds.test/all.zip", "1 MB", then="unpack in {root}"),),
)


@pytest.fixture
def registered():
    register_benchmark(TOY)
    yield TOY
    del BENCHMARKS[TOY.name]


def test_the_names_include_it(registered):
    assert "toy_birds" in dataset_names() and "toy_birds" in benchmark_names()
    assert is_listed("toy_birds") and listed_names()[-1] == "toy_birds"
    with pytest.raises(UserError, match="'toy_birds'"):
        register_benchmark(TOY)


def test_it_is_fetched_checked_and_loaded(registered, tmp_path):
    assert check_benchmark("toy_birds", tmp_path).absent
    assert "https://birds.test/all.zip" in how_to_get("toy_birds", tmp_path)
    report = download_benchmark("toy_birds", tmp_path)
    assert report.ok and not report.missing, str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    data, classes = load_benchmark("toy_birds", tmp_path, "train")
    assert classes == list(COUNTS) and np.bincount(data.targets).tolist() == [6, 3, 2]
    dls = LTDataLoaders.from_dataset(
        "toy_birds", tmp_path, size=8, bs=4, valid_pct=0.5, num_workers=0, device="cpu"
    )
    assert dls.vocab == classes and dls.shot_counts.tolist() == [6, 3, 2] and dls.test.n == 6
    assert (dls.split.name, dls.split.dataset) == ("published", "toy_birds")
    assert dls.train.dataset.transform.name == "crop_flip"
    mean = dls.normalize.mean.flatten() / 255
    assert mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    x, y = dls.train.one_batch()
    assert x.shape == (4, 3, 8, 8) and y.max() < 3
    (tmp_path / "photos" / "robin" / "1.jpg").unlink()
    report = check_benchmark("toy_birds", tmp_path)
    assert report.missing["train"][0] == 1 and not report.ok and report.instructions


def test_facts_that_are_not_published_are_not_checked(tmp_path):
    fetch(tmp_path)
    register_benchmark(replace(TOY, name="bare_birds", counts_sha256="", shots={}, sources=()))
    try:
        assert check_benchmark("bare_birds", tmp_path).ok
    finally:
        del BENCHMARKS["bare_birds"]


def test_without_the_row_it_is_unknown(tmp_path):
    for call in (
        lambda: LTDataLoaders.from_dataset("toy_birds", tmp_path),
        lambda: check_benchmark("toy_birds", tmp_path),
        lambda: how_to_get("toy_birds", tmp_path),
    ):
        with pytest.raises(UserError, match="got 'toy_birds'"):
            call()
