"""The built-in methods, one row each, with their publications.

The rows load nothing: they make losses and callbacks, and import torch and fastai, when called.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ltlearn.methods.base import Method, Sweep
from ltlearn.names import PROBE_STARTS

__all__ = ["BUILT_IN"]


# Publications, as tables print them.
_GLMC = "Du et al., CVPR 2023, arXiv:2305.08661"
_MIXUP = "Zhang et al., ICLR 2018, arXiv:1710.09412"
_CUTMIX = "Yun et al., ICCV 2019, arXiv:1905.04899"
_SAMN = "Zhang, Li, Zhu, CVPR 2026, arXiv:2606.02526"
_CRT = "Kang et al., ICLR 2020, arXiv:1910.09217"
_MISLAS = "Zhong et al., CVPR 2021, arXiv:2104.00466"
_WD = "Alshammari et al., CVPR 2022, arXiv:2203.14197"
_BALMS = "Ren et al., NeurIPS 2020, arXiv:2007.10740"
_LA = "Menon et al., ICLR 2021, arXiv:2007.07314"
_LDAM = "Cao et al., NeurIPS 2019, arXiv:1906.07413"
_CB = "Cui et al., CVPR 2019, arXiv:1901.05555"
_FOCAL = "Lin et al., ICCV 2017, arXiv:1708.02002"
_GUO = "Guo et al., ICML 2017, arXiv:1706.04599"
_SAERENS = "Saerens et al., Neural Computation 14, 2002"
_LIFT = "Shi et al., ICML 2024, arXiv:2309.10019"
_ADAPTFORMER = "Chen et al., NeurIPS 2022, arXiv:2205.13535"
_LORA = "Hu et al., ICLR 2022, arXiv:2106.09685"
_BITFIT = "Ben Zaken et al., ACL 2022, arXiv:2106.10199"
_LAYER_DECAY = "Bao et al., ICLR 2022, arXiv:2106.08254"
_BALPOE = "Sanchez Aimar et al., CVPR 2023, arXiv:2206.05260"
_SADE = "Zhang et al., NeurIPS 2022, arXiv:2107.09249"
_RIDE = "Wang et al., ICLR 2021, arXiv:2010.01809"
_LOS = "Sun et al., ICLR 2025, arXiv:2403.00250"


def _callbacks(*names: str, **kwargs) -> Callable[..., list]:
    def make(**options) -> list:
        callbacks = import_module("ltlearn.callbacks")
        return [getattr(callbacks, n)(**{**kwargs.get(n, {}), **options}) for n in names]

    return make


def _loss(name: str, **kwargs) -> Callable[..., Any]:
    def make(**options):
        return getattr(import_module("ltlearn.losses"), name)(**{**kwargs, **options})

    return make


def _posthoc(name: str, **kwargs) -> Callable[..., Any]:
    def call(*args):
        return getattr(import_module("ltlearn.posthoc.steps"), name)(*args, **kwargs)

    return call


def _stage2(label: str, source: str, values_from: str, **kwargs) -> Method:
    return Method(label, "stage 2", source, values_from, **kwargs)


def _stage1(
    label: str, source: str, values_from: str, callback: str, prior: str, **options
) -> Method:
    return Method(
        label, "stage 1", source, values_from, callbacks=_callbacks(callback),
        callback_options=options, prior=prior,
    )  # fmt: skip


def _stage1_loss(label: str, source: str, values_from: str, loss: str, **kwargs) -> Method:
    options = kwargs.get("loss_options", {})
    return Method(
        f"{label}, stage 1", "stage 1", source, values_from, loss=_loss(loss, **options), **kwargs
    )


def _post_hoc(label: str, source: str, values_from: str, **kwargs) -> Method:
    return Method(label, "post hoc", source, values_from, **kwargs)


# All rows train with batch size 64, so that an epoch of a few hundred images has several steps.
# Learning rates that were published for other batch sizes are scaled in proportion.
_KANG = {"lr": 0.025, "wd": 5e-4}
_KANG_FROM = (
    "{} epochs, learning rate .2 at batch size 512 (here .025 at 64), weight decay 5e-4: the "
    "authors, ImageNet-LT"
)
_REN = {"epochs": 10, "lr": 0.05, "wd": 5e-4}
_REN_FROM = (
    "10 epochs, learning rate .4 at batch size 512 (here .05 at 64), weight decay 5e-4: the "
    "authors, ImageNet-LT"
)
_AS_REN = "own: no published stage 2; trained as balanced softmax"
_SAMN_FROM = "20 epochs, batch size 64, learning rate 5e-4, no weight decay: the authors' code"
_AS_SAMN = "own: {}, all else as SAMN"


def _smoothing(head: float, tail: float) -> dict[str, float]:
    return {"head_smoothing": head, "tail_smoothing": tail}


def _las(head: float, tail: float) -> Callable[..., Any]:
    return _loss("LabelAwareSmoothingLoss", **_smoothing(head, tail))


def _with_smoothing(value: float) -> dict[str, Any]:
    return {"loss": _las(value, 0.0)()}


def _uniform_smoothing(default: float) -> Callable[..., Any]:
    return lambda smoothing=default: _las(smoothing, smoothing)()


_LDAM_VALUES = {"max_margin": 0.5, "scale": 30.0}
_DRW_VALUES = {"beta": 0.9999, "start_pct": 0.8}


def _ldam_callbacks(**options) -> list:
    given = {**_LDAM_VALUES, **_DRW_VALUES, **options}
    deferred = {name: given[name] for name in _DRW_VALUES}
    return [
        *_callbacks("CosineHead")(scale=given["scale"]),
        *_callbacks("DeferredReweighting")(**deferred),
    ]


_LIFT_FROM = (
    "logit-adjusted loss with tau 1, cosine classifier of scale 25 that begins with the class "
    "means: LIFT's paper, which prefers the class names as the start"
)
_BY_RULE = ". 0 for {} takes LIFT's rule by the number of classes"


def _adapted(label: str, source: str, adapt: Callable[..., list], **options: float) -> Method:
    """Return the row of a method that adapts a pre-trained backbone as LIFT does.

    `adapt` makes the callbacks that decide what trains, from the options.
    """
    given = {"scale": 25.0, **options}

    def make(scale=given["scale"], **values) -> list:
        return [*_callbacks("HeadStart")(scale=scale), *adapt(**{**options, **values})]

    rule = "".join(_BY_RULE.format(name) for name, value in options.items() if value == 0)
    return Method(
        label, "stage 1", f"{source}; {_LIFT}", f"{_LIFT_FROM}{rule}",
        loss=_loss("LogitAdjustedLoss"), loss_options={"tau": 1.0}, callbacks=make,
        callback_options=given, head="cosine", pretrained=True,
    )  # fmt: skip


def _by_rule(callback: str, name: str) -> Callable[..., list]:
    """Return a function that makes a callback with a whole number; 0 takes the callback's rule."""

    def make(**options) -> list:
        value = options[name]
        # A recipe may hold the number as 4.0.
        value = int(value) if value == int(value) else value
        return _callbacks(callback)(**{name: value or None})

    return make


