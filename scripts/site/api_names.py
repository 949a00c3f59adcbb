"""The public names: where each is listed, where it is defined, and which page it has."""

import inspect
import logging
import pkgutil
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import griffe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ltlearn"
# The command line has its own page. The others hold parts of the library, not its interface.
INTERNAL = ("cli", "defaults", "experiments", "names", "page", "training", "utils")


@dataclass(frozen=True)
class PublicName:
    """A name that users import.

    Args:
        name: The name.
        path: Where it is defined, such as "ltlearn.callbacks.samn.SAMN".
        modules: The public modules that list it. Empty: it is only the type of a result.
        page: The name of its page, without suffix.
    """

    name: str
    path: str
    modules: tuple[str, ...]
    page: str = ""


def public_modules() -> dict[str, ModuleType]:
    """Return the modules whose `__all__` is the library's interface, `ltlearn` first."""
    package = import_module(PACKAGE)
    found = {PACKAGE: package}
    _add_modules(package, found)
    return found


def _add_modules(package: ModuleType, found: dict[str, ModuleType]) -> None:
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        is_top = package.__name__ == PACKAGE
        if info.name.rpartition(".")[2] in INTERNAL or not (info.ispkg or is_top):
            continue
        module = import_module(info.name)
        if getattr(module, "__all__", None):
            found[info.name] = module
        if info.ispkg:
            _add_modules(module, found)


@cache
def source() -> griffe.Module:
    """Return the library as griffe reads it: signatures and docstrings, nothing imported."""
    logging.getLogger("griffe").setLevel(logging.CRITICAL)
    return griffe.load(
        PACKAGE, search_paths=[str(ROOT)], resolve_aliases=True, docstring_parser="google"
    )


def find_object(path: str) -> griffe.Object:
    """Return the object of a path such as "ltlearn.losses.ldam.LDAMLoss"."""
    return source()[path.removeprefix(f"{PACKAGE}.")]


@cache
def public_names() -> tuple[PublicName, ...]:
    """Return every public name once, sorted, then the types that public functions return."""
    listed: dict[str, PublicName] = {}
    for module_name, module in public_modules().items():
        for name in module.__all__:
            path = _defined_at(module, name)
            known = listed.get(path, PublicName(name, path, ()))
            listed[path] = replace(known, modules=(*known.modules, module_name))
    names = sorted(listed.values(), key=lambda public: public.name.casefold())
    names += _result_types(set(listed))
    return tuple(_with_pages(names))


def _defined_at(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        path = f"{value.__module__}.{value.__qualname__}"
        if path.startswith(f"{PACKAGE}.") and value.__name__ == name:
            return path
    # A constant does not know its module: find the assignment that made it.
    for place in _walk(source()):
        member = place.members.get(name)
        if member is not None and not member.is_alias and member.is_attribute:
            if getattr(import_module(place.path), name, None) is value:
                return member.path
    return f"{module.__name__}.{name}"


def _walk(module: griffe.Module):
    yield module
    for child in module.modules.values():
        if not child.is_alias:
            yield from _walk(child)


def _result_types(known: set[str]) -> list[PublicName]:
    """Return the library's classes that public names return, and that no `__all__` lists."""
    found: dict[str, PublicName] = {}
    waiting = sorted(known)
    while waiting:
        for path in _returned(waiting.pop()):
            if path not in known and path not in found:
                found[path] = PublicName(path.rpartition(".")[2], path, ())
                waiting.append(path)
    return sorted(found.values(), key=lambda public: public.name.casefold())


def _returned(path: str) -> list[str]:
    try:
        target = find_object(path)
    except KeyError:
        return []
    functions = [target] if target.is_function else []
    if target.is_class:
        functions = [m for m in target.all_members.values() if is_shown(m)]
    paths = []
    for function in functions:
        returns = getattr(function, "returns", None) or getattr(function, "annotation", None)
        paths += [defined for defined in names_in(returns) if _is_class(defined)]
    return paths


def names_in(annotation) -> list[str]:
    """Return the paths of the library's names in an annotation, where each is defined."""
    if annotation is None or isinstance(annotation, str):
        return []
    names = [part for part in annotation.iterate(flat=True) if isinstance(part, griffe.ExprName)]
    return [path for name in names if (path := resolved(name)).startswith(f"{PACKAGE}.")]


def resolved(name: griffe.ExprName) -> str:
    """Return where a name in an annotation is defined; imports are followed."""
    path = name.canonical_path
    try:
        return find_object(path).canonical_path if path.startswith(f"{PACKAGE}.") else path
    except KeyError:
        return path


def _is_class(path: str) -> bool:
    try:
        return find_object(path).is_class
    except KeyError:
        return False


def is_shown(member: griffe.Object | griffe.Alias) -> bool:
    """Return whether a member of a class is documented: public, with a docstring, and ours."""
    if member.name.startswith("_") or not (member.is_function or member.is_attribute):
        return False
    return member.canonical_path.startswith(f"{PACKAGE}.") and member.docstring is not None


def _with_pages(names: list[PublicName]) -> list[PublicName]:
    """Give each name a page. Pages differ in more than case, for file systems that ignore it."""
    same = Counter(public.name for public in names)
    alike = Counter(public.name.casefold() for public in names)
    given = []
    for public in names:
        page = public.name.strip("_")
        if same[public.name] > 1:
            page = f"{public.modules[0].removeprefix(f'{PACKAGE}.')}.{public.name}"
        elif alike[public.name.casefold()] > 1 and _is_class(public.path):
            page = f"{public.name}-class"
        given.append(replace(public, page=page))
    return given


def page_of(name: str) -> str:
    """Return the page of a public name, without suffix; of several, the first.

    Raises:
        KeyError: If no public name has the name.
    """
    for public in public_names():
        if public.name == name:
            return public.page
    raise KeyError(name)
