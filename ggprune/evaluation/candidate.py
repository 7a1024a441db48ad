"""A candidate as a user names it: a plan, or a model file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggprune.gguf_file import GgufModel, is_gguf
from ggprune.model import describe
from ggprune.plan import Plan
from ggprune.rewrite.drop_metadata import metadata_path


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is compared with the base model.

    Attributes:
        plan: the plan in it; None for a model file.
        keep: experts a layer; None where a model file does not say.
        retained: share of Σ g‖f‖ by layer, as far as known.
        calibration: hashes of the texts that chose the experts, as far as known.
    """

    path: Path
    plan: Plan | None
    keep: int | None
    retained: Mapping[int, float | None]
    calibration: frozenset[str]

    @classmethod
    def load(cls, path: Path) -> Candidate:
        """Find out what a path is.

        Raises:
            InputError, FormatError: it is neither a model nor a plan, or damaged.
        """
        if is_gguf(path):
            return _model_file(path)
        return replace(cls.of(Plan.load(path)), path=path)

    @classmethod
    def of(cls, candidate: Candidate | Plan | str | Path) -> Candidate:
        """Take a plan, or find out what a path is; see :meth:`load`."""
        if isinstance(candidate, Candidate):
            return candidate
        if not isinstance(candidate, Plan):
            return cls.load(Path(candidate))
        shares = {layer: part.retained for layer, part in candidate.layers.items()}
        hashes = _hashes(candidate.settings)
        return cls(Path("the plan"), candidate, candidate.keep, shares, hashes)


def _model_file(path: Path) -> Candidate:
    with GgufModel(path) as gguf:
        keep = describe(gguf).experts or None
    try:
        metadata = json.loads(metadata_path(path).read_text(encoding="utf-8"))
        shares = {int(layer): part.get("retained") for layer, part in metadata["layers"].items()}
        return Candidate(path, None, keep, shares, _hashes(metadata))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # Without the file beside it, less is known of a model; it can be measured all the same.
        return Candidate(path, None, keep, {}, frozenset())


def _hashes(record: Mapping[str, Any]) -> frozenset[str]:
    """All SHA-256 under ``calibration``, whichever way they are nested there."""
    found: set[str] = set()
    pending: list[Any] = [record.get("calibration")]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, Sequence) and not isinstance(value, str):
            pending += value
        elif isinstance(value, str):
            found.update(value.split("+"))
    return frozenset(found)
