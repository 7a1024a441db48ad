"""Probing a candidate beside its base: which model answers when, and under which mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ggprune.calibration.generate import Sampling
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import check_predicts
from ggprune.evaluation.masking import MaskObserver, dropped_by
from ggprune.evaluation.probe import (
    GREEDY,
    SAMPLED,
    Answer,
    answer_all,
    builtin_probes,
    own_sampling,
    side_by_side,
)
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.model import Model
from ggprune.plan import Plan
from ggprune.types import Progress, no_progress


def compare_answers(
    model: Model,
    candidate: Candidate,
    options: RunOptions,
    *,
    modes: Sequence[str] = (GREEDY, SAMPLED),
    max_tokens: int = 1024,
    parallel: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let a model and a candidate answer the built-in probes; see probe.side_by_side.

    One model is loaded at a time, and a plan needs no other.

    Args:
        model: the base.
        candidate: a plan, or a model file.
        options: how llama.cpp runs them.
        modes: always the likeliest token, the model's own sampling settings, or both.
        max_tokens: of the longest answer.
        parallel: prompts answered at the same time.
        seed: for what is drawn at random.
        progress: shows how far it is.

    Raises:
        UnsupportedModelError: an embedding model.
    """
    check_predicts(model)
    probes = builtin_probes()
    plan = (
        candidate.plan.for_model(model.prunable(), str(candidate.path)) if candidate.plan else None
    )
    every = {GREEDY: Sampling(), SAMPLED: replace(own_sampling(model.gguf), seed=seed)}
    chosen = {name: every[name] for name in modes}
    settings: dict[str, Any] = {"max_tokens": max_tokens, "parallel": parallel}
    most = 2 * len(chosen) * len(probes) * max_tokens
    with progress(most, "generating at most", "tok") as advance:
        ask = partial(answer_all, probes=probes, modes=chosen, advance=advance, **settings)
        both = _both(model, candidate, plan, options, ask)
    names = model.gguf.path.name, candidate.path.name
    return side_by_side(probes, *both, names=names, settings=settings, modes=chosen)


def _both(
    model: Model,
    candidate: Candidate,
    plan: Plan | None,
    options: RunOptions,
    ask: Callable[..., dict[str, list[Answer]]],
) -> tuple[Mapping[str, list[Answer]], Mapping[str, list[Answer]]]:
    observers = (
        [MaskObserver(model.prunable(), dropped_by(plan), zero_bias=plan.zero_bias)] if plan else []
    )
    overrides = model.prunable().overrides(plan.experts_used) if plan else {}
    with LlamaModel(model.gguf.path, options) as llama:
        base = ask(llama)
        if plan is not None and not overrides:
            return base, ask(llama, observers=observers)
    path = candidate.path if plan is None else model.gguf.path
    with LlamaModel(path, options, overrides=overrides) as llama:
        return base, ask(llama, observers=observers)
