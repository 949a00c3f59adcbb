"""`ltlearn train`, `retrain` and `predict` on a folder of tiny images."""

import csv
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ltlearn import LTDataLoaders, UserError, lt_learner
from ltlearn.experiments.own_data import own_recipe, read_classes, read_statistics
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.read_recipe import load_recipe
from ltlearn.experiments.recipe import Recipe
from ltlearn.models.pretrained import create_lt_model
from tests.helpers import COMMAND, ENV, ltlearn

CLASSES = {"ant": 24, "bee": 10, "cow": 5}
FAST = (
    "--arch", "resnet20_cifar", "--set", "model.width=4", "--epochs", "1", "--batch-size", "16",
    "--set", "stage2.epochs=1", "--precision", "fp32",
)  # fmt: skip
GIVEN = (
    "--arch", "resnet10t", "--size", "32", "--set", "stage2.epochs=1", "--precision", "fp32",
)  # fmt: skip


def make_images(folder, per_class, seed=0, side=16):
    rng = np.random.default_rng(seed)
    for c, (name, n) in enumerate(per_class.items()):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            pixels[..., c] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images with a test folder."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    make_images(folder / "train", CLASSES)
    make_images(folder / "test", dict.fromkeys(CLASSES, 4), seed=1)
    return folder


@pytest.fixture(scope="module")
def plain(photos):
    """Images without one."""
    folder = photos.parent / "plain"
    shutil.copytree(photos / "train", folder)
    return folder


@pytest.fixture(scope="module")
def trained(photos):
    run = photos.parent / "run"
    done = ltlearn("train", photos, *FAST, "--method", "samn,crt", "--out", run, cwd=photos.parent)
    assert done.returncode == 0, done.stderr
    return run, done


@pytest.fixture(scope="module")
def untested(plain):
    run = plain.parent / "untested"
    done = ltlearn("train", plain, *FAST, "--out", run, cwd=plain.parent)
    assert done.returncode == 0, done.stderr
    return run, done


