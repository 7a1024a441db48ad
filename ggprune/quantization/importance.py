"""Gathering an importance matrix: what llama-imatrix does, with the observers of calibration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import InputError, LlamaError, NonFiniteError
from ggprune.llama.runtime import OP_MUL_MAT, OP_MUL_MAT_ID
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import TensorView
from ggprune.quantization.imatrix import Entry, Imatrix
from ggprune.text import chat
from ggprune.text.documents import Source
from ggprune.types import Floats

_F32 = 0
#: llama-imatrix passes over products of fewer tokens, so this does too.
_FEWEST = 16
_HEAD = "output.weight"


@dataclass(slots=True)
class _Sums:
    values: Floats
    counts: npt.NDArray[np.int64]


class ImatrixObserver:
    """Sums x² by column of every weight of a layer that is multiplied with x.

    Nodes, names and counting are those of ``tools/imatrix/imatrix.cpp``: products of a weight
    whose name starts with ``blk.`` and at least 16 tokens in F32, and all products with experts
    (MUL_MAT_ID), of which each expert's sums hold the tokens routed to it.

    May run beside a RoutingObserver that does not cut the graph.

    Args:
        head: take in ``output.weight`` too, as llama-imatrix does with process-output.
    """

    def __init__(self, *, head: bool = False) -> None:
        self._head = head
        self._sums: dict[str, _Sums] = {}
        self._last: str | None = None
        #: Weights of the nodes received, in order, until the end of the graph is known.
        self._seen: list[str] | None = []

    def wants(self, name: str) -> bool:
        """None by its name: many of these nodes have none."""
        return False

    def wants_node(self, tensor: TensorView) -> bool:
        """Products of weights."""
        operation = tensor.op
        if operation == OP_MUL_MAT_ID:
            return True
        if operation != OP_MUL_MAT:
            return False
        inputs = tensor.source(1)
        if inputs.shape[2] < _FEWEST or inputs.type != _F32:
            return False
        weight = tensor.source(0).name
        return weight.startswith("blk.") or (self._head and weight == _HEAD)

    def receive(self, name: str, tensor: TensorView) -> bool:
        """Take a product's inputs in."""
        source = tensor.source(0)
        weight = source.name
        inputs = tensor.source(1).array()
        if tensor.op == OP_MUL_MAT_ID:
            chosen = tensor.source(2).array()[0, 0]
            self._add_experts(weight, source.shape[1], inputs, chosen)
        else:
            self._add(weight, source.shape, inputs)
        if self._seen is not None:
            self._seen.append(weight)
        return weight != self._last

    def end_graph_early(self) -> None:
        """From the next graph on, stop after the last product of this one.

        Call after the first decode, of one ubatch: the output head is then never computed again.
        """
        seen, self._seen = self._seen or [], None
        if seen and seen.count(seen[-1]) == 1:
            self._last = seen[-1]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Give what was gathered in three arrays: names and lengths as JSON, sums, counts."""
        sums = self._sums
        if not sums:
            return {}
        lengths = [[name, each.values.size, each.counts.size] for name, each in sums.items()]
        return {
            "weights": np.frombuffer(json.dumps(lengths).encode(), np.int8),
            "values": np.concatenate([each.values for each in sums.values()]),
            "counts": np.concatenate([each.counts for each in sums.values()]),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what state said."""
        self._sums, values, counts = {}, 0, 0
        if not state:
            return
        for name, many, few in json.loads(state["weights"].tobytes()):
            self._sums[name] = _Sums(
                state["values"][values : values + many].copy(),
                state["counts"][counts : counts + few].copy(),
            )
            values, counts = values + many, counts + few

    def result(self, datasets: Sequence[str], chunks: int, chunk_size: int) -> Imatrix:
        """Return what was gathered.

        Args:
            chunk_size: tokens in a chunk.

        Raises:
            LlamaError: nothing was.
        """
        if not self._sums:
            raise LlamaError(
                "no products of weights were computed",
                remedy=f"Use chunks (`ctx`, `ubatch`) of at least {_FEWEST} tokens.",
            )
        entries = {
            weight: Entry(
                sums.values.reshape(len(sums.counts), -1).astype(np.float32),
                sums.counts.astype(np.float32),
            )
            for weight, sums in self._sums.items()
        }
        return Imatrix(entries, tuple(datasets), chunks, chunk_size)

    def save(self, path: Path, datasets: Sequence[str], chunks: int, chunk_size: int) -> None:
        """Write what was gathered; see result."""
        self.result(datasets, chunks, chunk_size).save(path)

    def _add(self, weight: str, shape: tuple[int, ...], inputs: npt.NDArray[Any]) -> None:
        """Add a product with one matrix, or one a head: inputs [i3, i2, tokens, columns]."""
        matrices, columns = shape[0] * shape[1], inputs.shape[3]
        sums = self._of(weight, matrices * columns, 1)
        squares = np.einsum("abtc,abtc->abc", inputs, inputs)
        rows = sums.values.reshape(matrices, columns)
        for i3, i2 in np.ndindex(squares.shape[:2]):
            rows[(i3 % shape[0]) * shape[1] + i2 % shape[1]] += squares[i3, i2]
        sums.counts += inputs.shape[0] * inputs.shape[1] * inputs.shape[2] // matrices
        self._check(weight, squares)

    def _add_experts(
        self,
        weight: str,
        experts: int,
        inputs: npt.NDArray[Any],
        chosen: npt.NDArray[np.int32],
    ) -> None:
        """Add a product with experts.

        Args:
            inputs: [1, tokens, 1 or used, columns].
            chosen: expert ids, [tokens, used].
        """
        tokens, used = chosen.shape
        columns = inputs.shape[3]
        sums = self._of(weight, experts * columns, experts)
        rows = sums.values.reshape(experts, columns)
        flat = chosen.ravel()
        if inputs.shape[2] == 1:
            # All chosen experts see the same input: squares by token, summed by a product.
            pairs = flat.astype(np.int64) * tokens + np.repeat(np.arange(tokens), used)
            times = np.bincount(pairs, minlength=experts * tokens).reshape(experts, tokens)
            squares = np.square(inputs[0, :, 0])
            rows += times.astype(np.float32) @ squares
        else:
            slots = np.arange(used) % inputs.shape[2]
            order = np.argsort(flat, kind="stable")
            squares = np.square(inputs[0][:, slots].reshape(-1, columns)[order])
            present, starts = np.unique(flat[order], return_index=True)
            rows[present] += np.add.reduceat(squares, starts, axis=0)
        sums.counts += np.bincount(flat, minlength=experts)
        self._check(weight, squares)

    def _of(self, weight: str, size: int, counts: int) -> _Sums:
        found = self._sums.get(weight)
        if found is None:
            found = _Sums(np.zeros(size), np.zeros(counts, np.int64))
            self._sums[weight] = found
        return found

    def _check(self, weight: str, squares: npt.NDArray[Any]) -> None:
        if not np.isfinite(squares).all():
            raise NonFiniteError(f"{weight}: its inputs are not finite")


