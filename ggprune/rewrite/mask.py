"""Masked copies: the whole model, with a selection bias that keeps experts from being chosen.

llama.cpp adds ``exp_probs_b`` to the scores it chooses experts by, and takes the gates from the
scores without it (build_moe_ffn, src/llama-graph.cpp). So a large negative number there, in the
bytes of the same tensor, makes the copy compute what the pruned model computes. Nothing else
changes, the header included; a different number of experts can stay in each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ggprune.errors import UnsupportedModelError
from ggprune.gguf_file import OutputTensor, Tensor, whole
from ggprune.model import Model, MoeModel
from ggprune.model.architectures import MASKED, Gating, gating_of
from ggprune.model.hash_routing import pruned_table
from ggprune.model.tensors import Role, layer_of
from ggprune.plan import Plan

_F32 = 0


def check_maskable(model: MoeModel, plan: Plan) -> None:
    """Check that a copy can be masked so that it computes what the pruned model does.

    Raises:
        UnsupportedModelError: it cannot, with the reason.
    """
    reason = ""
    if gating_of(model.architecture, model.metadata) is Gating.SOFTMAX:
        reason = (
            "its router takes a softmax over all experts before the selection bias is added, so "
            "dropped experts would still lower the scores of the others"
        )
    for layer in plan.layers if not reason else ():
        biases = model.tensors_of(layer, Role.SELECTION_BIAS)
        if not biases and layer not in model.hash_tables:
            reason = f"layer {layer} has no selection bias (exp_probs_b)"
        elif any(bias.type != _F32 for bias in biases):
            reason = f"the selection bias of layer {layer} is not of type F32"
    if reason:
        raise UnsupportedModelError(
            f"{model.gguf.path}: cannot be masked: {reason}",
            remedy="Write the pruned model instead.",
        )


def masked(tensor: Tensor, model: MoeModel, kept: Mapping[int, Sequence[int]]) -> OutputTensor:
    """Mask the dropped experts in a selection bias or a hash-routed layer's table; others whole."""
    layer, found = layer_of(tensor.name), model.expert_tensors.get(tensor.name)
    data = b""
    if layer is not None and model.hash_tables.get(layer) is tensor:
        data = pruned_table(model, layer, kept[layer], renumber=False)
    elif found is not None and found.role is Role.SELECTION_BIAS:
        values = np.frombuffer(model.gguf.read(tensor), "<f4").copy()
        values[np.setdiff1d(np.arange(model.experts), kept[found.layer])] = MASKED
        data = values.tobytes()
    return OutputTensor(tensor.name, tensor.shape, tensor.type, (data,)) if data else whole(tensor)


def choosable(model: Model) -> dict[int, int]:
    """Count the experts that can be chosen in each layer of a masked file; empty for others."""
    counts = {}
    for found in model.expert_tensors.values():
        if found.role is Role.SELECTION_BIAS and found.tensor.type == _F32:
            values = np.frombuffer(model.gguf.read(found.tensor), "<f4")
            counts[found.layer] = int((values > MASKED / 2).sum())
    return counts if any(count < model.experts for count in counts.values()) else {}
