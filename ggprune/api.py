"""The stages as functions, for programs that use ggprune as a library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggprune import pipeline
from ggprune.calibration.run import Run, Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.budget import Budget
from ggprune.choosing.choose import Request, choose_plan
from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.llama.options import RunOptions
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.rewrite import plan_rewrite
from ggprune.text.builtin import CALIBRATION, HELD_OUT
from ggprune.text.load import load_or_builtin
from ggprune.types import no_progress


def run_calibration(
    model: Path,
    *,
    text: Sequence[tuple[str, str]] = (),
    settings: Settings | None = None,
    options: RunOptions | None = None,
) -> Statistics:
    """Run a model over text and gather what every expert does.

    Args:
        model: the GGUF file, or any shard.
        text: (domain, path) pairs; none for the built-in prompts.
        settings: context, tokens to generate, limits.
        options: how llama.cpp runs the model.

    Raises:
        GgpruneError: the model cannot be pruned or run, or a text cannot be used.
    """
    sources = load_or_builtin(text, CALIBRATION)
    description = open_model(model)
    try:
        how = settings or Settings(), options or RunOptions(), no_progress
        return Run(description, sources, *how).run()
    finally:
        description.gguf.close()


def make_plan(statistics: Statistics, keep: int, method: str = "", *, seed: int = 0) -> Plan:
    """Choose which experts stay, as ``ggprune plan`` does without further options.

    Args:
        statistics: what calibration observed.
        keep: experts a layer that stay.
        method: one that needs no model, see docs/methods.md; empty for the default.
        seed: for methods that draw.

    Raises:
        InputError: an unknown method or an impossible number.
    """
    request = Request(budget=Budget(keep=keep), method=method, seed=seed)
    return choose_plan(statistics, request)


def apply_plan(
    model: Path,
    plan: Plan,
    output: Path,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
) -> tuple[Path, ...]:
    """Write a model with the experts that a plan keeps.

    Args:
        model: the GGUF file, or any shard.
        plan: which experts stay.
        output: name of the result.
        mtp: ``prune`` or ``drop`` the MTP layers.
        split_max_size: bytes of one shard; None for one file.
        force: replace an existing result.
        verify: compare every byte with the source afterwards.

    Returns:
        The files written, first shard first.

    Raises:
        GgpruneError: the plan does not fit, or the result cannot be written.
    """
    description = open_model(model)
    try:
        rewrite = plan_rewrite(description, plan, output, mtp=mtp, split_max_size=split_max_size)
        pipeline.write(description, rewrite, no_progress, force=force, verify=verify)
    finally:
        description.gguf.close()
    return tuple(file.path for file in rewrite.files)


def evaluate_plan(
    model: Path,
    plan: Plan,
    *,
    text: Sequence[tuple[str, str]] = (),
    ctx: int = 512,
    options: RunOptions | None = None,
) -> Evaluation:
    """Measure what a plan costs, by masking: no file is written.

    Args:
        model: the GGUF file, or any shard.
        plan: which experts stay.
        text: (domain, path) pairs that were not calibrated on; none for the built-in answers.
        ctx: context in tokens.
        options: how llama.cpp runs the model.

    Raises:
        GgpruneError: the plan does not fit, or the text is too short.
    """
    sources = load_or_builtin(text, HELD_OUT)
    with Evaluator(model, options or RunOptions(), sources, n_ctx=ctx) as evaluator:
        return evaluator.plan(plan)
