"""Probing a candidate beside its base: which model answers when, and under which mask."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ggprune.calibration.generate import Sampling
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import check_predicts
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.evaluation.probe import (
    GREEDY,
    SAMPLED,
    SHORT,
    Probe,
    answer_all,
    builtin_probes,
    own_sampling,
    side_by_side,
)
from ggprune.evaluation.probe_gate import Answer
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.model import Model
from ggprune.model.architectures import Kind
from ggprune.plan import Plan
from ggprune.types import Progress, no_progress

log = logging.getLogger(__name__)

#: Tokens that the speed is measured on for each answer, and the fewest answers worth comparing.
_TRIAL_TOKENS = 4
_FEWEST = 8


def compare_answers(
    model: Model,
    candidate: Candidate,
    options: RunOptions,
    *,
    base: Plan | None = None,
    probes: Sequence[Probe] | None = None,
    modes: Sequence[str] = (GREEDY, SAMPLED),
    max_tokens: int = 1024,
    parallel: int = 8,
    seed: int = 0,
    seconds: float | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let a model and a candidate answer the same prompts; see probe.side_by_side.

    One model is loaded at a time, and a plan needs no other.

    Args:
        model: the base.
        candidate: a plan, or a model file.
        options: how llama.cpp runs them.
        base: a plan to compare with; None for the whole model.
        probes: the prompts; None for all that ship with ggprune.
        modes: always the likeliest token, the model's own sampling settings, or both.
        max_tokens: of the longest answer.
        parallel: prompts answered at the same time.
        seed: for what is drawn at random.
        seconds: only so many prompts as the base answers in them by its speed on the first ones.
        progress: shows how far it is.

    Returns:
        See probe.side_by_side; empty if the seconds are too few for a handful of answers.

    Raises:
        UnsupportedModelError: an embedding model.
    """
    check_predicts(model)
    probes = builtin_probes() if probes is None else probes
    name = str(candidate.path)
    plans = [plan and plan.for_model(model.prunable(), name) for plan in (base, candidate.plan)]
    every = {GREEDY: Sampling(), SAMPLED: replace(own_sampling(model.gguf), seed=seed)}
    chosen = {name: every[name] for name in modes}
    settings = {"max_tokens": max_tokens, "parallel": parallel}
    answers: list[dict[str, list[Answer]]] = []
    most = 2 * len(chosen) * len(probes) * max_tokens
    with (
        contextlib.ExitStack() as stack,
        progress(most, "generating at most", "tok") as advance,
    ):
        loaded = None
        for plan, path in zip(plans, (model.gguf.path, candidate.path), strict=True):
            masks: list[MaskObserver] = []
            overrides: dict[str, int] = {}
            if plan is not None:
                dropped, zero = dropped_by(plan), plan.zero_bias
                masks = [MaskObserver(model.prunable(), dropped, zero_bias=zero)]
                overrides = model.prunable().overrides(plan.experts_used)
            wanted = model.gguf.path if plan else path, overrides
            if wanted != loaded:
                stack.close()
                llama = stack.enter_context(LlamaModel(wanted[0], options, overrides=overrides))
                loaded = wanted
            if seconds is not None and not answers:
                probes = probes[: int(seconds * _speed(llama, probes[:parallel]) / max_tokens)]
                if len(probes) < _FEWEST:
                    log.info("answers are not compared: this model writes too slowly here")
                    return {}
            asked = answer_all(llama, probes, chosen, observers=masks, advance=advance, **settings)
            answers.append(asked)
    names = model.gguf.path.name, candidate.path.name
    return side_by_side(probes, *answers, names=names, settings=settings, modes=chosen)


def _speed(llama: LlamaModel, probes: Sequence[Probe]) -> float:
    """Tokens that a model writes a second, the time for reading the prompts included."""
    modes, count = {GREEDY: Sampling()}, len(probes)
    answer_all(llama, probes[:1], modes, max_tokens=1, parallel=1)  # What only the first one costs.
    before = time.monotonic()
    answer_all(llama, probes, modes, max_tokens=_TRIAL_TOKENS, parallel=count)
    return _TRIAL_TOKENS * count / (time.monotonic() - before)


def short_probe(
    model: Model, candidate: Candidate, options: RunOptions, **more: Any
) -> dict[str, Any]:
    """Compare answers of a sentence or two, sampled; empty for a model that cannot chat.

    Args:
        model, candidate, options: see compare_answers.
        more: base, seconds and progress, as there.
    """
    if not can_chat(model):
        return {}
    probes = [probe for probe in builtin_probes() if probe.kind == SHORT]
    bounds: dict[str, Any] = {"max_tokens": 64, "parallel": 16, "modes": (SAMPLED,)}
    return compare_answers(model, candidate, options, probes=probes, **bounds, **more)


def can_chat(model: Model) -> bool:
    """Whether a model predicts tokens and has a chat template."""
    causal = model.architecture is None or model.architecture.kind is Kind.CAUSAL
    return causal and bool(model.gguf.get("tokenizer.chat_template"))
