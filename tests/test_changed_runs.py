"""Runs whose files were damaged or changed: each is refused in a sentence, or used unharmed.

A damaged file must not be used. A file that a stranger changed and sealed again may be used, and
must raise nothing but a `UserError`.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ltlearn.errors import UserError
from ltlearn.experiments.compare_run import compare_run
from ltlearn.experiments.manifest import recorded_recipe
from ltlearn.experiments.model_facts import ModelFacts, read_model_facts, write_model_facts
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.runner import run_recipe
from ltlearn.utils.run_folder import Run, checksum_of
from tests.helpers import ltlearn

FIXTURE = Path(__file__).parent / "fixtures" / "run_db4ea7a"
IMAGES = sorted(str(p) for p in (FIXTURE / "images").iterdir())
MODEL, MANIFEST = "model.json", "manifest.json"
WEIGHTS, RECORD = "checkpoints/seed0-samn.safetensors", "checkpoints/seed0-samn.json"
STAGE1, STAGE1_RECORD = "checkpoints/seed0-stage1.safetensors", "checkpoints/seed0-stage1.json"
NASTY = [
    None, True, False, 0, -1, 3, 10**6, 10**30, 10**400, -0.5, 1e-320, 1e308, float("nan"),
    float("inf"), "", "x", "x" * 10_000, "\x1b[2J\x1b]0;owned\x07", "a\x00b", "\ud800", "../../x",
    "/dev/zero", "/a\x00b", "hf-hub:evil/model", "local-dir:/tmp",
    [], [1], [[]], ["a"], [None], {}, {"a": 1},
    {"a": {"b": []}}, [[[[[[1]]]]]],
]  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """Return a copy of a finished run, with the checksum in model.json that today's runs have."""
    path = Path(shutil.copytree(FIXTURE / "finished", tmp_path / "run"))
    write_model_facts(Run(path), read_model_facts(path))
    return path


def predictions(run: Path) -> list[Any] | None:
    """Return what a run predicts; None if it is refused."""
    try:
        predictor = Predictor(run)
        return [predictor.method, *predictor.predict(IMAGES, top=2)]
    except UserError as e:
        assert len(str(e)) < 3000 and "\n" not in str(e), "one sentence"
        return None


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, replace, remove, repeat, insert or cut some bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(7)
        if kind < 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at] = rng.randrange(256)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif kind == 5:
            changed[at:at] = rng.randbytes(length)
        else:
            del changed[at:]
    return bytes(changed)


