"""Observers of what few methods need: gathered only when asked, beside the usual statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggprune.architectures import CHOSEN_NODE, Architecture
from ggprune.collect import norms
from ggprune.llama.observing import layer_node
from ggprune.llama.tensor import TensorView

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
        contributions.append(norms(tensor.array()[0]).astype(np.float32))
        return layer != self._last
