"""The prompts that ship with ggprune (JSON Lines): calibration, search, held-out text, probes."""

from __future__ import annotations

from importlib import resources

from ggprune.text.documents import Document, Source
from ggprune.text.layouts import json_rows, read_row

CALIBRATION = "calibration.jsonl"
SEARCH = "search.jsonl"
HELD_OUT = "heldout.jsonl"
PROBES = "probes.jsonl"


def builtin_texts(name: str = CALIBRATION) -> tuple[Source, ...]:
    """Return the built-in prompts by domain; those of SEARCH and HELD_OUT have answers.

    CALIBRATION, SEARCH and HELD_OUT share no text.
    """
    domains: dict[str, list[Document]] = {}
    for where, row in json_rows(builtin_file(name), name):
        document = read_row(row, f"{name} {where}")
        assert document is not None
        domains.setdefault(str(row["domain"]), []).append(document)
    return tuple(Source(domain, tuple(documents)) for domain, documents in domains.items())


def builtin_file(name: str) -> str:
    """Return the content of a built-in file."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
