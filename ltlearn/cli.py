"""The command line. Heavy imports wait until a command needs them, so that help answers at once."""

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ltlearn.errors import UserError, check_choice, check_whole
from ltlearn.memory import keep_freed_memory

__all__ = ["app", "main"]

EXIT_OURS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="ltlearn",
    help="Long-tailed image recognition: train, retrain the classifier, and tell many, medium and "
    "few apart.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; exit with 0, 2 (a user's mistake), 1 (our own) or 130 (Ctrl-C)."""
    keep_freed_memory()
    # Names of files and classes may be undecodable, or beyond what a terminal can show.
    if getattr(sys.stdout, "errors", "") == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="ltlearn")
    except UserError as e:
        _stop(str(e), EXIT_USER)
    except (KeyboardInterrupt, EOFError):
        _stop("stopped.", EXIT_INTERRUPTED)
    except Exception as e:
        if os.environ.get("LTLEARN_DEBUG"):
            raise
        _stop(
            f"a mistake of ours: {type(e).__name__}: {e}. LTLEARN_DEBUG=1 shows where it happened.",
            EXIT_OURS,
        )


def _stop(sentence: str, code: int) -> None:
    print(f"ltlearn: {sentence}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        import ltlearn

        typer.echo(f"ltlearn {ltlearn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class _Stderr(logging.Handler):
    """Standard error as it is when a line is said: a progress bar puts the line above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line."""
        print(self.format(record), file=sys.stderr)  # noqa: T201


@contextmanager
def _voice(quiet: bool) -> Iterator[None]:
    """Send the library's warnings to standard error, a line each, and hide third parties' ones."""
    from ltlearn.progress import plain_lines
    from ltlearn.progress import quiet as silence

    log = logging.getLogger("ltlearn")
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("ltlearn: %(message)s"))
    level = os.environ.get("LTLEARN_LOG", "ERROR" if quiet else "WARNING").upper()
    before = log.level
    log.addHandler(handler)
    log.setLevel(level if level in ("DEBUG", "INFO", "WARNING", "ERROR") else "WARNING")
    try:
        with silence(quiet), plain_lines(_speaker(quiet)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@app.command()
def recipe(
    name: Annotated[
        str, typer.Argument(help="A name of `ltlearn recipes`, or a TOML file.", show_default=False)
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of the pictures.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as stage1.epochs=2."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="clean: choose on carved validation images. paper: on the test set, as published."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds to run.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink everything to seconds, to see that it runs.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; made under runs_path if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable pictures out.")
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="Links in the folder of a published list may lead out of it."
        ),
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run nothing: compare a finished run with the published figures.",
        ),
    ] = None,
    on_nan: Annotated[
        str,
        typer.Option(help="A step whose loss is not finite: stop there, or skip it."),
    ] = "stop",
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep the checkpoint of every epoch.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the backbone (torch.compile) for stage 1.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's event files, too.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run a benchmark: stage 1, stage 2, report."""
    from ltlearn.recipe import load_recipe
    from ltlearn.settings import load_settings

    if check is not None:
        _check(name, check, as_json)
        return
    # Those of `FiniteLoss`, which would import fastai.
    check_choice("--on-nan", on_nan, ("stop", "skip"))
    settings = load_settings(data_path=data, device=device, precision=precision)
    overrides = list(set_ or [])
    overrides += [f"protocol={json.dumps(protocol)}"] if protocol is not None else []
    overrides += [f"seeds={seeds}"] if seeds is not None else []
    flags = {"protocol": protocol, "seeds": seeds}
    wanted = load_recipe(
        name, overrides, {key: f"--{key}" for key, given in flags.items() if given is not None}
    )
    if smoke:
        wanted = wanted.smoke()
    if data is not None and wanted.data.dataset == "own":
        raise UserError(
            f"{name} says itself where its pictures are; give --set data.source={data}."
        )
    _run(
        wanted, settings, out, resume, quiet, as_json,
        suffix="-smoke" if smoke else "", skip_bad=skip_bad, on_nan=on_nan, keep_all=keep_all,
        tensorboard=tensorboard, compile=compile_, follow_links=follow_links,
    )  # fmt: skip


