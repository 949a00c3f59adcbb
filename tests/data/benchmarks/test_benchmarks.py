import json
import logging
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltlearn.data.benchmarks.check import check_benchmark
from ltlearn.data.benchmarks.download import download_benchmark
from ltlearn.data.benchmarks.facts import ListedSet, counts_name
from ltlearn.data.benchmarks.instructions import how_to_get
from ltlearn.data.benchmarks.read import load_benchmark, load_benchmark_parts
from ltlearn.data.benchmarks.registry import (
    BENCHMARKS,
    benchmark_names,
    dataset_names,
    is_listed,
    listed_names,
)
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.readers.annotations import read_annotations
from ltlearn.data.readers.listing import find_images, read_list
from ltlearn.errors import UserError, spell_call
from ltlearn.names import FEW_RULES, TRANSFORM_NAMES
from tests.data.lookalikes import (
    SCENES,
    SYNSETS,
    annotations,
    facts_of,
    save_image,
    write_imagenet_lt,
    write_inat,
    write_json,
    write_list,
    write_places_lt,
)

COUNTS = [6, 3, 1]
SCENE_COUNTS = [5, 4, 3, 3, 2, 2, 1, 1, 1]
WRITERS = {
    "imagenet_lt": lambda root: write_imagenet_lt(root, COUNTS),
    "places_lt": lambda root: write_places_lt(root, SCENE_COUNTS, "hyphens", "hyphens"),
    "inat2018": lambda root: write_inat(root, COUNTS),
}
COUNTS_OF = {"imagenet_lt": COUNTS, "places_lt": SCENE_COUNTS, "inat2018": COUNTS}


def pairs(data) -> list:
    return list(zip(data.paths, data.targets.tolist(), strict=True))


def text(tmp_path: Path, content: str | bytes, name: str = "list.txt") -> Path:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.WARNING, "ltlearn")


@pytest.fixture
def publish(monkeypatch):
    """Make the counts of a look-alike the published ones."""

    def publish(name, counts, **kw):
        monkeypatch.setitem(BENCHMARKS, name, facts_of(name, counts, **kw))

    return publish


# ---------------------------------------------------------------- the table


def test_the_names():
    assert set(benchmark_names()) == set(dataset_names()) - {"digits_lt"}
    assert {"imagenet_lt", "places_lt", "inat2018"} <= set(listed_names())
    assert all(f'"{name}"' in LTDataLoaders.from_dataset.__doc__ for name in dataset_names())
    assert is_listed("places_lt") and not is_listed("cifar10_lt") and not is_listed("nothing")


def test_the_facts_fit_each_other():
    for name, facts in BENCHMARKS.items():
        assert facts.name == name and facts.transform in TRANSFORM_NAMES
        assert set(facts.each) <= set(facts.sizes) <= {"train", "valid", "test"}
        for part, n in facts.each.items():
            assert facts.sizes[part] == n * facts.classes
        assert bool(facts.sources) != bool(facts.bundled_with)
        for source in facts.sources:
            assert source.url.startswith("http") and (not source.md5 or len(source.md5) == 32)
        if not isinstance(facts, ListedSet):
            continue
        assert facts.forms and set(facts.shots) == set(FEW_RULES)
        for form in facts.forms:
            assert set(form) == set(facts.sizes)
        for groups in facts.shots.values():
            assert sum(groups) == facts.classes
        for digest in (facts.counts_sha256, facts.sorted_sha256):
            assert len(bytes.fromhex(digest)) == 32


def test_checksums_are_those_that_torchvision_checks():
    from torchvision.datasets import CIFAR10, CIFAR100, Places365, imagenet, inaturalist

    known = [
        (CIFAR10.url, CIFAR10.tgz_md5),
        (CIFAR100.url, CIFAR100.tgz_md5),
        (inaturalist.DATASET_URLS["2018"], inaturalist.DATASET_MD5["2018"]),
    ]
    small = [Places365._IMAGES_META[s, True] for s in ("train-standard", "val")]
    known += [(Places365._BASE_URL + file, md5) for file, md5 in small]
    sources = [s for facts in BENCHMARKS.values() for s in facts.sources]
    assert set(known) <= {(s.url, s.md5) for s in sources}
    assert set(imagenet.ARCHIVE_META.values()) <= {(s.what, s.md5) for s in sources}


