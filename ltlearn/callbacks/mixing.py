"""MixUp and CutMix with one share a batch, as fastai callbacks."""

from numbers import Integral

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from torch import Tensor

from ltlearn.data.transforms import mix_seed
from ltlearn.errors import UserError
from ltlearn.losses.counted import check_number
from ltlearn.losses.glmc import cut_box, mix_globally, mix_locally

__all__ = ["BatchCutMix", "BatchMixUp"]

_MIX = 5  # tells these draws from the others of one seed


class _BatchMix(Callback):
    """What the two have in common: the draws, and the loss of two targets."""

    # After the callback that sets the mode, before those that scale the loss or collect it.
    order = -4
    run_valid = False

    def __init__(self, alpha: float):
        check_number("alpha", alpha, 0, open_low=True)
        self.alpha = float(alpha)
        self._drawn: tuple[float, Tensor] | None = None

    def before_fit(self):
        """Refuse another callback that mixes."""
        # `validate` and `get_preds` come by here too, with this lock held.
        if self.learn.lock.locked():
            return
        self.close()
        for cb in self.learn.cbs:
            if cb is not self and isinstance(cb, _BatchMix | MixHandler):
                raise UserError(
                    f"{type(self).__name__} and {type(cb).__name__} would mix the same batch one "
                    "after the other: leave one of them out."
                )

    def before_batch(self):
        """Mix the images."""
        learn = self.learn
        x = self._images()
        seed = getattr(learn.dls.train, "seed", 0)
        # fastai's loaders give the attributes of their dataset out as their own.
        seed = int(seed) if isinstance(seed, Integral) else 0
        rng = np.random.default_rng(mix_seed(seed, learn.epoch, learn.iter, _MIX))
        # Far above 1e15 the sum of two gamma variates overflows; the share is 1/2 all the same.
        alpha = min(self.alpha, 1e15)
        share = rng.beta(alpha, alpha)
        # Waits for no device, where a plain copy would.
        partner = torch.from_numpy(rng.permutation(len(x))).to(x.device, non_blocking=True)
        mixed, share = self._mix(x, x[partner], share, rng)
        learn.xb, self._drawn = (mixed,), (share, partner)

    def after_loss(self):
        """Add the loss of the other images' targets, each by its share."""
        learn, (share, partner) = self.learn, self._drawn
        other = learn.loss_func(learn.pred, *(y[partner] for y in learn.yb))
        learn.loss_grad = share * learn.loss_grad + (1 - share) * other
        learn.loss = learn.loss_grad.clone()
        self._drawn = None

    def after_fit(self):
        """Let go of the last draw."""
        if not self.learn.lock.locked():
            self.close()

    def close(self) -> None:
        """Let go of the last draw, also after a fit that was interrupted."""
        self._drawn = None

    def _mix(self, x: Tensor, other: Tensor, share: float, rng) -> tuple[Tensor, float]:
        """Return the mixed images, and the share that x has of them; leave x as it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it mixes.")

    def _images(self) -> Tensor:
        xb = self.learn.xb
        x = xb[0] if len(xb) == 1 else None
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            got = ", ".join(
                f"{i.dtype} {tuple(i.shape)}" if isinstance(i, Tensor) else type(i).__name__
                for i in xb
            )
            raise UserError(
                f"{type(self).__name__} mixes images, one floating-point tensor (N, C, H, W) a "
                f"batch, and got {got}: pass it to fit_stage1, and leave it out of a stage 2 on "
                "cached features."
            )
        return x


class BatchMixUp(_BatchMix):
    """Train on weighted means of two images, and on both their targets (MixUp).

    A batch has one share s ~ Beta(alpha, alpha), and its own permutation as partners: s x + (1 - s)
    x', with the loss s loss(pred, y) + (1 - s) loss(pred, y'). The loss is that of the learner,
    class weights and all, and may be any function to a scalar. All draws follow from the seed of
    the training loader (0 where it has none), epoch and position.

    For images, in any fastai Learner; validation and predictions are as without it. Reads
    `learn.dls`, `learn.epoch`, `learn.iter`, `learn.pred`, `learn.yb`, `learn.loss_func`. Writes,
    in training, `learn.xb`, `learn.loss` and `learn.loss_grad`.

    Args:
        alpha: Of the Beta distribution, no unit, above 0. Small values leave most batches nearly
            unmixed, 1 draws all shares alike, large ones mix by halves.

    Raises:
        UserError: If `alpha` is not allowed or, in a fit, a batch holds no images, or another
            callback mixes, too.

    Source:
        Zhang et al., ICLR 2018, arXiv:1710.09412; as in the code of Zhong et al., CVPR 2021,
        arXiv:2104.00466 (MiSLAS), whose stage 1 has alpha 1 for CIFAR-LT, 0.2 for larger sets.
        fastai's MixUp is another: it draws a share for each image, takes the larger of s and 1 -
        s, and exchanges `loss_func` for one that divides by N, whatever the class weights are.
    """

    def __init__(self, alpha: float = 0.2):
        super().__init__(alpha)

    def _mix(self, x: Tensor, other: Tensor, share: float, rng) -> tuple[Tensor, float]:
        return mix_globally(x, other, share), share


class BatchCutMix(_BatchMix):
    """Train on images with a box of another one in them, and on both their targets (CutMix).

    A batch has one share s ~ Beta(alpha, alpha), and its own permutation as partners. From these
    each image takes the same box, of 1 - s of the area; its middle is anywhere, and the border
    clips it. s becomes what is left of the image, and the loss s loss(pred, y) + (1 - s)
    loss(pred, y'). The loss is that of the learner, class weights and all, and may be any function
    to a scalar. All draws follow from the seed of the training loader (0 where it has none), epoch
    and position.

    For images, in any fastai Learner; validation and predictions are as without it. Reads
    `learn.dls`, `learn.epoch`, `learn.iter`, `learn.pred`, `learn.yb`, `learn.loss_func`. Writes,
    in training, `learn.xb`, `learn.loss` and `learn.loss_grad`.

    Args:
        alpha: Of the Beta distribution, no unit, above 0; 1 draws all shares alike.

    Raises:
        UserError: If `alpha` is not allowed or, in a fit, a batch holds no images, or another
            callback mixes, too.

    Source:
        Yun et al., ICCV 2019, arXiv:1905.04899, every batch mixed. Departure: the sides of the box
        are rounded to the nearest even number of pixels, by the authors' code down. fastai's CutMix
        exchanges `loss_func` for one that divides by N, whatever the class weights are.
    """

    def __init__(self, alpha: float = 1.0):
        super().__init__(alpha)

    def _mix(self, x: Tensor, other: Tensor, share: float, rng) -> tuple[Tensor, float]:
        height, width = x.shape[-2:]
        box = cut_box(height, width, share, rng.integers((height, width)).tolist())
        rows, columns = box
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        # A copy: a loader may hand the same batch out again.
        return mix_locally(x.clone(), other, box), 1 - area / (height * width)
