"""The one table of methods, which the command line, the recipes and the tests read."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ltlearn.errors import UserError

__all__ = [
    "LARGEST_SCALED_BATCH",
    "METHODS",
    "STAGE1",
    "Method",
    "Sweep",
    "find_method",
    "find_methods",
    "prior_of",
    "usual_rate",
]

KINDS = ("stage 1", "stage 2", "post hoc")
_LOSS_OPTIONS = ("head_smoothing", "tail_smoothing")

# Where values are from, in the words that a table prints.
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


def _callbacks(*names: str, **kwargs) -> Callable[[], list]:
    """Make callbacks when they are asked for: they need fastai, which the table does not."""

    def make(**options) -> list:
        import ltlearn.callbacks as callbacks

        return [getattr(callbacks, n)(**{**kwargs.get(n, {}), **options}) for n in names]

    return make


def _loss(name: str, **kwargs) -> Callable[[], Any]:
    def make(**options):
        import ltlearn.losses as losses

        return getattr(losses, name)(**{**kwargs, **options})

    return make


@dataclass(frozen=True)
class Sweep:
    """A method's own hyper-parameter, over the range that was published.

    Args:
        parameter: Its name, as an axis prints it.
        values: What to try, ascending.
        default: The method's own value.
        arguments: Turns a value into arguments of `retrain_classifier`.
        log: Whether the axis is logarithmic.
    """

    parameter: str
    values: tuple[float, ...]
    default: float
    arguments: Callable[[float], dict[str, Any]]
    log: bool = True


@dataclass(frozen=True)
class Method:
    """A way to get from a finished stage 1 to a classifier.

    Args:
        label: What a table prints.
        kind: "stage 1": the classifier of stage 1 as it is. "stage 2": a classifier retrained on
            the frozen backbone. "post hoc": a correction without training.
        source: Who published it.
        values_from: Where the training values are from.
        sampler: Sampler of stage 2.
        loss: Makes the loss of stage 2; None is cross-entropy.
        callbacks: Makes the callbacks of stage 2; those of stage 1, of a method of that.
        reset: Whether stage 2 begins with a new classifier.
        values: Other arguments of `retrain_classifier`. What is not there is SAMN's: 20 epochs,
            batches of 64, a learning rate of 5e-4 that falls along a cosine, no weight decay.
        post: A post-hoc method that comes after stage 2, by its name.
        sweep: The method's own hyper-parameter and its published range.
        prior: The class prior that its logits assume: "train", the training frequencies,
            "uniform", or "stage 1", that of the stage 1 it comes after; see `prior_of`.
        after: The method of stage 1 that it was published for, by its name; None goes with any.
        options: What its loss (the smoothings) and its callbacks (the rest) may be given, with what
            they have if they are not.
    """

    label: str
    kind: str
    source: str
    values_from: str = ""
    sampler: str = "instance"
    loss: Callable[..., Any] | None = None
    callbacks: Callable[..., list] = field(default=list)
    reset: bool = False
    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    post: str | None = None
    sweep: Sweep | None = None
    prior: str = "uniform"
    after: str | None = None
    options: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def stage(self) -> int:
        """Return 1 for the classifier of stage 1, 2 for all that comes after it."""
        return 1 if self.kind == "stage 1" else 2

    def arguments(self, **options: float) -> dict[str, Any]:
        """Spell the method out as arguments of `retrain_classifier`.

        Args:
            **options: Those of its options that are to have another value.

        Raises:
            UserError: If it has no such option.
        """
        for name in options:
            if name not in self.options:
                there = ", ".join(self.options) or "none"
                raise UserError(f"{self.label} has no option {name!r}; there is {there}.")
        of_loss = {k: v for k, v in options.items() if k in _LOSS_OPTIONS}
        of_callbacks = {k: v for k, v in options.items() if k not in _LOSS_OPTIONS}
        return {
            "sampler": self.sampler,
            "loss": self.loss(**of_loss) if self.loss is not None else None,
            "reset": self.reset,
            "cbs": self.callbacks(**of_callbacks),
            **self.values,
        }


def _stage2(label: str, source: str, values_from: str, **kwargs) -> Method:
    for key in ("values", "options"):
        kwargs[key] = MappingProxyType(kwargs.get(key, {}))
    return Method(label, "stage 2", source, values_from, **kwargs)


def _stage1(label: str, source: str, callback: str, **options) -> Method:
    prior = "uniform" if callback == "GLMC" else "train"
    makes, options = _callbacks(callback), MappingProxyType(options)
    return Method(label, "stage 1", source, callbacks=makes, options=options, prior=prior)


def _post_hoc(label: str, source: str, values_from: str, **kwargs) -> Method:
    return Method(label, "post hoc", source, values_from, **kwargs)


# Batches of 64 everywhere, so that a set of some hundred images takes more than a step an epoch:
# published rates at other sizes are scaled in proportion.
_KANG = {"lr": 0.025, "wd": 5e-4}
_KANG_FROM = "{} epochs, rate .2 at 512 (here .025 at 64), decay 5e-4: the authors, ImageNet-LT"
_REN = {"epochs": 10, "lr": 0.05, "wd": 5e-4}
_REN_FROM = "10 epochs, rate .4 at 512 (here .05 at 64), decay 5e-4: the authors, ImageNet-LT"
_AS_REN = "own: no published stage 2; trained as balanced softmax"
_SAMN_FROM = "20 epochs, batch 64, rate 5e-4, no decay: the authors' code"
_AS_SAMN = "own: {}, all else as SAMN"


def _smoothing(head: float, tail: float) -> dict[str, float]:
    return {"head_smoothing": head, "tail_smoothing": tail}


def _las(head: float, tail: float) -> Callable[..., Any]:
    return _loss("LabelAwareSmoothingLoss", **_smoothing(head, tail))


def _with_smoothing(value: float) -> dict[str, Any]:
    return {"loss": _las(value, 0.0)()}


METHODS: dict[str, Method] = {
    "ce": Method("CE", "stage 1", "cross-entropy, the classifier of stage 1", prior="train"),
    "mixup": _stage1("MixUp", _MIXUP, "BatchMixUp", alpha=0.2),
    "cutmix": _stage1("CutMix", _CUTMIX, "BatchCutMix", alpha=1.0),
    "glmc": _stage1("GLMC", _GLMC, "GLMC", resample=0.0, reweight=1.2, contrast=1.0),
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
        "tau chosen on validation images from 0, .1, ..., 2; bias kept: BagofTricks-LT",
    ),
    "tau_norm_no_bias": _post_hoc(
        "tau-norm without bias", _CRT,
        "tau chosen on validation images from 0, .1, ..., 2; no bias: the authors' code",
    ),
    "ncm": _post_hoc("NCM", _CRT, "centred features of length 1: the authors' code"),
    "logit_adjustment": _post_hoc(
        "logit adjustment", _LA, "tau chosen on validation images from 0, .1, ..., 2"
    ),
    "temperature": _post_hoc(
        "temperature", _GUO, "chosen on validation images by their NLL", prior="stage 1"
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
        values=_REN,
    ),
    "label_aware_smoothing": _stage2(
        "SLAS", _MISLAS,
        "smoothing .3 to 0, W, b and scales trained, 20 epochs, rate 5e-4: SAMN's code, "
        "CIFAR-10-LT 100",
        loss=_las(0.3, 0.0), options=_smoothing(0.3, 0.0),
        callbacks=_callbacks("LearnableWeightScaling", LearnableWeightScaling={"train": "all"}),
        sweep=Sweep(
            "smoothing of the most frequent class",
            (1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9), 0.3,
            _with_smoothing,
        ),
    ),
    "mislas": _stage2(
        "MiSLAS, stage 2", _MISLAS,
        "10 epochs, batch 128, scales at rate .1, W and b at a tenth of it, decay 2e-4, smoothing "
        ".3 to 0: the authors, CIFAR-100-LT 50",
        sampler="class_balanced", loss=_las(0.3, 0.0),
        options={**_smoothing(0.3, 0.0), "head_lr_factor": 0.1},
        callbacks=_callbacks(
            "LearnableWeightScaling",
            LearnableWeightScaling={"train": "all", "head_lr_factor": 0.1},
        ),
        values={"epochs": 10, "bs": 128, "lr": 0.1, "wd": 2e-4},
    ),
    "max_norm": _stage2(
        "WD + MaxNorm", _WD,
        "10 epochs, rate .01, decay .1, class-balanced BCE, ball at a tenth of the span: the "
        "authors, CIFAR-100-LT 100",
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
        loss=_las(0.01, 0.0), callbacks=_callbacks("SAMN"), options=_smoothing(0.01, 0.0),
    ),
    "samn_start": _stage2(
        "SAMN's start", _SAMN, _AS_SAMN.format("no epoch"),
        callbacks=_callbacks("SAMN"), values={"epochs": 0},
    ),
    "samn_start_adjusted": _stage2(
        "SAMN's start, adjusted", f"{_SAMN}; {_LA}",
        _AS_SAMN.format("no epoch, then logit adjustment, tau chosen on validation images"),
        callbacks=_callbacks("SAMN"), values={"epochs": 0}, post="logit_adjustment",
    ),
    "samn_logit_adjusted": _stage2(
        "SAMN, logit-adjusted loss", f"{_SAMN}; {_LA}", _AS_SAMN.format("loss with tau 1"),
        loss=_loss("LogitAdjustedLoss"), callbacks=_callbacks("SAMN"),
    ),
    "samn_class_balanced": _stage2(
        "SAMN, class-balanced", f"{_SAMN}; {_CRT}", _AS_SAMN.format("class-balanced sampler"),
        sampler="class_balanced", callbacks=_callbacks("SAMN"),
    ),
    "samn_class_balanced_adjusted": _stage2(
        "SAMN, class-balanced, adjusted", f"{_SAMN}; {_CRT}; {_LA}",
        "own: 10 epochs, rate .025, class-balanced sampler, then logit adjustment, tau chosen on "
        "validation images",
        sampler="class_balanced", callbacks=_callbacks("SAMN"),
        values={"epochs": 10, "lr": 0.025}, post="logit_adjustment",
    ),
    "samn_smoothed_adjusted": _stage2(
        "SAMN, smoothed, adjusted", f"{_SAMN}; {_MISLAS}; {_LA}",
        "own: 10 epochs, rate .005, smoothing .3 to 0, then logit adjustment, tau chosen on "
        "validation images",
        loss=_las(0.3, 0.0), callbacks=_callbacks("SAMN"),
        values={"epochs": 10, "lr": 0.005}, post="logit_adjustment",
    ),
    "samn_small_lr": _stage2(
        "SAMN, rate 5e-5", _SAMN, "rate 5e-5: the authors' code, GLMC variant",
        callbacks=_callbacks("SAMN"), values={"lr": 5e-5},
    ),
    "glmc_samn": _stage2(
        "GLMC + SAMN", f"{_SAMN}; {_GLMC}",
        "20 epochs, batch 64, rate 5e-5, no decay: the authors' code",
        callbacks=_callbacks("SAMN"), values={"lr": 5e-5}, after="glmc",
    ),
}  # fmt: skip


LARGEST_SCALED_BATCH = 1024  # images up to which the rate grows; beyond, training diverges


def usual_rate(batch: int, pretrained: bool) -> float:
    """Return the rate of stage 1 where none is given: 0.1 a 256 images, from random weights.

    It is a tenth of that from pre-trained ones, and does not grow beyond batches of 1024.

    Args:
        batch: Images a batch.
        pretrained: Whether the weights are pre-trained.
    """
    scaled = min(max(batch, 1), LARGEST_SCALED_BATCH)
    return float(f"{0.1 * scaled / 256 * (0.1 if pretrained else 1):.6g}")


def find_method(name: str) -> Method:
    """Return the method of that name; an unknown one is a `UserError` that suggests close names."""
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there is {', '.join(METHODS)}."
        raise UserError(f"there is no method {name!r}; {hint}")
    return METHODS[name]


STAGE1 = tuple(name for name, method in METHODS.items() if method.kind == "stage 1")


def find_methods(names, stage1: str | None = None) -> list[str]:
    """Check a list of names, or a string of them between commas. No name twice.

    Args:
        names: What is asked for; None is all that goes with the stage 1.
        stage1: The method of stage 1, by its name; None is any.

    Raises:
        UserError: If a name is unknown, or its method belongs to another stage 1.
    """
    if names is None:
        return [name for name in METHODS if stage1 is None or _stage1_of(name) in (None, stage1)]
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"give a method or more: {', '.join(METHODS)}.")
    for name in names:
        find_method(name)
        wanted = _stage1_of(name)
        if stage1 is not None and wanted not in (None, stage1):
            raise UserError(
                f"the method {name} is for a stage 1 of {METHODS[wanted].label}, and this one is "
                f"{METHODS[stage1].label}; leave it out, or train stage 1 with {wanted}."
            )
    return names


def prior_of(name: str, stage1: str = "ce") -> str:
    """Return the class prior that a method's logits assume: "train" or "uniform".

    Args:
        name: The method.
        stage1: The method of the stage 1 it comes after.
    """
    prior = find_method(name).prior
    return METHODS[stage1].prior if prior == "stage 1" else prior


def _stage1_of(name: str) -> str | None:
    """Return the method of stage 1 that a method needs; None where any will do."""
    return name if METHODS[name].kind == "stage 1" else METHODS[name].after
