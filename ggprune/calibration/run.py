"""Calibration: run the model over text once and gather what every expert does.

Conversations that await an answer are first continued by the model itself, then prompt and answer
are replayed together with the observer on: experts matter where the model writes, not only where
it reads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.generate import Sampling, generate
from ggprune.calibration.observers import LayerObserver, RoutingObserver
from ggprune.calibration.resume import Keeper, check_same_run, partial_path
from ggprune.calibration.routing import KEPT_BYTES, stride
from ggprune.calibration.sequences import TokenSequence, cut
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import PER_EXPERT, Domain, ExpertSums, Statistics
from ggprune.calibration.weights import Weights, of_answer
from ggprune.errors import InputError, MismatchError
from ggprune.gguf_file import check_targets
from ggprune.interrupts import interrupts
from ggprune.llama.callback import Observer, ResumableObserver
from ggprune.llama.devices import physical_memory
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens, can_keep_rows
from ggprune.model import MoeModel
from ggprune.model.architectures import Kind
from ggprune.text import chat
from ggprune.text.documents import Source
from ggprune.types import Floats, Progress, no_progress

log = logging.getLogger(__name__)

#: Tokens to find out how a model treats those whose logits are not wanted.
_TRIAL = 4

#: Full batches in a context: the last one of a context is seldom full.
_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Run:
    """One calibration run, which can be interrupted and continued.

    Args:
        settings: see Settings; a context beyond the model's becomes the model's.
        observers: others that watch the same pass (an importance matrix); the graph is then
            computed to its end. A run can only be continued if all of them can resume.
        checkpoint_seconds: time between two saves of what was gathered so far.
    """

    model: MoeModel
    sources: Sequence[Source]
    settings: Settings = field(default_factory=Settings)
    options: RunOptions = field(default_factory=RunOptions)
    progress: Progress = no_progress
    observers: Sequence[Observer] = ()
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        settings = replace(self.settings, ctx=self.model.context_within(self.settings.ctx))
        object.__setattr__(self, "settings", settings)

    def run(self, partial: Path | None = None) -> Statistics:
        """Gather the statistics.

        Args:
            partial: file for what was gathered so far; a run continues from it. None keeps
                nothing.

        Raises:
            InputError: there is no text, or a template fails.
            Interrupted: Ctrl-C; what was gathered is in ``partial``.
            MismatchError: ``partial`` is of another model, text or setting.
            LlamaError: llama.cpp failed, or not every token was observed.
        """
        resumable = all(isinstance(each, ResumableObserver) for each in self.observers)
        keeper = Keeper(partial if resumable else None, self.checkpoint_seconds)
        # Ctrl-C is noticed between two batches: a group of sequences counts wholly or not at all.
        with interrupts:
            checkpoint = self._resume(keeper.path)
            if checkpoint is None or not checkpoint.is_complete:
                self._note_if_large()
                with LlamaModel(self.model.gguf.path, self.options) as llama:
                    checkpoint = checkpoint or self._start(llama)
                    with keeper.keeping(checkpoint):
                        self._answer(llama, checkpoint, keeper)
                        self._observe(llama, checkpoint, keeper)
            checkpoint.check_complete()
            return checkpoint.statistics

    def run_into(self, output: Path, *, force: bool = False) -> Statistics:
        """Gather the statistics and write them to a file, which appears when it is complete.

        What is gathered until then lies in ``<output>.partial``.

        Raises:
            OutputError: it exists or cannot be written; found out before the run.
            GgpruneError: see :meth:`run`.
        """
        check_targets([output], self._file_size(), source=self.model.gguf, force=force)
        with interrupts:
            statistics = self.run(partial_path(output))
            statistics.save(output)
            partial_path(output).unlink(missing_ok=True)
        return statistics

    def difference(self, known: Statistics) -> str | None:
        """Say how finished statistics differ from what this run would gather; None: not at all."""
        try:
            self._check_same(known, "this file")
        except MismatchError as error:
            return error.message
        return None

    def keeps_rows(self, llama: LlamaModel, observer: RoutingObserver) -> bool:
        """Try whether every token reaches the last layer of this model without its logits."""
        # Models that are not causal take all tokens for outputs, and would need room for them.
        if not can_keep_rows() or self.model.architecture.kind is not Kind.CAUSAL:
            return False
        with LlamaContext(llama, n_ctx=_TRIAL, observers=[observer], keep_rows=True) as context:
            context.decode([Tokens(0, 0, [0] * _TRIAL, "none")])
        return bool((observer.take().tokens == _TRIAL).all())

    def _resume(self, partial: Path | None) -> Checkpoint | None:
        """Load what an earlier run left, for the other observers too."""
        if partial is None or not partial.exists():
            return None
        checkpoint = Checkpoint.load(partial)
        self._check_same(checkpoint.statistics, str(partial))
        for number, observer in enumerate(self.observers):
            assert isinstance(observer, ResumableObserver)
            state = checkpoint.observed.get(number)
            if state is None and checkpoint.done:
                raise MismatchError(
                    f"{partial}: was gathered without the importance matrix",
                    remedy="Leave the importance matrix out, or remove the file to start again.",
                )
            observer.restore(state or {})
        log.info("continuing from %s: %s tokens are done", partial, f"{checkpoint.tokens_done:,}")
        return checkpoint

    def _start(self, llama: LlamaModel) -> Checkpoint:
        sequences = self._sequences(llama)
        rows, experts = len(self.model.moe_layers), self.model.experts
        zeros = partial(ExpertSums.zeros, rows, experts, weighted=self._weights is not None)
        domains = tuple(Domain(source.domain, 0, source.sha256, zeros()) for source in self.sources)
        identity, layers = self.model.identity(), self.model.moe_layers
        statistics = Statistics(identity, layers, domains, self._recorded())
        # A context holds a few full batches, and at least the longest sequence.
        longest = max(
            len(each.tokens) + (self.settings.generate if each.stream is not None else 0)
            for each in sequences
        )
        return Checkpoint(statistics, sequences, max(_BATCHES * self.options.ubatch, longest))

    def _sequences(self, llama: LlamaModel) -> list[TokenSequence]:
        settings = self.settings
        template = chat.template_of(llama, self.model.gguf.get("tokenizer.chat_template"))
        found = cut(
            llama,
            template,
            self.sources,
            ctx=settings.ctx,
            max_tokens=settings.max_tokens,
            generate=0 if self.model.architecture.kind is Kind.EMBEDDING else settings.generate,
            weights=self._weights,
        )
        if not found:
            raise InputError("there is no text to calibrate on", remedy="Give some as text.")
        for index, source in enumerate(self.sources):
            mine = [each for each in found if each.domain == index]
            if mine and not any(each.counted or each.stream is not None for each in mine):
                raise InputError(
                    f"text {source.domain!r}: no token of it has a weight above 0",
                    remedy="Leave it out, or weight=prompt=0 and the like.",
                )
        number, count = settings.shard
        mine = found[number - 1 :: count]
        if not mine:
            raise InputError(
                f"shard={number}/{count}: is empty, the text has {len(found)} sequences",
                remedy=f"Use at most {len(found)} shards, or a smaller ctx.",
            )
        return mine

    def _answer(self, llama: LlamaModel, checkpoint: Checkpoint, keeper: Keeper) -> None:
        """Let the model answer the prompts, as many at a time as fit; what is done is kept.

        An answer depends a little on what is computed beside it (rounding), so the prompts that
        go together are the same in a run that was interrupted.
        """
        left, settings = checkpoint.unanswered, self.settings
        sampling = Sampling(settings.temperature, settings.top_p, seed=settings.seed)
        if not left:
            return
        with self.progress(settings.generate * len(left), "generating", "tok") as advance:
            for at in range(0, len(left), settings.parallel):
                batch = left[at : at + settings.parallel]
                prompts = [checkpoint.sequences[index] for index in batch]
                answers = generate(
                    llama,
                    [prompt.tokens for prompt in prompts],
                    max_tokens=settings.generate,
                    parallel=settings.parallel,
                    sampling=sampling,
                    streams=[prompt.stream or 0 for prompt in prompts],
                    advance=advance,
                )
                found = dict(zip(batch, answers, strict=True))
                checkpoint.answer(found, self._weighed(llama, found))
                keeper.save_if_due(checkpoint)

    def _observe(self, llama: LlamaModel, checkpoint: Checkpoint, keeper: Keeper) -> None:
        model, groups = self.model, checkpoint.groups
        layers, used = len(model.moe_layers), model.experts_used
        counted = sum(sequence.counted for sequence in checkpoint.sequences)
        observer = RoutingObserver(
            model.architecture,
            model.moe_layers,
            model.experts,
            cut=not self.observers,
            every=stride(counted, layers, used, self.settings.shard[1]),
            weighted=self._weights is not None,
        )
        watching = [each for each in (*self.observers, observer) if isinstance(each, LayerObserver)]
        done = checkpoint.tokens_done
        with (
            LlamaContext(
                llama,
                n_ctx=checkpoint.capacity,
                n_sequences=max(len(group) for group in groups),
                observers=(*self.observers, observer),
                keep_rows=not self.observers and self.keeps_rows(llama, observer),
            ) as context,
            self.progress(checkpoint.tokens, "calibrating", "tok", initial=done) as advance,
        ):
            for group in groups[checkpoint.done :]:
                weights = [each.weights for each in group if each.weights is not None]
                for each in watching if weights else ():
                    each.weigh(np.concatenate(weights))
                replay(context, group, one_by_one=bool(weights))
                shares = observer.shares()
                checkpoint.finish(group, observer.take(), shares, self._observed(keeper))
                advance(sum(len(sequence.tokens) for sequence in group))
                keeper.save_if_due(checkpoint)

    def _observed(self, keeper: Keeper) -> dict[int, dict[str, npt.NDArray[Any]]]:
        """Copy what other observers gathered so far, where it is kept."""
        return {
            number: observer.state()
            for number, observer in enumerate(self.observers)
            if keeper.path is not None and isinstance(observer, ResumableObserver)
        }

    @property
    def _weights(self) -> Weights:
        return dict(self.settings.weight) or None

    def _weighed(
        self, llama: LlamaModel, answers: Mapping[int, Sequence[int]]
    ) -> dict[int, Floats]:
        weights = self._weights
        if weights is None:
            return {}
        return {
            index: of_answer([llama.piece(token) for token in answer], weights)
            for index, answer in answers.items()
        }

    def _check_same(self, known: Statistics, name: str) -> None:
        check_same_run(known, self.model.identity(), self._recorded(), self._hashes(), name)

    def _recorded(self) -> dict[str, str | int]:
        recorded = {**self.settings.recorded(), "model_bytes": self.model.gguf.size}
        return dict(sorted(recorded.items()))

    def _hashes(self) -> dict[str, str]:
        return {source.domain: source.sha256 for source in self.sources}

    def _file_size(self) -> int:
        """Give an upper bound of the bytes of the statistics file, without the header."""
        a_domain = len(self.model.moe_layers) * (self.model.experts * len(PER_EXPERT) + 1) * 8
        return a_domain * len(self.sources) + KEPT_BYTES

    def _note_if_large(self) -> None:
        """Say what to expect of a model that does not fit into memory."""
        memory = physical_memory()
        if memory and self.model.gguf.size > memory and self.options.mmap:
            log.info(
                "%s is larger than this machine's memory: what does not fit on a GPU is read from "
                "the disk again for every ubatch; a larger ubatch helps",
                self.model.gguf.path,
            )


def replay(
    context: LlamaContext, group: Sequence[TokenSequence], *, one_by_one: bool = False
) -> None:
    """Run sequences through the model in parallel, in full batches.

    ``one_by_one``: a batch holds tokens of one sequence, which llama.cpp then computes in their
    order; of several, memories with a state for each sequence take equal parts in turn.
    """
    context.clear()
    # Asking for a token's logits is what takes it through the last layer, elsewhere.
    logits = "none" if context.keeps_rows else "all"
    parts: list[Tokens] = []
    room = context.n_batch
    for number, sequence in enumerate(group):
        at = 0
        while at < len(sequence.tokens):
            ids = sequence.tokens[at : at + room]
            parts.append(Tokens(number, at, ids, logits))
            at, room = at + len(ids), room - len(ids)
            if room == 0 or (one_by_one and at == len(sequence.tokens)):
                context.decode(parts)
                parts, room = [], context.n_batch
    if parts:
        context.decode(parts)
