"""``prune``: from a model to a smaller one. ``apply``: from a plan to a file."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ggprune.api.inputs import Text, pairs_of, plan_of, request_of
from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.check import check_request
from ggprune.choosing.choose import choose_plan, is_measured, may_be_measured
from ggprune.choosing.count import known_count, notes_on
from ggprune.choosing.request import DEFAULT, Request, Resources
from ggprune.errors import GgpruneError, InputError, Interrupted, MismatchError, OutputError
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.logcache import LOG_BYTES
from ggprune.evaluation.probe import without_texts
from ggprune.evaluation.probing import short_probe
from ggprune.fields import check_fields
from ggprune.gguf_file import (
    GgufModel,
    OutputFile,
    check_targets,
    instead_of_a_model,
    reserved,
    write_files,
)
from ggprune.interrupts import interrupts
from ggprune.llama.hardware import warn_of_idle_gpus
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, open_model
from ggprune.model.architectures import VOCABULARY_KEY, Kind
from ggprune.plan import Plan
from ggprune.publish import ollama
from ggprune.report.data import ReportInput
from ggprune.report.page import write_report
from ggprune.rewrite import (
    Rewrite,
    check_result,
    drop_metadata,
    plan_adapter,
    plan_rewrite,
    result_files,
    verify_bytes,
    write_result,
)
from ggprune.text.builtin import SEARCH, builtin_texts
from ggprune.text.documents import Source
from ggprune.text.held_out import choose_text
from ggprune.text.load import load_texts
from ggprune.types import Progress, log_progress, option
from ggprune.util import read_json

log = logging.getLogger(__name__)

#: Tokens of context to measure with where a text is shorter than the calibration's context.
SHORT_CTX = 512
#: Seconds of writing for each side when their answers are compared.
PROBE_SECONDS = 20.0
#: Part of the user's text that plans are compared on, where a method does that.
SEARCH_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What :func:`prune` and :func:`apply` made.

    Attributes:
        files: the pruned model, first shard first.
        plan: complete: every layer with experts is in it.
        compared: bytes found equal to the source's; 0 if not verified.
        statistics: what the plan was chosen by; None if a plan was given, as their path.
        evaluation: of source and result on held-out text, as ``evaluate --json`` prints it; None
            if not measured.
        probe: their answers compared, as ``probe --json`` prints it; None if they were not.
        metadata: contents of the drop metadata.
        report: the numbers of the report; None if there is none, as its path.
    """

    files: tuple[Path, ...]
    plan: Plan
    compared: int = 0
    statistics: Statistics | None = None
    statistics_path: Path | None = None
    evaluation: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any]
    metadata_path: Path
    report: Mapping[str, Any] | None = None
    report_path: Path | None = None
    modelfile_path: Path | None = None

    @property
    def path(self) -> Path:
        """The pruned model, or its first shard."""
        return self.files[0]


