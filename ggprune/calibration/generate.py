"""Generating with a model: many prompts at once, as parallel sequences of one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ggprune.errors import NonFiniteError
from ggprune.interrupts import interrupts
from ggprune.llama.callback import Observer
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.types import Advance, Ints32, no_advance

#: Candidates that a temperature above 0 draws from; the tail beyond them is noise.
_TOP_K = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 always takes the most probable token.
        top_p: draw from the fewest tokens that hold this probability.
        top_k: draw from at most this many tokens.
        seed: each prompt draws from its own stream, so that its answer does not depend on what
            else is generated at the same time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = _TOP_K
    seed: int = 0


@dataclass(slots=True)
class _Slot:
    """A prompt being answered: the cache's sequence, and what is still to be computed."""

    index: int
    pending: Sequence[int] | Ints32
    position: int = 0
    answer: list[int] = field(default_factory=list)


def generate(
    llama: LlamaModel,
    prompts: Sequence[Sequence[int] | Ints32],
    *,
    max_tokens: int,
    parallel: int = 8,
    sampling: Sampling | None = None,
    streams: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    advance: Advance = no_advance,
) -> list[list[int]]:
    """Continue every prompt until the model ends its answer or ``max_tokens`` are reached.

    A sequence that ends makes room for the next prompt at once.

    Args:
        max_tokens: of each answer.
        sampling: greedy if not given.
        streams: the stream of random numbers each prompt draws from; by default its index.

    Returns:
        Token ids of each answer in the order of the prompts; the token that ended it, if one did,
        is the last one.

    Raises:
        LlamaError: llama.cpp cannot compute; a NonFiniteError if logits are not finite.
    """
    if not prompts or max_tokens < 1:
        return [[] for _ in prompts]
    sampling = sampling or Sampling()
    parallel = min(parallel, len(prompts))
    longest = max(len(prompt) for prompt in prompts) + max_tokens
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = list(range(len(prompts)))[::-1]
    slots: list[_Slot | None] = [None] * parallel
    draws = [np.random.default_rng([sampling.seed, n]) for n in streams or range(len(prompts))]
    size = longest * parallel
    with (
        interrupts,
        LlamaContext(llama, n_ctx=size, n_sequences=parallel, observers=observers) as context,
    ):
        while True:
            for number, slot in enumerate(slots):
                if slot is None and waiting:
                    index = waiting.pop()
                    slots[number] = _Slot(index, prompts[index])
            parts, finished = _next_batch(slots, context.n_batch)
            if not parts:
                return answers
            context.decode(parts)
            for number, row in finished:
                slot = slots[number]
                assert slot is not None
                token = _pick(context.logits(row), sampling, draws[slot.index])
                slot.answer.append(token)
                slot.pending = [token]
                advance(1)
                if llama.ends_generation(token) or len(slot.answer) >= max_tokens:
                    answers[slot.index] = slot.answer
                    context.forget(number)
                    slots[number] = None


def _next_batch(
    slots: Sequence[_Slot | None], room: int
) -> tuple[list[Tokens], list[tuple[int, int]]]:
    """Fill a batch: answers under way first (one token each), then prompts.

    Returns the parts, and (sequence, index in the batch) of tokens that need a successor.
    """
    parts: list[Tokens] = []
    finished: list[tuple[int, int]] = []
    used = 0
    running = [(n, slot) for n, slot in enumerate(slots) if slot is not None and len(slot.pending)]
    for number, slot in sorted(running, key=lambda item: len(item[1].pending)):
        take = slot.pending[: room - used]
        if used == room:
            break
        slot.pending = slot.pending[len(take) :]
        last = len(slot.pending) == 0
        parts.append(Tokens(number, slot.position, take, "last" if last else "none"))
        slot.position += len(take)
        used += len(take)
        if last:
            finished.append((number, used - 1))
    return parts, finished


def _pick(logits: npt.NDArray[np.float32], sampling: Sampling, draw: np.random.Generator) -> int:
    """Choose the next token."""
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise NonFiniteError("the model computes logits that are not finite")
    if sampling.temperature <= 0:
        return best
    count = min(sampling.top_k, len(logits))
    top = np.argpartition(-logits, count - 1)[:count]
    top = top[np.argsort(-logits[top], kind="stable")]
    weights = np.exp((logits[top] - logits[best]).astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    # The first tokens that together reach top_p, at least one.
    within = np.concatenate(([True], np.cumsum(weights)[:-1] < sampling.top_p))
    weights = weights * within
    return int(draw.choice(top, p=weights / weights.sum()))
