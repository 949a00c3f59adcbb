"""Every block of code in the prose of the documentation runs, and every command in it parses.

Python blocks of one page run in their order and share their names. A page finds small data in its
working directory, and names such as `learn` that it may use without making them (`prelude`). Models
and trainings are made small (`small`). A block that cannot run here states the reason:

    ```{.python not-run="needs an account of the hub"}
"""

import re
import shlex
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in (ROOT / "nbs").rglob("*.qmd") if not p.name.startswith("_"))
PAGES.append(ROOT / "README.md")
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=fence)\s*$", re.M | re.S)
NOT_RUN = re.compile(r'not-run="([^"]+)"')
CLASSES = {"bee": 60, "wasp": 24, "ant": 8, "moth": 3}


class Block(NamedTuple):
    """A block of code: its language, the line it begins on, the code, why it is not run."""

    language: str
    line: int
    code: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        words = info.strip("{}").split()
        language = words[0].lstrip(".") if words else "bash"
        reason = NOT_RUN.search(info)
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(language, line, match["code"], reason and reason[1]))
    return found


def in_language(*languages: str) -> list[Path]:
    return [p for p in PAGES if any(b.language in languages for b in blocks(p))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Return a folder with what a reader is supposed to have."""
    import numpy as np
    import pandas as pd
    import timm
    import torch
    from PIL import Image

    import ltlearn.models.cifar_resnet  # noqa: F401  (registers the architecture)

    folder, rng, rows = tmp_path_factory.mktemp("reader"), np.random.default_rng(0), []
    for c, (label, count) in enumerate(CLASSES.items()):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, c % 3] += np.uint8(40 * (c + 1) // 2)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
            rows.append({"image": f"{label}/{i}.png", "species": label})
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    Image.open(folder / "photos/bee/0.png").save(folder / "photo.jpg")
    model = timm.create_model("resnet20_cifar", num_classes=len(CLASSES), width=8)
    torch.save(model.state_dict(), folder / "mine.pth")
    return folder


@pytest.fixture
def small(monkeypatch):
    """Make every learner a small network, and every stage 1 one epoch."""
    import timm

    import ltlearn
    from ltlearn.learner import LTLearner, lt_learner

    fit = LTLearner.fit_stage1

    def small_learner(dls, arch="resnet50", pretrained=True, **kwargs):
        assert timm.is_model(arch), f"timm has no {arch}"
        pretrained = pretrained if isinstance(pretrained, str) else False
        if arch.startswith("vit"):
            tiny = {"depth": 1, "embed_dim": 24, "num_heads": 2}
            return lt_learner(dls, "vit_tiny_patch16_224", pretrained, **{**kwargs, **tiny})
        return lt_learner(dls, "resnet20_cifar", pretrained, **{**kwargs, "width": 8})

    def short_fit(self, epochs, *args, **kwargs):
        return fit(self, min(epochs, 4 if "milestones" in kwargs else 1), *args, **kwargs)

    monkeypatch.setattr(ltlearn, "lt_learner", small_learner)
    monkeypatch.setattr(LTLearner, "fit_stage1", short_fit)
    return small_learner


def prelude(small_learner) -> dict:
    """Return the names that a page may use without making them."""
    import torch
    from fastai.torch_core import set_seed
    from torch.utils.data import DataLoader, TensorDataset

    from ltlearn import LTDataLoaders

    set_seed(0)
    dls = LTDataLoaders.from_folder("photos", bs=16, device="cpu")
    learn = small_learner(dls)
    learn.fit_stage1(1, lr=0.05)
    counts = torch.tensor(list(CLASSES.values()))
    data = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % len(counts))
    model = torch.nn.Sequential()
    model.add_module("flat", torch.nn.Flatten())
    model.add_module("fc", torch.nn.Linear(192, len(counts)))
    return {
        "dls": dls, "learn": learn, "model": model, "class_counts": counts,
        "loader": DataLoader(data, batch_size=8),
    }  # fmt: skip


@pytest.mark.parametrize("page", in_language("python"), ids=name)
def test_python_runs(page, images, small, tmp_path, monkeypatch, capsys):
    import shutil

    import matplotlib.pyplot as plt

    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTLEARN_CACHE_PATH", str(tmp_path / "cache"))
    names = {"__name__": "__main__", **prelude(small)}
    with registrations_undone(names):
        for block in blocks(page):
            if block.language == "python" and block.not_run is None:
                # Empty lines before the code, so that a traceback has the line of the page.
                code = "\n" * (block.line - 1) + block.code
                exec(compile(code, name(page), "exec"), names)
    plt.close("all")


@contextmanager
def registrations_undone(names: dict):
    """Remove the methods and the kinds of head that the code with these names registers."""
    from ltlearn.heads.registry import unregister_head
    from ltlearn.methods import METHODS, unregister_method

    before = set(METHODS)
    try:
        yield
    finally:
        for added in set(METHODS) - before:
            unregister_method(added)
        for value in names.values():
            if isinstance(value, type):
                unregister_head(value)


@pytest.mark.parametrize("page", in_language("python"), ids=name)
def test_python_that_does_not_run_has_a_reason_and_no_syntax_error(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, f"{name(page)}, line {block.line}", "exec")
            assert block.not_run is None or len(block.not_run.split()) > 2


# ---------------------------------------------------------------- commands


def commands(text: str) -> list[list[str]]:
    """Return the words of each `ltlearn` command in a block of shell code."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "ltlearn " in line]
    found = []
    for line in words:
        for i, word in enumerate(line):
            if Path(word).name == "ltlearn" and all("=" in w for w in line[:i]):
                found.append(line[i + 1 :])
    return found


def check_command(words: list[str]) -> None:
    """Raise what typer raises for a command, and check what typer takes as any text."""
    import typer

    from ltlearn.cli.app import app
    from ltlearn.experiments.read_recipe import load_recipe
    from ltlearn.methods import METHODS

    group = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words in (["--help"], ["--version"])
        return
    assert words[0] in group.commands, words[0]
    given = group.commands[words[0]].make_context(words[0], words[1:]).params
    for key in ("method", "methods"):
        for method in (given.get(key) or "").split(","):
            assert method in ("", "best", *METHODS), method
    if words[0] == "recipe" and not given["name"].endswith(".toml"):
        load_recipe(given["name"], given["set_"] or ())


@pytest.mark.parametrize("page", in_language("bash", "console"), ids=name)
def test_commands_parse(page):
    for block in blocks(page):
        if block.language in ("bash", "console"):
            for words in commands(block.code):
                try:
                    check_command(words)
                except Exception as e:
                    raise AssertionError(
                        f"{name(page)}, line {block.line}: {' '.join(words)}: {e}"
                    ) from e


def test_a_wrong_command_is_found():
    with pytest.raises(Exception, match="epoch"):
        check_command(["train", "photos", "--epoch", "3"])
    with pytest.raises(AssertionError, match="smn"):
        check_command(["compare", "RUN", "--methods", "crt,smn"])
    with pytest.raises(ValueError, match=r"stage1\.epoch"):
        check_command(["recipe", "digits_lt", "--set", "stage1.epoch=3"])


@pytest.mark.parametrize("page", in_language("toml"), ids=name)
def test_toml_parses(page):
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)


