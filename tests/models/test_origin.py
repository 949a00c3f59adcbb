"""What a file states of its model."""

import argparse
import json

import pytest
import safetensors.torch
import timm
import torch

from ltlearn import UserError
from ltlearn.models.origin import (
    class_names,
    find_origin,
    match_outputs,
)
from ltlearn.utils.statistics import check_statistics

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "hf_hub_id": "timm/x", "crop_pct": 0.95}


def find(path, content=(), arch="resnet10t", config=CONFIG, is_ours=False):
    return find_origin(path, dict(content), arch, config, is_ours)


def test_the_most_specific_statement_counts(tmp_path):
    file = tmp_path / "checkpoints" / "w.pth"
    file.parent.mkdir()
    origin = find(file)
    assert (
        origin.mean == CONFIG["mean"] and "timm's configuration of resnet10t" in origin.stats_from
    )
    assert not origin.is_stated and origin.crop == 0.95
    facts = {"arch": "resnet10t", "mean": MEAN, "std": STD, "classes": ["b", "a"]}
    (tmp_path / "model.json").write_text(json.dumps(facts))
    origin = find(file)
    assert (origin.mean, origin.std, origin.classes) == (MEAN, STD, ("b", "a"))
    assert origin.is_stated and origin.stats_from == str(tmp_path / "model.json")
    assert find(file, arch="resnet50").mean == CONFIG["mean"], "the file is of another model"
    inside = {"pretrained_cfg": {"mean": [0.7] * 3, "std": [0.8] * 3}}
    assert find(file, inside).mean == (0.7, 0.7, 0.7)
    (tmp_path / "model.json").write_text(json.dumps({**facts, "mean": [1, 2]}))
    with pytest.raises(UserError, match=r"model\.json is damaged.*mean"):
        find(file)


@pytest.mark.parametrize(
    "content",
    [
        {"mean": MEAN, "std": STD},
        {"args": argparse.Namespace(mean=list(MEAN), std=list(STD), class_names=None)},
        {"hyper_parameters": {"mean": MEAN, "std": STD}},
        {"meta": {"mean": [v * 255 for v in MEAN], "std": [v * 255 for v in STD]}},
        {"config": json.dumps({"mean": MEAN, "std": STD})},
    ],
)
def test_statistics_in_a_file(content, tmp_path):
    origin = find(tmp_path / "w.pth", content)
    assert origin.mean == pytest.approx(MEAN) and origin.std == pytest.approx(STD)


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["cow", "ant"]},
        {"class_to_idx": {"cow": 0, "ant": 1}},
        {"meta": {"categories": ["cow", "ant"]}},
        {"pretrained_cfg": {"label_names": ("cow", "ant")}},
        {"config": {"id2label": {"1": "ant", "0": "cow"}}},
    ],
)
def test_classes_in_a_file(content, tmp_path):
    origin = find(tmp_path / "w.pth", content)
    assert origin.classes == ("cow", "ant")


def test_what_states_no_classes():
    for value in (1000, ["0", "1", "2"], ["a", "a"], {"a": 0, "b": 2}, "[1, 2", ["a"], [1, 2]):
        assert class_names(value) is None


def test_timms_folder_describes_its_weights(tmp_path):
    config = {"architecture": "resnet10t", "label_names": ["x", "y"], "pretrained_cfg": {
        "mean": MEAN, "std": STD}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    origin = find(tmp_path / "model.safetensors")
    assert origin.mean == MEAN and origin.classes == ("x", "y")


def test_without_a_statement(tmp_path):
    cifar = timm.get_pretrained_cfg("resnet20_cifar").to_dict()
    # Our training from random weights uses ImageNet's statistics; another's uses timm's.
    ours, other = (find(tmp_path / "w.pth", (), "resnet20_cifar", cifar, f) for f in (True, False))
    assert ours.mean == (0.485, 0.456, 0.406) and "ImageNet" in ours.stats_from
    assert other.mean == (0.4914, 0.4822, 0.4465)


def test_outputs_and_classes_are_matched_by_name():
    assert match_outputs(["b", "a", "c"], ["a", "b", "c"], "x") == [1, 0, 2]
    assert match_outputs(["Red_fox", "Cat"], ["cat", "red fox"], "x") == [1, 0]
    for outputs, found in (
        (["a", "b", "d"], "not in the data: 'd'; lacking: 'c'"),
        (["a", "b"], "the 2 classes of the model .x. are not the 3"),
        (["a", "b", "b"], "twice 'b'"),
    ):
        with pytest.raises(UserError, match=rf"{found}.*classes"):
            match_outputs(outputs, ["a", "b", "c"], "x")


def test_statistics_out_of_range():
    check_statistics([0, 0, 0], torch.ones(3))
    for mean, std, name in (
        ((123.7, 116.3, 103.5), STD, "mean.*255"),
        (MEAN, (0, 1, 1), "std"),
        (MEAN[:2], STD, "mean"),
        (MEAN, (float("nan"), 1, 1), "std"),
        (0.5, STD, "mean"),
    ):
        with pytest.raises(UserError, match=name):
            check_statistics(mean, std)


def test_metadata_of_safetensors_states_them(tmp_path):
    from ltlearn.models.weights_file import read_weights_file

    file = tmp_path / "w.safetensors"
    facts = {"config": json.dumps({"mean": MEAN, "std": STD, "classes": ["b", "a"]})}
    safetensors.torch.save_file({"config.weight": torch.zeros(2)}, file, facts)
    origin = find(file, read_weights_file(file))
    assert origin.mean == MEAN and origin.classes == ("b", "a")


def test_many_long_names_are_compared_quickly_and_cut_in_the_message():
    outputs = [f"{'x' * 1000}{i % 199_999}" for i in range(200_000)]
    with pytest.raises(UserError, match=r"200000 classes of the model .*twice .*lacking") as error:
        match_outputs(outputs, ["a", "b"], "a file")
    assert len(str(error.value)) < 2500
