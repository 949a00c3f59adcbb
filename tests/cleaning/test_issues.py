import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from ltlearn import LTDataLoaders, UserError
from ltlearn.cleaning import KINDS, Issues, find_issues
from ltlearn.cleaning.issues import COLUMNS
from ltlearn.training.features import FeatureBank
from tests.callbacks.helpers import make_dls, make_lt_learner

CLASSES = {"ant": 60, "bee & <b>": 30, "cat": 4}
COLOURS = ((230, 40, 40), (40, 220, 60), (50, 60, 230))


def pixels_of(c, seed, side=16):
    """An image in the colour of its class, with a pattern of its own."""
    noise = np.random.default_rng((seed, c)).integers(0, 256, (side, side), dtype=np.uint8)
    blurred = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)), float)
    pattern = 0.3 + 0.7 * (blurred - blurred.min()) / np.ptp(blurred)
    return (pattern[..., None] * COLOURS[c]).astype(np.uint8)


def write_set(root):
    """Write images with a label error, a copy in another part, one in another class, and so on."""
    for part, share in (("train", 1), ("valid", 4), ("test", 4)):
        for c, (name, n) in enumerate(CLASSES.items()):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(max(2, n // share)):
                pixels = pixels_of(c, 1000 * share + 100 * (part == "test") + i)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.fromarray(pixels_of(1, 7)).save(root / "train/ant/wrong.png")
    same = pixels_of(0, 1000)
    Image.fromarray(same).save(root / "train/ant/again.png")
    Image.fromarray(same).save(root / "train/bee & <b>/other.png")
    grey = Image.fromarray(pixels_of(1, 1003)).convert("L")
    grey.save(root / "test/bee & <b>/leak.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    root = write_set(tmp_path_factory.mktemp("set"))
    dls = LTDataLoaders.from_folder(root, size=16, device="cpu")
    return make_lt_learner(dls)


@pytest.fixture(scope="module")
def issues(learn):
    return learn.find_issues()


def at(issues, ending):
    return [one for one in issues.findings if one.path.endswith(ending)]


def test_each_planted_fault_is_found(issues):
    (leak,) = (one for one in at(issues, "leak.jpg") if one.kind == "leak")
    assert (leak.kind, leak.part, leak.label, leak.suggested) == ("leak", "test", "bee & <b>", "")
    assert leak.twin.endswith("train/bee & <b>/3.png") and leak.score > 0.95
    (again,) = (one for one in at(issues, "again.png") if one.kind == "duplicate")
    assert again.twin.endswith("ant/0.png")
    other = {one.kind: one for one in at(issues, "other.png")}
    assert other["conflict"].suggested == "ant" and other["conflict"].twin.endswith("ant/0.png")
    wrong = [one for one in at(issues, "wrong.png") if one.kind == "label"]
    assert [(one.label, one.suggested) for one in wrong] == [("ant", "bee & <b>")]
    assert wrong[0].score > 2 and wrong[0].group == "medium"
    counts = issues.counts()
    assert (counts["leak"], counts["conflict"], counts["duplicate"]) == (1, 1, 1)
    assert 1 <= counts["label"] <= 3
    assert issues.n_images["train"] == 97 and issues.too_few == ["cat"]
    # A suspicious label is the better reason for an image unlike its class.
    labels, unusual = ({one.number for one in issues.of(kind)} for kind in ("label", "unusual"))
    assert not labels & unusual


def test_kinds_that_are_not_asked_for_are_not_searched(learn, monkeypatch):
    from ltlearn.cleaning import find

    def never(*_):
        raise AssertionError("this search was not asked for")

    monkeypatch.setattr(find, "hash_images", never)
    found = find_issues(learn, "label")
    assert list(found.counts()) == ["label"] and found.searched == ("label",)
    monkeypatch.undo()
    monkeypatch.setattr(type(learn), "features", never)
    assert find_issues(learn, ["leak", "duplicate"]).counts() == {"leak": 1, "duplicate": 1}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"kinds": "labels"}, "kinds .*label.*'labels'"),
        ({"kinds": []}, "kinds .*label"),
        ({"seed": -1}, "seed .*-1"),
    ],
)
def test_wrong_arguments(learn, arguments, words):
    with pytest.raises(UserError, match=words):
        find_issues(learn, **arguments)


def test_without_the_extra(learn, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "ltlearn.utils.extras.find_spec", lambda n: None if n == "imagehash" else find_spec(n)
    )
    with pytest.raises(UserError, match=r"imagehash; .*pip install 'ltlearn\[clean\]'"):
        learn.find_issues()


