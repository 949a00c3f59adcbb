"""Training a small part of a pre-trained trunk, as fastai callbacks."""

import logging
from collections.abc import Iterable

import torch
from torch import nn

from ltlearn.callbacks.install import add_parameters
from ltlearn.errors import UserError, check_whole
from ltlearn.models.adapters import ADAPTFORMER, LORA, AdapterKind
from ltlearn.models.backbone import find_head, is_adapter_tensor
from ltlearn.training.fit_callback import FitCallback
from ltlearn.training.freezing import Flags, freeze, unfreeze

__all__ = ["AdaptFormer", "BitFit", "LoRA"]

_log = logging.getLogger("ltlearn")
_OTHERS = "train it with BitFit, LastBlock or LayerDecay (methods bitfit, last_block, full)"


class _PartOfTrunk(FitCallback):
    """Freeze all of the trunk but a part."""

    # Before callbacks that install a head: a refusal then leaves the head as it was.
    order = 4
    keeps_trunk = True  # a checkpoint leaves out the frozen weights
    trained_parameters_: int | None = None
    _flags: Flags = []  # replaced, not changed

    def begin(self) -> None:
        """Freeze all of the backbone but the part that trains."""
        model = self.learn.model
        if getattr(model, "backbone", None) is None:
            raise UserError(
                f"{type(self).__name__} needs a model with a backbone; make one with lt_learner."
            )
        self.install(self.learn)
        self._flags = freeze(model.backbone, but=self._part(model.backbone))
        self.trained_parameters_ = None

    def install(self, learn) -> None:
        """Add what the learner's backbone lacks.

        Args:
            learn: A fastai Learner of a model with a backbone. Its optimiser, if it has one, gets
                the new parameters.
        """

    def before_train(self):
        """Put the trunk in evaluation mode, and count what trains in the first epoch."""
        if self.trained_parameters_ is None:
            self._count()
        backbone = self.learn.model.backbone
        backbone.eval()
        # The module itself alone: in evaluation mode it would not be compiled.
        backbone.training = True

    def end(self) -> None:
        """Restore which parameters train."""
        unfreeze(self._flags)
        self._flags = []

    def _count(self) -> None:
        parameters = list(self.learn.model.parameters())
        total = sum(p.numel() for p in parameters)
        self.trained_parameters_ = count = sum(p.numel() for p in parameters if p.requires_grad)
        _log.info(
            "%s and the head train: %s of %s parameters, %.2f %%",
            self.trained_part, f"{count:,}", f"{total:,}", 100 * count / total,
        )  # fmt: skip

    def _part(self, backbone: nn.Module) -> Iterable[nn.Parameter]:
        raise NotImplementedError


class _Adapters(_PartOfTrunk):
    """Train adapters of one kind."""

    trained_part = "adapters"
    _kind: AdapterKind

    def _set(self, size: int | None, seed: int) -> None:
        if size is not None:
            check_whole(self._kind.size_name, size, 1)
        check_whole("seed", seed, 0)
        self.seed = seed

    @property
    def _size(self) -> int | None:
        return getattr(self, self._kind.size_name)

    def install(self, learn) -> None:
        """Give each block an adapter, unless the blocks have them already.

        Args:
            learn: A fastai Learner of a model with a backbone. Its optimiser, if it has one, gets
                the new parameters.

        Raises:
            UserError: If the backbone has no such blocks.
        """
        kind, backbone, name = self._kind, learn.model.backbone, type(self).__name__
        sites = kind.sites(backbone)
        if not sites:
            raise UserError(
                f"{name} needs {self._needs}, and the backbone ({type(backbone).__name__}) has "
                f"none; {_OTHERS}."
            )
        old = {size for site in sites.values() if (size := kind.size(site))}
        if old and self._size not in (None, *old):
            _log.warning(
                "the model keeps the adapters it already has, with %s=%d", kind.size_name, max(old)
            )
        size = max(old, default=0) or self._size
        size = size or kind.rule(find_head(learn.model)[1].out_features, len(sites))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for site in sites.values():
                if not kind.size(site):
                    before = list(site.parameters())
                    kind.add(site, size)
                    if learn.opt is not None:
                        add_parameters(learn.opt, site.parameters(), beside=before)

    def _part(self, backbone: nn.Module) -> list[nn.Parameter]:
        return [p for n, p in backbone.named_parameters() if is_adapter_tensor(n)]