def test_how_to_get_names_folder_and_checksum():
    for name in benchmark_names():
        guide, facts = how_to_get(name, "/my/data"), BENCHMARKS[name]
        assert "/my/data" in guide and "{" not in guide
        for source in facts.sources:
            assert source.url in guide and source.md5 in guide
            assert source.size or source.url.startswith("https://raw.") or "devkit" in source.what
        assert guide.count("no checksum published") == sum(not s.md5 for s in facts.sources)
    with pytest.raises(UserError, match=r"benchmark.*imagenet_lt.*got 'imagenet'"):
        how_to_get("imagenet", "x")


def test_the_name_of_counts_depends_on_their_order():
    # printf 3,1,2 | sha256sum
    name = "edb794d615a63f5eec436d83bed7299d6af36f508c0bf38a3c1cd85d6e4ebd56"
    assert counts_name([3, 1, 2]) == counts_name(np.array([3, 1, 2], dtype=np.int32)) == name
    assert counts_name([1, 2, 3]) != name


# ---------------------------------------------------------------- reading whole sets


@pytest.mark.parametrize("name", listed_names())
def test_each_set_is_read_as_it_was_written(tmp_path, name):
    made = WRITERS[name](tmp_path)
    sets, classes = load_benchmark_parts(name, tmp_path)
    assert set(sets) == set(made) == set(BENCHMARKS[name].sizes)
    for part, rows in made.items():
        assert pairs(sets[part]) == rows
        assert sets[part].targets.dtype == np.int64 and sets[part].root == tmp_path
        alone, same = load_benchmark(name, str(tmp_path), part)
        assert pairs(alone) == rows and same == classes
        assert len(alone.fingerprint()) == 12
    assert sets["train"].load(None).images.shape == (len(made["train"]), 4, 5, 3)
    assert np.bincount(sets["train"].targets).tolist() == COUNTS_OF[name]


def test_classes_have_their_own_names(tmp_path):
    assert (
        load_benchmark("imagenet_lt", _made(tmp_path, "a", "imagenet_lt"), "test")[1]
        == (SYNSETS[:3])
    )
    assert load_benchmark("places_lt", _made(tmp_path, "b", "places_lt"), "valid")[1] == SCENES
    names = load_benchmark("inat2018", _made(tmp_path, "c", "inat2018"), "test")[1]
    assert names == ["species 0", "species 1", "species 2"]
    write_inat(tmp_path / "d", COUNTS, "list")
    assert load_benchmark("inat2018", tmp_path / "d", "test")[1] == ["0", "1", "2"]


def _made(tmp_path, folder, name):
    WRITERS[name](tmp_path / folder)
    return tmp_path / folder


@pytest.mark.parametrize("list_style", ["hyphens", "nested"])
@pytest.mark.parametrize("disk_style", ["hyphens", "nested"])
def test_both_styles_of_places_find_both_archives(tmp_path, list_style, disk_style):
    made = write_places_lt(tmp_path, SCENE_COUNTS, list_style, disk_style)
    sets, classes = load_benchmark_parts("places_lt", tmp_path)
    assert classes == SCENES
    for part, rows in made.items():
        assert pairs(sets[part]) == rows


@pytest.mark.parametrize("list_style", ["hyphens", "nested"])
def test_places_as_torchvision_unpacks_it(tmp_path, list_style):
    made = write_places_lt(tmp_path, SCENE_COUNTS, list_style, "nested")
    (tmp_path / "data_256").rename(tmp_path / "data_256_standard")
    sets, _ = load_benchmark_parts("places_lt", tmp_path)
    for part, rows in made.items():
        moved = [(p.replace("data_256/", "data_256_standard/"), c) for p, c in rows]
        assert pairs(sets[part]) == moved


def test_both_forms_of_inaturalist_hold_the_same(tmp_path):
    made = write_inat(tmp_path / "json", COUNTS)
    write_inat(tmp_path / "list", COUNTS, "list")
    for part, rows in made.items():
        for form in ("json", "list"):
            assert pairs(load_benchmark("inat2018", tmp_path / form, part)[0]) == rows


def test_annotations_come_before_lists_unless_one_is_missing(tmp_path):
    write_inat(tmp_path, COUNTS, "list")
    write_inat(tmp_path, COUNTS)
    assert load_benchmark("inat2018", tmp_path, "train")[1][0] == "species 0"
    (tmp_path / "val2018.json").unlink()
    assert load_benchmark("inat2018", tmp_path, "train")[1][0] == "0"


def test_inaturalist_as_torchvision_unpacks_it(tmp_path):
    made = write_inat(tmp_path, COUNTS, top="2018")
    assert pairs(load_benchmark("inat2018", tmp_path, "train")[0]) == made["train"]


