"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def clean(value: Any) -> str:
    """Somebody else's text on one line, without what Markdown or HTML would act on."""
    text = " ".join(str("" if value is None else value).split())
    return text.replace("<", "&lt;").replace("`", "'")
