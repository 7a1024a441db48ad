"""What pruning costs: a candidate (a plan, or a file) against the base model on some text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import MismatchError, UnsupportedModelError
from ggprune.evaluation.chunks import chunks_of, hash_of
from ggprune.evaluation.logcache import LogCache, header_of
from ggprune.evaluation.logits import SEQUENCES, scored_logits
from ggprune.evaluation.logprobs import BaseLog, TokenScores, compare, record
from ggprune.evaluation.masking import Dropped, MaskObserver, dropped_by
from ggprune.evaluation.metrics import Metrics
from ggprune.gguf_file import GgufModel
from ggprune.interrupts import interrupts
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel
from ggprune.model import Model, describe
from ggprune.model.architectures import Kind
from ggprune.plan import Plan
from ggprune.text import chat
from ggprune.text.documents import Source
from ggprune.types import Advance, no_advance
from ggprune.util import Closing

#: Tokens of a context at least: short chunks share it, so that experts see full batches.
_ROOM = 512
_TOKENS_KEY = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A candidate measured against the base.

    Attributes:
        candidate: what was measured, for people.
        total: over all text.
        domains: by kind of text.
        scores: of every scored token, in the order of the text.
    """

    candidate: str
    total: Metrics
    domains: Mapping[str, Metrics]
    scores: TokenScores

    def as_json(self) -> dict[str, Any]:
        """Return what ``ggprune evaluate --json`` prints."""
        domains = {name: metrics.as_json() for name, metrics in self.domains.items()}
        return {**self.total.as_json(), "domains": domains}


