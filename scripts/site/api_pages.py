"""The API reference: a page per public name, and an index by module."""

import doctest
import inspect
import json
from importlib import import_module
from pathlib import Path

import griffe

from ltlearn.methods import METHODS
from scripts.site.api_names import (
    PACKAGE,
    ROOT,
    PublicName,
    find_object,
    is_shown,
    public_modules,
    public_names,
    resolved,
    source,
)
from scripts.site.markup import (
    REPOSITORY,
    code,
    escape,
    fence,
    first_sentence,
    inline,
    page,
    paragraphs,
    table,
    write_page,
)
from scripts.site.method_facts import method_facts

_LINE = 88  # characters of a signature that stays on one line
_VALUE_LINES = 14  # lines of a constant that a page shows
# The way to call a method in examples, and its class.
_USUAL = {"learn.": "LTLearner", "dls.": "LTDataLoaders"}
_OTHERS = {"fastai": "https://docs.fast.ai/", "torch": "https://docs.pytorch.org/docs/stable/"}


def write(staging: Path) -> list[Path]:
    """Write the reference into the folder `api` of the staged sources, and the index of names.

    Args:
        staging: Folder of the staged sources.

    Returns:
        The files written.
    """
    links = Links()
    written = [
        write_page(staging / "api" / f"{public.page}.qmd", _page(public, links))
        for public in public_names()
    ]
    written.append(write_page(staging / "api" / "index.qmd", _index()))
    # smalldocs links names in backticks on all other pages with this file.
    symbols = json.dumps(links.symbols(), indent=1)
    return [*written, write_page(staging / "_symbols.json", symbols)]


class Links:
    """The pages and anchors of names, as pages of the folder `api` link to them."""

    def __init__(self):
        self.by_path: dict[str, str] = {}
        self.by_name: dict[str, str] = {}
        self.classes: dict[str | None, list[str]] = {}  # a class and its bases, by its name
        for public in public_names():
            address = f"{public.page}.qmd"
            paths = [public.path, *(f"{module}.{public.name}" for module in public.modules)]
            for path in paths:
                self.by_path.setdefault(path, address)
            self.by_name.setdefault(public.name, address)
            self.classes[public.name] = [public.name, *_base_names(public)]
            for member in _members(public):
                anchor = f"{address}#{member.name}"
                self.by_name.setdefault(f"{public.name}.{member.name}", anchor)
                for path in paths:
                    self.by_path.setdefault(f"{path}.{member.name}", anchor)
        for module in public_modules():
            self.by_path.setdefault(module, f"index.qmd#{module}")

    def find(self, name: str, owner: str | None = None, hidden: frozenset[str] = frozenset()):
        """Return the address of a name in backticks, or None.

        Args:
            name: The text between the backticks, also a call.
            owner: The class whose page it stands on.
            hidden: Names that mean something else there, such as parameters.
        """
        word = name.split("(")[0]
        if word in hidden or not word.replace(".", "").replace("_", "").isalnum():
            return None
        for prefix, kind in _USUAL.items():
            if word.startswith(prefix):
                word = f"{kind}.{word.removeprefix(prefix)}"
        candidates = [f"{kind}.{word}" for kind in self.classes.get(owner, ())]
        candidates += [word, f"LTLearner.{word}"]
        found = next((self.by_name[n] for n in candidates if n in self.by_name), None)
        return found or self.by_path.get(word)

    def symbols(self) -> dict[str, str]:
        """Return the index of names for pages anywhere on the site."""
        usual = {}
        for prefix, kind in _USUAL.items():
            for name, address in self.by_name.items():
                if name.startswith(f"{kind}."):
                    method = name.removeprefix(f"{kind}.")
                    usual |= {prefix + method: address, method: address}
        both = {**usual, **self.by_path, **self.by_name}
        return {name: f"/api/{address}" for name, address in sorted(both.items())}


class Context:
    """How names in the docstrings of one page become links.

    Args:
        links: All links.
        owner: The class of the page, if it is one.
        hidden: Parameters of the object that is described.
    """

    def __init__(self, links: Links, owner: str | None, hidden=()):
        self.links, self.owner, self.hidden = links, owner, frozenset(hidden)

    def __call__(self, name: str) -> str | None:
        return self.links.find(name, self.owner, self.hidden)

    def hide(self, parameters) -> "Context":
        """Return the context of a function: its parameters are no links."""
        return Context(self.links, self.owner, (p.name.lstrip("*") for p in parameters))

    def annotation(self, annotation) -> str:
        """Return a type as code with links to the library's own classes."""
        if annotation is None:
            return ""
        if isinstance(annotation, str):
            return code(annotation, self.links.by_name.get(annotation))
        parts = []
        for part in annotation.iterate(flat=True):
            text = part if isinstance(part, str) else str(part)
            address = None
            if isinstance(part, griffe.ExprName):
                address = self.links.by_path.get(resolved(part))
            shown = _entities(text)
            parts.append(f"[{shown}]({address})" if address else shown)
        # A quoted annotation, such as "LTLearner", shows its name alone.
        return f"<code>{''.join(parts).strip(chr(39) + chr(34))}</code>"


