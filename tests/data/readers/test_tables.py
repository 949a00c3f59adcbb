import inspect
import json
import logging
import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ltlearn.data import list_images
from ltlearn.data.datasets import ImageFiles, ImagesInMemory
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.options import LoadOptions, ReadOptions
from ltlearn.data.readers.annotations import list_json
from ltlearn.data.readers.folders import find_split_folders, list_folder
from ltlearn.data.readers.sources import source_kind
from ltlearn.data.readers.tables import list_table, read_table
from ltlearn.inspection import inspect_path
from tests.data.readers.helpers import epoch, sentence

COUNTS = {"ant": 8, "bee": 4, "cat": 3}


@pytest.fixture
def photos(tmp_path, write_classes):
    return write_classes(tmp_path / "photos", COUNTS)


def rows_of(root, counts=COUNTS) -> list[tuple[str, str]]:
    return [(f"{c}/{i}.png", c) for c, n in counts.items() for i in range(n)]


def frame(root, columns=("image", "label")) -> pd.DataFrame:
    return pd.DataFrame(rows_of(root), columns=list(columns))


def from_df(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_df(*args, device="cpu", **kwargs)


def from_csv(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_csv(*args, device="cpu", **kwargs)


def table(source, images=None, **options):
    return list_table(source, ReadOptions(images=images, **options))


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- the same as a folder


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_table_of_a_folder_is_the_folder(photos, in_memory):
    options = {"size": 8, "in_memory": in_memory, "bs": 4, "seed": 3}
    want = LTDataLoaders.from_folder(photos, device="cpu", **options)
    got = from_df(frame(photos), photos, **options)
    assert got.vocab == want.vocab and got.class_counts.tolist() == want.class_counts.tolist()
    assert got.split.train == want.split.train and got.split.valid == want.split.valid
    assert (got.split.name, got.split.dataset) == ("one table", "table")
    for one, other in zip(got, want, strict=True):
        for (x, y), (u, v) in zip(epoch(one), epoch(other), strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_the_defaults_are_those_of_from_folder():
    folder = inspect.signature(LTDataLoaders.from_folder).parameters
    defaults = {n: p.default for n, p in folder.items() if n not in ("path", "skip_bad")}
    options = LoadOptions()
    assert defaults == {name: getattr(options, name) for name in defaults}


def test_an_option_that_no_source_has_is_named(photos):
    with pytest.raises(TypeError, match="colour"):
        from_df(frame(photos), photos, colour=True)
    assert "bs must be a whole number" in sentence(lambda: from_df(frame(photos), photos, bs=0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_give_the_same(photos, num_workers):
    options = {"size": 8, "in_memory": False, "bs": 4}
    dls = from_df(frame(photos), photos, num_workers=num_workers, **options)
    want = from_df(frame(photos), photos, num_workers=0, **options)
    for (x, y), (u, v) in zip(epoch(dls.train), epoch(want.train), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "sep"),
    [("t.csv", ","), ("t.csv", ";"), ("t.CSV", "\t"), ("t.csv", "|"), ("t.tsv", "\t"),
     ("t.tab", "\t")],
)  # fmt: skip
def test_delimiters_are_guessed(photos, name, sep):
    lines = [f"image{sep}label"] + [f"{p}{sep}{c}" for p, c in rows_of(photos)]
    dls = from_csv(write(photos / name, "\n".join(lines)))
    assert dls.shot_counts.tolist() == [8, 4, 3] and dls.vocab == ["ant", "bee", "cat"]
    assert dls.split.dataset == "t"


def test_a_file_of_windows_with_quotes_spaces_and_empty_lines(tmp_path, write_classes):
    write_classes(tmp_path / "mes été, 2", {"chat noir": 2, "猫": 2})
    text = "\r\n".join([
        "\ufeff", "Label, Filename ", '"chat noir", "mes été, 2/chat noir/0.png"', "",
        'chat noir ,"mes été, 2/chat noir/1.png"', "猫,\"mes été, 2/猫/0.png\"",
        "猫,\"mes été, 2/猫/1.png\"", ",", "", "",
    ])  # fmt: skip
    listed = table(write(tmp_path / "t.csv", text))
    assert listed.classes == ["chat noir", "猫"]
    assert listed.parts["train"].targets.tolist() == [0, 0, 1, 1]
    assert len(listed.parts["train"].load(None)) == 4


def test_without_a_header_no_image_is_lost(photos):
    lines = [f"{p},{c}" for p, c in rows_of(photos)]
    file = write(photos / "t.csv", "\n".join(lines))
    assert from_csv(file).shot_counts.tolist() == [8, 4, 3]
    file.write_text("\n".join(["", *lines, "gone.png,ant"]))
    assert "t.csv, row 17: there is no " in sentence(lambda: from_csv(file))


@pytest.mark.parametrize(
    ("ending", "suffix"), [("", ""), (".dcm", ""), (".jfif", ""), ("", ".png")]
)
def test_a_first_line_that_names_a_file_is_no_header(photos, ending, suffix):
    # It was one for every extension that is not known, and the first image was lost.
    for file in photos.rglob("*.png"):
        file.rename(file.with_suffix(ending or suffix))
    lines = [f"{os.path.splitext(p)[0]}{ending},{c}" for p, c in rows_of(photos)]
    file = write(photos.parent / "t.csv", "\n".join(lines))
    listed = table(file, photos, suffix=suffix)
    assert len(listed.parts["train"]) == 15
    write(file, "\n".join(["image,label", *lines]))
    (photos / f"image{suffix}").touch()
    assert len(table(file, photos, suffix=suffix).parts["train"]) == 15


def test_labels_that_pandas_takes_for_missing_are_kept(photos):
    lines = ["path,class"] + [f"ant/{i}.png,{c}" for i, c in enumerate(["NA", "None", "nan", "1"])]
    assert table(write(photos / "t.csv", "\n".join(lines))).classes == [
        "1", "NA", "None", "nan",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "t.csv is empty; give one row"),
        (b"\n \n", "t.csv is empty; give one row"),
        (b"image,label\n", "t.csv has no rows; give one row"),
        (b"image,label\n,\n\n", "t.csv has no rows; give one row"),
        (b"image;label\ncaf\xe9.png;a\n", "t.csv is not in UTF-8"),
        ("image,label\na.png,b\n".encode("utf-16"), "t.csv is not in UTF-8"),
        (b"image,label\na.png,b,c\n", "t.csv has more cells in a row than in its header"),
        (b"image,label\na.png,b\nb.png,c,d\n", "Expected 2 fields in line 3, saw 3"),
        (b'image,label\n"a.png,b\n', "t.csv is no table (EOF inside string"),
        (b"image\na.png\n", "t.csv has the column image alone"),
        (b"image,label\na.png,\n", "t.csv, row 2: the label is empty (column 'label')"),
        (b"image,label\n\na.png\n", "t.csv, row 3: the label is empty (column 'label')"),
        (b"image,label\n,a\n,b\nc.png,c", "the path is empty (column 'image'), and so are 1 more"),
        (b"image,label,split\na.png,a,\n", "row 2: the split is empty"),
        (b"image,label\na/,b\n", "t.csv, row 2: 'a/' is no path of an image"),
        (b"image,label\n\0.png,b\n", "is no path of an image"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, reason):
    (tmp_path / "t.csv").write_bytes(content)
    assert reason in sentence(lambda: from_csv(tmp_path / "t.csv"))


def test_files_that_are_not_there(tmp_path):
    assert "cannot read" in sentence(lambda: from_csv(tmp_path / "gone.csv"))
    assert "cannot read" in sentence(lambda: from_csv(tmp_path))
    assert "from_csv" in sentence(lambda: from_df("t.csv"))
    assert "must be a pandas DataFrame" in sentence(lambda: from_df([1]))


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "columns",
    [("image", "label"), (" File", "TARGET "), ("image_path", "y"), ("x", "label"), ("x", "y"),
     (5, 6)],
)  # fmt: skip
def test_columns_are_guessed(photos, columns):
    df = frame(photos, columns)
    assert table(df, photos).classes == ["ant", "bee", "cat"]
    if columns != ("x", "y") and columns != (5, 6):
        assert table(df[df.columns[::-1]], photos).classes == ["ant", "bee", "cat"]


def test_columns_are_named_or_numbered(photos):
    df = frame(photos, ("b", "a"))
    df.insert(0, "label", range(len(df)))
    df["image"] = "nothing"
    for image, label in (("b", "a"), (1, 2), ("b", 2), (np.int64(1), "a")):
        listed = table(df, photos, image_col=image, label_col=label)
        assert listed.classes == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image_col": "img"}, "no column 'img' (image_col); its columns are image, label."),
        ({"label_col": 2}, "no column 2 (label_col)"),
        ({"label_col": -1}, "no column -1 (label_col)"),
        ({"image_col": True}, "no column True (image_col)"),
        ({"image_col": 1, "label_col": 1}, "must be different columns of image, label"),
        ({"split_col": "label"}, "must be different columns"),
        ({"split_col": "part"}, "no column 'part' (split_col)"),
    ],
)
def test_columns_that_are_not_there(photos, columns, reason):
    assert reason in sentence(lambda: from_df(frame(photos), photos, **columns))


def test_numbers_where_paths_should_be(photos):
    df = frame(photos, ("a", "b"))
    df.insert(0, "id", range(len(df)))
    assert "the table, row 0: 0 is no path of an image; name the column" in sentence(
        lambda: from_df(df, photos)
    )


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, -1, 9], ["-1", "9", "10"]),
        ([10.0, 9.0, 0.0, 9.0], ["0", "9", "10"]),
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["c10", "c9", "c9", "B"], ["B", "c9", "c10"]),
        ([True, False, True, False], ["False", "True"]),
        (["a/b", "a b", "ü", "a/b"], ["a b", "a/b", "ü"]),
        ([1, "1", " 1", 2], ["1", "2"]),
    ],
)
def test_classes_are_sorted(photos, labels, classes):
    df = pd.DataFrame({"image": [f"ant/{i}.png" for i in range(4)], "label": labels})
    listed = table(df, photos)
    assert listed.classes == classes
    names = [classes[t] for t in listed.parts["train"].targets]
    assert names == [str(int(v)) if isinstance(v, float) else str(v).strip() for v in labels]