@pytest.mark.parametrize(
    "layout", ["lists in a folder of their own", "the folder that holds it", "a link as the root"]
)
def test_where_a_set_may_lie(tmp_path, layout):
    root = tmp_path / "data"
    if layout.startswith("lists"):
        made = write_imagenet_lt(root, COUNTS, lists="ImageNet_LT")
    elif layout.startswith("the"):
        made = write_imagenet_lt(root / "ImageNet_LT", COUNTS)
    else:
        made = write_imagenet_lt(tmp_path / "store" / "set", COUNTS)
        root.symlink_to(tmp_path / "store" / "set")
    sets, _ = load_benchmark_parts("imagenet_lt", root)
    for part, rows in made.items():
        assert pairs(sets[part]) == rows
        assert all((sets[part].root / p).is_file() for p in sets[part].paths)


def test_other_counts_than_the_published_ones_log_a_warning(tmp_path, publish, caplog):
    write_imagenet_lt(tmp_path, COUNTS)
    load_benchmark("imagenet_lt", tmp_path, "test")
    assert not caplog.messages
    load_benchmark("imagenet_lt", tmp_path, "train")
    assert "does not have the published counts of ImageNet-LT: 10 images of 3" in caplog.text
    caplog.clear()
    publish("imagenet_lt", COUNTS)
    load_benchmark("imagenet_lt", tmp_path, "train")
    assert not caplog.messages


def test_unknown_names_and_parts(tmp_path):
    with pytest.raises(UserError, match=r"benchmark.*imagenet_lt, .*got 'cifar10_lt'"):
        load_benchmark("cifar10_lt", tmp_path, "train")
    with pytest.raises(UserError, match=r"part.*train, test, got 'valid'"):
        load_benchmark("inat2018", tmp_path, "valid")


@pytest.mark.parametrize("name", listed_names())
def test_a_set_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError) as e:
        load_benchmark(name, tmp_path / "no where", "train")
    first = next(iter(BENCHMARKS[name].forms))["train"]
    assert f"there is no {first}" in str(e.value) and str(tmp_path / "no where") in str(e.value)
    assert spell_call("check_benchmark", name=name, root=f"{tmp_path / 'no where'}") in str(e.value)
    assert "\n" not in str(e.value)


def test_missing_images_stop_or_are_left_out(tmp_path, caplog):
    made = write_imagenet_lt(tmp_path, [9, 2])
    for path, _ in made["train"][:7]:
        (tmp_path / path).unlink()
    with pytest.raises(UserError) as e:
        load_benchmark("imagenet_lt", tmp_path, "train")
    lost = [p for p, _ in made["train"][:5]]
    assert "7 of the 11 images" in str(e.value) and f"({', '.join(lost)}, ...)" in str(e.value)
    kept, _ = load_benchmark("imagenet_lt", tmp_path, "train", skip_bad=True)
    assert pairs(kept) == made["train"][7:]
    assert kept.skipped == [str(tmp_path / p) for p, _ in made["train"][:7]]
    assert "left out: 7 of the 11" in caplog.text
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UserError, match="11 of the 11 images"):
        load_benchmark("imagenet_lt", tmp_path, "train", skip_bad=True)


# ---------------------------------------------------------------- labels that disagree


def test_lists_that_number_the_classes_differently(tmp_path):
    made = write_imagenet_lt(tmp_path, COUNTS)
    # Some repositories number the classes by descending count.
    write_list(tmp_path / "ImageNet_LT_test.txt", [(p, 2 - c) for p, c in made["test"]])
    with pytest.raises(
        UserError, match=rf"test\.txt, line 1: .* label 2, which in .* is '{SYNSETS[2]}'"
    ):
        load_benchmark("imagenet_lt", tmp_path, "test")
    write_list(tmp_path / "ImageNet_LT_test.txt", [*made["test"][:-1], (made["test"][-1][0], 3)])
    with pytest.raises(UserError, match=r"line 9: the label 3 is too high.* 3 classes"):
        load_benchmark("imagenet_lt", tmp_path, "test")


def test_a_training_list_with_two_labels_for_a_class_or_two_classes_for_a_label(tmp_path):
    made = write_imagenet_lt(tmp_path, COUNTS)
    rows = made["train"]
    file = tmp_path / "ImageNet_LT_train.txt"
    write_list(file, [*rows[:5], (rows[5][0], 1), *rows[6:]])
    with pytest.raises(UserError, match=r"train\.txt, line 6: .* has the label 1, but in line 1 "):
        load_benchmark("imagenet_lt", tmp_path, "train")
    write_list(file, [*rows[:9], (rows[9][0], 1)])
    with pytest.raises(UserError, match=r"line 10: .* has the label 1, which in line 7 is 'n0"):
        load_benchmark("imagenet_lt", tmp_path, "train")
    write_list(file, [*rows[:9], (rows[9][0], 1000)])
    with pytest.raises(UserError, match=r"line 10: the label 1000 is too high.* 1000 classes"):
        load_benchmark("imagenet_lt", tmp_path, "train")


