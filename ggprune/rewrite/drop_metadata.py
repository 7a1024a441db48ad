"""``<result>.expert_drop_metadata.json``: what was dropped from what, and why."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggprune.calibration.statistics import Statistics
from ggprune.errors import GgpruneError
from ggprune.gguf_file import GgufFile, GgufModel, write_text
from ggprune.model import MoeModel
from ggprune.plan import DROP_METADATA, Plan
from ggprune.version import VERSION

FORMAT = DROP_METADATA
_FORMAT_VERSION = 1
#: The end of the name of every drop metadata file.
SUFFIX = ".expert_drop_metadata.json"


def metadata_path(result: Path) -> Path:
    """Return where the metadata of a result lies."""
    return result.with_name(result.name.removesuffix(".gguf") + SUFFIX)


def _header_hash(model: MoeModel) -> str:
    """SHA-256 of a file's header and routers: tells files apart without reading all of them."""
    digest = hashlib.sha256(model.identity().router.encode())
    first = model.gguf.files[0]
    digest.update(first.read(0, first.data_offset))
    return digest.hexdigest()


def drop_metadata(
    source: MoeModel,
    result: GgufModel | None,
    plan: Plan,
    statistics: Statistics | None,
    evaluation: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is known of a pruned file.

    Args:
        result: the written file; None before it is written.
        statistics: None if a plan was given instead.
        evaluation: perplexities and divergences in the JSON that ``evaluate`` prints.
        probe: what ``probe`` prints, without the answers.
    """
    worst = plan.worst_retained
    return {
        "format": FORMAT,
        "version": _FORMAT_VERSION,
        "tool_version": VERSION,
        "source": {
            "name": source.gguf.path.name,
            "size_bytes": source.gguf.size,
            "fingerprint": _header_hash(source),
        },
        "images": _images(source),
        "result": {"name": result.path.name, "size_bytes": result.size} if result else None,
        "architecture": plan.architecture,
        "experts": plan.experts,
        "keep": plan.keep,
        "experts_used": plan.experts_used or source.experts_used,
        "source_experts_used": source.experts_used,
        "zero_bias": plan.zero_bias,
        "method": plan.method,
        "settings": dict(plan.settings),
        "plan_sha256": plan.hash,
        "calibration": _calibration(statistics),
        "retained": {
            "worst": {"layer": worst[0], "share": worst[1]} if worst else None,
            "mean": plan.mean_retained,
        },
        "layers": plan.as_json()["layers"],
        "evaluation": evaluation,
        "probe": probe,
    }


def _images(source: MoeModel) -> dict[str, Any] | None:
    """Name the projectors beside a model that takes images; None if it takes none.

    A projector's outputs are as wide as the embeddings of the model it was made for.
    """
    beside = []
    for path in sorted(source.gguf.path.parent.glob("*mmproj*.gguf")):
        with contextlib.suppress(GgpruneError), GgufFile(path) as file:
            if file.get("clip.vision.projection_dim") == source.metadata.get("embedding_length"):
                beside.append(path.name)
    takes = beside or "image" in str(source.gguf.get("tokenizer.chat_template"))
    return {"projectors": beside} if takes else None


def images_note(metadata: Mapping[str, Any]) -> str:
    """Say of a model that takes images what was not seen, and what still works."""
    if not (images := metadata.get("images")):
        return ""
    named = ", ".join(images.get("projectors") or ["mmproj"])
    return (
        "The model takes images, and none were in the text it was calibrated and measured on. The "
        f"whole model's projector ({named}) works with the pruned one: the width is the same."
    )


def is_of(metadata: object, source: MoeModel) -> bool:
    """Whether this is drop metadata of a model pruned from this very source."""
    if not isinstance(metadata, Mapping) or metadata.get("format") != FORMAT:
        return False
    known = metadata.get("source")
    return isinstance(known, Mapping) and known.get("fingerprint") == _header_hash(source)


def save(path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata's file.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json.dumps(metadata, indent=1) + "\n")


def calibration_texts(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what drop metadata says of each domain's calibration text: tokens and SHA-256.

    Of a plan that was applied without its statistics only the hashes are known.
    """
    domains = (metadata.get("calibration") or {}).get("domains")
    if domains:
        return dict(domains)
    hashes = (metadata.get("settings") or {}).get("calibration")
    found = hashes if isinstance(hashes, Mapping) else {}
    return {str(name): {"sha256": str(value)} for name, value in found.items()}


def _calibration(statistics: Statistics | None) -> dict[str, Any] | None:
    if statistics is None:
        return None
    return {
        "domains": {d.name: {"tokens": d.tokens, "sha256": d.sha256} for d in statistics.domains},
        "settings": dict(statistics.settings),
    }