def test_categories_of_pandas_and_paths_of_pathlib(photos):
    df = frame(photos)
    df["label"] = df["label"].astype("category")
    df["image"] = [photos / p for p in df["image"]]
    assert table(df).classes == ["ant", "bee", "cat"]


@pytest.mark.parametrize("bad", [None, float("nan"), pd.NA, "", "  "])
@pytest.mark.parametrize("column", ["image", "label"])
def test_an_empty_cell_is_named(photos, bad, column):
    df = frame(photos).astype(object)
    df.loc[5, column] = bad
    what = "path" if column == "image" else "label"
    assert f"the table, row 5: the {what} is empty (column '{column}')" in sentence(
        lambda: from_df(df, photos)
    )


@pytest.mark.parametrize("bad", [0.5, np.inf])
def test_a_fraction_is_no_label(photos, bad):
    df = frame(photos)
    df["label"] = [1.0, bad] + [2.0] * (len(df) - 2)
    assert "the table, row 1: the label" in sentence(lambda: from_df(df, photos))


def test_two_classes_do_and_one_does_not(photos):
    df = frame(photos)
    assert from_df(df[df["label"] != "cat"], photos).c == 2
    assert "the table has only the class 'ant'; a classifier needs" in sentence(
        lambda: from_df(df[df["label"] == "ant"], photos)
    )
    assert "the table has no rows" in sentence(lambda: from_df(df[:0], photos))


