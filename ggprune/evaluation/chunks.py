"""Text as chunks that a model is scored on: which tokens it sees, and which it must predict."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ggprune.errors import InputError
from ggprune.interrupts import interrupts
from ggprune.llama.session import LlamaModel
from ggprune.text.chat import ChatTemplate, tokenize_with_answers
from ggprune.text.documents import Document, Source
from ggprune.types import Ints32
from ggprune.util import first_few

log = logging.getLogger(__name__)


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
    llama: LlamaModel,
    template: ChatTemplate | None,
    sources: Sequence[Source],
    *,
    n_ctx: int,
    max_tokens: int | None = None,
    spread: bool = False,
    scored_from: int | None = None,
) -> list[Chunk]:
    """Cut texts into chunks.

    Plain text is cut as ``llama-perplexity`` does it: pieces of ``n_ctx`` tokens, a shorter rest
    is left out, the first token of each is BOS where the model adds one, and the second half is
    scored. A conversation is a chunk of its own (cut at ``n_ctx``), of which all that the
    assistant says is scored.

    Args:
        template: of the chat; None joins messages as plain text.
        n_ctx: most tokens in a chunk.
        max_tokens: of each domain; chunks beyond are left out, but for its first.
        spread: leave out chunks in between instead.
        scored_from: position of the first scored token of plain text; None for the second half.

    Raises:
        InputError: a text is shorter than a chunk, or has no answer that begins within one.
    """
    long: dict[str, list[str]] = {"left out, as the answer begins later": [], "cut there": []}
    chunks = []
    for source in sources:
        found, *counts = _domain(llama, template, source, n_ctx, scored_from)
        for named, count in zip(long.values(), counts, strict=True):
            if count:
                conversations = sum(bool(document.messages) for document in source.documents)
                named.append(f"{source.domain} {count} of {conversations}")
        every = sum(len(chunk.tokens) for chunk in found) // max_tokens if max_tokens else 1
        chunks += _limited(found[:: max(every, 1)] if spread else found, max_tokens)
    if any(long.values()):
        parts = (f"{what}: {first_few(named, 9)}" for what, named in long.items() if named)
        log.info("conversations longer than ctx=%s: %s", n_ctx, "; ".join(parts))
    return chunks


def hash_of(chunks: Sequence[Chunk]) -> str:
    """SHA-256 of all that decides which numbers come out."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(np.array([len(chunk.tokens), len(chunk.scored)], np.int64).tobytes())
        digest.update(chunk.tokens.tobytes() + chunk.scored.tobytes())
    return digest.hexdigest()


def _domain(
    llama: LlamaModel,
    template: ChatTemplate | None,
    source: Source,
    n_ctx: int,
    scored_from: int | None,
) -> tuple[list[Chunk], int, int]:
    """Cut one text; also count conversations that are left out, and those that are cut."""
    plain = [document for document in source.documents if not document.messages]
    # All documents one after another, each with its own BOS.
    tokens = [token for document in plain for token in llama.tokenize(document.text)]
    chunks = list(_plain_chunks(llama, source.domain, tokens, n_ctx, scored_from))
    conversations = [document for document in source.documents if document.messages]
    begins: list[int] = []
    cut = 0
    for document in conversations:
        interrupts.check()
        ids, said = tokenize_with_answers(llama, template, document)
        scored = [position for position in said if position]
        if scored and scored[0] < n_ctx:
            reached = [position for position in scored if position < n_ctx]
            cut += len(ids) > n_ctx
            columns = (np.array(column, np.int32) for column in (ids[:n_ctx], reached))
            chunks.append(Chunk(source.domain, *columns))
        elif scored:
            begins.append(scored[0])
    if not chunks:
        raise _nothing(source.domain, n_ctx, tokens, conversations, begins)
    return chunks, len(begins), cut


def _nothing(
    domain: str,
    n_ctx: int,
    tokens: Sequence[int],
    conversations: Sequence[Document],
    begins: Sequence[int],
) -> InputError:
    """Return what to raise for a text that gives no chunk."""
    if begins:
        return InputError(
            f"text {domain!r} has no answer that begins within {n_ctx:,} tokens, the first one "
            f"begins after {min(begins):,}",
            remedy=f"Use a ctx well above {min(begins):,}.",
        )
    if conversations and not tokens:
        return InputError(
            f"text {domain!r} has conversations, but no answers to measure",
            remedy="Give conversations with answers of the assistant, or plain text.",
        )
    return InputError(
        f"text {domain!r} has {len(tokens):,} tokens, less than one chunk of {n_ctx:,}",
        remedy="Give more text, or a smaller ctx.",
    )


def _plain_chunks(
    llama: LlamaModel,
    domain: str,
    tokens: Sequence[int],
    n_ctx: int,
    scored_from: int | None,
) -> Iterator[Chunk]:
    first = n_ctx // 2 + 1 if scored_from is None else scored_from
    scored = np.arange(first, n_ctx, dtype=np.int32)
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        piece = np.array(tokens[start : start + n_ctx], np.int32)
        if llama.adds_bos:
            piece[0] = llama.bos
        yield Chunk(domain, piece, scored)


def _limited(chunks: Sequence[Chunk], max_tokens: int | None) -> list[Chunk]:
    kept: list[Chunk] = []
    total = 0
    for chunk in chunks:
        total += len(chunk.tokens)
        if kept and max_tokens is not None and total > max_tokens:
            break
        kept.append(chunk)
    return kept