def _balpoe_callbacks(alpha: float = 0.3, scale: float = 30.0) -> list:
    return [*_callbacks("Experts")(scale=scale), *_callbacks("BatchMixUp")(alpha=alpha)]


def _expert(number: int, prior: str) -> Method:
    return _post_hoc(
        f"expert {number}", _RIDE, "nothing to set", prior=prior, head="experts",
        apply=_posthoc("apply_expert", expert=number),
    )  # fmt: skip


BUILT_IN: dict[str, Method] = {
    "ce": Method("CE", "stage 1", "cross-entropy, the classifier of stage 1", prior="train"),
    "probe": Method(
        "linear probe", "stage 1", "cross-entropy of a linear classifier on frozen features",
        "own: 20 epochs, learning rate 4 at batch size 64 on features that are scaled to mean 0 "
        "and a mean squared length of 1, weight decay 3e-6",
        prior="train", trains="head", pretrained=True, choices={"start": PROBE_STARTS},
        values={"epochs": 20, "lr": 4.0, "wd": 3e-6},
    ),
    "mixup": _stage1(
        "MixUp", _MIXUP, "alpha .2: MiSLAS on ImageNet-LT, Places-LT and iNaturalist 2018; 1 on "
        "CIFAR-LT", "BatchMixUp", "train", alpha=0.2,
    ),
    "cutmix": _stage1(
        "CutMix", _CUTMIX, "alpha 1: the authors", "BatchCutMix", "train", alpha=1.0
    ),
    "glmc": _stage1(
        "GLMC", _GLMC, "resample 0, reweight 1.2, contrast 1: the authors on CIFAR-10-LT 100 and "
        "50; their values for other sets are in the recipes", "GLMC", "uniform",
        resample=0.0, reweight=1.2, contrast=1.0,
    ),
    "ldam_drw_stage1": _stage1_loss(
        "LDAM-DRW", _LDAM,
        "margin .5, scale 30, beta .9999 from 80 % of the epochs: the authors' code", "LDAMLoss",
        loss_options=_LDAM_VALUES, callbacks=_ldam_callbacks,
        callback_options={"scale": _LDAM_VALUES["scale"], **_DRW_VALUES}, head="cosine",
    ),
    "balanced_softmax_stage1": _stage1_loss(
        "balanced softmax", _BALMS, "nothing to set", "BalancedSoftmaxLoss"
    ),
    "logit_adjusted_stage1": _stage1_loss(
        "logit-adjusted loss", _LA, "tau 1: the authors", "LogitAdjustedLoss",
        loss_options={"tau": 1.0},
    ),
    "class_balanced_stage1": _stage1_loss(
        "class-balanced CE", _CB, "beta .9999: the authors, CIFAR-10-LT", "ClassBalancedLoss",
        loss_options={"beta": 0.9999},
    ),
    "class_balanced_focal_stage1": _stage1_loss(
        "class-balanced focal", f"{_CB}; {_FOCAL}",
        "sigmoid form, beta .9999, gamma 1: BagofTricks-LT, CIFAR-10-LT 100", "SigmoidFocalLoss",
        loss_options={"beta": 0.9999, "gamma": 1.0},
    ),
    "focal_stage1": _stage1_loss(
        "focal", _FOCAL, "softmax form, gamma 1: LDAM's code", "SoftmaxFocalLoss",
        loss_options={"gamma": 1.0}, prior="train",
    ),
    "adaptformer": _adapted(
        "AdaptFormer", _ADAPTFORMER, _by_rule("AdaptFormer", "bottleneck"), bottleneck=0
    ),
    "lora": _adapted("LoRA", _LORA, _by_rule("LoRA", "rank"), rank=0),
    "bitfit": _adapted("BitFit", _BITFIT, _callbacks("BitFit")),
    "full": _adapted("full fine-tuning", _LAYER_DECAY, _callbacks("LayerDecay"), layer_decay=0.75),
    "last_block": _adapted("last block", _CRT, _callbacks("LastBlock")),
    "balpoe": Method(
        "BalPoE", "stage 1", _BALPOE,
        "tau 1, scale 30: the authors' code, CIFAR-LT; MixUp .3: the same, ImageNet-LT",
        loss=_loss("BalPoELoss"), loss_options={"tau": 1.0},
        callbacks=_balpoe_callbacks, callback_options={"alpha": 0.3, "scale": 30.0},
        head="experts",
    ),
    "sade": Method(
        "SADE", "stage 1", _SADE, "tau 2, scale 30: the authors' code",
        loss=_loss("SADELoss"), loss_options={"tau": 2.0},
        callbacks=_callbacks("Experts"), callback_options={"scale": 30.0}, head="experts",
    ),
    # The experts of a stage 1, one by one: cross-entropy, equally frequent classes, rare classes.
    "expert_1": _expert(1, prior="train"),
    "expert_2": _expert(2, prior="uniform"),
    "expert_3": _expert(3, prior="uniform"),
    "crt": _stage2(
        "cRT", _CRT, _KANG_FROM.format(10),
        sampler="class_balanced", reset=True, values={"epochs": 10, **_KANG},
    ),
    "lws": _stage2(
        "LWS", _CRT, _KANG_FROM.format(5),
        sampler="class_balanced", callbacks=_callbacks("LearnableWeightScaling"),
        values={"epochs": 5, **_KANG},
    ),
    "tau_norm": _post_hoc(
        "tau-norm", _CRT,
        "tau chosen on validation images from 0, .1, ..., 2: the authors' code; bias kept: "
        "BagofTricks-LT, with tau 1",
        apply=_posthoc("apply_tau_norm"), choose=_posthoc("choose_tau_norm"),
    ),
    "tau_norm_no_bias": _post_hoc(
        "tau-norm without bias", _CRT,
        "tau chosen on validation images from 0, .1, ..., 2; no bias: the authors' code",
        apply=_posthoc("apply_tau_norm", keep_bias=False),
        choose=_posthoc("choose_tau_norm", keep_bias=False),
    ),
    "ncm": _post_hoc(
        "NCM", _CRT, "centred features of length 1: the authors' code",
        apply=_posthoc("apply_nearest_mean"), uses_features_only=True,
    ),
    "logit_adjustment": _post_hoc(
        "logit adjustment", _LA,
        "own: tau chosen on validation images from 0, .1, ..., 2; the authors take 1",
        apply=_posthoc("apply_logit_adjustment"), choose=_posthoc("choose_logit_adjustment"),
    ),
    "prior_matching": _post_hoc(
        "prior matching", f"{_LA}; {_SAERENS}",
        "own: shifts found on validation images, monotone in the class frequency",
        apply=_posthoc("apply_prior_matching"), uses_validation=True,
    ),
    "temperature": _post_hoc(
        "temperature", _GUO, "chosen on validation images by their NLL", prior="stage 1",
        apply=_posthoc("apply_temperature"), choose=_posthoc("choose_temperature"),
        strength="temperature",
    ),
    "class_balanced": _stage2(
        "class-balanced CE", _CB, f"beta .9999: the authors. {_AS_REN}",
        loss=_loss("ClassBalancedLoss"), reset=True, values=_REN,
    ),
    "focal": _stage2(
        "focal", _FOCAL, f"softmax form, gamma 1: LDAM's code. {_AS_REN}",
        loss=_loss("SoftmaxFocalLoss"), reset=True, values=_REN, prior="train",
    ),
    "balanced_softmax": _stage2(
        "balanced softmax", _BALMS, _REN_FROM,
        loss=_loss("BalancedSoftmaxLoss"), reset=True, values=_REN,
    ),
    "ldam_drw": _stage2(
        "LDAM-DRW", _LDAM,
        f"margin .5, scale 30, beta .9999 from 80 % of the epochs: the authors. {_AS_REN}",
        loss=_loss("LDAMLoss"), callbacks=_callbacks("CosineHead", "DeferredReweighting"),
        values=_REN, head="cosine",
    ),
    "label_aware_smoothing": _stage2(
        "SLAS", _MISLAS,
        "smoothing .3 to 0; weights, bias and scales trained; 20 epochs, learning rate 5e-4: "
        "SAMN's code, CIFAR-10-LT 100",
        loss=_las(0.3, 0.0), loss_options=_smoothing(0.3, 0.0),
        callbacks=_callbacks("LearnableWeightScaling", LearnableWeightScaling={"train": "all"}),
        sweep=Sweep(
            "smoothing of the most frequent class",
            (1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9), 0.3,
            _with_smoothing,
        ),
    ),
    "mislas": _stage2(
        "MiSLAS, stage 2", _MISLAS,
        "10 epochs, batch size 128, learning rate .1 for the scales and .01 for weights and bias, "
        "weight decay 2e-4, smoothing .3 to 0: the authors, CIFAR-100-LT 50",
        sampler="class_balanced", loss=_las(0.3, 0.0),
        loss_options=_smoothing(0.3, 0.0), callback_options={"head_lr_factor": 0.1},
        callbacks=_callbacks(
            "LearnableWeightScaling",
            LearnableWeightScaling={"train": "all", "head_lr_factor": 0.1},
        ),
        values={"epochs": 10, "bs": 128, "lr": 0.1, "wd": 2e-4},
    ),
    "los": _stage2(
        "LOS", _LOS,
        "smoothing .98, new classifier, 20 epochs, batch size 64, learning rate 5e-4, no weight "
        "decay: the authors' code, CIFAR-100-LT",
        loss=_uniform_smoothing(0.98), loss_options={"smoothing": 0.98}, reset=True,
    ),
    "max_norm": _stage2(
        "WD + MaxNorm", _WD,
        "10 epochs, learning rate .01, weight decay .1, class-balanced BCE, limit at a tenth of "
        "the range of the norms: the authors, CIFAR-100-LT 100",
        loss=_loss("ClassBalancedBCELoss"), callbacks=_callbacks("MaxNorm"),
        values={"epochs": 10, "lr": 0.01, "wd": 0.1},
        sweep=Sweep(
            "weight decay", (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0), 0.1,
            lambda value: {"wd": value},
        ),
    ),
    "samn": _stage2("CE + SAMN", _SAMN, _SAMN_FROM, callbacks=_callbacks("SAMN")),
    "slas_samn": _stage2(
        "SLAS + SAMN", _SAMN, f"smoothing .01 to 0 (CIFAR-100; .3 to .1 on CIFAR-10). {_SAMN_FROM}",
        loss=_las(0.01, 0.0), callbacks=_callbacks("SAMN"), loss_options=_smoothing(0.01, 0.0),
    ),
    "samn_logit_adjusted": _stage2(
        "SAMN, logit-adjusted loss", f"{_SAMN}; {_LA}", _AS_SAMN.format("loss with tau 1"),
        loss=_loss("LogitAdjustedLoss"), callbacks=_callbacks("SAMN"),
    ),
    "samn_from_stage1": _stage2(
        "SAMN from stage 1", f"{_SAMN}; {_LA}",
        _AS_SAMN.format("starts at the norms of stage 1, loss with tau 1"),
        loss=_loss("LogitAdjustedLoss"), callbacks=_callbacks("SAMN", SAMN={"start": "stage1"}),
    ),
    "samn_smoothed_adjusted": _stage2(
        "SAMN, smoothed, adjusted", f"{_SAMN}; {_MISLAS}; {_LA}",
        "own: 10 epochs, learning rate .005, smoothing .3 to 0, then logit adjustment, tau chosen "
        "on validation images",
        loss=_las(0.3, 0.0), callbacks=_callbacks("SAMN"),
        values={"epochs": 10, "lr": 0.005}, post="logit_adjustment",
    ),
    "glmc_samn": _stage2(
        "GLMC + SAMN", f"{_SAMN}; {_GLMC}",
        "20 epochs, batch size 64, learning rate 5e-5, no weight decay: the authors' code",
        callbacks=_callbacks("SAMN"), values={"lr": 5e-5}, after="glmc",
    ),
}  # fmt: skip
