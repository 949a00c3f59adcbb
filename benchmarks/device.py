"""Measure ltlearn on a CUDA device: tests, PAVA, waits, the speed of loops, published figures.

    python benchmarks/device_pack.py .gpu --data CIFAR100       # at home: wheels and images, 48 MiB

    # On the GPU machine, from the repository's root, with .gpu in it: 540 s, then 190 s
    python3 benchmarks/device.py --pack .gpu --out OUT --parts floor,tests,headline --budget 520
    python3 benchmarks/device.py --pack .gpu --out OUT --parts pava,waits,loops --budget 170

    python benchmarks/device.py --dry --out OUT                 # all parts, tiny, on a CPU

The machine needs PyTorch alone: the wheels of the pack are installed into a folder of their own.
Each part is a process with a time limit, so that one that fails or hangs stops no other. Results
are JSON lines, printed and appended to OUT/results.jsonl as they come; a step that fails is a line,
too. `--parts name:seconds` sets the limit of a part; the last part may take all of the time left.
Put the lines of a GPU into results/speed/device-GPU.jsonl, which the page on speed reads.

    floor      versions; matrix products, copies and launches: the least that a step can take
    tests      `pytest -m gpu`
    headline   CIFAR-100-LT 100 as the recipe cifar100_lt_glmc trains it, beside the published
               figures; for as many of its epochs as fit (`--protocols paper clean`)
    pava       ours, torch operations, SciPy through the host, merging in rounds
    waits      waits of the host in a step by the line, and kernels in a step
    loops      images/s and ms a step of each loop, CE and GLMC, width 16 and 64
"""

import argparse
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = {"floor": 40, "tests": 130, "headline": 340, "pava": 50, "waits": 50, "loops": 120}
RECIPE = "cifar100_lt_glmc"
GPU_TESTS = [f"tests/{name}" for name in ("device", "isotonic", "losses", "heads", "callbacks")]
# The loops of stage 1: attributes of the learner, and megabytes of images on the device.
LOOPS = {
    "events": ({"resident": "never"}, "0"),
    "events, data on the device": ({"resident": "never"}, "auto"),
    "resident": ({"resident": "always", "capture_steps": False}, "auto"),
    "captured": ({"resident": "always", "capture_steps": True}, "auto"),
}
ARGS = argparse.Namespace()


def emit(**row) -> None:
    line = json.dumps({"part": ARGS.part, **row}, default=str)
    print(line, flush=True)
    with (ARGS.out / "results.jsonl").open("a") as file:
        file.write(line + "\n")


def left() -> float:
    """Return the seconds that this part has left."""
    return ARGS.end - time.time()


def attempt(step, call, *args, **kwargs):
    """Run a step of a part; an error is a result, too."""
    begun = time.time()
    try:
        return call(*args, **kwargs)
    except (Exception, SystemExit) as e:
        where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames_of(e)[-6:]]
        seconds = round(time.time() - begun, 1)
        emit(failed=step, error=f"{type(e).__name__}: {e}"[:600], where=where, seconds=seconds)
        return None


class Reasons(logging.Handler):
    """Emit why the library does not train as fast as it can, each reason once in a part."""

    PHRASES = ("cannot be captured", "capture failed", "send events", "copied to it")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def emit(self, record) -> None:
        text, error = record.getMessage(), record.exc_info and record.exc_info[1]
        if not any(phrase in text for phrase in self.PHRASES) or (text, str(error)) in self.seen:
            return
        self.seen.add((text, str(error)))
        where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames_of(error)[-8:]]
        emit(reason=text, **({"error": str(error)[:600], "where": where} if error else {}))


def frames_of(error) -> list:
    return traceback.extract_tb(error.__traceback__) if error else []


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call, rounds: int = 20, warm: int = 2) -> float:
    """Return the median time of a call, measured on the device where there is one."""
    import torch

    times = []
    for i in range(warm + rounds):
        wait()
        begun = time.perf_counter()
        if torch.cuda.is_available():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            wait()
            taken = first.elapsed_time(last)
        else:
            call()
            taken = 1e3 * (time.perf_counter() - begun)
        if i >= warm:
            times.append(taken)
    return statistics.median(times)