class AdaptFormer(_Adapters):
    """Train a bottleneck branch beside the MLP of each block, and the head.

    In each block, out = x + MLP(LN x) + s Up(ReLU(Down(LN' x))), with a learnt scalar s, a norm
    LN' of the branch's own, and Up at zero in the beginning. All else of the trunk is frozen, in
    evaluation mode. The branches stay after the fit, and a later fit trains them further. Files of
    such a model hold trunk and branches; its checkpoints leave out the frozen trunk.

    For timm's vision transformers (plain, CLIP, SigLIP, DINOv2), `Eva` models (EVA, DINOv3) and
    ConvNeXt, where the branch goes from the input of the MLP's norm to the output.

    Reads and writes `learn.model.backbone` and the optimiser's parameters; during a fit, also which
    parameters of the backbone train and the mode of its modules.

    Attributes, once a fit has begun: `trained_parameters_`.

    Args:
        bottleneck: Features between Down and Up, at least 1. None: LIFT's rule,
            2 ** floor(log2(C / (2 L))) for C classes and L blocks, at least 1.
        seed: Seed of the new branches.

    Raises:
        UserError: If an option is not allowed or, in a fit, the backbone has no such blocks.

    Source:
        Chen et al., NeurIPS 2022, arXiv:2205.13535; in this form Shi et al., ICML 2024,
        arXiv:2309.10019 (LIFT).

    Example:
        >>> learn = lt_learner(dls, "vit_base_patch16_clip_224.openai")
        >>> learn.fit_stage1(5, 0.02, cbs=AdaptFormer())
    """

    _kind = ADAPTFORMER
    _needs = "transformer or ConvNeXt blocks of timm"

    def __init__(self, bottleneck: int | None = None, seed: int = 0):
        self.bottleneck = bottleneck
        self._set(bottleneck, seed)


class LoRA(_Adapters):
    """Train low-rank changes of the queries and values in each attention, and the head.

    W x becomes W x + B A x / r for queries and values, with B at zero in the beginning. All else of
    the trunk is frozen, in evaluation mode. The changes stay after the fit, and a later fit trains
    them further; `ltlearn.models.adapters.merge_lora` adds them to the weights. Files of such a
    model hold trunk and changes; its checkpoints leave out the frozen trunk.

    For timm's vision transformers (plain, CLIP, SigLIP, DINOv2) and `Eva` models (EVA, DINOv3).

    Reads and writes `learn.model.backbone` and the optimiser's parameters; during a fit, also which
    parameters of the backbone train and the mode of its modules.

    Attributes, once a fit has begun: `trained_parameters_`.

    Args:
        rank: Rank r, at least 1. None: LIFT's rule, 2 ** floor(log2(C / (4 L))) for C classes and L
            attention modules, at least 1.
        seed: Seed of the new matrices.

    Raises:
        UserError: If an option is not allowed or, in a fit, the backbone has no such attention.

    Source:
        Hu et al., ICLR 2022, arXiv:2106.09685; rank and scale 1 / r: Shi et al., ICML 2024,
        arXiv:2309.10019.

    Example:
        >>> learn.fit_stage1(5, 0.02, cbs=LoRA(rank=8))
    """

    _kind = LORA
    _needs = "attention of timm's vision transformers"

    def __init__(self, rank: int | None = None, seed: int = 0):
        self.rank = rank
        self._set(rank, seed)


class BitFit(_PartOfTrunk):
    """Train the biases of the backbone, and the head.

    All else of the trunk is frozen, in evaluation mode. The model stays a plain timm model.

    Reads `learn.model.backbone`. Writes, during a fit, which parameters of the backbone train and
    the mode of its modules.

    Attributes, once a fit has begun: `trained_parameters_`.

    Raises:
        UserError: In a fit, if the backbone has no biases.

    Source:
        Ben Zaken et al., ACL 2022, arXiv:2106.10199.

    Example:
        >>> learn.fit_stage1(5, 0.02, cbs=BitFit())
    """

    trained_part = "biases"

    def _part(self, backbone: nn.Module) -> list[nn.Parameter]:
        biases = [p for n, p in backbone.named_parameters() if n.endswith("bias")]
        if not biases:
            raise UserError(
                f"BitFit needs biases, and the backbone ({type(backbone).__name__}) has none; "
                "train it with LastBlock or LayerDecay (methods last_block, full)."
            )
        return biases