# ---------------------------------------------------------------- what prose quotes


def templates() -> list[str]:
    """Return the texts of the library, with "…" in the place of each value."""
    import ast

    found = []
    for file in sorted((ROOT / "ltlearn").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:\.?\d*[sdgr]|\.3g)", "…", node.value))
    return found


def test_quoted_messages_are_those_of_the_library():
    page = ROOT / "nbs/guide/messages.qmd"
    quoted = re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.M)
    assert len(quoted) > 20
    known = templates()
    for message in quoted:
        parts = ".*".join(re.escape(part.strip()) for part in message.split("…"))
        assert any(re.search(parts, text, re.S) for text in known), message


def test_the_comparison_states_what_is_missing():
    page = (ROOT / "nbs/features.qmd").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows]
    rows = [row for row in rows if row[1] != "ltlearn" and not row[0].startswith("---")]
    assert len(rows) > 60 and all(len(row) == 5 for row in rows)
    assert all(re.match(r"\[yes\]\(|no\b", row[1]) for row in rows)
    missing = {row[0] for row in rows if row[1].startswith("no")}
    assert missing == {
        "ArcFace, triplet and contrastive losses",
        "Mining of hard pairs",
        "Retrieval metrics (recall at k)",
    }


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"{{{version}}}" in (ROOT / "nbs/citing.qmd").read_text(encoding="utf-8")
