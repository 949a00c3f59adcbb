"""Executes the notebooks of the site, and prepares them for the renderer."""

import asyncio
import hashlib
import html
import json
import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

REPOSITORY = "https://github.com/ltlearn/ltlearn"
COLAB = "https://colab.research.google.com/github/ltlearn/ltlearn/blob/main/nbs"
SECONDS_A_CELL = 300

TITLE = re.compile(r"\s*# [^\n]+\n\s*(?:> [^\n]+(?:\n|$))+")

# Offline, on one core, with plots at twice the resolution for sharp screens.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "offline",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning,ignore:IProgress not found",
}
# Figures that pyplot does not make are shown only if the inline backend is active from the start.
KERNEL_CONFIG = """
c.InteractiveShellApp.matplotlib = "inline"
c.InlineBackend.figure_formats = {"retina"}
c.InlineBackend.rc = {"figure.dpi": 96}
c.IPKernelApp.log_level = 40
"""


class BuildError(Exception):
    """A fault of the site's sources, in one sentence."""


def sources_digest(root: Path) -> str:
    """Return a digest of all that a notebook reads: library, recipes, results, benchmarks."""
    digest = hashlib.sha256()
    files = [*(root / "recipes").glob("*.toml"), *(root / "benchmarks").glob("*.py")]
    files += (root / "results").rglob("*.json*")
    for path in sorted([*(root / "ltlearn").rglob("*.py"), *files]):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    digest.update(KERNEL_CONFIG.encode())
    return digest.hexdigest()


async def _execute(path: Path, name: str, root: Path, work: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    if all(cell.cell_type != "code" for cell in notebook.cells):
        return notebook
    profile = work / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(KERNEL_CONFIG)
    # The kernel imports the package of this tree; the user's own settings stay out.
    environment = os.environ | KERNEL_ENVIRONMENT
    environment |= {"IPYTHONDIR": str(profile.parent), "PYTHONPATH": str(root)}
    environment.pop("MPLBACKEND", None)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_A_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        try:
            async with client.async_setup_kernel(env=environment, cwd=folder):
                for number, cell in enumerate(notebook.cells):
                    await client.async_execute_cell(cell, number)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
            raise BuildError(f"{name}: cell {number} fails:\n{reason}") from error
    return notebook


async def _execute_all(staged, root: Path, cache: Path, jobs: int, log) -> None:
    gate = asyncio.Semaphore(jobs)
    library = sources_digest(root)
    cache.mkdir(parents=True, exist_ok=True)

    async def one(path: Path, name: str) -> None:
        source = path.read_bytes()
        kept = cache / f"{hashlib.sha256(library.encode() + source).hexdigest()}.ipynb"
        if not kept.exists():
            async with gate:
                log(f"executing {name}")
                notebook = await _execute(path, name, root, cache.parent)
                # Only a complete result may have the name that the next build looks up.
                partial = kept.with_suffix(".partial")
                nbformat.write(notebook, partial)
                partial.replace(kept)
        path.write_bytes(kept.read_bytes())

    results = await asyncio.gather(
        *(one(path, name) for path, name in staged), return_exceptions=True
    )
    failures = [result for result in results if isinstance(result, BaseException)]
    if unexpected := [f for f in failures if not isinstance(f, BuildError)]:
        raise unexpected[0]
    if failures:
        raise BuildError("\n\n".join(map(str, failures)))


def execute(nbs: Path, root: Path, cache: Path, jobs: int = 2, log=print) -> None:
    """Execute every notebook below `nbs` in place, each in an empty folder and a kernel of its own.

    Args:
        nbs: Staged copy of the sources.
        root: The repository, whose package the kernels import.
        cache: Folder of results; a notebook is executed again when it or the library changes.
        jobs: Kernels at a time.
        log: Called with a line per notebook that is executed.

    Raises:
        BuildError: If a cell fails; it names each such notebook and cell.
    """
    staged = [(path, str(path.relative_to(nbs))) for path in sorted(nbs.rglob("*.ipynb"))]
    asyncio.run(_execute_all(staged, root, cache, jobs, log))


def _image_output(output: dict, alt: str) -> dict:
    """Replace a PNG at double resolution by an <img> of its nominal size."""
    data, metadata = output["data"], output.get("metadata", {}).get("image/png", {})
    size = "".join(
        f' {side}="{metadata[side]}"' for side in ("width", "height") if side in metadata
    )
    encoded = data["image/png"].replace("\n", "")
    address = f"data:image/png;base64,{encoded}"
    tag = f'<img src="{address}"{size} alt="{html.escape(alt)}" class="img-fluid">'
    return {**output, "data": {"text/html": tag}, "metadata": {}}


def _alt_text(source: str) -> str:
    option = re.search(r"^#\|\s*fig-(?:alt|cap):\s*(.+)$", source, re.MULTILINE)
    return option[1].strip().strip("\"'") if option else "Plot of the cell above"


def prepare(path: Path, name: str) -> None:
    """Add the line with the Colab badge to a staged notebook, and size its plots.

    Args:
        path: The staged notebook.
        name: Its path below `nbs`.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    up = "../" * name.count("/")
    badge = (
        "::: {.notebook-line}\n"
        f"[![Open in Colab]({up}images/colab.svg)]({COLAB}/{name}) "
        f"There, run `!pip install ltlearn` first. [Notebook]({REPOSITORY}/blob/main/nbs/{name})\n"
        ":::"
    )
    cells = notebook["cells"]
    # nbdev takes the whole first cell for the title block; what follows the description is text.
    head = TITLE.match("".join(cells[0]["source"])) if cells else None
    if head is None:
        raise BuildError(f"{name}: the first cell needs a title (# ...) and a description (> ...).")
    title_block, text = head[0].rstrip(), "".join(cells[0]["source"])[head.end() :].strip()
    cells[0]["source"] = title_block
    first = f"{badge}\n\n{text}".strip()
    cells.insert(1, {"cell_type": "markdown", "metadata": {}, "id": "first-line", "source": first})
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        alt = _alt_text("".join(cell["source"]))
        cell["outputs"] = [
            _image_output(o, alt)
            if "image/png" in o.get("data", {}) and "text/html" not in o["data"]
            else o
            for o in cell.get("outputs", [])
        ]
    path.write_text(json.dumps(notebook), encoding="utf-8")
