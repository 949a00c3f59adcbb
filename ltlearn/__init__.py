"""Long-tailed image recognition: decoupled training with SAMN on any timm backbone.

The names below load on first use, so that `from ltlearn import SAMNLinear, pava` costs a plain
PyTorch user neither fastai nor timm.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

# public name -> the module that defines it
_LAZY = {
    "pava": "ltlearn.isotonic",
    "SAMNLinear": "ltlearn.heads.samn",
    "ScaledLinear": "ltlearn.heads.scaled",
    "CosineLinear": "ltlearn.heads.cosine",
    "SAMN": "ltlearn.callbacks",
    "MaxNorm": "ltlearn.callbacks",
    "LearnableWeightScaling": "ltlearn.callbacks",
    "DeferredReweighting": "ltlearn.callbacks",
    "CosineHead": "ltlearn.callbacks",
    "GLMC": "ltlearn.callbacks",
    "BatchMixUp": "ltlearn.callbacks",
    "BatchCutMix": "ltlearn.callbacks",
    "SharpnessAware": "ltlearn.callbacks",
    "WeightAverage": "ltlearn.callbacks",
    "LastBlock": "ltlearn.callbacks",
    "Checkpoint": "ltlearn.training.checkpoint",
    "FiniteLoss": "ltlearn.training.finite",
    "LTDataLoaders": "ltlearn.data.loaders",
    "InstanceSampler": "ltlearn.data",
    "ClassBalancedSampler": "ltlearn.data",
    "SquareRootSampler": "ltlearn.data",
    "ProgressiveSampler": "ltlearn.data",
    "FeatureBank": "ltlearn.training.features",
    "LTLearner": "ltlearn.learner",
    "lt_learner": "ltlearn.learner",
    "shot_report": "ltlearn.metrics.report",
    "ShotReport": "ltlearn.metrics.report",
    "UserError": "ltlearn.errors",
}

__all__ = ["__version__", *_LAZY]  # noqa: F822


def __getattr__(name: str):
    if name == "__version__":
        value = _version()
    elif name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'ltlearn' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ltlearn")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"


def __dir__():
    return sorted(__all__)


class _AfterTimm:
    """Registers the CIFAR ResNets at the moment that timm has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module) -> None:
                run(module)
                import_module("ltlearn.models.cifar_resnet")

            spec.loader.exec_module = run_and_register
        return spec


# `timm.create_model("resnet32_cifar")` works from the moment that both ltlearn and timm are
# imported, in either order; importing ltlearn alone does not import timm, which takes seconds.
if "timm" in sys.modules:
    import_module("ltlearn.models.cifar_resnet")
else:
    sys.meta_path.insert(0, _AfterTimm())