def test_a_thousand_classes(tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    names = [f"{i % 2}/{i}.png" for i in range(3_000)]
    for name in names:
        (tmp_path / name).touch()
    df = pd.DataFrame({"image": names, "label": [f"c{i % 1_000}" for i in range(3_000)]})
    listed = table(df, tmp_path)
    assert listed.classes == [f"c{i}" for i in range(1_000)]
    assert np.bincount(listed.parts["train"].targets).tolist() == [3] * 1_000


# ---------------------------------------------------------------- parts


def with_parts(root, *words) -> pd.DataFrame:
    df = frame(root)
    df["split"] = [words[i % len(words)] for i in range(len(df))]
    return df


@pytest.mark.parametrize("column", ["split", "Subset", "fold"])
def test_a_split_column(photos, column):
    df = with_parts(photos, "Train", "VAL", "train ", "test").rename(columns={"split": column})
    dls = from_df(df, photos, split_col=column if column == "fold" else None)
    assert [dls.train.n, dls.valid.n, dls.test.n] == [8, 4, 3]
    assert (dls.split.name, dls.split.valid_from) == ("split column", "validation set")
    paper = from_df(df, photos, split_col=column, protocol="paper")
    assert paper.split.valid_from == "test set" and paper.valid.n == 3


def test_without_validation_rows_they_are_carved(photos):
    dls = from_df(with_parts(photos, "train", "training", "test"), photos)
    assert dls.split.valid_from == "training images" and dls.test.n == 5
    assert from_df(with_parts(photos, "a"), photos, split_col=False).test is None


def test_parts_that_cannot_be_used(photos):
    assert "the table, row 1: 'eval' in the column 'split' must be one of train" in sentence(
        lambda: from_df(with_parts(photos, "train", "eval"), photos)
    )
    assert "mark some rows 'train'" in sentence(lambda: from_df(with_parts(photos, "test"), photos))
    assert "paper protocol chooses epochs on the test set" in sentence(
        lambda: from_df(with_parts(photos, "train", "val"), photos, protocol="paper")
    )


@pytest.mark.parametrize(("word", "part"), [("val", "validation"), ("test", "test")])
def test_a_label_that_training_lacks_is_named(photos, word, part):
    df = with_parts(photos, "train")
    df.loc[df["label"] == "cat", "split"] = word
    assert f"the table, row 12: the {part} label 'cat' is not among the training" in sentence(
        lambda: from_df(df, photos)
    )


# ---------------------------------------------------------------- rows there twice


def test_rows_there_twice_count_once(photos, caplog):
    df = frame(photos)
    again = df[:2].copy()
    again["image"] = ["./ant//0.png", str(photos / "ant" / "1.png")]
    dls = from_df(pd.concat([df, again, df[4:5]]), photos)
    assert dls.shot_counts.tolist() == [8, 4, 3]
    assert "the table: 3 rows are there twice; each image counts once." in caplog.messages
    assert dls.split.train == from_df(df, photos).split.train
    table(pd.concat([df, df[:1]]), photos)
    assert caplog.messages[-1] == "the table: 1 row is there twice; each image counts once."


def test_an_image_with_two_labels_is_named(photos):
    df = frame(photos)
    df.loc[len(df)] = ["./ant/0.png", "cat"]
    assert (
        "the table, row 15: 'ant/0.png' is labelled 'cat' here and labelled 'ant' in row 0; "
        "an image has one label"
    ) in sentence(lambda: from_df(df, photos))
    df.loc[len(df)] = ["ant/0.png", "bee"]
    assert "and 1 more row is like it" in sentence(lambda: from_df(df, photos))


def test_an_image_in_two_parts_is_named(photos):
    df = with_parts(photos, "train", "test")
    df.loc[len(df)] = ["bee/../ant/0.png", "ant", "test"]
    assert (
        "the table, row 15: 'ant/0.png' is a test image here and a training image in row 0"
    ) in sentence(lambda: from_df(df, photos))


# ---------------------------------------------------------------- where images are


def test_paths_may_be_absolute_or_lead_up(tmp_path, photos):
    below = tmp_path / "tables"
    below.mkdir()
    want = from_df(frame(photos), photos).split.train
    ways = {
        "absolute": lambda p: str(photos / p),
        "up": lambda p: f"../photos/{p}",
    }
    for way, spell in ways.items():
        df = frame(photos)
        df["image"] = df["image"].map(spell)
        df.to_csv(below / f"{way}.csv", index=False)
        dls = from_csv(below / f"{way}.csv")
        assert dls.split.train == want, way
        assert from_csv(below / f"{way}.csv", in_memory=False).split.dataset == way
    df = frame(photos)
    df["image"] = [str(photos / p) for p in df["image"]]
    # Files elsewhere are named from their common folder on: on another machine they are the same.
    assert (
        from_df(df, below, in_memory=False).split.train
        == from_df(frame(photos), photos, in_memory=False).split.train
    )


def test_up_from_behind_a_link_goes_where_the_system_goes(tmp_path, write_classes):
    write_classes(tmp_path / "store" / "deep", {"a": 2})
    write_classes(tmp_path / "store", {"b": 2})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "store" / "deep")
    rows = [("link/a/0.png", "a"), ("link/a/1.png", "a"), ("link/../b/0.png", "b")]
    listed = table(pd.DataFrame(rows, columns=["image", "label"]), tmp_path / "here")
    data = listed.parts["train"]
    assert all((data.root / p).is_file() for p in data.paths) and len(data.load(None)) == 3


