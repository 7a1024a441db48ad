"""Measuring many plans on the search text by masking, and keeping what was measured."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ggprune.calibration.observers import RoutingRecorder
from ggprune.calibration.routing import Shares
from ggprune.evaluation.chunks import hash_of
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.journal import Journal
from ggprune.evaluation.logprobs import TokenScores
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.text.documents import Source
from ggprune.types import Advance, Floats, Ints, Progress, no_advance, no_progress
from ggprune.util import Closing

#: Tokens of a chunk. Short ones give more of them to compare plans on.
CHUNK = 512
_MOST_TOKENS = 32_000
_VALIDATION = 1 / 3
#: Chunks that the speed is measured on.
_TRIAL = 6


class MaskedMeter(Closing):
    """Measures plans of one base model on chunks of text; a context manager.

    Args:
        path: the base model.
        options: how to run it.
        layers: block numbers that rows of a plan stand for.
        sources: text to search on.
        chunk: tokens of a chunk; the first eighth has too little before it to be scored.
        max_tokens: of each domain.
        cache: folder for the base's log-probabilities, which are large; None removes them.
        journal: file that measurements are appended to and found in again, so that an
            interrupted search continues; None keeps nothing.

    Raises:
        InputError: text shorter than a chunk.
    """

    def __init__(
        self,
        path: Path,
        options: RunOptions,
        layers: Sequence[int],
        sources: Sequence[Source],
        *,
        chunk: int = CHUNK,
        max_tokens: int = _MOST_TOKENS,
        cache: Path | None = None,
        journal: Path | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self._experts_used: int | None = None
        #: Whether what is measured from now on is without the router's bias.
        self.zero_bias = False
        self.evaluator = Evaluator(
            path,
            options,
            sources,
            n_ctx=chunk,
            max_tokens=max_tokens,
            spread=True,
            scored_from=chunk // 8,
            cache=cache,
        )
        self.chunks = self.evaluator.chunks
        self.text_hash = hash_of(self.chunks)
        router = self.evaluator.description.prunable().identity().router
        self._journal = Journal(journal, {"router": router, "text": self.text_hash})
        self._asked: set[str] = set()
        self._advance: Advance = no_advance

    def close(self) -> None:
        """Free the model."""
        self.evaluator.close()

    def start(self, progress: Progress = no_progress) -> float:
        """Compute the base's probabilities, and return how many tokens a second plans take."""
        with self.showing(progress, self.evaluator.tokens, "base model"):
            self.base()
            trial = range(min(_TRIAL, len(self.chunks)))
            self.evaluator.score_mask({}, trial[:1], advance=self._advance)
            before = time.monotonic()
            self.evaluator.score_mask({}, trial, advance=self._advance)
        tokens = sum(len(self.chunks[chunk].tokens) for chunk in trial)
        return tokens / max(time.monotonic() - before, 1e-3)

    def base(self) -> None:
        """Compute the base's probabilities."""
        self.evaluator.base(self._advance)

    @contextmanager
    def showing(self, progress: Progress, total: int, what: str) -> Iterator[None]:
        """Show what is computed in the meantime on a progress bar of ``total`` tokens."""
        with progress(total, what, "tok") as self._advance:
            yield

    @property
    def experts_used(self) -> int | None:
        """Experts a token uses in plans; None for as many as in the base."""
        return self._experts_used

    def use(self, experts_used: int | None) -> None:
        """Let a token use so many in what is measured from now on; None for the base's number."""
        # The base's own number is None too: what was measured with it need not be measured again.
        whole = self.evaluator.description.experts_used
        self._experts_used = None if experts_used == whole else experts_used

    @property
    def tokens(self) -> int:
        """Tokens of all plans asked about, each plan and chunk once, journal included."""
        chunks = (int(key.split(":")[1]) for key in self._asked)
        return sum(len(self.chunks[chunk].tokens) for chunk in chunks)

    def kl(self, kept: Ints, chunks: Sequence[int]) -> Floats:
        """Measure the mean KL divergence of each chunk, [chunks]."""
        return self._measure(kept, chunks)[0]

    def quality(self, kept: Ints, chunks: Sequence[int]) -> tuple[float, float]:
        """Measure mean KL divergence, and perplexity over the base's."""
        kl, nll = self._measure(kept, chunks)
        base = np.asarray(self.evaluator.base().nll)
        before = [base[self.evaluator.chunk_slice(chunk)].mean() for chunk in chunks]
        sizes = np.array([len(self.chunks[chunk].scored) for chunk in chunks])
        ratio = np.exp(np.average(nll - np.array(before), weights=sizes))
        return float(np.average(kl, weights=sizes)), float(ratio)

    def order(self) -> list[int]:
        """Return all chunks, domains in turn; any beginning is spread over the text.

        (Neighbours are alike.)
        """
        return _mixed([_spread(numbers) for numbers in self._by_domain()])

    def parts(self) -> tuple[list[int], list[int]]:
        """Divide the chunks: some to fit on, the last third of every domain to validate on.

        Within each, they are ordered as by :meth:`order`.
        """
        fitting, validation = [], []
        for numbers in self._by_domain():
            cut = len(numbers) - max(1, round(len(numbers) * _VALIDATION))
            fitting.append(_spread(numbers[:cut]))
            validation.append(_spread(numbers[cut:]))
        return _mixed(fitting), _mixed(validation)

    def _by_domain(self) -> list[list[int]]:
        domains: dict[str, list[int]] = {}
        for number, chunk in enumerate(self.chunks):
            domains.setdefault(chunk.domain, []).append(number)
        return list(domains.values())

    @contextmanager
    def routing(self) -> Iterator[Callable[[int], Shares]]:
        """Yield ``routing(chunk)``: experts used per scored token in the unpruned model."""
        model, options = self.evaluator.description, self.evaluator.options
        recorder = RoutingRecorder(model.prunable().architecture, self.layers)
        with (
            LlamaModel(model.gguf.path, options) as llama,
            LlamaContext(llama, n_ctx=self.evaluator.n_ctx, observers=(recorder,)) as context,
        ):

            def of(number: int) -> Shares:
                chunk = self.chunks[number]
                context.clear()
                _decode(context, chunk.tokens.tolist())
                # The token before a scored one is where the prediction is made.
                return Shares.of(*recorder.take()).at(chunk.scored - 1)

            yield of

    def token_kl(self, kept: Ints, chunk: int) -> Floats:
        """Measure the KL divergence of each scored token, in half precision (small to keep)."""
        key = f"{self._plan(kept)}:{chunk}:tokens"
        self._asked.add(key)
        known = self._journal.known
        if key not in known:
            scores = self._scores(kept, [chunk])
            data = np.minimum(scores.kld, 6e4).astype("<f2").tobytes()
            self._journal.put(key, base64.b64encode(data).decode())
        return np.frombuffer(base64.b64decode(known[key]), "<f2").astype(np.float64)

    def _measure(self, kept: Ints, chunks: Sequence[int]) -> tuple[Floats, Floats]:
        plan, known = self._plan(kept), self._journal.known
        keys = [f"{plan}:{chunk}" for chunk in chunks]
        self._asked.update(keys)
        new = [chunk for chunk, key in zip(chunks, keys, strict=True) if key not in known]
        if new:
            scores = self._scores(kept, new)
            at = 0
            for chunk in new:
                part = slice(at, at + len(self.chunks[chunk].scored))
                at = part.stop
                values = [float(scores.kld[part].mean()), float(scores.nll[part].mean())]
                self._journal.put(f"{plan}:{chunk}", values)
        kl, nll = np.array([known[key] for key in keys]).reshape(-1, 2).T
        return kl, nll

    def _scores(self, kept: Ints, chunks: Sequence[int]) -> TokenScores:
        experts = range(self.evaluator.description.experts)
        dropped = {
            layer: sorted(set(experts) - set(row.tolist()))
            for layer, row in zip(self.layers, kept, strict=True)
        }
        return self.evaluator.score_mask(
            dropped,
            chunks,
            experts_used=self.experts_used,
            zero_bias=self.zero_bias,
            advance=self._advance,
        )

    def _plan(self, kept: Ints) -> str:
        """Name a plan in the journal."""
        name = hashlib.sha256(np.ascontiguousarray(kept).tobytes()).hexdigest()[:24]
        name += f"/{self.experts_used}" if self.experts_used else ""
        return name + "/zero" * self.zero_bias


def _spread(numbers: Sequence[int]) -> list[int]:
    """Reorder by multiples of the golden ratio, modulo 1."""
    places = np.arange(1, len(numbers) + 1) * (5**0.5 - 1) / 2 % 1
    rank = np.argsort(np.argsort(places))
    return [numbers[i] for i in rank]


def _mixed(parts: Sequence[Sequence[int]]) -> list[int]:
    """One of each in turn, for as long as there are any."""
    longest = max((len(part) for part in parts), default=0)
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def _decode(context: LlamaContext, tokens: list[int]) -> None:
    for start in range(0, len(tokens), context.n_batch):
        context.decode([Tokens(0, start, tokens[start : start + context.n_batch])])
