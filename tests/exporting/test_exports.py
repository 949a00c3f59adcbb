import json
import subprocess
import sys
import threading
import time

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

from ltlearn import SAMN, UserError
from ltlearn.exporting.onnx_file import export_onnx_file
from ltlearn.exporting.portable import copy_for_export
from ltlearn.exporting.source import Preprocessing
from ltlearn.exporting.timm_folder import export_timm_folder
from ltlearn.exporting.torchscript_file import export_torchscript_file
from ltlearn.models.backbone import LTModel
from tests.callbacks.helpers import make_dls, make_lt_learner
from tests.exporting.helpers import ARCHS, FOLDING, HEADS, SIDE, STEPS, make_source
from tests.helpers import ENV

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in (STEPS.mean, STEPS.std))


def images(n, side=SIDE):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


@torch.no_grad()
def logits(source, pixels):
    return copy_for_export(source.model)((pixels - MEAN) / STD)


def run_onnx(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def largest(a, b):
    return float((a - b).detach().abs().max())


def few(heads):
    """Pairs of architecture and head; those of the large architectures are slow but for one."""
    pairs = []
    for arch in ARCHS:
        is_large = arch in ("resnet18", "convnext_atto")
        for head in heads:
            marks = [pytest.mark.slow] if is_large and head != "samn" else []
            pairs.append(pytest.param(arch, head, marks=marks))
    return pairs


# ------------------------------------------------------------ each architecture, each head


@pytest.mark.parametrize(("arch", "head"), few(FOLDING))
def test_timm_loads_the_folder_with_the_same_logits(arch, head, tmp_path):
    source = make_source(arch, head)
    done = export_timm_folder(source, tmp_path / "a b/model")
    assert done.path == tmp_path / "a b/model" and done.difference <= 1e-6
    loaded = timm.create_model(f"local-dir:{done.path}", pretrained=True).eval()
    assert type(loaded.get_classifier()) is nn.Linear
    for n in (1, 2, 5):
        with torch.no_grad():
            assert largest(loaded((images(n) - MEAN) / STD), logits(source, images(n))) <= 1e-6
    assert loaded.pretrained_cfg["label_names"] == source.classes
    config = json.loads((done.path / "config.json").read_text())
    assert config["num_features"] == source.model.head.in_features
    assert not list(tmp_path.glob("a b/.tmp*"))


@pytest.mark.parametrize("head", ["ncm", "cosine"])
def test_timm_cannot_hold_a_head_that_does_not_fold(head, tmp_path):
    with pytest.raises(UserError, match=r"head \((NearestClassMean|CosineLinear)\).*folded.*ONNX"):
        export_timm_folder(make_source("resnet20_cifar", head), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arch", "head"), few(HEADS))
def test_torchscript_has_the_same_logits_at_any_batch_size(arch, head, tmp_path):
    source = make_source(arch, head)
    done = export_torchscript_file(source, tmp_path / "model.pt", normalize=head == "ncm")
    extra = {"ltlearn.json": ""}
    loaded = torch.jit.load(done.path, _extra_files=extra)
    for n in (1, 2, 5):
        x = images(n) if head == "ncm" else (images(n) - MEAN) / STD
        assert largest(loaded(x), logits(source, images(n))) <= 1e-5
    facts = json.loads(extra["ltlearn.json"])
    assert facts["classes"] == source.classes and facts["normalize"] == (head == "ncm")


def check_onnx(arch, head, normalize, path):
    source = make_source(arch, head)
    done = export_onnx_file(source, path / "model.onnx", normalize)
    meta = onnxruntime.InferenceSession(str(done.path)).get_modelmeta().custom_metadata_map
    read = {key: json.loads(meta[key]) for key in ("classes", "mean", "std", "size", "normalize")}
    assert read["classes"] == source.classes and read["size"] == [SIDE, SIDE]
    assert read["mean"] == list(STEPS.mean) and read["std"] == list(STEPS.std)
    assert read["normalize"] is normalize and meta["ltlearn_version"]
    assert done.difference <= 1e-4
    for n in (1, 2, 5):
        x = images(n) if normalize else (images(n) - MEAN) / STD
        assert largest(run_onnx(done.path, x), logits(source, images(n))) <= 1e-4
    assert [p.name for p in path.iterdir()] == ["model.onnx"], "one file"


@pytest.mark.parametrize(
    ("arch", "head", "normalize"),
    [("resnet8_cifar", "ncm", True), ("resnet8_cifar", "cosine", False),
     ("vit_tiny_patch16_224", "samn", True)],
)  # fmt: skip
def test_onnx_has_the_same_logits_at_any_batch_size(arch, head, normalize, tmp_path):
    check_onnx(arch, head, normalize, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", ARCHS)
def test_onnx_matrix(arch, head, normalize, tmp_path):
    check_onnx(arch, head, normalize, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch",
    ["swin_tiny_patch4_window7_224", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224",
     "regnetx_002", "efficientnet_b0", "mixer_s32_224", "levit_128s", "resnetv2_50"],
)  # fmt: skip
def test_further_architectures_of_timm(arch, tmp_path):
    done = export_timm_folder(make_source(arch, "samn"), tmp_path / "model")
    assert done.difference <= 1e-4


# ------------------------------------------------------------ without ltlearn

BLOCKED = """
import contextlib, io, sys
for name in ("ltlearn", "fastai"):
    sys.modules[name] = None
import numpy, torch
found = []
for path in sys.argv[1:]:
    space, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(open(path).read(), space)
    name = printed.getvalue().strip()
    found.append(torch.as_tensor(space["logits"]).detach().flatten().tolist() + [name])
import json
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_printed_lines_work_in_a_process_without_ltlearn(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")  # Pillow reads the content
    source = make_source("resnet20_cifar", "samn")
    done = [
        export_timm_folder(source, tmp_path / "folder"),
        export_onnx_file(source, tmp_path / "a.onnx"),
        export_onnx_file(source, tmp_path / "b.onnx", normalize=True),
        export_torchscript_file(source, tmp_path / "a.pt"),
        export_torchscript_file(source, tmp_path / "b.pt", normalize=True),
    ]
    files = []
    for i, one in enumerate(done):
        files.append(tmp_path / f"{i}.py")
        files[-1].write_text(one.code)
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED, *files], cwd=tmp_path, env=ENV, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    expected = logits(source, x)
    for *values, name in json.loads(found.stdout):
        assert values == pytest.approx(expected[0].tolist(), abs=1e-4)
        assert name == source.classes[expected.argmax()]


# ------------------------------------------------------------ preprocessing


def make_learner(dls, **kwargs):
    # timm cannot load the network of the other tests from a folder.
    return make_lt_learner(dls, arch="resnet20_cifar", **kwargs)


def timm_input(folder, image):
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    config = timm.data.resolve_model_data_config(model)
    return timm.data.create_transform(**config, is_training=False)(Image.fromarray(image))


def smooth_photo(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_timm_prepares_an_image_as_the_training_did_in_memory(size, tmp_path):
    dls = make_dls(side=32) if size == (32, 32) else None
    if dls is None:
        rng = np.random.default_rng(0)
        arrays = [
            (rng.integers(0, 255, (len(y), *size, 3), np.uint8), np.array(y))
            for y in ([0, 0, 0, 1, 1, 2], [0, 1, 2])
        ]
        dls = type(make_dls()).from_arrays(*arrays[0], bs=4, device="cpu", valid=arrays[1])
    learn = make_learner(dls)
    folder = learn.export_timm(tmp_path / "model").path
    photo = smooth_photo(50, 70)
    ours = dls.valid.dataset.prepare(photo)
    (ours,) = dls.normalize.encodes((torch.from_numpy(ours).permute(2, 0, 1)[None],))
    assert largest(timm_input(folder, photo), ours[0]) <= 1e-5


def test_timm_differs_by_smoothing_alone_where_images_are_cropped(tmp_path):
    from ltlearn.data.transforms import ImageTransform

    for side in (64, 96, 112, 224):
        steps = Preprocessing((side, side), (0.0,) * 3, (1.0,) * 3, in_memory=False)
        config = steps.timm_config()
        transform = timm.data.create_transform(**{**config, "input_size": (3, side, side)})
        photo = smooth_photo(2 * side, 3 * side)
        found = transform(Image.fromarray(photo)).permute(1, 2, 0).numpy() * 255
        ours = ImageTransform("none", side)(photo)
        assert found.shape == ours.shape == (side, side, 3)
        assert np.abs(found - ours).mean() < 3, "the same part of the image"
        assert "smooth" in steps.note()


@pytest.mark.parametrize(
    ("side", "in_memory"), [(32, True), (64, False), (96, False), (224, False)]
)
def test_the_printed_lines_resize_as_the_training_did(side, in_memory, tmp_path, monkeypatch):
    from ltlearn.data.own_transforms import ToShape
    from ltlearn.data.transforms import ImageTransform
    from ltlearn.exporting.code import pixel_lines

    monkeypatch.chdir(tmp_path)
    steps = Preprocessing((side, side), (0.0,) * 3, (1.0,) * 3, in_memory)
    for shape in ((333, 500), (100, 75), (side, side), (17, 31)):
        photo = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
        Image.fromarray(photo).save(tmp_path / "photo.png")
        (tmp_path / "photo.png").rename(tmp_path / "photo.jpg")
        space = {"np": np, "Image": Image}
        exec("\n".join(pixel_lines(steps)), space)
        ours = ToShape((side, side))(photo) if in_memory else ImageTransform("none", side)(photo)
        found = space["pixels"][0].transpose(1, 2, 0) * 255
        assert found.shape == ours.shape
        assert np.abs(found - ours).max() <= 1.01


# ------------------------------------------------------------ learners


def test_a_learner_exports_what_it_trained(tmp_path):
    learn = make_learner(make_dls(side=16), cbs=SAMN(), channels_last=True, precision="bf16")
    learn.fit_stage1(1, 0.01)
    learn.retrain_classifier(1, 0.05, method="samn")
    before = {k: (v.clone(), v.stride()) for k, v in learn.model.state_dict().items()}
    folder, script = tmp_path / "timm", tmp_path / "model.pt"
    for done in (learn.export_timm(folder), learn.export_torchscript(script, normalize=True)):
        assert done.difference <= 1e-4 and str(done.path) in str(done)
    after = learn.model.state_dict()
    assert all(torch.equal(after[k], v) and after[k].stride() == s for k, (v, s) in before.items())
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == learn.dls.vocab
    assert config["ltlearn"]["class_counts"] == learn.dls.shot_counts.tolist()
    assert config["ltlearn"]["method"] == "samn"
    x = next(iter(learn.dls.valid))[0]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    learn.model.eval()
    with torch.no_grad():
        assert largest(loaded(x), learn.model.float()(x)) < 1e-4


def test_an_exported_folder_is_a_backbone_again(tmp_path):
    kwargs = ARCHS["vit_tiny_patch16_224"]
    learn = make_lt_learner(make_dls(side=32), arch="vit_tiny_patch16_224", **kwargs)
    learn.export_timm(tmp_path / "one")
    again = make_lt_learner(learn.dls, arch=f"local-dir:{tmp_path / 'one'}", pretrained=True)
    done = again.export_timm(tmp_path / "two")
    one, two = (
        json.loads((tmp_path / f"{name}/config.json").read_text()) for name in ("one", "two")
    )
    assert done.difference <= 1e-6 and one["architecture"] == two["architecture"]
    assert one["model_args"] == two["model_args"] and one["model_args"]["img_size"] == 32


def test_transforms_of_the_users_own_are_pointed_out(tmp_path):
    from fastai.vision.augment import Resize

    for i in range(6):
        folder = tmp_path / f"photos/{'ab'[i % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_photo(20, 30)).save(folder / f"{i}.png")
    dls = type(make_dls()).from_folder(
        tmp_path / "photos", bs=2, device="cpu", item_tfms=Resize(16), num_workers=0
    )
    done = make_learner(dls).export_timm(tmp_path / "out")
    assert any("item_tfms" in note for note in done.notes)


def test_a_folder_is_exported_again_over_the_former(tmp_path):
    one, two = (make_source("resnet20_cifar", head) for head in ("linear", "samn"))
    export_timm_folder(one, tmp_path / "model", {"class 0": "the first"})
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["label_descriptions"] == {"class 0": "the first"}
    (tmp_path / "model/notes.txt").write_text("mine")
    export_timm_folder(two, tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        x = images(2)
        assert largest(loaded((x - MEAN) / STD), logits(two, x)) <= 1e-6
    assert (tmp_path / "model/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_way_leaves_all_files_of_the_former_export(name, tmp_path):
    folder = tmp_path / "model"
    (folder / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"model cannot be written.*{name} is a folder"):
        export_timm_folder(make_source("resnet20_cifar"), folder)
    assert [p.name for p in folder.iterdir()] == [name]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("wrong", [["a"], {"class 0": 3}, {"class 9": "the last"}])
def test_wrong_descriptions_are_named(wrong, tmp_path):
    with pytest.raises(UserError, match="label_descriptions"):
        export_timm_folder(make_source("resnet20_cifar"), tmp_path / "model", wrong)
    assert not list(tmp_path.iterdir())


def test_an_export_waits_for_another_one_into_the_same_folder(tmp_path, caplog):
    folder, source = tmp_path / "model", make_source("resnet20_cifar")
    folder.mkdir()
    held = FileLock(folder / ".lock")
    held.acquire()
    other = threading.Thread(target=export_timm_folder, args=(source, folder))
    other.start()
    while "another export" not in caplog.text and other.is_alive():
        time.sleep(0.01)
    assert [p.name for p in folder.iterdir()] == [".lock"]
    held.release()
    other.join()
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors"}


def test_a_backbone_from_elsewhere_leaves_as_torchscript_alone(tmp_path):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    learn = make_lt_learner(make_dls())
    learn.model = LTModel(backbone, nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"Sequential.*no model of timm"):
        learn.export_timm(tmp_path / "model")
    assert learn.export_torchscript(tmp_path / "model.pt").difference == 0
    with pytest.raises(UserError, match=r"timm cannot load resnet8_cifar"):
        make_lt_learner(make_dls()).export_timm(tmp_path / "model")
    learn.model = nn.Sequential(backbone, nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"LTModel.*Sequential"):
        learn.export_torchscript(tmp_path / "model.pt")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    learn = make_lt_learner(make_dls())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file"):
        learn.export_torchscript(tmp_path / "file/model.pt")
    with pytest.raises(UserError, match=r"file"):
        learn.export_timm(tmp_path / "file/model")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("ltlearn.utils.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxscript.*ltlearn\[onnx\]"):
        make_lt_learner(make_dls()).export_onnx(tmp_path / "model.onnx")


def test_an_export_with_other_logits_is_refused(monkeypatch, tmp_path):
    source = make_source("resnet20_cifar")
    broken = make_source("resnet20_cifar")
    nn.init.ones_(broken.model.head.weight)
    monkeypatch.setattr(
        "ltlearn.exporting.portable.fold_if_possible", lambda head: broken.model.head
    )
    with pytest.raises(UserError, match=r"logits.*differ by"):
        export_torchscript_file(source, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
