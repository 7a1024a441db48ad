"""From a model and a plan to a new file: slices of expert tensors, patched metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggprune.errors import InputError, VerificationError
from ggprune.gguf_file import (
    ByteRange,
    GgufModel,
    KeyEdits,
    OutputFile,
    OutputTensor,
    Tensor,
    TypedValue,
    ValueType,
    joined,
    lay_out,
    whole,
)
from ggprune.model import MoeModel, architectures, describe
from ggprune.model.architectures import layer_of
from ggprune.plan import LayerPlan, Plan
from ggprune.version import VERSION

PROVENANCE = "ggprune."
LAST_LAYER_RULE = "MTP layer: the experts of the last layer that decoding runs"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What will be written.

    Attributes:
        plan: complete: every layer with experts is in it.
        files: the result's files; writing them is gguf_file.write_files.
        dropped_layers: MTP layers left out.
    """

    plan: Plan
    files: tuple[OutputFile, ...]
    dropped_layers: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(file.size for file in self.files)


def plan_rewrite(
    model: MoeModel,
    plan: Plan,
    target: Path,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    plan_name: str = "the plan",
) -> Rewrite:
    """Decide what the pruned model consists of; nothing is written.

    Args:
        model: the source.
        plan: which experts stay; MTP layers may be missing from it.
        target: path of the result.
        mtp: ``prune`` MTP layers by the rule recorded in the plan, or ``drop`` them.
        split_max_size: bytes of tensor data in one shard.
        plan_name: what to call the plan in messages.

    Raises:
        MismatchError, InputError, UnsupportedModelError: see Plan.for_model.
    """
    _check_count(model, plan.keep)
    complete = _complete(plan.for_model(model, plan_name), model, mtp)
    kept = {layer: part.keep for layer, part in complete.layers.items()}
    changes = _Changes(complete.keep, complete.experts_used, complete.method, complete.hash)
    files = _lay_out(model, kept, changes, target, mtp, split_max_size)
    return Rewrite(complete, files, model.mtp_layers if mtp == "drop" else ())


def result_files(
    model: MoeModel,
    keep: int,
    target: Path = Path("size.gguf"),
    *,
    method: str = "",
    experts_used: int | None = None,
    mtp: str = "prune",
    split_max_size: int | None = None,
) -> tuple[OutputFile, ...]:
    """Lay out a result whose experts are not chosen yet: its paths and sizes are exact.

    Neither depends on which experts stay, only on how many. The files must not be written.

    Args:
        model: the source.
        keep: experts a layer.
        target: path of the result.
        method: what the plan will name as its method, which the result records.
        experts_used: for each token; None for as many as in the model.
        mtp, split_max_size: see plan_rewrite.

    Raises:
        InputError: an impossible number.
        UnsupportedModelError: the model cannot be pruned.
    """
    _check_count(model, keep)
    _check_mtp(mtp)
    model.counts.check(keep)
    model.check_used(experts_used or 0)
    used = 0 if experts_used == model.experts_used else experts_used or 0
    kept = dict.fromkeys(model.expert_tensors, range(keep))
    changes = _Changes(keep, used, method, "0" * 64)
    return _lay_out(model, kept, changes, target, mtp, split_max_size)


def result_size(
    model: MoeModel,
    keep: int,
    *,
    method: str = "",
    experts_used: int | None = None,
    mtp: str = "prune",
    split_max_size: int | None = None,
) -> int:
    """Bytes of the result with ``keep`` experts a layer, all shards, exactly; see result_files."""
    files = result_files(
        model,
        keep,
        method=method,
        experts_used=experts_used,
        mtp=mtp,
        split_max_size=split_max_size,
    )
    return sum(file.size for file in files)


@dataclass(frozen=True, slots=True)
class _Changes:
    """What the metadata of a result says of its plan."""

    keep: int
    experts_used: int
    method: str
    plan_hash: str


def _check_count(model: MoeModel, keep: int) -> None:
    architecture = model.require_prunable()
    if keep != model.experts and keep in architecture.forbidden_counts:
        raise InputError(
            f"keep={keep}: llama.cpp computes another function for {architecture.name} "
            f"with exactly {keep} experts",
            remedy="Keep one more or one fewer.",
        )


def _check_mtp(mtp: str) -> None:
    if mtp not in ("prune", "drop"):
        raise InputError(f"mtp={mtp}: expected prune or drop")


def _lay_out(
    model: MoeModel,
    kept: Mapping[int, Sequence[int]],
    changes: _Changes,
    target: Path,
    mtp: str,
    split_max_size: int | None,
) -> tuple[OutputFile, ...]:
    dropped = model.mtp_layers if mtp == "drop" else ()
    tensors = [
        _sliced(tensor, model, kept)
        for tensor in model.gguf.tensors
        if layer_of(tensor.name) not in dropped
    ]
    edits = _edits(model, changes, dropped)
    return lay_out(target, model.gguf, edits, tensors, split_max_size=split_max_size)


