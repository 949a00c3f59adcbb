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
from typing import Annotated

import typer

from ltlearn.errors import UserError, check_choice
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
    from ltlearn.run import Run
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
    wanted = load_recipe(name, overrides)
    if smoke:
        wanted = wanted.smoke()
    run = Run.create(settings.runs_path, wanted.name + ("-smoke" if smoke else ""), out, resume)
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
                skip_bad=skip_bad,
                on_nan=on_nan,
                keep_all=keep_all,
                tensorboard=tensorboard,
                compile=compile_,
                command=command,
                say=(lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr)),  # noqa: T201
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
        from ltlearn.report import render_stages

        render_stages(result.manifest["stages"], file=sys.stderr)
    result.table.render()
    if not quiet:
        print(f"report: {run.path / 'report.md'}", file=sys.stderr)  # noqa: T201


def _check(name: str, path: Path, as_json: bool) -> None:
    """Print a run beside the published figures; exit with 1 where one is outside its tolerance."""
    from ltlearn.expected import check_run
    from ltlearn.report import render_rows

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


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


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
        raise UserError(f"there is no run {path}; give the folder that `ltlearn recipe` wrote.")
    return Run(path)


_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `ltlearn recipe`.")]
_DATA = Annotated[
    Path | None, typer.Option(help="Folder of the pictures; the run's own if not given.")
]
_DEVICE = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print the results alone.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
_SELECT = Annotated[
    str, typer.Option(help="Which epoch of stage 2 is kept: best (on validation) or last.")
]


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

    folder, names = _existing_run(run), _split(methods)
    names = None if names is None else find_methods(names)
    settings = load_settings(device=device)
    quiet = quiet or as_json
    kept = f"; what is trained is in {run / 'compare'}, and the same command goes on from there"
    with _stoppable(kept), _voice(quiet):
        from ltlearn.report import render_rows
        from ltlearn.study import compare_run

        result = compare_run(
            folder, names, seeds,
            priors=_split(priors) or (), select=select, data_path=data,
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
    names = None if methods is None else find_methods(_split(methods))
    quiet = quiet or as_json
    with _stoppable(), _voice(quiet):
        from ltlearn.report import render_rows
        from ltlearn.study import SENSITIVITY_METHODS, sensitivity_run

        result = sensitivity_run(
            folder, names or SENSITIVITY_METHODS,
            select=select, data_path=data, cache_path=settings.cache_path / "features",
            device=settings.device, say=_speaker(quiet),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"run": str(run), **result.to_dict()}, indent=1))
        return
    head = ["method", "hyper-parameter", "tried", "lowest", "highest", "span"]
    render_rows(head, result.rows(), title="class-balanced test accuracy in %")


@app.command()
def methods(as_json: _JSON = False) -> None:
    """List the ways to train or correct a classifier, and where their values are from."""
    from ltlearn.methods import METHODS
    from ltlearn.report import render_rows

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
    from ltlearn.report import render_recipes

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
    from ltlearn.report import render_rows
    from ltlearn.settings import load_settings

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
            metavar="DIR",
            help="A folder per class; or train/ and any of valid/, test/, each with those.",
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

        found = inspect_path(
            path, quick=quick, few=few, device=device, timing_s=0.0 if quick else 3.0
        )
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
    as_json: _JSON = False,
) -> None:
    """Check a copy of a benchmark against what is published, or say how to get one."""
    from ltlearn.settings import load_settings

    root = load_settings(data_path=root).data_path.expanduser()
    with _stoppable(), _voice(as_json):
        from ltlearn.data.benchmarks import check_benchmark, download_benchmark

        if download:
            report = download_benchmark(name, root, confirm=typer.confirm)
        else:
            report = check_benchmark(name, root, follow_links)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)