def test_a_path_of_home(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    frame(photos).to_csv(photos / "t.csv", index=False)
    assert from_csv("~/photos/t.csv").c == from_df(frame(photos), "~/photos").c == 3


def test_missing_images_are_named_or_left_out(photos, caplog):
    for name in ("ant/3.png", "cat/0.png"):
        (photos / name).unlink()
    (photos / "cat" / "0.png").symlink_to(photos / "nowhere.png")
    frame(photos).to_csv(photos / "t.csv", index=False)
    file = photos / "t.csv"
    assert (f"t.csv, row 5: there is no {photos / 'ant' / '3.png'}, nor 1 more; ") in sentence(
        lambda: from_csv(file)
    )
    dls = from_csv(file, skip_bad=True)
    assert dls.shot_counts.tolist() == [7, 4, 2]
    assert dls.skipped == [str(photos / "ant" / "3.png"), str(photos / "cat" / "0.png")]
    assert len([m for m in caplog.messages if m.startswith("left out: ")]) == 2


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_message_asks_for_the_folder_if_all_images_are_missing(photos, skip_bad):
    reason = sentence(lambda: from_df(frame(photos), photos / "ant", skip_bad=skip_bad))
    assert "nor any other of the 15; " in reason and "as path." in reason


@pytest.mark.skipif(os.sep != "/", reason="the separator of this system")
@pytest.mark.parametrize("rows", [slice(None), slice(1)])
def test_a_message_names_the_separator_of_windows(photos, rows):
    table = frame(photos)
    column = table.columns.get_loc("image")
    table.iloc[rows, column] = table.iloc[rows, column].str.replace("/", "\\")
    assert r"write / for the \ of Windows" in sentence(lambda: from_df(table, photos))


# ---------------------------------------------------------------- bad and odd images


def spoil(root, bad_images) -> pd.DataFrame:
    for name, content in bad_images.items():
        (root / "bee" / name).write_bytes(content)
    rows = rows_of(root) + [(f"bee/{name}", "bee") for name in bad_images]
    return pd.DataFrame(rows, columns=["image", "label"])


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_behave_as_in_a_folder(photos, bad_images, in_memory):
    df = spoil(photos, bad_images)
    options = {"size": 8, "in_memory": in_memory, "bs": 4}
    reason = sentence(lambda: epoch(from_df(df, photos, **options).train))
    assert reason.startswith(f"cannot read the image {photos / 'bee'}{os.sep}")
    dls = from_df(df, photos, skip_bad=True, **options)
    folder = LTDataLoaders.from_folder(photos, skip_bad=True, device="cpu", **options)
    assert dls.split.train == folder.split.train
    assert sorted(dls.skipped) == sorted(folder.skipped) and len(dls.skipped) == len(bad_images)


def test_every_mode_of_image_is_read(tmp_path):
    modes = {"L": "png", "P": "png", "CMYK": "jpg", "RGBA": "png", "1": "png", "I;16": "png"}
    rows = []
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for mode, suffix in modes.items():
            name = f"{c}/{mode[0]}{len(mode)}.{suffix}"
            Image.new(mode, (8, 8), 40 * 256 if mode == "I;16" else 0).save(tmp_path / name)
            rows.append((name, c))
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / c / "moving.gif", save_all=True, append_images=frames[1:])
        rows.append((f"{c}/moving.gif", c))
    df = pd.DataFrame(rows, columns=["image", "label"])
    for in_memory in (True, False):
        options = {"size": 8, "in_memory": in_memory, "transform": "none", "valid_pct": 0.5}
        dls = from_df(df, tmp_path, **options)
        folder = LTDataLoaders.from_folder(tmp_path, device="cpu", **options)
        assert isinstance(dls.train.dataset, ImagesInMemory if in_memory else ImageFiles)
        # A table keeps its own order, a folder the natural one: the sets are the same.
        assert dls.split.train == folder.split.train
        pixels = torch.cat([x for dl in (dls.train, dls.valid) for x, _ in epoch(dl)])
        values = (pixels * dls.normalize.std + dls.normalize.mean).round().amax((1, 2, 3))
        assert sorted(values.tolist()) == [0] * 8 + [40] * 2 + [255] * 4


