"""fastai's `learn.export` and `load_learner` in another process, and exports after each method."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from ltlearn import GLMC, WeightAverage
from ltlearn.exporting.source import source_of_learner
from ltlearn.methods import METHODS
from tests.callbacks.helpers import make_dls, make_images, make_lt_learner
from tests.helpers import ENV

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning")

LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from fastai.learner import load_learner
images = list(np.load(sys.argv[1]))
found = {}
for path in sys.argv[2:]:
    learn = load_learner(path)
    names, probs = learn.predict_batch(images)
    found[path] = [type(learn.model.head).__name__, names, probs.tolist()]
    if "Linear" == type(learn.model.head).__name__:
        learn.export_timm(path + "-timm")
print(json.dumps(found))
"""
NAMES = ("crt", "samn", "lws", "ldam_drw", "max_norm", "tau_norm", "logit_adjustment", "ncm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:load_learner")
def test_load_learner_in_another_process(tmp_path):
    import numpy as np

    images = make_images([1, 1, 1], 16, seed=5)[0]
    np.save(tmp_path / "images.npy", images)
    expected, paths = {}, []

    def export(learn, name):
        learn.path = tmp_path
        learn.export(f"{name}.pkl")
        paths.append(str(tmp_path / f"{name}.pkl"))
        names, probs = learn.predict_batch(list(images))
        expected[paths[-1]] = type(learn.model.head).__name__, names, probs

    learn = make_lt_learner(make_dls(side=16), arch="resnet20_cifar")
    learn.fit_stage1(1, 0.01)
    export(learn, "stage1")
    for method in NAMES:
        epochs = 1 if METHODS[method].kind == "stage 2" else None
        learn.retrain_classifier(epochs, method=method)
        export(learn, method)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "images.npy", *paths],
        env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == expected.keys()
    heads = set()
    for path, (head, names, probs) in expected.items():
        assert found[path][:2] == [head, names]
        assert torch.allclose(torch.tensor(found[path][2]), probs, atol=1e-5)
        heads.add(head)
    assert heads >= {"Linear", "SAMNLinear", "ScaledLinear", "NearestClassMean", "CosineLinear"}


@pytest.mark.parametrize("stage1", ["glmc", "average", "cosine"])
def test_models_of_each_stage_1_are_exported(stage1, tmp_path):
    learn = make_lt_learner(make_dls(side=16), arch="resnet20_cifar", precision="bf16")
    if stage1 == "glmc":
        learn.fit_stage1(1, 0.01, cbs=GLMC())
    elif stage1 == "average":
        learn.fit_stage1(1, 0.01, cbs=WeightAverage(0.9))
    else:
        learn.fit_stage1(1, 0.01)
        learn.retrain_classifier(1, method="ldam_drw")
        assert type(learn.model.head).__name__ == "CosineLinear"
        source = source_of_learner(learn)
        assert source.method == "ldam_drw" and source.prior == learn.assumed_prior
        learn.export_torchscript(tmp_path / "model.pt")
        return
    done = learn.export_timm(tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{done.path}", pretrained=True).eval()
    learn.model.eval()
    x = next(iter(learn.dls.valid))[0]
    with torch.no_grad():
        assert torch.allclose(loaded(x), learn.model(x.contiguous()), atol=1e-4)
