"""MixUp and CutMix with one share per batch, as fastai callbacks."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError, check_number
from ltlearn.losses.glmc import cut_box, inside_box, mix_globally, mix_locally
from ltlearn.training.fit_callback import FitCallback, mixes_images
from ltlearn.training.resident_form import ResidentForm, ResidentStep

__all__ = ["BatchCutMix", "BatchMixUp", "MixDraw"]

_MIX = 5  # separates these draws from the other draws of one seed


@dataclass(frozen=True, eq=False)
class MixDraw:
    """The draws of a step that mixes a batch with itself.

    Args:
        share: Share of the image itself in the mix, and of its target in the loss, in [0, 1].
        partner: The partner of each image: its index in the batch, (N,), int64, on the CPU.
        box: Rows and columns that the partner replaces; None mixes all pixels by `share`.
    """

    share: float
    partner: Tensor
    box: tuple[slice, slice] | None = None


class _BatchMix(FitCallback):
    """The common part of both callbacks: the draws, and the loss of two targets."""

    # After the callback that sets the mode, before those that scale or collect the loss.
    order = -4
    run_valid = False
    mixes_images = True
    mixes_rows = True

    def __init__(self, alpha: float):
        check_number("alpha", alpha, 0, above=True)
        self.alpha = float(alpha)
        self.share_: float | None = None
        self.partner_: Tensor | None = None

    def begin(self) -> None:
        """Refuse another callback that mixes."""
        for cb in self.learn.cbs:
            if cb is not self and mixes_images(cb):
                raise UserError(
                    f"{type(self).__name__} and {type(cb).__name__} would mix the same batch one "
                    "after the other: leave one of them out."
                )

    def before_batch(self):
        """Mix the images."""
        learn = self.learn
        x = self._images()
        drawn = self.draw(self.seed, learn.epoch, learn.iter, len(x), tuple(x.shape[-2:]))
        # Does not wait for the device, unlike a plain copy.
        partner = drawn.partner.to(x.device, non_blocking=True)
        learn.xb = (self._mix(x, x[partner], drawn),)
        self.share_, self.partner_ = drawn.share, partner

    @property
    def seed(self) -> int:
        """Return the seed of the training loader; 0 if it has none."""
        seed = getattr(self.learn.dls.train, "seed", 0)
        # A fastai loader passes on the attributes of its dataset, so `seed` may be anything.
        return int(seed) if isinstance(seed, Integral) else 0

    def draw(self, seed: int, epoch: int, step: int, n: int, shape: tuple[int, int]) -> MixDraw:
        """Draw how the batch of a step is mixed, without its images.

        Args:
            seed: Seed of the training loader, as `seed` returns it.
            epoch: The epoch, from 0 up.
            step: The step in the epoch, from 0 up.
            n: Images in the batch.
            shape: Height and width of the images in pixels.
        """
        rng = np.random.default_rng(mix_seed(seed, epoch, step, _MIX))
        # Far above 1e15 the sum of two gamma variates overflows; the share is 1/2 anyway.
        alpha = min(self.alpha, 1e15)
        share = rng.beta(alpha, alpha)
        partner = torch.from_numpy(rng.permutation(n))
        return self._complete(MixDraw(share, partner), rng, *shape)

    def after_loss(self):
        """Add the loss of the partners' targets, each by its share."""
        learn, share = self.learn, self.share_
        other = learn.loss_func(learn.pred, *(y[self.partner_] for y in learn.yb))
        learn.loss_grad = share * learn.loss_grad + (1 - share) * other
        learn.loss = learn.loss_grad.clone()
        self.end()

    def resident_form(self) -> "_ResidentMix":
        """Return the form of the mix for steps without events."""
        return _ResidentMix(self)

    def end(self) -> None:
        """Release the last draw."""
        self.share_ = self.partner_ = None

    def _complete(self, drawn: MixDraw, rng, height: int, width: int) -> MixDraw:
        """Return the draws, with a box if this mix needs one."""
        return drawn

    def _mix(self, x: Tensor, other: Tensor, drawn: MixDraw) -> Tensor:
        """Return the mixed images; do not change x."""
        raise NotImplementedError(f"{type(self).__name__} does not define how it mixes.")

    def _images(self) -> Tensor:
        xb = self.learn.xb
        x = xb[0] if len(xb) == 1 else None
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            got = ", ".join(
                f"{i.dtype} {tuple(i.shape)}" if isinstance(i, Tensor) else type(i).__name__
                for i in xb
            )
            raise UserError(
                f"{type(self).__name__} mixes images, one floating-point tensor (N, C, H, W) per "
                f"batch, and got {got}: pass it to fit_stage1, and leave it out of a stage 2 on "
                "cached features."
            )
        return x


