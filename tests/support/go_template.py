"""A small renderer for the part of Go's text/template that Modelfiles use, for the tests.

Knows ``range $i, $_ := .Field``, ``if``, ``else if``, ``else``, ``end``, ``$x := ``, ``$x = ``,
fields, strings, whole numbers, parentheses, ``eq ne and or not len slice``, and ``{{-`` / ``-}}``
trimming. Anything else is an error. ``test_ollama`` compares it with Go itself where that is
installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|:=|[(),|=]|[^\s(),|="]+')


class GoTemplateError(ValueError):
    """Not in the part of the language that is known here."""


def render(template: str, data: Mapping[str, Any]) -> str:
    """The text that Go's text/template writes for ``data``, a map as Ollama passes it."""
    out: list[str] = []
    nodes, rest = _parse(list(_pieces(template)))
    if rest:
        raise GoTemplateError(f"unexpected {rest[0]}")
    _run(nodes, data, [{"$": data}], out)
    return "".join(out)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text", ...) and ("do", ...) in turn, white space trimmed as the dashes say."""
    position, trim = 0, False
    while True:
        start = template.find("{{", position)
        text = template[position : start if start >= 0 else None]
        left = start >= 0 and re.match(r"\{\{-\s", template[start:]) is not None
        text = text.lstrip(" \t\r\n") if trim else text
        yield "text", text.rstrip(" \t\r\n") if left else text
        if start < 0:
            return
        end = template.index("}}", start)
        inner = template[start + (3 if left else 2) : end]
        trim = re.search(r"\s-$", inner) is not None
        yield "do", (inner[:-1] if trim else inner).strip()
        position = end + 2


def _parse(pieces: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    nodes: list[Any] = []
    while pieces:
        kind, text = pieces[0]
        word = text.split(maxsplit=1)[0] if kind == "do" else ""
        if word in {"end", "else"}:
            break
        pieces = pieces[1:]
        if word in {"range", "if"}:
            node, pieces = _branch(text, pieces)
            nodes.append(node)
        else:
            nodes.append((kind, text))
    return nodes, pieces


def _branch(
    text: str, pieces: list[tuple[str, str]]
) -> tuple[tuple[Any, ...], list[tuple[str, str]]]:
    """The node of an ``if`` or ``range`` whose opening is ``text``, and what follows its end."""
    word, condition = text.split(maxsplit=1)
    body, pieces = _parse(pieces)
    other: list[Any] = []
    if pieces and pieces[0][1].startswith("else if "):
        # The nested "if" takes the one {{ end }} that both share.
        node, pieces = _branch(pieces[0][1].removeprefix("else "), pieces[1:])
        return (word, condition, body, [node]), pieces
    if pieces and pieces[0][1] == "else":
        other, pieces = _parse(pieces[1:])
    if not pieces or pieces[0][1] != "end":
        raise GoTemplateError(f"no end of {text!r}")
    return (word, condition, body, other), pieces[1:]


def _run(nodes: list[Any], dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "if":
            branch = node[2] if _truth(_evaluate(node[1], dot, scopes)) else node[3]
            _run(branch, dot, [*scopes, {}], out)
        elif node[0] == "range":
            match = re.fullmatch(r"\s*(\$\w+), (\$\w+) := (.+)", node[1])
            if match is None:
                raise GoTemplateError(f"range {node[1]}")
            for index, item in enumerate(_evaluate(match[3], dot, scopes)):
                _run(node[2], item, [*scopes, {match[1]: index, match[2]: item}], out)
        else:
            _do(node[1], dot, scopes, out)


def _do(text: str, dot: Any, scopes: list[dict[str, Any]], out: list[str]) -> None:
    match = re.fullmatch(r"(\$\w+) (:?=) (.+)", text, re.S)
    if match is None:
        out.append(str(_evaluate(text, dot, scopes)))
    elif match[2] == ":=":
        scopes[-1][match[1]] = _evaluate(match[3], dot, scopes)
    else:
        owner = next(scope for scope in reversed(scopes) if match[1] in scope)
        owner[match[1]] = _evaluate(match[3], dot, scopes)


def _evaluate(text: str, dot: Any, scopes: list[dict[str, Any]]) -> Any:
    tokens = _TOKEN.findall(text)
    value = _call(tokens, dot, scopes)
    if tokens:
        raise GoTemplateError(f"{text!r}: left over {tokens}")
    return value


def _call(tokens: list[str], dot: Any, scopes: list[dict[str, Any]]) -> Any:
    function = _FUNCTIONS.get(tokens[0])
    if function is None:
        return _operand(tokens, dot, scopes)
    tokens.pop(0)
    arguments = []
    while tokens and tokens[0] != ")":
        arguments.append(_operand(tokens, dot, scopes))
    return function(arguments)


def _operand(tokens: list[str], dot: Any, scopes: list[dict[str, Any]]) -> Any:
    token = tokens.pop(0)
    if token == "(":
        value = _call(tokens, dot, scopes)
        if tokens.pop(0) != ")":
            raise GoTemplateError("expected )")
        return value
    if token.startswith('"'):
        return token[1:-1].replace("\\n", "\n")
    if token.isdigit():
        return int(token)
    if token.startswith(("$", ".")):
        name, _, field = token.partition(".")
        base = dot
        if name:
            base = next(scope[name] for scope in reversed(scopes) if name in scope)
        return base[field] if field else base
    raise GoTemplateError(f"unknown {token!r}")


def _truth(value: Any) -> bool:
    return bool(value)


def _first(arguments: Sequence[Any], wanted: bool) -> Any:
    return next((a for a in arguments if _truth(a) is wanted), arguments[-1])


_FUNCTIONS: dict[str, Any] = {
    "eq": lambda a: a[0] in a[1:],
    "ne": lambda a: a[0] != a[1],
    "not": lambda a: not _truth(a[0]),
    "and": lambda a: _first(a, False),
    "or": lambda a: _first(a, True),
    "len": lambda a: len(a[0]),
    "slice": lambda a: a[0][slice(*a[1:])] if len(a) > 2 else a[0][a[1] :],
}