class Evaluator(Closing):
    """A base model and text to compare candidates on; a context manager.

    The base's log-probabilities are computed once and kept in a file. A plan is evaluated by
    masking, without a file and without loading a second model, and any number of masks is tried
    in one context.

    Args:
        sources: text, best not calibrated on.
        n_ctx: context, at most what the model was trained with.
        max_tokens: of each domain.
        spread: take these from all of its text rather than from its beginning.
        scored_from: see chunks.chunks_of.
        cache: folder for base log-probabilities; None for one that is removed at the end.

    Attributes:
        description: of the base model.
        chunks: what the text is cut into.

    Raises:
        UnsupportedModelError: an embedding model.
        InputError: text shorter than a chunk.
    """

    def __init__(
        self,
        path: Path,
        options: RunOptions,
        sources: Sequence[Source],
        *,
        n_ctx: int = 2048,
        max_tokens: int | None = None,
        spread: bool = False,
        scored_from: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.options = options
        self.sources = tuple(sources)
        self.description: Model = describe(path)
        try:
            check_predicts(self.description)
        except UnsupportedModelError:
            self.description.close()
            raise
        self._llama: LlamaModel | None = None
        self._experts_used: int | None = None
        self._masked: tuple[MaskObserver, LlamaContext] | None = None
        self._base: BaseLog | None = None
        with LlamaModel(path, options, vocab_only=True) as vocabulary:
            self.n_vocab = vocabulary.n_vocab
            self.n_ctx = min(n_ctx, self.description.trained_context or n_ctx)
            self._room = max(self.n_ctx, _ROOM)
            template = chat.template_of(
                vocabulary, self.description.gguf.get("tokenizer.chat_template")
            )
            self.chunks = chunks_of(
                vocabulary,
                template,
                self.sources,
                n_ctx=self.n_ctx,
                max_tokens=max_tokens,
                spread=spread,
                scored_from=scored_from,
            )
        counts = [len(chunk.scored) for chunk in self.chunks]
        self._offsets = [0, *itertools.accumulate(counts)]
        self._cache = LogCache(cache)
        self._pool = ThreadPoolExecutor(options.n_threads)

    def close(self) -> None:
        """Free the model, threads and temporary files."""
        self.unload()
        self._base = None
        self._pool.shutdown()
        self._cache.close()
        self.description.close()

    @property
    def tokens(self) -> int:
        """Tokens in one pass over the text: what ``advance`` counts to."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def scored(self) -> int:
        """Tokens that are scored in one pass."""
        return self._offsets[-1]

    @property
    def base_is_known(self) -> bool:
        """Whether the base's log-probabilities need no pass."""
        return self._known_base() is not None

    def base(self, advance: Advance = no_advance) -> BaseLog:
        """Return log-probabilities of the base model: from the cache, or computed.

        Raises:
            OutputError: there is no room for them.
            NonFiniteError: logits are not finite.
        """
        known = self._known_base()
        if known is not None:
            return known
        header = self._header()
        path = self._cache.path(self.description.gguf, header)
        with (
            interrupts,
            self._cache.writing(path, header, self.scored, self.n_vocab) as log,
            self._context(self._loaded()) as context,
        ):
            steps = scored_logits(context, self.chunks, self._room, advance)
            for first, targets, logits in steps:
                record(logits, targets, log, first, self._pool)
            log.flush()
        self._base = BaseLog.open(path, header)
        assert self._base is not None
        return self._base

    def measure_plan(
        self, plan: Plan, name: str = "the plan", *, advance: Advance = no_advance
    ) -> Evaluation:
        """Measure a plan by masking.

        Args:
            plan: for the base model, any quantization of it.

        Raises:
            MismatchError, InputError: it is not for this model; see Plan.for_model.
        """
        complete = plan.for_model(self.description.prunable(), name)
        return self.measure_mask(
            dropped_by(complete),
            name,
            experts_used=complete.experts_used,
            zero_bias=complete.zero_bias,
            advance=advance,
        )

    def measure_mask(
        self,
        dropped: Dropped,
        name: str = "mask",
        *,
        experts_used: int | None = None,
        zero_bias: bool = False,
        advance: Advance = no_advance,
    ) -> Evaluation:
        """Measure the base model without some experts; arguments are those of score_mask."""
        scores = self.score_mask(
            dropped, experts_used=experts_used, zero_bias=zero_bias, advance=advance
        )
        return self._evaluation(scores, name)

    def score_mask(
        self,
        dropped: Dropped,
        chunks: Sequence[int] | None = None,
        *,
        experts_used: int | None = None,
        zero_bias: bool = False,
        advance: Advance = no_advance,
    ) -> TokenScores:
        """Score the base model without some experts, for searching: model and context stay.

        Args:
            dropped: experts by layer.
            chunks: indices into :attr:`chunks`, all by default; tokens come in this order.
            experts_used: for each token, None for as many as the model says; the model is loaded
                again when this changes.
            zero_bias: see Plan.
        """
        base = self.base(advance)
        llama = self._loaded(experts_used)
        if self._masked is None:
            mask = MaskObserver(self.description.prunable())
            self._masked = mask, self._context(llama, mask)
        mask, context = self._masked
        mask.set_plan(dropped, zero_bias=zero_bias)
        chosen = range(len(self.chunks)) if chunks is None else chunks
        return self._scores(context, base, chosen, advance)

    def chunk_slice(self, chunk: int) -> slice:
        """Where a chunk's tokens are in the scores of a whole pass."""
        return slice(self._offsets[chunk], self._offsets[chunk + 1])

    def measure_file(
        self, path: Path, dropped: Dropped | None = None, *, advance: Advance = no_advance
    ) -> Evaluation:
        """Measure another model file; the base is unloaded, so that only one is in memory.

        Args:
            path: of the same vocabulary.
            dropped: experts of it to mask, by layer: it is measured as the file without them.

        Raises:
            MismatchError: its vocabulary is another.
        """
        self._check_vocabulary(path)
        base = self.base(advance)
        self.unload()
        masks = [MaskObserver(self.description.prunable(), dropped)] if dropped else []
        with (
            LlamaModel(path, self.options) as candidate,
            self._context(candidate, *masks) as context,
        ):
            scores = self._scores(context, base, range(len(self.chunks)), advance)
        return self._evaluation(scores, str(path))

    def _scores(
        self, context: LlamaContext, base: BaseLog, chosen: Sequence[int], advance: Advance
    ) -> TokenScores:
        rows = np.concatenate([self._rows(index) for index in chosen])
        chunks = [self.chunks[index] for index in chosen]
        out = TokenScores.empty(len(rows))
        # Held back: threads work on the context's memory, which an exception would free.
        with interrupts:
            for first, targets, logits in scored_logits(context, chunks, self._room, advance):
                part = slice(first, first + len(targets))
                compare(logits, targets, base, rows[part], out.part(part), self._pool)
        return out

    def _rows(self, chunk: int) -> npt.NDArray[np.intp]:
        return np.arange(self._offsets[chunk], self._offsets[chunk + 1])

    def _evaluation(self, scores: TokenScores, name: str) -> Evaluation:
        nll = np.asarray(self.base().nll)
        domains = {}
        for domain, where in self._by_domain().items():
            domains[domain] = Metrics.of(nll[where], scores.part(where))
        return Evaluation(name, Metrics.of(nll, scores), domains, scores)

    def _by_domain(self) -> dict[str, npt.NDArray[np.intp]]:
        found: dict[str, list[npt.NDArray[np.intp]]] = {}
        for index, chunk in enumerate(self.chunks):
            found.setdefault(chunk.domain, []).append(self._rows(index))
        return {domain: np.concatenate(parts) for domain, parts in found.items()}

    def _header(self) -> dict[str, Any]:
        return header_of(self.description.gguf, hash_of(self.chunks))

    def _known_base(self) -> BaseLog | None:
        if self._base is None:
            header = self._header()
            self._base = BaseLog.open(self._cache.path(self.description.gguf, header), header)
        return self._base

    def _loaded(self, experts_used: int | None = None) -> LlamaModel:
        if experts_used != self._experts_used:
            self.unload()
        if self._llama is None:
            overrides = self.description.prunable().overrides(experts_used) if experts_used else {}
            self._llama = LlamaModel(self.description.gguf.path, self.options, overrides=overrides)
            self._experts_used = experts_used
        return self._llama

    def unload(self) -> None:
        """Free the model until it is needed again."""
        if self._masked is not None:
            self._masked[1].close()
            self._masked = None
        if self._llama is not None:
            self._llama.close()
            self._llama = None

    def _context(self, llama: LlamaModel, *observers: MaskObserver) -> LlamaContext:
        return LlamaContext(llama, n_ctx=self._room, n_sequences=SEQUENCES, observers=observers)

    def _check_vocabulary(self, path: Path) -> None:
        with GgufModel(path) as other:
            if _vocabulary(self.description.gguf) == _vocabulary(other):
                return
        raise MismatchError(
            f"{self.description.gguf.path} and {path} have different vocabularies, so their "
            "probabilities cannot be compared",
            remedy="Compare a model with one made from it.",
        )


def check_predicts(model: Model) -> None:
    """See that a model predicts tokens.

    Raises:
        UnsupportedModelError: it is an embedding model.
    """
    architecture = model.architecture
    if architecture is not None and architecture.kind is Kind.EMBEDDING:
        raise UnsupportedModelError(
            f"{model.gguf.path}: is an embedding model: it predicts no tokens, so perplexity, "
            "divergence and answers mean nothing for it",
            remedy="Compare its embeddings on the task it is used for.",
        )


def _vocabulary(gguf: GgufModel) -> bytes:
    pair = gguf.keys.get(_TOKENS_KEY)
    return gguf.files[0].read(pair.value, pair.end - pair.value) if pair else b""
