"""From graph nodes to numbers: the observers that calibration and the methods run with.

Two nodes a layer are watched: ``ffn_moe_topk`` (which experts) and ``ffn_moe_weighted`` (g·f for
each, and g as its operand). So nothing is recomputed, and routing is what llama.cpp chose, never
re-derived from logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import ExpertSums
from ggprune.errors import LlamaError, NonFiniteError
from ggprune.llama.callback import layer_node
from ggprune.llama.norms import NormReader
from ggprune.llama.tensor import TensorView
from ggprune.model.architectures import CHOSEN_NODE, WEIGHTED_NODES, Architecture
from ggprune.types import Floats, Floats32, Ints32

#: What the experts of a layer add together.
_SUM_NODE = "ffn_moe_out"


class LayerObserver:
    """Base of observers that receive, layer by layer, what experts do for each token.

    Args:
        cut: end the graph after the last layer with experts: the output head is not computed.
    """

    def __init__(
        self,
        architecture: Architecture,
        layers: Sequence[int],
        *,
        cut: bool = True,
        norms: NormReader | None = None,
    ) -> None:
        self.rows = {layer: row for row, layer in enumerate(layers)}
        self._contribution = architecture.contribution_nodes
        self._last = layers[-1] if cut else None
        self._norms = norms or NormReader()
        self._chosen: dict[int, Ints32] = {}
        self._gates: dict[int, npt.NDArray[np.float32]] = {}
        self._weights: Floats | None = None
        self._at: dict[int, int] = {}
        #: Of the tokens that are being added, [tokens, 1].
        self.weight: Floats | float = 1.0

    def weigh(self, weights: Floats | None) -> None:
        """Say how much each of the tokens that are decoded next counts; None: all count 1."""
        self._weights, self._at = weights, dict.fromkeys(self.rows, 0)

    def add(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        """Take in one layer of a batch.

        Args:
            layer: its block number.
            chosen: experts, [tokens, used].
            gates: g, [tokens, used].
            contributions: ‖g·f‖, [tokens, used].
        """
        raise NotImplementedError

    def wants(self, name: str) -> bool:
        """Want both nodes of layers with experts."""
        node = layer_node(name)
        if node is None or node[1] not in self.rows:
            return False
        return node[0] in (CHOSEN_NODE, *WEIGHTED_NODES, *self._contribution)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a node in."""
        node = layer_node(name)
        assert node is not None
        base, layer = node
        if base == CHOSEN_NODE:
            self._chosen[layer] = tensor.array()[0, 0].copy()
            return True
        if base in WEIGHTED_NODES:
            # On the CPU the operand's memory is used again for later nodes: copy it now.
            gates = tensor.source(1).array()
            self._gates[layer] = gates.reshape(gates.shape[1], gates.shape[2]).copy()
        if base not in self._contribution:
            return True
        gates = self._gates.pop(layer).astype(np.float64)
        if self._weights is not None:
            at = self._at[layer]
            self._at[layer] = at + len(gates)
            self.weight = self._weights[at : self._at[layer], None]
        self.add(layer, self._chosen.pop(layer), gates, self._norms(tensor))
        return layer != self._last


