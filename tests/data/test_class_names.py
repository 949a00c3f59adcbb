import logging
import unicodedata

import pytest

from ltlearn.data.class_names import find_combined_labels, find_similar_names
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.inspection import inspect_path

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "first, second",
    [
        ("Cat", "cat"), ("dog", "dog "), (NFC, NFD), ("hot dog", "hot_dog"), ("a  b", "a b"),
        ("1", "01"), ("1", "1.0"), ("img_7", "img_007"), ("Straße", "STRASSE"),
        ("cat", "cat\u200b"), ("ﬁsh", "fish"),
    ],
)  # fmt: skip
def test_names_that_mean_one_class_are_similar(first, second):
    assert find_similar_names([first, "other", second]) == [[first, second]]


def test_names_that_differ_are_not_similar():
    names = [
        "1", "-1", "10", "100", "0", "00x1", "1.5", "1.05", "a b", "ab", "c", "c++", "cat", "cats",
        "_", " ", "v1.0", "v1",
    ]  # fmt: skip
    assert find_similar_names(names) == []


def test_similar_names_are_reported(tmp_path, write_classes, caplog):
    caplog.set_level(logging.WARNING, "ltlearn")
    write_classes(tmp_path, {"Cat": 4, "cat": 3, "dog": 4, "dog ": 2, NFC: 2, NFD: 2})
    found = inspect_path(tmp_path, quick=True)
    assert sorted(map(sorted, found.similar())) == [
        ["Cat", "cat"], sorted([NFC, NFD]), ["dog", "dog "],
    ]  # fmt: skip
    text = dict(found.rows())["similar names"]
    assert "'Cat' and 'cat'" in text and "'dog '" in text and "decomposed Unicode" in text
    assert found.to_dict()["similar_names"] == found.similar()
    LTDataLoaders.from_folder(tmp_path, device="cpu", bs=4)
    assert any("'Cat' and 'cat'" in m and "one name" in m for m in caplog.messages)


@pytest.mark.parametrize(
    "classes, name",
    [
        (["cat", "cat|wet"], "cat|wet"),
        (["cat;wet", "dog;wet", "x"], "cat;wet"),
        (["red", "green", "red, green"], "red, green"),
        (["a,b", "b,c", "a,c"], "a,b"),
        (["['cat']", "['cat', 'wet']"], "['cat', 'wet']"),
    ],
)
def test_several_labels_are_certain(classes, name):
    assert find_combined_labels(classes) == (name, True)


@pytest.mark.parametrize(
    "classes, name",
    [
        (["cat", "cat wet", "dog"], "cat wet"),
        (["haze primary", "clear primary", "clear road", "haze road", "clear", "haze"],
         "haze primary"),
        (["a+b", "a", "b"], "a+b"),
    ],
)  # fmt: skip
def test_several_labels_are_likely(classes, name):
    assert find_combined_labels(classes) == (name, False)


@pytest.mark.parametrize(
    "classes",
    [
        ["golden retriever", "labrador retriever", "tabby cat", "cat"],
        ["dog", "hot dog", "cat", "wild cat"],
        ["red apple", "green apple", "red pear", "green pear"],
        ["maillot", "maillot, tank suit", "crane", "tench, Tinca tinca", "ear, spike, capitulum",
         "cardigan", "corn, maize"],
        ["Quercus alba", "Quercus rubra", "Acer rubrum", "Acer saccharum"],
        ["AC/DC", "R&B", "c++", "a|b", "(unknown)"],
        ["airplane", "automobile"],
        [str(i) for i in range(100)],
    ],
)  # fmt: skip
def test_ordinary_names_are_one_label(classes):
    assert find_combined_labels(classes) is None
