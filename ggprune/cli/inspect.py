"""``ggprune inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggprune.cli import options
from ggprune.cli.terminal import print_json, table
from ggprune.cli.values import MODEL
from ggprune.util import human_size

if TYPE_CHECKING:
    from ggprune.errors import GgpruneError


@click.command("inspect")
@click.argument("model", type=MODEL)
@options.json
def command(model: Path, as_json: bool) -> None:
    """Show what MODEL is: architecture, layers, experts, quantization, and keep -> size.

    Reads the header and, to tell a masked copy, the selection biases. Exits with 0 for a file that
    cannot be pruned, or is no model at all; the reason is in the output.
    """
    from ggprune.errors import FormatError
    from ggprune.model import describe

    try:
        facts = summary(describe(model))
    except FormatError as error:
        facts = _unreadable(model, error)
    if as_json:
        print_json(facts)
        return
    click.echo(table([[name, text] for name, text in _lines(facts)]))
    if facts["sizes"]:
        rows = [[keep, human_size(size)] for keep, size in facts["sizes"].items()]
        click.echo("\n" + table(rows, header=["keep", "size"]))


def _unreadable(path: Path, error: GgpruneError) -> dict[str, Any]:
    """Say of a file without a sound header what can be said."""
    reason = error.message.removeprefix(f"{path}: ")
    return {
        "file": str(path),
        "name": path.name,
        "size_bytes": path.stat().st_size,
        "prunable": False,
        "refusal": reason,
        "remedy": error.remedy,
        "sizes": {},
    }


def summary(description: Any) -> dict[str, Any]:
    """Gather what ``--json`` prints."""
    from ggprune.choosing.request import DEFAULT
    from ggprune.model.architectures import gating_of, is_normalised, statistics_note
    from ggprune.rewrite import result_size
    from ggprune.rewrite.mask import choosable

    row, metadata = description.architecture, description.metadata
    prunable = description.refusal is None
    return {
        "file": str(description.gguf.path),
        "name": description.name,
        "architecture": str(metadata.get("general.architecture", "")),
        "experts": description.experts,
        "experts_used": description.experts_used,
        "expert_groups": description.counts.groups,
        "gating": gating_of(row, metadata).value if prunable else "",
        "gating_by_default": prunable and _names_no_gating(row, metadata),
        "gates_normalised": is_normalised(row, metadata) if prunable else None,
        "layers": description.layers,
        "moe_layers": list(description.moe_layers),
        "mtp_layers": list(description.mtp_layers),
        "size_bytes": description.gguf.size,
        "expert_bytes": description.expert_bytes,
        "quant_types": description.quant_types(),
        "shards": len(description.gguf.files),
        "prunable": prunable,
        "refusal": description.refusal or "",
        "note": statistics_note(row, metadata) if prunable else "",
        "choosable": {str(layer): n for layer, n in choosable(description).items()},
        "sizes": {str(n): result_size(description, n, method=DEFAULT) for n in _steps(description)},
    }


def _steps(description: Any) -> list[int]:
    """List a readable number of counts between all experts and the fewest possible."""
    if description.refusal:
        return []
    possible = description.counts.possible()
    wanted = [round(description.experts * share / 16) for share in range(16, 3, -1)]
    return sorted({description.counts.rounded(n, "up") for n in wanted if n >= possible[0]})[::-1]


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    refused = ("prunable", "yes" if facts["prunable"] else f"no: {facts['refusal']}")
    if "remedy" in facts:
        size = human_size(facts["size_bytes"])
        return [("file", facts["name"]), ("size", size), refused, ("do", facts["remedy"])]
    moe, mtp = facts["moe_layers"], facts["mtp_layers"]
    grouped = f" in {facts['expert_groups']} groups" if facts["expert_groups"] > 1 else ""
    total = max(facts["size_bytes"], 1)
    share = facts["expert_bytes"] / total
    types = ", ".join(f"{n} {b / total:.0%}" for n, b in facts["quant_types"].items())
    lines = [
        ("model", facts["name"]),
        ("architecture", facts["architecture"]),
        ("layers", f"{facts['layers']}, {len(moe)} with experts" + (f", MTP {mtp}" if mtp else "")),
        ("experts", f"{facts['experts']} a layer, {facts['experts_used']} used{grouped}"),
        ("gating", _gating(facts)),
        ("size", f"{human_size(facts['size_bytes'])}, {share:.0%} of it experts"),
        ("types", types),
        refused,
    ]
    if counts := facts["choosable"].values():
        numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
        lines.append(("masked", f"{numbers} experts of a layer can be chosen"))
    if facts["note"]:
        lines.append(("note", facts["note"]))
    return [(name, text) for name, text in lines if text]


def _names_no_gating(row: Any, metadata: Any) -> bool:
    from ggprune.model.architectures import GATING_KEY, Gating

    return row.gating is Gating.BY_KEY and GATING_KEY not in metadata


def _gating(facts: dict[str, Any]) -> str:
    text = str(facts["gating"]) + (", renormalised" if facts["gates_normalised"] else "")
    return text + (" (llama.cpp's own: the file names none)" if facts["gating_by_default"] else "")