def _entities(text: str) -> str:
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for char in "|`\\{}*_[]$\"'":
        shown = shown.replace(char, f"&#{ord(char)};")
    return shown


def _base_names(public: PublicName) -> list[str]:
    try:
        target = find_object(public.path)
    except KeyError:
        return []
    return [base.name for base in target.mro()] if target.is_class else []


def _members(public: PublicName) -> list[griffe.Object]:
    """Return the documented members of a class, those of hidden bases included."""
    try:
        target = find_object(public.path)
    except KeyError:
        return []
    if not target.is_class:
        return []
    listed = {other.path for other in public_names()} - {public.path}
    members = {}
    for name, member in target.all_members.items():
        # A base class with a page of its own describes its members there.
        if is_shown(member) and member.canonical_path.rpartition(".")[0] not in listed:
            members[name] = member.final_target if member.is_alias else member
    own = str(target.filepath)
    return sorted(
        members.values(), key=lambda m: (str(m.filepath) != own, str(m.filepath), m.lineno)
    )


def _page(public: PublicName, links: Links) -> str:
    try:
        target = find_object(public.path)
    except KeyError:
        return _version_page(public)
    context = Context(links, public.name if target.is_class else None)
    if target.is_attribute:
        return _constant_page(public, target, context)
    kind = "class" if target.is_class else "function"
    callable_ = context.hide(target.parameters)
    blocks = [
        _place(public, target, kind),
        _methods_of(public),
        fence(signature(target, public.name)),
        *_docstring(target, callable_, headings=True),
    ]
    if target.is_class:
        blocks += [*_class_members(public, context), _inherited(public, target, links)]
    return page(public.name, _summary(target), *blocks, toc_depth=3, pagetitle=public.name)


def _version_page(public: PublicName) -> str:
    text = "The version of the installed library, as a text."
    example = fence(f"import {PACKAGE}\n\nprint({PACKAGE}.{public.name})")
    where = f"Text in [`{PACKAGE}`](index.qmd#{PACKAGE})."
    return page(escape(public.name), text, where, text, example)


def _constant_page(public: PublicName, target: griffe.Attribute, context: Context) -> str:
    lines = str(target.source).splitlines()
    if len(lines) > _VALUE_LINES:
        lines = [*lines[:_VALUE_LINES], "    ..."]
    text = _describe_constant(public, target)
    described, _, more = text.partition("\n\n")
    return page(
        public.name,
        first_sentence(described),
        _place(public, target, "constant"),
        fence("\n".join(lines)),
        paragraphs(more, context) if more else "",
        "[Every method has a page](../methods/index.qmd)." if public.name == "METHODS" else "",
        toc_depth=3,
        pagetitle=public.name,
    )


def _describe_constant(public: PublicName, target: griffe.Attribute) -> str:
    """Return the comment of a constant, or the docstring of its class if that is ours."""
    if comment := _comment_above(target):
        return comment
    kind = type(getattr(import_module(public.modules[0]), public.name))
    if kind.__module__.startswith(f"{PACKAGE}.") and kind.__doc__:
        return inspect.cleandoc(kind.__doc__).split("\n\nArgs:")[0]
    return f"A constant of {public.modules[0]}."


def _comment_above(target: griffe.Attribute) -> str:
    """Return the comment that describes a constant: the lines above, or the end of its line."""
    lines = Path(target.filepath).read_text(encoding="utf-8").splitlines()
    first, found = target.lineno - 1, []
    while first > 0 and lines[first - 1].startswith("# "):
        first -= 1
        found.insert(0, lines[first].removeprefix("# "))
    if not found and "  # " in lines[target.endlineno - 1]:
        text = lines[target.endlineno - 1].partition("  # ")[2]
        found = [] if text.startswith("noqa") else [text[0].upper() + text[1:] + "."]
    return " ".join(found)


def _place(public: PublicName, target: griffe.Object, kind: str) -> str:
    """Return the line on where a name is imported from and where its code is."""
    places = [f"[`{module}`](index.qmd#{module})" for module in public.modules]
    where = f"{kind.capitalize()} in {' and '.join(places)}."
    if not places:
        where = f"The type of a result; it lives in `{public.path.rpartition('.')[0]}`."
    return f"{where} [Source code]({source_address(target)})"


