"""The model card: README.md with the Hub's metadata block; its words are in card.md.j2."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ggprune.choosing.methods import METHODS
from ggprune.evaluation.verdict import answers_in_a_line, verdict
from ggprune.hub.client import metadata_block
from ggprune.model.architectures import ARCHITECTURES, Kind
from ggprune.publish.card_facts import Card, ModelFile, gather
from ggprune.rewrite.drop_metadata import calibration_texts, images_note
from ggprune.util import human_size, template

__all__ = ["Card", "ModelFile", "gather", "metadata_fields", "render"]

#: Layers are listed in so many columns.
_COLUMNS = 3
#: Settings whose JSON is longer are left to the drop metadata.
_LONGEST_SETTING = 120
#: Context of the example command: it fits where the model just fits.
_CONTEXT = 8192
#: What the Hub calls what a model does.
_TASKS = {
    Kind.CAUSAL: "text-generation",
    Kind.DIFFUSION: "text-generation",
    Kind.EMBEDDING: "feature-extraction",
}


def render(card: Card) -> str:
    """Write the card as Markdown, with its metadata as YAML in front."""
    filters = {
        "cell": _cell,
        "clean": clean,
        "grouped": "{:,}".format,
        "parameters": _parameters,
        "percent": "{:.2%}".format,
        "quoted": shlex.quote,
        "settings": _settings,
        "size": human_size,
    }
    metadata, kind = card.metadata or {}, _kind(card)
    retained = {n: share for n, share in _shares(card).items() if isinstance(share, int | float)}
    page = template("ggprune.publish", "card.md.j2", filters, keep_trailing_newline=True)
    body = page.render(
        card=card,
        metadata=metadata,
        source=source_of(card),
        method=METHODS.get(str(metadata.get("method", ""))),
        texts=calibration_texts(metadata),
        images=images_note({"images": metadata.get("images") or _pictures(card)}),
        retained=retained,
        layers=_in_columns([[f"L{n}", f"{share:.2%}"] for n, share in sorted(retained.items())]),
        worst=min(retained.items(), key=lambda item: item[1], default=None),
        mean=sum(retained.values()) / max(len(retained), 1),
        example=_example(card.files),
        context=min(_CONTEXT, card.context or _CONTEXT),
        program="llama-server" if kind is Kind.CAUSAL else kind.program,
        **_measurements(card),
    )
    return metadata_block(metadata_fields(card)) + body


def metadata_fields(card: Card) -> dict[str, Any]:
    """Return the card's metadata block, by the Hub's names."""
    tags = ["gguf", "llama.cpp", "mixture-of-experts", "expert-pruning", "pruned", "ggprune"]
    method = METHODS.get(str((card.metadata or {}).get("method", "")))
    if method and method.baseline:
        tags.append(method.name)
    return {
        "base_model": card.base_model,
        "base_model_relation": "quantized" if card.base_model else None,
        "license": card.licence,
        "license_name": card.licence_name,
        "license_link": card.licence_link,
        "language": list(card.languages) or None,
        "library_name": "gguf",
        "pipeline_tag": "image-text-to-text" if card.pictures else _TASKS[_kind(card)],
        "tags": tags,
    }


def _pictures(card: Card) -> Mapping[str, Any] | None:
    return {"projectors": []} if card.pictures else None


def _kind(card: Card) -> Kind:
    row = ARCHITECTURES.get(card.architecture)
    return row.kind if row else Kind.CAUSAL


def _shares(card: Card) -> dict[int, Any]:
    layers = (card.metadata or {}).get("layers") or {}
    return {int(n): part.get("retained") for n, part in layers.items()}


def _in_columns(cells: Sequence[Sequence[str]]) -> str:
    """Write pairs as a table that reads down, then right."""
    height = max(-(-len(cells) // _COLUMNS), 1)
    columns = [cells[i : i + height] for i in range(0, len(cells), height)]
    rows = itertools.zip_longest(*columns, fillvalue=["", ""])
    header = ["Layer", "Retained"] * len(columns)
    return table(header, [[cell for pair in row for cell in pair] for row in rows])


def _measurements(card: Card) -> dict[str, Any]:
    """Gather evaluations: of each file, or the one that the drop metadata holds."""
    metadata = card.metadata or {}
    measured = [file for file in card.files if file.evaluation]
    quantized = bool(card.files[0].quantization)
    missing = [file.name for file in card.files if file not in measured and quantized]
    single = metadata.get("evaluation")
    if not measured and isinstance(single, Mapping):
        name = (metadata.get("result") or {}).get("name") or card.files[0].name
        measured, missing = [ModelFile(str(name), "", 0, evaluation=single)], []
    findings: dict[str, None] = {}
    shares = _shares(card)
    for file in measured:
        # What ggprune itself calls bad belongs into the card.
        for each in verdict(evaluation=file.evaluation, keep=card.experts, retained=shares):
            of = "" if each.gate == "layers" else f"`{clean(file.name)}`: "
            findings[f"- {of}{clean(each.text)}"] = None
    probe = metadata.get("probe") or {}
    findings |= {f"- {clean(each.text)}": None for each in verdict(probe=probe)}
    answers = {name: answers_in_a_line(mode) for name, mode in probe.get("modes", {}).items()}
    return {
        "answers": answers,
        "measured": measured,
        "missing": missing,
        "findings": list(findings),
    }


def _settings(settings: Mapping[str, Any]) -> str:
    """Write settings in a line; long ones, and the texts, are left to the drop metadata."""
    parts = []
    for name, value in (settings or {}).items():
        text = json.dumps(value, ensure_ascii=False)
        known = value not in (None, "", {}, []) and name != "calibration"
        if known and len(text) <= _LONGEST_SETTING:
            parts.append(f"`{clean(name)}` {clean(text)}")
    return ", ".join(parts)


def source_of(card: Card) -> Mapping[str, Any]:
    """Return what the drop metadata says of the unpruned file; empty if nothing."""
    source = (card.metadata or {}).get("source")
    return source if isinstance(source, Mapping) else {}


def _example(candidates: Sequence[ModelFile]) -> ModelFile:
    """Choose what the example runs: Q4_K_M as llama.cpp's own default, else the smallest."""
    named = [file for file in candidates if file.quantization == "Q4_K_M"]
    return named[0] if named else min(candidates, key=lambda file: file.size)


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def clean(value: Any) -> str:
    """Put somebody else's text on one line, without what Markdown or HTML would act on."""
    text = " ".join(str(value or "").split()) if value != 0 else "0"
    return text.replace("<", "&lt;").replace("`", "'")