def captured(call):
    """Return a function that replays a call as a CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# -- data and learners ---------------------------------------------------------------------------


def load_images() -> dict:
    """Return the images and classes of both parts, uint8 (N, H, W, 3), and the statistics."""
    import numpy as np

    if ARGS.dry or not (ARGS.pack / "data.npz").exists():
        if not ARGS.dry:
            emit(warning=f"{ARGS.pack}/data.npz is missing: noise takes the place of CIFAR-100-LT")
        counts = [30, 12, 8, 5] if ARGS.dry else [max(5, int(500 * 0.954**c)) for c in range(100)]
        side, rng = (8 if ARGS.dry else 32), np.random.default_rng(0)
        y, test_y = np.repeat(range(len(counts)), counts), np.repeat(range(len(counts)), 5)
        means = rng.integers(60, 190, (len(counts), 1, 1, 3))
        draw = [(means[t] + rng.integers(-60, 60, (len(t), side, side, 3))) for t in (y, test_y)]
        train, test = ((x.astype(np.uint8), t) for x, t in zip(draw, (y, test_y), strict=True))
        return {"train": train, "test": test, "stats": ([0.5] * 3, [0.25] * 3), "split": "noise"}
    from device_pack import decode

    file = np.load(ARGS.pack / "data.npz", allow_pickle=False)
    parts = {
        part: (decode(file[f"{part}_webp"], file[f"{part}_ends"]), file[f"{part}_y"])
        for part in ("train", "test")
    }
    stats = file["mean"].tolist(), file["std"].tolist()
    return {**parts, "stats": stats, "split": str(file["split"])}


def make_learner(width: int, steps: int):
    """Return a learner of a CIFAR ResNet whose epoch has some steps of 64 images."""
    import numpy as np
    import torch

    from ltlearn import LTDataLoaders, lt_learner

    data, bs = load_images(), 8 if ARGS.dry else 64
    x, y = data["train"]
    rows = np.resize(np.arange(len(y)), steps * bs)
    test = tuple(a[:1000] for a in data["test"])
    # Class names, because the rows may miss a class.
    dls = LTDataLoaders.from_arrays(
        x[rows], y[rows], valid=test, bs=bs, stats=data["stats"], device=device(),
        classes=[str(c) for c in range(int(y.max()) + 1)],
    )  # fmt: skip
    torch.manual_seed(0)
    arch = "resnet20_cifar" if ARGS.dry else "resnet32_cifar"
    return lt_learner(dls, arch, pretrained=False, width=width)


def device() -> str:
    return "cpu" if ARGS.dry else "cuda"


def callbacks_of(method: str) -> list:
    from ltlearn import GLMC

    return [GLMC(0.0, 1.2, 4.0)] if method == "glmc" else []


def use_loop(name: str, learn) -> None:
    """Set how a learner trains, and where its images are."""
    attributes, megabytes = LOOPS[name]
    os.environ["LTLEARN_DEVICE_MEGABYTES"] = "" if megabytes == "auto" else megabytes
    for key, value in attributes.items():
        setattr(learn, key, value)


def loops() -> list[str]:
    return ["events", "resident"] if ARGS.dry else list(LOOPS)


# -- parts ---------------------------------------------------------------------------------------


def floor() -> None:
    import importlib.metadata as metadata

    import torch
    from waits import commit_of

    versions = {}
    for name in ("torch", "triton", "numpy", "scipy", "timm", "fastai", "fastcore", "pydantic"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    emit(
        python=sys.version.split()[0], versions=versions, cores=os.cpu_count(), gpu=gpu,
        cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), commit=commit_of(ROOT),
    )  # fmt: skip
    begun = time.time()
    import ltlearn.learner  # noqa: F401

    emit(import_seconds=round(time.time() - begun, 1))
    rounds, n = (2, 128) if ARGS.dry else (10, 8192)
    a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
    emit(matmul_tflops=round(2e-9 * n**3 / milliseconds(lambda: a @ b, rounds), 1))
    size = 1 << (20 if ARGS.dry else 30)
    a = torch.empty(size, dtype=torch.uint8, device=device())
    b = torch.empty_like(a)
    emit(copy_tb_per_s=round(2e-9 * size / milliseconds(lambda: b.copy_(a), rounds), 3))
    tiny = torch.zeros(8, device=device())

    def thousand():
        for _ in range(1000):
            tiny.add_(1)

    emit(launch_us=round(milliseconds(thousand, 3), 2))
    if not ARGS.dry:
        emit(launch_in_graph_us=round(milliseconds(captured(thousand), 5), 2))


def tests() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-m", "gpu", "-q", "-rfE"]
    command += ["--tb=short", "-p", "no:cacheprovider", "--durations=5"]
    command += ["-n", "0", "tests/device/test_gpu.py"] if ARGS.dry else ["-n", "6", *GPU_TESTS]
    begun = time.time()
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text = child.communicate(timeout=max(left() - 5, 1))[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        text = child.communicate()[0] + "\nended: no time left"
    (ARGS.out / "pytest.txt").write_text(text)
    lines = [line for line in text.splitlines() if line.strip()]
    failed = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))][:40]
    emit(pytest=lines[-1] if lines else "", failed_tests=failed, seconds=seconds_since(begun))


def seconds_since(begun: float) -> float:
    return round(time.time() - begun, 1)


def pava_rivals() -> None:
    import numpy as np
    import torch
    from merge_rounds import merge_in_rounds
    from scipy.optimize import isotonic_regression

    from ltlearn import pava

    def through_the_host(y):
        rows = y.detach().cpu().numpy().reshape(-1, y.shape[-1])
        fits = np.stack([isotonic_regression(row)["x"] for row in rows])
        return torch.from_numpy(fits.reshape(y.shape)).to(y.device, y.dtype)

    ways = {
        "ours": pava,
        "tensor_ops": lambda y: pava(y, engine="tensor_ops"),
        "merging in rounds": merge_in_rounds,
        "scipy": through_the_host,
    }

    def compare(batch: int, n: int) -> None:
        shape = (batch, n) if batch > 1 else (n,)
        generator = torch.Generator().manual_seed(n)
        y, grad = (torch.randn(*shape, generator=generator).to(device()) for _ in range(2))
        leaf, wanted = y.clone().requires_grad_(), through_the_host(y.double())
        row = {"n": n, "batch": batch}
        for name, call in ways.items():
            rounds = 2 if ARGS.dry else 5 if name == "scipy" or n * batch > 1e5 else 30
            row[f"{name}, error"] = float((call(y).double() - wanted).abs().max())
            row[f"{name}, us"] = round(1e3 * milliseconds(lambda c=call: c(y), rounds), 1)
            if name == "scipy":
                continue  # it has no backward
            both = lambda c=call: torch.autograd.grad(c(leaf), leaf, grad)  # noqa: E731
            row[f"{name}, with backward, us"] = round(1e3 * milliseconds(both, rounds), 1)
        if not ARGS.dry:
            ten = captured(lambda: [pava(y) for _ in range(10)])
            row["ours in a graph, us"] = round(100 * milliseconds(ten, 30), 1)
        emit(**row)

    for n in (10, 100) if ARGS.dry else (10, 100, 1_000, 8_142, 16_384, 100_000):
        for batch in (1, 64):
            if batch * n <= 2_000_000 and left() > 5:
                attempt(f"{batch} rows of {n}", compare, batch, n)


def around_steps(begin, end):
    """Return callbacks that call functions before and after the steps of each epoch.

    They handle no event of a step, so that any loop may train.
    """
    from fastai.callback.core import Callback

    class Before(Callback):
        order = 200

        def before_train(self):
            begin(self.learn.epoch)

    class After(Callback):
        order = -200

        def after_train(self):
            end(self.learn.epoch)

    return [Before(), After()]


def time_loop(method: str, width: int, loop: str) -> None:
    import torch

    steps = 5 if ARGS.dry else 60
    learn = make_learner(width, steps)
    use_loop(loop, learn)
    begun, times = [0.0], []

    def begin(epoch):
        wait()
        begun[0] = time.perf_counter()

    def end(epoch):
        wait()
        times.append(time.perf_counter() - begun[0])

    start = time.time()
    # The first epoch tunes convolutions and captures.
    learn.fit_stage1(3, 0.01, wd=5e-3, cbs=[*callbacks_of(method), *around_steps(begin, end)])
    least, cuda = min(times[1:]), torch.cuda.is_available()
    emit(
        method=method, width=width, loop=loop, ran=learn.loop_ran,
        precision=learn.precision, ms_per_step=round(1e3 * least / steps, 3),
        images_per_second=round(steps * learn.dls.bs / least), first_epoch_s=round(times[0], 2),
        peak_gb=round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        seconds=seconds_since(start),
    )  # fmt: skip
    if cuda:
        torch.cuda.reset_peak_memory_stats()


def time_loops() -> None:
    for width in (4,) if ARGS.dry else (64, 16):
        for method in ("glmc", "ce"):
            for loop in loops():
                if left() > (2 if ARGS.dry else 8):
                    attempt(f"{method} {width} {loop}", time_loop, method, width, loop)
    attempt("stage 2", time_stage2, 4 if ARGS.dry else 64)


def time_stage2(width: int) -> None:
    from ltlearn import SAMN

    learn = make_learner(width, 5 if ARGS.dry else 170)
    for what, epochs in (("extraction and one epoch", 1), ("twenty epochs of SAMN", 20)):
        wait()
        begun = time.perf_counter()
        learn.retrain_classifier(epochs, 5e-4, cbs=SAMN(), select="last")
        wait()
        emit(what=what, seconds=round(time.perf_counter() - begun, 3))


def waits() -> None:
    if ARGS.dry:
        # There is no device to wait for; the pretended one counts.
        from waits import count, import_library

        import_library(ROOT)
        for row in count(["ce", "glmc"]):
            emit(what="counted on a pretended device", **row)
        return
    for method in ("glmc", "ce"):
        for loop in loops():
            if left() > 8:
                attempt(f"waits {method} {loop}", find_waits, method, loop)
                attempt(f"kernels {method} {loop}", count_kernels, method, loop)


def find_waits(method: str, loop: str) -> None:
    """Count the waits of a step by the line that asks for them, as CUDA itself reports them."""
    import warnings

    import torch

    steps = 20
    learn = make_learner(64, steps)
    use_loop(loop, learn)

    def begin(epoch):
        torch.cuda.set_sync_debug_mode("warn" if epoch == 1 else "default")

    def end(epoch):
        torch.cuda.set_sync_debug_mode("default")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        learn.fit_stage1(2, 0.01, cbs=[*callbacks_of(method), *around_steps(begin, end)])
    found = Counter(
        f"{w.filename.split('site-packages/')[-1]}:{w.lineno}"
        for w in seen
        if "synchroniz" in str(w.message).lower()
    )
    emit(
        what="waits", method=method, loop=loop, ran=learn.loop_ran,
        waits_per_step=round(sum(found.values()) / steps, 3),
        where={line: round(n / steps, 3) for line, n in found.most_common(12)},
    )  # fmt: skip


def count_kernels(method: str, loop: str) -> None:
    """Profile an epoch: kernels in a step, their time on the device, and the time that passes."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    steps, state = 20, {}
    learn = make_learner(64, steps)
    use_loop(loop, learn)

    def begin(epoch):
        if epoch == 1:
            wait()
            state["profile"] = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            state["profile"].start()
            state["begun"] = time.perf_counter()

    def end(epoch):
        if epoch == 1:
            wait()
            state["wall"] = time.perf_counter() - state["begun"]
            state["profile"].stop()

    learn.fit_stage1(2, 0.01, cbs=[*callbacks_of(method), *around_steps(begin, end)])
    on_device = torch.autograd.DeviceType.CUDA
    kernels = [e for e in state["profile"].events() if e.device_type == on_device]
    times = Counter()
    for e in kernels:
        times[e.name[:80]] += e.device_time_total / 1e3 / steps
    emit(
        what="kernels", method=method, loop=loop, kernels_per_step=len(kernels) / steps,
        device_ms_per_step=round(sum(times.values()), 3),
        wall_ms_per_step=round(1e3 * state["wall"] / steps, 3),
        longest={name: round(ms, 3) for name, ms in times.most_common(12)},
    )  # fmt: skip


