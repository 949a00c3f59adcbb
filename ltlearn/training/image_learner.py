"""`ImageLearner`: what fastai's documentation shows for a Learner of images."""

import logging
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.learner import Metric
from fastai.optimizer import OptimWrapper
from fastai.torch_core import to_device
from fastcore.basics import listify, noop
from torch import Tensor

from ltlearn.data.items import is_one_image, list_items
from ltlearn.data.loaders import LTDataLoaders
from ltlearn.data.needs_images import needs_images
from ltlearn.errors import UserError, check_choice, check_number, check_whole, spell_call
from ltlearn.metrics.priors import correct_for_prior, prior_vector
from ltlearn.training.experts import ExpertsMixin
from ltlearn.training.plan import name_of
from ltlearn.training.precision import DTYPES
from ltlearn.training.prediction import predict_images
from ltlearn.training.ranked import RankedLearner
from ltlearn.training.resident import ResidentLoop, reason_for_events
from ltlearn.training.temporary import with_class_counts
from ltlearn.utils import ranks

__all__ = ["ImageLearner", "check_fastai_options"]

_log = logging.getLogger("ltlearn")
RESIDENT = ("auto", "always", "never")
_REASON = 200  # characters of an error of torch in a message


class ImageLearner(ExpertsMixin, RankedLearner):
    """A quiet Learner of images: autocast, prediction, and files of weights.

    A subclass sets `precision`, and has `assumed_prior` and loaders of class `LTDataLoaders`.

    The steps of a training run without events where all callbacks allow it. `resident` decides
    where: "auto" on CUDA alone, "always" also on a CPU, "never" nowhere. `capture_steps` decides
    whether such steps are captured as CUDA graphs. `loop_ran` is the loop that trained the last
    epoch: "events", "resident" or "captured".
    """

    # Class attributes, because learners that earlier versions exported lack them.
    resident = "auto"
    capture_steps = True
    loop_ran = "events"
    _resident_loop: ResidentLoop | None = None
    _reported = ""

    def __getstate__(self):
        """Return the state for a copy or a file: without the loop of a running fit."""
        return {**super().__getstate__(), "_resident_loop": None}

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Return the dtype that the model runs in under autocast; None without autocast."""
        return DTYPES[self.precision]

    def autocast_context(self):
        """Return the context that the model runs in."""
        # Not called `autocast`: fastai's `MixedPrecision` has an attribute of that name, and warns.
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
        self._take_own_rows()
        with self.autocast_context():
            self.pred = self.model(*self.xb)
        if self.pred.dtype != torch.float32:
            self.pred = self.pred.float()
        self.pred = self.whole_batch(self.pred)
        self("after_pred")
        if len(self.yb):
            self.loss_grad = self.loss_func(self.pred, *self.yb)
            self.loss = self.loss_grad.clone()
        self("after_loss")
        if self.training and len(self.yb):
            self._do_grad_opt()

    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        """Train as fastai's `Learner.fit` does; a loss without class counts gets the data's."""
        check_choice("resident", self.resident, RESIDENT)
        if next(self.model.parameters(), None) is None:
            raise UserError(
                f"a {type(self.model.head).__name__} over features has nothing to train; put the "
                f"classifier of stage 1 back: {spell_call('use', name='stage1')}."
            )
        self.loop_ran = "events"
        try:
            with with_class_counts(self.loss_func, getattr(self.dls, "class_counts", None)):
                super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)
        finally:
            self._resident_loop, self._reported = None, ""

    def _set_device(self, b):
        # fastai asks the first parameter, but a nearest mean over features has none.
        if next(self.model.parameters(), None) is None:
            return to_device(b, self.dls.device)
        return super()._set_device(b)

    def all_batches(self):
        """Run over the batches of a loader."""
        if not self.training:
            super().all_batches()
            return
        loop = self._find_loop()
        self.loop_ran = "events" if loop is None else "resident"
        if loop is None:
            super().all_batches()
        else:
            loop.run_epoch()
            self.loop_ran = "captured" if loop.captured else "resident"

    def loop_without_events(self) -> str | None:
        """Return the loop of the last epoch for a record: "resident", "captured", or None."""
        return None if self.loop_ran == "events" else self.loop_ran

    def _find_loop(self) -> ResidentLoop | None:
        """Return the resident loop of this fit; None if its steps need events."""
        on_cuda = next(self.model.parameters()).device.type == "cuda"
        if self.resident == "never" or (self.resident == "auto" and not on_cuda):
            return None
        if self._resident_loop is not None and self._resident_loop.fits():
            return self._resident_loop
        self._resident_loop, reason = None, reason_for_events(self)
        if not reason:
            self._resident_loop = ResidentLoop(self, self.capture_steps)
        elif reason != self._reported:
            _log.info("the training steps send events: %s", reason)
            self._reported = reason
        return self._resident_loop

    def predict(
        self, item, rm_type_tfms=None, with_input=False, *, target_prior=None, source_prior=None
    ) -> tuple:
        """Classify one image, as fastai does; `predict_batch` classifies several.

        Args:
            item: A path, a PIL image, an (H, W, 3) uint8 array, or the bytes of an image file.
            rm_type_tfms: Without effect; fastai has it.
            with_input: Whether the result begins with the image as the model sees it.
            target_prior: As for `predict_batch`.
            source_prior: As for `predict_batch`.

        Returns:
            The class name, its index, and the probabilities (C,), float32 on the CPU.

        Raises:
            UserError: If `item` is no single image or cannot be read, or a prior is not allowed.

        Example:
            >>> name, index, probs = learn.predict("photo.jpg")
            >>> probs[index]
        """
        items = list_items(item)
        if not is_one_image(item):
            raise UserError(
                f"predict takes one image, got {type(item).__name__} of {len(items)}; use "
                "predict_batch for several."
            )
        names, probs = self.predict_batch(
            items, target_prior=target_prior, source_prior=source_prior
        )
        result = names[0], probs[0].argmax(), probs[0]
        if with_input:
            loader = self.dls.test_dl(items)
            result = (loader.decode_batch(loader.one_batch())[0][0], *result)
        return result

    def predict_batch(
        self, images, *, target_prior=None, source_prior=None
    ) -> tuple[list[str], Tensor]:
        """Classify images: paths, PIL images or (H, W, 3) uint8 arrays.

        Args:
            images: The images in a list or fastai's `L`, or a loader that `dls.test_dl` made.
            target_prior: Class prior of the images, if it is known: "uniform", "train", "reversed"
                or C numbers. The logits are corrected for it. None: no correction.
            source_prior: Class prior that the classifier assumes. None: `assumed_prior`.

        Returns:
            Class names, one per image, and probabilities (N, C), float32 on the CPU.

        Raises:
            UserError: If there is no image, one cannot be read, or a prior is not allowed.
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

    def get_preds(self, ds_idx=1, dl=None, with_input=False, with_decoded=False, **kwargs):
        """Return predictions and targets of a loader, as fastai does; see `predict_logits`.

        Args:
            ds_idx: Number of the loader: 0 for training, 1 for validation, 2 for test.
            dl: A loader, such as one that `dls.test_dl` made; None takes loader `ds_idx`. A
                training loader gives each image once, in the order of its dataset, without
                augmentation.
            with_input: Whether the result begins with the images.
            with_decoded: Whether the result contains the predicted classes.
            **kwargs: As for fastai's `get_preds`, such as `with_loss` or `act`.

        Returns:
            Predictions (probabilities unless the loss has no `activation`), targets, and what else
            is asked for.

        Raises:
            UserError: If there is no such loader.
        """
        if dl is None:
            self._check_loader(ds_idx)
        elif getattr(dl, "training", False):
            dl = dl.new(shuffle=False)
        with self._loss_that_predicts():
            return super().get_preds(
                ds_idx, dl, with_input=with_input, with_decoded=with_decoded, **kwargs
            )

    def validate(self, ds_idx=1, dl=None, cbs=None):
        """Return loss and metrics of a loader.

        Args:
            ds_idx: Number of the loader: 1 for validation, 2 for test.
            dl: A loader with labels; None takes loader `ds_idx`.
            cbs: Callbacks for this call.

        Raises:
            UserError: If there is no such loader.
        """
        if dl is None:
            self._check_loader(ds_idx)
        with with_class_counts(self.loss_func, self.dls.class_counts):
            return super().validate(ds_idx, dl, cbs)

    @needs_images
    def show_results(self, ds_idx=1, dl=None, max_n=9, shuffle=True, **kwargs):
        """Show images with their classes and the predicted ones.

        Args:
            ds_idx: Number of the loader: 0 for training, 1 for validation, 2 for test.
            dl: A loader; None takes loader `ds_idx`.
            max_n: Most images that are shown, at least 1.
            shuffle: Whether to draw the images at random.
            **kwargs: For fastai's `show_results`, such as `nrows` or `figsize`.

        Raises:
            UserError: If there is no such loader, or its images have no labels.
        """
        if dl is None:
            self._check_loader(ds_idx)
        elif getattr(dl.dataset, "targets", True) is None:
            raise UserError("show_results needs labels; show images without them by show_batch.")
        super().show_results(ds_idx, dl, max_n, shuffle, **kwargs)

    @needs_images
    def tta(
        self, ds_idx=1, dl=None, n=4, item_tfms=None, batch_tfms=None, beta=0.25, use_max=False
    ) -> tuple[Tensor, Tensor | None]:
        """Return predictions on a mix of plain and augmented images, and the targets.

        The images are augmented as for training. Passes differ by their seeds alone, so that a
        second call returns the same.

        Args:
            ds_idx: Number of the loader: 1 for validation, 2 for test.
            dl: A loader, such as one that `dls.test_dl` made; None takes loader `ds_idx`.
            n: Augmented passes, at least 1.
            item_tfms: fastai has it; here the augmentation of the training images is used.
            batch_tfms: As `item_tfms`.
            beta: Share of the plain predictions in the result, in [0, 1]. None: both are returned.
            use_max: Whether to take the maximum of all passes instead of the means.

        Raises:
            UserError: If an argument is not allowed, or the model was loaded by `load_learner`
                without images and `dl` is None.
        """
        check_whole("n", n, 1)
        if item_tfms is not None or batch_tfms is not None:
            raise UserError(
                "tta augments as for training; give item_tfms and batch_tfms to the method that "
                "makes the dataloaders, such as from_folder."
            )
        if dl is None:
            self._check_loader(ds_idx)
            dl = self.dls[ds_idx]
        settings = {
            "with_labels": dl.dataset.targets is not None,
            "augment": self.dls.train.dataset,
            "bs": dl.bs,
            "num_workers": dl.fake_l.num_workers,
        }
        passes = [self.dls.test_dl(dl.items, seed=i, **settings) for i in range(n)]
        varied = torch.stack([self.get_preds(dl=one)[0] for one in passes])
        preds, targets = self.get_preds(dl=dl)
        if use_max:
            return torch.stack([preds, varied.amax(0)]).amax(0), targets
        if beta is None:
            return (varied.mean(0), preds), targets
        return torch.lerp(varied.mean(0), preds, beta), targets

    def _check_loader(self, ds_idx: int) -> None:
        if not 0 <= ds_idx < len(self.dls.loaders):
            raise UserError(
                f"ds_idx is {ds_idx}, but there are {len(self.dls.loaders)} loaders: 0 is for "
                "training, 1 for validation and, if there is a test set, 2 for test."
            )
        if getattr(self.dls[ds_idx], "n", None) == 0:
            raise UserError(
                f"loader {ds_idx} has no images, as in a learner that load_learner returned; give "
                "images by dl=learn.dls.test_dl(images)."
            )

    @contextmanager
    def _loss_that_predicts(self):
        """Give a loss the class counts of the data, and the method that decodes predictions."""
        own = self.loss_func
        with with_class_counts(own, self.dls.class_counts):
            if hasattr(own, "decodes"):
                yield
                return
            self.loss_func = _DecodingLoss(own)
            try:
                yield
            finally:
                self.loss_func = own

    def load(self, file, device=None, with_opt=True, strict=True, **kwargs):
        """Load a file that `save` wrote. The model takes over the kind of head in the file.

        Args:
            file: Name of the file in the folder for models, without its ending, or an open file.
            device: Device of the weights; None takes the loaders'.
            with_opt: Whether to load the state of the optimiser, too.
            strict: Whether the file must hold exactly the weights of the model.
            **kwargs: For `torch.load`, such as `weights_only`.

        Raises:
            UserError: If there is no such file, or it does not fit the model.
        """
        if isinstance(file, str | Path):
            path = self.path / self.model_dir / f"{file}.pth"
            ranks.wait()  # the first rank may still write it
            if not path.is_file():
                raise UserError(f"there is no saved model {path}.")
        before, start = _identities(self.model), file.tell() if hasattr(file, "tell") else None
        try:
            super().load(file, device=device, with_opt=False, strict=strict, **kwargs)
            if _identities(self.model) != before:
                # A new optimiser is needed for the parameters of a loaded head or adapter.
                self.opt = None
            if with_opt:
                if start is not None:
                    file.seek(start)
                super().load(file, device=device, with_opt=True, strict=strict, **kwargs)
        except UserError:
            raise
        except Exception as e:  # torch raises errors of many kinds for a damaged file
            reason = " ".join(str(e).split())[:_REASON]
            if not isinstance(e, RuntimeError):
                reason = "it holds no weights"
            raise UserError(
                f"the saved model {file} is damaged or of another model than this learner's "
                f"({reason}); make the learner as for the saved one."
            ) from e
        return self


