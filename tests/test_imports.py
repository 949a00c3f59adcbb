"""What an import loads, step by step, in two processes for all: importing fastai takes seconds."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ENV

# What each step runs, and which modules are not loaded after it.
LIGHT = {
    "help": (
        "from ltlearn.cli.app import app\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['recipe', '--help']).exit_code == 0",
        ["torch", "fastai", "timm", "numpy", "ltlearn.methods"],
    ),
    "settings": ("import ltlearn.utils.settings", ["torch", "fastai", "fastcore"]),
    "environment": (
        "import ltlearn.utils.run_folder\n"
        "from ltlearn.utils.environment import environment_info\n"
        "environment_info()",
        ["torch", "numpy", "fastai", "matplotlib"],
    ),
    "recipes": (
        "from ltlearn.experiments.read_recipe import load_recipe, recipe_names\n"
        "recipes = [load_recipe(name) for name in recipe_names()]\n"
        "from ltlearn.utils.terminal import render_recipes\n"
        "render_recipes(recipes)",
        ["torch"],
    ),
}
TENSORS = {
    "tables": (
        "import ltlearn.plots.style, ltlearn.reporting.table",
        ["matplotlib", "rich", "fastai", "timm"],
    ),
    "heads": (
        "from ltlearn import CosineLinear, SAMNLinear, ScaledLinear, pava\n"
        "import ltlearn.heads.registry\n"
        "assert 'torch' in sys.modules",
        ["fastai", "fastcore", "timm", "albumentations", "matplotlib", "pandas", "numba"],
    ),
    "corrections": (
        "import ltlearn.posthoc.choose, ltlearn.metrics.priors, ltlearn.metrics.paired",
        ["fastai", "fastcore", "timm", "matplotlib", "pandas"],
    ),
    "plots": (
        "ltlearn.plots.classes.plot_class_counts([3, 4]).draw_without_rendering()",
        ["matplotlib.pyplot"],
    ),
    "models": (
        "import timm\n"
        "assert not timm.is_model('resnet32_cifar')\n"
        "import ltlearn.models.cifar_resnet\n"
        "model = timm.create_model('resnet32_cifar', width=4, num_classes=3)\n"
        "assert type(model).__name__ == 'CifarResNet'",
        [],
    ),
    # The helpers of other tests import fastai's schedules; here the learner alone brings them.
    "learner": (
        "assert not hasattr(sys.modules.get('fastai.learner'), 'Learner')\n"
        "import warnings\n"
        "assert 'fastai.layers' not in sys.modules\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    ltlearn.lt_learner\n"
        "assert not any('jit.script' in str(w.message) for w in seen), seen\n"
        "for name in ('lr_find', 'fit_one_cycle', 'fit_flat_cos'):\n"
        "    getattr(ltlearn.LTLearner, name)",
        ["numba"],
    ),
}
RUNNER = """if True:
    import json, sys, traceback
    sys.stdout, out = sys.stderr, sys.stdout
    results, space = {}, {'sys': sys}
    for name, (code, absent) in json.loads(sys.argv[1]).items():
        try:
            exec(code, space)
        except BaseException:
            results[name] = traceback.format_exc()
        else:
            results[name] = sorted(set(absent) & set(sys.modules))
    json.dump(results, out)
"""


@pytest.fixture(scope="module")
def loaded():
    results = {}
    for steps in (LIGHT, TENSORS):
        words = [sys.executable, "-W", "ignore", "-c", RUNNER, json.dumps(steps)]
        done = subprocess.run(words, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results |= json.loads(done.stdout)
    return results


@pytest.mark.parametrize("step", [*LIGHT, *TENSORS])
def test_an_import_loads_no_more_than_it_needs(loaded, step):
    assert loaded[step] == []