def headline() -> None:
    for protocol in ARGS.protocols:
        if left() > (2 if ARGS.dry else 60):
            attempt(f"headline, {protocol}", run_recipe, protocol)
        else:
            emit(protocol=protocol, skipped="no time left", seconds_left=round(left()))


def run_recipe(protocol: str) -> None:
    """Train as the recipe does, for as many of its epochs as fit into the time."""
    import tempfile

    from ltlearn.experiments.read_recipe import load_recipe

    changes = ["model.width=4", "stage1.epochs=2", "stage2.epochs=2"] if ARGS.dry else []
    changes += [f"protocol={protocol}", *ARGS.set]
    recipe, data = load_recipe(RECIPE, changes).settled(), load_images()
    per_epoch, ran = seconds_per_epoch(recipe, data)
    wanted = recipe.stage1.epochs
    # Stage 2, the last predictions and the files take the rest.
    fits = int((left() - (1 if ARGS.dry else 30)) / (1.03 * per_epoch))
    epochs = max(1, min(wanted, fits))
    emit(
        protocol=protocol, begins=RECIPE, split=data["split"], loop=ran,
        epoch_s=round(per_epoch, 3), epochs=epochs, epochs_of_the_recipe=wanted,
        seconds_left=round(left()),
    )  # fmt: skip
    recipe = load_recipe(RECIPE, [*changes, f"stage1.epochs={epochs}"]).settled()
    with tempfile.TemporaryDirectory() as folder:
        attempt(f"train, {protocol}", train_recipe, recipe, data, folder, epochs == wanted)