class RoutingObserver(LayerObserver):
    """Gathers, for every expert, what statistics.ExpertSums holds.

    Args:
        architecture, layers, cut, norms: see LayerObserver.
        every: keep the routing of every so many-th token since take; None keeps that of none.
        weighted: ``weigh`` says how much tokens count.
    """

    def __init__(
        self,
        architecture: Architecture,
        layers: Sequence[int],
        experts: int,
        *,
        cut: bool = True,
        norms: NormReader | None = None,
        every: int | None = None,
        weighted: bool = False,
    ) -> None:
        super().__init__(architecture, layers, cut=cut, norms=norms)
        self._experts, self._every, self._weighted = experts, every, weighted
        self._sums = ExpertSums.zeros(len(layers), experts, weighted=weighted)
        self._routing: list[list[tuple[Ints32, Floats, Floats32]]] = [[] for _ in layers]

    def take(self) -> ExpertSums:
        """Return what was observed since the last call, and begin anew."""
        for parts in self._routing:
            parts.clear()
        taken = self._sums
        self._sums = ExpertSums.zeros(len(self.rows), self._experts, weighted=self._weighted)
        return taken

    def shares(self) -> Shares | None:
        """Return who did what for tokens since the last call of take; None if nothing is kept."""
        if not all(self._routing):
            return None
        experts, contributions, weights = (
            np.stack([np.concatenate([p[i] for p in parts]) for parts in self._routing], 1)
            for i in range(3)
        )
        return Shares.of(experts, contributions, weights[:, 0] if self._weighted else None)

    def add(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        """Add one layer's tokens to the sums; see LayerObserver.add."""
        self._check(layer, chosen, gates, contributions)
        sums, row, flat = self._sums, self.rows[layer], chosen.ravel()
        norms = np.divide(contributions, np.abs(gates), where=gates != 0, out=np.zeros_like(gates))
        weight = np.broadcast_to(self.weight, gates.shape)
        if self._every:
            part = np.arange(-int(sums.tokens[row]) % self._every, len(chosen), self._every)
            part = part[weight[part, 0] > 0]
            each = weight[part, 0].astype(np.float32)
            self._routing[row].append((chosen[part], contributions[part], each))
        sums.tokens[row] += chosen.shape[0]
        for field, values in (
            (sums.count, np.ones_like(gates)),
            (sums.gate_sum, gates),
            (sums.norm_sum, norms),
            (sums.norm_sq_sum, norms * norms),
            (sums.contribution_sum, contributions),
        ):
            added = np.bincount(flat, (weight * values).ravel(), minlength=self._experts)
            field[row] += added.astype(field.dtype)
        np.maximum.at(sums.norm_max[row], flat, (norms * (weight > 0)).ravel())

    def _check(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        """Stop at what cannot be true rather than sum it up."""
        if chosen.shape != gates.shape or chosen.shape != contributions.shape:
            raise LlamaError(
                f"layer {layer}: {chosen.shape} experts, {gates.shape} gates and "
                f"{contributions.shape} outputs do not fit together",
                remedy="This llama-cpp-python is none of those ggprune was tested with.",
            )
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self._experts):
            raise LlamaError(f"layer {layer}: expert {chosen.max()} of {self._experts} was chosen")
        if not (np.isfinite(gates).all() and np.isfinite(contributions).all()):
            raise NonFiniteError(f"layer {layer}: experts compute values that are not finite")


class RoutingRecorder(LayerObserver):
    """Keeps the routing of every token instead of sums over tokens.

    Costs what calibration costs; keeps 6 bytes a token, layer and expert used. Tokens come in
    the order in which they are decoded, so decode one sequence at a time. Arguments are those of
    LayerObserver.
    """

    def __init__(self, architecture: Architecture, layers: Sequence[int], **more: Any) -> None:
        super().__init__(architecture, layers, **more)
        self._kept: list[list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = [[] for _ in layers]

    def take(self) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        """Return experts and g‖f‖ recorded since the last call, [tokens, layers, used] each."""
        experts, contributions = (
            np.stack([np.concatenate([p[i] for p in parts]) for parts in self._kept], axis=1)
            for i in range(2)
        )
        for parts in self._kept:
            parts.clear()
        return experts, contributions

    def add(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        """Keep one layer's tokens; see LayerObserver.add."""
        pair = chosen.astype(np.int16), contributions.astype(np.float32)
        self._kept[self.rows[layer]].append(pair)


class ChangeObserver(LayerObserver):
    """Sums g‖f‖ weighted by how far the experts turn the residual stream (EASY-EP).

    For a token, x is the residual stream before the FFN and m what its experts add together; each
    of them is credited g‖f‖ · max(1 - cos(x, x + m), 0) (arXiv 2504.06792). Costs what
    calibration costs, and reads two more nodes of [n_embd, tokens] a layer.

    Attributes:
        seen: tokens taken in, over all layers; 0 where llama.cpp does not name the nodes.
    """

    def __init__(self, architecture: Architecture, layers: Sequence[int], experts: int) -> None:
        super().__init__(architecture, layers, cut=False)
        self._residual = architecture.residual_node
        self._before: dict[int, npt.NDArray[np.float32]] = {}
        self._used: dict[int, tuple[Ints32, Floats]] = {}
        self._sums = np.zeros((len(layers), experts))
        self.seen = 0

    def take(self) -> Floats:
        """Return the sums since the last call, [layers, experts]."""
        taken, self._sums = self._sums, np.zeros_like(self._sums)
        return taken

    def wants(self, name: str) -> bool:
        """Want the residual stream before the FFN and what the experts add, too."""
        node = layer_node(name)
        more = node is not None and node[1] in self.rows and node[0] in (self._residual, _SUM_NODE)
        return more or super().wants(name)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a node in."""
        base, layer = layer_node(name) or ("", 0)
        if base == self._residual:
            self._before[layer] = tensor.array()[0, 0].copy()
        elif base == _SUM_NODE:
            self._credit(layer, tensor.array()[0, 0])
        else:
            super().receive(name, tensor)
        return True

    def add(self, layer: int, chosen: Ints32, gates: Floats, contributions: Floats) -> None:
        """Wait for what they add together; see LayerObserver.add."""
        # Half precision is what the published sums were made with.
        halved = contributions.astype(np.float32).astype(np.float64)
        self._used[layer] = chosen, halved * self.weight

    def _credit(self, layer: int, added: npt.NDArray[np.float32]) -> None:
        before = self._before.pop(layer, None)
        chosen, contributions = self._used.pop(layer)
        if before is None or before.shape != added.shape:
            return
        row = self.rows[layer]
        weighted = contributions * turned(before, added)[:, None]
        self._sums[row] += np.bincount(chosen.ravel(), weighted.ravel(), self._sums.shape[1])
        self.seen += len(added)


def turned(before: npt.NDArray[np.float32], added: npt.NDArray[np.float32]) -> Floats:
    """Return max(1 - cos(x, x + m), 0) of each row.

    Args:
        before: x, [tokens, n_embd].
        added: m, [tokens, n_embd].
    """
    x = before.astype(np.float64)
    after = x + added
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(after, axis=1)
    products = (x * after).sum(axis=1)
    cosine = np.divide(products, lengths, where=lengths > 0, out=np.ones_like(products))
    change: Floats = np.maximum(1 - cosine, 0)
    return change
