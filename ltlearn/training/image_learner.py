"""`ImageLearner`: what fastai's documentation shows for a Learner of images."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ltlearn.errors import UserError
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.training.loop import QuietLearner
from ltlearn.training.precision import DTYPES
from ltlearn.training.prediction import predict_images

__all__ = ["ImageLearner"]


class ImageLearner(QuietLearner):
    """A quiet Learner of images: autocast, prediction, and files of weights.

    A subclass sets `precision`, and has `assumed_prior` and loaders of class `LTDataLoaders`.
    """

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype that the model runs in under autocast; None without autocast."""
        return DTYPES[self.precision]

    def autocast(self):
        """Return the context that the model runs in."""
        return (self.autocast_or_none() or nullcontext)()

    def autocast_or_none(self):
        """Return a function that makes the autocast context; None without autocast."""
        if self.autocast_dtype is None:
            return None
        context = partial(torch.autocast, self.dls.device.type, dtype=self.autocast_dtype)
        context.dtype = self.autocast_dtype
        return context

    def _do_one_batch(self):
        # Autocast covers the model alone and ends with it, however the batch ends. The loss is
        # computed in float32.
        with self.autocast():
            self.pred = self.model(*self.xb)
        if self.pred.dtype != torch.float32:
            self.pred = self.pred.float()
        self("after_pred")
        if len(self.yb):
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()

    def predict(self, images, *, target_prior=None, source_prior=None) -> tuple[list[str], Tensor]:
        """Classify images: a path, a PIL image or an (H, W, 3) uint8 array, or a list of them.

        Args:
            images: One image or a list.
            target_prior: Class prior of the images, if it is known: "uniform", "train", "reversed"
                or C numbers. The logits are corrected for it. None: no correction.
            source_prior: Class prior that the classifier assumes. None: `assumed_prior`.

        Returns:
            Class names, one per image, and probabilities (N, C), float32 on the CPU.

        Raises:
            UserError: If an image cannot be read, or a prior is not allowed.
        """
        if target_prior is not None:
            counts = self.dls.shot_counts
            target_prior = prior_vector(target_prior, counts)
            source_prior = self.assumed_prior if source_prior is None else source_prior
            source_prior = prior_vector(source_prior, counts)
        elif source_prior is not None:
            raise UserError("source_prior has no meaning without a target_prior; give both.")
        logits = predict_images(self, images)
        if target_prior is not None:
            logits = correct_for_prior(logits, source_prior, target_prior)
        probs = logits.softmax(1)
        return [self.dls.vocab[c] for c in probs.argmax(1).tolist()], probs

    def load(self, file, device=None, with_opt=True, strict=True):
        """Load a file that `save` wrote. The model takes over the kind of head in the file."""
        path = self.path / self.model_dir / f"{file}.pth"
        if not path.is_file():
            raise UserError(f"there is no saved model {path}.")
        head = self.model.head
        super().load(file, device=device, with_opt=False, strict=strict)
        if self.model.head is not head:
            # A new optimiser is needed for the parameters of the loaded head.
            self.opt = None
        if with_opt:
            super().load(file, device=device, with_opt=True, strict=strict)
        return self