def _methods_of(public: PublicName) -> str:
    """Return the line on the methods that a name is a part of."""
    links = [
        f"[{escape(METHODS[method].label)}](../methods/{method}.qmd)"
        for method, facts in method_facts().items()
        if public.name in facts.api
    ]
    return (
        f"Part of {'the method' if len(links) == 1 else 'the methods'} {', '.join(links)}."
        if (links)
        else ""
    )


def source_address(target: griffe.Object) -> str:
    """Return the address of an object's first line on GitHub."""
    file = Path(target.filepath).resolve().relative_to(ROOT)
    return f"{REPOSITORY}/blob/main/{file.as_posix()}#L{target.lineno}"


def _summary(target: griffe.Object) -> str:
    return first_sentence(target.docstring.value) if target.docstring else ""


def signature(target: griffe.Object, name: str) -> str:
    """Return the signature as code: one line, or a parameter a line.

    Args:
        target: A function, a method or a class.
        name: The name to print.
    """
    if target.is_attribute:
        annotation = target.annotation
        return name if annotation is None else f"{name}: {_plain_annotation(annotation)}"
    arguments = _arguments(target)
    if target.is_class and not arguments:
        return f"class {name}"  # its constructor is another package's
    returns = None if target.is_class else target.returns
    end = ")" if returns is None else f") -> {_plain_annotation(returns)}"
    start = f"class {name}(" if target.is_class else f"{name}("
    line = start + ", ".join(arguments) + end
    if len(line) <= _LINE or not arguments:
        return line
    return start + "\n" + "".join(f"    {argument},\n" for argument in arguments) + end


def _plain_annotation(annotation) -> str:
    return str(annotation).strip("'\"")


def _arguments(target: griffe.Object) -> list[str]:
    kinds, shown, starred = griffe.ParameterKind, [], False
    is_bound = target.is_class or (
        target.parent is not None and target.parent.is_class and "staticmethod" not in target.labels
    )
    parameters = list(target.parameters)
    if is_bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    for parameter in parameters:
        if parameter.kind is kinds.keyword_only and not starred:
            shown, starred = [*shown, "*"], True
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(parameter.kind, "")
        starred = starred or stars == "*"
        text = stars + parameter.name
        if parameter.annotation is not None:
            text += f": {_plain_annotation(parameter.annotation)}"
        if parameter.default is not None and not stars:
            spaced = " = " if parameter.annotation is not None else "="
            text += f"{spaced}{parameter.default}"
        shown.append(text)
    return shown


def _docstring(target: griffe.Object, context: Context, headings: bool) -> list[str]:
    """Return the sections of a docstring as Markdown.

    Args:
        target: The object.
        context: Its links.
        headings: Whether sections get headings of their own, or bold words.
    """
    if target.docstring is None:
        return []
    blocks = []
    for section in target.docstring.parse("google"):
        title, body = _section(section, target, context)
        if headings and not title and not blocks:
            body = body.partition("\n\n")[2]  # the first paragraph is the page's description
        if title:
            blocks.append(f"## {title}" if headings else f"**{title}**")
        blocks.append(body)
    return blocks


def _section(section, target: griffe.Object, context: Context) -> tuple[str, str]:
    kinds = griffe.DocstringSectionKind
    if section.kind is kinds.text:
        return "", paragraphs(section.value, context)
    if section.kind is kinds.parameters:
        rows = [_parameter_row(item, target, context) for item in section.value]
        return "Parameters", table(["Parameter", "Meaning"], rows)
    if section.kind is kinds.raises:
        errors = [str(item.annotation) for item in section.value]
        rows = [
            [code(error, context(error)), inline(item.description, context)]
            for error, item in zip(errors, section.value, strict=True)
        ]
        return "Raises", table(["Error", "When"], rows)
    if section.kind in (kinds.returns, kinds.yields):
        text = " ".join(item.description for item in section.value)
        return "Returns" if section.kind is kinds.returns else "Yields", inline(text, context)
    if section.kind is kinds.admonition and section.title in ("Example", "Examples"):
        return "Example", example(section.value.contents)
    if section.kind is kinds.admonition:
        return section.title, paragraphs(section.value.contents, context)
    return section.kind.value.capitalize(), paragraphs(str(section.value), context)


def _parameter_row(item, target: griffe.Object, context: Context) -> list[str]:
    try:
        given = target.parameters[item.name.lstrip("*")]
    except KeyError:
        given = None
    name = f"<code>{_entities(item.name)}</code>"
    if given is None:
        return [name, inline(item.description, context)]
    type_ = context.annotation(given.annotation)
    default = "" if given.default is None or item.name.startswith("*") else code(str(given.default))
    if default:
        type_ = f"{type_}, default {default}" if type_ else f"default {default}"
    return [f"{name}<br>{type_}" if type_ else name, inline(item.description, context)]


