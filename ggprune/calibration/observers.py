"""From graph nodes to statistics: the observer that calibration runs with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import ExpertSums
from ggprune.errors import LlamaError
from ggprune.llama.callback import layer_node
from ggprune.llama.norms import NormReader
from ggprune.llama.tensor import TensorView
from ggprune.model.architectures import CHOSEN_NODE, Architecture
from ggprune.types import Floats

#: The product of expert outputs and gates; its second operand holds the final gates, after
#: whatever normalising and scaling the architecture does.
_PRODUCT = "ffn_moe_weighted"


class RoutingObserver:
    """Gathers, for every expert, what statistics.ExpertSums holds.

    It watches two nodes a layer: ``ffn_moe_topk`` (which experts) and ``ffn_moe_weighted``
    (g·f for each, and g as its operand). So nothing is recomputed, and routing is what llama.cpp
    chose, never re-derived from logits.

    Args:
        architecture: where contributions are found.
        layers: block numbers with experts, ascending.
        experts: experts a layer.
        cut: end the graph after the last layer with experts: the output head is not computed.
        norms: computes norms of expert outputs.
        every: keep the routing of every so many-th token since take; 0: of none.
    """

    def __init__(
        self,
        architecture: Architecture,
        layers: Sequence[int],
        experts: int,
        *,
        cut: bool = True,
        norms: NormReader | None = None,
        every: int = 0,
    ) -> None:
        self._sums = ExpertSums.zeros(len(layers), experts)
        self._experts = experts
        self._rows = {layer: row for row, layer in enumerate(layers)}
        self._contribution = architecture.contribution_nodes
        self._last = layers[-1] if cut else None
        self._norms = norms or NormReader()
        self._every = every
        self._routing: dict[int, list[tuple[npt.NDArray[np.int32], Floats]]] = {
            layer: [] for layer in layers
        }
        self._chosen: dict[int, npt.NDArray[np.int32]] = {}
        self._gates: dict[int, npt.NDArray[np.float32]] = {}

    def take(self) -> ExpertSums:
        """What was observed since the last call; begins anew."""
        for parts in self._routing.values():
            parts.clear()
        taken = self._sums
        self._sums = ExpertSums.zeros(len(self._rows), self._experts)
        return taken

    def shares(self) -> Shares | None:
        """Who did what for tokens since the last call of take; None if there were none."""
        if not all(self._routing.values()):
            return None
        experts, contributions = (
            np.stack([np.concatenate([p[i] for p in parts]) for parts in self._routing.values()], 1)
            for i in range(2)
        )
        return Shares.of(experts, contributions)

    def wants(self, name: str) -> bool:
        """Both nodes of layers with experts."""
        node = layer_node(name)
        if node is None or node[1] not in self._rows:
            return False
        return node[0] in (CHOSEN_NODE, _PRODUCT, *self._contribution)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a node in."""
        node = layer_node(name)
        assert node is not None
        base, layer = node
        if base == CHOSEN_NODE:
            self._chosen[layer] = tensor.array()[0, 0].copy()
            return True
        if base == _PRODUCT:
            # On the CPU the operand's memory is used again for later nodes: copy it now.
            gates = tensor.source(1).array()
            self._gates[layer] = gates.reshape(gates.shape[1], gates.shape[2]).copy()
        if base not in self._contribution:
            return True
        self._add(layer, self._norms(tensor))
        return layer != self._last

    def _add(self, layer: int, contribution: Floats) -> None:
        """Add one layer's tokens: contribution ‖g·f‖ is [tokens, used]."""
        chosen, gates = self._chosen.pop(layer), self._gates.pop(layer).astype(np.float64)
        self._check(layer, chosen, gates, contribution)
        norm = np.divide(contribution, np.abs(gates), where=gates != 0, out=np.zeros_like(gates))
        if self._every:
            first = -int(self._sums.tokens[self._rows[layer]]) % self._every
            part = slice(first, None, self._every)
            self._routing[layer].append((chosen[part], contribution[part]))
        sums, row, flat = self._sums, self._rows[layer], chosen.ravel()
        sums.tokens[row] += chosen.shape[0]
        sums.count[row] += np.bincount(flat, minlength=self._experts)
        for field, values in (
            (sums.gate_sum, gates),
            (sums.norm_sum, norm),
            (sums.norm_sq_sum, norm * norm),
            (sums.contribution_sum, contribution),
        ):
            field[row] += np.bincount(flat, values.ravel(), minlength=self._experts)
        np.maximum.at(sums.norm_max[row], flat, norm.ravel())

    def _check(
        self,
        layer: int,
        chosen: npt.NDArray[np.int32],
        gates: Floats,
        contribution: Floats,
    ) -> None:
        """Stop at what cannot be true rather than sum it up."""
        if chosen.shape != gates.shape or chosen.shape != contribution.shape:
            raise LlamaError(
                f"layer {layer}: {chosen.shape} experts, {gates.shape} gates and "
                f"{contribution.shape} outputs do not fit together",
                remedy="This llama-cpp-python is not the one ggprune was tested with.",
            )
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self._experts):
            raise LlamaError(f"layer {layer}: expert {chosen.max()} of {self._experts} was chosen")
        if not (np.isfinite(gates).all() and np.isfinite(contribution).all()):
            raise LlamaError(
                f"layer {layer}: experts compute values that are not finite",
                remedy="The model file is damaged, or its quantization is; try another one.",
            )
