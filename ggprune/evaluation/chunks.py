"""Text as chunks that a model is scored on: which tokens it sees, and which it must predict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggprune.errors import InputError
from ggprune.llama.session import LlamaModel
from ggprune.text.chat import ChatTemplate, tokenize
from ggprune.text.documents import Document, Source
from ggprune.types import Ints32


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A sequence of its own.

    Attributes:
        domain: kind of text.
        tokens: what the model sees, [n].
        scored: positions of the tokens it must predict, ascending, [k], all above 0.
    """

    domain: str
    tokens: Ints32
    scored: Ints32

    @property
    def targets(self) -> Ints32:
        """The tokens to predict, [k]."""
        targets: Ints32 = self.tokens[self.scored]
        return targets


def chunks_of(
    model: LlamaModel,
    template: ChatTemplate | None,
    sources: Sequence[Source],
    *,
    n_ctx: int,
    max_tokens: int | None = None,
    scored_from: int | None = None,
) -> list[Chunk]:
    """Cut texts into chunks.

    Plain text is cut as ``llama-perplexity`` does it: pieces of ``n_ctx`` tokens, a shorter rest
    is left out, the first token of each is BOS where the model adds one, and the second half is
    scored. A conversation is a chunk of its own (cut at ``n_ctx``), of which all that the
    assistant says is scored.

    Args:
        model: for its vocabulary.
        template: of the chat; None joins messages as plain text.
        sources: the texts.
        n_ctx: most tokens in a chunk.
        max_tokens: of each domain; chunks beyond are left out, but for its first.
        scored_from: position of the first scored token of plain text; None for the second half.

    Raises:
        InputError: a text is shorter than a chunk.
    """
    chunks: list[Chunk] = []
    for source in sources:
        found = list(_domain(model, template, source, n_ctx, scored_from))
        if not found:
            raise InputError(
                f"text {source.domain!r} has {_plain_length(model, source)} tokens, "
                f"less than one chunk of {n_ctx}",
                remedy="Give more text, or a smaller `ctx`.",
            )
        chunks += _limited(found, max_tokens)
    return chunks


def hash_of(chunks: Sequence[Chunk]) -> str:
    """SHA-256 of all that decides which numbers come out."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(np.array([len(chunk.tokens), len(chunk.scored)], np.int64).tobytes())
        digest.update(chunk.tokens.tobytes() + chunk.scored.tobytes())
    return digest.hexdigest()


def _domain(
    model: LlamaModel,
    template: ChatTemplate | None,
    source: Source,
    n_ctx: int,
    scored_from: int | None,
) -> Iterator[Chunk]:
    plain = [document for document in source.documents if not document.messages]
    yield from _plain_chunks(model, source.domain, plain, n_ctx, scored_from)
    for document in source.documents:
        if document.messages:
            chunk = _conversation(model, template, source.domain, document, n_ctx)
            if chunk is not None:
                yield chunk


def _plain_tokens(model: LlamaModel, documents: Sequence[Document]) -> list[int]:
    """All documents one after another, each with its own BOS."""
    return [token for document in documents for token in model.tokenize(document.text)]


def _plain_length(model: LlamaModel, source: Source) -> int:
    return len(_plain_tokens(model, [d for d in source.documents if not d.messages]))


def _plain_chunks(
    model: LlamaModel,
    domain: str,
    documents: Sequence[Document],
    n_ctx: int,
    scored_from: int | None,
) -> Iterator[Chunk]:
    tokens = np.array(_plain_tokens(model, documents), np.int32)
    first = n_ctx // 2 + 1 if scored_from is None else scored_from
    scored = np.arange(first, n_ctx, dtype=np.int32)
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        piece = tokens[start : start + n_ctx].copy()
        if model.adds_bos:
            piece[0] = model.bos
        yield Chunk(domain, piece, scored)


def _conversation(
    model: LlamaModel,
    template: ChatTemplate | None,
    domain: str,
    document: Document,
    n_ctx: int,
) -> Chunk | None:
    """Score what the assistant says; None if it says nothing within the context."""
    tokens = tokenize(model, template, document)
    scored: list[int] = []
    for index, message in enumerate(document.messages):
        if message.role != "assistant":
            continue
        # The template writes what stands before and after an answer, so its place is found by
        # rendering the conversation up to it: that far the tokens agree.
        start = _agreeing(model, template, document, index, tokens) if index else 0
        end = _agreeing(model, template, document, index + 1, tokens)
        scored += range(max(start, 1), end)
    reached = [position for position in scored if position < n_ctx]
    if not reached:
        return None
    return Chunk(domain, np.array(tokens[:n_ctx], np.int32), np.array(reached, np.int32))


def _agreeing(
    model: LlamaModel,
    template: ChatTemplate | None,
    document: Document,
    turns: int,
    tokens: Sequence[int],
) -> int:
    """How many tokens the conversation's first ``turns`` share with all of it."""
    if turns == len(document.messages):
        return len(tokens)
    part = tokenize(model, template, replace(document, messages=document.messages[:turns]))
    for position, (one, other) in enumerate(zip(part, tokens, strict=False)):
        if one != other:
            return position
    return min(len(part), len(tokens))


def _limited(chunks: Sequence[Chunk], max_tokens: int | None) -> list[Chunk]:
    kept: list[Chunk] = []
    total = 0
    for chunk in chunks:
        total += len(chunk.tokens)
        if kept and max_tokens is not None and total > max_tokens:
            break
        kept.append(chunk)
    return kept
