"""`ltlearn train` and `ltlearn retrain`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ltlearn.cli.console import configured_log, report_interrupt, split_names
from ltlearn.cli.options import (
    DEVICE,
    IMAGE_COL,
    IMAGES,
    JSON,
    KEEP_ALL,
    LABEL_COL,
    METHOD,
    ON_NAN,
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
    SUFFIX,
    TENSORBOARD,
    TEST,
    VALID,
    WORKERS,
    reading_values,
)
from ltlearn.cli.running import run_and_print
from ltlearn.errors import UserError, check_choice

__all__ = []


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder per class; or train/ and any of valid/, test/, each with those; or a "
            "CSV, TSV or JSON file that lists images.",
            show_default=False,
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(help="Any timm name; resnet50, or resnet32_cifar up to 96 pixels."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of stage 1; 30 from pre-trained weights, else 90.")
    ] = None,
    method: METHOD = "samn",
    stage1: Annotated[
        str | None, typer.Option(help="How the backbone is trained: ce, mixup, cutmix or glmc.")
    ] = None,
    size: SIZE = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Start from timm's weights; it does where there are any, if not given.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Start from this .safetensors or .pth file instead.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Of stage 1; 0.1 a 256 images of a batch (of 1024 at most), a tenth of it from "
            "pre-trained weights."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of stage 1; 64.")] = None,
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
    on_nan: ON_NAN = "stop",
    keep_all: KEEP_ALL = False,
    tensorboard: TENSORBOARD = False,
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Train on your own images: stage 1, stage 2, report."""
    if weights is not None and pretrained is not None:
        flag = "--pretrained" if pretrained else "--no-pretrained"
        raise UserError(f"--weights and {flag} exclude each other; leave one out.")
    options = {
        "model.arch": arch, "stage1.epochs": epochs, "stage1.method": stage1, "data.size": size,
        "model.pretrained": pretrained if weights is None else str(weights), "stage1.lr": lr,
        "stage1.batch_size": batch_size,
        **_of_data(reading_values(images, image_col, label_col, split_col, suffix, valid, test)),
    }  # fmt: skip
    _run_own(
        data, method, options, set_, seeds, protocol, out, resume, device, precision, quiet,
        as_json, num_workers=num_workers, skip_bad=skip_bad, on_nan=on_nan, keep_all=keep_all,
        tensorboard=tensorboard,
    )  # fmt: skip


def retrain(
    checkpoint: Annotated[
        Path,
        typer.Option(
            help="Your trained model: a state dict of timm's, .safetensors, .pth or .bin.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Images of the same classes, as for `ltlearn train`; the classifier's outputs "
            "are in the order of their sorted names.",
            show_default=False,
        ),
    ],
    arch: Annotated[str, typer.Option(help="Its name in timm.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(
            help="Of `ltlearn methods`, between commas; samn, or crt with --reset, if not given."
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Leave the model's classifier out and make a new one.")
    ] = False,
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
    on_nan: ON_NAN = "stop",
    quiet: QUIET = False,
    as_json: JSON = False,
) -> None:
    """Retrain the classifier of a model that you have trained: features, stage 2, report."""
    if method is None:
        method = "crt" if reset else "samn"
    options = {
        "model.arch": arch, "data.size": size,
        **_of_data(reading_values(images, image_col, label_col, split_col, suffix, valid, test)),
    }  # fmt: skip
    _run_own(
        data, method, options, set_, seeds, protocol, out, resume,
        device, precision, quiet, as_json, checkpoint=checkpoint, reset=reset,
        num_workers=num_workers, skip_bad=skip_bad, on_nan=on_nan,
    )  # fmt: skip


def _of_data(reading: dict[str, Any]) -> dict[str, Any]:
    return {f"data.{key}": value for key, value in reading.items()}


def _run_own(
    data: Path, method: str, options: dict, set_, seeds, protocol, out, resume, device, precision,
    quiet: bool, as_json: bool, *, checkpoint: Path | None = None, reset: bool = False,
    on_nan: str, skip_bad: bool, **more: Any,
) -> None:  # fmt: skip
    """Make a recipe of somebody's own images, and run it."""
    from ltlearn.utils.settings import load_settings

    check_choice("--on-nan", on_nan, ("stop", "skip"))
    methods = split_names("--method", method)
    settings = load_settings(device=device, precision=precision)
    where = settings.runs_path if out is None else out
    if where.expanduser().resolve().is_relative_to(data.expanduser().resolve()):
        what = f"--out {out}" if out is not None else f"the folder of runs, {where},"
        raise UserError(
            f"{what} is inside {data}, where it would be taken for a class; give "
            f"{'a' if out is not None else '--out with a'} folder elsewhere."
        )
    with report_interrupt(), configured_log(quiet or as_json):
        from ltlearn.experiments.own_data import own_recipe

        wanted = own_recipe(
            data, methods, {**options, "seeds": seeds, "protocol": protocol},
            set_ or [], checkpoint=checkpoint, reset=reset, skip_bad=skip_bad,
        )  # fmt: skip
    run_and_print(
        wanted, settings, out, resume, quiet, as_json, on_nan=on_nan, skip_bad=skip_bad, **more
    )