def test_a_class_without_training_images_has_its_number_for_a_name(tmp_path):
    made = write_imagenet_lt(tmp_path, COUNTS)
    write_list(tmp_path / "ImageNet_LT_train.txt", [r for r in made["train"] if r[1] != 1])
    _, classes = load_benchmark("imagenet_lt", tmp_path, "train")
    assert classes == [SYNSETS[0], "1", SYNSETS[2]]


def test_annotations_with_other_categories_than_training(tmp_path):
    made = write_inat(tmp_path, COUNTS)
    names = dict(enumerate(["species 0", "species 1", "another"]))
    write_json(tmp_path / "val2018.json", annotations(made["test"], names))
    with pytest.raises(UserError, match=r"val2018\.json has other categories than .*train2018\.js"):
        load_benchmark("inat2018", tmp_path, "test")


# ---------------------------------------------------------------- lines


def test_what_a_list_may_look_like(tmp_path):
    file = text(
        tmp_path,
        "\ufeff# a comment 3\r\n"
        "a/1.jpg 0\r\n"
        "\n   \n"
        "chat noir/été 猫.jpg \t 12  \n"
        "./a//2.jpg\t1\n"
        "top.jpg 007",
    )
    listing = read_list(file)
    assert [listing.path(i) for i in range(4)] == [
        "a/1.jpg", "chat noir/été 猫.jpg", "a/2.jpg", "top.jpg",
    ]  # fmt: skip
    assert listing.targets.tolist() == [0, 12, 1, 7] and listing.places.tolist() == [2, 5, 6, 7]
    assert listing.folders == ["a", "chat noir", ""]


def test_a_name_that_is_no_utf8(tmp_path):
    name = b"caf\xe9.jpg"
    (tmp_path / "a").mkdir()
    save_image(tmp_path / "a" / os.fsdecode(name), 0)
    data, missing = find_images(read_list(text(tmp_path, b"a/" + name + b" 0\n")), tmp_path)
    assert not len(missing) and data.load(None).images.shape == (1, 4, 5, 3)


