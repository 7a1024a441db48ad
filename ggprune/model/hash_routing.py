"""Layers that choose experts by a table of token ids (DeepSeek V4), after some are dropped.

The table has one row a token: the experts it uses. What a dropped expert did falls to the kept
one whose router row points most nearly the same way, since the router still weighs the experts
that the table names; a row never names one expert twice, which llama.cpp's kernels forbid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggprune.errors import UnsupportedModelError
from ggprune.model.identity import as_float32
from ggprune.model.tensors import Role
from ggprune.types import Floats, Ints, Ints32

if TYPE_CHECKING:
    from ggprune.model.model import MoeModel


def hash_table(model: MoeModel, layer: int) -> Ints32:
    """Read a hash-routed layer's table: the experts of each token, [vocabulary, used].

    Raises:
        UnsupportedModelError: it names experts that the layer does not have.
    """
    tensor = model.hash_tables[layer]
    table = np.frombuffer(model.gguf.read(tensor), "<i4").reshape(tensor.shape[::-1])
    if table.size and not 0 <= table.min() <= table.max() < model.experts:
        raise UnsupportedModelError(
            f"{model.gguf.path}: {tensor.name} names experts up to {table.max()}, "
            f"the layer has {model.experts}"
        )
    return table


def nearest_experts(model: MoeModel, layer: int) -> Ints:
    """Order all experts of a layer by the cosine of their router rows, [experts, experts].

    Row e lists the experts from the most to the least like e, e itself first.

    Raises:
        UnsupportedModelError: the router is quantized.
    """
    (router,) = model.tensors_of(layer, Role.ROUTER)
    weights = as_float32(router, model.gguf.read(router))
    if weights is None:
        raise UnsupportedModelError(
            f"{model.gguf.path}: {router.name} is quantized, so it does not tell which experts "
            "are alike",
            remedy="Use a file with an F32 or F16 router, as llama-quantize writes it.",
        )
    rows = weights.reshape(model.experts, -1).astype(np.float64)
    return order_by_cosine(rows)


def order_by_cosine(rows: Floats) -> Ints:
    """Order vectors by their cosine with each of them: see nearest_experts."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, where=length > 0, out=np.zeros_like(rows))
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 2)
    return np.argsort(-cosine, axis=1, kind="stable")


def remapped(rows: Ints32, kept: Sequence[int], nearest: Ints) -> Ints32:
    """Replace dropped experts, in the order of a row, by the nearest kept one not yet in it.

    Args:
        rows: the experts of some tokens, [tokens, used]; a row names none twice.
        kept: experts that stay, at least ``used`` of them.
        nearest: see nearest_experts.

    Returns:
        The same shape, in the numbers of the whole model.
    """
    stays = np.zeros(len(nearest), np.bool_)
    stays[list(kept)] = True
    # For each expert, as many kept ones as a row can need to find a free one among.
    candidates = np.array([row[stays[row]][: rows.shape[1]] for row in nearest])
    found = rows.copy()
    taken = np.zeros((len(rows), len(nearest)), np.bool_)
    everyone = np.arange(len(rows))
    for column in rows.T:
        taken[everyone, column] |= stays[column]
    for place, column in enumerate(rows.T):
        at = np.flatnonzero(~stays[column])
        free = ~taken[at[:, None], candidates[column[at]]]
        chosen = candidates[column[at], free.argmax(axis=1)]
        found[at, place] = chosen
        taken[at, chosen] = True
    return found


def pruned_table(
    model: MoeModel, layer: int, kept: Sequence[int], *, renumber: bool = True
) -> bytes:
    """Make the table of a pruned layer, in the numbers of the kept experts if so asked."""
    rows = remapped(hash_table(model, layer), kept, nearest_experts(model, layer))
    if renumber:
        numbers = np.zeros(model.experts, np.int32)
        numbers[list(kept)] = np.arange(len(kept))
        rows = numbers[rows]
    return rows.astype("<i4").tobytes()