class _ResidentMix(ResidentForm):
    """MixUp or CutMix in a step without events."""

    def __init__(self, owner: _BatchMix):
        self._owner = owner

    def begin_epoch(self, sizes):
        owner, learn = self._owner, self._owner.learn
        shape = learn.dl.dataset.shape
        drawn = [owner.draw(owner.seed, learn.epoch, i, n, shape) for i, n in enumerate(sizes)]
        partner = torch.zeros(len(sizes), max(sizes, default=0), dtype=torch.int64)
        for row, step in zip(partner, drawn, strict=True):
            row[: len(step.partner)] = step.partner
        tables = {
            "share": torch.tensor([step.share for step in drawn]),
            # The subtraction is in float64, as in the loop with events.
            "rest": torch.tensor([1 - step.share for step in drawn]),
            "partner": partner,
        }
        if drawn and drawn[0].box is not None:
            ends = [[end for side in d.box for end in (side.start, side.stop)] for d in drawn]
            tables["box"] = torch.tensor(ends)
        return tables

    def before_batch(self, step: ResidentStep) -> None:
        row, x = self.row, step.x
        other = x[row["partner"][: step.size]]
        if "box" in row:
            step.x = torch.where(inside_box(row["box"], *x.shape[-2:]), other, x)
        else:
            step.x = mix_globally(x, other, row["share"])

    def after_loss(self, step: ResidentStep) -> None:
        partner = self.row["partner"][: step.size]
        other = self._owner.learn.loss_func(step.pred, step.targets[0][partner])
        step.loss = self.row["share"] * step.loss + self.row["rest"] * other


class BatchMixUp(_BatchMix):
    """Train on weighted means of two images, and on both their targets (MixUp).

    Each batch draws one share s ~ Beta(alpha, alpha) and one permutation as partners x', y'. The
    images are s x + (1 - s) x', the loss is s loss(pred, y) + (1 - s) loss(pred, y'). The loss is
    the learner's own, with its class weights, and may be any function to a scalar. All draws follow
    from the seed of the training loader (0 if it has none), epoch and position.

    Works on images in any fastai Learner; validation and predictions do not change. Reads
    `learn.dls`, `learn.epoch`, `learn.iter`, `learn.pred`, `learn.yb`, `learn.loss_func`. Writes,
    in training, `learn.xb`, `learn.loss` and `learn.loss_grad`.

    Attributes, from `before_batch` to the loss: `share_` (s), `partner_` (the permutation, (N,)).

    Args:
        alpha: Parameter of the Beta distribution, no unit, above 0. Small values leave most batches
            nearly unmixed, 1 draws all shares equally often, large values give shares near 1/2.

    Raises:
        UserError: If `alpha` is not allowed or, in a fit, a batch holds no images, or another
            callback mixes, too.

    Source:
        Zhang et al., ICLR 2018, arXiv:1710.09412; as in the code of Zhong et al., CVPR 2021,
        arXiv:2104.00466 (MiSLAS), whose stage 1 has alpha 1 for CIFAR-LT, 0.2 for larger sets.
        fastai's MixUp differs: it draws a share for each image, takes the larger of s and 1 - s,
        and replaces `loss_func` by one that divides by N, whatever the class weights are.

    Example:
        >>> learn.fit_stage1(200, cbs=BatchMixUp(1.0))
    """

    def __init__(self, alpha: float = 0.2):
        super().__init__(alpha)

    def _mix(self, x: Tensor, other: Tensor, drawn: MixDraw) -> Tensor:
        return mix_globally(x, other, drawn.share)


class BatchCutMix(_BatchMix):
    """Train on images with a box of another image in them, and on both their targets (CutMix).

    Each batch draws one share s ~ Beta(alpha, alpha) and one permutation as partners x', y'. Each
    image takes the same box of its partner, with 1 - s of the area; its centre is uniform, and the
    border clips it. Then s becomes the remaining share of the image, and the loss is
    s loss(pred, y) + (1 - s) loss(pred, y'). The loss is the learner's own, with its class weights,
    and may be any function to a scalar. All draws follow from the seed of the training loader (0 if
    it has none), epoch and position.

    Works on images in any fastai Learner; validation and predictions do not change. Reads
    `learn.dls`, `learn.epoch`, `learn.iter`, `learn.pred`, `learn.yb`, `learn.loss_func`. Writes,
    in training, `learn.xb`, `learn.loss` and `learn.loss_grad`.

    Attributes, from `before_batch` to the loss: `share_` (s), `partner_` (the permutation, (N,)).

    Args:
        alpha: Parameter of the Beta distribution, no unit, above 0; 1 draws all shares equally
            often.

    Raises:
        UserError: If `alpha` is not allowed or, in a fit, a batch holds no images, or another
            callback mixes, too.

    Source:
        Yun et al., ICCV 2019, arXiv:1905.04899, every batch mixed. Departure: the sides of the box
        are rounded to the nearest even number of pixels, where the authors' code rounds down.
        fastai's CutMix replaces `loss_func` by one that divides by N, whatever the class weights
        are.

    Example:
        >>> learn.fit_stage1(200, cbs=BatchCutMix())
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def _complete(self, drawn: MixDraw, rng, height: int, width: int) -> MixDraw:
        box = cut_box(height, width, drawn.share, rng.integers((height, width)).tolist())
        rows, columns = box
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return MixDraw(1 - area / (height * width), drawn.partner, box)

    def _mix(self, x: Tensor, other: Tensor, drawn: MixDraw) -> Tensor:
        # A copy, because a loader may return the same batch object again.
        return mix_locally(x.clone(), other, drawn.box)