def places(value: Any) -> list[tuple[Any, Any]]:
    """List the (container, key) of each value inside a value."""
    found, waiting = [], [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            found += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    return found


def change_value(rng: random.Random, content: bytes, sealed: bool) -> bytes:
    """Replace or remove a value of a JSON file; seal it again if asked."""
    plain = json.loads(content)
    plain.pop("checksum", None)
    for _ in range(rng.choice([1, 1, 2])):
        # Lists of numbers are long: choose a key of the file first.
        key = rng.choice(list(plain) or ["none"])
        container, key = rng.choice([(plain, key), *places(plain.get(key))])
        if rng.random() < 0.15 and key in (container if isinstance(container, dict) else ()):
            del container[key]
        else:
            container[key] = rng.choice(NASTY)
    if sealed:
        plain["checksum"] = checksum_of(json.dumps(plain).encode())
    return json.dumps(plain).encode()


def with_changed(run: Path, name: str, content: bytes, use: Callable[[Path], Any]) -> Any:
    """Use a run with another content of a file, and restore the file."""
    before = (run / name).read_bytes()
    (run / name).write_bytes(content)
    try:
        return use(run)
    finally:
        (run / name).write_bytes(before)


def check_predictions(run: Path, seed: int, counts: dict[str, int]) -> None:
    rng, good = random.Random(seed), predictions(run)
    assert good is not None
    for name in (WEIGHTS, RECORD, MODEL, MANIFEST):
        content = (run / name).read_bytes()
        for i in range(counts[name]):
            changed = change_bytes(rng, content)
            found = with_changed(run, name, changed, predictions)
            if name == WEIGHTS and changed != content:
                assert found is None, f"damaged weights were used ({i} of seed {seed})"
            assert found in (None, good), f"{name} was damaged and used ({i} of seed {seed})"
    for i in range(counts["values"]):
        # With a checksum and without, as in runs of early versions.
        changed = change_value(rng, (run / MODEL).read_bytes(), sealed=i % 2 == 0)
        with_changed(run, MODEL, changed, predictions)
    assert predictions(run) == good


def test_a_changed_run_predicts_the_same_or_nothing(run):
    check_predictions(run, 0, {WEIGHTS: 8, RECORD: 6, MODEL: 10, MANIFEST: 2, "values": 20})


@pytest.mark.slow
def test_two_thousand_changed_runs(run):
    check_predictions(run, 1, {WEIGHTS: 700, RECORD: 100, MODEL: 400, MANIFEST: 400, "values": 400})


def test_one_bit_of_the_weights(run):
    """It once made `predict` answer "100.0 %"."""
    content = bytearray((run / WEIGHTS).read_bytes())
    middle = len(content) // 2
    content[middle + 3 - middle % 4] ^= 0x40
    (run / WEIGHTS).write_bytes(content)
    done = ltlearn("predict", run, IMAGES[0])
    assert done.returncode == 2
    assert "does not fit the checksum in seed0-samn.json" in done.stderr
    done = ltlearn("predict", run / WEIGHTS, IMAGES[0])
    assert done.returncode == 2
    # `retrain` is given the same file.
    with pytest.raises(UserError, match="does not fit the checksum"):
        from ltlearn.models.pretrained import create_lt_model

        create_lt_model("resnet20_cifar", 10, run / WEIGHTS, width=2)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("classes", lambda v: [v[1], v[0], *v[2:]]),
        ("class_counts", lambda v: [v[1], v[0], *v[2:]]),
        ("mean", lambda v: [*v[:2], v[2] + 0.01]),
        ("std", lambda v: [*v[:2], v[2] + 0.01]),
        ("size", lambda v: [v[0], v[1] + 1]),
        ("methods", lambda v: dict(reversed(v.items()))),
    ],
)
def test_another_value_does_not_fit_the_checksum(run, key, change):
    content = json.loads((run / MODEL).read_text())
    content[key] = change(content[key])
    (run / MODEL).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.json is damaged: it does not fit its checksum"):
        Predictor(run)


