"""``prune``: from a model to a smaller one."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ggprune.api.inputs import Text, pairs_of, plan_of, request_of
from ggprune.api.writing import Pruned, Writing, described, report_path
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.check import check_request
from ggprune.choosing.choose import choose_plan, is_measured, may_be_measured
from ggprune.choosing.count import known_count, notes_on
from ggprune.choosing.request import DEFAULT, Request, Resources
from ggprune.errors import InputError, Interrupted, MismatchError, OutputError
from ggprune.evaluation import cost
from ggprune.gguf_file import OutputFile, reserved
from ggprune.interrupts import interrupts
from ggprune.llama.hardware import warn_of_idle_gpus
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, open_model
from ggprune.plan import Plan
from ggprune.publish import ollama
from ggprune.report.data import ReportInput
from ggprune.report.page import write_report
from ggprune.text.held_out import Texts, choose_texts
from ggprune.types import Progress, log_progress

log = logging.getLogger(__name__)


def prune(
    model: str | Path,
    output: str | Path | None = None,
    *,
    request: Request | None = None,
    plan: Plan | str | Path | None = None,
    statistics: str | Path | None = None,
    recalibrate: bool = False,
    text: Text = (),
    eval_text: Text = (),
    search_text: Text = (),
    settings: Settings | None = None,
    eval_ctx: int | None = None,
    options: RunOptions | None = None,
    mtp: str = "prune",
    split_max_size: int | None = None,
    modelfile: bool = False,
    verify: bool = True,
    probe: bool = True,
    force: bool = False,
    command: str = "",
    progress: Progress = log_progress,
    **asked: Any,
) -> Pruned:
    """Do the whole job: calibrate, choose, rewrite, verify, measure, report.

    Interrupted while it measures, the same call verifies and measures what was written.

    ``ggprune.prune("model.gguf", keep=109)`` writes ``model-109e.gguf`` with its drop metadata and
    report, and keeps the statistics, so that another ``keep`` needs no second calibration.

    Args:
        model: the GGUF file, or any shard.
        output: the result; None for ``<stem>-<keep>e.gguf`` in the current folder.
        request: which experts stay, and how many.
        plan: this plan (or its file) instead: nothing is calibrated or chosen.
        statistics: a statistics file to use instead of calibrating.
        recalibrate: gather statistics again, though an earlier run has left some beside the result.
        text: what to calibrate on; none for the built-in prompts.
        eval_text: what to measure on; none for a part held out of ``text``.
        search_text: what plans are measured on; none for a part of ``text`` that is set aside, or
            the built-in text.
        settings: how to calibrate.
        eval_ctx: tokens of context to measure with; None for that of calibration.
        options: how llama.cpp runs the model.
        mtp, split_max_size, force: see :func:`apply`.
        modelfile: write an Ollama Modelfile too.
        verify: compare every byte with the source, load the result and measure it.
        probe: compare short answers too, about 20 seconds for each side, if the model can chat.
        command: the command line, for the report.
        progress: shows how far it is.
        asked: fields of Budget and Request, in place of ``request``: ``keep=109``,
            ``method="reap"``.

    Raises:
        Interrupted: Ctrl-C after the result was written: it is complete, but not measured.
        GgpruneError: of the stage that failed; what can be known is checked before long work.
    """
    wanted, name = _wanted(plan, request, asked, prune)
    writing = Writing(output, mtp, split_max_size, force, verify)
    settings, options = settings or Settings(), options or RunOptions()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_model(model))
        gathered = Path(statistics or writing.statistics(source))
        is_chosen_soon = isinstance(wanted, Plan) or (gathered.exists() and not recalibrate)
        first, *_ = _check(source, wanted, writing, continues=is_chosen_soon)
        stack.enter_context(reserved(first.path))
        texts = choose_texts(
            pairs_of(text),
            pairs_of(eval_text, "eval_text"),
            pairs_of(search_text, "search_text"),
            searches=_measures(wanted, source),
        )
        known = None
        if isinstance(wanted, Request):
            warn_of_idle_gpus(options)
            seeded = replace(settings, seed=wanted.seed)
            run = Run(source, texts.calibration, seeded, options, progress)
            if statistics is None:
                known = _statistics_beside(run, gathered, wanted, anew=recalibrate)
            else:
                known = _statistics_given(run, gathered)
            wanted = _plan(wanted, known, run, texts)
        pruned = None
        try:
            with contextlib.ExitStack() as held:
                ready = partial(_check_runs, options=options, held=held, verify=verify)
                written = writing.write(source, wanted, name, progress, ready)
                pruned = described(source, written, known)
            evaluation = answers = None
            if verify:
                evaluation = cost.measure_text(
                    source,
                    pruned.path,
                    texts.held_out,
                    options,
                    settings,
                    ctx=eval_ctx,
                    progress=progress,
                )
            if verify and probe:
                answers = cost.compare_answers(source, pruned.path, options, progress)
        except KeyboardInterrupt:
            if pruned is None:
                raise
            raise _unmeasured(source.gguf.path, pruned.path) from None
        with interrupts:
            where = None if known is None else gathered
            pruned = described(source, written, known, where, evaluation, answers)
            pruned = _reported(pruned, command)
    if not modelfile:
        return pruned
    target = pruned.path.with_name("Modelfile")
    return replace(pruned, modelfile_path=ollama.write_modelfile(pruned.path, target, force=True))


def outputs(
    model: str | Path,
    output: str | Path | None = None,
    *,
    request: Request | None = None,
    plan: Plan | str | Path | None = None,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    **asked: Any,
) -> tuple[OutputFile, ...]:
    """Return the model files that :func:`prune` would write, and write nothing.

    The size is exact; where the number of experts depends on the statistics, it is that with all
    of them.

    Args:
        model, output, request, plan, mtp, split_max_size, force, asked: see :func:`prune`.

    Raises:
        GgpruneError: it cannot be pruned like this.
    """
    wanted, _ = _wanted(plan, request, asked, outputs)
    with open_model(model) as source:
        return _check(source, wanted, Writing(output, mtp, split_max_size, force))


def _wanted(
    plan: Plan | str | Path | None,
    request: Request | None,
    asked: Mapping[str, Any],
    function: Callable[..., Any],
) -> tuple[Plan | Request, str]:
    """Return the plan, or what one is to be chosen by, and its name in messages."""
    if plan is None:
        return request_of(request, asked, function), "the plan"
    if request is not None or asked:
        names = ["request"] * (request is not None) + [*asked]
        raise TypeError(f"plan and {', '.join(names)}: give one of them")
    return plan_of(plan)


def _check(
    model: MoeModel, wanted: Plan | Request, writing: Writing, *, continues: bool = False
) -> tuple[OutputFile, ...]:
    """Find out before any long work whether the result can be written; see Writing.check."""
    if isinstance(wanted, Plan):
        keep, used, method = wanted.keep, wanted.experts_used, wanted.method
        return writing.check(model, keep, used, method, continues=continues)
    known = known_count(wanted.budget, model.counts, model)
    keep, used, method = known or model.experts, wanted.fixed_used, wanted.method or DEFAULT
    if known == model.experts and writing.changes_nothing and not used:
        asked = wanted.budget.keep is not None
        raise InputError(
            f"keep={keep}: the model has {keep} experts, so there is nothing to do"
            if asked
            else f"all {keep} experts would stay, so there is nothing to do",
            remedy="Keep fewer." if asked else "Ask for less, or use the model as it is.",
        )
    return writing.check(model, keep, used, method, continues=continues)


def _measures(wanted: Plan | Request, source: MoeModel) -> bool:
    """Whether plans are compared by what they cost."""
    return isinstance(wanted, Request) and (is_measured(wanted) or may_be_measured(wanted, source))


def _statistics_given(run: Run, path: Path) -> Statistics:
    known = Statistics.load(path)
    known.identity.check_same(run.model.identity(), str(path), str(run.model.gguf.path))
    return known


def _statistics_beside(run: Run, path: Path, wanted: Request, *, anew: bool) -> Statistics:
    """Take the statistics that an earlier run has left beside the result, or calibrate."""
    model = run.model
    if anew or not path.exists():
        domains = [source.domain for source in run.sources]
        check_request(wanted, model.architecture.name, model.moe_layers, model.counts, domains)
        return run.run_into(path, force=anew)
    try:
        known = _statistics_given(run, path)
    except MismatchError as error:
        raise OutputError(
            f"{path}: exists, and is not of this model: {error.message}",
            remedy="Replace it with recalibrate=True, or choose an output in another folder.",
        ) from error
    if run.difference(known) is None:
        log.info("using %s: same model, text and settings", path)
        return known
    texts = ", ".join(f"{each.name} ({each.tokens:,} tokens)" for each in known.domains)
    said = "using %s, gathered on %s: not what this run says; recalibrate=True gathers anew"
    log.info(said, path, texts)
    return known


def _check_runs(
    path: Path, options: RunOptions, held: contextlib.ExitStack, *, verify: bool
) -> None:
    """Load the result in llama.cpp and compute a few tokens; then hold signals back."""
    if verify:
        with LlamaModel(path, options) as llama, LlamaContext(llama, n_ctx=64) as context:
            context.decode([Tokens(0, 0, list(range(min(8, llama.n_vocab))), "last")])
    # The result is about to get its name, and must not stand there without its metadata.
    held.enter_context(interrupts)


def _plan(wanted: Request, statistics: Statistics, run: Run, texts: Texts) -> Plan:
    resources = Resources(
        model=run.model,
        options=run.options,
        sources=texts.calibration,
        search_sources=texts.search,
        progress=run.progress,
    )
    plan = choose_plan(statistics, wanted, resources)
    for note in notes_on(plan, run.model.counts):
        log.info(note)
    return plan


def _unmeasured(source: Path, result: Path) -> Interrupted:
    command = shlex.join(["ggprune", "evaluate", str(source), str(result)])
    return Interrupted(
        f"interrupted: {result} is complete, but not measured",
        remedy=f"The same command measures it, or `{command}`.",
    )


def _reported(pruned: Pruned, command: str) -> Pruned:
    """Write the report beside the result."""
    path = report_path(pruned.path)
    given = ReportInput(
        pruned.statistics,
        pruned.plan,
        pruned.metadata,
        pruned.evaluation,
        probe=pruned.probe,
        command=command,
    )
    return replace(pruned, report=write_report(path, given), report_path=path)
