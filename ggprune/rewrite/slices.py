"""From a model and a plan to the files of the result: which byte ranges stay, exact sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.gguf_file import ByteRange, OutputFile, OutputTensor, Tensor, joined, lay_out, whole
from ggprune.model import MoeModel
from ggprune.model.hash_routing import pruned_table
from ggprune.model.tensors import Role, layer_of
from ggprune.plan import Plan
from ggprune.rewrite.mask import check_maskable, masked
from ggprune.rewrite.metadata import Changes, key_edits

_MTP = ("prune", "drop")
#: What a tensor of the source becomes, told the experts that each layer keeps.
Cut = Callable[[Tensor, MoeModel, Mapping[int, Sequence[int]]], OutputTensor]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What will be written.

    Attributes:
        plan: complete: every layer with experts is in it.
        files: the result's files; writing them is gguf_file.write_files.
        dropped_layers: MTP layers left out.
        experts: of a layer in the result.
        cut: what its tensors are made by.
    """

    plan: Plan
    files: tuple[OutputFile, ...]
    dropped_layers: tuple[int, ...]
    experts: int
    cut: Cut

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
    mask: bool = False,
    plan_name: str = "the plan",
) -> Rewrite:
    """Decide what the pruned model, or the masked copy, consists of; nothing is written.

    Args:
        plan: which experts stay; MTP layers may be missing from it.
        mtp: ``prune`` MTP layers by the rule recorded in the plan, or ``drop`` them.
        split_max_size: bytes of one shard, at most.
        mask: keep all experts and let the dropped ones never be chosen, see rewrite.mask; layers
            may keep different numbers.
        plan_name: what to call the plan in messages.

    Raises:
        MismatchError, InputError: see Plan.for_model; UnsupportedModelError: see check_maskable.
    """
    _check(model, model.experts if mask else plan.keep, mtp)
    plan = plan.for_model(model, plan_name, by_layer=mask)
    dropped = model.mtp_layers if mtp == "drop" else ()
    plan = (
        plan.without(dropped)
        if dropped
        else plan.with_mtp(set(model.mtp_layers) & set(model.expert_layers))
    )
    if mask:
        check_maskable(model, plan)
    cut: Cut = masked if mask else partial(sliced, zero_bias=plan.zero_bias)
    experts = model.experts if mask else plan.keep
    kept = {layer: part.keep for layer, part in plan.layers.items()}
    changes = Changes(experts, plan.experts_used, plan.method, plan.hash, dropped)
    files = _lay_out(model, kept, changes, target, split_max_size, cut)
    return Rewrite(plan, files, dropped, experts, cut)


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
        method: what the plan will name as its method, which the result records.
        experts_used: for each token; None for as many as in the model.
        mtp, split_max_size: see plan_rewrite.

    Raises:
        InputError: an impossible number.
    """
    _check(model, keep, mtp)
    model.counts.check(keep)
    model.check_used(experts_used, keep)
    used = None if experts_used == model.experts_used else experts_used
    dropped = model.mtp_layers if mtp == "drop" else ()
    kept = dict.fromkeys(model.expert_layers, range(keep))
    changes = Changes(keep, used, method, "0" * 64, dropped)
    return _lay_out(model, kept, changes, target, split_max_size, sliced)


def result_size(model: MoeModel, keep: int, **asked: Any) -> int:
    """Bytes of the result with ``keep`` experts a layer, all shards, exactly; see result_files."""
    return sum(file.size for file in result_files(model, keep, **asked))


def sliced(
    tensor: Tensor,
    model: MoeModel,
    kept: Mapping[int, Sequence[int]],
    *,
    zero_bias: bool = False,
) -> OutputTensor:
    """Take the kept experts of a per-expert tensor, as byte ranges; most others whole.

    The expert axis is the outermost, so an expert is one range of nbytes / experts bytes. The
    table of a hash-routed layer is computed anew; with ``zero_bias`` the router's bias is 0.
    """
    found = model.expert_tensors.get(tensor.name)
    if found is None:
        layer = layer_of(tensor.name)
        if layer is None or model.hash_tables.get(layer) is not tensor:
            return whole(tensor)
        table = pruned_table(model, layer, kept[layer])
        return OutputTensor(tensor.name, tensor.shape, tensor.type, (table,))
    cut = outermost(tensor, kept[found.layer], model.experts)
    if zero_bias and found.role is Role.ROUTER_BIAS:
        return replace(cut, ranges=(bytes(cut.nbytes),))
    return cut


def outermost(tensor: Tensor, stay: Sequence[int], experts: int) -> OutputTensor:
    """Take some slices of the outermost dimension, which has one an expert."""
    size = tensor.nbytes // experts
    ranges = joined(ByteRange(tensor.shard, tensor.offset + e * size, size) for e in stay)
    return OutputTensor(tensor.name, (*tensor.shape[:-1], len(stay)), tensor.type, ranges)


def _check(model: MoeModel, keep: int, mtp: str) -> None:
    if mtp not in _MTP:
        raise InputError(f"mtp={mtp}: expected {' or '.join(_MTP)}")
    if keep != model.experts and keep in model.architecture.forbidden_counts:
        raise InputError(
            f"keep={keep}: llama.cpp computes another function for {model.architecture.name} "
            f"with exactly {keep} experts",
            remedy="Keep one more or one fewer.",
        )


def _lay_out(
    model: MoeModel,
    kept: Mapping[int, Sequence[int]],
    changes: Changes,
    target: Path,
    split_max_size: int | None,
    cut: Cut,
) -> tuple[OutputFile, ...]:
    left_out = model.mtp_tensors if changes.dropped_layers else frozenset()
    tensors = [cut(t, model, kept) for t in model.gguf.tensors if t.name not in left_out]
    edits = key_edits(model, changes)
    return lay_out(target, model.gguf, edits, tensors, split_max_size=split_max_size)
