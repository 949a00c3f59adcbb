"""The shape of the code, read from the syntax tree: who imports whom, and how large things are.

Each exception is written out here, with its reason.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ltlearn"

# From low to high: a package imports from its own level and from those above it in this list.
LEVELS = [
    {"defaults", "errors", "names"},
    {"utils"},
    {"isotonic"},
    {"losses"},
    {"heads"},
    {"metrics"},
    {"models"},
    {"posthoc"},
    {"data"},
    {"training", "callbacks", "methods"},
    {"reporting", "plots"},
    {"inspection", "comparison", "interpretation", "exporting", "cleaning"},
    {"compare"},
    {"learner"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
# Former places of modules, which import from their new places.
ALIASES = {"priors", "study"}

MAX_MODULE_LINES = 500
MAX_BODY_LINES = 60
MAX_PARAMETERS = 8

# A table or a kernel may be longer than a function or a module should be.
LONG_MODULES: set[str] = set()
LONG_BODIES = {
    "isotonic/triton_engine.py": "kernels",
}
# Functions that users call take their options by keyword.
PUBLIC_API = {
    "cli": "a command has a parameter for each option",
}


@cache
def modules() -> dict[str, ast.Module]:
    files = sorted(ROOT.rglob("*.py"))
    return {str(f.relative_to(ROOT)): ast.parse(f.read_text(encoding="utf-8")) for f in files}


def name_of(file: str) -> str:
    parts = ["ltlearn", *file.removesuffix(".py").split("/")]
    return ".".join(part for part in parts if part != "__init__")


def known_names() -> set[str]:
    return {name_of(file) for file in modules()} | {"ltlearn"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.Module, lazy: bool = False) -> list[tuple[str, str]]:
    """List (module, name) of what a module imports from ltlearn; lazily too if asked."""
    pairs, nodes = [], list(tree.body)
    while nodes:
        node = nodes.pop()
        if is_type_checking(node):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltlearn"):
            pairs += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs += [(a.name, "") for a in node.names if a.name.startswith("ltlearn")]
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return pairs


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "ltlearn"


def level_of(package: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if package in names)


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    body = function.body
    is_doc = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body = body[1:] if is_doc and isinstance(body[0].value.value, str) else body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def parameters(function: ast.FunctionDef) -> int:
    args = function.args
    names = [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
    return len([name for name in names if name not in ("self", "cls")])


def test_the_packages_are_those_of_the_levels():
    packages = {package_of(name_of(file)) for file in modules()} - {"ltlearn"}
    assert packages == set().union(*LEVELS) | ALIASES


def test_no_module_imports_itself_through_others():
    names = known_names()
    graph = {}
    for file, tree in modules().items():
        targets = set()
        for module, name in imported(tree):
            inner = f"{module}.{name}"
            targets.add(inner if inner in names else module)
        graph[name_of(file)] = targets - {name_of(file)}
    waiting = dict(graph)
    while waiting:
        free = [name for name, targets in waiting.items() if not targets & waiting.keys()]
        assert free, f"these modules import each other: {sorted(waiting)}"
        for name in free:
            del waiting[name]


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "inside functions"])
def test_no_module_imports_upwards(lazy):
    upward = []
    for file, tree in modules().items():
        package = package_of(name_of(file))
        if package in ALIASES | {"ltlearn"}:
            continue
        for module, name in imported(tree, lazy):
            target = package_of(module)
            if target == "ltlearn":
                # `import ltlearn` for its version; `from ltlearn import name` for a public name.
                continue
            if level_of(target) > level_of(package):
                upward.append(f"{file} imports {module}.{name}")
    assert upward == []


def test_no_private_name_is_imported_across_modules():
    private = [
        f"{file} imports {name} from {module}"
        for file, tree in modules().items()
        for module, name in imported(tree, lazy=True)
        if name.startswith("_") and name != "__version__"
    ]
    assert private == []


def strings(tree: ast.AST):
    """List the strings of a module with their lines, docstrings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_flag_of_the_command_line_outside_of_it():
    flags = [
        f"{file}:{line}: {text[:60]!r}"
        for file, tree in modules().items()
        if not file.startswith("cli/")
        for line, text in strings(tree)
        if re.search(r"(?<![\w-])--[a-z]", text)
    ]
    assert flags == []


def test_modules_are_short():
    long = {}
    for file in modules():
        lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
        if lines > MAX_MODULE_LINES:
            long[file] = lines
    assert {file: lines for file, lines in long.items() if file not in LONG_MODULES} == {}
    assert LONG_MODULES <= long.keys(), "an exception that is none any more"


def test_function_bodies_are_short():
    long = {}
    for file, tree in modules().items():
        for function in functions(tree):
            if body_lines(function) > MAX_BODY_LINES:
                long.setdefault(file, []).append(f"{function.name}: {body_lines(function)}")
    assert {file: names for file, names in long.items() if file not in LONG_BODIES} == {}
    assert LONG_BODIES.keys() <= long.keys(), "an exception that is none any more"


def public_functions(file: str, tree: ast.Module) -> set[ast.FunctionDef]:
    """Return the functions and methods that users call: what `__all__` lists."""
    exported = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            exported |= {e.value for e in ast.walk(node.value) if isinstance(e, ast.Constant)}
    public = set()
    for node in tree.body:
        if getattr(node, "name", "") not in exported:
            continue
        if isinstance(node, ast.FunctionDef):
            public.add(node)
        elif isinstance(node, ast.ClassDef):
            public |= {
                f
                for f in node.body
                if isinstance(f, ast.FunctionDef)
                and (f.name == "__init__" or not f.name.startswith("_"))
            }
    return public


def test_functions_below_the_public_api_take_few_parameters():
    many = []
    for file, tree in modules().items():
        if file.split("/")[0] in PUBLIC_API or file in LONG_BODIES:
            continue
        public = public_functions(file, tree)
        many += [
            f"{file}: {f.name} has {parameters(f)}"
            for f in functions(tree)
            if f not in public and parameters(f) > MAX_PARAMETERS
        ]
    assert many == []


def test_images_are_called_images():
    # It reads the keys that 0.1.0 wrote.
    exception = "utils/older_runs.py"
    named = [
        file
        for file in modules()
        if file != exception
        and re.search("picture", (ROOT / file).read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert named == []
