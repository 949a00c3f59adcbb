"""Long-tailed image recognition: decoupled training with SAMN on any timm backbone.

The names load on first use, so that `from ltlearn import SAMNLinear, pava` imports neither fastai
nor timm. `import ltlearn.models.cifar_resnet` registers the CIFAR ResNets with timm; `lt_learner`
does so by itself.
"""

import warnings
from contextlib import contextmanager
from importlib import import_module

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
    "HeadStart": "ltlearn.callbacks",
    "Experts": "ltlearn.callbacks",
    "GLMC": "ltlearn.callbacks",
    "BatchMixUp": "ltlearn.callbacks",
    "BatchCutMix": "ltlearn.callbacks",
    "SharpnessAware": "ltlearn.callbacks",
    "WeightAverage": "ltlearn.callbacks",
    "LastBlock": "ltlearn.callbacks",
    "LayerDecay": "ltlearn.callbacks",
    "AdaptFormer": "ltlearn.callbacks",
    "LoRA": "ltlearn.callbacks",
    "BitFit": "ltlearn.callbacks",
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
    "LTInterpretation": "ltlearn.interpretation",
    "Method": "ltlearn.methods",
    "Sweep": "ltlearn.methods",
    "register_method": "ltlearn.methods",
    "register_head": "ltlearn.heads",
    "shot_report": "ltlearn.metrics.report",
    "ShotReport": "ltlearn.metrics.report",
    "UserError": "ltlearn.errors",
}

__all__ = ["__version__", *_LAZY]  # noqa: F822


def __getattr__(name: str):
    if name == "__version__":
        value = _version()
    elif name in _LAZY:
        with _without_warning_of_fastai():
            value = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'ltlearn' has no attribute {name!r}")
    globals()[name] = value
    return value


@contextmanager
def _without_warning_of_fastai():
    """Ignore the warning that fastai's import raises about its own use of `torch.jit.script`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated", FutureWarning)
        yield


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ltlearn")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"


def __dir__():
    return sorted(__all__)