@pytest.fixture(scope="module")
def given(photos):
    """A timm model of the user's own, and the file that a training script would leave."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    file = photos.parent / "mine.pth"
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, file)
    return model, file


def refused(*words):
    done = ltlearn(*words)
    assert done.returncode == 2, done.stderr
    # Warnings about the data may come before.
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ltlearn: ")
    return last


# ---------------------------------------------------------------- train


def test_train_leaves_a_run_like_a_recipe(trained):
    run, done = trained
    manifest = json.loads((run / "manifest.json").read_text())
    values = manifest["values"]
    assert manifest["status"] == "finished" and values["name"] == "own-photos"
    assert values["data"]["dataset"] == "own" and values["data"]["size"] == 16
    assert values["methods"] == ["ce", "samn", "crt"]
    assert values["provenance"]["data.size"] == "own: the images are 16 x 16 pixels"
    assert values["provenance"]["model.pretrained"] == "own: timm has no weights for it"
    assert values["provenance"]["model.arch"] == "command line"
    # The default of `fit_stage1`: 0.1 per 256 images.
    assert values["stage1"]["lr"] == 0.1 * 16 / 256
    assert manifest["class_counts"] == list(CLASSES.values()) and manifest["test_images"] == 12
    assert done.stdout.startswith("photos: test accuracy in %")
    assert "train/" not in done.stdout
    assert "Accuracy per class on the test set" in (run / "report.md").read_text()


def test_train_goes_on_where_it_was_stopped(trained, photos):
    run, _ = trained
    before = (run / "checkpoints/seed0-stage1.safetensors").stat().st_mtime_ns
    words = ("train", photos, *FAST, "--method", "samn,crt", "--out", run, "--resume")
    done = ltlearn(*words)
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints/seed0-stage1.safetensors").stat().st_mtime_ns == before
    assert "stage1.lr = 0.00625, not 0.5" in refused(*words, "--lr", "0.5")


def test_images_may_have_moved(trained, photos, tmp_path):
    run, _ = trained
    for folder in (photos, run):
        shutil.copytree(folder, tmp_path / folder.name)
    done = ltlearn(
        "train", tmp_path / "photos", *FAST, "--method", "samn,crt", "--out", tmp_path / "run",
        "--resume", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_compare_and_sensitivity_take_such_a_run(trained):
    run, _ = trained
    done = ltlearn("compare", run, "--methods", "ce,samn", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("photos: test accuracy")
    done = ltlearn("sensitivity", run, "--methods", "ce,samn", "--quiet")
    assert done.returncode == 0, done.stderr


def test_without_a_test_folder_every_table_reports_it(untested):
    run, done = untested
    assert "no test set" in done.stderr
    assert done.stdout.startswith("plain: validation accuracy in %")
    assert "there is no test set" in done.stdout
    report = (run / "report.md").read_text()
    assert "no test set" in report and "Accuracy per class on the validation set" in report
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["test_images"] == 0 and manifest["split"]["test"] is None
    saved = np.load(run / "predictions.npz")
    assert len(saved["targets"]) == manifest["validation_images"]
    done = ltlearn("compare", run, "--methods", "ce,samn", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "validation accuracy" in done.stdout and "no test set" in done.stdout


def test_defaults_follow_the_images(photos, tmp_path):
    small = own_recipe(photos, ["samn"])
    assert small.model.arch == "resnet32_cifar" and small.stage1.epochs == 90
    assert small.model.pretrained is False and small.stage1.lr == 0.025
    make_images(tmp_path / "large", CLASSES, side=100)
    large = own_recipe(tmp_path / "large", ["samn"], {"model.pretrained": False})
    assert (large.model.arch, large.data.size, large.stage1.epochs) == ("resnet50", 224, 90)
    assert "larger than 96" in large.provenance["data.size"]


def test_the_rate_grows_with_the_batch_up_to_an_end(photos):
    options = {"model.arch": "resnet20_cifar"}
    for batch, lr in ((256, 0.1), (1024, 0.4), (1025, 0.4), (100_000, 0.4)):
        recipe = own_recipe(photos, ["samn"], {**options, "stage1.batch_size": batch})
        assert recipe.stage1.lr == lr
        assert ("a batch of 1024" in recipe.provenance["stage1.lr"]) == (batch > 1024)
    recipe = own_recipe(photos, [], {**options, "stage1.batch_size": 100_000, "stage1.lr": 3.0})
    assert recipe.stage1.lr == 3.0


def test_train_on_a_table(photos, tmp_path):
    table = tmp_path / "images.csv"
    rows = [
        f"{file},{file.parent.name},{file.parent.parent.name}"
        for file in sorted(photos.rglob("*.png"))
    ]
    table.write_text("\n".join(["image,label,split", *rows]) + "\n")
    done = ltlearn("train", table, *FAST, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["values"]["name"] == "own-images" and manifest["test_images"] == 12
    assert manifest["values"]["data"]["size"] == 16


def test_a_warning_about_the_images_is_printed_once(plain, tmp_path):
    # They are read twice, for their size at first.
    odd = tmp_path / "odd"
    shutil.copytree(plain, odd)
    (odd / "ant" / "new.heic").touch()
    done = ltlearn("train", odd, *FAST, "--method", "ce", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out 1 .heic") == 1


def test_the_report_counts_test_images_that_are_in_training(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "set")
    shutil.copy(tmp_path / "set/train/ant/0.png", tmp_path / "set/test/ant/copy.png")
    done = ltlearn("train", tmp_path / "set", *FAST, "--method", "ce", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = ltlearn("compare", tmp_path / "run", "--methods", "ncm")
    assert done.returncode == 0, done.stderr
    for name in ("report.md", "compare.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "1 test image is also a training image" in text


def test_a_table_whose_columns_have_to_be_named(photos, tmp_path):
    for part in ("train", "test"):
        rows = [f"{f.parent.name}/{f.stem},7,{f.parent.name}" for f in
                sorted((photos / part).rglob("*.png"))]  # fmt: skip
        (tmp_path / f"{part}.csv").write_text("\n".join(["id,age,dx", *rows]) + "\n")
    (tmp_path / "images").symlink_to(photos / "train")
    words = (
        "--images", "images", "--label-col", "dx", "--image-col", "0", "--suffix", ".png",
    )  # fmt: skip
    run = tmp_path / "run"
    done = ltlearn("train", "train.csv", *words, *FAST, "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "columns: path from 'id', label from 'dx'" in done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["columns"] == {"path": "id", "label": "dx"}
    assert manifest["values"]["data"]["images"] == str(tmp_path / "images")
    # The run records where its images are and how they are listed.
    done = ltlearn("compare", run, "--methods", "ce,samn", "--quiet", cwd=photos)
    assert done.returncode == 0, done.stderr
    words = words[:3] + ("dy",) + words[4:]
    message = refused("train", tmp_path / "train.csv", *words, *FAST)
    assert "no column 'dy' (" in message and "; its columns are id, age, dx" in message
    assert " is for a saved dataset, WebDataset shards or a CSV or TSV table" in refused(
        "train", photos, "--label-col", "dx", *FAST
    )


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--batch-size", "0", r"batch.size.0\b.*1"),
        ("--epochs", "-1", r"epochs.-1\b.*0"),
        ("--lr", "0", r"lr.0\.0.*0"),
        ("--size", "0", r"size.0\b.*1"),
        ("--seeds", "0", r"seeds.0\b.*1"),
        ("--protocol", "dirty", "protocol.*dirty.*'clean' or 'paper'"),
        ("--stage1", "mixdown", "stage1.*mixdown.*ce, .*mixup"),
        ("--set", "stage2.lr=0", r"stage2\.lr=0\b.*0"),
    ],
)
def test_a_bad_value_is_named_with_its_parameter(photos, flag, value, words):
    assert re.search(words, refused("train", photos, "--no-pretrained", flag, value))


ODD_NAMES = (os.fsdecode(b"caf\xe9"), 'it\'s "q"', "$x$", "a\nb", "🐜", "a|b \\ [c](d) <b>*")


def test_odd_names_of_classes_go_through_everything(tmp_path):
    folder = tmp_path / os.fsdecode(b"t\xe4ter")
    rng = np.random.default_rng(0)
    for name in ODD_NAMES:
        try:
            (folder / name).mkdir(parents=True)
        except OSError:
            pytest.skip("this file system takes no such names")
        for i in range(5):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    run, words = tmp_path / "run", ("--method", "samn,crt")
    done = ltlearn("train", folder, *FAST, *words, "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "crt" in (run / "report.md").read_text("utf-8")
    assert json.loads((run / "manifest.json").read_text("utf-8"))["status"] == "finished"
    model = json.loads((run / "model.json").read_text("utf-8"))
    assert model["classes"] == sorted(ODD_NAMES)
    printed = json.loads(ltlearn("predict", run, folder, "--json", "--top", "6").stdout)
    assert {pair["class"] for pair in printed["images"][0]["top"]} == set(ODD_NAMES)
    done = ltlearn("predict", run, folder, "--csv", tmp_path / "p.csv", "--top", "6")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    assert len(rows) == 30
    shown = {name.encode(errors="backslashreplace").decode() for name in ODD_NAMES}
    assert all(set(row[1::2]) == shown for row in rows)
    # In a process whose standard output refuses undecodable names.
    env = {**ENV, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [*COMMAND, "predict", run, folder, "--top", "6"], env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode("utf-8").splitlines()) == 31
    done = ltlearn("compare", run, "--methods", "ce,samn", "--quiet")
    assert done.returncode == 0, done.stderr


def test_pretrained_weights_change_rate_and_epochs(photos, given):
    recipe = own_recipe(photos, ["samn"], {"model.arch": "resnet10t", "model.pretrained": given[1]})
    assert recipe.stage1.epochs == 30 and recipe.stage1.lr == 0.0025
    assert recipe.model.pretrained == str(given[1]) and not recipe.model.keep_head


def test_what_train_refuses(photos, tmp_path):
    offline = refused("train", photos, "--arch", "resnet18", "--out", tmp_path / "a")
    assert "resnet18" in offline
    assert not (tmp_path / "a").exists()
    none = refused("train", photos, "--arch", "resnet20_cifar", "--pretrained")
    assert "timm has no pre-trained weights of resnet20_cifar" in none
    assert str(tmp_path / "nothing") in refused("train", tmp_path / "nothing")
    assert "did you mean" in refused("train", photos, "--arch", "resnet5O")
    for nothing in ("", ",", " , "):
        message = refused("train", photos, *FAST, "--method", nothing)
        assert f"--method {nothing!r}" in message
    assert "no method 'samm'" in refused("train", photos, *FAST, "--method", "samm")
    assert "is inside" in refused("train", photos, *FAST, "--out", photos / "run")
    assert "data.dataset" in refused("train", photos, *FAST, "--set", "data.dataset=digits_lt")
    here = ltlearn("train", ".", *FAST, cwd=photos)
    assert here.returncode == 2 and "give --out with a folder elsewhere" in here.stderr
    assert not (photos / "runs").exists(), "it would have been a class from the next call on"
    cut = refused("train", photos, *FAST, "--set", "data.imbalance_factor=10")
    assert "data.imbalance_factor" in cut and "own data" in cut
    assert "exclude each other" in refused("train", photos, "--no-pretrained", "--weights", "x.pth")


def test_keys_of_own_data_are_refused_for_benchmarks():
    with pytest.raises(UserError, match=r"data\.source.*'own'.*'digits_lt'"):
        load_recipe("digits_lt", ["data.source=/somewhere"])
    with pytest.raises(UserError, match=r"data\.source"):
        load_recipe("digits_lt", ["data.dataset=own"])
    with pytest.raises(UserError, match=r"model\.keep_head.*model\.pretrained.*False"):
        load_recipe("digits_lt", ["model.keep_head=true"])


def test_a_recipe_file_may_be_of_own_data(photos, tmp_path):
    recipe = own_recipe(photos, ["samn"], {"model.arch": "resnet20_cifar"})
    again = Recipe.model_validate(recipe.settled().model_dump(mode="json"))
    assert again.settled().data == recipe.settled().data


# ---------------------------------------------------------------- predict


def test_predictions_are_those_of_the_run(trained, photos, tmp_path):
    run, _ = trained
    out = tmp_path / "predicted.csv"
    done = ltlearn("predict", run, photos / "test", "--top", "2", "--csv", out, "--method", "samn")
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "class 1", "p 1", "class 2", "p 2"] and len(rows) == 12
    saved = np.load(run / "predictions.npz")
    probs = torch.from_numpy(saved["seed0/samn"]).softmax(1)
    for row, expected in zip(rows, probs, strict=True):
        assert float(row[2]) == pytest.approx(expected.max().item(), abs=1e-4)


def test_predictions_of_large_images_are_those_of_the_run(tmp_path):
    make_images(tmp_path / "large", {"ant": 6, "bee": 4}, side=100)
    run = tmp_path / "run"
    done = ltlearn(
        "train", tmp_path / "large", "--arch", "resnet10t", "--size", "97", "--no-pretrained",
        "--epochs", "1", "--batch-size", "4", "--method", "ce", "--precision", "fp32",
        "--out", run, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "model.json").read_text())["in_memory"] is False
    saved = np.load(run / "predictions.npz")["seed0/ce"]
    dls = LTDataLoaders.from_folder(tmp_path / "large", size=97, device="cpu")
    paths = [dls.valid.dataset.data.root / p for p in dls.valid.dataset.data.paths]
    expected = torch.from_numpy(saved).softmax(1).amax(1).tolist()
    found = [one.probabilities[0] for one in Predictor(run).predict(paths)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_predict_takes_a_file_of_weights_and_json(trained, photos):
    run, _ = trained
    image = photos / "test" / "bee" / "0.png"
    done = ltlearn("predict", run / "checkpoints/seed0-crt.safetensors", image, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["method"] == "crt" and len(printed["images"]) == 1
    assert {pair["class"] for pair in printed["images"][0]["top"]} == set(CLASSES)
    assert sum(p["probability"] for p in printed["images"][0]["top"]) == pytest.approx(1)
    stage1 = ltlearn("predict", run / "checkpoints/seed0-stage1.safetensors", image, "--json")
    assert json.loads(stage1.stdout)["method"] == "ce"
    assert json.loads(ltlearn("predict", run, image, "--json").stdout)["method"] == "crt"


def test_unreadable_images_are_named_and_the_rest_goes_on(trained, photos, tmp_path):
    run, _ = trained
    (tmp_path / "broken.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone.HEIC").write_text("no image")
    done = ltlearn(
        "predict", run, tmp_path, tmp_path / "empty", tmp_path / "gone.png",
        photos / "test/ant/0.png",
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 4 and "--skip-bad" not in done.stderr
    assert "broken.jpg" in lines[0] and "phone.HEIC" in lines[1]
    assert "holds no images (.avif," in lines[2] and "; give another one" in lines[2]
    assert "there is no image" in lines[3] and "gone.png; give a file, or a folder" in lines[3]
    assert len(done.stdout.strip().splitlines()) == 2


def test_where_nothing_is_classified_nothing_is_written(trained, tmp_path):
    run, _ = trained
    done = ltlearn("predict", run, tmp_path / "gone.png")
    assert done.returncode == 1 and done.stdout == ""
    done = ltlearn("predict", run, tmp_path / "gone.png", "--csv", tmp_path / "out.csv")
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    done = ltlearn("predict", run, tmp_path / "gone.png", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["images"] == []


def test_a_turned_photograph_is_read_upright(trained, tmp_path):
    run, _ = trained
    rng = np.random.default_rng(5)
    upright = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    first, second = Predictor(run).predict([tmp_path / "upright.png", tmp_path / "turned.png"])
    assert first.classes == second.classes
    assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)


def test_another_prior_moves_the_probabilities(trained, photos):
    run, _ = trained
    image = photos / "test" / "cow" / "0.png"
    plain, uniform = (
        dict(zip(p.classes, p.probabilities, strict=True))
        for prior in (None, "uniform")
        for p in Predictor(run, "ce", target_prior=prior).predict([image])
    )
    odds = (uniform["cow"] / uniform["ant"]) / (plain["cow"] / plain["ant"])
    assert odds == pytest.approx(24 / 5, rel=1e-3)
    message = refused("predict", run, image, "--target-prior", "flat")
    assert "--target-prior must be one of uniform, train, reversed, got 'flat'" in message


def test_memory_stays_bounded(trained, photos, monkeypatch):
    run, _ = trained
    predictor, seen, pulled = Predictor(run), [], 0
    monkeypatch.setattr(
        predictor, "logits", lambda x: seen.append(len(x)) or torch.zeros(len(x), 3)
    )

    def paths():
        nonlocal pulled
        for _ in range(200):
            pulled += 1
            yield photos / "test/ant/0.png"

    found = predictor.predict(paths(), bs=8)
    next(found)
    assert pulled <= 24
    assert len(list(found)) == 199 and max(seen) == 8


def test_predict_on_a_recipe_run(tmp_path):
    run = tmp_path / "digits"
    done = ltlearn("recipe", "digits_lt", "--smoke", "--out", run, "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    image = tmp_path / "digit.png"
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(image)
    done = ltlearn("predict", run, image, "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["images"][0]["top"]) == 3
    facts = json.loads((run / "model.json").read_text())
    assert facts["size"] == [8, 8] and facts["methods"]["samn"]["head"] == "SAMNLinear"
    (run / "model.json").unlink()
    message = refused("predict", run, image)
    assert "model.json" in message and "earlier version" in message


def test_what_predict_refuses(trained, photos, tmp_path):
    run, _ = trained
    image = photos / "test/ant/0.png"
    assert "no run" in refused("predict", tmp_path / "nothing", image)
    assert "manifest.json" in refused("predict", tmp_path, image)
    assert "has no method 'lws'; it has ce, samn, crt" in refused(
        "predict", run, image, "--method", "lws"
    )
    assert "adds it" in refused("predict", run, image, "--method", "lws")
    assert "adds it" not in refused("predict", run, image, "--method", "nope")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "checkpoints/seed0-samn.safetensors", alone)
    assert "no model.json beside" in refused("predict", alone, image)
    assert "cannot be written" in refused(
        "predict", run, image, "--csv", tmp_path / "no" / "such.csv"
    )
    message = refused("predict", run, image, "--csv", tmp_path)
    assert f"--csv {tmp_path} is a folder" in message
    for name in ("mine.pth", "mine.pt", "mine.bin"):
        (tmp_path / name).touch()
        message = refused("predict", tmp_path / name, image)
        assert "retrain" in message and str(tmp_path / name) in message
    message = refused("predict", tmp_path / "gone.safetensors", image)
    assert "gone.safetensors" in message
    message = refused("predict", tmp_path, image)
    assert "holds no run (no manifest.json)" in message


# ---------------------------------------------------------------- retrain


def test_retrain_begins_with_the_given_model(given, photos, tmp_path):
    model, file = given
    run = tmp_path / "run"
    done = ltlearn(
        "retrain", "--checkpoint", file, "--data", photos, *GIVEN, "--method", "samn,tau_norm",
        "--out", run, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "as given" in done.stdout and "may have been trained on" in done.stdout
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["values"]["stage1"]["epochs"] == 0
    assert [s["method"] for s in manifest["stages"]] == ["ce", "samn", "tau_norm"]
    dls = LTDataLoaders.from_folder(photos, size=32, device="cpu")
    lt_learner(dls, "resnet10t", file, keep_head=True)  # sets the statistics
    with torch.no_grad():
        expected = torch.cat([model(x) for x, _ in dls.test])
    saved = torch.from_numpy(np.load(run / "predictions.npz")["seed0/ce"])
    torch.testing.assert_close(saved, expected, rtol=1e-3, atol=1e-3)
    done = ltlearn("compare", run, "--methods", "ce,logit_adjustment", "--quiet")
    assert done.returncode == 0, done.stderr
    done = ltlearn("predict", run, photos / "test/ant/0.png", "--json")
    assert json.loads(done.stdout)["method"] == "tau_norm"


def test_retrain_of_a_runs_own_stage_1_reproduces_the_run(trained, photos, tmp_path):
    """It once normalised the images as timm's configuration of the architecture has it."""
    run, _ = trained
    again = tmp_path / "again"
    done = ltlearn(
        "retrain", "--checkpoint", run / "checkpoints/seed0-stage1.safetensors", "--data", photos,
        *FAST[:4], "--method", "tau_norm", "--precision", "fp32", "--out", again, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (np.load(r / "predictions.npz")["seed0/ce"] for r in (run, again))
    assert np.array_equal(first, second)
    report = (again / "report.md").read_text()
    assert "normalisation: mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225; from " in report
    assert "order of the model's outputs: ant, bee, cow; " in report
    assert "as given, the model classifies" in report and "normalisation: mean" in done.stderr
    facts = json.loads((again / "model.json").read_text())
    assert facts["arguments"] == {"width": 4} and facts["mean"] == [0.485, 0.456, 0.406]


def test_retrain_with_statistics_and_an_order_of_its_own(given, photos, tmp_path):
    model, file = given
    run = tmp_path / "run"
    done = ltlearn(
        "retrain", "--checkpoint", file, "--data", photos, *GIVEN, "--method", "tau_norm",
        "--mean", "0.1,0.2,0.3", "--std", "0.5", "--classes", "cow,ant,bee", "--weights-key",
        "state_dict", "--out", run, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "normalisation: mean 0.1, 0.2, 0.3; std 0.5, 0.5, 0.5; from the data" in done.stderr
    dls = LTDataLoaders.from_folder(
        photos, size=32, device="cpu", stats=((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    )
    with torch.no_grad():
        expected = torch.cat([model(x) for x, _ in dls.test])[:, [1, 2, 0]]
    saved = torch.from_numpy(np.load(run / "predictions.npz")["seed0/ce"])
    torch.testing.assert_close(saved, expected, rtol=1e-3, atol=1e-3)
    values = json.loads((run / "manifest.json").read_text())["values"]
    assert values["model"]["classes"] == ["cow", "ant", "bee"]
    assert values["provenance"]["data.mean"] == "command line"
    done = ltlearn("compare", run, "--methods", "ce", "--quiet")
    assert done.returncode == 0, done.stderr
    done = ltlearn("predict", run, photos / "test/ant/0.png", "--json")
    assert done.returncode == 0, done.stderr


def test_options_of_a_given_model_that_are_refused(given, photos, tmp_path):
    words = ("retrain", "--checkpoint", given[1], "--data", photos, *GIVEN)
    for more, found in (
        (("--mean", "a,b,c"), "--mean a,b,c must be three numbers"),
        (("--mean", "0.5"), "give --std as well"),
        (("--mean", "123", "--std", "50"), "mean must be three numbers from 0 to 1"),
        (("--classes", "nofile"), "--classes nofile is neither"),
        (("--classes", "ant,bee,dog"), "not in the data: 'dog'"),
        (("--classes", "ant,bee,cow", "--reset"), "model.classes"),
        (("--weights-key", "ema"), "--weights-key ema names no weights"),
    ):
        assert found in refused(*words, *more, "--out", tmp_path / "a")


def test_class_names_of_an_option(tmp_path):
    assert read_classes(None) is None and read_classes("b, a") == ["b", "a"]
    file = tmp_path / "names.txt"
    for text in ("b\n\na\n", '["b", "a"]', '{"a": 1, "b": 0}', '{"0": "b", "1": "a"}'):
        file.write_text(text)
        assert read_classes(str(file)) == ["b", "a"]
    for text in ("", "b", "[1, 2]", "{"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"classes=.*names\.txt.*two classes"):
            read_classes(str(file))
    assert read_statistics("mean", "0.5") == [0.5] * 3
    assert read_statistics("std", "0.1,0.2,0.3") == [0.1, 0.2, 0.3]
    for text in ("", "1,2", "1;2;3"):
        with pytest.raises(UserError, match="mean="):
            read_statistics("mean", text)


def test_retrain_with_another_number_of_classes(photos, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "five.pth"
    torch.save({"model": timm.create_model("resnet10t", num_classes=5).state_dict()}, file)
    words = ("retrain", "--checkpoint", file, "--data", photos, *GIVEN)
    message = refused(*words, "--out", tmp_path / "a")
    assert "5 classes, but the data has 3" in message and "--reset" in message
    assert not (tmp_path / "a").exists()
    done = ltlearn(*words, "--reset", "--out", tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cRT" in done.stdout and "as given" not in done.stdout
    message = refused("compare", tmp_path / "b", "--methods", "ce")
    assert message.startswith("ltlearn: ce") and "reset" in message and "crt" in message


class Danger:
    def __reduce__(self):
        return print, ("this code ran",)


def test_what_retrain_refuses(given, photos, tmp_path, capsys):
    words = ("--data", photos, *GIVEN)
    unsafe = tmp_path / "unsafe.pth"
    torch.save({"state_dict": {}, "extra": Danger()}, unsafe)
    message = refused("retrain", "--checkpoint", unsafe, *words, "--out", tmp_path / "a")
    assert "could run code" in message and "weights_only" not in message
    assert "this code ran" not in capsys.readouterr().out
    assert "no weights file" in refused("retrain", "--checkpoint", tmp_path / "gone.pth", *words)
    message = refused("retrain", "--checkpoint", given[1], *words, "--set", "stage1.epochs=3")
    assert "stage1.epochs = 3" in message
    message = refused("retrain", "--checkpoint", given[1], *words, "--method", "")
    assert "--method ''" in message
    for arch, why in (
        ("resnet50", "layer1.0.conv1.weight is 64 x 64 x 3 x 3 in the file, but 64 x "),
        ("vit_tiny_patch16_224", "the file lacks 150 tensors such as "),
    ):
        more = words[:2] + ("--arch", arch, "--size", "32", "--out", tmp_path / "c")
        message = refused("retrain", "--checkpoint", given[1], *more)
        assert f"do not fit {arch} (" in message and why in message
        assert message.endswith("arch of the file.")
    message = refused("retrain", "--checkpoint", given[1], "--data", photos, "--arch", "resnet99")
    assert "resnet99" in message and "did you mean" in message
    headless = tmp_path / "headless.pth"
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), headless)
    message = refused("retrain", "--checkpoint", headless, *words, "--out", tmp_path / "b")
    assert "has no classifier (no fc.weight)" in message


@pytest.mark.parametrize("arch", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_kept_head_gives_timms_logits(arch, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "mine.bin")
    cut = create_lt_model(arch, 4, tmp_path / "mine.bin", keep_head=True).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), model(x))


def test_a_kept_head_of_a_run_may_be_samns(trained):
    run, _ = trained
    file = run / "checkpoints/seed0-samn.safetensors"
    cut = create_lt_model("resnet20_cifar", 3, file, keep_head=True, width=4)
    assert type(cut.head).__name__ == "SAMNLinear"
