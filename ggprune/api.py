"""The whole job and its stages, for programs; the command line and batches call the same."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan, default_method, is_measured
from ggprune.choosing.count import known_count
from ggprune.choosing.request import DEFAULT, Budget, Request, Resources
from ggprune.errors import GgpruneError, InputError, OutputError, UnsupportedModelError
from ggprune.evaluation import sweep as sweeps
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.evaluation.probing import compare_answers
from ggprune.evaluation.sweep import Sweep, Tolerance, default_counts
from ggprune.gguf_file import GgufModel, OutputFile, check_targets, write_files
from ggprune.hub.client import output_folder
from ggprune.llama.options import QuantizeOptions, RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, describe, open_model
from ggprune.model.architectures import Kind
from ggprune.plan import Plan
from ggprune.publish.ollama import write_modelfile
from ggprune.quantization import importance
from ggprune.quantization.importance import ImatrixObserver
from ggprune.quantization.names import file_type
from ggprune.quantization.quantize import Forecast, Quantizer
from ggprune.quantization.source import pruned_source
from ggprune.report.data import ReportInput
from ggprune.report.page import write_report
from ggprune.rewrite import (
    check_result,
    drop_metadata,
    plan_adapter,
    plan_rewrite,
    result_files,
    verify_bytes,
)
from ggprune.text import held_out
from ggprune.text.builtin import CALIBRATION
from ggprune.text.documents import Source
from ggprune.text.load import load_or_builtin, load_texts
from ggprune.types import Progress, no_progress

log = logging.getLogger(__name__)

#: Texts by domain: a mapping, or pairs where a domain has several. A path is a file, a folder,
#: ``hf://datasets/…`` or ``@recipe``, see docs/calibration.md.
Text = Mapping[str, str | Path] | Iterable[tuple[str, str | Path]]
#: Room for log-probabilities while measuring: 2 bytes for each token in the vocabulary, for each
#: token of text (4,000 tokens of text for a vocabulary of 262,144).
LOG_BYTES = 2 << 30
#: Tokens of context to measure with, as llama-perplexity does by default.
MEASURE_CTX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What :func:`prune` and :func:`apply` made.

    Attributes:
        files: the pruned model, first shard first.
        plan: complete: every layer with experts is in it.
        metadata: contents of the drop metadata.
        metadata_path: where the drop metadata lies.
        statistics: what the plan was chosen by; None if a plan was given.
        statistics_path: their file; None if a plan was given.
        compared: bytes found equal to the source's; 0 if not verified.
        evaluation: of source and result on held-out text, as ``evaluate --json`` prints it; None
            if not measured.
        report: the numbers of the report; None if there is none.
        report_path, modelfile_path: further files; None if not written.
    """

    files: tuple[Path, ...]
    plan: Plan
    metadata: Mapping[str, Any]
    metadata_path: Path
    statistics: Statistics | None = None
    statistics_path: Path | None = None
    compared: int = 0
    evaluation: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    report_path: Path | None = None
    modelfile_path: Path | None = None

    @property
    def path(self) -> Path:
        """The pruned model, or its first shard."""
        return self.files[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """How the result is written; see :func:`apply`."""

    output: Path | None
    mtp: str = "prune"
    split_max_size: int | None = None
    force: bool = False
    verify: bool = True

    def target(self, model: MoeModel, keep: int) -> Path:
        return self.output or Path(f"{model.gguf.stem}-{keep}e.gguf")


def prune(
    model: str | Path,
    output: str | Path | None = None,
    *,
    request: Request | None = None,
    plan: Plan | str | Path | None = None,
    statistics: str | Path | None = None,
    text: Text = (),
    eval_text: Text = (),
    search_text: Text = (),
    settings: Settings | None = None,
    options: RunOptions | None = None,
    mtp: str = "prune",
    split_max_size: int | None = None,
    modelfile: bool = False,
    verify: bool = True,
    force: bool = False,
    command: str | None = None,
    progress: Progress = no_progress,
    **asked: Any,
) -> Pruned:
    """Do the whole job: calibrate, choose, rewrite, verify, measure, report.

    ``ggprune.prune("model.gguf", keep=109)`` writes ``model-109e.gguf`` with its drop metadata and
    report, and keeps the statistics, so that another ``keep`` needs no second calibration.

    Args:
        model: the GGUF file, or any shard.
        output: the result; None for ``<stem>-<keep>e.gguf`` in the current folder.
        request: which experts stay, and how many.
        plan: this plan (or its file) instead: nothing is calibrated or chosen.
        statistics: a statistics file to use instead of calibrating.
        text: what to calibrate on; none for the built-in prompts.
        eval_text: what to measure on; none for a part held out of ``text``.
        search_text: what methods that measure plans measure them on; none for the built-in text.
        settings: how to calibrate.
        options: how llama.cpp runs the model.
        mtp, split_max_size, force: see :func:`apply`.
        modelfile: write an Ollama Modelfile too.
        verify: compare every byte with the source, load the result and measure it.
        command: the command line, for the report.
        progress: shows how far it is.
        asked: fields of Budget and Request, in place of ``request``: ``keep=109``,
            ``method="reap"``.

    Raises:
        GgpruneError: of the stage that failed; what can be known is checked before long work.
    """
    writing = _Writing(
        output=Path(output) if output else None,
        mtp=mtp,
        split_max_size=split_max_size,
        force=force,
        verify=verify,
    )
    settings, options, plan = settings or Settings(), options or RunOptions(), _plan(plan)
    wanted = None if plan else _request(request, asked)
    with open_model(model) as source:
        _check(source, plan, wanted, writing)
        reading = held_out.choose_text(_pairs(text), _pairs(eval_text))
        known, known_path = None, None
        if wanted is not None:
            known, known_path = _statistics(
                source,
                statistics,
                reading.calibration,
                wanted,
                settings,
                options,
                writing,
                progress,
            )
            resources = Resources(
                model=source,
                options=options,
                sources=reading.calibration,
                search_sources=load_texts(_pairs(search_text)),
                progress=progress,
            )
            plan = choose_plan(known, wanted, resources)
        assert plan is not None
        files, plan, compared = _write(source, plan, writing, "the plan", progress)
        evaluation = None
        if verify:
            held = reading.held_out
            evaluation = _measure(source, files[0], held, settings, options, progress)
        pruned = _record(source, files, plan, known, evaluation)
    pruned = replace(pruned, statistics_path=known_path, compared=compared)
    pruned = _with_report(pruned, command or "")
    if modelfile:
        target = pruned.path.with_name("Modelfile")
        pruned = replace(pruned, modelfile_path=write_modelfile(pruned.path, target, force=True))
    return pruned


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
    writing = _Writing(
        output=Path(output) if output else None,
        mtp=mtp,
        split_max_size=split_max_size,
        force=force,
    )
    plan = _plan(plan)
    with open_model(model) as source:
        return _check(source, plan, None if plan else _request(request, asked), writing)


def calibrate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    text: Text = (),
    settings: Settings | None = None,
    options: RunOptions | None = None,
    imatrix: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
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
    settings, named = settings or Settings(), _pairs(text)
    observer = ImatrixObserver() if imatrix else None
    if imatrix:
        check_targets([Path(imatrix)], 0, force=force)
    with open_model(model) as source:
        run = Run(
            source,
            load_or_builtin(named, CALIBRATION),
            settings,
            options or RunOptions(),
            progress,
            observers=[observer] if observer else [],
        )
        statistics = run.run_into(Path(output), force=force) if output else run.run()
    if observer and imatrix:
        tokens = sum(domain.tokens for domain in statistics.domains)
        observer.save(Path(imatrix), _datasets(named), tokens // settings.ctx, settings.ctx)
    return statistics


def choose(
    statistics: Statistics | str | Path,
    output: str | Path | None = None,
    *,
    request: Request | None = None,
    model: str | Path | None = None,
    text: Text = (),
    search_text: Text = (),
    options: RunOptions | None = None,
    force: bool = False,
    progress: Progress = no_progress,
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
        force: replace an existing file.
        progress: shows how far it is.
        asked: fields of Budget and Request, in place of ``request``: ``keep=109``,
            ``method="reap"``.

    Raises:
        InputError: an impossible budget, an unknown method or domain, or a rule that needs the
            model and has none.
        MismatchError: statistics of another model.
    """
    wanted, target = _request(request, asked), Path(output) if output else None
    if target and target.exists() and not force:
        raise OutputError(f"{target}: exists", remedy="Replace it with force=True.")
    where = "the statistics" if isinstance(statistics, Statistics) else str(statistics)
    if not isinstance(statistics, Statistics):
        statistics = Statistics.load(Path(statistics))
    journal = target.with_name(target.name + ".search") if target else None
    resources = Resources(
        options=options or RunOptions(),
        sources=load_texts(_pairs(text)),
        search_sources=load_texts(_pairs(search_text)),
        journal=journal if is_measured(wanted) else None,
        progress=progress,
    )
    if model is None:
        plan = choose_plan(statistics, wanted, resources)
    else:
        with open_model(model) as source:
            statistics.identity.check_same(source.identity(), where, str(model))
            plan = choose_plan(statistics, wanted, replace(resources, model=source))
    if target and journal:
        plan.save(target)
        journal.unlink(missing_ok=True)
    return plan


def apply(
    model: str | Path,
    plan: Plan | str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress = no_progress,
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
    writing = _Writing(
        output=Path(output) if output else None,
        mtp=mtp,
        split_max_size=split_max_size,
        force=force,
        verify=verify,
    )
    name = "the plan" if isinstance(plan, Plan) else str(plan)
    chosen = _plan(plan)
    assert chosen is not None
    with open_model(model) as source:
        files, chosen, compared = _write(source, chosen, writing, name, progress)
        return replace(_record(source, files, chosen, None, None), compared=compared)


def apply_to_adapter(
    model: str | Path,
    plan: Plan | str | Path,
    adapter: str | Path,
    output: str | Path | None = None,
    *,
    mtp: str = "prune",
    force: bool = False,
    progress: Progress = no_progress,
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
    name = "the plan" if isinstance(plan, Plan) else str(plan)
    chosen = _plan(plan)
    assert chosen is not None
    target = Path(output) if output else Path(f"{Path(adapter).stem}-{chosen.keep}e.gguf")
    with open_model(model) as source, GgufModel(Path(adapter)) as factors:
        rewrite = plan_rewrite(source, chosen, target, mtp=mtp, plan_name=name)
        files = plan_adapter(factors, source, rewrite.plan, target)
        with progress(files[0].size, "writing", "B") as done:
            write_files(files, factors, progress=done, force=force)
    return target


def evaluate(
    model: str | Path,
    candidate: Candidate | Plan | str | Path,
    *,
    text: Text = (),
    ctx: int = 2048,
    max_tokens: int | None = None,
    cache: Path | None = None,
    options: RunOptions | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure what a plan or a pruned model costs against the original.

    A plan is measured by masking: no file is written.

    Args:
        model: the original: the GGUF file, or any shard.
        candidate: a plan, or the path of a plan or of a GGUF file.
        text: by domain, best not calibrated on; none for the built-in answers.
        ctx: context in tokens.
        max_tokens: tokens of each domain at most.
        cache: folder that keeps what the original says, so that a second candidate costs half;
            None keeps nothing.
        options: how llama.cpp runs the models.
        progress: shows how far it is.

    Raises:
        GgpruneError: the candidate is not of this model, or the text is too short.
    """
    with evaluator(
        model, text=text, ctx=ctx, max_tokens=max_tokens, cache=cache, options=options
    ) as measured:
        if not isinstance(candidate, Candidate):
            candidate = Candidate.of(candidate)
        name = str(candidate.path)
        _warn_of_calibration_text(candidate.calibration, measured, name)
        passes = 1 if measured.base_is_known else 2
        with progress(passes * measured.tokens, "evaluating", "tok") as done:
            measured.progress = done
            if candidate.plan is not None:
                return measured.plan(candidate.plan, name)
            return measured.model(candidate.path)


def sweep(
    model: str | Path,
    statistics: Statistics | str | Path,
    *,
    keeps: Sequence[int] = (),
    methods: Sequence[str] = (),
    seed: int = 0,
    tolerance: Tolerance | None = None,
    text: Text = (),
    ctx: int = 2048,
    max_tokens: int | None = None,
    cache: Path | None = None,
    options: RunOptions | None = None,
    progress: Progress = no_progress,
) -> Sweep:
    """Measure how the damage grows the fewer experts stay, by masking: no file is written.

    Args:
        model: the GGUF file, or any shard.
        statistics: what calibration gathered, or its file.
        keeps: numbers of experts; none for seven.
        methods: ways of choosing; none for the one that ``choose`` takes by default.
        seed: for methods that draw.
        tolerance: divergence or perplexity ratio that is accepted.
        text, ctx, max_tokens, cache, options, progress: see :func:`evaluate`.

    Raises:
        GgpruneError: the statistics are of another model, or a count or a method is impossible.
    """
    where = "the statistics" if isinstance(statistics, Statistics) else str(statistics)
    known = statistics if isinstance(statistics, Statistics) else Statistics.load(Path(where))

    def plan(method: str, keep: int) -> Plan:
        asked = Request(budget=Budget(keep=keep), method=method, seed=seed)
        return choose_plan(known, asked, Resources(model=measured.description.prunable()))

    with evaluator(
        model, text=text, ctx=ctx, max_tokens=max_tokens, cache=cache, options=options
    ) as measured:
        known.identity.check_same(measured.description.prunable().identity(), where, str(model))
        hashes = {part for domain in known.domains for part in domain.sha256.split("+")}
        _warn_of_calibration_text(hashes, measured, where)
        counts = keeps or default_counts(known.identity.counts.possible())
        names = tuple(dict.fromkeys(methods)) or (
            default_method(known, _request(None, {"keep": 1})),
        )
        passes = len(set(counts)) * len(names) + (0 if measured.base_is_known else 1)
        with progress(passes * measured.tokens, "sweeping", "tok") as done:
            measured.progress = done
            return sweeps.sweep(
                measured,
                plan,
                counts,
                names,
                tolerance=tolerance,
                settings={
                    "ctx": measured.n_ctx,
                    "tokens": measured.tokens,
                    "texts": {source.domain: source.sha256 for source in measured.sources},
                    "seed": seed,
                },
            )


def probe(
    model: str | Path,
    candidate: Candidate | Plan | str | Path,
    *,
    modes: Sequence[str] = ("greedy", "sampled"),
    max_tokens: int = 1024,
    parallel: int = 8,
    seed: int = 0,
    options: RunOptions | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let a model and a candidate answer the same prompts, and compare what they write.

    Args:
        model: the original: the GGUF file, or any shard.
        candidate: a plan, or the path of a plan or of a GGUF file.
        modes: ``greedy``, always the likeliest token; ``sampled``, the model's own settings.
        max_tokens: of the longest answer.
        parallel: prompts answered at the same time.
        seed: for what is drawn at random.
        options: how llama.cpp runs the models.
        progress: shows how far it is.

    Returns:
        Numbers and texts, as ``ggprune probe --json`` prints them.
    """
    if not isinstance(candidate, Candidate):
        candidate = Candidate.of(candidate)
    with describe(model) as source:
        return compare_answers(
            source,
            candidate,
            options or RunOptions(),
            modes=modes,
            max_tokens=max_tokens,
            parallel=parallel,
            seed=seed,
            progress=progress,
        )


def imatrix(
    model: str | Path,
    output: str | Path,
    *,
    text: Text = (),
    ctx: int = 512,
    chunks: int | None = None,
    process_output: bool = False,
    options: RunOptions | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> tuple[int, int]:
    """Gather an importance matrix for quantizing, as llama-imatrix does.

    Args:
        model: the GGUF file, or any shard.
        output: the importance matrix.
        text: by domain; none for the built-in prompts.
        ctx: tokens in a chunk.
        chunks: use at most so many; None for all.
        process_output: take in ``output.weight`` too.
        options: how llama.cpp runs the model.
        force: replace an existing file.
        progress: shows how far it is.

    Returns:
        Chunks that were run, and tokens left over.
    """
    named = _pairs(text)
    sources = load_or_builtin(named, CALIBRATION)
    with GgufModel(Path(model)) as file:
        check_targets([Path(output)], 0, source=file, force=force)
        template = file.get("tokenizer.chat_template")
    with LlamaModel(Path(model), options or RunOptions()) as llama:
        tokens = importance.joined_tokens(llama, template, sources)
        most = min(len(tokens) // ctx, chunks or len(tokens))
        with progress(most * ctx, "imatrix", "tok") as done:
            observer, count = importance.gather(
                llama, tokens, n_ctx=ctx, chunks=chunks, head=process_output, progress=done
            )
    observer.save(Path(output), _datasets(named), count, ctx)
    return count, len(tokens) % ctx


def quantize(
    model: str | Path,
    types: Sequence[str],
    output: str | Path | None = None,
    *,
    plan: str | Path | None = None,
    tmp: str | Path | None = None,
    options: QuantizeOptions | None = None,
    dry_run: bool = False,
    force: bool = False,
    lines: Callable[[str], object] = lambda _: None,
    progress: Progress = no_progress,
) -> tuple[list[Forecast], dict[str, GgpruneError]]:
    """Quantize a model to each of several types; with a plan, prune it first.

    Args:
        model: the GGUF file, or any shard; with a plan, the BF16, F16 or F32 model.
        types: names of llama.cpp's types, for instance ``Q4_K_M``.
        output: folder for the results; None for that of the model.
        plan: a plan's file: the model is pruned by it first.
        tmp: folder for the pruned file in between; None for ``output``.
        options: importance matrix, types of single tensors.
        dry_run: only find out what would come out.
        force: replace existing files.
        lines: receives the quantizer's own log, line by line.
        progress: shows how far it is.

    Returns:
        What came out, and by type what went wrong: a type that fails does not keep the others from
        being made.

    Raises:
        GgpruneError: nothing can be made of this model like this.
    """
    names = list(dict.fromkeys(file_type(name) for name in types))
    options, path = options or QuantizeOptions(), Path(model)
    folder = Path(output) if output else output_folder(path)
    done: list[Forecast] = []
    errors: dict[str, GgpruneError] = {}
    with contextlib.ExitStack() as stack:
        stem, imatrix_name = None, options.imatrix.name if options.imatrix else None
        if plan is not None:
            inside, matrix = Path(tmp) if tmp else folder, options.imatrix
            pruned = stack.enter_context(
                pruned_source(Path(plan), path, inside, imatrix=matrix, progress=progress)
            )
            path, stem, options = pruned.path, pruned.stem, replace(options, imatrix=pruned.imatrix)
        file = stack.enter_context(GgufModel(path))
        quantizer = Quantizer(
            file, options, folder, stem=stem, imatrix_name=imatrix_name, log=lines
        )
        _say_before(quantizer)
        for name in names:
            try:
                if dry_run:
                    result = quantizer.forecast(name)
                else:
                    with progress(quantizer.source_bytes, name, "B") as advance:
                        result = quantizer.run(name, force=force, progress=advance)
            except GgpruneError as error:
                errors[name] = error
                continue
            _say_after(result)
            done.append(result)
    return done, errors


def _say_before(quantizer: Quantizer) -> None:
    share, mostly = quantizer.requantizes
    if share:
        log.info(
            "Note: %s of the source is quantized already, mostly %s. What that rounded away stays "
            "lost; the same type made from BF16 is closer to the original.",
            f"{share:.0%}",
            mostly,
        )
    if quantizer.uncovered:
        log.info(
            "Note: the importance matrix lacks %s of the layers' matrices, for instance %s; they "
            "are quantized without.",
            len(quantizer.uncovered),
            quantizer.uncovered[0],
        )


def _say_after(result: Forecast) -> None:
    if result.needs_imatrix:
        log.info("Note: %s needs an importance matrix (imatrix=FILE).", result.type)
    if result.fallbacks:
        log.info(
            "Note: %s: %s tensors have rows that its blocks do not divide; llama.cpp gives them a "
            "larger type.",
            result.type,
            result.fallbacks,
        )


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
        model, text, ctx, max_tokens, cache, options: see :func:`evaluate`.

    Raises:
        UnsupportedModelError: an embedding model, which predicts no tokens.
        GgpruneError: the model cannot be run, or the text is too short.
    """
    named = _pairs(text)
    measured = Evaluator(
        Path(model),
        options or RunOptions(),
        load_texts(named) if named else None,
        n_ctx=ctx,
        max_tokens=max_tokens,
        cache=cache,
    )
    architecture = measured.description.architecture
    if architecture is not None and architecture.kind is Kind.EMBEDDING:
        measured.close()
        raise UnsupportedModelError(
            f"{model}: is an embedding model: it predicts no tokens, so perplexity and divergence "
            "mean nothing for it",
            remedy="Compare its embeddings on the task it is used for.",
        )
    if measured.n_ctx < ctx:
        log.info(
            "ctx=%s: the model was trained with %s tokens; that many are used", ctx, measured.n_ctx
        )
    return measured


def _pairs(text: Text) -> list[tuple[str, str]]:
    pairs = text.items() if isinstance(text, Mapping) else text
    return [(domain, str(path)) for domain, path in pairs]


def _datasets(named: Sequence[tuple[str, str]]) -> list[str]:
    return [path for _, path in named] or ["ggprune's built-in calibration prompts"]


def _plan(plan: Plan | str | Path | None) -> Plan | None:
    return plan if plan is None or isinstance(plan, Plan) else Plan.load(Path(plan))


def _request(request: Request | None, asked: Mapping[str, Any]) -> Request:
    """Put fields of both records together, and see that there is one budget."""
    if request is None:
        budget = {name: value for name, value in asked.items() if name in _BUDGET}
        rest = {name: value for name, value in asked.items() if name not in _BUDGET}
        request = Request(budget=Budget(**budget), **rest)
    elif asked:
        raise TypeError(f"request= and {', '.join(asked)}: give one of them")
    _ = request.budget.rule
    return request


_BUDGET = {field.name for field in fields(Budget)}


def _check(
    model: MoeModel, plan: Plan | None, request: Request | None, writing: _Writing
) -> tuple[OutputFile, ...]:
    """Find out before any long work whether the result can be written."""
    if plan is not None:
        keep, used, method = plan.keep, plan.experts_used, plan.method
    else:
        assert request is not None
        keep = known_count(request.budget, model.counts, model) or model.experts
        used, method = request.fixed_used, request.method or DEFAULT
    files = result_files(
        model,
        keep,
        writing.target(model, keep),
        experts_used=used or None,
        method=method,
        mtp=writing.mtp,
        split_max_size=writing.split_max_size,
    )
    size = sum(file.size for file in files)
    check_targets([file.path for file in files], size, source=model.gguf, force=writing.force)
    return files


def _statistics(
    model: MoeModel,
    given: str | Path | None,
    sources: Sequence[Source],
    request: Request,
    settings: Settings,
    options: RunOptions,
    writing: _Writing,
    progress: Progress,
) -> tuple[Statistics, Path]:
    """Take the statistics given, or those beside the result if they fit, or calibrate."""
    if given is not None:
        known = Statistics.load(Path(given))
        known.identity.check_same(model.identity(), str(given), str(model.gguf.path))
        return known, Path(given)
    run = Run(model, sources, replace(settings, seed=request.seed), options, progress)
    path = writing.target(model, model.experts).with_name(f"{model.gguf.stem}.stats.gguf")
    if not path.exists() or writing.force:
        return run.run_into(path, force=writing.force), path
    known = Statistics.load(path)
    if difference := run.difference(known):
        raise OutputError(
            f"{path}: exists, and is not of this run: {difference}",
            remedy=f"Use it all the same with stats={path}, or replace it with force=True.",
        )
    log.info("using %s: same model, text and settings", path)
    return known, path


def _write(
    model: MoeModel, plan: Plan, writing: _Writing, name: str, progress: Progress
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
    with progress(rewrite.size, "writing", "B") as done:
        write_files(rewrite.files, model.gguf, progress=done, force=writing.force)
    if not writing.verify:
        return files, rewrite.plan, 0
    with check_result(files[0], rewrite.plan) as result:
        return files, rewrite.plan, verify_bytes(model, rewrite.plan, result.gguf)


def _measure(
    model: MoeModel,
    result: Path,
    held_out: Sequence[Source],
    settings: Settings,
    options: RunOptions,
    progress: Progress,
) -> Mapping[str, Any] | None:
    """Compare the result with its source on text that calibration did not see.

    The text is limited so that the source's probabilities of every token in the vocabulary fit
    into LOG_BYTES of disk.
    """
    try:
        if model.architecture.kind is Kind.EMBEDDING:
            raise InputError("an embedding model gives no probabilities")
        ctx = min(settings.ctx, MEASURE_CTX)
        vocabulary = max(_length(model, "tokenizer.ggml.tokens"), 1)
        most = max(LOG_BYTES // (2 * vocabulary) // max(len(held_out), 1), ctx)
        most = min(most, settings.max_tokens or most)
        with (
            Evaluator(model.gguf.path, options, held_out, n_ctx=ctx, max_tokens=most) as measured,
            progress(2 * measured.tokens, "measuring", "tok") as done,
        ):
            measured.progress = done
            return measured.model(result).as_json()
    except InputError as error:
        # Too little text to measure on is no reason to lose the result.
        _check_loads(result, options)
        log.info("not measured: %s", error.message)
        return None


def _check_loads(path: Path, options: RunOptions) -> None:
    """Load a model in llama.cpp and compute a few tokens."""
    with LlamaModel(path, options) as llama, LlamaContext(llama, n_ctx=64) as context:
        context.decode([Tokens(0, 0, list(range(min(8, llama.n_vocab))), "last")])


def _length(model: MoeModel, key: str) -> int:
    """Elements of an array in the metadata."""
    pair = model.gguf.keys.get(key)
    if pair is None:
        return 0
    return int.from_bytes(model.gguf.files[0].read(pair.value + 4, 8), "little")


def _record(
    model: MoeModel,
    files: tuple[Path, ...],
    plan: Plan,
    statistics: Statistics | None,
    evaluation: Mapping[str, Any] | None,
) -> Pruned:
    """Write the drop metadata beside the result."""
    path = drop_metadata.metadata_path(files[0])
    with GgufModel(files[0]) as result:
        metadata = drop_metadata.drop_metadata(model, result, plan, statistics, evaluation)
    drop_metadata.save(path, metadata)
    return Pruned(
        files=files,
        plan=plan,
        metadata=metadata,
        metadata_path=path,
        statistics=statistics,
        evaluation=evaluation,
    )


def _with_report(pruned: Pruned, command: str) -> Pruned:
    """Write the report beside the result."""
    path = pruned.path.with_name(pruned.path.name.removesuffix(".gguf") + ".report.html")
    given = ReportInput(
        pruned.statistics, pruned.plan, pruned.metadata, pruned.evaluation, command=command
    )
    return replace(pruned, report=write_report(path, given), report_path=path)


def _warn_of_calibration_text(hashes: Collection[str], measured: Evaluator, where: str) -> None:
    seen = [source.domain for source in measured.sources if source.sha256 in hashes]
    if seen:
        log.warning(
            "Warning: %s: %s was calibrated on this text, so the numbers flatter it. Measure on "
            "other text.",
            ", ".join(seen),
            where,
        )