def learner_of(recipe, data):
    from fastai.torch_core import set_seed

    from ltlearn import LTDataLoaders
    from ltlearn.experiments.build import make_learner
    from ltlearn.experiments.options import RunOptions

    dls = LTDataLoaders.from_arrays(
        *data["train"], test=data["test"], protocol=recipe.protocol, stats=data["stats"],
        valid_pct=recipe.data.valid_pct, bs=recipe.stage1.batch_size, seed=0, device=device(),
    )  # fmt: skip
    set_seed(0)
    return make_learner(recipe, dls, RunOptions())


def seconds_per_epoch(recipe, data) -> tuple[float, str]:
    """Return how long an epoch with its validation takes, and the loop that runs it."""
    from ltlearn.experiments.stages import stage1_arguments

    learn, begun = learner_of(recipe, data), []

    def begin(epoch):
        wait()
        begun.append(time.perf_counter())

    arguments = {**stage1_arguments(recipe), "epochs": 4}
    learn.fit_stage1(**arguments, cbs=around_steps(begin, lambda epoch: None))
    # From the steps of one epoch to those of the next; the first epoch tunes and captures.
    least = min(b - a for a, b in pairwise(begun[-3:]))
    return least, learn.loop_ran


def train_recipe(recipe, data, folder: str, whole: bool) -> None:
    from ltlearn.experiments.options import RunOptions
    from ltlearn.experiments.stages import StageFolder, run_seed
    from ltlearn.methods import METHODS
    from ltlearn.utils.run_folder import Run

    begun, learn = time.time(), learner_of(recipe, data)
    run = Run.create(folder, "headline", f"{folder}/run")
    # No run resumes here, so checkpoints would only take time.
    os.environ["LTLEARN_CHECKPOINT_SECONDS"] = "600"
    notify = lambda text: emit(note=text, seconds=seconds_since(begun))  # noqa: E731
    result = run_seed(recipe, StageFolder(run, 0, RunOptions(), notify), learn)
    published = {e.method: e.accuracy for e in recipe.published() if e.protocol == recipe.protocol}
    for method, report in result.reports.items():
        figures = {
            name: None if value is None else round(100 * value, 2)
            for name, value in report.to_dict().items()
            if name in ("all", "balanced", "many", "medium", "few")
        }
        emit(
            protocol=recipe.protocol, method=METHODS[method].label, **figures,
            published=published.get(method) if whole else None, epochs=recipe.stage1.epochs,
            kept=result.selected[method], seconds=round(result.seconds[method], 1),
        )  # fmt: skip
    emit(protocol=recipe.protocol, whole_seconds=seconds_since(begun), stages=result.stages)
    for file in Path(folder).rglob("logs/*.csv"):
        (ARGS.out / f"{recipe.protocol}-{file.name}").write_bytes(file.read_bytes())
    attempt("save weights", save_weights, run.path / "checkpoints/seed0-stage1.safetensors", recipe)