@pytest.mark.parametrize(
    "line", ["a/1.jpg", "a/1.jpg x", "a/1.jpg -1", "a/1.jpg 1.0", "3", "a/1.jpg 1234567890",
             "a/1.jpg ²", "a/1.jpg,3", "x" * 5000],
)  # fmt: skip
def test_a_malformed_line_is_named(tmp_path, line):
    file = text(tmp_path, f"a/0.jpg 0\n\n{line}\n")
    with pytest.raises(UserError, match=rf"{file}, line 3: .* is not a path and a label") as e:
        read_list(file)
    assert len(str(e.value)) < 300 + len(str(file))


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*gone\.txt \(No such file"):
        read_list(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"list\.txt names no images"):
        read_list(text(tmp_path, "\n# nothing 1\n"))
    with pytest.raises(UserError, match=r"list\.txt, line 1: "):
        read_list(text(tmp_path, "a/1.jpg 0\n".encode("utf-16")))


BAD_PATHS = [
    "../1.jpg", "a/../../1.jpg", "a/..", "..", ".", "/etc/passwd", "//a/1.jpg", "a/", "/1.jpg",
    "a\0/1.jpg", "a/1\0.jpg", "a/./..",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_out_is_refused(tmp_path, path):
    file = text(tmp_path, f"a/0.jpg 0\n{path} 1\n")
    with pytest.raises(UserError, match=rf"{file}, line 2: .* is no path of a file inside"):
        read_list(file)
    content = annotations([("a/0.jpg", 0), (path, 1)], {0: "a", 1: "b"})
    file = write_json(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=rf"{file}, image id 1001: .* is no path of a file inside"):
        read_annotations(file)


def test_dots_within_a_name_are_no_way_out(tmp_path):
    listing = read_list(text(tmp_path, "a..b/..1.jpg 0\n...jpg 1\n"))
    assert [listing.path(i) for i in range(2)] == ["a..b/..1.jpg", "...jpg"]


# ---------------------------------------------------------------- links and duplicates


@pytest.fixture
def linked(tmp_path):
    """A list of two images below root/, and a folder outside with images of those names."""
    root = tmp_path / "root"
    for folder in ("root/a", "outside"):
        for name in ("1.jpg", "2.jpg"):
            save_image(tmp_path / folder / name, 0)
    return root, read_list(text(tmp_path, "a/1.jpg 0\na/2.jpg 0\n"))


def test_a_folder_that_leads_out_is_refused_unless_trusted(tmp_path, linked):
    root, listing = linked
    shutil.rmtree(root / "a")
    (root / "a").symlink_to(tmp_path / "outside")
    want = rf"list\.txt, line 1: 'a/1\.jpg' is behind a link .* out of {root}, to .*outside; "
    with pytest.raises(UserError, match=want + ".* follow_links=True"):
        find_images(listing, root)
    data, missing = find_images(listing, root, follow_links=True)
    assert data.paths == ["a/1.jpg", "a/2.jpg"] and not len(missing)
    # A folder beside the root whose name begins with the root's.
    (root / "a").unlink()
    (tmp_path / "outside").rename(tmp_path / "root2")
    (root / "a").symlink_to("../root2")
    with pytest.raises(UserError, match="leads out"):
        find_images(listing, root)


def test_a_image_that_leads_out_is_refused_unless_trusted(tmp_path, linked):
    root, listing = linked
    (root / "a" / "2.jpg").unlink()
    (root / "a" / "2.jpg").symlink_to(tmp_path / "outside" / "2.jpg")
    with pytest.raises(UserError, match=r"line 2: 'a/2\.jpg' is behind a link that leads out"):
        find_images(listing, root)
    assert not len(find_images(listing, root, follow_links=True)[1])


def test_links_that_stay_inside_and_broken_ones(linked):
    root, listing = linked
    (root / "a").rename(root / "b")
    (root / "a").symlink_to("b")
    (root / "b" / "2.jpg").unlink()
    (root / "b" / "2.jpg").symlink_to("1.jpg")
    assert not len(find_images(listing, root)[1])
    (root / "b" / "1.jpg").unlink()
    assert find_images(listing, root)[1].tolist() == [0, 1]


def test_a_set_may_pass_the_trust_on(tmp_path):
    made = write_imagenet_lt(tmp_path / "set", COUNTS)
    (tmp_path / "set" / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"train\.txt, line 1: .* leads out"):
        load_benchmark("imagenet_lt", tmp_path / "set", "train")
    data, _ = load_benchmark("imagenet_lt", tmp_path / "set", "train", follow_links=True)
    assert pairs(data) == made["train"]
    report = check_benchmark("imagenet_lt", tmp_path / "set")
    assert any("leads out" in f.text and not f.ok for f in report.findings)
    assert check_benchmark("imagenet_lt", tmp_path / "set", follow_links=True).missing == {}


@pytest.mark.parametrize("again", ["a/1.jpg 0", "a/1.jpg 1", "./a//1.jpg 0"])
def test_a_image_that_is_listed_twice(tmp_path, again):
    file = text(tmp_path, f"a/1.jpg 0\na/2.jpg 0\n{again}\n")
    with pytest.raises(UserError, match=r"line 3: 'a/1\.jpg' is listed before, in line 1"):
        find_images(read_list(file), tmp_path)


def test_a_folder_that_is_a_file_or_cannot_be_read(tmp_path, monkeypatch):
    listing = read_list(text(tmp_path, "a/1.jpg 0\n"))
    (tmp_path / "a").touch()
    assert find_images(listing, tmp_path)[1].tolist() == [0]

    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*/a \(Permission denied\)"):
        find_images(listing, tmp_path)


# ---------------------------------------------------------------- annotations

ROWS = [("x/3.jpg", 40), ("x/1.jpg", 7), ("y/2.jpg", 40), ("4.jpg", 9)]
NAMES = {40: "wren", 7: "Apis", 9: "wren", 12: "empty"}


@pytest.mark.parametrize("backwards", [False, True])
def test_category_ids_with_gaps(tmp_path, backwards):
    content = annotations(ROWS, NAMES)
    content["annotations"].reverse()  # the two lists need not go together
    if backwards:
        content = dict(reversed(content.items()))
    file = write_json(tmp_path / "a.json", content)
    listing = read_annotations(file)
    assert listing.classes == ["Apis", "wren (9)", "empty", "wren (40)"]
    assert listing.targets.tolist() == [3, 0, 3, 1]
    assert [listing.path(i) for i in range(4)] == [p for p, _ in ROWS]
    assert listing.place(1) == f"{file}, image id 1001"


@pytest.mark.parametrize("year", [2017, 2019, 2021])
def test_the_other_years(tmp_path, year):
    top, kind = {
        2017: ("train_val_images/Aves", "Corvus corax"),
        2019: ("train_val2019/Birds", "204"),
        2021: ("train", "00003_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax"),
    }[year]
    rows = [(f"{top}/{kind}/{i}.jpg", 204) for i in range(3)] + [(f"{top}/b/9.jpg", 3)]
    for path, _ in rows:
        save_image(tmp_path / path, 0)
    content = annotations(rows, {204: "Corvus corax", 3: "b"}, year)
    for i, category in enumerate(content["categories"]):
        category["image_dir_name"] = f"{i}"  # as 2021 has it
    listing = read_annotations(write_json(tmp_path / f"train{year}.json", content))
    data, missing = find_images(listing, tmp_path)
    assert pairs(data) == [(p, int(c == 204)) for p, c in rows] and not len(missing)


def spoiled(change):
    content = annotations(ROWS, NAMES)
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(image_id=5), "is of the unlisted image id 5;"),
        (lambda c: c["annotations"].pop(), "image id 1003 has no annotation;"),
        (lambda c: c.update(annotations=c["annotations"][2:]), "1000 has no annotation, and so "
                                                              "have 1 more"),
        (lambda c: c["annotations"].append({"image_id": 1002, "category_id": 7}),
         "image id 1002 has more than one annotation"),
        (lambda c: c["images"].append(c["images"][2]), "the image id 1002 is there twice"),
        (lambda c: c["categories"].append({"id": 7, "name": "b"}), "has the category id 7 twice"),
        (lambda c: c["annotations"][3].update(category_id=8), "1003 has an unlisted category"),
        (lambda c: c.update(categories=[]), "lists no categories"),
        (lambda c: c.update(images=[], annotations=[]), "names no images"),
        (lambda c: c.pop("annotations"), "has no list 'annotations'"),
        (lambda c: c["images"][1].pop("file_name"), "entry 2 of images: no 'file_name'"),
        (lambda c: c["images"][1].update(id="x"), "entry 2 of images: "),
        (lambda c: c["images"][1].update(id=2**70), "entry 2 of images: "),
        (lambda c: c["images"].insert(0, 3), "entry 1 of images: "),
        (lambda c: c["images"][2].update(file_name=3), "entry 3 of images: "),
        (lambda c: c["annotations"][3].pop("image_id"), "entry 4 of annotations: no 'image_id'"),
        (lambda c: c["annotations"][3].update(category_id=None), "entry 4 of annotations: "),
        (lambda c: c["categories"].append("b"), "entry 5 of categories: "),
        (lambda c: c.update(images={}), "has no list 'images'"),
    ],
)  # fmt: skip
def test_annotations_that_do_not_fit(tmp_path, change, message):
    file = write_json(tmp_path / "a.json", spoiled(change))
    with pytest.raises(UserError, match=message) as e:
        read_annotations(file)
    assert str(file) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"images": [1 2]}', b"{} x", b'{"a": nul}', b'{"a": "x', b"\x00"]
)
def test_files_that_are_no_json(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.json is no valid JSON \(.*, character \d+\)"):
        read_annotations(text(tmp_path, content, "a.json"))


def test_damaged_json_in_other_ways(tmp_path):
    with pytest.raises(UserError, match=r"a\.json has no list 'images'"):
        read_annotations(text(tmp_path, b"[]", "a.json"))
    with pytest.raises(UserError, match=r"cannot read .*a\.json \('utf-8' codec"):
        read_annotations(text(tmp_path, b'{"a": "\xff"}', "a.json"))
    with pytest.raises(UserError, match=r"cannot read .*gone\.json \(No such"):
        read_annotations(tmp_path / "gone.json")
    whole = json.dumps(annotations(ROWS, NAMES))
    with pytest.raises(UserError, match=r"no valid JSON \(.*, character 250\)"):
        read_annotations(text(tmp_path, whole[:250] + "\x01" + whole[250:], "a.json"))


# ---------------------------------------------------------------- checking


@pytest.mark.parametrize("name", listed_names())
def test_a_whole_copy_is_as_published(tmp_path, publish, name):
    WRITERS[name](tmp_path)
    publish(name, COUNTS_OF[name])
    report = check_benchmark(name, tmp_path)
    assert report.ok, str(report)
    assert not report.missing and not report.instructions and not report.absent
    assert str(report).startswith(f"{BENCHMARKS[name].title} in {tmp_path}: as published\n  ok")
    assert "count of every class is the published one" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def failures(report) -> list[str]:
    return [f.text for f in report.findings if not f.ok]


def test_shot_groups_are_checked(tmp_path, publish):
    counts = [101, 100, 20, 19]
    write_imagenet_lt(tmp_path, counts)
    publish("imagenet_lt", counts)
    report = check_benchmark("imagenet_lt", tmp_path)
    assert report.ok
    assert "train: 1/2/1 many-, medium- and few-shot classes (few <20)" in str(report)


def test_wrong_counts(tmp_path, publish):
    write_imagenet_lt(tmp_path, COUNTS, valid=1)
    publish("imagenet_lt", [7, 2, 1])
    assert failures(check_benchmark("imagenet_lt", tmp_path)) == [
        "train: 6 and 1 images of the largest and smallest class, not 7 and 1",
        "train: the counts of the classes are not the published ones",
        "valid: 3 images, not 6",
        "valid: 1 images of each class, not 2",
    ]
    publish("imagenet_lt", COUNTS[::-1], valid=1)
    (failure,) = failures(check_benchmark("imagenet_lt", tmp_path))
    assert "of other classes" in failure and "WordNet ids, ascending" in failure


def test_missing_files_are_counted_and_the_first_named(tmp_path, publish):
    made = write_places_lt(tmp_path, SCENE_COUNTS, "nested", "hyphens")
    publish("places_lt", SCENE_COUNTS)
    for path, _ in made["train"][1:8]:
        (tmp_path / path).unlink()
    (tmp_path / made["test"][3][0]).unlink()
    report = check_benchmark("places_lt", tmp_path)
    assert not report.ok and not report.absent
    assert report.missing == {
        "train": (7, [p for p, _ in made["train"][1:6]]),
        "test": (1, [made["test"][3][0]]),
    }
    assert len(failures(report)) == 2 and "7 of 22 images are not under" in str(report)
    assert report.instructions == how_to_get("places_lt", tmp_path)
    assert str(report).endswith(report.instructions)


def test_a_missing_or_damaged_list(tmp_path, publish):
    write_imagenet_lt(tmp_path, COUNTS)
    publish("imagenet_lt", COUNTS)
    (tmp_path / "ImageNet_LT_val.txt").unlink()
    report = check_benchmark("imagenet_lt", tmp_path)
    assert failures(report) == [f"valid: there is no ImageNet_LT_val.txt in {tmp_path}"]
    assert report.instructions
    (tmp_path / "ImageNet_LT_train.txt").write_text("nonsense\n")
    train, valid = failures(check_benchmark("imagenet_lt", tmp_path))
    assert train.startswith(f"train: {tmp_path}/ImageNet_LT_train.txt, line 1: ")
    (tmp_path / "ImageNet_LT_train.txt").unlink()
    assert len(failures(check_benchmark("imagenet_lt", tmp_path))) == 2


@pytest.mark.parametrize("name", benchmark_names())
def test_nothing_there(tmp_path, name):
    report = check_benchmark(name, tmp_path / "no where")
    assert report.absent and not report.ok
    assert len(failures(report)) == len(BENCHMARKS[name].sizes)
    assert f"{BENCHMARKS[name].title} in {tmp_path / 'no where'}: not there" in str(report)
    assert how_to_get(name, tmp_path / "no where") in str(report)


def test_an_image_in_two_parts(tmp_path, publish):
    made = write_imagenet_lt(tmp_path, COUNTS)
    publish("imagenet_lt", COUNTS)
    rows = [made["train"][0], *made["valid"][1:]]
    write_list(tmp_path / "ImageNet_LT_val.txt", rows)
    (failure,) = failures(check_benchmark("imagenet_lt", tmp_path))
    assert failure == f"valid: 1 images are in train too, as {rows[0][0]}"


def test_an_unknown_benchmark(tmp_path):
    with pytest.raises(UserError, match=r"benchmark.*cifar10_lt, .*got 'mnist_lt'"):
        check_benchmark("mnist_lt", tmp_path)
    for do in (check_benchmark, download_benchmark, how_to_get):
        with pytest.raises(UserError, match=r"digits_lt.*scikit-learn.*no files"):
            do("digits_lt", tmp_path)


# ---------------------------------------------------------------- balanced sets


def test_cifar_is_checked(tmp_path, publish, write_cifar_pickles, monkeypatch):
    names = [f"thing {c}" for c in range(10)]
    write_cifar_pickles(tmp_path, 10, names, 5, test=2)
    report = check_benchmark("cifar10_lt", tmp_path)
    assert "train: a part of the set, 5 to 5 images of each class, of 5,000" in str(report)
    assert failures(report) == [
        "test: 20 images, not 10,000",
        "test: 2 images of each class, not 1,000",
    ]
    facts = replace(
        BENCHMARKS["cifar10_lt"], sizes={"train": 50, "test": 20}, each={"train": 5, "test": 2}
    )
    monkeypatch.setitem(BENCHMARKS, "cifar10_lt", facts)
    report = check_benchmark("cifar10_lt", tmp_path)
    assert report.ok and "train: 5 images of each class" in str(report)


def test_a_part_of_tiny_imagenet_is_enough(tmp_path, write_tiny):
    write_tiny(tmp_path / "tiny-imagenet-200-lt10", [12] + [2] * 199, valid=50)
    report = check_benchmark("tiny_imagenet_lt", tmp_path)
    assert report.ok, str(report)
    assert "train: a part of the set, 12 to 2 images of each class, of 500" in str(report)


# ---------------------------------------------------------------- fetching

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def fetched(monkeypatch):
    """Stand-ins for what torchvision fetches, and the calls they got."""
    import torchvision.datasets as datasets
    from torchvision.datasets import utils

    calls = []

    def stand_in(name, action=lambda root: None):
        def call(root, *args, **kw):
            calls.append((name, root, *args, kw))
            action(Path(root))

        return call

    for name in ("CIFAR10", "CIFAR100", "Places365", "INaturalist"):
        monkeypatch.setattr(datasets, name, stand_in(name))
    monkeypatch.setattr(utils, "download_url", lambda url, root: calls.append((url, root)))
    monkeypatch.setattr(
        utils, "download_and_extract_archive", lambda url, root, md5: calls.append((url, root, md5))
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(1e12, 0, 1e12))
    return calls


@pytest.mark.parametrize(
    ("name", "theirs"), [("cifar10_lt", "CIFAR10"), ("cifar100_lt", "CIFAR100")]
)
def test_cifar_is_fetched_by_torchvision(tmp_path, fetched, name, theirs):
    root = tmp_path / "new" / "folder"
    report = download_benchmark(name, root)
    assert fetched == [
        (theirs, str(root), {"train": train, "download": True}) for train in (True, False)
    ]
    assert root.is_dir() and report.absent  # the stand-in fetched nothing


def test_inaturalist_is_fetched_once_its_size_is_confirmed(tmp_path, fetched):
    questions = []
    with pytest.raises(UserError, match=r"nobody confirmed.* 120 GB"):
        download_benchmark("inat2018", tmp_path)
    with pytest.raises(UserError, match="nobody confirmed"):
        download_benchmark("inat2018", tmp_path, lambda text: bool(questions.append(text)))
    assert "120 GB" in questions[0] and str(tmp_path) in questions[0] and not fetched
    download_benchmark("inat2018", tmp_path, lambda text: True)
    train, valid, images = fetched
    assert train[0].endswith("/2018/train2018.json.tar.gz") and len(train[2]) == 32
    assert valid[0].endswith("/2018/val2018.json.tar.gz")
    assert images == ("INaturalist", str(tmp_path), {"version": "2018", "download": True})
    fetched.clear()
    (tmp_path / "train_val2018").mkdir()
    download_benchmark("inat2018", tmp_path, lambda text: True)
    assert len(fetched) == 2


def test_a_disk_that_is_too_small(tmp_path, fetched, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: Usage(1e12, 0, 2.3e11))
    with pytest.raises(UserError, match="has 230 GB free; give a folder on a larger disk"):
        download_benchmark("inat2018", tmp_path / "a" / "b", lambda text: True)
    assert not fetched


def test_places_is_fetched_with_its_lists(tmp_path, fetched):
    questions = []
    download_benchmark("places_lt", tmp_path, lambda text: questions.append(text) or True)
    assert "1,839,960 images" in questions[0]
    assert [url.rsplit("/", 1)[1] for url, _ in fetched[:3]] == [
        f"Places_LT_{p}.txt" for p in ("train", "val", "test")
    ]
    assert [call[-1]["split"] for call in fetched[3:]] == ["train-standard", "val"]
    assert all(call[-1]["small"] and call[-1]["download"] for call in fetched[3:])


@pytest.mark.parametrize("name", ["imagenet_lt", "tiny_imagenet_lt"])
def test_what_has_to_be_fetched_by_hand(tmp_path, name, fetched):
    with pytest.raises(
        UserError, match=rf"cannot be fetched by a program.*check_benchmark\(name='{name}'"
    ):
        download_benchmark(name, tmp_path)
    assert not fetched


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("File not found or corrup")])
def test_a_download_that_breaks(tmp_path, monkeypatch, error):
    import torchvision.datasets

    def fail(*args, **kw):
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=rf"CIFAR-10 could not be fetched \({error}\); try again"):
        download_benchmark("cifar10_lt", tmp_path)
