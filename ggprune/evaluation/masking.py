"""Masking: a pruned model without a file, by taking experts out of the router's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ggprune.errors import InputError
from ggprune.llama.callback import layer_node
from ggprune.llama.tensor import TensorView
from ggprune.model import MoeModel
from ggprune.model.architectures import CHOSEN_NODE, LOGITS_NODE, MASKED
from ggprune.model.hash_routing import nearest_experts, remapped
from ggprune.plan import Plan

Dropped = Mapping[int, Sequence[int]]


class MaskObserver:
    """Takes experts out of the choice while the graph runs.

    Writes a large negative number into the dropped experts' entries of the router's logits and of
    the selection scores (``architecture.mask_nodes``, [n_expert, tokens] F32), before llama.cpp
    chooses. What follows is what the pruned model computes: the same experts chosen, the same
    gates. It composes with other observers, and what they see is the masked model.

    In layers that choose by a table of token ids, it replaces what the table named, as the pruned
    table does (model.hash_routing).

    Args:
        dropped: experts by layer; a layer that is not named stays whole.
        zero_bias: whether the router's bias is taken off its logits, see Plan.
    """

    #: Its receive comes before that of observers that only read.
    alters = True

    def __init__(
        self, model: MoeModel, dropped: Dropped | None = None, *, zero_bias: bool = False
    ) -> None:
        self._experts = model.experts
        self._nodes = frozenset(model.architecture.mask_nodes)
        self._nearest = {layer: nearest_experts(model, layer) for layer in model.hash_tables}
        self._dropped: dict[int, npt.NDArray[np.intp]] = {}
        self._zero_bias, self._logits = False, np.zeros(0, np.float32)
        self.set_plan(dropped or {}, zero_bias=zero_bias)

    def set_plan(self, dropped: Dropped, *, zero_bias: bool = False) -> None:
        """Mask other experts from the next decode on; nothing else has to be made anew."""
        self._dropped = {
            layer: np.array(experts, np.intp)
            for layer, experts in dropped.items()
            if len(experts) or zero_bias
        }
        self._zero_bias = zero_bias

    def wants(self, name: str) -> bool:
        """Want the nodes of every layer: it is asked once, and the mask may change later."""
        node = layer_node(name)
        if node is not None and node[0] == CHOSEN_NODE:
            return node[1] in self._nearest
        return node is not None and node[0] in self._nodes

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Write into a node."""
        node = layer_node(name)
        experts = self._dropped.get(node[1]) if node else None
        if experts is None:
            return True
        values = tensor.array()
        assert node is not None
        if node[0] == CHOSEN_NODE:
            stays = np.setdiff1d(np.arange(self._experts), experts)
            values[0, 0] = remapped(values[0, 0], stays.tolist(), self._nearest[node[1]])
            if not tensor.on_host:
                tensor.write(values)
            return True
        if experts.max(initial=0) >= values.shape[-1]:
            raise InputError(
                f"{name}: there is no expert {experts.max()}, the layer has {values.shape[-1]}"
            )
        if self._zero_bias:
            # The router's logits come first, then what they are with the bias.
            if node[0] == LOGITS_NODE:
                self._logits = values.copy()
            values[...] = self._logits
        values[..., experts] = MASKED
        if not tensor.on_host:
            tensor.write(values)
        return True


def dropped_by(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return what a plan (complete, see Plan.for_model) drops, by layer."""
    return {layer: plan.dropped(layer) for layer in plan.layers}
