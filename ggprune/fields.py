"""Values of options records and arguments: checked by what their fields say, in one place."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.util import did_you_mean

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_TOKENS = re.compile(r"(\d+)\s*(k?)", re.IGNORECASE)
#: Types of fields that are checked: what they take, and its name in messages.
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "text"),
    "Path": ((str, Path), "a path"),
}
#: Bounds of a number, as ``types.option`` names them.
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
}


def read_size(text: str) -> int:
    """Read a number of bytes: 14G, 500M, 24GiB.

    Raises:
        InputError: it is none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a size; write 14G, 500M or 24GiB")
    exponent = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** exponent)


def read_tokens(text: str) -> int:
    """Read a number of tokens: 4096, or 32k (of 1024).

    Raises:
        InputError: it is none.
    """
    match = _TOKENS.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise InputError(f"{text!r} is not a number of tokens; write 4096 or 32k")
    return int(match[1]) * (1024 if match[2] else 1)


#: How text is read, by the field's metavar.
_READERS: dict[str, Callable[[str], int]] = {"SIZE": read_size, "TOKENS": read_tokens}


def check_fields(record: Any) -> None:
    """Check a record's values by its fields' types, choices and ranges; for ``__post_init__``.

    Sizes and numbers of tokens may be text (``13G``), lists stand for tuples, and a single text
    for a tuple of one.

    Raises:
        InputError: names the first field that is wrong, its value and what is expected.
    """
    for field in fields(record):
        given = getattr(record, field.name)
        value = _checked(field, given)
        if value is not given:
            object.__setattr__(record, field.name, value)


def check_known(function: Callable[..., Any], given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError, as Python does, for an argument that a function does not have."""
    known = [*known]
    for name in given:
        if name not in known:
            raise TypeError(
                f"{function.__name__}() got an unexpected keyword argument {name!r}."
                f"{did_you_mean(name, known)}"
            )


def _checked(field: Field[Any], value: Any) -> Any:
    about, kind = field.metadata, str(field.type)
    if value is None and (kind.endswith("| None") or field.default is None):
        return value
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple["):
        return _tuple(field.name, kind, value)
    if isinstance(value, str) and (read := _READERS.get(about.get("metavar") or "")):
        try:
            return read(value)
        except InputError as error:
            raise InputError(f"{field.name}={error.message}") from None
    if "Literal['auto']" in kind:
        if value == "auto":
            return value
        kind = "int"
    if choices := about.get("choices"):
        if value not in choices:
            near = did_you_mean(str(value), choices)
            raise _wrong(field.name, value, f"one of {', '.join(choices)}", near)
        return value
    if kind not in _KINDS:
        return value
    _check_kind(field.name, kind, value)
    if isinstance(value, Real):
        _check_range(field, value)
    return Path(value) if kind == "Path" else value


def _check_kind(name: str, kind: str, value: Any) -> None:
    taken, expected = _KINDS[kind]
    if not isinstance(value, taken) or (isinstance(value, bool) and kind != "bool"):
        raise _wrong(name, value, expected)


def _tuple(name: str, kind: str, value: Any) -> tuple[Any, ...]:
    item = kind.removeprefix("tuple[").split(",")[0]
    if isinstance(value, str) and item == "str":
        value = (value,)
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a tuple")
    for each in value if item in _KINDS else ():
        _check_kind(name, item, each)
    return tuple(value) if isinstance(value, list) else value


def _check_range(field: Field[Any], value: Any) -> None:
    for bound, (words, holds) in _BOUNDS.items():
        limit = field.metadata.get(bound)
        # What is not a number holds for none.
        if limit is not None and not holds(value, limit):
            raise _wrong(field.name, value, f"{words} {limit}")


def _wrong(name: str, value: Any, expected: str, more: str = "") -> InputError:
    return InputError(f"{name}={value!r:.60}: expected {expected}.{more}".removesuffix("."))