# ---------------------------------------------------------------- annotations


def coco(path, rows, classes=("ant", "bee", "cat")):
    names = list(classes)
    content = {
        "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(rows)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7 * names.index(c)}
            for i, (_, c) in enumerate(rows)
        ],
        "categories": [{"id": 7 * k, "name": c} for k, c in enumerate(names)],
    }
    return write(path, json.dumps(content))


def from_json(*args, **kwargs) -> LTDataLoaders:
    return LTDataLoaders.from_json(*args, device="cpu", **kwargs)


def test_one_json_is_carved(photos):
    file = coco(photos / "all.json", rows_of(photos))
    dls = from_json(file)
    want = LTDataLoaders.from_folder(photos, device="cpu")
    assert dls.vocab == want.vocab and dls.split.train == want.split.train
    assert (dls.split.name, dls.split.dataset) == ("one JSON", "all")


def test_a_json_for_each_part_and_classes_by_name(photos, tmp_path):
    rows = rows_of(photos)
    train = coco(tmp_path / "train.json", rows[::2])
    valid = coco(tmp_path / "val.json", rows[1::4], ("cat", "ant", "bee"))
    test = coco(tmp_path / "test.json", rows[3::4])
    dls = from_json(train, photos, valid=valid, test=str(test))
    assert (dls.split.name, dls.split.valid_from) == ("JSON parts", "validation set")
    assert [dls.train.n, dls.valid.n, dls.test.n] == [8, 4, 3]
    names = [dls.vocab[t] for t in dls.valid.dataset.targets]
    assert names == [c for _, c in rows[1::4]]


def test_annotations_that_cannot_be_used(photos, tmp_path):
    rows = rows_of(photos)
    train = coco(tmp_path / "train.json", rows[:12])
    both = coco(tmp_path / "both.json", rows[11:13])
    assert "image id 0: 'bee/3.png' is in" in sentence(lambda: from_json(train, photos, valid=both))
    emu = coco(tmp_path / "emu.json", [("cat/0.png", "emu")], ("ant", "emu"))
    assert "image id 0: the test label 'emu' is not among the training labels" in sentence(
        lambda: from_json(train, photos, test=emu)
    )
    out = coco(tmp_path / "out.json", [("../x.png", "ant")])
    assert "is no path of a file inside the folder" in sentence(lambda: from_json(out, photos))
    lost = coco(tmp_path / "lost.json", [*rows, ("ant/99.png", "ant")])
    assert "lost.json, image id 15: there is no" in sentence(lambda: from_json(lost, photos))
    kept = from_json(lost, photos, skip_bad=True)
    assert kept.skipped == [str(photos / "ant" / "99.png")]
    (photos / "ant" / "0.png").unlink()
    (photos / "ant" / "0.png").symlink_to(tmp_path / "train.json")
    assert "follow_links=True" in sentence(lambda: from_json(train, photos))
    options = ReadOptions(images=photos, follow_links=True)
    assert len(list_json(train, options).parts["train"]) == 12
    assert "no valid JSON" in sentence(lambda: from_json(write(tmp_path / "x.json", "{"), photos))


