import io
import json
import os
import random
import re
import shlex
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ltlearn.inspection.advise as advising
from ltlearn.cli.data import advised_command
from ltlearn.data.images import ImageSet, read_image
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.options import ReadOptions
from ltlearn.defaults import choose_defaults
from ltlearn.errors import UserError
from ltlearn.inspection import Sizes, inspect_images, inspect_path
from ltlearn.inspection.result import Inspection
from ltlearn.methods import METHODS
from tests.helpers import ltlearn


def noise(seed, side=8, channels=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (side, side, channels), dtype=np.uint8).squeeze()


def save(path, pixels=None, seed=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(seed) if pixels is None else pixels)
    image.save(path, **kwargs)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes: 6 and 3 images of noise, all different."""
    root = tmp_path / "photos"
    for name, n, first in (("cat", 6, 0), ("dog", 3, 100)):
        for i in range(n):
            save(root / name / f"{i}.png", seed=first + i)
    return root


def test_counts_and_text_of_a_plain_folder(folder):
    found = inspect_path(folder)
    assert found.counts == {"train": [6, 3]} and found.classes == ["cat", "dog"]
    assert found.imbalance_factor == 2 and found.total == 9
    assert found.group_sizes == {"many": 0, "medium": 0, "few": 2}
    assert found.sizes == Sizes(smallest=(8, 8), median=(8, 8), largest=(8, 8), different=1)
    assert found.formats == {"PNG": 9} and found.kinds == {} and found.unreadable == []
    assert found.duplicates.groups == [] and found.problems == []
    text = str(found)
    assert "2, from 6 training images (cat) to 3 (dog): imbalance factor 2" in text
    assert "all 8 x 8" in text and "8-bit RGB, all of them" in text
    assert max(map(len, text.replace(str(folder), "photos").splitlines())) <= 80
    assert json.loads(json.dumps(found.to_dict()))["counts"] == {"train": [6, 3]}
    assert "| 2-4 | 1 | few |" in found.to_markdown()


def test_every_kind_of_file(tmp_path):
    root = tmp_path / "kinds"
    grey16 = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(root / "a" / "rgb.png", seed=1)
    save(root / "a" / "grey.png", noise(2, channels=1))
    save(root / "a" / "16 bit.png", grey16)
    save(root / "a" / "alpha.png", noise(3, channels=4))
    Image.fromarray(noise(4)).quantize(16).save(root / "a" / "palette.png")
    Image.fromarray(noise(5)).convert("CMYK").save(root / "a" / "cmyk.jpg")
    frames = [Image.fromarray(noise(s)) for s in (6, 7, 8)]
    frames[0].save(root / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    save(root / "b" / "turned.jpg", noise(9)[:4], exif=rotated)
    save(root / "b" / "kätzchen 🐈 1.png", seed=10)
    for quick in (False, True):
        found = inspect_path(root, quick=quick)
        assert found.unreadable == []
        assert found.kinds == {
            "greyscale": 2, "palette": 2, "alpha": 1, "CMYK": 1, "16 bit": 1, "animated": 1,
            "EXIF-rotated": 1,
        }  # fmt: skip
        assert found.formats == {"PNG": 6, "JPEG": 2, "GIF": 1}
        # Upright: 8 wide and 4 high before the turn.
        assert found.sizes.smallest == (4, 8) and found.sizes.different == 2
        assert (found.duplicates is None) == quick
    text = str(found)
    for part in ("transparency is dropped", "upper 8", "the first frame", "upright"):
        assert part in " ".join(text.split())


def test_pixels_are_those_that_training_reads(tmp_path):
    """A copy is what `read_image` makes equal: turned, saved again, or of another transparency."""
    pixels = noise(1)
    turned, upright = Image.Exif(), tmp_path / "p" / "a"
    turned[0x0112] = 8
    save(upright / "0.png", pixels)
    save(upright / "1.bmp", pixels)
    save(upright / "2.tif", np.rot90(pixels, -1).copy(), exif=turned)
    save(upright / "3.png", np.dstack([pixels, noise(2, channels=1)]))
    save(tmp_path / "p" / "b" / "other.png", seed=5)
    assert all((read_image(p) == pixels).all() for p in upright.iterdir())
    found = inspect_path(tmp_path / "p").duplicates
    assert [len(g.paths) for g in found.groups] == [4]
    assert found.copies_within == 3 and not found.groups[0].same_file


def test_copies_within_across_classes_and_across_parts(tmp_path):
    root = tmp_path / "set"
    for p, part in enumerate(("train", "val", "test")):
        for i, name in enumerate(("x", "y")):
            for k in range(3):
                save(root / part / name / f"{k}.png", seed=1000 + 100 * p + 10 * i + k)
    save(root / "train" / "x" / "copy.png", seed=1)
    save(root / "train" / "x" / "copy of copy.png", seed=1)
    save(root / "train" / "y" / "other label.png", seed=2)
    save(root / "train" / "x" / "other label.png", seed=2)
    save(root / "test" / "y" / "leak.png", seed=3)
    save(root / "train" / "y" / "leak.png", seed=3)
    save(root / "val" / "y" / "shared.png", seed=4)
    save(root / "test" / "y" / "shared.png", seed=4)
    found = inspect_path(root)
    assert found.counts == {"train": [6, 5], "valid": [3, 4], "test": [3, 5]}
    d = found.duplicates
    assert len(d.groups) == 4 and all(g.same_file for g in d.groups)
    assert (d.copies_within, d.conflicts, d.conflict_images) == (1, 1, 2)
    # What is in validation and in test alone does not leak from training.
    assert d.leaks == {"valid": 0, "test": 1} and d.across_parts == 2
    text = " ".join(str(found).split())
    assert "train/x/other label.png = train/y/other label.png" in text
    assert "leaks: 1 test images (12.5 %) are also in training" in text
    assert "train/y/leak.png = test/y/leak.png" in text


@pytest.fixture
def damaged(folder):
    jpeg = io.BytesIO()
    Image.fromarray(noise(0, 64)).save(jpeg, "JPEG")
    (folder / "cat" / "cut.jpg").write_bytes(jpeg.getvalue()[:700])
    (folder / "cat" / "text.jpg").write_text("no image")
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    (folder / "cat" / "self.png").symlink_to("self.png")
    save(folder / "cat" / "floats.tif", np.ones((8, 8), np.float32))
    os.mkfifo(folder / "cat" / "pipe.png")
    return folder


def test_unreadable_ones_are_named_with_their_reason(damaged):
    found = inspect_path(damaged)
    reasons = {os.path.basename(b.path): b.reason for b in found.unreadable}
    assert reasons.pop("cut.jpg").startswith("image file is truncated")
    assert reasons.pop("floats.tif").startswith("its pixels are floats")
    assert reasons == {
        "text.jpg": "not an image Pillow can read",
        "empty.png": "not an image Pillow can read",
        "gone.png": "not there",
        "self.png": "Too many levels of symbolic links",
        "pipe.png": "not a regular file",
    }
    assert all(b.part == "train" and b.label == "cat" for b in found.unreadable)
    assert found.to_dict()["unreadable"][0]["class"] == "cat" and found.advice.skip_bad
    assert "skip_bad=True" in str(found) and "and 2 more" in str(found)
    assert "skip_bad=True" in found.advice.code and found.problems == []
    # Training refuses the same images.
    for bad in found.unreadable:
        with pytest.raises(UserError, match="image"):
            read_image(bad.path)


def test_headers_alone_do_not_show_that_a_file_is_cut(damaged):
    found = inspect_path(damaged, quick=True)
    names = {os.path.basename(b.path) for b in found.unreadable}
    assert names == {"text.jpg", "empty.png", "gone.png", "self.png", "pipe.png"}
    assert found.duplicates is None and "not searched" in str(found)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission(folder):
    (folder / "cat" / "0.png").chmod(0)
    assert [b.reason for b in inspect_path(folder).unreadable] == ["Permission denied"]
    (folder / "cat" / "0.png").chmod(stat.S_IRUSR)


def test_an_error_of_the_file_system_is_a_reason(folder, monkeypatch):
    def refuse(file, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hashlib.file_digest", refuse)
    found = inspect_path(folder)
    assert {b.reason for b in found.unreadable} == {"Permission denied"}
    assert found.problems == ["no training image can be read."] and found.advice is None
    assert found.to_dict()["sizes"] == {}
    assert "no image can be read" in str(found)


def test_hidden_and_other_files(folder):
    save(folder / "cat" / ".hidden.png")
    save(folder / ".cache" / "0.png")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "deep" / "new.HEIC").write_text("x")
    found = inspect_path(folder)
    assert found.classes == ["cat", "dog"] and found.total == 9
    assert found.ignored == {".txt": 1, ".heic": 1}
    assert "1 .txt, 1 .heic" in str(found) and "ltlearn[heic]" in str(found)


def test_names_of_any_kind(tmp_path):
    root = tmp_path / "a b [bold] ü"
    for name in ("wörter und mehr", "line\nbreak", "[red]", "x|y*"):
        save(root / name / "1 2.png", seed=random.Random(name).randrange(2**32))
        save(root / name / "über\x1b[31m.jpg")  # the same in every class
    bad = os.fsencode(root / "x|y*") + b"/\xff.png"
    with open(bad, "wb") as file:
        file.write(b"x")
    found = inspect_path(root)
    text = str(found)
    assert "\x1b" not in text and "\\n" in text and r"\udcff.png" in text
    text.encode()
    for encoding in ("ascii", "latin-1"):
        file = io.TextIOWrapper(io.BytesIO(), encoding)
        found.render(file)
        file.flush()
        assert "#" in file.buffer.getvalue().decode(encoding)
    assert r"x\|y\*" in found.to_markdown()
    json.dumps(found.to_dict())


def test_classes_without_images(folder):
    (folder / "ant").mkdir()
    save(folder / "bee" / "0.png", seed=77)
    found = inspect_path(folder)
    assert found.counts == {"train": [0, 1, 6, 3]}
    assert found.with_images(0) == ["ant"] and found.with_images(1) == ["bee"]
    assert found.histogram() == [
        ("0", 1, "few"), ("1", 1, "few"), ("2-4", 1, "few"), ("5-9", 1, "few"),
    ]  # fmt: skip
    rows = dict(found.rows())
    assert rows["no training image"] == "ant" and rows["one training image"] == "bee"
    assert found.problems == [] and found.imbalance_factor == 6


def test_an_empty_class_beside_equal_ones_is_not_called_the_largest(folder):
    # "from 3 training images (cat) to 3 (cat)"
    for i in range(3, 6):
        (folder / "cat" / f"{i}.png").unlink()
    (folder / "emu").mkdir()
    assert (
        dict(inspect_path(folder).rows())["classes"] == "3: 2 with 3 training images, 1 with none"
    )


def test_a_tested_class_that_training_has_not(folder, tmp_path):
    root = tmp_path / "parts"
    (root / "test").mkdir(parents=True)
    folder.rename(root / "train")
    for name in ("dog", "emu", "ape"):
        save(root / "test" / name / "0.png", seed=len(name))
    found = inspect_path(root)
    assert found.classes == ["cat", "dog", "ape", "emu"]
    assert found.counts == {"train": [6, 3, 0, 0], "test": [0, 1, 1, 1]}
    assert found.untrained() == ["ape", "emu"] and found.advice is None
    (problem,) = found.problems
    assert problem.endswith("no training image: ape, emu.")
    with pytest.raises(UserError, match="'ape' that is not among the training classes"):
        LTDataLoaders.from_folder(root)
    done = ltlearn("inspect", root, "--quick")
    assert done.returncode == 2 and "not in training" in done.stdout
    assert done.stderr == f"ltlearn: cannot train on {root}: {problem}\n"


def test_a_validation_folder_without_images(folder, tmp_path):
    (tmp_path / "s" / "val" / "cat").mkdir(parents=True)
    folder.rename(tmp_path / "s" / "train")
    found = inspect_path(tmp_path / "s")
    assert found.counts["valid"] == [0, 0]
    (problem,) = found.problems
    assert "the validation folder has no images" in problem


def test_parts_in_capitals_are_no_classes(folder, tmp_path):
    folder.rename(tmp_path / "Train")
    save(tmp_path / "Test" / "cat" / "0.png", seed=200)
    found = inspect_path(tmp_path)
    assert found.classes == ["cat", "dog"]
    assert found.counts == {"train": [6, 3], "test": [1, 0]}


def test_images_that_cannot_be_trained_on(tmp_path):
    with pytest.raises(UserError, match="give a folder of class folders"):
        inspect_path(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no class folders"):
        inspect_path(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="hold no images"):
        inspect_path(tmp_path)
    save(tmp_path / "a" / "0.png")
    assert "only the class a " in inspect_path(tmp_path).problems[0]
    with pytest.raises(UserError, match="is no folder and does not end in .csv"):
        inspect_path(tmp_path / "a" / "0.png")
    save(tmp_path / "b" / "0.png", seed=1)
    assert "no class has two training images" in inspect_path(tmp_path).problems[0]


def test_two_thousand_classes(tmp_path):
    source = save(tmp_path / "0.png", noise(0, 1))
    root = tmp_path / "many"
    for c in range(2_000):
        os.makedirs(root / f"{c:05}")
        os.link(source, root / f"{c:05}" / "0.png")
    os.link(source, root / "00000" / "1.png")
    found = inspect_path(root)
    assert len(found.classes) == 2_000 and len(found.with_images(1)) == 1_999
    assert found.duplicates.conflict_images == 2_001 and found.duplicates.copies_within == 1
    text = str(found)
    assert "and 1,994 more" in text and len(text.splitlines()) < 50
    assert found.advice.method == "samn_from_stage1"


def test_bars_are_longest_at_the_most_and_ranges_part_at_the_shot_groups():
    rng = np.random.default_rng(0)
    counts = [0, 1, 4, 9, 19, 20, 49, 50, 100, 101, 199, 200, 999, 1_000, 60_000, 60_001]
    targets = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(targets), 1, 1, 3), np.uint8)
    data = {"train": ImageSet(targets, images=images)}
    found = inspect_images(data, [str(n) for n in counts], quick=True)
    rows = found.histogram()
    assert [row[0] for row in rows] == [
        "0", "1", "2-4", "5-9", "10-19", "20-49", "50-100", "101-199", "200-499", "500-999",
        "1,000-1,999", "2,000-4,999", "5,000-9,999", "10,000-19,999", "20,000-49,999",
        "50,000-99,999",
    ]  # fmt: skip
    assert [n for _, n, _ in rows] == [1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0, 2]
    for shot, n in found.group_sizes.items():
        assert sum(row[1] for row in rows if row[2] == shot) == n
    bars = [line.count("█") for line in str(found).splitlines() if line.count("  ")]
    assert max(bars) > 20
    other = inspect_images(data, found.classes, quick=True, few="<=20")
    assert ("10-20", 2, "few") in other.histogram()


def test_images_in_memory():
    images = np.stack([noise(s) for s in (0, 1, 2, 3, 4, 0)])
    parts = {
        "test": ImageSet(np.array([0]), images=noise(3)[None]),
        "train": ImageSet(np.array([0, 0, 0, 1, 1, 1]), images=images),
    }
    found = inspect_images(parts, ["a", "b"])
    assert list(found.counts) == ["train", "test"]
    assert [g.paths for g in found.duplicates.groups] == [
        ["train[0]", "train[5]"], ["train[3]", "test[0]"],
    ]  # fmt: skip
    assert found.advice.code.splitlines()[2].startswith("# dls: ")


@pytest.mark.parametrize(
    ("parts", "kwargs", "message"),
    [
        ({}, {}, "must hold a part 'train', got none"),
        ({"train": 1, "dev": 1}, {}, "part must be one of train, valid, test, got 'dev'"),
        ({"train": 1}, {"few": "20"}, "few must be one of <20, <=20"),
    ],
)
def test_wrong_arguments(parts, kwargs, message):
    with pytest.raises(UserError, match=message):
        inspect_images(parts, ["a", "b"], **kwargs)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (96, 96), (97, 97), (40, 41)])
def test_size_network_and_epochs_are_those_of_train(tmp_path, width, height):
    for name in "ab":
        for i in range(2):
            save(tmp_path / name / f"{i}.png", np.zeros((height, width, 3), np.uint8))
    side = width if width == height and width <= 96 else None
    advice = inspect_path(tmp_path, quick=True).advice
    want = choose_defaults(side)
    assert (advice.size, advice.arch, advice.pretrained) == (want.size, want.arch, want.pretrained)
    assert advice.epochs == want.epochs and advice.size == (side or 224)
    assert advice.batch_size == 16 and f"size={want.size}, bs=16" in advice.code
    in_memory = {
        "train": ImageSet(np.array([0, 0, 1, 1]), images=np.zeros((4, height, width, 3), np.uint8))
    }
    assert inspect_images(in_memory, ["a", "b"], quick=True).advice.size == want.size


def made_up(*counts, valid=None):
    parts = {"train": counts, **({"valid": valid} if valid else {})}
    parts = {
        part: ImageSet(
            np.repeat(np.arange(len(n)), n), images=np.zeros((sum(n), 2, 2, 3), np.uint8)
        )
        for part, n in parts.items()
    }
    names = [str(c) for c in range(len(counts))]
    return inspect_images(parts, names, quick=True)


def test_the_method_goes_by_imbalance_classes_and_validation_images():
    assert made_up(60, 50).advice.method == "ce"
    assert "retrain_classifier" not in made_up(60, 50).advice.code
    assert made_up(60, 5).advice.method == "samn_from_stage1"  # 13 validation images
    assert made_up(900, 90).advice.method == "logit_adjustment"
    assert made_up(90, 9, valid=(15, 15)).advice.method == "logit_adjustment"
    assert made_up(90, 9, valid=(15, 14)).advice.method == "samn_from_stage1"
    assert made_up(*[50] * 100, 2).advice.method == "logit_adjustment"
    assert made_up(*[50] * 100, 2, valid=(1,) * 100).advice.method == "samn_from_stage1"
    for found in (made_up(60, 50), made_up(60, 5), made_up(900, 90), made_up(*[50] * 100, 2)):
        assert found.advice.method in METHODS
    batches = [made_up(n, 90).advice.batch_size for n in (60, 350, 900)]
    assert batches == [16, 32, 64]


def test_the_advised_code_runs(folder):
    advice = inspect_path(folder).advice
    compile(advice.code, "advice", "exec")
    code = advice.code.replace(f"({advice.epochs})", "(1)").replace("print(", "report = (")
    names = {}
    exec(code, names)
    assert names["dls"].size == (8, 8) and names["report"].all is not None


def test_the_command(folder, tmp_path):
    done = ltlearn("inspect", folder, "--quick", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}\nimages")
    assert done.stderr == f"written: {tmp_path / 'out' / 'inspection.md'}\n"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"inspection.md", "inspection.json", "class_counts.png"}
    with Image.open(tmp_path / "out" / "class_counts.png") as image:
        assert image.width > 500
    done = ltlearn("inspect", folder, "--quick", "--json")
    found = json.loads(done.stdout)
    assert found == {**json.loads((tmp_path / "out" / "inspection.json").read_text()),
                     "reading_s": found["reading_s"]}  # fmt: skip
    assert found["advice"]["size"] == 8 and found["duplicates"] is None and done.stderr == ""


def test_the_advised_command_trains(folder, tmp_path):
    done = ltlearn("inspect", folder, "--quick", "--json")
    advice = json.loads(done.stdout)["advice"]
    program, command, *words = shlex.split(advice["command"])
    assert (program, command, words[0]) == ("ltlearn", "train", str(folder))
    done = ltlearn("inspect", folder, "--quick")
    assert advice["command"] in done.stdout.replace("\\\n    ", "")
    found = inspect_path(folder, quick=True)
    assert f"```\nls {folder}\n```" in found.to_markdown(f"ls {folder}")
    assert "ltlearn train" not in found.to_text() + found.to_markdown()
    # As advised, but short.
    words[words.index("--epochs") + 1] = "1"
    words += ["--set", "model.width=4", "--out", str(tmp_path / "run"), "--quiet"]
    done = ltlearn(command, *words)
    assert done.returncode == 0, done.stderr


def test_the_advice_keeps_the_reading_options_of_a_table(tmp_path):
    save(tmp_path / "images" / "a.png", noise(0))
    save(tmp_path / "images" / "b.png", noise(1))
    table = tmp_path / "list of mine.csv"
    table.write_text("id,age,kind\na,7,x\nb,7,y\na,7,x\n")
    reading = {"images": str(tmp_path / "images"), "label_col": "kind", "suffix": ".png"}
    found = inspect_path(table, split_col=False, **reading)
    assert found.columns == {"path": "id", "label": "kind"} and found.total == 2
    assert dict(found.rows())["columns"] == "path from 'id', label from 'kind'"
    assert dict(found.rows())["ignored columns"] == "age" and found.ignored_columns == ["age"]
    # No class has two images; with more there is advice, with the same options.
    save(tmp_path / "images" / "c.png", noise(2))
    table.write_text("id,age,kind\na,7,x\nb,7,y\nc,7,x\n")
    advice = inspect_path(table, split_col=False, **reading).advice
    assert "from_csv(" in advice.code
    assert "suffix='.png'" in advice.code and "split_col=False" in advice.code
    flags = ["--images", reading["images"], "--label-col", "kind", "--suffix", ".png"]
    done = ltlearn("inspect", table, *flags, "--split-col", "none", "--json")
    words = shlex.split(json.loads(done.stdout)["advice"]["command"])
    assert words[2] == str(table) and words[words.index("--label-col") + 1] == "kind"
    assert words[words.index("--split-col") + 1] == "none"


def listed(tmp_path, text, **kwargs):
    for i in range(6):
        save(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "t.csv").write_text(text)
    return inspect_path(tmp_path / "t.csv", **kwargs)


def test_images_of_a_table_that_are_not_there_are_unreadable(tmp_path):
    # It once stopped at the first one and advised --skip-bad, which this command lacks.
    text = "path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    found = listed(tmp_path, text)
    assert found.counts == {"train": [4, 4]} and found.problems == []
    assert [(b.path, b.label, b.reason) for b in found.unreadable] == [
        (str(tmp_path / "6.png"), "a", "not there"),
        (str(tmp_path / "7.png"), "b", "not there"),
    ]
    assert found.advice.skip_bad and "skip_bad=True" in found.advice.code
    done = ltlearn("inspect", tmp_path / "t.csv", "--quick")
    assert done.returncode == 0 and "not there" in done.stdout and "--skip-bad" in done.stdout
    with pytest.raises(UserError, match="nor any other of the 8; "):
        inspect_path(tmp_path / "t.csv", images=str(tmp_path / "elsewhere"))


def test_contradicting_rows_are_counted(tmp_path):
    text = "path,label,split\n" + "".join(f"{i}.png,{'ab'[i % 2]},train\n" for i in range(6))
    found = listed(tmp_path, text + "0.png,a,test\n1.png,a,test\n2.png,b,train\n3.png,c,test\n")
    assert found.classes == ["a", "b", "c"]
    assert found.counts == {"train": [3, 3, 0], "test": [2, 0, 1]}
    assert found.duplicates.leaks == {"test": 3} and found.duplicates.conflicts == 2
    labels, parts, untrained = found.problems
    assert "row 9: '1.png' is labelled 'a' here and labelled 'b' in row 3" in labels
    assert "row 8: '0.png' is a test image here and a training image in row 2" in parts
    assert untrained.endswith("no training image: c.")
    assert found.advice is None
    done = ltlearn("inspect", tmp_path / "t.csv", "--quick")
    assert done.returncode == 2 and "problem" in done.stdout


def test_annotations_that_share_images_are_counted(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", seed=i)
    for name, ids in (("train", range(4)), ("test", (3,))):
        content = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in ids],
            "annotations": [{"image_id": i, "category_id": i % 2} for i in ids],
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "0.png").unlink()
    found = inspect_path(tmp_path / "train.json", test=str(tmp_path / "test.json"))
    assert found.duplicates.leaks == {"test": 1} and len(found.unreadable) == 1
    (problem,) = found.problems
    assert "'3.png' is in " in problem


def test_mistakes_on_the_command_line(folder, tmp_path):
    for words, message in (
        ((tmp_path / "none",), "give a folder of class folders"),
        ((folder, "--quick", "--out", folder / "out"), "is inside"),
        ((folder, "--few", "20"), "few must be one of"),
        ((folder, "--quick", "--out", folder / "cat" / "0.png" / "x"), "is inside"),
        ((folder, "--quick", "--out", "/proc/x"), "cannot write to /proc/x"),
    ):
        done = ltlearn("inspect", *words)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("gpu", "threads", "stage1"), [(False, 2, "probe"), (True, 2, "ce"), (False, 500, "ce")]
)
def test_a_probe_comes_first_where_training_takes_hours(monkeypatch, gpu, threads, stage1):
    """It once advised two days of ResNet-50 on a CPU, without a word about it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    counts = [20_000, 4_000]
    train = ImageSet(np.repeat([0, 1], counts), paths=[Path("x.png")] * sum(counts))
    monkeypatch.setattr(advising, "look_at", lambda train: SimpleNamespace(side=None))
    advice = advising.advise(Inspection("mine", ["a", "b"], {"train": counts}), train, "f('x'")
    assert (advice.stage1, advice.arch, advice.pretrained) == (stage1, "resnet50", True)
    command = advised_command(advice, Path("mine"), ReadOptions())
    text = Inspection("mine", ["a", "b"], {"train": counts}, advice=advice).to_text(command)
    if stage1 == "ce":
        assert "fit_stage1(30)" in advice.code and advice.stage1_reason == ""
        assert "stage1='" not in command and "probe" not in text
        return
    assert re.search(r"resnet50 would take about \d days on the 2 cores", advice.stage1_reason)
    assert 'fit_stage1(method="probe")' in advice.code and "stage1='probe'" in command
    assert "linear probe" in text and "2 cores" in text


def test_small_images_get_a_network_with_weights_for_a_probe(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    images = np.broadcast_to(np.zeros((1, 32, 32, 3), np.uint8), (60_000, 32, 32, 3))
    train = ImageSet(np.arange(60_000) % 2, images=images)
    counts = {"train": [30_000, 30_000]}
    advice = advising.advise(Inspection("mine", ["a", "b"], counts), train, None)
    assert (advice.stage1, advice.arch, advice.size) == ("probe", "resnet50", 96)
    assert "resnet32_cifar would take" in advice.stage1_reason and 'resnet50")' in advice.code
