"""The types of the public API, as the type checker of a user sees them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ltlearn

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests/typing"


def test_the_stub_names_what_is_loaded_on_first_use():
    stub = ast.parse((ROOT / "ltlearn/__init__.pyi").read_text(encoding="utf-8"))
    imported = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert imported == ltlearn._LAZY


def test_the_package_declares_its_types():
    assert (ROOT / "ltlearn/py.typed").is_file()


def test_a_program_of_a_user():
    """It is fast where mypy's cache is warm, as after `scripts/check` has checked the library."""
    pytest.importorskip("mypy")
    words = [str(PROGRAMS / name) for name in ("program.py", "misuse.py")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True
    )
    found = re.findall(r"(\w+)\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    lines = (PROGRAMS / "misuse.py").read_text(encoding="utf-8").splitlines()
    planted = [
        ("misuse", str(i), line.rpartition("# ")[2])
        for i, line in enumerate(lines, 1)
        if "  # " in line
    ]
    assert len(planted) == 3 and found == planted, done.stdout + done.stderr
