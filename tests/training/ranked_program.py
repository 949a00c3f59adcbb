"""Trainings that the tests run in one process, and with two ranks under `torchrun`.

With the ranks: python -m torch.distributed.run --nproc_per_node 2 -m tests.training.ranked_program
FOLDER. Each rank writes `rank<number>.pt`.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from ltlearn import (
    GLMC,
    SAMN,
    AdaptFormer,
    LoRA,
    LTDataLoaders,
    LTLearner,
    SharpnessAware,
    WeightAverage,
)
from ltlearn.callbacks import BatchCutMix, BatchMixUp
from ltlearn.data.samplers import SAMPLERS
from ltlearn.errors import UserError
from ltlearn.losses import ClassBalancedLoss
from ltlearn.models.backbone import LTModel
from ltlearn.training.checkpoint import Checkpoint
from ltlearn.utils import ranks
from tests.callbacks.helpers import Stop, make_dls, make_images, make_vit_learner

# 59 images in batches of 8: 8 steps per epoch, and 3 images in the last batch.
COUNTS = [41, 13, 5]
CALLBACKS = {
    "plain": lambda: [],
    "glmc": lambda: [GLMC(resample=0.2)],
    "mixup": lambda: [BatchMixUp(1.0)],
    "cutmix": lambda: [BatchCutMix()],
    "fastai's mixup": lambda: [MixUp(0.4)],
    "sam": lambda: [SharpnessAware()],
    "ema": lambda: [WeightAverage(0.9)],
    "accumulation": lambda: [GradientAccumulation(16)],
    "samn": lambda: [SAMN()],
    "thawed": lambda: [Thaw()],
    "left out": lambda: [LeaveOut()],
}


EXPERTS = ("balpoe", "sade")


class Batches(Callback):
    """Record the images of all ranks, and their classes."""

    order = 100

    def __init__(self):
        self.seen = []

    def before_batch(self):
        if self.learn.training:
            sums = self.learn.whole_batch(self.learn.xb[0].double().sum((1, 2, 3)))
            self.seen += [sums, self.learn.yb[0].double()]


class Thaw(Callback):
    """Train the first layer from the second epoch on."""

    def before_epoch(self):
        self.learn.model.backbone[0].requires_grad_(self.learn.epoch > 0)


class LeaveOut(Callback):
    """Leave the first layer out of every other step: its parameters have no gradient there."""

    def before_batch(self):
        self.learn.model.backbone[0].requires_grad_(True)
        if self.learn.training and self.learn.iter % 2:
            self.hook = self.learn.model.backbone[0].register_forward_hook(lambda *a: a[2].detach())

    def after_pred(self):
        if self.learn.training and self.learn.iter % 2:
            self.hook.remove()


class ExportEarly(Callback):
    """Export the learner while it trains."""

    def after_epoch(self):
        self.learn.export("exported.pkl")


class Checkpointed(nn.Conv2d):
    """A layer in a reentrant checkpoint, which hides its parameters."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=True)


class OwnLoss(nn.Module):
    """A loss with a parameter that the optimiser does not have."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, targets):
        return nn.functional.cross_entropy(self.scale * logits, targets)


class Staged(nn.Sequential):
    """A network whose layer groups are known, as timm's."""

    def group_matcher(self, coarse=False):
        return {"stem": r"^0", "blocks": r"^(\d+)"}