def example(text: str) -> str:
    """Turn a doctest into a block of code and blocks of its output."""
    blocks, lines = [], []
    for piece in doctest.DocTestParser().parse(text):
        if not isinstance(piece, doctest.Example):
            if piece.strip():
                lines.append(piece.strip("\n"))
            continue
        lines.append(piece.source.rstrip("\n"))
        if piece.want or piece.exc_msg:
            blocks += [fence("\n".join(lines)), fence(piece.want, "text")]
            lines = []
    return "\n\n".join([*blocks, *([fence("\n".join(lines))] if lines else [])])


def _class_members(public: PublicName, context: Context) -> list[str]:
    members = _members(public)
    properties = [m for m in members if m.is_attribute]
    methods = [m for m in members if m.is_function]
    blocks = []
    for title, group in (("Attributes", properties), ("Methods", methods)):
        if group:
            blocks.append(f"## {title}")
            rows = [[f"[`{m.name}`](#{m.name})", inline(_summary(m), context)] for m in group]
            blocks.append(table(["Name", "Purpose"], rows))
        for member in group:
            inside = context.hide(member.parameters) if member.is_function else context
            blocks += [
                f"### {escape(member.name)} {{#{member.name}}}",
                fence(signature(member, _call_name(public, member))),
                *_docstring(member, inside, headings=False),
                f"[Source code]({source_address(member)})",
            ]
    return blocks


def _call_name(public: PublicName, member: griffe.Object) -> str:
    is_of_class = {"classmethod", "staticmethod"} & member.labels
    return f"{public.name}.{member.name}" if is_of_class else member.name


def _inherited(public: PublicName, target: griffe.Class, links: Links) -> str:
    """Return the list of base classes whose members are described elsewhere."""
    lines = []
    for base in _outer_bases(target, links):
        if base in links.by_path:
            lines.append(f"* [`{base.rpartition('.')[2]}`]({links.by_path[base]})")
            continue
        package, name = base.split(".")[0], base.rpartition(".")[2]
        if package in _OTHERS:
            lines.append(f"* `{name}` of [{package}]({_address(package, base)})")
    return "## Inherited\n\n" + "\n".join(dict.fromkeys(lines)) if lines else ""


def _address(package: str, base: str) -> str:
    known = {
        "fastai": {
            "Learner": "learner.html#learner", "Callback": "callback.core.html#callback",
            "DataLoaders": "data.core.html#dataloaders", "TfmdDL": "data.core.html#tfmddl",
        },
        "torch": {"Module": "generated/torch.nn.Module.html"},
    }  # fmt: skip
    return _OTHERS[package] + known[package].get(base.rpartition(".")[2], "")


def _outer_bases(target: griffe.Class, links: Links) -> list[str]:
    """Return the nearest bases that have a page, or are another package's."""
    found = []
    for base in target.bases:
        path = (
            resolved(base)
            if isinstance(base, griffe.ExprName)
            else getattr(base, "canonical_path", str(base))
        )
        if path.startswith(f"{PACKAGE}.") and path not in links.by_path:
            try:
                found += _outer_bases(find_object(path), links)
            except KeyError:
                continue
        else:
            found.append(path)
    return found


def _index() -> str:
    blocks = [
        "Every public name has a page. The names of the first table can be imported from `ltlearn` "
        "itself; the others live in the module that heads their table."
    ]
    everything = public_names()
    for module in public_modules():
        names = [public for public in everything if module in public.modules]
        text = source() if module == PACKAGE else find_object(module)
        summary = text.docstring.value.split("\n\n")[0] if text.docstring else ""
        blocks += [
            f"## {escape(module)} {{#{module}}}",
            inline(summary),
            table(["Name", "Purpose"], [_index_row(public) for public in names]),
        ]
    results = [public for public in everything if not public.modules]
    blocks += [
        "## Types of results {#results}",
        "Functions return these. They are not imported by name.",
        table(["Name", "Purpose"], [_index_row(public) for public in results]),
    ]
    return page("API reference", "Every public name, by module.", *blocks, toc_depth=2)


def _index_row(public: PublicName) -> list[str]:
    name = f"[`{public.name}`]({public.page}.qmd)"
    try:
        target = find_object(public.path)
    except KeyError:
        return [name, "The version of the installed library."]
    if target.is_attribute:
        return [name, inline(_describe_constant(public, target).split("\n\n")[0])]
    return [name, inline(target.docstring.value.split("\n\n")[0]) if target.docstring else ""]
