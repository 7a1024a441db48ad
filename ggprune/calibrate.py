"""Calibration: run the model over text once and gather what every expert does.

Conversations that await an answer are first continued by the model itself, then prompt and answer
are replayed together with the observer on: experts matter where the model writes, not only where
it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ggprune import chat, texts
from ggprune.checkpoint import SEQUENCES, Checkpoint, Chunk
from ggprune.collect import RoutingObserver
from ggprune.errors import InputError, Interrupted
from ggprune.generate import Sampling, generate
from ggprune.gguf_file import check_targets
from ggprune.llama.library import library
from ggprune.llama.observing import Observer
from ggprune.llama.runtime import LlamaContext, LlamaModel, RunOptions, Tokens
from ggprune.model import MoeModel
from ggprune.statistics import PER_EXPERT, Domain, ExpertSums, Statistics

_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run the model over, and how much of it.

    Attributes:
        ctx: tokens of a chunk; longer texts are cut into consecutive chunks.
        max_tokens: at most so many of each domain; None takes all.
        generate: tokens the model adds to a prompt; 0 turns that off.
        parallel: prompts answered at the same time.
        seed: for the answers.
    """

    ctx: int = 2048
    max_tokens: int | None = None
    generate: int = 128
    parallel: int = 16
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95

    def recorded(self) -> dict[str, str | int]:
        """What the statistics file says of them, and what must agree to continue a run."""
        from ggprune.version import VERSION

        return {
            "ctx": self.ctx,
            "max_tokens": self.max_tokens or 0,
            "generate": self.generate,
            "seed": self.seed,
            "sampling": f"temperature {self.temperature}, top_p {self.top_p}",
            "ggprune": VERSION,
            "llama-cpp-python": library().version,
        }


class ProgressFactory(Protocol):
    """Makes progress bars: (total, what, unit) -> a function that takes what was just done."""

    def __call__(
        self, total: int, what: str, unit: str, *, initial: int = 0
    ) -> AbstractContextManager[Callable[[int], object]]:
        """Open a bar."""


