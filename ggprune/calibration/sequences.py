"""Calibration text as sequences of tokens: what each pass of the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ggprune.calibration.checkpoint import Chunk
from ggprune.interrupts import interrupts
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.text import chat
from ggprune.text.documents import Source


def sequences(
    llama: LlamaModel,
    template: chat.ChatTemplate | None,
    sources: Sequence[Source],
    *,
    ctx: int,
    max_tokens: int | None,
    generate: int,
) -> list[Chunk]:
    """Tokenize and cut all texts.

    Conversations that await an answer keep room for ``generate`` tokens; one too long for that is
    text like any other, and so are all without a template or with nothing to generate.

    Args:
        llama: for its vocabulary.
        template: of the chat.
        sources: text by domain.
        ctx: most tokens in a sequence.
        max_tokens: of each domain, answers included.
        generate: tokens the model adds to a prompt.
    """
    chunks: list[Chunk] = []
    answer = generate if template else 0
    for index, source in enumerate(sources):
        room = max_tokens
        for document in source.documents:
            interrupts.check()
            tokens = chat.tokenize(llama, template, document)
            fits = len(tokens) + answer <= min(ctx, ctx if room is None else room)
            if document.awaits_answer and answer and tokens and fits:
                added = [Chunk(index, tuple(tokens), stream=len(chunks))]
                taken = len(tokens) + answer
            else:
                added = list(_within(_cut(index, tokens, ctx, llama), room))
                taken = sum(len(chunk.tokens) for chunk in added)
            chunks += added
            room = room if room is None else room - taken
    return chunks


def _within(chunks: Iterable[Chunk], room: int | None) -> Iterator[Chunk]:
    """The chunks that fit into ``room`` tokens, the last one shortened."""
    for chunk in chunks:
        kept = chunk if room is None else Chunk(chunk.domain, chunk.tokens[:room])
        if not kept.tokens:
            return
        yield kept
        room = room if room is None else room - len(kept.tokens)


def _cut(domain: int, tokens: list[int], ctx: int, llama: LlamaModel) -> Iterator[Chunk]:
    """Consecutive chunks of at most ``ctx`` tokens, nothing repeated, nothing skipped.

    Each chunk after the first starts with BOS too where the model wants one: without it the first
    token of a chunk would take over its part (attention sink) with outlying activations.
    """
    if not tokens:
        return
    if not llama.adds_bos or tokens[0] != llama.bos:
        for at in range(0, len(tokens), ctx):
            yield Chunk(domain, tuple(tokens[at : at + ctx]))
        return
    body, step = tokens[1:], ctx - 1
    for at in range(0, max(len(body), 1), step):
        yield Chunk(domain, (llama.bos, *body[at : at + step]))


def replay(context: LlamaContext, group: Sequence[Chunk]) -> None:
    """Run chunks through the model as parallel sequences, in full batches."""
    context.clear()
    # Asking for a token's logits is what takes it through the last layer, elsewhere.
    logits = "none" if context.keeps_rows else "all"
    parts: list[Tokens] = []
    used = 0
    for sequence, chunk in enumerate(group):
        at = 0
        while at < len(chunk.tokens):
            take = chunk.tokens[at : at + context.n_batch - used]
            parts.append(Tokens(sequence, at, take, logits))
            at += len(take)
            used += len(take)
            if used == context.n_batch:
                context.decode(parts)
                parts, used = [], 0
    if parts:
        context.decode(parts)
