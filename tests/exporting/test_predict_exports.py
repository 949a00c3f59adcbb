"""`ltlearn export` and `ltlearn predict` on what it wrote, through the command line."""

import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from ltlearn import UserError
from ltlearn.experiments.export_run import export_run
from ltlearn.experiments.predictor import Predictor
from ltlearn.experiments.run_card import without_paths
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.source import Preprocessing
from ltlearn.exporting.timm_folder import export_timm_folder
from ltlearn.exporting.torchscript_file import export_torchscript_file
from tests.exporting.helpers import make_source
from tests.helpers import TINY, ltlearn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    done = ltlearn(*TINY, "--seeds", "2", "--set", "stage1.epochs=1", "--out", folder / "run",
                   cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, shape in enumerate([(8, 8, 3), (20, 30, 3), (64, 40, 3)]):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / f"{i}.png")
    return folder


def csv_of(model, photos, out, *options):
    done = ltlearn("predict", model, photos, "--csv", out, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    return [line.split(",") for line in out.read_text().splitlines()]


def same(a, b):
    """Whether two tables of predictions agree: names exactly, probabilities but for rounding."""
    assert len(a) == len(b) == 4 and a[0] == b[0]
    for one, two in zip(a[1:], b[1:], strict=True):
        assert one[::2][0] == two[::2][0] and one[1::2] == two[1::2]
        assert np.allclose([float(p) for p in one[2::2]], [float(p) for p in two[2::2]], atol=1e-5)
    return True


def test_predict_takes_what_export_wrote_as_it_takes_the_run(run, photos, tmp_path):
    own = csv_of(run, photos, tmp_path / "run.csv")
    for to, out, options in (
        ("timm", tmp_path / "folder", []),
        ("onnx", tmp_path / "model.onnx", ["--normalize"]),
    ):
        done = ltlearn("export", run, "--to", to, "--out", out, *options, "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["path"] == str(out) and result["difference"] <= 1e-4
        assert same(csv_of(out, photos, tmp_path / f"{to}.csv"), own)
        prior = ["--target-prior", "uniform"]
        assert same(
            csv_of(out, photos, tmp_path / "a.csv", *prior),
            csv_of(run, photos, tmp_path / "b.csv", *prior),
        )
        assert Predictor(out).method == "samn"
        with pytest.raises(UserError, match=r"holds the method samn, not 'crt'"):
            Predictor(out, "crt")


def test_methods_and_seeds_of_a_run(run, tmp_path):
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    found = {}
    for method in ("ce", "samn"):
        for seed in (0, 1):
            out = tmp_path / f"{method}{seed}"
            done = export_run(run, "timm", out, method=method, seed=seed)
            assert done.path == out
            found[method, seed] = Predictor(out).logits(pixels)
            file = f"seed{seed}-{'stage1' if method == 'ce' else method}.safetensors"
            own = Predictor(run / "checkpoints" / file).logits(pixels)
            assert torch.allclose(found[method, seed], own, atol=1e-5)
    assert len({tuple(v.flatten().tolist()) for v in found.values()}) == 4


@pytest.mark.slow
def test_the_classifiers_of_a_comparison(run, tmp_path):
    done = ltlearn("compare", run, "--methods", "ncm,tau_norm", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    best = json.loads((run / "compare.json").read_text())["best_on_validation"]
    done = ltlearn("export", run, "--to", "torchscript", "--method", "best", "--json")
    assert json.loads(done.stdout)["path"] == str(run / f"export/{best}.pt"), done.stderr
    done = ltlearn("export", run, "--to", "timm", "--method", "ncm")
    assert done.returncode == 2 and "NearestClassMean" in done.stderr
    done = ltlearn("export", run, "--to", "onnx", "--method", "ncm", "--out", tmp_path / "n.onnx")
    assert done.returncode == 0, done.stderr
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    own, other = (Predictor(*w).logits(pixels) for w in ((run, "ncm"), (tmp_path / "n.onnx",)))
    assert torch.allclose(own, other, atol=1e-4)
    done = ltlearn("export", run, "--to", "timm", "--method", "tau_norm", "--seed", "1")
    assert done.returncode == 0, done.stderr
    done = ltlearn("export", run, "--to", "hub", "--repo", "user/digits", "--method", "tau_norm",
                   "--dry-run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ModelCard.load(run / "export/tau_norm-hub/README.md").data.eval_results


def test_the_card_of_a_run(run):
    done = ltlearn("export", run, "--to", "hub", "--repo", "user/digits", "--dry-run")
    assert done.returncode == 0, done.stderr
    folder = run / "export/samn-hub"
    card = ModelCard.load(folder / "README.md")
    row = json.loads((run / "manifest.json").read_text())["results"]["rows"][-1]
    values = {r.metric_name: r.metric_value for r in card.data.eval_results}
    for name, key in (("Accuracy", "all"), ("Accuracy, few-shot classes", "few")):
        assert values[name] == pytest.approx(100 * row["summary"][key]["mean"], abs=0.01)
    assert (folder / "plots/class_counts.png").is_file()
    assert "means over 2 seeds" in card.text and "**CE + SAMN**" in card.text
    assert str(run.parent) not in card.text, "no folder of this machine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "pdf"], r"--to must be one of timm, onnx, torchscript, hub, got 'pdf'"),
        (["--to", "timm", "--normalize"], r"--normalize is for onnx and torchscript"),
        (["--to", "timm", "--seed", "7"], r"seed 7; it has 0, 1"),
        (["--to", "timm", "--method", "lws"], r"no method 'lws'; it has ce, samn"),
        (["--to", "hub"], r"--repo is missing"),
        (["--to", "onnx", "--private"], r"--private is for --to hub"),
        (["--to", "onnx", "--out", "."], r"--out \. is a folder"),
    ],
)
def test_what_cannot_be_exported(run, words, message, tmp_path):
    done = ltlearn("export", run, *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def test_an_export_stays_inside_the_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/export").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"run/export is a link that leads out"):
        export_run(tmp_path / "run", "timm")
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("ltlearn train /home/me/birds --out runs/a", "ltlearn train birds --out runs/a"),
        ("ltlearn train '/home/me/my birds/'", "ltlearn train 'my birds/'"),
        ("ltlearn train --out=/home/me/a", "ltlearn train --out=a"),
    ],
)
def test_the_command_of_a_card_names_no_folder_of_the_machine(command, shown):
    assert without_paths(command) == shown


# ------------------------------------------------------------ folders and files of others


def foreign_folder(path, names=("cat", "dog", "owl"), **cfg):
    """A folder as timm itself saves it."""
    model = timm.create_model("resnet10t", num_classes=3).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 48, 48), **cfg}
    extra = {} if names is None else {"label_names": names}
    timm.models.save_for_hf(model, path, model_config=extra, safe_serialization=True)
    return model