def save_weights(file: Path, recipe) -> None:
    """Save the weights of stage 1 as float16, for comparisons elsewhere."""
    from safetensors.torch import load_file, save_file

    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(half, ARGS.out / f"{recipe.protocol}-stage1.safetensors")


RUN = {
    "floor": floor, "tests": tests, "headline": headline, "pava": pava_rivals, "waits": waits,
    "loops": time_loops,
}  # fmt: skip


# -- the parts, each in a process ------------------------------------------------------------------


def install() -> None:
    """Install the wheels of the pack into a folder of their own, once."""
    wheels, site = sorted((ARGS.pack / "wheels").glob("*.whl")), ARGS.pack / "site"
    if wheels and not site.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--target", str(site), *map(str, wheels)]
        begun = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        emit(installed=len(wheels), rc=done.returncode, seconds=seconds_since(begun))
        if done.returncode:
            emit(failed="pip", error=done.stderr[-600:])
    paths = [str(site.resolve()), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def run_part(name: str, limit: float) -> None:
    """Run a part in a process of its own, and end it when its time is over."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--part", name]
        + ["--end", str(time.time() + limit - (0 if ARGS.dry else 3))],
        start_new_session=True,
    )
    begun = time.time()
    try:
        rc = child.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        rc = f"ended after {limit:.0f} s"
    emit(rc=rc, part_seconds=seconds_since(begun))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("device-results"))
    parser.add_argument("--pack", type=Path, default=Path(".gpu"), help="folder of device_pack.py")
    parser.add_argument("--parts", default=",".join(PARTS), help="such as floor,headline:400")
    parser.add_argument("--budget", type=float, default=700, help="seconds for all parts")
    parser.add_argument("--protocols", nargs="+", default=["paper", "clean"])
    parser.add_argument("--set", action="append", default=[], help="change a key of the recipe")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    parser.parse_args(namespace=ARGS)
    ARGS.out.mkdir(parents=True, exist_ok=True)
    if ARGS.part:
        log = logging.getLogger("ltlearn")
        log.addHandler(Reasons())
        log.setLevel(logging.DEBUG)
        for name in ARGS.part.split(","):
            ARGS.part = name
            attempt(name, RUN[name])
        return 0
    # For libraries that ask the network, and for the files of compilers.
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}
    end = time.time() + ARGS.budget
    parts = [text.partition(":")[::2] for text in ARGS.parts.split(",")]
    if unknown := [name for name, _ in parts if name not in PARTS]:
        parser.error(f"{unknown[0]!r} is no part: give some of {', '.join(PARTS)}")
    ARGS.part = "start"
    install()
    if ARGS.dry:
        # One process, since the imports would take most of the time.
        os.environ |= {"OMP_NUM_THREADS": "1"}
        parts = [(",".join(name for name, _ in parts), "")]
    for i, (name, most) in enumerate(parts):
        ARGS.part, remaining = name, end - time.time()
        last = i == len(parts) - 1
        limit = remaining if last else min(float(most or PARTS[name]), remaining)
        if limit < 10:
            emit(skipped="no time left", seconds_left=round(limit))
        else:
            run_part(name, limit)
    lines = (ARGS.out / "results.jsonl").read_text().splitlines()
    failed = [row for row in map(json.loads, lines) if "failed" in row or row.get("rc")]
    return 1 if ARGS.dry and failed else 0


if __name__ == "__main__":
    sys.exit(main())
