"""Cut a LoRA adapter of the whole model to the experts that a plan keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ggprune.errors import InputError, MismatchError
from ggprune.gguf_file import GgufModel, KeyEdits, OutputFile, OutputTensor, Tensor, lay_out, whole
from ggprune.model import MoeModel
from ggprune.model.tensors import Role
from ggprune.plan import Plan
from ggprune.rewrite.slices import outermost


def plan_adapter(
    adapter: GgufModel, model: MoeModel, plan: Plan, target: Path
) -> tuple[OutputFile, ...]:
    """Decide what the adapter of the pruned model consists of; nothing is written.

    An adapter holds two factors for each weight W + scale · (B A): of experts' matrices, one pair
    an expert, as the outermost dimension of both; of the router, a row of B for each expert.

    Args:
        plan: complete, as in Rewrite.

    Raises:
        MismatchError: it is of another architecture, or does not fit the model.
        InputError: it is not a LoRA adapter.
    """
    _check(adapter, model)
    kept = {layer: part.keep for layer, part in plan.layers.items()}
    tensors = [
        cut for tensor in adapter.tensors if (cut := _cut(adapter, tensor, model, kept)) is not None
    ]
    return lay_out(target, adapter, KeyEdits(), tensors)


def _check(adapter: GgufModel, model: MoeModel) -> None:
    kind = adapter.get("general.type", ""), adapter.get("adapter.type", "")
    if kind != ("adapter", "lora"):
        raise InputError(
            f"{adapter.path}: is not a LoRA adapter (general.type {kind[0]!r}, adapter.type "
            f"{kind[1]!r})",
            remedy="Convert one with llama.cpp's convert_lora_to_gguf.py.",
        )
    name = adapter.get("general.architecture", "")
    if name != model.architecture.name:
        raise MismatchError(
            f"{adapter.path}: is for {name!r}, {model.gguf.path} is {model.architecture.name}"
        )


def _cut(
    adapter: GgufModel, tensor: Tensor, model: MoeModel, kept: Mapping[int, Sequence[int]]
) -> OutputTensor | None:
    """Slice one factor; None for one of a layer that the plan leaves out."""
    stem, dot, factor = tensor.name.rpartition(".lora_")
    weight = model.expert_tensors.get(stem)
    if not dot or weight is None:
        return whole(tensor)
    if weight.layer not in kept:
        return None
    if weight.role is Role.ROUTER and factor == "a":
        return whole(tensor)
    if tensor.shape[-1] != model.experts:
        shape = " x ".join(map(str, tensor.shape))
        raise MismatchError(
            f"{adapter.path}: {tensor.name} has the shape {shape}, not {model.experts} experts "
            "outermost"
        )
    return outermost(tensor, kept[weight.layer], model.experts)
