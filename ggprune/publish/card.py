"""The model card: README.md with the Hub's metadata block; its words are in card.md.j2."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from ggprune.choosing.methods import METHODS
from ggprune.evaluation.verdict import verdict
from ggprune.hub.client import metadata_block
from ggprune.publish.card_facts import Card, ModelFile, gather
from ggprune.rewrite.drop_metadata import calibration_texts
from ggprune.util import human_size

__all__ = ["Card", "ModelFile", "gather", "metadata_fields", "render"]

#: Layers are listed in so many columns.
_COLUMNS = 3
#: Settings whose JSON is longer are left to the drop metadata.
_LONGEST_SETTING = 120
#: Context of the example command: it fits where the model just fits.
_CONTEXT = 8192


def render(card: Card) -> str:
    """Write the card as Markdown, with its metadata as YAML in front."""
    from jinja2 import ChainableUndefined, Environment

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=ChainableUndefined,
    )
    environment.filters.update(
        clean=clean, percent="{:.2%}".format, grouped="{:,}".format, quoted=shlex.quote
    )
    source = files("ggprune.publish").joinpath("card.md.j2").read_text(encoding="utf-8")
    return metadata_block(metadata_fields(card)) + environment.from_string(source).render(
        card=card, table=table, **_numbers(card), **_measurements(card)
    )


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
        "pipeline_tag": "image-text-to-text" if card.pictures else "text-generation",
        "tags": tags,
    }


def _numbers(card: Card) -> dict[str, Any]:
    """Gather what the template says of the pruning and the files."""
    metadata = card.metadata or {}
    texts = calibration_texts(metadata)
    layers = metadata.get("layers") or {}
    shares = {int(n): part.get("retained") for n, part in layers.items()}
    retained = {n: share for n, share in shares.items() if isinstance(share, int | float)}
    cells = [[f"L{n}", f"{share:.2%}"] for n, share in sorted(retained.items())]
    height = max(-(-len(cells) // _COLUMNS), 1)
    columns = [cells[i : i + height] for i in range(0, len(cells), height)]
    counted = any("tokens" in part for part in texts.values())
    settings = metadata.get("settings") or {}
    return {
        "metadata": metadata,
        "source": source_of(card),
        "comparison": _comparison(card),
        "files": [
            [
                f"`{file.name}`" + (f" ({file.shards} shards)" if file.shards > 1 else ""),
                file.quantization,
                human_size(file.size),
            ]
            for file in card.files
        ],
        "method": METHODS.get(str(metadata.get("method", ""))),
        "texts": [
            [clean(name), f"{part.get('tokens', 0):,}" if counted else f"`{part.get('sha256')}`"]
            for name, part in texts.items()
        ],
        "texts_say": "Tokens" if counted else "SHA-256",
        "kinds": [clean(name) for name in texts],
        "calibrated_with": _settings((metadata.get("calibration") or {}).get("settings") or {}),
        "settings": _settings({k: v for k, v in settings.items() if k != "calibration"}),
        "retained": retained,
        "layers": layers,
        "columns": len(columns),
        "by_layer": [
            [cell for part in columns for cell in (part[i] if i < len(part) else ["", ""])]
            for i in range(height)
        ],
        "worst": min(retained.items(), key=lambda item: item[1], default=None),
        "mean": sum(retained.values()) / max(len(retained), 1),
        "example": _example(card.files),
        "context": min(_CONTEXT, card.context or _CONTEXT),
    }


def _comparison(card: Card) -> list[list[str]]:
    """Both sides in numbers: experts, parameters, and the size in one quantization."""
    before, now = card.experts_before, card.experts
    rows = [
        ["Experts a layer", str(before or "not recorded"), f"{now}{_less(now, before)}"],
        ["Experts used for a token", str(card.experts_used_before), str(card.experts_used)],
    ]
    if card.parameters_before:
        less = _less(card.parameters, card.parameters_before)
        counts = [_count(card.parameters_before), f"{_count(card.parameters)}{less}"]
        rows.append(["Parameters", *counts])
    source, result = source_of(card), (card.metadata or {}).get("result") or {}
    was, became = source.get("size_bytes"), result.get("size_bytes")
    if was and became:
        name = f"Size as pruned (`{clean(source.get('name'))}`)"
        rows.append([name, human_size(was), f"{human_size(became)}{_less(became, was)}"])
    return rows


def _measurements(card: Card) -> dict[str, Any]:
    """Gather what the template says of quality: measurements with their errors."""
    metadata = card.metadata or {}
    measured = [file for file in card.files if file.evaluation]
    quantized = bool(card.files[0].quantization)
    missing = [file.name for file in card.files if file not in measured and quantized]
    single = metadata.get("evaluation")
    if not measured and isinstance(single, Mapping):
        name = (metadata.get("result") or {}).get("name") or card.files[0].name
        measured, missing = [ModelFile(str(name), "", 0, evaluation=single)], []
    first = (measured[0].evaluation if measured else None) or {}
    domains = first.get("domains") or {}
    return {
        "measured": measured,
        "missing": [f"`{name}`" for name in missing],
        "evaluations": [_row(file.name, file.evaluation or {}) for file in measured],
        "tokens": int(first.get("tokens", 0)),
        "domains": [
            [
                clean(name),
                f"{part.get('tokens', 0):,}",
                _number(part, "ppl_ratio", 4, error="ppl_ratio_se"),
                _number(part, "kld_mean", 4, error="kld_se"),
            ]
            for name, part in domains.items()
            if len(domains) > 1
        ],
        "findings": _findings(card, measured),
    }


def _findings(card: Card, measured: Sequence[ModelFile]) -> list[str]:
    """List what ggprune itself calls bad: it belongs into the card."""
    layers = (card.metadata or {}).get("layers") or {}
    shares = {int(n): part.get("retained") for n, part in layers.items()}
    seen: dict[str, None] = {}
    for file in measured:
        for finding in verdict(evaluation=file.evaluation, keep=card.experts, retained=shares):
            of = "" if finding.gate == "layers" else f"`{clean(file.name)}`: "
            seen.setdefault(f"- {of}{clean(finding.text)}")
    return list(seen)


def _row(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    base, mine = evaluation["base"], evaluation["candidate"]
    same = evaluation.get("top1_agreement")
    return [
        f"`{clean(name)}`",
        _number(base, "ppl", 3, error="ppl_se"),
        _number(mine, "ppl", 3, error="ppl_se"),
        _number(evaluation, "ppl_ratio", 4, error="ppl_ratio_se"),
        _number(evaluation, "kld_mean", 4, error="kld_se"),
        _number(evaluation, "kld_p99", 4),
        "not measured" if same is None else f"{same:.2%}",
    ]


def _number(part: Mapping[str, Any], key: str, digits: int, *, error: str = "") -> str:
    value, spread = part.get(key), part.get(error)
    if not isinstance(value, int | float):
        return "not measured"
    more = f" ± {spread:.{digits}f}" if isinstance(spread, int | float) else ""
    return f"{value:.{digits}f}{more}"


def _settings(settings: Mapping[str, Any]) -> str:
    """Write settings in a line; long ones are left to the drop metadata."""
    parts = []
    for name, value in settings.items():
        text = json.dumps(value, ensure_ascii=False)
        if value not in (None, "", {}, []) and len(text) <= _LONGEST_SETTING:
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


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _less(now: int, before: int | None) -> str:
    return f" (-{1 - now / before:.1%})" if before else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def clean(value: Any) -> str:
    """Put somebody else's text on one line, without what Markdown or HTML would act on."""
    text = " ".join(str(value or "").split()) if value != 0 else "0"
    return text.replace("<", "&lt;").replace("`", "'")
