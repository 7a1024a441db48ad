"""Calibration: run the model over text once and gather what every expert does.

Conversations that await an answer are first continued by the model itself, then prompt and answer
are replayed together with the observer on: experts matter where the model writes, not only where
it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy.typing as npt

from ggprune.calibration.checkpoint import Checkpoint, Chunk, check_same_run
from ggprune.calibration.generate import Sampling, generate
from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.routing import KEPT_BYTES, stride
from ggprune.calibration.sequences import replay, sequences
from ggprune.calibration.settings import Settings as Settings
from ggprune.calibration.statistics import PER_EXPERT, Domain, ExpertSums, Statistics
from ggprune.errors import GgpruneError, InputError, Interrupted, MismatchError, OutputError
from ggprune.gguf_file import check_targets
from ggprune.interrupts import interrupts
from ggprune.llama.callback import Observer, ResumableObserver
from ggprune.llama.devices import physical_memory
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens, can_keep_rows
from ggprune.model import MoeModel
from ggprune.model.architectures import Kind
from ggprune.text import chat
from ggprune.text.documents import Source
from ggprune.types import Progress

#: Tokens to find out how a model treats those whose logits are not wanted.
_TRIAL = 4

#: Full batches in a context: the last one of a context is seldom full.
_BATCHES = 4

_CHECKPOINT_SECONDS = 60.0


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
            computed to its end. What they gathered is kept in ``partial`` if all of them can
            resume; otherwise nothing is.
        say: takes notes for the user.
    """

    model: MoeModel
    sources: Sequence[Source]
    settings: Settings
    options: RunOptions
    progress: Progress
    partial: Path | None = None
    observers: Sequence[Observer] = ()
    say: Callable[[str], object] = lambda _: None
    _saved_at: float = field(default=0.0, init=False)

    def run(self) -> Statistics:
        """Gather the statistics.

        Raises:
            InputError: there is no text, or a template fails.
            Interrupted: Ctrl-C; what was gathered is in ``partial``.
            MismatchError: ``partial`` is of another model, text or setting.
        """
        with interrupts:
            checkpoint = self._resume()
            if checkpoint is None or not checkpoint.is_complete:
                self._say_if_large()
                with LlamaModel(self.model.gguf.path, self.options) as llama:
                    checkpoint = checkpoint or self._start(llama)
                    with self._keeping(checkpoint):
                        self._answer(llama, checkpoint)
                        self._observe(llama, checkpoint)
            checkpoint.check_complete()
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
        check_targets([output], self._file_size(), source=self.model.gguf, force=force)
        self.partial = partial_path(output)
        with interrupts:
            statistics = self.run()
            statistics.save(output)
            self.partial.unlink(missing_ok=True)
        return statistics

    def difference(self, known: Statistics) -> str:
        """How finished statistics differ from what this run would gather; empty if they do not."""
        try:
            check_same_run(
                known, self.model.identity(), self._settings(), self._hashes(), "this file"
            )
        except MismatchError as error:
            return error.message
        return ""

    def _file_size(self) -> int:
        """An upper bound of the bytes of the statistics file, without the header."""
        a_domain = len(self.model.moe_layers) * (self.model.experts * len(PER_EXPERT) + 1) * 8
        return a_domain * len(self.sources) + KEPT_BYTES

    def _resume(self) -> Checkpoint | None:
        """What an earlier run left."""
        if self.partial is None or not self._resumable or not self.partial.exists():
            return None
        checkpoint = Checkpoint.load(self.partial)
        checkpoint.check_same(
            self.model.identity(), self._settings(), self._hashes(), str(self.partial)
        )
        self._restore(checkpoint)
        self.say(f"continuing from {self.partial}: {checkpoint.tokens_done:,} tokens are done")
        return checkpoint

    @property
    def _resumable(self) -> bool:
        return all(isinstance(each, ResumableObserver) for each in self.observers)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Let other observers go on too."""
        for number, observer in enumerate(self.observers):
            assert isinstance(observer, ResumableObserver)
            state = checkpoint.observed.get(number)
            if state is None and checkpoint.done:
                raise MismatchError(
                    f"{self.partial}: was gathered without the importance matrix",
                    remedy="Leave --imatrix out, or remove the file to start again.",
                )
            observer.restore(state or {})

    def _observed(self) -> dict[int, dict[str, npt.NDArray[Any]]]:
        """What other observers gathered so far, where it is kept."""
        if self.partial is None:
            return {}
        return {
            number: observer.state()
            for number, observer in enumerate(self.observers)
            if isinstance(observer, ResumableObserver)
        }

    def _say_if_large(self) -> None:
        """Say what to expect of a model that does not fit into memory."""
        memory = physical_memory()
        if memory and self.model.gguf.size > memory and self.options.mmap:
            self.say(
                f"{self.model.gguf.path} is larger than this machine's memory: what does not fit "
                "on a GPU is read from the disk again for every ubatch; a larger --ubatch helps"
            )

    def _settings(self) -> dict[str, str | int]:
        return dict(
            sorted({**self.settings.recorded(), "model_bytes": self.model.gguf.size}.items())
        )

    def _hashes(self) -> dict[str, str]:
        return {source.domain: source.sha256 for source in self.sources}

    def _start(self, llama: LlamaModel) -> Checkpoint:
        chunks = self._chunks(llama)
        hashes = self._hashes()
        names = [source.domain for source in self.sources]
        rows, experts = len(self.model.moe_layers), self.model.experts
        domains = tuple(
            Domain(name, 0, hashes[name], ExpertSums.zeros(rows, experts)) for name in names
        )
        identity = self.model.identity()
        statistics = Statistics(identity, self.model.moe_layers, domains, self._settings())
        return Checkpoint(statistics, chunks, 0, capacity=self._capacity(chunks))

    def _chunks(self, llama: LlamaModel) -> list[Chunk]:
        settings = self.settings
        chunks = sequences(
            llama,
            chat.template_of(llama, self.model.gguf.get("tokenizer.chat_template")),
            self.sources,
            ctx=settings.ctx,
            max_tokens=settings.max_tokens,
            generate=settings.generate,
        )
        if not chunks:
            raise InputError("there is no text to calibrate on", remedy="Give some with --text.")
        number, count = settings.shard
        mine = chunks[number - 1 :: count]
        if not mine:
            raise InputError(
                f"shard {number} of {count} is empty: the text has {len(chunks)} sequences",
                remedy=f"Use at most {len(chunks)} shards, or a smaller --ctx.",
            )
        return mine

    def _capacity(self, chunks: Sequence[Chunk]) -> int:
        """Tokens a context holds: a few full batches, and at least the longest sequence."""
        answer = self.settings.generate
        longest = max(len(c.tokens) + (answer if c.stream is not None else 0) for c in chunks)
        return max(_BATCHES * self.options.ubatch, longest)

    @contextmanager
    def _keeping(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Save what was gathered when the run ends before its time, however it ends."""
        self._saved_at = time.monotonic()
        with library().on_abort(lambda: self._rescued(checkpoint)):
            try:
                yield
            except KeyboardInterrupt:
                self._interrupted(checkpoint)
            except GgpruneError as error:
                error.remedy = f"{error.remedy} {self._rescued(checkpoint)}".strip()
                raise

    def _answer(self, llama: LlamaModel, checkpoint: Checkpoint) -> None:
        """Let the model answer the prompts, as many at a time as fit; what is done is kept.

        An answer depends a little on what is computed beside it (rounding), so the prompts that
        go together are the same in a run that was interrupted.
        """
        left = checkpoint.unanswered
        limit, settings = self.settings.generate, self.settings
        sampling = Sampling(settings.temperature, settings.top_p, seed=settings.seed)
        if not left:
            return
        with self.progress(limit * len(left), "generating", "tok") as progress:
            for at in range(0, len(left), settings.parallel):
                batch = left[at : at + settings.parallel]
                prompts = [checkpoint.chunks[index] for index in batch]
                answers = generate(
                    llama,
                    [prompt.tokens for prompt in prompts],
                    max_tokens=limit,
                    parallel=settings.parallel,
                    sampling=sampling,
                    streams=[prompt.stream or 0 for prompt in prompts],
                    progress=progress,
                )
                checkpoint.answer(dict(zip(batch, answers, strict=True)))
                self._save_sometimes(checkpoint)

    def _observe(self, llama: LlamaModel, checkpoint: Checkpoint) -> None:
        observer = RoutingObserver(
            self.model.architecture,
            self.model.moe_layers,
            self.model.experts,
            cut=not self.observers,
            every=self._every(checkpoint),
        )
        groups, total = checkpoint.groups, checkpoint.tokens
        with (
            LlamaContext(
                llama,
                n_ctx=checkpoint.capacity,
                n_sequences=max(len(group) for group in groups),
                observers=(*self.observers, observer),
                keep_rows=not self.observers and self._keeps_rows(llama, observer),
            ) as context,
            self.progress(total, "calibrating", "tok", initial=checkpoint.tokens_done) as progress,
        ):
            for group in groups[checkpoint.done :]:
                replay(context, group)
                shares = observer.shares()
                checkpoint.finish(group, observer.take(), shares, self._observed())
                progress(sum(len(chunk.tokens) for chunk in group))
                self._save_sometimes(checkpoint)

    def _every(self, checkpoint: Checkpoint) -> int:
        """Of every how many-th token the routing is kept."""
        layers, used = len(self.model.moe_layers), self.model.experts_used
        return stride(checkpoint.tokens, layers, used, self.settings.shard[1])

    def _keeps_rows(self, llama: LlamaModel, observer: RoutingObserver) -> bool:
        """Try whether every token reaches the last layer of this model without its logits."""
        # Models that are not causal take all tokens for outputs, and would need room for them.
        if not can_keep_rows() or self.model.architecture.kind is not Kind.CAUSAL:
            return False
        with LlamaContext(llama, n_ctx=_TRIAL, observers=[observer], keep_rows=True) as context:
            context.decode([Tokens(0, 0, [0] * _TRIAL, "none")])
        return bool((observer.take().tokens == _TRIAL).all())

    def _save_sometimes(self, checkpoint: Checkpoint) -> None:
        if time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            self._save(checkpoint)

    def _save(self, checkpoint: Checkpoint) -> bool:
        """Save, or say why not: a full disk now need not be one at the end."""
        if self.partial is None or not self._resumable:
            return False
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self.partial)
        except OutputError as error:
            self.say(f"what was gathered so far cannot be kept: {error.message}")
            return False
        return True

    def _rescued(self, checkpoint: Checkpoint) -> str:
        """Save, and say where."""
        if not self._save(checkpoint):
            return ""
        return (
            f"What was gathered ({checkpoint.tokens_done:,} tokens) is kept in {self.partial}; "
            f"the same command continues from there."
        )

    def _interrupted(self, checkpoint: Checkpoint) -> NoReturn:
        remedy = self._rescued(checkpoint)
        raise Interrupted("interrupted" + ("" if remedy else ": nothing was kept"), remedy=remedy)


def partial_path(output: Path) -> Path:
    """Where a run keeps what it gathered until ``output`` is complete."""
    return output.with_name(output.name + ".partial")
