"""Stage 2 on cached features against stage 2 over the images, from the same finished stage 1.

    python benchmarks/stage2.py [--images 11165] [--epochs 20] [--json]

Both retrain the classifier with SAMN for as many epochs, on the same images of 32 pixels, with a
frozen ResNet-32 of width 16. The first includes the extraction of all features (training and
validation), with nothing cached; the second runs the frozen backbone over the images in each epoch.
"""

import argparse
import json
import time

import numpy as np
import torch

from ltlearn import SAMN, FeatureBank, LTDataLoaders, lt_learner


def make_learner(images: int):
    rng = np.random.default_rng(0)
    valid = max(10, images // 9)
    pixels = rng.integers(0, 256, (images + valid, 32, 32, 3), dtype=np.uint8)
    weights = 0.01 ** (np.arange(10) / 9)
    targets = np.concatenate(
        [np.arange(10), rng.choice(10, images + valid - 10, p=weights / weights.sum())]
    )
    dls = LTDataLoaders.from_arrays(
        pixels[:images], targets[:images], valid=(pixels[images:], targets[images:]), bs=64
    )
    torch.manual_seed(0)
    return lt_learner(dls, "resnet32_cifar", pretrained=False)


def seconds_of(learn, views: int, epochs: int) -> float:
    head = torch.nn.Linear(learn.model.head.in_features, learn.model.head.out_features)
    learn.model.head = head
    learn.bank = FeatureBank(dtype=learn.bank.dtype)  # nothing is known yet
    start = time.perf_counter()
    learn.retrain_classifier(epochs, views=views, cbs=SAMN())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=11165)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    learn = make_learner(args.images)
    seconds_of(learn, 1, 1)  # warm up
    over_images = seconds_of(learn, 0, args.epochs)
    cached = {views: seconds_of(learn, views, args.epochs) for views in args.views}
    result = {
        "images": args.images,
        "epochs": args.epochs,
        "threads": torch.get_num_threads(),
        "precision": learn.precision,
        "seconds_over_images": round(over_images, 2),
        "share_by_views": {str(v): round(s / over_images, 4) for v, s in cached.items()},
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.epochs} epochs of SAMN, {args.images} images, precision {learn.precision}")
    print(f"over the images: {over_images:.1f} s")
    for views, seconds in cached.items():
        print(f"on features of {views} view(s), extraction included: {seconds / over_images:.3f}")


if __name__ == "__main__":
    main()