def _identities(model) -> set[int]:
    return {id(p) for p in model.parameters()}


def check_fastai_options(
    options: Mapping[str, Any], n_out: int | None, dls: LTDataLoaders, normalize: bool
) -> dict[str, Any]:
    """Return the options of fastai's `Learner` that are given, those that are not None.

    Args:
        options: The options by name.
        n_out: The argument of `vision_learner`; None or the number of classes.
        dls: The loaders, whose number of classes is checked.
        normalize: The argument of `vision_learner`, which must be True.

    Raises:
        UserError: If one is of another kind than fastai takes, or not allowed.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(dls, LTDataLoaders):
        raise UserError(
            f"dls must be LTDataLoaders, which count the images per class, got "
            f"{type(dls).__name__}; make them by LTDataLoaders.from_folder, from_df or the like."
        )
    if n_out not in (None, dls.c):
        raise UserError(f"n_out is {n_out}, but the data has {dls.c} classes; leave it out.")
    if not normalize:
        raise UserError(
            "normalize must be True, because the loaders normalise every image; for pixels in "
            "[0, 1] make them with stats=([0, 0, 0], [1, 1, 1])."
        )
    calls = {name: [given[name]] for name in ("loss_func", "opt_func", "splitter") if name in given}
    calls["metrics"] = listify(given.get("metrics"))
    for name, values in calls.items():
        wrong = [v for v in values if not (callable(v) or isinstance(v, Metric | OptimWrapper))]
        if wrong:
            raise UserError(f"{name} must be a function or an object of fastai, got {wrong[0]!r}.")
    for name in ("path", "model_dir"):
        if not isinstance(given.get(name, ""), str | Path):
            raise UserError(f"{name} must be a folder, got {given[name]!r}.")
    if isinstance(given.get("lr", 0.1), str | bool):
        raise UserError(f"lr must be a learning rate, got {given['lr']!r}.")
    if "wd" in given:
        check_number("wd", given["wd"], 0)
    return given


class _DecodingLoss:
    """A loss of the user's with what fastai asks of a loss: classes, and a loss per image."""

    def __init__(self, loss):
        self.loss, self._reduction = loss, None
        self.activation = getattr(loss, "activation", noop)

    def __call__(self, pred: Tensor, *targets: Tensor) -> Tensor:
        if self._reduction is None:
            return self.loss(pred, *targets)
        try:
            return self.loss(pred, *targets, reduction=self._reduction)
        except TypeError as e:
            raise UserError(
                f"the loss {name_of(self.loss)} has no parameter reduction, so it gives no loss "
                "per image."
            ) from e

    @property
    def reduction(self) -> str | None:
        return getattr(self.loss, "reduction", self._reduction)

    @reduction.setter
    def reduction(self, value: str | None) -> None:
        if hasattr(self.loss, "reduction"):
            self.loss.reduction = value
        else:
            self._reduction = value

    def decodes(self, pred: Tensor) -> Tensor:
        return pred.argmax(dim=-1)