def changed_facts(run: Path, **values: Any) -> Path:
    """Change values of model.json, as a stranger would, with a right checksum."""
    content = {**json.loads((run / MODEL).read_text()), **values}
    content.pop("checksum")
    Run(run).write_json(MODEL, content, sealed=True)
    return run


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"arguments": {"width": 5000}}, r"arguments\.width = 5000"),
        ({"arguments": {"width": 1000}}, "not those of resnet20_cifar"),
        ({"arguments": {"width": 2, "checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"arguments": {"pretrained": True}}, "the key pretrained"),
        ({"arguments": {"width": 2, "depth": 20}}, "the key depth"),
        ({"size": [40_000, 40_000]}, r"size\.0 = 40000"),
        ({"mean": [1, 2]}, r"mean = \[1, 2\]"),
        ({"std": [0.0, 1, 1]}, r"std\.0 = 0\.0"),
        ({"arch": "vit_giant_patch14_clip_224"}, "does not take width"),
        ({"arch": "convnext_xlarge", "arguments": {}}, "not those of convnext_xlarge"),
        ({"arch": "no_such_net"}, "no model arch='no_such_net'"),
        ({"arch": "resnet18.no_such_weights"}, "resnet18"),
        ({"arch": ""}, "arch = ''"),
        ({"methods": {"../../x": {"prior": "train"}}}, "is not possible"),
        ({"methods": {"ce": {"prior": "reversed"}}}, "prior of the method ce"),
        ({"methods": {}}, r"methods = \{\}"),
        ({"classes": ["a"]}, "1 classes, but counts of 10"),
        ({"format": 2}, "has the format 2"),
        ({"format": "1"}, "format = '1'"),
    ],
)
def test_a_changed_model_is_refused_before_it_takes_memory(run, values, reason):
    with pytest.raises(UserError, match=reason):
        Predictor(changed_facts(run, **values))


def test_classes_that_the_weights_lack_take_no_memory(run):
    names = [str(c) for c in range(50_000)]
    changed_facts(run, classes=names, class_counts=[1] * 50_000, arch="resnet50", arguments={})
    with pytest.raises(UserError, match="not those of resnet50"):
        Predictor(run)


@pytest.mark.parametrize("arch", ["hf-hub:evil/model", "hf_hub:evil/model", "local-dir:/tmp/x"])
def test_an_architecture_from_outside_needs_consent(run, monkeypatch, arch):
    def fetch(*_, **__):
        raise AssertionError("the network or a folder was asked")

    monkeypatch.setattr("timm.create_model", fetch)
    changed_facts(run, arch=arch)
    with pytest.raises(UserError, match=f"{arch}.*allow_hub=True"):
        Predictor(run)
    done = ltlearn("predict", run, IMAGES[0])
    assert done.returncode == 2 and "--allow-hub" in done.stderr
    if arch.startswith("local-dir"):
        with pytest.raises(UserError, match="was asked"):
            Predictor(run, allow_hub=True)


def reseal(run: Path, change: Callable[[dict], Any]) -> None:
    """Change the weights of a run and their checksum."""
    state = load_file(run / WEIGHTS)
    change(state)
    save_file(state, run / WEIGHTS)
    record = json.loads((run / RECORD).read_text())
    record.pop("checksum", None)
    record["weights"] = checksum_of((run / WEIGHTS).read_bytes())
    Run(run).write_json(RECORD, record, sealed=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run, value):
    """The answer was once "nan %", and no JSON."""
    reseal(run, lambda state: state["head.weight"].fill_(value))
    with pytest.raises(UserError, match=r"not finite \(head\.weight\)"):
        Predictor(run)


def test_an_image_without_finite_numbers_is_an_error_of_that_image(run):
    reseal(run, lambda state: state["backbone.conv1.weight"].fill_(3e38))
    predictor = Predictor(run)
    (found,) = predictor.predict(IMAGES[:1])
    assert "no finite numbers" in found.error and not found.classes


def test_names_reach_neither_the_terminal_nor_a_table_as_they_are(run, tmp_path):
    names = [f"\x1b]0;owned\x07\x1b[2J\x1b[31m{c}\r" for c in range(9)] + ["line\nbreak"]
    changed_facts(run, classes=names)
    done = ltlearn("predict", run, *IMAGES)
    assert done.returncode == 0, done.stderr
    assert r"\x1b]0;owned\x07\x1b[2J\x1b[31m0" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout
    table = tmp_path / "classes.csv"
    assert ltlearn("predict", run, *IMAGES, "--csv", table).returncode == 0
    content = table.read_bytes()
    assert b"\x1b" not in content and b"\r" not in content
    answer = json.loads(ltlearn("predict", run, *IMAGES, "--json").stdout)
    assert {one["top"][0]["class"] for one in answer["images"]} <= set(names)
    missing = tmp_path / "\x1b[2Jno.png"
    done = ltlearn("predict", run, missing)
    assert r"\x1b[2Jno.png" in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, RECORD, MANIFEST])
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse"])
def test_files_that_are_none(run, name, kind):
    """None of them may be waited for, or read into memory."""
    (run / name).unlink()
    if name == MANIFEST:
        (run / MODEL).unlink()  # otherwise the manifest is not read
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "zero":
        (run / name).symlink_to("/dev/zero")
    elif kind == "folder":
        (run / name).mkdir()
    else:
        with (run / name).open("wb") as file:
            file.truncate(1 << 40)
    if name == RECORD and kind != "sparse":
        assert predictions(run), "weights without a record are those of an early version"
    else:
        assert predictions(run) is None


def test_json_that_is_nested_deeply(run):
    (run / MODEL).write_text("[" * 100_000)
    assert predictions(run) is None


def test_the_facts_of_a_run_are_sealed(run):
    content = json.loads((run / MODEL).read_text())
    assert content.pop("checksum")
    assert ModelFacts.from_dict(content).to_dict() == content


# ---------------------------------------------------------------- compared classifiers

CRT, CRT_RECORD = "compare/seed0-crt-0.safetensors", "compare/seed0-crt-0.json"


def crt(run: Path) -> list[Any] | None:
    try:
        return list(Predictor(run, "crt").predict(IMAGES, top=2))
    except UserError as e:
        assert len(str(e)) < 3000 and "\n" not in str(e), "one sentence"
        return None


