import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import ltlearn

ROOT = Path(__file__).parents[1]
PUBLIC = sorted(ltlearn._LAZY)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported(name):
    value = getattr(ltlearn, name)
    assert value is getattr(importlib.import_module(ltlearn._LAZY[name]), name)
    assert name in dir(ltlearn) and name in ltlearn.__all__


def test_callbacks_and_samplers_have_public_names():
    import ltlearn.callbacks
    from ltlearn.data.samplers import SAMPLERS

    names = {*ltlearn.callbacks.__all__, *(kind.__name__ for kind in SAMPLERS.values())}
    assert names <= set(PUBLIC)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'ltlearn' has no attribute 'nothing'"):
        _ = ltlearn.nothing


def test_the_version_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ltlearn.__version__ == project["version"]


def exported_names():
    """Name to file of all that the modules list in `__all__`, read without importing them."""
    names = dict.fromkeys(PUBLIC, "ltlearn/__init__.py")
    for file in sorted((ROOT / "ltlearn").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], "id", None) == "__all__"
                and isinstance(node.value, ast.List | ast.Tuple)
            ):
                for item in node.value.elts:
                    if isinstance(item, ast.Constant) and not item.value.startswith("_"):
                        names.setdefault(item.value, str(file.relative_to(ROOT)))
    return names


def test_no_public_name_is_one_of_fastai():
    import fastai.vision.all as fastai_all

    theirs = {name for name in vars(fastai_all) if not name.startswith("_")}
    assert "FocalLoss" in theirs and len(theirs) > 1000  # that we look in the right place
    ours = exported_names()
    assert "load_settings" in ours
    assert {name: file for name, file in ours.items() if name in theirs} == {}


def documented_args(docstring):
    """The names below `Args:`, or None where there is no such section."""
    lines = iter(inspect.cleandoc(docstring or "").splitlines())
    if "Args:" not in lines:  # runs up to that line
        return None
    names = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        if found := re.match(r" {4}\*{0,2}(\w+)(?: \(.*?\))?:", line):
            names.append(found[1])
    return names


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def test_documented_args_reads_our_style():
    docstring = """Do it.

    Args:
        y: One
            more: line.
        **flags: Two.

    Returns:
        z: Three.
    """
    assert documented_args(docstring) == ["y", "flags"]
    assert documented_args("Do it.") is None


def with_arguments():
    # An exception is raised by us and caught by the user, who never gives it arguments.
    errors = {"UserError"}
    return [name for name in PUBLIC if name not in errors]


@pytest.mark.parametrize("name", with_arguments())
def test_args_of_a_docstring_are_those_of_the_signature(name):
    public = getattr(ltlearn, name)
    assert inspect.getdoc(public), f"{name} has no docstring"
    if not inspect.isclass(public):
        assert (documented_args(public.__doc__) or []) == parameters(public)
        return
    # A class that inherits `__init__` from fastai or torch answers for its own methods alone.
    if "__init__" in vars(public) or hasattr(public, "__dataclass_fields__"):
        assert (documented_args(public.__doc__) or []) == parameters(public.__init__)
    for method_name, method in vars(public).items():
        function = getattr(method, "__func__", method)
        if method_name.startswith("_") or not inspect.isfunction(function):
            continue
        documented = documented_args(function.__doc__)
        assert documented in (None, parameters(function)), f"{name}.{method_name}"