@dataclass(slots=True)
class Run:
    """One calibration run, which can be interrupted and continued.

    Args:
        model: described; must be prunable.
        sources: text by domain.
        settings: see Settings.
        options: how llama.cpp runs the model.
        progress: makes progress bars.
        partial: file for what was gathered so far; None keeps nothing.
        observers: others that watch the same pass (an importance matrix); the graph is then
            computed to its end.
        say: takes notes for the user.
    """

    model: MoeModel
    sources: Sequence[texts.Source]
    settings: Settings
    options: RunOptions
    progress: ProgressFactory
    partial: Path | None = None
    observers: Sequence[Observer] = ()
    say: Callable[[str], object] = lambda _: None
    _saved_at: float = field(default=0.0, init=False)

    def run(self) -> Statistics:
        """Gather the statistics.

        Raises:
            UnsupportedModelError: the model cannot be pruned.
            InputError: there is no text, or a template fails.
            Interrupted: Ctrl-C; what was gathered is in ``partial``.
            MismatchError: ``partial`` is of another model, text or setting.
        """
        self.model.require_prunable()
        checkpoint = self._resume()
        if checkpoint is None or checkpoint.done < len(checkpoint.groups):
            with LlamaModel(self.model.gguf.path, self.options) as llama:
                checkpoint = checkpoint or self._start(llama)
                self._observe(llama, checkpoint)
        return checkpoint.statistics

    def run_into(self, output: Path, *, force: bool = False) -> Statistics:
        """Gather the statistics and write them to a file, which appears when it is complete.

        What is gathered until then lies in ``<output>.partial``.

        Args:
            output: name of the statistics file.
            force: replace an existing one.

        Raises:
            OutputError: it exists or cannot be written; found out before the run.
            GgpruneError: see :meth:`run`.
        """
        self.model.require_prunable()
        check_targets([output], self._file_size(), source=self.model.gguf, force=force)
        self.partial = partial_path(output)
        statistics = self.run()
        statistics.save(output)
        self.partial.unlink(missing_ok=True)
        return statistics

    def _file_size(self) -> int:
        """Bytes of the statistics file, about: an upper bound without the header."""
        a_domain = len(self.model.moe_layers) * (self.model.experts * len(PER_EXPERT) + 1) * 8
        return a_domain * len(self.sources)

    def _resume(self) -> Checkpoint | None:
        if self.partial is None or not self.partial.exists():
            return None
        checkpoint = Checkpoint.load(self.partial)
        checkpoint.check_same(
            self.model.identity(), self._settings(), self._hashes(), str(self.partial)
        )
        self.say(f"continuing from {self.partial}: {checkpoint.tokens_done:,} tokens are done")
        return checkpoint

    def _settings(self) -> dict[str, str | int]:
        return {**self.settings.recorded(), "model_bytes": self.model.gguf.size}

    def _hashes(self) -> dict[str, str]:
        return {source.domain: source.sha256 for source in self.sources}

    def _start(self, llama: LlamaModel) -> Checkpoint:
        chunks = self._chunks(llama)
        if not chunks:
            raise InputError("there is no text to calibrate on", remedy="Give some with --text.")
        hashes = self._hashes()
        names = [source.domain for source in self.sources]
        rows, experts = len(self.model.moe_layers), self.model.experts
        domains = tuple(
            Domain(name, 0, hashes[name], ExpertSums.zeros(rows, experts)) for name in names
        )
        identity = self.model.identity()
        statistics = Statistics(identity, self.model.moe_layers, domains, self._settings())
        return Checkpoint(statistics, chunks, 0, capacity=self._capacity(chunks))

    def _capacity(self, chunks: Sequence[Chunk]) -> int:
        """Tokens a context holds: whatever the longest chunk and a full batch need."""
        return max(self.options.ubatch, *(len(chunk.tokens) for chunk in chunks))

    def _chunks(self, llama: LlamaModel) -> list[Chunk]:
        template = chat.template_of(llama, self.model.gguf.get("tokenizer.chat_template"))
        chunks, prompts = [], []
        for index, source in enumerate(self.sources):
            room = self.settings.max_tokens
            for document in source.documents:
                tokens = chat.tokenize(llama, template, document)
                tokens = tokens if room is None else tokens[:room]
                room = room if room is None else room - len(tokens)
                if document.awaits_answer and self.settings.generate and template:
                    tokens = tokens[: max(self.settings.ctx - self.settings.generate, 1)]
                    prompts.append(Chunk(index, tuple(tokens)))
                elif tokens:
                    chunks += _cut(index, tokens, self.settings.ctx, llama)
        return chunks + self._answered(llama, prompts)

    def _answered(self, llama: LlamaModel, prompts: list[Chunk]) -> list[Chunk]:
        """Prompts with the model's own answers."""
        if not prompts:
            return []
        limit, settings = self.settings.generate, self.settings
        sampling = Sampling(settings.temperature, settings.top_p, seed=settings.seed)
        total = limit * len(prompts)
        with self.progress(total, "generating", "tok") as progress:
            answers = generate(
                llama,
                [prompt.tokens for prompt in prompts],
                max_tokens=limit,
                parallel=settings.parallel,
                sampling=sampling,
                progress=progress,
            )
        return [
            Chunk(prompt.domain, prompt.tokens + tuple(answer))
            for prompt, answer in zip(prompts, answers, strict=True)
            if prompt.tokens
        ]

    def _observer(self) -> RoutingObserver:
        return RoutingObserver(
            self.model.require_prunable(),
            self.model.moe_layers,
            self.model.experts,
            cut=not self.observers,
        )

    def _observe(self, llama: LlamaModel, checkpoint: Checkpoint) -> None:
        observer = self._observer()
        self._saved_at = time.monotonic()
        total = sum(len(chunk.tokens) for chunk in checkpoint.chunks)
        with (
            LlamaContext(
                llama,
                n_ctx=checkpoint.capacity,
                n_sequences=min(SEQUENCES, len(checkpoint.chunks)),
                observers=(*self.observers, observer),
            ) as context,
            self.progress(total, "calibrating", "tok", initial=checkpoint.tokens_done) as progress,
        ):
            try:
                for group in checkpoint.groups[checkpoint.done :]:
                    _replay(context, group)
                    checkpoint.finish(group, observer.take())
                    progress(sum(len(chunk.tokens) for chunk in group))
                    self._save_sometimes(checkpoint)
            except KeyboardInterrupt:
                self._interrupted(checkpoint)

    def _save_sometimes(self, checkpoint: Checkpoint) -> None:
        if self.partial and time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            checkpoint.save(self.partial)
            self._saved_at = time.monotonic()

    def _interrupted(self, checkpoint: Checkpoint) -> None:
        if self.partial is None:
            raise Interrupted("interrupted: nothing was kept")
        checkpoint.save(self.partial)
        raise Interrupted(
            f"interrupted: {checkpoint.tokens_done:,} tokens are kept in {self.partial}",
            remedy="The same command continues from there.",
        )


def partial_path(output: Path) -> Path:
    """Where a run keeps what it gathered until ``output`` is complete."""
    return output.with_name(output.name + ".partial")


def _cut(domain: int, tokens: list[int], ctx: int, llama: LlamaModel) -> list[Chunk]:
    """Consecutive chunks of at most ``ctx`` tokens, nothing repeated, nothing skipped.

    Each chunk after the first starts with BOS too where the model wants one: without it the first
    token of a chunk would take over its part (attention sink) with outlying activations.
    """
    if not llama.adds_bos or tokens[0] != llama.bos:
        return [Chunk(domain, tuple(tokens[at : at + ctx])) for at in range(0, len(tokens), ctx)]
    body, step = tokens[1:], ctx - 1
    starts = range(0, max(len(body), 1), step)
    return [Chunk(domain, (llama.bos, *body[at : at + step])) for at in starts]


def _replay(context: LlamaContext, group: Sequence[Chunk]) -> None:
    """Run chunks through the model as parallel sequences, in full batches."""
    context.clear()
    parts: list[Tokens] = []
    used = 0
    for sequence, chunk in enumerate(group):
        at = 0
        while at < len(chunk.tokens):
            take = chunk.tokens[at : at + context.n_batch - used]
            parts.append(Tokens(sequence, at, take))
            at += len(take)
            used += len(take)
            if used == context.n_batch:
                context.decode(parts)
                parts, used = [], 0
    if parts:
        context.decode(parts)