def test_a_changed_classifier_of_compare_predicts_the_same_or_nothing(run):
    rng, good = random.Random(0), crt(run)
    assert good is not None
    for name in (CRT, CRT_RECORD):
        content = (run / name).read_bytes()
        for _ in range(6):
            assert with_changed(run, name, change_bytes(rng, content), crt) in (None, good)
    content = bytearray((run / CRT).read_bytes())
    content[-5] ^= 0x40
    assert with_changed(run, CRT, bytes(content), crt) is None


def test_a_classifier_of_another_method_is_not_used(run):
    for end in ("json", "safetensors"):
        (run / f"compare/seed0-samn-0.{end}").replace(run / f"compare/seed0-crt-0.{end}")
    with pytest.raises(UserError, match=r"seed0-crt-0\.safetensors has the name of crt"):
        Predictor(run, "crt")


def test_a_best_method_without_a_classifier(run):
    table = {"best_on_validation": "../../x", "rows": []}
    (run / "compare.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"compare\.json names as the best"):
        Predictor(run, "best")


def write_bomb(path: Path) -> None:
    """Write a file of no size on disk whose head takes a quarter of a terabyte of memory."""
    size = 1 << 38
    values = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"head.weight": values}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_a_head_that_takes_all_memory_is_refused_by_its_header(run):
    write_bomb(run / CRT)
    with pytest.raises(UserError, match=r"seed0-crt-0\.safetensors holds the weights of another"):
        Predictor(run, "crt")
    write_bomb(run / STAGE1)
    with pytest.raises(UserError, match=r"seed0-stage1\.safetensors is damaged or missing"):
        compare_run(Run(run), ["ce"], device="cpu")


# ---------------------------------------------------------------- compare and resume


def compared(run: Path) -> list[float] | None:
    """Return the accuracies of a comparison; None if it is refused."""
    try:
        result = compare_run(Run(run), ["ce", "tau_norm"], device="cpu")
    except UserError as e:
        assert len(str(e)) < 3000
        return None
    return [float(o.report.all) for o in result.outcomes]


def check_comparisons(run: Path, seed: int, counts: dict[str, int]) -> None:
    shutil.rmtree(run / "compare")
    rng, good = random.Random(seed), compared(run)
    assert good is not None
    kept = str(next((run / "compare").glob("*tau_norm*.json")).relative_to(run))
    for name in (STAGE1, STAGE1_RECORD, kept):
        content = (run / name).read_bytes()
        for i in range(counts["bytes"]):
            found = with_changed(run, name, change_bytes(rng, content), compared)
            assert found in (None, good), f"{name} was damaged and used ({i} of seed {seed})"
    for name in (MANIFEST, STAGE1_RECORD, kept):
        content = (run / name).read_bytes()
        for _ in range(counts["values"]):
            changed = change_value(rng, content, sealed=name != MANIFEST)
            with_changed(run, name, changed, compared)


def without_plots(monkeypatch) -> None:
    monkeypatch.setattr("ltlearn.experiments.compare_run._plots", lambda comparison: {})


def test_a_changed_run_is_compared_alike_or_not(run, monkeypatch):
    without_plots(monkeypatch)
    check_comparisons(run, 0, {"bytes": 1, "values": 2})


@pytest.mark.slow
def test_two_hundred_changed_runs_are_compared(run, monkeypatch):
    without_plots(monkeypatch)
    check_comparisons(run, 1, {"bytes": 25, "values": 42})


@pytest.mark.parametrize("path", ["", "run/data"])
def test_images_of_a_relative_path_are_not_read(run, path):
    """With one, a received folder brings the files along that are read as its images."""
    content = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps({**content, "data_path": path}))
    with pytest.raises(UserError, match=r"data_path = .*absolute path; give .* data_path"):
        compare_run(Run(run), ["ce"], device="cpu")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pretrained": "/" + "x" * 3000}, "no weights file"),
        ({"pretrained": "/" + "x" * 10_000}, r"model\.pretrained"),
        ({"pretrained": "/dev/zero"}, "no weights file"),
        ({"pretrained": "/x", "weights_key": "x" * 10_000}, r"model\.weights_key"),
    ],
)
def test_weights_that_a_manifest_names_in_an_impossible_way(run, values, reason):
    content = json.loads((run / MANIFEST).read_text())
    content["values"]["model"] |= values
    (run / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason) as error:
        compare_run(Run(run), ["ce"], device="cpu")
    assert len(str(error.value)) < 4000