def _run(
    wanted, settings, out: Path | None, resume: bool, quiet: bool, as_json: bool,
    suffix: str = "", **options: Any,
) -> None:  # fmt: skip
    """Run a recipe in a folder of its own, and print what came out."""
    from ltlearn.run import Run

    run = Run.create(settings.runs_path, wanted.name + suffix, out, resume)
    program = os.environ.get("LTLEARN_PROGRAM", "ltlearn")
    command = shlex.join([program, *sys.argv[1:]])
    quiet = quiet or as_json
    with _voice(quiet):
        try:
            # fastai takes seconds to import: everything that can be refused has been by now.
            from ltlearn.runner import run_recipe

            result = run_recipe(
                wanted,
                run,
                data_path=settings.data_path,
                cache_path=settings.cache_path / "features",
                device=settings.device,
                precision=settings.precision,
                command=command,
                say=_speaker(quiet),
                **options,
            )
        except KeyboardInterrupt:
            again = shlex.join(
                [program, *_without_out(sys.argv[1:]), "--out", str(run.path), "--resume"]
            )
            _stop(
                f"stopped; what is finished is in {run.path}. Go on with: {again}", EXIT_INTERRUPTED
            )
        except UserError:
            run.remove_if_empty()
            raise
    if as_json:
        typer.echo(json.dumps({"run": str(run.path), **result.table.to_dict()}, indent=1))
        return
    if not quiet:
        from ltlearn.terminal import render_stages

        render_stages(result.manifest["stages"], file=sys.stderr)
    result.table.render()
    if not quiet:
        print(f"report: {run.path / 'report.md'}", file=sys.stderr)  # noqa: T201


def _check(name: str, path: Path, as_json: bool) -> None:
    """Print a run beside the published figures; exit with 1 where one is outside its tolerance."""
    from ltlearn.expected import check_run
    from ltlearn.recipe import load_recipe
    from ltlearn.terminal import render_rows

    checks, changes = check_run(name, _existing_run(path))
    head = ["method", "group", "published", "measured", "difference", "tolerance", "verdict"]
    if as_json:
        rows = [
            {
                **c.expected.model_dump(), "measured": c.measured, "difference": c.difference,
                "passed": c.passed,
            }
            for c in checks
        ]  # fmt: skip
        typer.echo(json.dumps({"run": str(path), "checks": rows, "changes": changes}, indent=1))
    else:
        protocol = checks[0].expected.protocol
        title = f"{name}: test accuracy in %, {protocol} protocol"
        render_rows(head, [c.row() for c in checks], title=title)
        for source in dict.fromkeys(c.expected.source for c in checks):
            typer.echo(f"published: {source}")
        typer.echo(f"status of the recipe: {load_recipe(name).status}")
        if changes:
            typer.echo(f"the run differs from the recipe: {'; '.join(changes)}")
    if not all(c.passed for c in checks):
        raise typer.Exit(1)


def _without_out(words: list[str]) -> list[str]:
    """Drop --out and --resume from a command line, to give them anew."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out=") and word != "--resume":
            kept.append(word)
    return kept


def _split(flag: str, text: str | None) -> list[str] | None:
    """Return the names between the commas of an option; None where it was not given."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UserError(f"{flag} {text!r} names nothing; give a name or more, or leave it out.")
    return names


def _speaker(quiet: bool):
    return (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))  # noqa: T201


@contextmanager
def _stoppable(then: str = "") -> Iterator[None]:
    """Say on Ctrl-C that the command has stopped: typer ends without a word."""
    try:
        yield
    except KeyboardInterrupt:
        _stop(f"stopped{then}.", EXIT_INTERRUPTED)


def _existing_run(path: Path):
    from ltlearn.run import Run

    if not path.is_dir():
        raise UserError(
            f"there is no run {path}; give the folder that `ltlearn recipe` or `train` wrote."
        )
    return Run(path)


_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
_DATA = Annotated[
    Path | None, typer.Option(help="Folder of the pictures; the run's own if not given.")
]
_DEVICE = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
_SELECTS = ("best", "last")
_SELECT = Annotated[
    str, typer.Option(help="Which epoch of stage 2 is kept: best (on validation) or last.")
]


