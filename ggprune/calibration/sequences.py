"""Calibration text as sequences of tokens: cut to the context, packed into contexts."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ggprune.calibration.weights import Weights, weights_of
from ggprune.interrupts import interrupts
from ggprune.llama.session import LlamaModel
from ggprune.text import chat
from ggprune.text.documents import Source
from ggprune.types import Floats, Ints32
from ggprune.util import first_few

log = logging.getLogger(__name__)

#: Sequences in one context: enough to fill batches with short prompts.
SEQUENCES = 32


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """What a model reads in one go.

    Attributes:
        domain: index of the text it comes from.
        tokens: their ids, [n].
        stream: of a prompt that the model has still to answer, the stream of random numbers that
            its answer is drawn with; None: complete.
        weights: how much each token counts, [n]; None: all count 1.
    """

    domain: int
    tokens: Ints32
    stream: int | None = None
    weights: Floats | None = None

    @property
    def counted(self) -> int:
        """How many of the tokens count."""
        return len(self.tokens) if self.weights is None else int((self.weights > 0).sum())


def cut(
    llama: LlamaModel,
    template: chat.ChatTemplate | None,
    sources: Sequence[Source],
    *,
    ctx: int,
    max_tokens: int | None,
    generate: int,
    weights: Weights = None,
) -> list[TokenSequence]:
    """Tokenize and cut all texts.

    Conversations that await an answer keep room for ``generate`` tokens; one too long for that is
    text like any other, and so are all without a template or with nothing to generate.

    Args:
        ctx: most tokens in a sequence.
        max_tokens: of each domain, answers included; None takes all.
        generate: tokens the model adds to a prompt.
        weights: of tokens by their kind.
    """
    found: list[TokenSequence] = []
    unanswered = []
    answer = generate if template else 0
    for index, source in enumerate(sources):
        room = sys.maxsize if max_tokens is None else max_tokens
        long = 0
        for document in source.documents:
            interrupts.check()
            tokens = np.array(chat.tokenize(llama, template, document), np.int32)
            weighed = weights_of(llama, template, document, tokens, weights)
            fits = len(tokens) + answer <= min(ctx, room)
            if document.awaits_answer and answer and len(tokens) and fits:
                found.append(TokenSequence(index, tokens, len(found), weighed))
                room -= len(tokens) + answer
                continue
            long += document.awaits_answer and bool(answer) and len(tokens) + answer > ctx
            for piece in _pieces(tokens, ctx, llama):
                if len(kept := piece[:room]):
                    of_piece = None if weighed is None else weighed[kept]
                    found.append(TokenSequence(index, tokens[kept], weights=of_piece))
                    room -= len(kept)
        if long:
            unanswered.append(f"{source.domain} {long} of {len(source.documents)}")
    if unanswered:
        log.info(
            "prompts that leave no room for an answer of %s tokens in ctx=%s are read without "
            "one: %s",
            *(answer, ctx, first_few(unanswered, 9)),
        )
    return found


def _pieces(tokens: Ints32, ctx: int, llama: LlamaModel) -> Iterator[npt.NDArray[np.intp]]:
    """Positions of consecutive pieces of at most ``ctx`` tokens, nothing repeated or skipped.

    Each piece after the first starts with BOS too where the model wants one: without it the first
    token of a piece would take over its part (attention sink) with outlying activations.
    """
    every = np.arange(len(tokens))
    if len(tokens) == 0 or not llama.adds_bos or tokens[0] != llama.bos:
        yield from (every[at : at + ctx] for at in range(0, len(tokens), ctx))
        return
    for at in range(1, max(len(tokens), 2), ctx - 1):
        yield np.concatenate((every[:1], every[at : at + ctx - 1]))


class _HasTokens(Protocol):
    @property
    def tokens(self) -> Sized: ...


T = TypeVar("T", bound=_HasTokens)


def packed(sequences: Iterable[T], capacity: int, most: int) -> Iterator[list[T]]:
    """Yield consecutive sequences in groups that fit into a context; a longer one is alone.

    Args:
        capacity: tokens of a context.
        most: sequences of a context.
    """
    group: list[T] = []
    filled = 0
    for sequence in sequences:
        size = len(sequence.tokens)
        if group and (filled + size > capacity or len(group) == most):
            yield group
            group, filled = [], 0
        group.append(sequence)
        filled += size
    if group:
        yield group


def grouped(sequences: Sequence[TokenSequence], capacity: int) -> Iterator[list[TokenSequence]]:
    """Yield groups that share a context: of one domain, since a batch may reorder its tokens."""
    for _, same in itertools.groupby(sorted(sequences, key=_domain), key=_domain):
        yield from packed(same, capacity, SEQUENCES)


def _domain(sequence: TokenSequence) -> int:
    return sequence.domain


def answered(
    sequence: TokenSequence, answer: Sequence[int], weights: Floats | None = None
) -> TokenSequence:
    """Put a prompt and the model's answer together; ``weights`` are the answer's."""
    tokens = np.concatenate((sequence.tokens, np.array(answer, np.int32)))
    if sequence.weights is not None and weights is not None:
        weights = np.concatenate((sequence.weights, weights))
    return replace(sequence, tokens=tokens, stream=None, weights=weights)