# ---------------------------------------------------------------- whatever it is


def test_every_kind_of_source_is_recognised(photos, tmp_path):
    frame(photos).to_csv(photos / "t.tsv", sep="\t", index=False)
    coco(photos / "all.json", rows_of(photos))
    found = {}
    for source in (photos, photos / "t.tsv", photos / "all.json"):
        listed = list_images(source)
        assert listed.classes == ["ant", "bee", "cat"] and list(listed.parts) == ["train"]
        found[source] = listed.parts["train"].fingerprint()
        dls = LTDataLoaders.from_path(str(source), device="cpu", bs=3)
        assert dls.shot_counts.tolist() == [8, 4, 3] and dls.train.bs == 3
    assert len(set(found.values())) == 1
    listed = list_images(photos / "t.tsv", image_col=0, label_col="label", skip_bad=True)
    assert len(listed.parts["train"]) == 15
    assert listed.columns == {"path": "image", "label": "label"}


def test_an_option_of_another_kind_of_source_is_refused(photos):
    frame(photos).to_csv(photos / "t.csv", index=False)
    coco(photos / "all.json", rows_of(photos))
    for source, option, words in (
        (
            photos,
            "label_col",
            "label_col is for a saved dataset, WebDataset shards or a CSV or TSV table, but",
        ),
        (photos, "path", f"path is for a CSV or TSV table or annotations, but {photos}"),
        (photos / "all.json", "suffix", "suffix is for a CSV or TSV table, but"),
    ):
        assert words in sentence(lambda s=source, o=option: list_images(s, **{o: "x"}))
        assert words in sentence(lambda s=source, o=option: LTDataLoaders.from_path(s, **{o: "x"}))
    assert list_images(photos, label_col=None).classes == ["ant", "bee", "cat"]


def test_a_table_a_part_and_names_without_their_extension(photos, tmp_path):
    df = frame(photos, ("image", "species"))
    df["image"] = df["image"].str.removesuffix(".png")
    parts = {
        "train": df[df.index % 3 > 0],
        "valid": df[df.index % 6 == 0],
        "test": df[df.index % 6 == 3],
    }
    for part, rows in parts.items():
        rows.to_csv(tmp_path / f"{part}.csv", index=False)
    files = {part: tmp_path / f"{part}.csv" for part in ("valid", "test")}
    how = {"path": photos, "label_col": "species", "suffix": ".png", **files}
    dls = from_csv(tmp_path / "train.csv", **how)
    assert [dl.n for dl in dls.loaders] == [10, 3, 2] and dls.split.name == "tables"
    assert dls.columns == {"path": "image", "label": "species"}
    # The same images with a split column are the same set.
    df["split"] = ["train" if i % 3 else "valid" if i % 6 == 0 else "test" for i in df.index]
    same = from_df(df, photos, image_col=0, label_col=1, suffix=".png")
    assert (same.split.train, same.split.valid) == (dls.split.train, dls.split.valid)
    assert "suffix='.jpg'" in sentence(
        lambda: from_csv(tmp_path / "train.csv", **{**how, "suffix": ""})
    )
    assert "exclude each other" in sentence(
        lambda: from_csv(tmp_path / "train.csv", split_col="species", **how)
    )


def test_contradictions_between_two_tables(photos, tmp_path):
    frame(photos).to_csv(tmp_path / "train.csv", index=False)
    write(tmp_path / "valid.csv", "image,label\nant/1.png,ant\n")
    message = sentence(
        lambda: from_csv(tmp_path / "train.csv", path=photos, valid=tmp_path / "valid.csv")
    )
    assert f"{tmp_path / 'valid.csv'}, row 2: 'ant/1.png' is a validation image here" in message
    assert f"a training image in {tmp_path / 'train.csv'}, row 3; " in message
    write(tmp_path / "valid.csv", "image,label\nant/1.png,dog\n")
    message = sentence(
        lambda: from_csv(tmp_path / "train.csv", path=photos, valid=tmp_path / "valid.csv")
    )
    assert (
        "valid.csv, row 2: the validation label 'dog' is not among the training labels" in message
    )


def test_paths_that_are_no_source(tmp_path, photos):
    assert "there is no " in sentence(lambda: LTDataLoaders.from_path(tmp_path / "gone"))
    other = write(tmp_path / "t.xlsx", "x")
    assert "does not end in .csv, .tsv, .tab, .json or .tar" in sentence(lambda: list_images(other))
    (tmp_path / "saved").mkdir()
    write(tmp_path / "saved" / "dataset_dict.json", "{}")
    assert source_kind(tmp_path / "saved") == "hf"


