"""Calibration text as sequences of tokens: what each pass of the model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggprune import chat, texts
from ggprune.checkpoint import Chunk
from ggprune.llama.runtime import LlamaContext, LlamaModel, Tokens


def sequences(
    llama: LlamaModel,
    template: chat.ChatTemplate | None,
    sources: Sequence[texts.Source],
    *,
    ctx: int,
    max_tokens: int | None,
    generate: int,
) -> list[Chunk]:
    """Tokenize and cut all texts.

    Conversations that await an answer keep room for ``generate`` tokens; without a template, or
    with none to generate, they are text like any other.

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
            tokens = chat.tokenize(llama, template, document)
            fits = room is None or len(tokens) + answer <= room
            if document.awaits_answer and answer and tokens and fits:
                tokens = tokens[: max(ctx - answer, 1)]
                chunks.append(Chunk(index, tuple(tokens), stream=len(chunks)))
                room = room if room is None else room - len(tokens) - answer
            else:
                tokens = tokens if room is None else tokens[:room]
                room = room if room is None else room - len(tokens)
                chunks += _cut(index, tokens, ctx, llama)
    return chunks


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
