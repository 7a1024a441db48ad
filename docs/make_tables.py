"""Write the tables of the documentation that are made from the source.

A page marks the place, and what stands between the marks is replaced:

    <!-- begin methods -->
    <!-- end methods -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ggprune.choosing.methods import ordered  # noqa: E402
from ggprune.choosing.methods.method import NEEDS  # noqa: E402
from ggprune.choosing.request import MEASURED  # noqa: E402
from ggprune.model.architectures import (  # noqa: E402
    ARCHITECTURES,
    WEIGHTED_NODES,
    Architecture,
    Gating,
    Kind,
    Space,
)
from tests.support.layers import LAYERS, PACKAGE, purpose  # noqa: E402


def architectures() -> str:
    """One row an architecture."""
    rows = [
        f"| `{name}` | {_gating(row)} | {_normalised(row)} | {'; '.join(_notes(row))} |"
        for name, row in sorted(ARCHITECTURES.items())
    ]
    head = ["| Architecture | Gating | Normalised | Notes |", "|---|---|---|---|"]
    return _block([*head, *rows])


def _gating(row: Architecture) -> str:
    if row.gating is not Gating.BY_KEY:
        return row.gating.value
    return "by key" + (f", else {row.default_gating.value}" if row.default_gating else "")


def _normalised(row: Architecture) -> str:
    return {True: "yes", False: "no", None: "by key"}[row.normalised]


def _notes(row: Architecture) -> list[str]:
    notes = [] if row.kind is Kind.CAUSAL else [row.kind.value]
    if row.space is not Space.RESIDUAL:
        notes.append(f"norms: {row.space.value}")
    if row.contribution_nodes != WEIGHTED_NODES:
        notes.append("gates multiply the experts' input")
    if row.mtp_experts is not None:
        notes.append("MTP layers" + ("" if row.mtp_experts else " (dense)"))
    if row.residual_node is None:
        notes.append("no `easy-ep`")
    return notes + [
        f"**refused** {refusal.condition}".rstrip() + f": {refusal.reason}"
        for refusal in row.refusals
    ]


def methods() -> str:
    """One row a method."""
    rows = [
        f"| `{each.name}`{' (default)' * (each.name == MEASURED)} | {_cell(each.formula)} "
        f"| {NEEDS[each.needs]} | {_cell(each.source)} |"
        for each in ordered()
    ]
    return _block(["| name | score | needs | source |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    text = re.sub(r"docs/methods\.md(#\S+)", r"[below](\1)", text)
    return text.replace("|", r"\|")


def architecture_count() -> str:
    """Architectures of which at least some models can be pruned."""
    refused = [row for row in ARCHITECTURES.values() if any(not r.condition for r in row.refusals)]
    return str(len(ARCHITECTURES) - len(refused))


def layers() -> str:
    """One row a layer, from the bottom to the top."""
    rows = [f"| `{name}{'/' * (PACKAGE / name).is_dir()}` | {purpose(name)} |" for name in LAYERS]
    return _block(["| layer | what it holds |", "|---|---|", *rows])


def _block(lines: list[str]) -> str:
    return "\n" + "\n".join(lines) + "\n"


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"architecture-count": architecture_count},
    "CONTRIBUTING.md": {"layers": layers},
    "docs/architectures.md": {"architectures": architectures},
    "docs/methods.md": {"methods": methods},
}


def page(name: str) -> str:
    """Make the tables of a page anew, and return its text."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for table, make in TABLES[name].items():
        begin, end = f"<!-- begin {table} -->", f"<!-- end {table} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{name} has no place for the table {table!r}: {begin}{end}")
        made = f"{begin}{make()}{end}"
        text = pattern.sub(lambda _, made=made: made, text)
    return text


if __name__ == "__main__":
    for name in TABLES:
        (ROOT / name).write_text(page(name), encoding="utf-8")
        print(f"wrote {ROOT / name}", file=sys.stderr)
