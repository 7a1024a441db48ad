"""What pruning has cost, measured as far as it can be: a result is not lost to what fails here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggprune.calibration.settings import Settings
from ggprune.errors import GgpruneError, InputError
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.logcache import tokens_kept
from ggprune.evaluation.probing import short_probe
from ggprune.llama.options import RunOptions
from ggprune.model import MoeModel
from ggprune.model.architectures import Kind
from ggprune.text.documents import Source
from ggprune.types import Progress

log = logging.getLogger(__name__)

#: Tokens of context to measure with where there is too little text for more.
SHORT_CTX = 512
#: Seconds of writing for each side when their answers are compared.
PROBE_SECONDS = 20.0


def measure_text(
    model: MoeModel,
    result: Path,
    held_out: Sequence[Source],
    options: RunOptions,
    settings: Settings,
    *,
    ctx: int | None = None,
    progress: Progress,
) -> Mapping[str, Any] | None:
    """Compare a result with its source on text that calibration did not see.

    The text is limited so that the source's probabilities of every token in the vocabulary do not
    fill the disk.

    Args:
        model: the source.
        result: the pruned file.
        held_out: text to measure on.
        options: how llama.cpp runs both.
        settings: of calibration: the most tokens, and the context.
        ctx: another context; otherwise a short one is used where there is too little text.
        progress: shows how far it is.

    Returns:
        What ``evaluate --json`` prints; None if it cannot be measured.
    """
    usual = min(settings.ctx, model.trained_context or settings.ctx)
    contexts = [ctx] if ctx else sorted({usual, min(usual, SHORT_CTX)}, reverse=True)
    reason = "an embedding model gives no probabilities"
    for n_ctx in contexts if model.architecture.kind is not Kind.EMBEDDING else ():
        most = max(tokens_kept(model) // max(len(held_out), 1), n_ctx)
        most = min(most, settings.max_tokens or most)
        try:
            measured = Evaluator(model.gguf.path, options, held_out, n_ctx=n_ctx, max_tokens=most)
        except InputError as error:
            # Too little text to measure on is no reason to lose the result.
            reason = error.message
            continue
        with measured, progress(2 * measured.tokens, "measuring", "tok") as advance:
            return measured.measure_file(result, advance=advance).as_json()
    log.info("not measured: %s", reason)
    return None


def compare_answers(
    model: MoeModel, result: Path, options: RunOptions, progress: Progress
) -> Mapping[str, Any] | None:
    """Compare what the result and its source write; None where that cannot be done."""
    try:
        candidate = Candidate.load(result)
        seconds = PROBE_SECONDS
        return short_probe(model, candidate, options, seconds=seconds, progress=progress) or None
    except GgpruneError as error:
        # A chat template that fails, for instance, is no reason to lose what was measured.
        log.info("answers are not compared: %s", error.message)
        return None
