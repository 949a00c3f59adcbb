"""A user's program, for the type checker alone: it is not run."""
# ruff: noqa: T201

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ltlearn
from ltlearn import (
    GLMC,
    SAMN,
    ClassBalancedSampler,
    CosineLinear,
    FeatureBank,
    LTDataLoaders,
    LTInterpretation,
    LTLearner,
    MaxNorm,
    SAMNLinear,
    ScaledLinear,
    ShotReport,
    UserError,
    lt_learner,
    pava,
    shot_report,
)
from ltlearn.losses import BalancedSoftmaxLoss, LDAMLoss
from ltlearn.metrics import ClassScores, class_scores, expected_calibration_error, shot_groups
from ltlearn.plots import plot_class_counts, plot_confusion_map


def whole_training(folder: Path) -> float | None:
    dls = LTDataLoaders.from_folder(folder, size=128, bs=64)
    counts: list[int] = dls.class_counts.tolist()
    learn: LTLearner = lt_learner(dls, "resnet50", pretrained=False)
    learn.fit_stage1(90, 0.1, cbs=GLMC())
    learn.retrain_classifier(20, method="crt", views=2)
    trajectory = learn.retrain_classifier(cbs=[SAMN(), MaxNorm()])
    epochs: list[int] = trajectory["epoch"]
    report: ShotReport = learn.shot_report("test")
    found: LTInterpretation = learn.interpret("valid")
    pairs: list[tuple[str, str, int]] = found.most_confused(2, tail=True)
    names, probs = learn.predict_batch([folder / "a.jpg"], target_prior="uniform")
    first: str = names[0]
    learn.correct_classifier("tau_norm", 0.7)
    best: LTLearner = learn.use("best")
    norms: Tensor = best.head_norms()
    print(counts, epochs, pairs, first, probs[0].max(), norms)
    return report.few


def plain_torch(features: Tensor, labels: Tensor, counts: list[int]) -> nn.Linear:
    head = SAMNLinear.from_linear(nn.Linear(64, len(counts)), counts)
    loss = BalancedSoftmaxLoss(counts)
    value: Tensor = loss(head(features), labels)
    value.backward()
    head.project_()
    other: nn.Module = CosineLinear(64, 10)
    scaled = ScaledLinear.from_linear(head.fold())
    print(other, scaled.norms(), LDAMLoss(torch.tensor(counts)), pava(features, increasing=False))
    return head.fold()


def evaluation(logits: Tensor, labels: np.ndarray, counts: list[int]) -> ClassScores:
    from_logits = shot_report(logits, labels, counts, few="<=20")
    from_lists = shot_report([0, 1], [0, 0], np.array([500, 5]))
    few: float | None = from_lists.few
    error: float = expected_calibration_error(logits.softmax(1), labels)
    masks: dict[str, Tensor] = shot_groups(counts)
    plot_class_counts(counts).savefig("counts.png")
    plot_confusion_map(labels, labels.tolist(), torch.tensor(counts), by="group")
    print(from_logits.group_scores["few"], few, error, masks)
    return class_scores(labels, logits.argmax(1), len(counts))


def rest(dls: LTDataLoaders) -> None:
    bank = FeatureBank("features")
    sampler = ClassBalancedSampler(dls.train.dataset.targets)
    try:
        print(ltlearn.__version__, bank, sampler)
    except UserError as e:
        print(e)