def test_rows_are_numbered_as_in_the_file(tmp_path):
    df, rows = read_table(write(tmp_path / "t.csv", "\n\nimage,label\n\na,b\n,\nc,d\n"))
    assert df.values.tolist() == [["a", "b"], ["c", "d"]] and rows.tolist() == [5, 7]


# ---------------------------------------------------------------- folders of parts


@pytest.mark.parametrize(
    "names",
    [("Train", "Val", "Test"), ("TRAINING", "dev", "Testing"), ("training", "Validation", "test")],
)
def test_parts_are_found_in_any_case(tmp_path, write_classes, caplog, names):
    # Train/ and Test/ were once two classes.
    for name in names:
        write_classes(tmp_path / name, COUNTS)
    listed = list_folder(tmp_path)
    assert list(listed.parts) == ["train", "valid", "test"] and listed.classes == [*COUNTS]
    assert find_split_folders(tmp_path) == {
        part: tmp_path / name for part, name in zip(listed.parts, names, strict=True)
    }
    assert not caplog.records


def test_a_class_called_train_is_a_class_if_it_has_no_class_folders(tmp_path, write_classes):
    write_classes(tmp_path, {"train": 3, "car": 3, "bus": 2})
    assert list_folder(tmp_path).classes == ["bus", "car", "train"]


def test_folders_with_images_but_no_class_folders_are_not_classes_called_train_and_test(
    tmp_path, write_classes
):
    write_classes(tmp_path, {"Train": 3, "Test": 3})
    assert "Train has no class folders" in sentence(lambda: list_folder(tmp_path))


def test_folders_without_images_stand_beside_a_training_folder(tmp_path, write_classes, caplog):
    write_classes(tmp_path / "train", COUNTS)
    (tmp_path / "labels" / "ant").mkdir(parents=True)
    (tmp_path / "labels" / "ant" / "0.txt").write_text("0 1 1 2 2")
    assert list_folder(tmp_path).classes == [*COUNTS] and not caplog.records


def test_a_warning_names_the_images_beside_the_parts(tmp_path, write_classes, caplog):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path, {f"more{i}": 1 for i in range(7)})
    assert list_folder(tmp_path).classes == [*COUNTS]
    (record,) = caplog.records
    assert "in more0/, more1/, more2/, more3/, more4/ and 2 more are left" in record.getMessage()


def test_two_folders_of_one_part_are_refused(tmp_path, write_classes):
    for name in ("train", "val", "Valid"):
        write_classes(tmp_path / name, COUNTS)
    assert "has two validation folders, Valid/ and val/;" in sentence(lambda: list_folder(tmp_path))


def test_a_class_called_dev_can_be_renamed(tmp_path, write_classes):
    write_classes(tmp_path / "dev", {"a": 1})
    write_classes(tmp_path, {"ops": 3})
    assert "if dev is a class, rename its folder" in sentence(lambda: list_folder(tmp_path))


def test_a_label_column_that_was_guessed_among_several_is_logged(photos, tmp_path, caplog):
    df = frame(photos, ("image", "species"))
    df.insert(1, "age", "7")
    df.loc[0, "age"] = "8"
    listed = table(df, photos)
    assert listed.columns["label"] == "age"
    assert "labels are read from the column 'age'" in caplog.text
    assert "image, age, species, give label_col" in caplog.text
    caplog.clear()
    table(df, photos, label_col="species")
    table(df[["image", "species"]], photos)
    assert not caplog.text


# ---------------------------------------------------------------- flags, ignored columns, bounds


FLAGS = {
    "bool": ("True", "False"), "lower": ("true", "false"), "digit": ("1", "0"),
    "yes": ("yes", "no"), "float": ("1.0", "0.0"), "letter": ("T", "F"),
}  # fmt: skip