_IMAGES = Annotated[
    Path | None,
    typer.Option(help="Folder that listed paths start from; that of the list if not given."),
]
_IMAGE_COL = Annotated[
    str | None,
    typer.Option(
        help="Column of a table with the paths, by name or number from 0; found by its name if not "
        "given."
    ),
]
_LABEL_COL = Annotated[str | None, typer.Option(help="Column of a table with the labels.")]
_SPLIT_COL = Annotated[
    str | None,
    typer.Option(help="Column of a table that says train, valid or test; none takes none."),
]
_SUFFIX = Annotated[
    str | None, typer.Option(help="What listed paths lack at their end, such as .jpg.")
]
_VALID = Annotated[
    Path | None, typer.Option(help="A table or annotations of the validation pictures.")
]
_TEST = Annotated[Path | None, typer.Option(help="A table or annotations of the test pictures.")]


def _reading(images, image_col, label_col, split_col, suffix, valid, test) -> dict[str, Any]:
    """Return how a list is read, by the names that a recipe has for it; None is not given."""

    def column(name: str | None) -> str | int | None:
        return int(name) if name is not None and name.isdecimal() else name

    return {
        "images": None if images is None else str(images),
        "image_col": column(image_col),
        "label_col": column(label_col),
        "split_col": False if split_col == "none" else column(split_col),
        "suffix": suffix,
        "valid": None if valid is None else str(valid),
        "test": None if test is None else str(test),
    }


@app.command()
def compare(
    run: _RUN,
    methods: Annotated[
        str | None,
        typer.Option(help="Names between commas; all of `ltlearn methods` if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method that draws at random.")] = 1,
    priors: Annotated[
        str | None, typer.Option(help="Class priors to test under, of uniform,train,reversed.")
    ] = None,
    select: _SELECT = "best",
    data: _DATA = None,
    device: _DEVICE = None,
    quiet: _QUIET = False,
    as_json: _JSON = False,
) -> None:
    """Compare every way to correct the classifier of a run, on the same features."""
    from ltlearn.methods import find_methods
    from ltlearn.settings import load_settings

    folder, names, tested = (
        _existing_run(run),
        _split("--methods", methods),
        _split("--priors", priors),
    )
    names = None if names is None else find_methods(names)
    check_choice("--select", select, _SELECTS)
    check_whole("--seeds", seeds, 1)
    settings = load_settings(device=device)
    quiet = quiet or as_json
    kept = f"; what is trained is in {run / 'compare'}, and the same command goes on from there"
    with _stoppable(kept), _voice(quiet):
        from ltlearn.priors import PRIORS
        from ltlearn.study import compare_run
        from ltlearn.terminal import render_rows

        for prior in tested or ():
            check_choice("--priors", prior, PRIORS)
        result = compare_run(
            folder, names, seeds,
            priors=tested or (), select=select, data_path=data,
            cache_path=settings.cache_path / "features", device=settings.device,
            say=_speaker(quiet),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"run": str(run), **result.to_dict()}, indent=1))
        return
    result.table().render()
    head, rows = result.prior_rows()
    if rows:
        render_rows(head, rows, title="accuracy in % under other class priors")
    if not quiet:
        print(f"report: {run / 'compare.md'}", file=sys.stderr)  # noqa: T201


@app.command()
def sensitivity(
    run: _RUN,
    methods: Annotated[
        str | None,
        typer.Option(help="Names between commas; max_norm,label_aware_smoothing,samn if not given"),
    ] = None,
    select: _SELECT = "best",
    data: _DATA = None,
    device: _DEVICE = None,
    quiet: _QUIET = False,
    as_json: _JSON = False,
) -> None:
    """Show how much each method's accuracy depends on its own hyper-parameter."""
    from ltlearn.methods import find_methods
    from ltlearn.settings import load_settings

    folder, settings = _existing_run(run), load_settings(device=device)
    names = None if methods is None else find_methods(_split("--methods", methods))
    check_choice("--select", select, _SELECTS)
    quiet = quiet or as_json
    with _stoppable(), _voice(quiet):
        from ltlearn.study import SENSITIVITY_METHODS, sensitivity_run
        from ltlearn.terminal import render_rows

        result = sensitivity_run(
            folder, names or SENSITIVITY_METHODS,
            select=select, data_path=data, cache_path=settings.cache_path / "features",
            device=settings.device, say=_speaker(quiet),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"run": str(run), **result.to_dict()}, indent=1))
        return
    head = ["method", "hyper-parameter", "tried", "lowest", "highest", "span"]
    render_rows(head, result.rows(), title="class-balanced accuracy in %")
    typer.echo(result.about_line())


