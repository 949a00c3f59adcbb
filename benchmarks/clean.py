"""Precision and recall of `find_issues` on planted faults, by shot group.

    python benchmarks/clean.py [DATA] [--benchmark cifar10_lt] [--factor 100] [--epochs 8]
        [--flips counts|uniform] [--rate 0.08]

Wrong labels are planted in training and validation images, and a small ResNet is trained on them,
so that it learns them as a user's would. "counts" exchanges labels within the set: the counts of
the classes stay, and each class has the same share of wrong ones. "uniform" gives any other class:
rare classes then consist of wrong labels for the most part. cleanlab's filters get the same
probabilities. A tenth as many images are replaced by noise or a gradient, and as many test images
by a changed copy of a training image.
"""

import argparse
import io
import time
import warnings

import numpy as np
import torch
from PIL import Image

from ltlearn import LTDataLoaders, lt_learner
from ltlearn.cleaning.folds import FoldHeads
from ltlearn.metrics.shots import shot_groups
from ltlearn.reporting.text import markdown_table

FILTERS = ("prune_by_noise_rate", "both", "confident_learning", "low_normalized_margin")


def read_images(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, H, W, 3) and targets of a dataset in memory."""
    images = [dataset.get_batch([i])[0][0].permute(1, 2, 0).numpy() for i in range(len(dataset))]
    return np.stack(images), dataset.targets.numpy().copy()


def plant(targets: np.ndarray, classes: int, flips: str, rate: float, rng) -> np.ndarray:
    """Return labels of which a share is wrong."""
    given = targets.copy()
    if flips == "uniform":
        wrong = np.flatnonzero(rng.random(len(targets)) < rate)
        given[wrong] = (targets[wrong] + rng.integers(1, classes, len(wrong))) % classes
        return given
    chosen = []
    for c in range(classes):
        members = rng.permutation(np.flatnonzero(targets == c))
        chosen.append(members[: int(rate * len(members) + rng.random())])
    chosen = np.concatenate(chosen)
    order = rng.permutation(chosen)
    for _ in range(100):  # exchange those that would keep their class
        same = np.flatnonzero(targets[order] == targets[chosen])
        for k in same:
            other = rng.integers(len(order))
            order[k], order[other] = order[other], order[k]
    given[chosen] = targets[order]
    return given


def changed_copy(image: np.ndarray) -> np.ndarray:
    """Return an image after JPEG compression and a little more light."""
    stream = io.BytesIO()
    Image.fromarray(np.clip(image * 1.1, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=75)
    return np.asarray(Image.open(stream).convert("RGB"))


def odd_image(shape, rng) -> np.ndarray:
    """Return noise, or a gradient: an image of no class."""
    if rng.random() < 0.5:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    ramp = np.linspace(0, 255, shape[1])[None, :, None] * rng.uniform(0.3, 1, 3)
    return np.broadcast_to(ramp, shape).astype(np.uint8)


def figures(found: np.ndarray, wrong: np.ndarray, groups: dict[str, np.ndarray]) -> list[str]:
    """Return precision / recall (share of images found) for all images and each group."""
    cells = []
    for members in (np.ones(len(found), bool), *groups.values()):
        if not members.any():
            cells.append("–")
            continue
        hits, n = (found & wrong & members).sum(), (found & members).sum()
        precision = f"{hits / n:.2f}" if n else "–"
        recall = f"{hits / max(1, (wrong & members).sum()):.2f}"
        cells.append(f"{precision} / {recall} ({100 * n / members.sum():.0f} %)")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", help="folder of the images; digits_lt needs none")
    parser.add_argument("--benchmark", default="cifar10_lt")
    parser.add_argument("--factor", type=float, default=100)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--flips", choices=("counts", "uniform"), default="counts")
    parser.add_argument("--rate", type=float, default=0.08)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads that share a busy core wait for each other
    rng = np.random.default_rng(0)
    size = {"size": 32} if args.benchmark == "tiny_imagenet_lt" else {}
    dls = LTDataLoaders.from_dataset(
        args.benchmark, args.data, imbalance_factor=args.factor, test_per_class=50, **size
    )
    (x, y), (xv, yv), (xt, yt) = (read_images(dl.dataset) for dl in dls.loaders)
    given, given_valid = (plant(t, dls.c, args.flips, args.rate, rng) for t in (y, yv))
    n = max(5, int(args.rate * len(x) / 10))
    chosen = rng.permutation(np.flatnonzero(given == y))[: 2 * n]
    odd, copied = chosen[:n], chosen[n:]
    for i in odd:
        x[i] = odd_image(x[i].shape, rng)
    leaks = rng.permutation(len(xt))[: min(n, len(xt) // 4)]
    copied = copied[: len(leaks)]
    for i, k in zip(copied, leaks, strict=True):
        xt[k], yt[k] = changed_copy(x[i]), given[i]
    data = LTDataLoaders.from_arrays(
        x, given, valid=(xv, given_valid), test=(xt, yt), bs=64, device="cpu"
    )
    torch.manual_seed(0)
    learn = lt_learner(data, "resnet20_cifar", pretrained=False, width=args.width)
    began = time.perf_counter()
    learn.fit_stage1(args.epochs, lr=0.1)
    trained = time.perf_counter() - began
    accuracy = learn.shot_report().balanced
    began = time.perf_counter()
    issues = learn.find_issues()
    seconds = time.perf_counter() - began

    groups_of_classes = shot_groups(data.shot_counts)
    groups = {k: mask.numpy()[given] for k, mask in groups_of_classes.items()}
    wrong = given != y
    found = {kind: np.zeros(len(issues.images), bool) for kind in ("label", "unusual", "leak")}
    for one in issues.findings:
        if one.kind in found:
            found[one.kind][one.number] = True
    train = issues.images.span("train")
    rows = [["find_issues, training", *figures(found["label"][train], wrong, groups)]]
    valid = {k: mask.numpy()[given_valid] for k, mask in groups_of_classes.items()}
    rows.append(
        ["find_issues, validation",
         *figures(found["label"][issues.images.span("valid")], given_valid != yv, valid)]
    )  # fmt: skip
    rows += [
        [f"cleanlab {name}", *figures(mask, wrong, groups)]
        for name, mask in cleanlab_masks(learn, given)
    ]
    n_wrong = {k: f"{wrong[m].sum():,} of {m.sum():,}" for k, m in groups.items()}
    print(
        f"{args.benchmark}, imbalance factor {args.factor:g}, {len(x):,} training images, "
        f"{100 * wrong.mean():.1f} % wrong labels ({args.flips}; {n_wrong}); "
        f"{args.epochs} epochs in {trained:.0f} s, balanced accuracy {100 * accuracy:.1f} %; "
        f"find_issues took {seconds:.0f} s\n"
    )
    print("Wrong labels: precision / recall (share of the images that is suspected)\n")
    print(markdown_table(["", "all", *groups], ["---"] + ["---:"] * 4, rows))
    suggested = {one.number: one.suggested for one in issues.of("label")}
    right = [suggested[i] == data.vocab[y[i]] for i in suggested if i < len(y) and wrong[i]]
    print(f"\nsuggested class right: {100 * np.mean(right):.0f} % of the errors found")
    is_odd = np.zeros(len(x), bool)
    is_odd[odd] = True
    seen = found["unusual"][train] | found["label"][train]
    print(
        f"odd images: {100 * seen[odd].mean():.0f} % found, as unusual "
        f"{100 * found['unusual'][train][odd].mean():.0f} %; "
        f"{100 * found['unusual'][train][~is_odd].mean():.1f} % of the others are called unusual"
    )
    test = issues.images.span("test")
    is_leak = np.zeros(len(xt), bool)
    is_leak[leaks] = True
    print(f"leaks into test: {figures(found['leak'][test], is_leak, {})[0]}")


def cleanlab_masks(learn, given: np.ndarray):
    """Yield what cleanlab's filters suspect, on the probabilities that `find_issues` uses."""
    from cleanlab.filter import find_label_issues

    heads = FoldHeads(learn.features("train"), learn.dls.c, "cpu")
    p = np.zeros((len(given), learn.dls.c), np.float32)
    for index, values in heads.training_probabilities():
        p[index] = values
    for name in FILTERS:
        yield name, find_label_issues(given, p, filter_by=name, n_jobs=1)


if __name__ == "__main__":
    main()
