"""Recipe files and values that are no use: each is refused in one sentence, at once."""

import json
import os

import pytest

from ltlearn.errors import UserError
from ltlearn.experiments.read_recipe import apply_override, load_recipe

DEEP = "[" * 100_000
DIGITS = "9" * 1_000_000
DIGITS_WITH_BASE = "0x" + "f" * 100_000


def own_recipe(tmp_path, line):
    path = tmp_path / "own.toml"
    path.write_text(line)
    return str(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (DEEP, "nested too deeply"),
        ("{a=" * 20_000, "nested too deeply"),
        (DIGITS[:900_000], "too many digits"),
        (DIGITS, "more than 1,000,000 bytes"),
        (DIGITS_WITH_BASE, "too many digits"),
    ],
)
def test_a_recipe_file_of_brackets_or_digits(tmp_path, value, reason):
    with pytest.raises(UserError, match=f"own\\.toml.*{reason}"):
        load_recipe(own_recipe(tmp_path, f"seeds = {value}"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (DEEP, "cannot set stage1.lr: its brackets are nested too deeply"),
        (DIGITS, "cannot set stage1.lr: a number in it has too many digits"),
        (DIGITS_WITH_BASE, "too many digits"),
        ("1e400", "stage1.lr=Infinity|stage1.lr=inf|stage1.lr"),
    ],
)
def test_such_a_value_of_a_key(value, reason):
    with pytest.raises(UserError, match=reason):
        load_recipe("digits_lt", [f"stage1.lr={value}"])


@pytest.mark.parametrize(
    "override",
    [
        "model.width=100000",
        "data.size=100000",
        "stage1.batch_size=1000000000000000000000",
        "stage1.epochs=1000000000",
        "stage1.warmup_epochs=1000000000",
        "stage1.accumulate=1000000000",
        "stage1.milestones=[1000000000]",
        "stage1.weight_decay=1e30",
        "stage2.views=100000",
        "stage2.batch_size=1000000000000000000000",
        "data.n_max=1000000000000",
        "data.imbalance_factor=1e30",
        "method.samn.epochs=1000000000",
        "seeds=1000",
    ],
)
def test_absurd_sizes_are_refused(override):
    with pytest.raises(UserError, match="it must be less than or equal to"):
        load_recipe("digits_lt", [override])


@pytest.mark.parametrize("value", ["1e13", "-1e13", "inf", "nan", "1" + "0" * 400])
def test_an_absurd_option_of_a_method(value):
    overrides = ["stage1.method=glmc", f"stage1.contrast={value}"]
    with pytest.raises(UserError, match=r"stage1\.contrast"):
        load_recipe("digits_lt", overrides)


def test_a_recipe_file_that_is_no_file(tmp_path):
    pipe, endless = tmp_path / "pipe.toml", tmp_path / "endless.toml"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, tmp_path):
        with pytest.raises(UserError, match="no file"):
            load_recipe(f"{path}/" if path is tmp_path else str(path))


def test_a_text_value_keeps_its_spelling():
    raw = {}
    apply_override(raw, "data.source=/a b/c")
    assert json.loads(json.dumps(raw))["data"]["source"] == "/a b/c"
