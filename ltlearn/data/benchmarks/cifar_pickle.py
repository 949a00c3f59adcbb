"""Read the pickles of CIFAR without `pickle`: only numbers, text, lists, dictionaries and arrays.

`pickle.load` calls what a file names, and sets the state of what it made. Both are harmful even
with a list of allowed names: the state of a NumPy dtype can turn bytes of the file into a pointer.
This module interprets the few opcodes that a CIFAR file has. `pickletools` splits the file into
opcodes, and runs none of them.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["read_pickle"]

_MAX_MEMO = 10_000_000  # entries; CIFAR-100 has 200,000


def read_pickle(content: bytes) -> Any:
    r"""Return the value in a pickle that holds numbers, text, lists, dictionaries and arrays.

    Text of Python 2 is decoded as Latin-1. Arrays hold unsigned bytes.

    Args:
        content: The content of the file.

    Raises:
        ValueError: If the file is damaged, or holds anything else.

    Example:
        >>> read_pickle(b"\x80\x02]q\x00(K\x01K\x02e.")
        [1, 2]
    """
    if not content:
        raise ValueError("the file is empty")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"the file is damaged: {e}") from None
    return machine.result()


@dataclass(frozen=True)
class _Name:
    """A function or class that the file names. It is never looked up."""

    text: str


@dataclass(frozen=True)
class _Byte:
    """The dtype of unsigned bytes."""


@dataclass(eq=False)
class _Array:
    """An array whose content follows in the file."""

    values: np.ndarray | None = None


_MARK = object()
# Nested tuples can share their parts, and their hash then takes for ever.
_Key = str | bytes | int
# What NumPy 1 and 2 write for an array.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_KNOWN = {*_RECONSTRUCT, *_FROM_BUFFER, "numpy.ndarray", "numpy.dtype", "_codecs.encode"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TEXT = {
    "STRING", "BINSTRING", "SHORT_BINSTRING",  # of Python 2
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_OF_LENGTH = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


@dataclass
class _Machine:
    """The stack and the memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, name: str, argument: Any) -> None:
        """Run an opcode.

        Args:
            name: Its name in `pickletools`.
            argument: Its argument, or None.
        """
        stack = self.stack
        if name in _TEXT or name in _NUMBERS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _OF_LENGTH:
            n = _OF_LENGTH[name]
            stack[-n:] = [tuple(stack[-n:])]
        elif name in _PUT or name == "MEMOIZE":
            if len(self.memo) >= _MAX_MEMO:
                raise ValueError("the file has too many values")
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise ValueError(f"the opcode {name} must not be in a CIFAR file")
            step(argument)

    def result(self) -> Any:
        """Return the value that the file holds."""
        if len(self.stack) != 1:
            raise ValueError("the file is damaged: it does not hold one value")
        return _finished(self.stack[0])

    def _mark(self, _) -> None:
        self.stack.append(_MARK)

    def _since_mark(self) -> list[Any]:
        """Return the values since the last mark, and remove them with the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("the file is damaged: a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _list(self, _) -> None:
        self.stack.append(self._since_mark())

    def _tuple(self, _) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _dict(self, _) -> None:
        self.stack.append(_pairs(self._since_mark()))

    def _append(self, _) -> None:
        value = self.stack.pop()
        _as(list, self.stack[-1]).append(value)

    def _appends(self, _) -> None:
        values = self._since_mark()
        _as(list, self.stack[-1]).extend(values)

    def _setitem(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _as(dict, self.stack[-1])[_as(_Key, key)] = value

    def _setitems(self, _) -> None:
        pairs = _pairs(self._since_mark())
        _as(dict, self.stack[-1]).update(pairs)

    def _global(self, argument: str) -> None:
        self._push_name(argument.replace(" ", ".", 1))

    def _stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(f"{_as(str, module)}.{_as(str, name)}")

    def _push_name(self, text: str) -> None:
        if text not in _KNOWN:
            raise ValueError(f"{text} must not be in a CIFAR file")
        self.stack.append(_Name(text))

    def _reduce(self, _) -> None:
        arguments, name = _as(tuple, self.stack.pop()), _as(_Name, self.stack.pop()).text
        if name == "numpy.dtype":
            kind = _as(str, arguments[0])
            if kind not in ("u1", "|u1"):
                raise ValueError(f"an array must hold unsigned bytes, not {kind!r}")
            made: Any = _Byte()
        elif name == "_codecs.encode":
            text, encoding = arguments
            if _as(str, encoding) != "latin1":
                raise ValueError(f"bytes are written as latin1, not as {encoding!r}")
            made = _as(str, text).encode("latin-1")
        elif name in _RECONSTRUCT:
            made = _Array()
        elif name in _FROM_BUFFER:
            content, dtype, shape, order = arguments
            made = _Array(_array(content, dtype, shape, order == "F"))
        else:
            raise ValueError(f"{name} must not be called in a CIFAR file")
        self.stack.append(made)

    def _build(self, _) -> None:
        """Fill an array. The state of a dtype holds its alignment, which bytes do not need."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Byte):
            return
        _, shape, dtype, is_fortran, content = _as(tuple, state)
        _as(_Array, made).values = _array(content, dtype, shape, is_fortran)


def _as(kind: type, value: Any) -> Any:
    """Return a value of a kind; raise a `ValueError` for another value."""
    if not isinstance(value, kind):
        raise ValueError(f"the file is damaged: a {type(value).__name__} is in a wrong place")
    return value


def _pairs(values: list[Any]) -> dict[str | bytes | int, Any]:
    """Return a dictionary of the keys and values that follow each other in a list."""
    return {_as(_Key, key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _array(content: Any, dtype: Any, shape: Any, is_fortran: Any) -> np.ndarray:
    """Return an array of bytes. NumPy checks that the content has the size of the shape."""
    _as(_Byte, dtype)
    if isinstance(content, str):  # text of Python 2
        content = content.encode("latin-1")
    sides = [_as(int, side) for side in _as(tuple, shape)]
    if min(sides, default=-1) < 0:
        raise ValueError(f"the shape {tuple(sides)} of an array is not possible")
    values = np.frombuffer(_as(bytes | bytearray, content), dtype=np.uint8)
    return values.reshape(sides, order="F" if is_fortran else "C")


def _finished(value: Any) -> Any:
    """Replace an array by its values. Only the outermost dictionary may hold arrays."""
    if isinstance(value, dict):
        return {key: _values(inner) for key, inner in value.items()}
    return _values(value)


def _values(value: Any) -> Any:
    if isinstance(value, _Array) and value.values is None:
        raise ValueError("the file is damaged: an array has no content")
    return value.values if isinstance(value, _Array) else value