def gather(
    model: LlamaModel,
    tokens: Sequence[int],
    *,
    n_ctx: int,
    chunks: int | None = None,
    head: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[ImatrixObserver, int]:
    """Run a model over text, cut into chunks as llama-imatrix cuts it.

    Consecutive chunks of ``n_ctx`` tokens, the first token of each replaced with BOS where the
    vocabulary wants one; a shorter rest is left out.

    Args:
        chunks: use at most so many.

    Returns:
        What was observed, and the number of chunks.

    Raises:
        InputError: the text is shorter than one chunk.
        LlamaError: computing failed.
    """
    number = min(len(tokens) // n_ctx, chunks or len(tokens))
    if number < 1:
        raise InputError(
            f"the text has {len(tokens):,} tokens, fewer than one chunk of {n_ctx:,}",
            remedy="Give more text, or a smaller `ctx`.",
        )
    observer = ImatrixObserver(head=head)
    ubatch = min(model.options.ubatch, n_ctx)
    with LlamaContext(model, n_ctx=n_ctx, n_batch=ubatch, observers=[observer]) as context:
        for number_now in range(number):
            chunk = list(tokens[number_now * n_ctx : (number_now + 1) * n_ctx])
            if model.adds_bos:
                chunk[0] = model.bos
            context.clear()
            for start in range(0, n_ctx, ubatch):
                # Logits of every token: without, the last layer computes only one.
                part = chunk[start : start + ubatch]
                context.decode([Tokens(0, start, part)])
                observer.end_graph_early()
                progress(len(part))
    return observer, number


def joined_tokens(model: LlamaModel, template: str | None, sources: Iterable[Source]) -> list[int]:
    """Tokenize all texts one after the other, as llama.cpp's tools read a file."""
    chat_template = chat.template_of(model, template)
    tokens: list[int] = []
    for document in (document for source in sources for document in source.documents):
        # llama.cpp's tools drop the newline that a file ends with.
        text = document.text.removesuffix("\n")
        tokens += chat.tokenize(model, chat_template, replace(document, text=text))
    return tokens