def test_predict_takes_a_folder_that_timm_saved(photos, tmp_path):
    model = foreign_folder(tmp_path / "model", crop_pct=0.9, mean=(0.5,) * 3, std=(0.2,) * 3)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with pytest.raises(UserError, match=r"target_prior"):
        Predictor(tmp_path / "model", target_prior="uniform")
    predictor = Predictor(tmp_path / "model")
    assert list(predictor.classes) == ["cat", "dog", "owl"]
    paths = sorted(photos.glob("*.png"))
    for path, found in zip(paths, predictor.predict(paths), strict=True):
        with torch.no_grad():
            probs = model(transform(Image.open(path))[None]).softmax(1)[0]
        assert found.probabilities == pytest.approx(sorted(probs.tolist())[::-1], abs=1e-5)
        assert found.classes[0] == ["cat", "dog", "owl"][probs.argmax()]


def test_classes_without_names_have_numbers(tmp_path, caplog):
    foreign_folder(tmp_path / "model", names=None)
    assert Predictor(tmp_path / "model").classes == ["0", "1", "2"]
    assert "label_names" in caplog.text


def test_images_are_cropped_as_in_the_training(photos, tmp_path):
    steps = Preprocessing((96, 96), (0.5,) * 3, (0.25,) * 3, in_memory=False)
    source = make_source("resnet10t", "samn", steps)
    export_timm_folder(source, tmp_path / "model")
    from ltlearn.data.transforms import ImageTransform

    for path, found in zip(
        sorted(photos.glob("*.png")), Predictor(tmp_path / "model").predict(photos.glob("*.png")),
        strict=False,
    ):  # fmt: skip
        image = ImageTransform("none", 96)(np.array(Image.open(found.path)))
        x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        with torch.no_grad():
            probs = source.model(x).softmax(1)[0].tolist()
        assert found.probabilities == pytest.approx(sorted(probs)[::-1], abs=1e-4), path