@pytest.mark.parametrize("words", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("column, given", [("is_valid", False), ("valid", False), ("mine", True)])
def test_flags_mark_the_validation_images(photos, words, column, given):
    df = frame(photos)
    df[column] = [words[0] if i % 3 == 0 else words[1] for i in range(len(df))]
    df.to_csv(photos / "t.csv", index=False)
    for split_col in (column, *([] if given else [None])):
        dls = from_csv(photos / "t.csv", split_col=split_col, bs=2)
        assert dls.valid.n == sum(df[column] == words[0]) and dls.columns["split"] == column
        assert dls.split.valid_from == "validation set"
        assert list_images(photos / "t.csv", split_col=split_col).ignored_columns == []
    assert list_images(photos / "t.csv", split_col=False).ignored_columns == [column]


def test_flags_of_a_data_frame(photos):
    df = frame(photos)
    for flags in (np.arange(len(df)) % 3 == 0, (np.arange(len(df)) % 3 == 0) * 1.0):
        assert from_df(df.assign(is_valid=flags), photos, bs=2).valid.n == flags.sum()


def test_flags_of_validation_and_test(photos):
    df = frame(photos)
    df["Is_Valid"] = [i % 3 == 0 for i in range(len(df))]
    df["is_test"] = [i % 3 == 1 for i in range(len(df))]
    dls = from_df(df, photos, bs=2)
    assert (dls.train.n, dls.valid.n, dls.test.n) == (5, 5, 5)
    assert dls.columns["split"] == "Is_Valid and is_test"
    df.loc[0, "is_test"] = True
    assert "row 0: the columns 'Is_Valid' and 'is_test'" in sentence(lambda: from_df(df, photos))
    alone = df[["image", "label", "is_test"]]
    dls = from_df(alone, photos, split_col="is_test", bs=2)
    assert dls.test.n == 6 and dls.split.valid_from == "training images"


def test_flags_that_cannot_be_used(photos):
    df = frame(photos)
    assert "train" in sentence(lambda: from_df(df.assign(is_valid=True), photos))
    half = df.assign(is_valid=[True, None] + [False] * (len(df) - 2))
    assert "row 1: the split is empty (column 'is_valid')" in sentence(
        lambda: from_df(half, photos)
    )


def test_columns_that_are_not_read_are_named(photos, caplog):
    caplog.set_level(logging.INFO, "ltlearn")
    df = frame(photos).assign(age=3, valid="maybe", fold=[i % 5 for i in range(15)])
    assert table(df, photos).ignored_columns == ["age", "valid", "fold"]
    assert "ignored columns: age, valid, fold" in caplog.text
    assert "split_col='valid'" in caplog.text
    df.to_csv(photos / "t.csv", index=False)
    shown = dict(inspect_path(photos / "t.csv", quick=True).rows())
    assert shown["columns"] == "path from 'image', label from 'label'"
    assert shown["ignored columns"] == "age, valid, fold"


def test_a_split_column_comes_before_flags(photos, caplog):
    df = frame(photos).assign(
        split=["valid", *["train"] * 14], is_valid=[False, True] + [False] * 13
    )
    dls = from_df(df, photos, bs=2)
    assert dls.valid.n == 1 and dls.columns["split"] == "split"
    assert "'is_valid' is ignored" in caplog.text


def test_one_column_per_class_is_refused(photos):
    df = frame(photos)
    table = df[["image"]].assign(**{c: (df.label == c).astype(int) for c in ("ant", "bee", "cat")})
    for made in (table, table.astype({"ant": bool})):
        message = sentence(lambda made=made: from_df(made, photos))
        assert "columns ant, bee, cat mark one class each" in message and "label_col" in message
    assert from_df(table, photos, label_col="ant", bs=2).vocab == ["0", "1"]
    assert from_df(table[["image", "ant"]], photos, bs=2).vocab == ["0", "1"]


def test_several_labels_per_image_are_refused(photos, caplog):
    df = frame(photos)
    df.loc[1, "label"] = "ant|bee"
    message = sentence(lambda: from_df(df, photos))
    assert "row 1: 'ant|bee' in the column 'label' looks like several labels" in message
    df.to_csv(photos / "t.csv", index=False)
    found = inspect_path(photos / "t.csv", quick=True)
    assert "row 3: 'ant|bee'" in found.problems[0]
    df.loc[df.label == "ant|bee", "label"] = "ant wet"
    assert from_df(df, photos, bs=2).c == 4
    assert "'ant wet'" in caplog.text and "several labels" in caplog.text


@pytest.mark.parametrize(
    "text, reason",
    [
        ("image,label" + ",x" * 20_000 + "\n", "20,002 columns, more than 10,000"),
        ("image,label\na.png," + "x" * 5000 + "\n", "row 2: the label has 5,000 characters"),
        ("image,label\na.png," + "9" * 5000 + "\n", "row 2: the label has 5,000 characters"),
        ("\n" * 3 + "x" * (1 << 21), "line 4, has more than 1,048,576 characters"),
    ],
    ids=["columns", "label", "number", "line"],
)
def test_tables_of_absurd_size(tmp_path, text, reason):
    assert reason in sentence(lambda: list_table(write(tmp_path / "t.csv", text)))


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"images": [], "annotations": [], "categories": [{"id": ' + "9" * 5000 + "}]}", "digits"),
        ('{"images": ' + "[" * 100_000, "nested too deeply"),
        ('{"images": [{"id": 1e999, "file_name": "a.png"}], "annotations": [], "categories": []}',
         "entry 1 of images"),
        ('{"images": [{"id": 99999999999999999999, "file_name": "a.png"}], "annotations": [], '
         '"categories": []}', "entry 1 of images"),
    ],
    ids=["digits", "nesting", "infinity", "64 bits"],
)  # fmt: skip
def test_annotations_of_absurd_values(tmp_path, content, reason):
    assert reason in sentence(lambda: list_json(write(tmp_path / "a.json", content)))
