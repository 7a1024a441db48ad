"""Running chunks through a context and handing over the logits that are scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ggprune.calibration.sequences import packed
from ggprune.evaluation.chunks import Chunk
from ggprune.evaluation.logprobs import Logits
from ggprune.llama.session import LlamaContext, Tokens
from ggprune.types import Advance, Ints32, no_advance

#: Sequences decoded together. llama.cpp allows 256; more than a few only spread the cache.
SEQUENCES = 16


def scored_logits(
    context: LlamaContext,
    chunks: Sequence[Chunk],
    n_ctx: int,
    advance: Advance = no_advance,
) -> Iterator[tuple[int, Ints32, Logits]]:
    """Decode chunks and yield the logits that predict scored tokens, a batch at a time.

    Short chunks share a pass as sequences of their own.

    Args:
        context: for at least ``n_ctx`` tokens and SEQUENCES sequences.
        n_ctx: most tokens in the cache at once.

    Yields:
        The number of scored tokens before this batch, the tokens to predict [k], and their logits
        [k, n_vocab] in llama.cpp's memory: valid until the next step.
    """
    done = 0
    for group in packed(chunks, n_ctx, SEQUENCES):
        context.clear()
        targets = np.concatenate([chunk.targets for chunk in group])
        within = 0
        for batch in _batches(group, context.n_batch):
            context.decode(batch)
            advance(sum(len(part.ids) for part in batch))
            count = sum(len(part.ids) for part in batch if part.logits == "all")
            if count:
                yield done + within, targets[within : within + count], context.all_logits(count)
                within += count
        done += within


def _batches(group: Sequence[Chunk], n_batch: int) -> Iterator[list[Tokens]]:
    """Split sequences into batches of ``n_batch`` tokens, filled from one chunk after another."""
    batch: list[Tokens] = []
    room = n_batch
    for sequence, chunk in enumerate(group):
        for start, stop, wanted in _runs(chunk):
            while start < stop:
                end = min(stop, start + room)
                ids = chunk.tokens[start:end]
                batch.append(Tokens(sequence, start, ids, "all" if wanted else "none"))
                room -= end - start
                start = end
                if room == 0:
                    yield batch
                    batch, room = [], n_batch
    if batch:
        yield batch


def _runs(chunk: Chunk) -> Iterator[tuple[int, int, bool]]:
    """Cut a chunk where wanting logits changes: the token before a scored one gives its logits."""
    wanted = np.zeros(len(chunk.tokens), np.bool_)
    wanted[chunk.scored - 1] = True
    edges = [0, *(np.flatnonzero(np.diff(wanted)) + 1).tolist(), len(wanted)]
    for start, stop in itertools.pairwise(edges):
        yield start, stop, bool(wanted[start])