def test_a_key_that_the_dataset_does_not_take(run):
    content = json.loads((run / MANIFEST).read_text())
    content["values"]["data"]["bits"] = 12
    (run / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"data\.bits applies to data\.dataset = 'own' only"):
        compare_run(Run(run), ["ce"], device="cpu")


@pytest.mark.parametrize("mean", [None, [0.5] * 100_000, ["\x1b[2J" * 100_000] * 3])
def test_impossible_statistics_are_named_in_a_sentence(run, mean):
    changed_facts(run, mean=mean)
    with pytest.raises(UserError, match=r"model\.json is damaged: mean.* is not possible") as error:
        compare_run(Run(run), ["ce"], device="cpu")
    assert len(str(error.value)) < 1000


def test_a_manifest_without_a_path_of_images(run):
    content = json.loads((run / MANIFEST).read_text())
    del content["data_path"]
    (run / MANIFEST).write_text(json.dumps(content))
    assert compared(run) is None


def check_resumed(run: Path, seed: int, counts: dict[str, int]) -> None:
    rng, recipe = random.Random(seed), recorded_recipe(Run(run))
    good = None

    def resumed(run: Path) -> list[np.ndarray] | None:
        try:
            table = run_recipe(recipe, Run(run), device="cpu", precision="fp32").table
        except UserError as e:
            assert len(str(e)) < 3000
            return None
        return [np.asarray(row.reports[0].per_class) for row in table.rows]

    good = resumed(run)
    manifest = (run / MANIFEST).read_bytes()
    for i in range(counts["manifest"]):
        how = change_bytes if i % 2 else lambda r, c: change_value(r, c, sealed=False)
        found = with_changed(run, MANIFEST, how(rng, manifest), resumed)
        assert found is None or all(map(np.array_equal, found, good))
    record = (run / RECORD).read_bytes()
    for _ in range(counts["record"]):
        with_changed(run, RECORD, change_value(rng, record, sealed=True), resumed)


def quick_results(monkeypatch) -> None:
    monkeypatch.setattr("ltlearn.experiments.runner.write_results", lambda *_: None)


def test_a_changed_run_goes_on_or_is_refused(run, monkeypatch):
    quick_results(monkeypatch)
    check_resumed(run, 0, {"manifest": 4, "record": 1})


@pytest.mark.slow
def test_two_hundred_changed_runs_go_on_or_are_refused(run, monkeypatch):
    quick_results(monkeypatch)
    check_resumed(run, 1, {"manifest": 150, "record": 50})


def test_torch_archives_that_inflate_are_refused(tmp_path):
    """2.9 MB once took 2.9 GB."""
    import zipfile

    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(1000)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    from ltlearn.models.pretrained import create_lt_model

    with pytest.raises(UserError, match=r"packed\.pth is a compressed archive"):
        create_lt_model("resnet20_cifar", 10, packed)


def write_old_lock(file: Path) -> None:
    file.write_text("process 1 on another machine")


@pytest.mark.parametrize(
    "make",
    [write_old_lock, Path.mkdir, os.mkfifo, lambda f: f.symlink_to(f.parents[1] / "precious")],
    ids=["killed", "folder", "pipe", "link"],
)
def test_a_lock_that_is_none_keeps_nobody_out(run, make, monkeypatch):
    without_plots(monkeypatch)
    (run.parent / "precious").write_text("keep")
    make(run / ".lock")
    os.mkfifo(run / ".tmp-1-00000000")
    (run / ".tmp-2-00000000").symlink_to(run.parent / "precious")
    assert compared(run) is not None
    assert (run.parent / "precious").read_text() == "keep"


def test_a_run_that_cannot_be_written_to_is_refused_before_any_work(run, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ltlearn.utils.run_folder.check_writable", refuse)
    monkeypatch.setattr("ltlearn.experiments.compare_run.load_stage1", None)
    with pytest.raises(UserError, match=r"run cannot be written \(Permission denied\): copy"):
        compare_run(Run(run), ["ce"], device="cpu")
    assert predictions(run) is not None
