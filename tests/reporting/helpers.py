"""A finished run without any training, for tests and the benchmark of its page."""

import numpy as np

from ltlearn import LTDataLoaders, shot_report
from ltlearn.reporting.table import ResultRow, ResultTable
from ltlearn.utils.environment import environment_info
from ltlearn.utils.run_folder import Run

LABELS = {"ce": "CE", "lws": "LWS", "samn": "CE + SAMN"}


def make_counts(classes):
    """Training images per class, from 200 down to 2."""
    return np.geomspace(200, 2, classes).astype(int)


def make_logits(targets, counts, skill, seed):
    """Logits of a classifier that favours frequent classes the more, the smaller its skill is."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(targets), len(counts))).astype(np.float32)
    logits += (1 - skill) * np.log(counts).astype(np.float32)
    logits[np.arange(len(targets)), targets] += 0.8 + 1.5 * skill
    return logits


def kept_predictions(name, logits):
    """What a run keeps: the logits, or the five likeliest classes where logits are too many."""
    if logits.size <= 50_000_000:
        return {name: logits}
    classes = np.argpartition(-logits, 4, axis=1)[:, :5]
    classes = np.take_along_axis(
        classes, np.argsort(-np.take_along_axis(logits, classes, 1), axis=1), 1
    )
    shifted = np.take_along_axis(logits, classes, 1) - logits.max(1, keepdims=True)
    total = np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)
    return {f"{name}/classes": classes, f"{name}/probabilities": np.exp(shifted) / total}


def make_trajectory(classes, epochs=4):
    rng = np.random.default_rng(0)
    figures = {name: rng.random(epochs).tolist() for name in ("all", "balanced", "many", "medium")}
    return {
        "epoch": list(range(epochs)), "loss": [None, *rng.random(epochs - 1).tolist()],
        **figures, "few": rng.random(epochs).tolist(),
        "norms": (1 + rng.random((epochs, classes))).tolist(),
        "seconds": [float(e) for e in range(epochs)], "chosen": epochs - 1,
        "select_on": "validation", "select": "best",
    }  # fmt: skip


def make_run(folder, names, per_class=4, methods=("ce", "samn"), seeds=1, side=16):
    """Write a finished run into a folder; return it and the loaders of its images."""
    run, counts = Run(folder), make_counts(len(names))
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(len(names)), per_class)
    images = rng.integers(0, 256, (len(targets), side, side, 3), dtype=np.uint8)
    train = np.arange(len(names))
    dls = LTDataLoaders.from_arrays(
        images[:: per_class][: len(names)], train, valid=(images, targets), test=(images, targets),
        classes=names, device="cpu",
    )  # fmt: skip
    arrays, rows = {"targets": targets}, []
    for k, method in enumerate(methods):
        reports = []
        for seed in range(seeds):
            logits = make_logits(targets, counts, 0.2 + 0.4 * k, seed)
            arrays |= kept_predictions(f"seed{seed}/{method}", logits)
            reports.append(shot_report(logits, targets, counts, classes=names))
        rows.append(ResultRow(method, LABELS[method], reports, "last epoch", 1.5))
    split = dls.split.to_dict()
    table = ResultTable(rows, "clean", "exponential", split["train"], "<20", range(seeds), "made")
    run.save_npz("predictions.npz", **arrays)
    of_seed = {method: make_trajectory(len(names)) for method in methods}
    run.write_json("trajectories.json", [of_seed] * seeds, indent=None)
    values = {
        "name": "made", "title": "Made <up>", "seeds": seeds, "methods": list(methods),
        "model": {"arch": "resnet20_cifar"}, "stage1": {"epochs": 2},
        "provenance": {"stage1.epochs": "own"}, "expected": [],
    }  # fmt: skip
    manifest = {
        "recipe": "made", "title": "Made <up>", "status": "finished", "protocol": "clean",
        "command": "ltlearn recipe made --out 'runs/<b>'", "values": values, "data_path": "/data",
        "seeds": [{"seed": s, "split": split} for s in range(seeds)], "split": split,
        "classes": list(names), "class_counts": counts.tolist(),
        "training_images": int(counts.sum()), "validation_images": len(targets),
        "test_images": len(targets), "results": table.to_dict(),
        "stages": [{"stage": "stage 1", "method": "ce", "epochs": 2, "lr": 0.1, "seconds": 1.0}],
        **environment_info(),
    }  # fmt: skip
    run.write_json("manifest.json", manifest)
    return run, dls
