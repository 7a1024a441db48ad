"""Writing a Modelfile's values: quoting, numbers, paths.

Ollama's reader takes a value as a bare line, in single or in triple double quotes. A quoted value
ends at the first newline where what was read so far, trimmed, ends with its closing quotes: no
escape exists. Characters that are not printable, but for newline, tab and space, are dropped.
"""

from __future__ import annotations

import math
import os
import struct
import unicodedata
from pathlib import Path

from ggprune.errors import InputError
from ggprune.publish.ollama.families import PARAMETERS

#: Instructions whose values are customarily written without quotes.
_BARE = ("FROM", "ADAPTER", "RENDERER", "PARSER")

#: What trims at the end of a line in Go's strings.TrimSpace, within printable text.
_SPACE = " \t\r\n"


def quote(value: str, what: str) -> str:
    """Write ``value`` in the plainest form that Ollama reads back unchanged, for an instruction.

    Raises:
        InputError: a line of a longer text ends with three quotes, which no form can hold, or a
            character would be dropped.
    """
    lost = unprintable(value)
    if lost:
        raise InputError(
            f"{what} holds {', '.join(f'U+{ord(c):04X}' for c in lost)}, which Ollama drops "
            "when it reads a Modelfile",
            remedy="Use a text or a file name without these characters.",
        )
    bare, single, triple = value, f'"{value}"', f'"""{value}"""'
    if what in _BARE:
        forms = (bare, single, triple)
    elif '"' in value or "\n" in value:
        forms = (triple, single, bare)
    else:
        forms = (single, triple, bare)
    for form in forms:
        if _reads_back(form, value):
            return form
    raise InputError(
        f'{what} has a line that ends with three quotes ("""), where Ollama would end the text: '
        "a Modelfile has no escape for them",
        remedy='Put any other character after the """ on that line.',
    )


def _reads_back(form: str, value: str) -> bool:
    """Whether Ollama's reader, given ``form`` and a newline, ends there with ``value``."""
    for end, character in enumerate(form + "\n"):
        if character in "\r\n":
            text = _unquote(form[:end].strip(_SPACE))
            if text is not None:
                return end == len(form) and text == value
    return False


def _unquote(text: str) -> str | None:
    """Return the value of a complete ``text``; None while its quotes are open."""
    for mark in ('"""', '"'):
        if text.startswith(mark):
            closed = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if closed else None
    return text


def unprintable(text: str) -> tuple[str, ...]:
    """Return the characters of ``text`` that Ollama's reader drops, each once, in order."""
    return tuple(dict.fromkeys(c for c in text if not _is_kept(c)))


def printable(text: str) -> str:
    """Return ``text`` as Ollama keeps it, except that spaces of other kinds become plain ones."""
    return "".join(c if _is_kept(c) else " " if c.isspace() else "" for c in text)


def is_unknown(character: str) -> bool:
    """Whether Python's Unicode tables lack a character: Ollama's may be newer and have it."""
    noncharacter = ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF
    return unicodedata.category(character) == "Cn" and not noncharacter


def _is_kept(character: str) -> bool:
    return character.isprintable() or character in "\n\r\t" or is_unknown(character)


def number(name: str, value: object) -> str:
    """Write the value of parameter ``name``: the shortest text that gives the same 32-bit value.

    A GGUF stores 0.95 as a 32-bit float, which Python shows as 0.949999988079071.

    Raises:
        InputError: Ollama has no such parameter, or the value is not of its type.
    """
    kind = PARAMETERS.get(name)
    if kind is None:
        raise InputError(
            f"Ollama has no parameter {name!r}",
            remedy=f"Known ones: {', '.join(sorted(PARAMETERS))}.",
        )
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": "true", "1": "true", "false": "false", "0": "false"}[text.lower()]
        if kind is int:
            whole = isinstance(value, float) and value.is_integer()
            return f"{value:.0f}" if whole else str(int(text))
        if kind is float and not isinstance(value, bool):
            return _shortest(float(text))
    except (KeyError, ValueError, OverflowError):
        pass
    raise InputError(
        f"parameter {name} is {value!r}, not {'a number' if kind is float else kind.__name__}",
        remedy=f"Give {name} as {'true or false' if kind is bool else f'a {kind.__name__}'}.",
    )


def _shortest(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(value)
    single = struct.pack("<f", value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == single:
            return str(int(float(text))) if float(text).is_integer() else repr(float(text))
    return repr(value)


def relative(path: Path, folder: Path) -> str:
    """Write ``path`` as seen from ``folder``, with forward slashes; ``./`` or ``../`` begins it.

    The prefix keeps Ollama from taking the text for a model's name or a home folder. Another
    Windows drive has no relative path: then the absolute one.
    """
    target = os.path.abspath(path)
    try:
        text = os.path.relpath(target, os.path.abspath(folder))
    except ValueError:
        return Path(target).as_posix()
    text = text.replace(os.sep, "/")
    return text if text.startswith("../") else f"./{text}"