@dataclass(frozen=True, slots=True)
class _Writing:
    """How the result is written; see :func:`apply`."""

    output: str | Path | None
    mtp: str
    split_max_size: int | None = option(None, "Bytes of a shard.", minimum=1, metavar="SIZE")
    force: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def changes_nothing(self) -> bool:
        """Whether a model with all its experts would come out as it is."""
        return self.mtp == "prune" and self.split_max_size is None

    def target(self, model: MoeModel, keep: int) -> Path:
        return Path(self.output or f"{model.gguf.stem}-{keep}e.gguf")

    def statistics(self, model: MoeModel) -> Path:
        # They are of the source, whatever is kept of it.
        return self.target(model, model.experts).with_name(f"{model.gguf.stem}.stats.gguf")


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
        probe: compare short answers too, about PROBE_SECONDS for each side, if the model can chat.
        command: the command line, for the report.
        progress: shows how far it is.
        asked: fields of Budget and Request, in place of ``request``: ``keep=109``,
            ``method="reap"``.

    Raises:
        Interrupted: Ctrl-C after the result was written: it is complete, but not measured.
        GgpruneError: of the stage that failed; what can be known is checked before long work.
    """
    writing = _Writing(output, mtp, split_max_size, force, verify)
    settings, options = settings or Settings(), options or RunOptions()
    given, name = (None, "the plan") if plan is None else plan_of(plan)
    wanted = request_of(request, asked, prune) if given is None else None
    if given is not None and (request is not None or asked):
        names = ["request"] * (request is not None) + [*asked]
        raise TypeError(f"plan and {', '.join(names)}: give one of them")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_model(model))
        is_chosen_soon = given is not None or (
            not recalibrate and Path(statistics or writing.statistics(source)).exists()
        )
        (first, *_) = _check(source, given or wanted, writing, continues=is_chosen_soon)
        stack.enter_context(reserved(first.path))
        search_sources = load_texts(pairs_of(search_text, "search_text"))
        measured = wanted is not None and (is_measured(wanted) or may_be_measured(wanted, source))
        sets_aside = measured and not search_sources
        reading = choose_text(
            pairs_of(text),
            pairs_of(eval_text, "eval_text"),
            search_share=SEARCH_SHARE if sets_aside else 0.0,
        )
        known = known_path = None
        if wanted is not None:
            warn_of_idle_gpus(options)
            run = Run(
                source,
                reading.calibration,
                replace(settings, seed=wanted.seed),
                options,
                progress,
            )
            known, known_path = _statistics(run, statistics, wanted, writing, anew=recalibrate)
            resources = Resources(
                model=source,
                options=options,
                sources=reading.calibration,
                search_sources=search_sources or reading.search or builtin_texts(SEARCH),
                progress=progress,
            )
            given = choose_plan(known, wanted, resources)
            for note in notes_on(given, source.counts):
                log.info(note)
        assert given is not None
        pruned = None
        try:
            with contextlib.ExitStack() as held:
                ready = partial(_check_runs, options=options, held=held, verify=verify)
                files, complete, compared = _write(source, given, name, writing, progress, ready)
                pruned = _described(source, files, complete, known, None)
            found = answers = None
            if verify:
                ctx = min(settings.ctx, source.trained_context or settings.ctx)
                most = settings.max_tokens
                contexts = [eval_ctx] if eval_ctx else sorted({ctx, min(ctx, SHORT_CTX)})[::-1]
                held_out = reading.held_out
                found = _measure(source, files[0], held_out, contexts, most, options, progress)
                if probe:
                    answers = _probe(source, files[0], options, progress)
        except KeyboardInterrupt:
            if pruned is None:
                raise
            raise Interrupted(
                f"interrupted: {pruned.path} is complete, but not measured",
                remedy="The same command measures it, or `ggprune evaluate "
                f"{shlex.quote(str(source.gguf.path))} {shlex.quote(str(pruned.path))}`.",
            ) from None
        with interrupts:
            pruned = _described(source, files, complete, known, found, answers or None)
            pruned = replace(pruned, compared=compared, statistics_path=known_path)
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
    wanted = request_of(request, asked, outputs) if plan is None else plan_of(plan)[0]
    with open_model(model) as source:
        return _check(source, wanted, _Writing(output, mtp, split_max_size, force))


def apply(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = log_progress,
) -> Pruned:
    """Write a model with the experts that a plan keeps, and its drop metadata; nothing is run.

    Args:
        model: the GGUF file, or any shard; any quantization of the plan's model.
        plan: which experts stay, or the plan's file.
        output: the result; None for ``<stem>-<keep>e.gguf`` in the current folder.
        mtp: ``prune`` the MTP layers by a stated rule, or ``drop`` them.
        split_max_size: bytes of one shard; None for one file.
        force: replace existing files.
        verify: compare every byte with the source afterwards.
        progress: shows how far it is.

    Raises:
        GgpruneError: the plan does not fit, or the result cannot be written.
    """
    chosen, name = plan_of(plan)
    writing = _Writing(output, mtp, split_max_size, force, verify)
    with open_model(model) as source:
        files, complete, compared = _write(source, chosen, name, writing, progress)
        return replace(_described(source, files, complete, None, None), compared=compared)


def apply_mask(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = log_progress,
) -> tuple[Path, ...]:
    """Write a copy of a model that computes what the pruned one does, with all experts in it.

    Its selection bias keeps the dropped experts from being chosen, so the plan may keep a different
    number in each layer.

    Args:
        model, plan, mtp, split_max_size, force, verify, progress: see :func:`apply`.
        output: the result; None for ``<stem>-masked.gguf`` in the current folder.

    Returns:
        The files written.

    Raises:
        UnsupportedModelError: the model has no selection bias, or one that cannot mask.
        GgpruneError: the plan does not fit, or the result cannot be written.
    """
    chosen, name = plan_of(plan)
    with open_model(model) as source:
        target = Path(output or f"{source.gguf.stem}-masked.gguf")
        rewrite = plan_rewrite(
            source,
            chosen,
            target,
            mtp=mtp,
            split_max_size=split_max_size,
            mask=True,
            plan_name=name,
        )
        write_result(source, rewrite, force=force, verify=verify, progress=progress)
    return tuple(file.path for file in rewrite.files)


def apply_to_adapter(
    model: str | Path,
    plan: Plan | str | Path,
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    force: bool = False,
    progress: Progress = log_progress,
) -> Path:
    """Cut a LoRA adapter of the whole model to the experts that a plan keeps.

    Args:
        model: the whole model, any quantization; only its header and routers are read.
        plan: which experts stay, or the plan's file.
        adapter: the LoRA adapter, a GGUF file.
        output: the result; None for ``<adapter>-<keep>e.gguf`` in the current folder.
        mtp: as the model is to be written, see :func:`apply`.
        force: replace an existing file.
        progress: shows how far it is.

    Returns:
        The file written.

    Raises:
        GgpruneError: the plan or the adapter does not fit the model.
    """
    chosen, name = plan_of(plan)
    target = Path(output or f"{Path(adapter).stem}-{chosen.keep}e.gguf")
    give = "Give the adapter's .gguf file; llama.cpp's convert_lora_to_gguf.py makes one."
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_model(model))
        with instead_of_a_model(give):
            factors = stack.enter_context(GgufModel(Path(adapter)))
        rewrite = plan_rewrite(source, chosen, target, mtp=mtp, plan_name=name)
        files = plan_adapter(factors, source, rewrite.plan, target)
        with progress(files[0].size, "writing", "B") as done:
            write_files(files, factors, progress=done, force=force)
    return target


def _check(
    model: MoeModel, wanted: Plan | Request | None, writing: _Writing, *, continues: bool = False
) -> tuple[OutputFile, ...]:
    """Find out before any long work whether the result can be written.

    With ``continues``, one of the same source that is not measured yet may be there.
    """
    assert wanted is not None
    if isinstance(wanted, Plan):
        keep, used, method = wanted.keep, wanted.experts_used, wanted.method
    else:
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
    files = result_files(
        model,
        keep,
        writing.target(model, keep),
        experts_used=used,
        method=method,
        mtp=writing.mtp,
        split_max_size=writing.split_max_size,
    )
    written = _unmeasured(model, files[0].path, writing) if continues else {}
    if written and written.get("keep") == keep:
        return files
    size = sum(file.size for file in files)
    check_targets([file.path for file in files], size, source=model.gguf, force=writing.force)
    return files


def _statistics(
    run: Run, given: str | Path | None, wanted: Request, writing: _Writing, *, anew: bool
) -> tuple[Statistics, Path]:
    """Take the statistics given, or those beside the result, or calibrate."""
    model = run.model
    path = Path(given) if given is not None else writing.statistics(model)
    if given is None and (anew or not path.exists()):
        domains = [source.domain for source in run.sources]
        check_request(wanted, model.architecture.name, model.moe_layers, model.counts, domains)
        return run.run_into(path, force=anew), path
    known = Statistics.load(path)
    try:
        known.identity.check_same(model.identity(), str(path), str(model.gguf.path))
    except MismatchError as error:
        if given is not None:
            raise
        raise OutputError(
            f"{path}: exists, and is not of this model: {error.message}",
            remedy="Replace it with recalibrate=True, or choose an output in another folder.",
        ) from error
    if given is None:
        _say_of_what(known, run.difference(known), path)
    return known, path


def _say_of_what(statistics: Statistics, difference: str | None, path: Path) -> None:
    if difference is None:
        log.info("using %s: same model, text and settings", path)
        return
    domains = (f"{domain.name} ({domain.tokens:,} tokens)" for domain in statistics.domains)
    log.info(
        "using %s, gathered on %s: not what this run says; recalibrate=True gathers anew",
        path,
        ", ".join(domains),
    )


def _write(
    model: MoeModel,
    plan: Plan,
    name: str,
    writing: _Writing,
    progress: Progress,
    check: Callable[[Path], object] | None = None,
) -> tuple[tuple[Path, ...], Plan, int]:
    """Write the result and compare it with the source; its files, its plan, bytes compared."""
    rewrite = plan_rewrite(
        model,
        plan,
        writing.target(model, plan.keep),
        mtp=writing.mtp,
        split_max_size=writing.split_max_size,
        plan_name=name,
    )
    files = tuple(file.path for file in rewrite.files)
    if _is_written(model, rewrite, writing):
        log.info("%s: an earlier run has written it; it is verified now", files[0])
        with check_result(files[0], rewrite) as result:
            compared = verify_bytes(model, rewrite, result.gguf)
        if check is not None:
            check(files[0])
        return files, rewrite.plan, compared
    compared = write_result(
        model,
        rewrite,
        force=writing.force,
        verify=writing.verify,
        check=check,
        progress=progress,
    )
    return files, rewrite.plan, compared


def _unmeasured(model: MoeModel, result: Path, writing: _Writing) -> Mapping[str, Any]:
    """Return the metadata of a result that was to be measured; nothing if there is none."""
    path = drop_metadata.metadata_path(result)
    if not writing.verify or writing.force or report_path(result).exists() or not path.exists():
        return {}
    with contextlib.suppress(InputError):
        metadata = read_json(path)
        if drop_metadata.is_of(metadata, model) and metadata.get("evaluation") is None:
            return dict(metadata)
    return {}


def _is_written(model: MoeModel, rewrite: Rewrite, writing: _Writing) -> bool:
    """Whether an earlier run has written just these files, and not measured them."""
    metadata = _unmeasured(model, rewrite.files[0].path, writing)
    return metadata.get("plan_sha256") == rewrite.plan.hash and all(
        file.path.is_file() and file.path.stat().st_size == file.size for file in rewrite.files
    )


def _check_runs(
    path: Path, options: RunOptions, held: contextlib.ExitStack, *, verify: bool
) -> None:
    """Load the result in llama.cpp and compute a few tokens; then hold signals back."""
    if verify:
        with LlamaModel(path, options) as llama, LlamaContext(llama, n_ctx=64) as context:
            context.decode([Tokens(0, 0, list(range(min(8, llama.n_vocab))), "last")])
    # The result is about to get its name, and must not stand there without its metadata.
    held.enter_context(interrupts)


def _measure(
    model: MoeModel,
    result: Path,
    held_out: Sequence[Source],
    contexts: Sequence[int],
    max_tokens: int | None,
    options: RunOptions,
    progress: Progress,
) -> Mapping[str, Any] | None:
    """Compare the result with its source on text that calibration did not see.

    The text is limited so that the source's probabilities of every token in the vocabulary fit
    into LOG_BYTES of disk. The first of the contexts is used for which there is enough text.
    """
    reason = "an embedding model gives no probabilities"
    for ctx in contexts if model.architecture.kind is not Kind.EMBEDDING else ():
        vocabulary = max(model.metadata.get(VOCABULARY_KEY, 1), 1)
        most = max(LOG_BYTES // (2 * vocabulary) // max(len(held_out), 1), ctx)
        most = min(most, max_tokens or most)
        try:
            measured = Evaluator(model.gguf.path, options, held_out, n_ctx=ctx, max_tokens=most)
        except InputError as error:
            # Too little text to measure on is no reason to lose the result.
            reason = error.message
            continue
        with measured, progress(2 * measured.tokens, "measuring", "tok") as advance:
            return measured.measure_file(result, advance=advance).as_json()
    log.info("not measured: %s", reason)
    return None


def _probe(
    model: MoeModel, result: Path, options: RunOptions, progress: Progress
) -> Mapping[str, Any]:
    """Compare what the result and its source write; nothing where that cannot be done."""
    try:
        candidate = Candidate.load(result)
        return short_probe(model, candidate, options, seconds=PROBE_SECONDS, progress=progress)
    except GgpruneError as error:
        # A chat template that fails, for instance, is no reason to lose what was measured.
        log.info("answers are not compared: %s", error.message)
        return {}


def _described(
    model: MoeModel,
    files: tuple[Path, ...],
    plan: Plan,
    statistics: Statistics | None,
    evaluation: Mapping[str, Any] | None,
    probe: Mapping[str, Any] | None = None,
) -> Pruned:
    """Write the drop metadata beside the result."""
    path = drop_metadata.metadata_path(files[0])
    with GgufModel(files[0]) as result:
        numbers = without_texts(probe) if probe else None
        metadata = drop_metadata.drop_metadata(model, result, plan, statistics, evaluation, numbers)
    drop_metadata.save(path, metadata)
    report_path(files[0]).unlink(missing_ok=True)  # Of another result that this one has replaced.
    return Pruned(
        files=files,
        plan=plan,
        statistics=statistics,
        evaluation=evaluation,
        probe=probe,
        metadata=metadata,
        metadata_path=path,
    )


def report_path(result: Path) -> Path:
    """Return where the report of a result lies."""
    return result.with_name(result.name.removesuffix(".gguf") + ".report.html")


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
