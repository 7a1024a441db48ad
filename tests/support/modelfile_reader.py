"""An independent reader of the documented Modelfile grammar, for the tests.

It works on lines, where Ollama's own reader and ggprune's writer work on characters and on whole
texts. What it knows of the grammar:

- an instruction is a keyword in any case, white space and a value; ``#`` begins a comment where an
  instruction could begin;
- a value is the rest of the line, or ``"..."``, or ``\"\"\"...\"\"\"`` over several lines; a quoted
  value ends with the first line on which its quotes are closed; nothing escapes;
- characters that are not printable are lost, except for line ends and tabs;
- the file needs a ``FROM``.
"""

from __future__ import annotations

KEYWORDS = {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE"}
KEYWORDS |= {"REQUIRES", "RENDERER", "PARSER", "DRAFT"}


class ModelfileError(ValueError):
    """The text is not a Modelfile."""


def read(data: bytes) -> list[tuple[str, str]]:
    """The instructions of a Modelfile: (keyword, value), and (``PARAMETER name``, value)."""
    text = data.decode("utf-8-sig")
    text = "".join(c for c in text if c.isprintable() or c in "\n\r\t")
    lines = text.splitlines(keepends=True)
    found: list[tuple[str, str]] = []
    while lines:
        line = lines.pop(0).lstrip(" \t")
        if not line.strip() or line.startswith("#"):
            continue
        keyword, rest = _word(line)
        if keyword.upper() not in KEYWORDS:
            raise ModelfileError(f"not an instruction: {keyword!r}")
        keyword = keyword.upper()
        if keyword in {"PARAMETER", "MESSAGE"}:
            name, rest = _word(rest)
            keyword = f"{keyword} {name}"
        found.append((keyword, _value(rest, lines)))
    if not any(keyword == "FROM" for keyword, _ in found):
        raise ModelfileError("no FROM")
    return found


def _word(line: str) -> tuple[str, str]:
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    rest = line[len(word) :]
    if rest[:1] not in {" ", "\t"}:
        raise ModelfileError(f"nothing follows {word!r}")
    return word, rest[1:]


def _value(rest: str, following: list[str]) -> str:
    start = rest.lstrip()
    mark = next((mark for mark in ('"' * 3, '"') if start.startswith(mark)), "")
    if not mark:
        return rest.strip()
    while True:
        whole = rest.strip()
        if len(whole) >= 2 * len(mark) and whole.endswith(mark):
            return whole[len(mark) : len(whole) - len(mark)]
        if not following:
            raise ModelfileError(f"quotes never close: {whole[:40]!r}")
        rest += following.pop(0)
