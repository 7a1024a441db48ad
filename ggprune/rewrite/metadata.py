"""Metadata of a result: edited keys, restated names, provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggprune.gguf_file import GgufModel, KeyEdits, TypedValue, ValueType
from ggprune.model import MoeModel, architectures
from ggprune.version import VERSION

PROVENANCE = "ggprune."


@dataclass(frozen=True, slots=True)
class Changes:
    """What the metadata of a result says of its plan.

    Attributes:
        keep: experts a layer.
        experts_used: for each token; None if that stays as it is.
        method: of the plan.
        plan_hash: Plan.hash.
        dropped_layers: MTP layers left out.
    """

    keep: int
    experts_used: int | None
    method: str
    plan_hash: str
    dropped_layers: tuple[int, ...]


def key_edits(model: MoeModel, changes: Changes) -> KeyEdits:
    """Work out the metadata that must change; none if nothing is dropped."""
    keep, used, dropped = changes.keep, changes.experts_used, changes.dropped_layers
    if keep == model.experts and not dropped and used is None:
        return KeyEdits()
    values: dict[str, Any] = {architectures.EXPERT_COUNT_KEY: keep}
    if used is not None:
        values |= model.keys_for(used)
    if dropped:
        values |= architectures.keys_without_mtp(model.metadata, dropped)
    prefix = f"{model.architecture.name}."
    changed = {prefix + k: _same_type(model.gguf, prefix + k, v) for k, v in values.items()}
    for key, text in _restated_names(model, keep).items():
        changed[key] = TypedValue(ValueType.STRING, text)
    for key, entry in _provenance(model, changes).items():
        changed[PROVENANCE + key] = entry
    return KeyEdits(changed)


def restate(text: str, experts: tuple[int, int], parameters: tuple[int, int]) -> str:
    """Restate a model's name or size label with the numbers that pruning changed.

    ``128x2.6B`` and ``26B-A4B`` name experts and parameters. A number is only replaced where it
    agrees with the old model (parameters within 15 %, since vendors round as they like).

    Args:
        text: the name.
        experts: before and after.
        parameters: before and after.
    """
    text = re.sub(rf"(?<![\w.]){experts[0]}(?=x\d|e\b| experts?\b)", str(experts[1]), text)

    def new_total(match: re.Match[str]) -> str:
        scale = {"B": 1e9, "M": 1e6, "T": 1e12}[match[2].upper()]
        if abs(float(match[1]) * scale - parameters[0]) > 0.15 * parameters[0]:
            return match[0]
        digits = 1 if "." in match[1] or float(match[1]) < 100 else 0
        number = f"{float(match[1]) * parameters[1] / parameters[0]:.{digits}f}"
        return (number.removesuffix(".0")) + match[2]

    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)([BMTbmt])(?![\w])", new_total, text)


def _same_type(gguf: GgufModel, key: str, value: Any) -> TypedValue:
    """Give a value the type that the file stores this key as."""
    pair = gguf.keys.get(key)
    if pair is None:
        return TypedValue(ValueType.UINT32, value)
    if pair.type == ValueType.ARRAY:
        item = int.from_bytes(gguf.files[0].read(pair.value, 4), "little")
        return TypedValue(ValueType.ARRAY, value, ValueType(item))
    return TypedValue(ValueType(pair.type), value)


def _provenance(model: MoeModel, changes: Changes) -> Mapping[str, TypedValue]:
    """Where the file comes from, for whoever finds it."""
    text, number = ValueType.STRING, ValueType.UINT32
    used = {"source_experts_used": TypedValue(number, model.experts_used)}
    return {
        "version": TypedValue(text, VERSION),
        "source": TypedValue(text, model.gguf.path.name),
        "source_experts": TypedValue(number, model.experts),
        **(used if changes.experts_used else {}),
        "keep": TypedValue(number, changes.keep),
        "method": TypedValue(text, changes.method),
        "plan_sha256": TypedValue(text, changes.plan_hash),
    }


def _restated_names(model: MoeModel, keep: int) -> dict[str, str]:
    """``general.name`` and ``size_label`` where they state experts or parameters."""
    before = sum(math.prod(tensor.shape) for tensor in model.gguf.tensors)
    taken = sum(
        math.prod(found.tensor.shape) // model.experts * (model.experts - keep)
        for found in model.expert_tensors.values()
    )
    changed = {}
    for key in ("general.name", "general.size_label"):
        old = model.metadata.get(key)
        if isinstance(old, str):
            new = restate(old, (model.experts, keep), (before, before - taken))
            if new != old:
                changed[key] = new
    return changed