def test_frame_and_csv_hold_the_findings(issues, tmp_path):
    frame = issues.to_frame()
    assert tuple(frame.columns) == COLUMNS and len(frame) == len(issues)
    assert frame["kind"].tolist() == sorted(frame["kind"], key=list(KINDS).index)
    issues.to_csv(tmp_path / "deep" / "clean.csv")
    with open(tmp_path / "deep" / "clean.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [one.path for one in issues.findings]
    assert {row["class"] for row in rows} >= {"ant", "bee & <b>"}
    assert {row["action"] for row in rows} == {""}
    assert json.loads(json.dumps(issues.to_dict()))["counts"] == issues.counts()
    with pytest.raises(UserError, match="clean.csv"):
        issues.to_csv(tmp_path / "deep" / "clean.csv" / "file")


def test_texts(issues):
    text = str(issues)
    assert "1 leak" in text and "cat" in text and "wrong.png" in text
    assert "bee &amp; &lt;b&gt;" in issues._repr_html_()
    # Only the summary names the folder; the files of the table are relative to it.
    assert issues.folder and text.count(issues.folder) == 1
    assert all((Path(issues.folder) / row[2]).is_file() for row in issues.rows())
    assert "'leak': 1" in repr(issues)
    with pytest.raises(UserError, match="kind .*'labels'"):
        issues.of("labels")


def test_show_draws_images_and_twins(issues):
    figure = issues.show()
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert len(titles) == len(issues) + 3, "three findings have a twin"
    assert any(title.startswith("label") and "ant -> bee" in title for title in titles)
    assert len([ax for ax in issues.show("label", n=1).axes if ax.images]) == 1
    figure.draw_without_rendering()
    nothing = Issues([], ("label",), {"train": 3}, images=issues.images)
    nothing.show().draw_without_rendering()


def test_actions_make_a_list_to_train_on(learn, issues, tmp_path):
    file = tmp_path / "clean.csv"
    issues.to_csv(file)
    table = pd.read_csv(file, keep_default_na=False)
    table.loc[table["path"].str.endswith("wrong.png"), "action"] = "Relabel "
    table.loc[table["path"].str.endswith("again.png"), "action"] = "drop"
    table.to_csv(file, index=False)
    cleaned = issues.cleaned(file)
    assert len(cleaned) == sum(issues.n_images.values()) - 1
    labels = dict(zip(cleaned["image"], cleaned["label"], strict=True))
    (wrong,) = (path for path in labels if path.endswith("wrong.png"))
    assert labels[wrong] == "bee & <b>" and not any(p.endswith("again.png") for p in labels)
    dls = LTDataLoaders.from_df(cleaned, size=16, device="cpu")
    before = dict(zip(learn.dls.vocab, learn.dls.class_counts.tolist(), strict=True))
    after = dict(zip(dls.vocab, dls.class_counts.tolist(), strict=True))
    assert after == {"ant": before["ant"] - 2, "bee & <b>": before["bee & <b>"] + 1, "cat": 4}
    assert dls.test.n == learn.dls.test.n, "parts stay"
    assert issues.cleaned()["label"].tolist() == [learn.dls.vocab[c] for c in issues.images.targets]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"action": "delete"}, "row 0 .*'delete'"),
        ({"action": "relabel", "suggested_class": "dog"}, "row 0 .*'dog'"),
        ({"action": "drop", "path": "elsewhere.png"}, "row 0 .*elsewhere.png"),
    ],
)
def test_wrong_actions(issues, change, words):
    table = issues.to_frame()
    for column, value in change.items():
        table.loc[0, column] = value
    with pytest.raises(UserError, match=words):
        issues.cleaned(table)


def test_actions_that_contradict_each_other(issues):
    row = {"path": issues.findings[0].path, "action": "relabel"}
    table = pd.DataFrame([{**row, "suggested_class": name} for name in ("ant", "cat")])
    with pytest.raises(UserError, match="row 1 .*'cat'.*'ant'"):
        issues.cleaned(table)
    with pytest.raises(UserError, match="suggested_class"):
        issues.cleaned(table.drop(columns="suggested_class"))


def test_files_of_actions_that_cannot_be_read(issues, tmp_path):
    with pytest.raises(UserError, match="nothing.csv"):
        issues.cleaned(tmp_path / "nothing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="empty.csv"):
        issues.cleaned(tmp_path / "empty.csv")


def test_an_image_that_became_unreadable(tmp_path):
    """Features of images in files are cached; the file itself is damaged later."""
    root = write_set(tmp_path / "set")
    dls = LTDataLoaders.from_folder(root, size=16, device="cpu", in_memory=False, num_workers=0)
    learn = make_lt_learner(dls)
    learn.bank = FeatureBank()
    for part in ("train", "valid", "test"):
        learn.features(part)
    (root / "train/ant/5.png").write_bytes(b"no image")
    found = learn.find_issues()
    (damaged,) = found.of("unreadable")
    assert damaged.path.endswith("ant/5.png") and "5.png" in damaged.reason
    assert found.counts()["leak"] == 1
    found.to_html(tmp_path / "clean.html")
    assert "not readable" in (tmp_path / "clean.html").read_text()
    assert any("5.png" in cell for row in found.rows() for cell in row)


def test_arrays_parts_and_single_images_of_a_class():
    """Grey arrays without paths, a class of one image, and no test set."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (31, 16, 16), dtype=np.uint8)
    images[30] = images[2]
    targets = np.repeat([0, 1, 2], [20, 9, 2])
    targets[30] = 0
    dls = LTDataLoaders.from_arrays(images, targets, device="cpu", valid_pct=0.3)
    found = make_lt_learner(dls).find_issues(["leak", "duplicate", "conflict", "label"])
    assert found.too_few == ["2"] and sum(found.n_images.values()) == 31
    (copy,) = (one for one in found.findings if one.twin)
    # A carved validation image is named by its row in the array that was given.
    assert {copy.path, copy.twin} == {"train[2]", "train[30]"}
    assert not any(one.label == "2" for one in found.of("label"))


def test_parts_that_hold_the_same_images_count_once():
    dls = make_dls(counts=[12, 8], protocol="paper")
    found = make_lt_learner(dls).find_issues("leak")
    assert list(found.n_images) == ["train", "test"] and found.counts() == {}


def test_a_learner_without_images(learn):
    from ltlearn.cleaning.images import LoadedImages

    with pytest.raises(UserError, match="load_learner"):
        LoadedImages(learn.dls.new_empty())