def make_learner(dls=None, norm=False):
    """Return a learner of a tiny network, without batch normalisation unless `norm`."""
    # The first rank's weights count.
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    layers[1:1] = [nn.BatchNorm2d(8)] if norm else []
    backbone = Staged(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # 35 validation images.
    dls = dls or make_dls(COUNTS, bs=8, valid=make_images([20, 10, 5], 8, 1))
    return LTLearner(dls, LTModel(backbone, nn.Linear(8, len(COUNTS))), precision="fp32")


def make_folder(folder):
    """Write images to files, so that a rank reads its own alone."""
    images, targets = make_images(COUNTS, 8)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        file = folder / f"class{target}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def weights_of(learn):
    return torch.cat([v.detach().flatten().double() for v in learn.model.state_dict().values()])


def figures_of(learn):
    record = learn.trajectory
    figures = [record[k] for k in ("all", "balanced", "medium", "few") if None not in record[k]]
    return torch.tensor(figures).double()


def train(learn, epochs=3, **arguments):
    """Train; return the weights, the figures of the 35 validation images, and the losses."""
    learn.fit_stage1(epochs, 0.05, **arguments)
    losses = torch.tensor([loss or 0.0 for loss in learn.trajectory["loss"]])
    steps = torch.tensor([float(loss) for loss in learn.recorder.losses])
    return {
        "weights": weights_of(learn),
        "figures": figures_of(learn),
        "losses": torch.cat([losses, steps]).double(),
    }


def results(folder):
    """Return all that one process and two ranks are to agree on."""
    found = {}
    for sampler in SAMPLERS:
        batches = Batches()
        found[f"sampler {sampler}"] = train(make_learner(), 2, sampler=sampler, cbs=batches)
        found[f"sampler {sampler}"]["batches"] = torch.cat(batches.seen)
    for name, make in CALLBACKS.items():
        found[name] = train(make_learner(), cbs=make())
    for kind in (AdaptFormer, LoRA):
        dls = make_dls(COUNTS, bs=8, valid=make_images([20, 10, 5], 8, 1))
        learn = make_vit_learner(dls, seed=int(os.environ.get("RANK", 0)))
        found[kind.__name__] = train(learn, cbs=kind())
    found["vit"] = train(make_vit_learner(dls, seed=int(os.environ.get("RANK", 0))))
    for name in EXPERTS:
        found[name] = train(make_learner(), method=name)
    found["weighted"] = train(make_learner(), loss=ClassBalancedLoss(beta=0.9), flip=True)
    found["smaller than the ranks"] = train(make_learner(make_dls([3, 2, 2], bs=1)), 2)
    files = folder / "images"
    if int(os.environ.get("RANK", 0)) == 0 and not files.is_dir():
        make_folder(files)
    found["norm"] = train(make_learner(norm=True))
    for workers in (0, 1):
        dls = LTDataLoaders.from_folder(
            files, 8, "crop_flip", bs=8, in_memory=False, device="cpu", num_workers=workers
        )
        batches = Batches()
        found[f"files {workers}"] = train(make_learner(dls), 2, cbs=batches)
        found[f"files {workers}"]["batches"] = torch.cat(batches.seen)
    found["files glmc"] = train(make_learner(dls), 2, cbs=GLMC())
    found["after an error"] = trained_after_an_error()
    learn = make_learner()
    learn.loss_func = OwnLoss()
    learn.model.requires_grad_(False)
    learn.fit(1, 0.05)
    found["frozen"] = {"weights": weights_of(learn)}
    found |= retrained()
    return found


def trained_after_an_error():
    """Train after a fit that raised in a backward pass, while the error is still referred to."""
    learn, passes = make_learner(), []

    def fail(_):
        passes.append(1)
        if len(passes) == 3:
            raise ValueError("in the backward pass")

    hook = learn.model.backbone[0].weight.register_hook(fail)
    try:
        learn.fit(1, 0.05)
    except ValueError as e:
        error = e
    hook.remove()
    result = train(learn)
    assert error.args == ("in the backward pass",)
    return result


def retrained():
    """Return the results of features, and of stage 2 on them and on images."""
    found, learn = {}, make_learner()
    learn.fit_stage1(3, method="probe")
    found["probe"] = {"weights": weights_of(learn), "figures": figures_of(learn)}
    learn = make_learner()
    learn.fit_stage1(1, 0.05)
    features = learn.features("train", views=2)
    found["features"] = {"views": torch.from_numpy(np.stack(features.views)).double()}
    for views in (1, 0):
        learn.retrain_classifier(2, 0.1, method="samn", views=views, select="last")
        found[f"stage 2, {views} views"] = {
            "weights": weights_of(learn),
            "norms": learn.head_norms().double(),
            "figures": figures_of(learn),
        }
    logits, _ = learn.predict_logits("test", flip=True)
    report = learn.shot_report()
    found["test"] = {"logits": logits.double(), "report": torch.tensor([report.all, report.few])}
    found["test"] |= {"by fastai": learn.get_preds(2)[0].double()}
    if int(os.environ.get("RANK", 0)) == 0:
        # A rank may predict alone.
        learn.predict(make_images(COUNTS, 8)[0][0])
        learn.validate()
    return found


def stopped(folder):
    """Train for 2 of 4 epochs, and leave a checkpoint."""
    stop = Stop(KeyboardInterrupt(), 18)
    try:
        train(make_learner(), 4, cbs=[Checkpoint(folder, min_seconds=0), stop])
    except KeyboardInterrupt:
        pass


def resumed(folder):
    """Continue a training that was stopped."""
    go_on = Stop(None, 1000)
    return train(make_learner(), 4, cbs=[Checkpoint(folder, resume=True, min_seconds=0), go_on])


def saved(folder):
    """Save and load a model, while the first rank is the last to write."""
    learn = make_learner()
    learn.path = folder
    if ranks.is_first():
        time.sleep(0.2)
    learn.save("saved")
    learn.load("saved")


def exported(folder):
    """Leave the file of a learner that was exported while it trained."""
    learn = make_learner()
    learn.path = folder
    learn.fit(1, 0.05, cbs=ExportEarly())


def refused():
    """Return why a model with a reentrant checkpoint is not trained."""
    learn = make_learner()
    learn.model.backbone[2] = Checkpointed(8, 8, 3)
    try:
        learn.fit(1, 0.05)
    except UserError as e:
        return str(e)


def main(folder):
    rank = int(os.environ["RANK"])
    saved(folder)
    exported(folder)
    found = results(folder)
    found["refused"] = refused()
    found["resumed by two"] = resumed(folder / "stopped by one")
    stopped(folder / "stopped by two")
    torch.save(found, folder / f"rank{rank}.pt")
    try:
        run_command(folder)
    except SystemExit as e:
        assert not e.code
    # The second run of the command loses a rank.
    write = Checkpoint.after_epoch

    def die(self):
        write(self)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.after_epoch = die
    run_command(folder, "--out", str(folder / "killed"))


def run_command(folder, *words):
    from ltlearn.cli import main

    words = words or ("--out", str(folder / "run"))
    sys.argv = [
        "ltlearn", "recipe", "digits_lt", "--smoke", "--device", "cpu", "--precision", "fp32",
        "--set", "model.width=4", *words,
    ]  # fmt: skip
    main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
