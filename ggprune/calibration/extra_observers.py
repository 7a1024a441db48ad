"""Observers of what few methods need: gathered only when asked, beside the usual statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggprune.llama.callback import layer_node
from ggprune.llama.norms import NormReader
from ggprune.llama.tensor import TensorView
from ggprune.model.architectures import CHOSEN_NODE, Architecture

_PRODUCT = "ffn_moe_weighted"


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token used, arrays of shape [tokens, layers, used].

    Attributes:
        experts: their numbers.
        gates: g.
        contributions: g‖f‖.
    """

    experts: npt.NDArray[np.int16]
    gates: npt.NDArray[np.float32]
    contributions: npt.NDArray[np.float32]


class RoutingRecorder:
    """Keeps the routing of every token instead of sums over tokens.

    Costs what calibration costs; keeps 10 bytes a token, layer and expert used. Tokens come in
    the order in which they are decoded, so decode one sequence at a time.

    Args:
        architecture: where contributions are found.
        layers: block numbers with experts, ascending.
        cut: end the graph after the last layer with experts.
    """

    def __init__(
        self, architecture: Architecture, layers: Sequence[int], *, cut: bool = True
    ) -> None:
        self._norms = NormReader()
        self._contribution = architecture.contribution_nodes
        self._layers = tuple(layers)
        self._last = layers[-1] if cut else None
        self._kept: dict[int, list[list[npt.NDArray[np.generic]]]] = {
            layer: [[], [], []] for layer in layers
        }

    def take(self) -> Routing:
        """What was recorded since the last call."""
        columns = [
            np.stack([np.concatenate(self._kept[layer][i]) for layer in self._layers], axis=1)
            for i in range(3)
        ]
        for parts in self._kept.values():
            for part in parts:
                part.clear()
        return Routing(
            columns[0].astype(np.int16),
            columns[1].astype(np.float32),
            columns[2].astype(np.float32),
        )

    def pop(self, layer: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Experts and contributions of one layer since the last call, [tokens, used] each."""
        chosen, gates, contributions = self._kept[layer]
        taken = np.concatenate(chosen), np.concatenate(contributions)
        for part in (chosen, gates, contributions):
            part.clear()
        return taken[0].astype(np.int64), taken[1].astype(np.float64)

    def wants(self, name: str) -> bool:
        """Experts chosen, gates and contributions."""
        node = layer_node(name)
        if node is None or node[1] not in self._kept:
            return False
        return node[0] in (CHOSEN_NODE, _PRODUCT, *self._contribution)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a node in."""
        node = layer_node(name)
        assert node is not None
        base, layer = node
        chosen, gates, contributions = self._kept[layer]
        if base == CHOSEN_NODE:
            chosen.append(tensor.array()[0, 0].astype(np.int16))
            return True
        if base == _PRODUCT:
            values = tensor.source(1).array()
            gates.append(values.reshape(values.shape[1], values.shape[2]).astype(np.float32))
        if base not in self._contribution:
            return True
        contributions.append(self._norms(tensor).astype(np.float32))
        return layer != self._last


_ROUTED = "ffn_moe_out"


class ChangeObserver:
    """Sums g‖f‖ weighted by how far the experts turn the residual stream (EASY-EP).

    For a token, x is the residual stream before the FFN and m what its experts add together; each
    of them is credited g‖f‖ · max(1 - cos(x, x + m), 0) (arXiv 2504.06792). Costs what
    calibration costs, and reads two more nodes of [n_embd, tokens] a layer.

    Args:
        architecture: where the nodes are.
        layers: block numbers with experts, ascending.
        experts: experts a layer.
    """

    def __init__(self, architecture: Architecture, layers: Sequence[int], experts: int) -> None:
        self._routing = RoutingRecorder(architecture, layers, cut=False)
        self._residual = architecture.residual_node
        self._layers, self._experts = tuple(layers), experts
        self._before: dict[int, npt.NDArray[np.float32]] = {}
        self._sums = np.zeros((len(layers), experts))
        self.seen = 0

    def take(self) -> npt.NDArray[np.float64]:
        """The sums since the last call, [layers, experts]."""
        taken, self._sums = self._sums, np.zeros_like(self._sums)
        return taken

    def wants(self, name: str) -> bool:
        """Routing, the residual stream before the FFN, and what the experts add."""
        node = layer_node(name)
        if node is None or node[1] not in self._layers:
            return False
        return node[0] in (self._residual, _ROUTED) or self._routing.wants(name)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a node in."""
        node = layer_node(name)
        assert node is not None
        base, layer = node
        if base == self._residual:
            self._before[layer] = tensor.array()[0, 0].copy()
        elif base == _ROUTED:
            self._add(layer, tensor.array()[0, 0])
        else:
            self._routing.receive(name, tensor)
        return True

    def _add(self, layer: int, added: npt.NDArray[np.float32]) -> None:
        before = self._before.pop(layer, None)
        chosen, contributions = self._routing.pop(layer)
        if before is None or before.shape != added.shape:
            return
        row = self._layers.index(layer)
        weighted = contributions * turned(before, added)[:, None]
        self._sums[row] += np.bincount(chosen.ravel(), weighted.ravel(), self._experts)
        self.seen += len(added)


def turned(
    before: npt.NDArray[np.float32], added: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """max(1 - cos(x, x + m), 0) of each row.

    Args:
        before: x, [tokens, n_embd].
        added: m, [tokens, n_embd].
    """
    x = before.astype(np.float64)
    after = x + added
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(after, axis=1)
    products = (x * after).sum(axis=1)
    cosine = np.divide(products, lengths, where=lengths > 0, out=np.ones_like(products))
    change: npt.NDArray[np.float64] = np.maximum(1 - cosine, 0)
    return change