def test_damaged_exports_are_refused_in_one_sentence(tmp_path):
    source = make_source("resnet8_cifar")
    file = export_onnx_file(source, tmp_path / "model.onnx").path
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"onnxruntime cannot load .*model\.onnx"):
        Predictor(file)
    file.write_bytes(content.replace(b'"in_memory"', b'"in_memors"'))
    with pytest.raises(UserError, match=r"metadata of .*in_memory"):
        Predictor(file)
    import onnx

    proto = onnx.load_from_string(content)
    del proto.metadata_props[:]
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"ltlearn did not write it"):
        Predictor(file)
    folder = tmp_path / "folder"
    export_timm_folder(make_source("resnet20_cifar"), folder)
    content = (folder / "config.json").read_text()
    (folder / "model.safetensors").write_bytes(bytes(1_000_000))
    with pytest.raises(UserError, match=r"timm cannot load the folder .*folder"):
        Predictor(folder)
    config = json.loads(content)
    config["ltlearn"]["class_counts"] = [1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json is damaged.*counts of 1"):
        Predictor(folder)
    for where, key, value, message in (
        ("model_args", "width", 3000, r"timm cannot load .*numbers.*bytes"),
        ("ltlearn", "size", [40_000, 40_000], r"damaged.*size.*40000"),
    ):  # a stranger's file that takes all memory
        config = json.loads(content)
        config[where][key] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            Predictor(folder)
    for text in ("[", "[" * 100_000, "[]", "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError):
            Predictor(folder)


def changed(folder, target, change):
    """Copy an exported folder with another config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_changed_config_is_refused_in_one_sentence(tmp_path):
    good = tmp_path / "good"
    export_timm_folder(make_source("resnet20_cifar"), good)
    names = ["a", "b"]
    cases = {
        r"num_classes is 3": lambda c: c.update(num_classes=3),
        r"shape \(1, 4\) .* 2 classes": lambda c: c["ltlearn"].update(
            classes=names, class_counts=[1, 2]
        ),
        r"config\.json is damaged: size": lambda c: c["ltlearn"].update(size=[65536, 65536]),
    }
    # As another program could have written it.
    own = {
        r"'zzz'": {"interpolation": "zzz", "crop_mode": "q"},
        r"std = .*0\.0": {"std": [0, 0, 0]},
        r"could not convert": {"mean": "abc"},
        r"input_size = .*65536": {"input_size": [3, 65536, 65536]},
    }
    for i, (message, change) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            Predictor(changed(good, tmp_path / str(i), change))
    for i, (message, values) in enumerate(own.items()):
        folder = tmp_path / f"own{i}"
        changed(good, folder, lambda c, v=values: (c.pop("ltlearn"), c["pretrained_cfg"].update(v)))
        with pytest.raises(UserError, match=rf"timm cannot load the folder .*own{i}.*{message}"):
            Predictor(folder)
    unnamed = changed(
        good, tmp_path / "unnamed", lambda c: (c.pop("ltlearn"), c.update(label_names=5))
    )
    assert list(Predictor(unnamed).classes) == ["0", "1", "2", "3"]


def test_weights_without_finite_logits_are_refused(tmp_path):
    folder = export_timm_folder(make_source("resnet20_cifar"), tmp_path / "folder").path
    state = load_file(folder / "model.safetensors")
    state["conv1.weight"][:] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"folder gives no finite logits"):
        Predictor(folder)
    source = make_source("resnet20_cifar")
    source.model.head.weight.data[:] = float("nan")
    with pytest.raises(UserError, match=r"no finite logits.*diverged"):
        export_timm_folder(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_onnx_metadata_that_do_not_fit_the_graph_are_refused(tmp_path):
    import onnx

    content = export_onnx_file(make_source("resnet8_cifar"), tmp_path / "model.onnx").path
    proto = onnx.load(content)
    (entry,) = (p for p in proto.metadata_props if p.key == "ltlearn")
    facts = json.loads(entry.value)
    for message, values in {
        r"2\.onnx gives logits of shape \(1, 4\) .* 2 classes": {
            "classes": ["a", "b"], "class_counts": [1, 2],
        },
        r"2\.onnx does not take images of 16 x 24": {"size": [16, 24]},
    }.items():  # fmt: skip
        entry.value = json.dumps(facts | values)
        (tmp_path / "2.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(UserError, match=message):
            Predictor(tmp_path / "2.onnx")


def test_an_export_is_no_run(tmp_path):
    source = make_source("resnet8_cifar")
    script = export_torchscript_file(source, tmp_path / "model.pt").path
    with pytest.raises(UserError, match=r"model\.pt is a model that was exported"):
        Predictor(script)
    upper = export_onnx_file(source, tmp_path / "MODEL.ONNX").path
    assert list(Predictor(upper).classes) == list(source.classes)
    with pytest.raises(UserError, match=r"MODEL\.ONNX is a model that was exported"):
        export_run(upper, "timm")