def verify_bytes(model: MoeModel, plan: Plan, result: GgufModel) -> int:
    """Compare every tensor of the written file with the source's bytes.

    Reads the result through its own header, so it would notice a wrong one.

    Args:
        model: the source.
        plan: complete, as in Rewrite.
        result: the written file, open.

    Returns:
        Bytes compared.

    Raises:
        VerificationError: names the first tensor that differs.
    """
    originals = {tensor.name: tensor for tensor in model.gguf.tensors}
    kept = {layer: part.keep for layer, part in plan.layers.items()}
    compared = 0
    for tensor in result.tensors:
        expected = _sliced(originals[tensor.name], model, kept)
        if tensor.shape != expected.shape or tensor.nbytes != expected.nbytes:
            raise VerificationError(f"{result.path}: {tensor.name} has the shape {tensor.shape}")
        at = tensor.offset
        for part in expected.ranges:
            _compare(model.gguf, part, result, tensor, at)
            at += part.length
        compared += tensor.nbytes
    return compared


_COMPARE_CHUNK = 8 << 20


def _compare(
    source: GgufModel, part: ByteRange, result: GgufModel, tensor: Tensor, at: int
) -> None:
    for start in range(0, part.length, _COMPARE_CHUNK):
        length = min(_COMPARE_CHUNK, part.length - start)
        wanted = source.files[part.shard].read(part.offset + start, length)
        if result.files[tensor.shard].read(at + start, length) != wanted:
            raise VerificationError(
                f"{result.path}: {tensor.name} does not hold the bytes of {source.path}",
                remedy="The disk or memory may be faulty; write the file again.",
            )


def _complete(plan: Plan, model: MoeModel, mtp: str) -> Plan:
    """Add MTP layers, which decoding gives no statistics for."""
    _check_mtp(mtp)
    layers = dict(plan.layers)
    for layer in model.mtp_layers:
        if mtp == "drop":
            layers.pop(layer, None)
        elif layer in model.expert_tensors and layer not in layers:
            last = layers[model.moe_layers[-1]]
            layers[layer] = LayerPlan(last.keep, None, LAST_LAYER_RULE)
    return replace(plan, layers=layers)


def _sliced(tensor: Tensor, model: MoeModel, kept: Mapping[int, Sequence[int]]) -> OutputTensor:
    """The kept experts of a per-expert tensor, as byte ranges; any other tensor whole.

    The expert axis is the outermost, so an expert is one range of nbytes / experts bytes.
    """
    if architectures.expert_tensor(tensor.name) is None:
        return whole(tensor)
    layer = layer_of(tensor.name)
    assert layer is not None
    size = tensor.nbytes // model.experts
    stay = kept[layer]
    ranges = joined(ByteRange(tensor.shard, tensor.offset + e * size, size) for e in stay)
    return OutputTensor(tensor.name, (*tensor.shape[:-1], len(stay)), tensor.type, ranges)


def _edits(model: MoeModel, changes: _Changes, dropped: tuple[int, ...]) -> KeyEdits:
    """Metadata that must change; none if nothing is dropped."""
    if changes.keep == model.experts and not dropped and not changes.experts_used:
        return KeyEdits()
    changed: dict[str, TypedValue] = {}
    prefix = f"{model.require_prunable().name}."
    values: dict[str, Any] = {architectures.EXPERT_COUNT_KEY: changes.keep}
    if changes.experts_used:
        values[architectures.EXPERT_USED_KEY] = changes.experts_used
    if dropped:
        values |= architectures.keys_without_mtp(model.metadata, dropped)
    for key, value in values.items():
        changed[prefix + key] = _same_type(model.gguf, prefix + key, value)
    for key, text in _restated_names(model, changes.keep).items():
        changed[key] = TypedValue(ValueType.STRING, text)
    for key, entry in _provenance(model, changes).items():
        changed[PROVENANCE + key] = entry
    return KeyEdits(changed)


def _same_type(gguf: GgufModel, key: str, value: Any) -> TypedValue:
    """A new value in the type that the file stores this key as."""
    pair = gguf.keys.get(key)
    if pair is None:
        return TypedValue(ValueType.UINT32, value)
    if pair.type == ValueType.ARRAY:
        item = int.from_bytes(gguf.files[0].read(pair.value, 4), "little")
        return TypedValue(ValueType.ARRAY, value, ValueType(item))
    return TypedValue(ValueType(pair.type), value)


def _provenance(model: MoeModel, changes: _Changes) -> Mapping[str, TypedValue]:
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
    before = _parameters(model.gguf)
    taken = sum(
        _elements(t) // model.experts * (model.experts - keep)
        for tensors in model.expert_tensors.values()
        for t in tensors
    )
    changed = {}
    for key in ("general.name", "general.size_label"):
        old = model.metadata.get(key)
        if isinstance(old, str):
            new = restate(old, (model.experts, keep), (before, before - taken))
            if new != old:
                changed[key] = new
    return changed


def restate(text: str, experts: tuple[int, int], parameters: tuple[int, int]) -> str:
    """A model's name or size label, with the numbers that pruning changed.

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


def _parameters(gguf: GgufModel) -> int:
    return sum(_elements(tensor) for tensor in gguf.tensors)


def _elements(tensor: Tensor) -> int:
    count = 1
    for dimension in tensor.shape:
        count *= dimension
    return count


def check_result(path: Path, plan: Plan) -> MoeModel:
    """Open a written result and see that it describes itself as the plan wants.

    Raises:
        VerificationError: it does not.
    """
    model = describe(GgufModel(path))
    used = plan.experts_used or model.experts_used
    if model.refusal or (model.experts, model.experts_used) != (plan.keep, used):
        found = model.refusal or f"{model.experts} experts, {model.experts_used} used"
        model.gguf.close()
        raise VerificationError(f"{path}: the written file is not right: {found}")
    return model
