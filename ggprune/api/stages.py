"""The stages before pruning: statistics, answers to calibrate on, plans."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ggprune.api.inputs import Text, datasets_of, pairs_of, request_of, statistics_of
from ggprune.calibration import merge as merging
from ggprune.calibration.resume import partial_path
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan, is_measured
from ggprune.choosing.count import notes_on
from ggprune.choosing.lists import Meaning, lists_of, plan_from_lists
from ggprune.choosing.request import Request, Resources
from ggprune.errors import InputError
from ggprune.evaluation.traces import gather
from ggprune.gguf_file import check_targets, reserved, write_text
from ggprune.interrupts import interrupts
from ggprune.llama.hardware import warn_of_idle_gpus
from ggprune.llama.options import RunOptions
from ggprune.model import describe, open_model
from ggprune.plan import Plan
from ggprune.quantization import importance
from ggprune.text.builtin import CALIBRATION
from ggprune.text.load import load_or_builtin, load_texts
from ggprune.text.tasks import Command, read_tasks
from ggprune.types import Progress, log_progress
from ggprune.util import read_json

log = logging.getLogger(__name__)


def calibrate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    text: Text = (),
    settings: Settings | None = None,
    options: RunOptions | None = None,
    imatrix: str | Path | None = None,
    force: bool = False,
    progress: Progress = log_progress,
) -> Statistics:
    """Run a model over text and gather what every expert does.

    Args:
        model: the GGUF file, or any shard.
        output: the statistics file; until it is complete, ``<output>.partial`` keeps what was
            gathered, and the same call continues from there. None keeps nothing.
        text: by domain; none for the built-in prompts.
        settings: context, tokens to generate, limits.
        options: how llama.cpp runs the model.
        imatrix: file for an importance matrix, gathered in the same pass.
        force: replace existing files.
        progress: shows how far it is.

    Raises:
        GgpruneError: the model cannot be pruned or run, a text cannot be used, or the result
            cannot be written.
    """
    settings, options, named = settings or Settings(), options or RunOptions(), pairs_of(text)
    observer = importance.ImatrixObserver() if imatrix else None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_model(model))
        for target in [Path(path) for path in (output, imatrix) if path]:
            check_targets([target], 0, force=force)
            stack.enter_context(reserved(target))
        warn_of_idle_gpus(options)
        run = Run(
            source,
            load_or_builtin(named, CALIBRATION),
            settings,
            options,
            progress,
            observers=[observer] if observer else [],
        )
        # Ctrl-C after the last token: the importance matrix of the finished run is written too.
        stack.enter_context(interrupts)
        statistics = run.run_into(Path(output), force=force) if output else run.run()
        if observer and imatrix:
            tokens = sum(domain.tokens for domain in statistics.domains)
            ctx = run.settings.ctx
            observer.save(Path(imatrix), datasets_of(named), tokens // ctx, ctx)
    return statistics


def traces(
    model: str | Path,
    tasks: str | Path,
    output: str | Path | None = None,
    *,
    check: Sequence[str] | None = None,
    check_seconds: float = 10.0,
    max_tokens: int = 1024,
    parallel: int = 8,
    seed: int = 0,
    options: RunOptions | None = None,
    force: bool = False,
    progress: Progress = log_progress,
) -> dict[str, Any]:
    """Let a model answer tasks, and keep the answers that are right, as text to calibrate on.

    Args:
        model: the GGUF file, or any shard.
        tasks: file of rows, see text.tasks.
        output: JSON Lines of conversations; until it is complete, ``<output>.partial`` keeps what
            was answered, and the same call continues from there. None writes nothing.
        check: words of a command that checks all answers, see text.tasks.Command.
        check_seconds: that it may take for one.
        max_tokens: of an answer; what does not end by then is not kept.
        parallel: tasks answered at the same time.
        seed: for the answers, drawn by the model's own sampling settings.
        options: how llama.cpp runs the model.
        force: replace an existing file.
        progress: shows how far it is.

    Returns:
        ``classes``, ``tokens`` and ``traces``, see evaluation.traces.gather.

    Raises:
        InputError: a row is no task, a check cannot be run, or no answer has passed.
        GgpruneError: the model cannot be run, or the result cannot be written.
    """
    command = Command(tuple(check), check_seconds) if check else None
    read, target = read_tasks(str(tasks), command), Path(output) if output else None
    partial = partial_path(target) if target else None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(describe(model))
        if target:
            check_targets([target], 0, source=source.gguf, force=force)
            stack.enter_context(reserved(target))
        warn_of_idle_gpus(options or RunOptions())
        found = gather(
            source,
            read,
            options or RunOptions(),
            command=command,
            max_tokens=max_tokens,
            parallel=parallel,
            seed=seed,
            partial=partial,
            progress=progress,
        )
        if target and partial:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found["traces"])
            with interrupts:
                write_text(target, "".join(lines))
                partial.unlink(missing_ok=True)
    return found


def merge(
    parts: Iterable[Statistics | str | Path],
    output: str | Path | None = None,
    *,
    force: bool = False,
) -> Statistics:
    """Put statistics gathered apart together, in any order.

    Args:
        parts: shards of one run, or runs of one model over different texts; or their files.
        output: the merged statistics' file; None writes nothing.
        force: replace an existing file.

    Raises:
        InputError: there are no parts, or two hold the same text.
        MismatchError: they are of different models, or of one run with different settings.
    """
    if output:
        check_targets([Path(output)], 0, force=force)
    opened = map(statistics_of, parts)
    merged = merging.merge((name, statistics) for statistics, name in opened)
    if output:
        merged.save(Path(output))
    return merged


def choose(
    statistics: Statistics | str | Path,
    output: str | Path | None = None,
    *,
    request: Request | None = None,
    model: str | Path | None = None,
    text: Text = (),
    search_text: Text = (),
    options: RunOptions | None = None,
    by_layer: bool = False,
    force: bool = False,
    progress: Progress = log_progress,
    **asked: Any,
) -> Plan:
    """Choose which experts stay.

    Args:
        statistics: what calibration gathered, or its file.
        output: the plan's file; what a search measures is kept beside it until it is complete, so
            that the same call continues. None writes nothing.
        request: which experts stay, and how many.
        model: the GGUF file, for budgets and methods that need it.
        text: what ``statistics`` were gathered on, for methods that run the model over it again;
            none for the built-in prompts.
        search_text: what methods that measure plans measure them on; none for the built-in text.
        options: how llama.cpp runs the model.
        by_layer: let layers keep different numbers, for a masked copy; see choose_plan.
        force: replace an existing file.
        progress: shows how far it is.
        asked: fields of Budget and Request, in place of ``request``: ``keep=109``,
            ``method="reap"``.

    Raises:
        InputError: an impossible budget, an unknown method or domain, or a rule that needs the
            model and has none.
        MismatchError: statistics of another model.
    """
    wanted, target = request_of(request, asked, choose), Path(output) if output else None
    known, where = statistics_of(statistics)
    journal = target.with_name(target.name + ".search") if target else None
    with contextlib.ExitStack() as stack:
        if target:
            check_targets([target], 0, force=force)
            stack.enter_context(reserved(target))
        source = None
        if model is not None:
            source = stack.enter_context(open_model(model))
            known.identity.check_same(source.identity(), where, str(model))
        resources = Resources(
            model=source,
            options=options or RunOptions(),
            sources=load_texts(pairs_of(text)),
            search_sources=load_texts(pairs_of(search_text, "search_text")),
            journal=journal if is_measured(wanted) else None,
            progress=progress,
        )
        plan = choose_plan(known, wanted, resources, by_layer=by_layer)
        for note in [] if by_layer else notes_on(plan, known.identity.counts):
            log.info(note)
        if target and journal:
            plan.save(target)
            journal.unlink(missing_ok=True)
    return plan


def convert_lists(
    source: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    meaning: Meaning | None = None,
    keep: int | None = None,
    force: bool = False,
) -> Plan:
    """Make a plan of lists of experts by layer, as other tools write them, or lists of a plan.

    Args:
        source: JSON of lists; without ``model``, a plan.
        output: the plan's file, or that of the lists.
        model: the GGUF file that the lists are for.
        meaning: whether lists hold the experts ``kept``, ``dropped``, or all ``ranked``, best
            first; None where their keys tell, and ``dropped`` for lists of a plan.
        keep: experts a layer, for ranked lists.
        force: replace an existing file.

    Raises:
        InputError: it is neither lists nor a plan, or does not fit the model.
    """
    source, output = Path(source), Path(output)
    check_targets([output], 0, force=force)
    if model is None:
        plan = Plan.load(source)
        if keep is not None:
            raise InputError(
                f"keep={keep}: is for ranked lists, and {source} is a plan, which keeps "
                f"{plan.keep} experts",
                remedy="Leave it out, or make another plan.",
            )
        text = json.dumps(lists_of(plan, meaning or "dropped"), indent=1)
        write_text(output, text + "\n")
        return plan
    with open_model(model) as opened:
        data = read_json(source, "lists of experts by layer")
        plan = plan_from_lists(data, opened, meaning=meaning, keep=keep, name=str(source))
    plan.save(output)
    return plan
