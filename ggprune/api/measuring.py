"""What pruning costs: candidates beside the original, by numbers and by what they write."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ggprune.api.inputs import Text, pairs_of, statistics_of
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan, default_method
from ggprune.choosing.methods import find
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.evaluation import sweep as sweeps
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.evaluation.probing import compare_answers
from ggprune.evaluation.sweep import Sweep, Tolerance, default_counts
from ggprune.llama.options import RunOptions
from ggprune.model import describe, open_model
from ggprune.plan import Plan
from ggprune.text.builtin import HELD_OUT
from ggprune.text.load import load_or_builtin
from ggprune.types import Progress, log_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)


class Measuring(TypedDict, total=False):
    """What is measured on, and how; see :func:`evaluator`."""

    text: Text
    ctx: int
    max_tokens: int | None
    cache: Path | None
    options: RunOptions | None


def evaluator(
    model: str | Path,
    *,
    text: Text = (),
    ctx: int = 2048,
    max_tokens: int | None = None,
    cache: Path | None = None,
    options: RunOptions | None = None,
) -> Evaluator:
    """Open a model to measure any number of candidates against it; a context manager.

    Args:
        model: the original: the GGUF file, or any shard.
        text: by domain, best not calibrated on; none for the built-in answers.
        ctx: context in tokens.
        max_tokens: tokens of each domain at most.
        cache: folder that keeps what the original says, so that a second candidate costs half;
            None keeps nothing.
        options: how llama.cpp runs the models.

    Raises:
        UnsupportedModelError: an embedding model, which predicts no tokens.
        GgpruneError: the model cannot be run, or the text is too short.
    """
    measured = Evaluator(
        Path(model),
        options or RunOptions(),
        load_or_builtin(pairs_of(text), HELD_OUT),
        n_ctx=ctx,
        max_tokens=max_tokens,
        cache=cache,
    )
    measured.description.context_within(ctx)  # For its note.
    return measured


def evaluate(
    model: str | Path,
    candidate: Candidate | Plan | str | Path,
    *,
    progress: Progress = log_progress,
    **on: Unpack[Measuring],
) -> Evaluation:
    """Measure what a plan or a pruned model costs against the original.

    A plan is measured by masking: no file is written.

    Args:
        model: the original: the GGUF file, or any shard.
        candidate: a plan, or the path of a plan or of a GGUF file.
        progress: shows how far it is.
        on: ``text``, ``ctx``, ``max_tokens``, ``cache``, ``options``: see :func:`evaluator`.

    Raises:
        GgpruneError: the candidate is not of this model, or the text is too short.
    """
    candidate = Candidate.of(candidate)
    with evaluator(model, **on) as measured:
        name = str(candidate.path)
        _warn_of_calibration_text(candidate.calibration, measured, name)
        passes = 1 if measured.base_is_known else 2
        with progress(passes * measured.tokens, "evaluating", "tok") as advance:
            if candidate.plan is not None:
                return measured.measure_plan(candidate.plan, name, advance=advance)
            return measured.measure_file(candidate.path, advance=advance)


def sweep(
    model: str | Path,
    statistics: Statistics | str | Path,
    *,
    keeps: Sequence[int] = (),
    methods: Sequence[str] = (),
    seed: int = 0,
    tolerance: Tolerance | None = None,
    progress: Progress = log_progress,
    **on: Unpack[Measuring],
) -> Sweep:
    """Measure how the damage grows the fewer experts stay, by masking: no file is written.

    Args:
        model: the original: the GGUF file, or any shard.
        statistics: what calibration gathered, or its file.
        keeps: numbers of experts; none for seven.
        methods: ways of choosing; none for the one that ``choose`` takes by default.
        seed: for methods that draw.
        tolerance: divergence or perplexity ratio that is accepted.
        progress: shows how far it is.
        on: see :func:`evaluate`.

    Raises:
        GgpruneError: the statistics are of another model, or a count or a method is impossible.
    """
    known, where = statistics_of(statistics)
    with open_model(model) as source:
        known.identity.check_same(source.identity(), where, str(model))
    counts = keeps or default_counts(known.identity.counts.possible())
    for keep in counts:
        known.identity.counts.check(keep)
    for method in methods:
        find(method)

    def plan(method: str, keep: int) -> Plan:
        asked = Request(budget=Budget(keep=keep), method=method, seed=seed)
        return choose_plan(known, asked, Resources(model=measured.description.prunable()))

    with evaluator(model, **on) as measured:
        hashes = {part for domain in known.domains for part in domain.sha256.split("+")}
        _warn_of_calibration_text(hashes, measured, where)
        usual = default_method(known, Request(budget=Budget(keep=1)))
        names = tuple(dict.fromkeys(methods)) or (usual,)
        passes = len(set(counts)) * len(names) + (0 if measured.base_is_known else 1)
        settings = {
            "ctx": measured.n_ctx,
            "tokens": measured.tokens,
            "texts": {source.domain: source.sha256 for source in measured.sources},
            "seed": seed,
        }
        with progress(passes * measured.tokens, "sweeping", "tok") as advance:
            return sweeps.sweep(
                measured,
                plan,
                counts,
                names,
                tolerance=tolerance,
                settings=settings,
                advance=advance,
            )


def probe(
    model: str | Path,
    candidate: Candidate | Plan | str | Path,
    *,
    options: RunOptions | None = None,
    progress: Progress = log_progress,
    **settings: Any,
) -> dict[str, Any]:
    """Let a model and a candidate answer the same prompts, and compare what they write.

    Args:
        model: the original: the GGUF file, or any shard.
        candidate: a plan, or the path of a plan or of a GGUF file.
        options: how llama.cpp runs the models.
        progress: shows how far it is.
        settings: ``modes``, ``max_tokens``, ``parallel``, ``seed``, see
            evaluation.probing.compare_answers.

    Returns:
        Numbers and texts, as ``ggprune probe --json`` prints them.
    """
    with describe(model) as source:
        return compare_answers(
            source,
            Candidate.of(candidate),
            options or RunOptions(),
            progress=progress,
            **settings,
        )


def _warn_of_calibration_text(hashes: Collection[str], measured: Evaluator, where: str) -> None:
    seen = [source.domain for source in measured.sources if source.sha256 in hashes]
    if seen:
        log.warning(
            "Warning: %s: %s was calibrated on this text, so the numbers flatter it. Measure on "
            "other text.",
            ", ".join(seen),
            where,
        )
