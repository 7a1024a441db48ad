"""How much tokens count: by the part of a conversation that they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ggprune.llama.session import LlamaModel
from ggprune.text import chat
from ggprune.text.answers import THINKING_ENDS, TOOL_CALLS
from ggprune.text.documents import Document
from ggprune.types import Floats, Ints32

#: By kind (settings.KINDS), those that are not 1; None: all are.
Weights = Mapping[str, float] | None

#: Tokens on each side of what ends thinking.
AROUND = 16
_FLAGS = re.DOTALL | re.MULTILINE
# Of bytes: tokens are pieces of bytes, and need not be whole characters.
_END = re.compile(THINKING_ENDS.encode(), _FLAGS)
_CALL = re.compile(TOOL_CALLS.encode(), _FLAGS)


def weights_of(
    llama: LlamaModel,
    template: chat.ChatTemplate | None,
    document: Document,
    tokens: Ints32,
    weights: Weights,
) -> Floats | None:
    """Return the weight of each token of a document; None if all tokens count 1.

    Plain text counts 1. In a conversation all that is no answer is prompt: the template's own
    words, too.
    """
    if weights is None:
        return None
    if not document.messages:
        return np.ones(len(tokens))
    found = np.full(len(tokens), weights.get("prompt", 1.0), np.float64)
    said = np.array(chat.tokenize_with_answers(llama, template, document)[1], np.intp)
    for answer in np.split(said, np.flatnonzero(np.diff(said) > 1) + 1):
        found[answer] = of_answer([llama.piece(token) for token in tokens[answer]], weights)
    return found


def of_answer(pieces: Sequence[bytes], weights: Mapping[str, float]) -> Floats:
    """Return the weight of each token of an answer.

    The end of thinking (with AROUND tokens on each side) and tool calls are parts of it, and have
    its weight unless they have their own; a token of both is of the tool call.

    Args:
        pieces: the bytes of its tokens.
        weights: by kind.
    """
    usual = weights.get("answer", 1.0)
    found = np.full(len(pieces), usual, np.float64)
    for first, last in _within(pieces, _END):
        found[max(first - AROUND, 0) : last + AROUND] = weights.get("thinking-end", usual)
    for first, last in _within(pieces, _CALL):
        found[first:last] = weights.get("tools", usual)
    return found


def _within(pieces: Sequence[bytes], pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    """First token and the one after the last of each match."""
    ends = np.cumsum([len(piece) for piece in pieces])
    for match in pattern.finditer(b"".join(pieces)):
        first = int(np.searchsorted(ends, match.start(), side="right"))
        yield first, int(np.searchsorted(ends, match.end())) + 1
