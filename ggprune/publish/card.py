"""The model card: README.md with the Hub's metadata block."""

from __future__ import annotations

from typing import Any

from ggprune.hub.client import metadata_block
from ggprune.publish import card_evaluation, card_sections
from ggprune.publish.card_facts import Card, ModelFile, Request, gather

__all__ = ["Card", "ModelFile", "Request", "gather", "metadata_fields", "render"]


def render(card: Card) -> str:
    """The card as Markdown, with its metadata as YAML in front."""
    sections = (
        card_sections.introduction(card),
        card_sections.files(card),
        card_sections.pruning(card),
        card_sections.retained(card),
        card_evaluation.evaluation(card),
        card_evaluation.limits(card),
        card_sections.running(card),
        card_sections.provenance(card),
    )
    return metadata_block(metadata_fields(card)) + "".join(f"\n{text}" for text in sections)


def metadata_fields(card: Card) -> dict[str, Any]:
    """The card's metadata block, by the Hub's names."""
    method = str((card.metadata or {}).get("method", ""))
    tags = ["gguf", "llama.cpp", "mixture-of-experts", "expert-pruning", "pruned", "ggprune"]
    if method == "reap":
        tags.append("reap")
    return {
        "base_model": card.base_model or None,
        "base_model_relation": "quantized" if card.base_model else None,
        "license": card.licence or None,
        "license_name": card.licence_name or None,
        "license_link": card.licence_link or None,
        "language": list(card.languages) or None,
        "library_name": "gguf",
        "pipeline_tag": "image-text-to-text" if card.pictures else "text-generation",
        "tags": tags,
    }
