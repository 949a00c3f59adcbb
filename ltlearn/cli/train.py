"""`ltlearn train` and `ltlearn retrain`."""

from pathlib import Path
from typing import Annotated

import typer

from ltlearn.cli.options import (
    ARCH,
    DATA_SOURCE,
    DEVICE,
    IMAGE_COL,
    IMAGES,
    JSON,
    KEEP_ALL,
    LABEL_COL,
    MEAN,
    METHOD,
    ON_NAN_OPTION,
    OUT,
    PRECISION,
    PROTOCOL,
    QUIET,
    RESUME,
    SEEDS,
    SET,
    SIZE,
    SKIP_BAD,
    SPLIT_COL,
    STD,
    SUFFIX,
    TENSORBOARD,
    TEST,
    VALID,
    WEIGHTS_KEY,
    WORKERS,
)
from ltlearn.errors import UserError, spell
from ltlearn.names import DEFAULT_STAGE1, DEFAULT_STAGE2, DEFAULT_WITH_RESET, PROBE

__all__ = []


def train(
    data: DATA_SOURCE,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Architecture: any timm name. By default, resnet50, or resnet32_cifar for images "
            "of up to 96 pixels."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs of stage 1. By default, 30 from pre-trained weights, 90 from random ones, "
            "and 20 on features for --stage1 probe."
        ),
    ] = None,
    method: METHOD = None,
    stage1: Annotated[
        str | None,
        typer.Option(
            help="How to train the backbone: a stage-1 method of `ltlearn methods`; "
            f"{DEFAULT_STAGE1} by default. {PROBE} leaves it as it is, and trains a classifier on "
            "its features, in minutes."
        ),
    ] = None,
    size: SIZE = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Start from timm's weights, which is the default if timm has weights of the "
            "architecture.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Start from the weights in a .safetensors or .pth file.")
    ] = None,
    weights_key: WEIGHTS_KEY = None,
    mean: MEAN = None,
    std: STD = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of stage 1. By default, 0.1 per 256 images in a batch (0.01 if "
            "pre-trained), capped at batch size 1024."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Batch size of stage 1; 64 by default.")
    ] = None,
    grad_checkpointing: Annotated[
        bool,
        typer.Option(
            "--grad-checkpointing",
            help="Compute activations again in the backward pass of stage 1: less memory, about a "
            "third more time.",
        ),
    ] = False,
    images: IMAGES = None,
    image_col: IMAGE_COL = None,
    label_col: LABEL_COL = None,
    split_col: SPLIT_COL = None,
    suffix: SUFFIX = None,
    valid: VALID = None,
    test: TEST = None,
    seeds: SEEDS = None,
    protocol: PROTOCOL = None,
    set_: SET = None,
    out: OUT = None,
    resume: RESUME = False,
    device: DEVICE = None,
    precision: PRECISION = None,
    num_workers: WORKERS = None,
    skip_bad: SKIP_BAD = False,
    on_nan: ON_NAN_OPTION = "stop",
    keep_all: KEEP_ALL = False,
    tensorboard: TENSORBOARD = False,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Train a model on your own images: stage 1, stage 2, report."""
    from ltlearn.cli.running import OwnRun, RunFlags, read_options, run_own_and_print
    from ltlearn.experiments.own_data import read_statistics
    from ltlearn.methods import stage1_methods, usual_stage2
    from ltlearn.utils.settings import load_settings

    flags = RunFlags(
        load_settings(device=device, precision=precision),
        out=out, resume=resume, quiet=quiet, as_json=as_json, on_nan=on_nan, skip_bad=skip_bad,
        keep_all=keep_all, tensorboard=tensorboard, num_workers=num_workers,
    )  # fmt: skip
    if weights is not None and pretrained is not None:
        raise UserError(
            f"{spell('weights')} and {spell('pretrained', pretrained)} exclude each other; leave "
            "one out."
        )
    values = {
        "model.arch": arch, "stage1.epochs": epochs, "stage1.method": stage1, "data.size": size,
        "model.pretrained": pretrained if weights is None else str(weights), "stage1.lr": lr,
        "stage1.grad_checkpointing": grad_checkpointing or None,
        "stage1.batch_size": batch_size, "seeds": seeds, "protocol": protocol,
        "model.weights_key": weights_key, "data.mean": read_statistics("mean", mean),
        "data.std": read_statistics("std", std),
    }  # fmt: skip
    if method is None:
        # An unknown stage 1 is refused with the recipe, which names the option.
        known = stage1 in stage1_methods()
        method = usual_stage2(stage1) if known else DEFAULT_STAGE2
    reading = read_options(images, image_col, label_col, split_col, suffix, valid, test)
    run_own_and_print(OwnRun(data, method, values, reading, set_ or []), flags)


def retrain(
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="State dict of your trained timm model: a .safetensors, .pth or .bin file.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Images of the same classes, as for `ltlearn train`.",
            show_default=False,
        ),
    ],
    arch: ARCH,
    method: Annotated[
        str | None,
        typer.Option(
            help="How to retrain the classifier: names of `ltlearn methods`, separated by commas. "
            f"By default, {DEFAULT_STAGE2}, or {DEFAULT_WITH_RESET} with --reset."
        ),
    ] = None,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset",
            help="Replace the model's classifier by a new one. A method that needs a trained one "
            "then begins from a linear probe.",
        ),
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|A,B,C",
            help="Names of the classes in the order of the classifier's outputs: separated by "
            "commas, or a file with one on each line, or JSON. By default, what the checkpoint or "
            "a file beside it states, or the order of the data: the names of folders as text, "
            "numbers in a table by value.",
        ),
    ] = None,
    weights_key: WEIGHTS_KEY = None,
    mean: MEAN = None,
    std: STD = None,
    size: SIZE = None,
    images: IMAGES = None,
    image_col: IMAGE_COL = None,
    label_col: LABEL_COL = None,
    split_col: SPLIT_COL = None,
    suffix: SUFFIX = None,
    valid: VALID = None,
    test: TEST = None,
    seeds: SEEDS = None,
    protocol: PROTOCOL = None,
    set_: SET = None,
    out: OUT = None,
    resume: RESUME = False,
    device: DEVICE = None,
    precision: PRECISION = None,
    num_workers: WORKERS = None,
    skip_bad: SKIP_BAD = False,
    on_nan: ON_NAN_OPTION = "stop",
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Retrain the classifier of a trained model: stage 2, report."""
    from ltlearn.cli.running import OwnRun, RunFlags, read_options, run_own_and_print
    from ltlearn.experiments.own_data import read_classes, read_statistics
    from ltlearn.utils.settings import load_settings

    flags = RunFlags(
        load_settings(device=device, precision=precision),
        out=out, resume=resume, quiet=quiet, as_json=as_json, on_nan=on_nan, skip_bad=skip_bad,
        num_workers=num_workers,
    )  # fmt: skip
    if method is None:
        method = DEFAULT_WITH_RESET if reset else DEFAULT_STAGE2
    values = {
        "model.arch": arch, "data.size": size, "seeds": seeds, "protocol": protocol,
        "model.weights_key": weights_key, "model.classes": read_classes(classes),
        "data.mean": read_statistics("mean", mean), "data.std": read_statistics("std", std),
    }  # fmt: skip
    reading = read_options(images, image_col, label_col, split_col, suffix, valid, test)
    own = OwnRun(data, method, values, reading, set_ or [], checkpoint, reset)
    run_own_and_print(own, flags)