@app.command()
def methods(as_json: _JSON = False) -> None:
    """List the ways to train or correct a classifier, and where their values are from."""
    from ltlearn.methods import METHODS
    from ltlearn.terminal import render_rows

    rows = [
        [name, m.label, m.kind, m.sampler, "new" if m.reset else "kept", m.source, m.values_from]
        for name, m in METHODS.items()
    ]
    head = ["name", "label", "kind", "sampler", "head", "source", "values from"]
    if as_json:
        typer.echo(json.dumps([dict(zip(head, row, strict=True)) for row in rows], indent=1))
    else:
        render_rows(head, rows)


@app.command()
def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the benchmarks that come with the library."""
    from ltlearn.recipe import load_recipe, recipe_names
    from ltlearn.terminal import render_recipes

    found = [load_recipe(name) for name in recipe_names()]
    if as_json:
        typer.echo(json.dumps([r.model_dump(mode="json") for r in found], indent=1))
    else:
        render_recipes(found)


@app.command()
def settings(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the defaults in force, and where each comes from."""
    from ltlearn.settings import load_settings
    from ltlearn.terminal import render_rows

    rows = load_settings().describe()
    if as_json:
        typer.echo(
            json.dumps(
                [dict(zip(("key", "value", "from"), r, strict=True)) for r in rows], indent=1
            )
        )
    else:
        render_rows(("key", "value", "from"), rows)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder per class, or train/, valid/, test/ with those; a CSV, TSV or JSON.",
            show_default=False,
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Read headers alone, look for no copies, time nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for inspection.md, inspection.json and class_counts.png."),
    ] = None,
    few: Annotated[str, typer.Option(help="Which classes are few-shot: <20 or <=20.")] = "<20",
    images: _IMAGES = None,
    image_col: _IMAGE_COL = None,
    label_col: _LABEL_COL = None,
    split_col: _SPLIT_COL = None,
    suffix: _SUFFIX = None,
    valid: _VALID = None,
    test: _TEST = None,
    device: _DEVICE = None,
    quiet: _QUIET = False,
    as_json: _JSON = False,
) -> None:
    """Tell what your pictures are like: counts, damage, copies, and how to begin."""
    from ltlearn.settings import load_settings

    path, device = path.expanduser(), load_settings(device=device).device
    if out is not None and out.expanduser().resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--out {out} is inside {path}, where it would be taken for a class; give a folder "
            "elsewhere."
        )
    with _stoppable(), _voice(quiet or as_json):
        from ltlearn.inspection import inspect_path
        from ltlearn.metrics import FEW_RULES

        check_choice("--few", few, FEW_RULES)
        found = inspect_path(
            path, quick=quick, few=few, device=device, timing_s=0.0 if quick else 3.0,
            **_reading(images, image_col, label_col, split_col, suffix, valid, test),
        )  # fmt: skip
        if out is not None:
            found.save(out.expanduser())
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        found.render()
    if out is not None and not (quiet or as_json):
        print(f"written: {out / 'inspection.md'}", file=sys.stderr)  # noqa: T201
    if found.stops:
        _stop(f"cannot train on {path}: {found.stops[0]}", EXIT_USER)


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="A benchmark, such as inat2018.", show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; data_path if not given.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it first, where a program may.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Links may lead out of the folder.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Fetch large sets without being asked.")
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Check a copy of a benchmark against what is published, or say how to get one."""
    from ltlearn.settings import load_settings

    root = load_settings(data_path=root).data_path.expanduser()
    with _stoppable(), _voice(as_json):
        from ltlearn.data.benchmarks import check_benchmark, download_benchmark

        if download:
            report = download_benchmark(
                name, root, confirm=(lambda question: True) if yes else _ask
            )
        else:
            report = check_benchmark(name, root, follow_links)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as e:
        if isinstance(e.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise UserError(
            "nothing was fetched: it is to be confirmed, and there is nobody to ask; give --yes."
        ) from None


_SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as stage2.epochs=10."),
]
_METHOD = Annotated[
    str, typer.Option(help="Of `ltlearn methods`, between commas: how the classifier is retrained.")
]
_SIZE = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels that pictures are brought to; that of small pictures of one size, "
        "else 224, if not given."
    ),
]
_SEEDS = Annotated[int | None, typer.Option(help="How many seeds to run.")]
_PROTOCOL = Annotated[
    str | None,
    typer.Option(help="clean: choose on validation images. paper: on the test folder."),
]
_OUT = Annotated[
    Path | None, typer.Option(help="Folder of the run; made under runs_path if not given.")
]
_RESUME = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
_PRECISION = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
_WORKERS = Annotated[
    int | None, typer.Option(help="Processes that read pictures from disk.", min=0)
]
_SKIP_BAD = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable pictures out.")]
_ON_NAN = Annotated[
    str, typer.Option(help="A step whose loss is not finite: stop there, or skip it.")
]
_KEEP_ALL = Annotated[bool, typer.Option("--keep-all", help="Keep the checkpoint of every epoch.")]
_TENSORBOARD = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard's event files, too.")
]


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder per class; or train/ and any of valid/, test/, each with those; or a "
            "CSV, TSV or JSON file that lists pictures.",
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
    method: _METHOD = "samn",
    stage1: Annotated[
        str | None, typer.Option(help="How the backbone is trained: ce, mixup, cutmix or glmc.")
    ] = None,
    size: _SIZE = None,
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
    images: _IMAGES = None,
    image_col: _IMAGE_COL = None,
    label_col: _LABEL_COL = None,
    split_col: _SPLIT_COL = None,
    suffix: _SUFFIX = None,
    valid: _VALID = None,
    test: _TEST = None,
    seeds: _SEEDS = None,
    protocol: _PROTOCOL = None,
    set_: _SET = None,
    out: _OUT = None,
    resume: _RESUME = False,
    device: _DEVICE = None,
    precision: _PRECISION = None,
    num_workers: _WORKERS = None,
    skip_bad: _SKIP_BAD = False,
    on_nan: _ON_NAN = "stop",
    keep_all: _KEEP_ALL = False,
    tensorboard: _TENSORBOARD = False,
    quiet: _QUIET = False,
    as_json: _JSON = False,
) -> None:
    """Train on your own pictures: stage 1, stage 2, report."""
    if weights is not None and pretrained is not None:
        flag = "--pretrained" if pretrained else "--no-pretrained"
        raise UserError(f"--weights and {flag} exclude each other; leave one out.")
    options = {
        "model.arch": arch, "stage1.epochs": epochs, "stage1.method": stage1, "data.size": size,
        "model.pretrained": pretrained if weights is None else str(weights), "stage1.lr": lr,
        "stage1.batch_size": batch_size,
        **_of_data(_reading(images, image_col, label_col, split_col, suffix, valid, test)),
    }  # fmt: skip
    _run_own(
        data, method, options, set_, seeds, protocol, out, resume, device, precision, quiet,
        as_json, num_workers=num_workers, skip_bad=skip_bad, on_nan=on_nan, keep_all=keep_all,
        tensorboard=tensorboard,
    )  # fmt: skip


@app.command()
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
            help="Pictures of the same classes, as for `ltlearn train`; the classifier's outputs "
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
    size: _SIZE = None,
    images: _IMAGES = None,
    image_col: _IMAGE_COL = None,
    label_col: _LABEL_COL = None,
    split_col: _SPLIT_COL = None,
    suffix: _SUFFIX = None,
    valid: _VALID = None,
    test: _TEST = None,
    seeds: _SEEDS = None,
    protocol: _PROTOCOL = None,
    set_: _SET = None,
    out: _OUT = None,
    resume: _RESUME = False,
    device: _DEVICE = None,
    precision: _PRECISION = None,
    num_workers: _WORKERS = None,
    skip_bad: _SKIP_BAD = False,
    on_nan: _ON_NAN = "stop",
    quiet: _QUIET = False,
    as_json: _JSON = False,
) -> None:
    """Retrain the classifier of a model that you have trained: features, stage 2, report."""
    if method is None:
        method = "crt" if reset else "samn"
    options = {
        "model.arch": arch, "data.size": size,
        **_of_data(_reading(images, image_col, label_col, split_col, suffix, valid, test)),
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
    """Make a recipe of somebody's own pictures, and run it."""
    from ltlearn.settings import load_settings

    check_choice("--on-nan", on_nan, ("stop", "skip"))
    methods = _split("--method", method)
    settings = load_settings(device=device, precision=precision)
    where = settings.runs_path if out is None else out
    if where.expanduser().resolve().is_relative_to(data.expanduser().resolve()):
        what = f"--out {out}" if out is not None else f"the folder of runs, {where},"
        raise UserError(
            f"{what} is inside {data}, where it would be taken for a class; give "
            f"{'a' if out is not None else '--out with a'} folder elsewhere."
        )
    with _stoppable(), _voice(quiet or as_json):
        from ltlearn.own import own_recipe

        wanted = own_recipe(
            data, methods, {**options, "seeds": seeds, "protocol": protocol},
            set_ or [], checkpoint=checkpoint, reset=reset, skip_bad=skip_bad,
        )  # fmt: skip
    _run(wanted, settings, out, resume, quiet, as_json, on_nan=on_nan, skip_bad=skip_bad, **more)


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, or a .safetensors file of its checkpoints."
        ),
    ],
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them at any depth."),
    ],
    method: Annotated[
        str | None, typer.Option(help="Whose classifier of the run; the last, if not given.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to tell a picture.", min=1)] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row a picture here, and print no table.")
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            help="How often the classes occur where the pictures are from: uniform, train or "
            "reversed."
        ),
    ] = None,
    device: _DEVICE = None,
    as_json: _JSON = False,
) -> None:
    """Classify pictures with a trained model.

    Pictures that cannot be read are named on standard error, and the exit code is 1 then.
    """
    from ltlearn.settings import load_settings

    settings = load_settings(device=device)
    with _stoppable(), _voice(False):
        from ltlearn.predictor import Predictor, find_pictures
        from ltlearn.priors import PRIORS
        from ltlearn.progress import track
        from ltlearn.runner import pick_device
        from ltlearn.terminal import render_rows

        if target_prior is not None:
            check_choice("--target-prior", target_prior, PRIORS)
        predictor = Predictor(model, method, pick_device(settings.device), target_prior)
        # Their names alone: pictures are read a batch at a time.
        paths = list(find_pictures(pictures))
        found, bad = [], 0
        top = min(top, len(predictor.classes))
        head = ["file", *(f"{what} {k}" for k in range(1, top + 1) for what in ("class", "p"))]
        with _csv_writer(csv, head) as write:
            for one in track(predictor.predict(paths, top), len(paths), "classifying"):
                pairs = list(zip(one.classes, one.probabilities, strict=True))
                if one.error:
                    bad += 1
                    print(f"ltlearn: {one.error}", file=sys.stderr)  # noqa: T201
                    continue
                write([one.path, *(cell for c, p in pairs for cell in (c, f"{p:.6f}"))])
                if as_json or csv is None:
                    found.append((one.path, pairs))
    if as_json:
        rows = [
            {"file": path, "top": [{"class": c, "probability": p} for c, p in pairs]}
            for path, pairs in found
        ]
        told = {
            "model": str(model),
            "method": predictor.method,
            "pictures": rows,
            "unreadable": bad,
        }
        typer.echo(json.dumps(told, indent=1))
    elif found:
        rows = [[path, *(f"{c} {100 * p:.1f} %" for c, p in pairs)] for path, pairs in found]
        render_rows(["file", *(str(k) for k in range(1, top + 1))], rows)
    if bad:
        raise typer.Exit(1)


@contextmanager
def _csv_writer(path: Path | None, head: list[str]) -> Iterator[Any]:
    """Give a function that writes a row; the file takes its name when all are written, if any."""
    if path is None:
        yield lambda row: None
        return
    import csv

    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a file as --csv.")
    temporary, rows = path.with_name(f".tmp-{os.getpid()}-{path.name}"), 0
    try:
        try:
            file = open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as e:
            raise UserError(f"{path} cannot be written ({e.strerror}); give another --csv.") from e
        with file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)

            def write(row: list) -> None:
                nonlocal rows
                writer.writerow(row)
                rows += 1

            yield write
        if rows:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
