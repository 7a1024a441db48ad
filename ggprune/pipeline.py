"""The whole job in stages: check, calibrate, choose, write, verify. The command line adds words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.calibration.run import Run
from ggprune.calibration.statistics import Statistics
from ggprune.errors import InputError, OutputError
from ggprune.gguf_file import GgufModel, OutputFile, check_targets, write_files
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel
from ggprune.rewrite import Rewrite, check_result, drop_metadata, result_files, verify_bytes
from ggprune.text.builtin import CALIBRATION, HELD_OUT
from ggprune.text.documents import Document, Source
from ggprune.text.load import load_or_builtin
from ggprune.types import Progress

#: Room for log-probabilities while measuring: 2 bytes for each token in the vocabulary, for each
#: token of text (4,000 tokens of text for a vocabulary of 262,144).
LOG_BYTES = 2 << 30
#: Tokens of context to measure with, as llama-perplexity does by default.
MEASURE_CTX = 512


@dataclass(frozen=True, slots=True)
class Paths:
    """Names of everything a run writes.

    Attributes:
        result: the pruned model, or its first shard.
        source_stem: the source's name: statistics are of the source, whatever is kept of it.
    """

    result: Path
    source_stem: str

    @property
    def statistics(self) -> Path:
        """What calibration observed."""
        return self.result.with_name(f"{self.source_stem}.stats.gguf")

    @property
    def metadata(self) -> Path:
        """What was dropped."""
        return drop_metadata.metadata_path(self.result)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self._beside(".report.html")

    def _beside(self, suffix: str) -> Path:
        return self.result.with_name(self.result.name.removesuffix(".gguf") + suffix)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a run made.

    Attributes:
        rewrite: the complete plan and the files.
        statistics: None if a plan was given.
        metadata: contents of the drop metadata.
        compared: bytes compared with the source; 0 if not verified.
        evaluation: of source and result on held-out text; None if not verified.
    """

    rewrite: Rewrite
    statistics: Statistics | None
    metadata: Mapping[str, Any]
    compared: int = 0
    evaluation: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The result, or its first shard."""
        return self.rewrite.files[0].path


def default_result(model: MoeModel, keep: int, folder: Path) -> Path:
    """``<stem>-<N>e.gguf``."""
    return folder / f"{model.gguf.stem}-{keep}e.gguf"


def check_output(
    model: MoeModel,
    keep: int,
    target: Path,
    *,
    experts_used: int | None = None,
    method: str = "",
    mtp: str = "prune",
    split_max_size: int | None = None,
    force: bool = False,
) -> tuple[OutputFile, ...]:
    """Find out before any long work whether the result can be written, and how large it is.

    Args:
        model: the source.
        keep: experts a layer.
        target: name of the result.
        experts_used: for each token; None for as many as in the model.
        method: what the plan will name as its method (it is kept in the result).
        mtp, split_max_size: see rewrite.plan_rewrite.
        force: allow replacing files.

    Raises:
        InputError: an impossible number.
        OutputError: see gguf_file.check_targets.
    """
    files = result_files(
        model,
        keep,
        target,
        experts_used=experts_used,
        method=method,
        mtp=mtp,
        split_max_size=split_max_size,
    )
    size = sum(file.size for file in files)
    check_targets([file.path for file in files], size, source=model.gguf, force=force)
    return files


def gather(run: Run, output: Path, *, force: bool = False) -> Statistics:
    """Calibrate, or take what an earlier run of the same model, text and settings gathered.

    Args:
        run: what to do.
        output: the statistics file.
        force: calibrate again even if the file fits.

    Raises:
        OutputError: the file exists and is of something else.
        GgpruneError: see calibrate.Run.run.
    """
    if output.exists() and not force:
        known = Statistics.load(output)
        difference = run.difference(known)
        if difference:
            raise OutputError(
                f"{output}: exists, and is not of this run: {difference}",
                remedy=f"Use it all the same with --stats {output}, or replace it with --force.",
            )
        run.say(f"using {output}: same model, text and settings")
        return known
    return run.run_into(output, force=force)


def write(
    model: MoeModel,
    rewrite: Rewrite,
    progress: Progress,
    *,
    force: bool = False,
    verify: bool = True,
) -> int:
    """Write the result and compare it with the source.

    Returns:
        Bytes compared, 0 without ``verify``.

    Raises:
        OutputError: it cannot be written.
        VerificationError: it does not hold what it should.
    """
    with progress(rewrite.size, "writing", "B") as done:
        write_files(rewrite.files, model.gguf, progress=done, force=force)
    if not verify:
        return 0
    result = check_result(rewrite.files[0].path, rewrite.plan)
    try:
        return verify_bytes(model, rewrite.plan, result.gguf)
    finally:
        result.gguf.close()


def measure(
    model: MoeModel,
    result: Path,
    held_out: Sequence[Source],
    options: RunOptions,
    progress: Progress,
    *,
    ctx: int,
    max_tokens: int | None = None,
) -> Mapping[str, Any]:
    """Compare the result with its source on text that calibration did not see.

    The text is limited so that the source's probabilities of every token in the vocabulary fit
    into LOG_BYTES of disk, and to ``max_tokens`` of each domain.

    Raises:
        LlamaError: the result does not load, or its logits are not finite.
    """
    from ggprune.evaluation.evaluator import Evaluator

    vocabulary = max(_length(model, "tokenizer.ggml.tokens"), 1)
    most = max(LOG_BYTES // (2 * vocabulary) // max(len(held_out), 1), ctx)
    most = min(most, max_tokens or most)
    with (
        Evaluator(model.gguf.path, options, held_out, n_ctx=ctx, max_tokens=most) as evaluator,
        progress(2 * evaluator.tokens, "measuring", "tok") as done,
    ):
        evaluator.progress = done
        return evaluator.model(result).as_json()


def check_loads(path: Path, options: RunOptions) -> None:
    """Load a model in llama.cpp and compute a few tokens.

    Raises:
        LlamaError: it does not load, or cannot compute.
    """
    with LlamaModel(path, options) as llama, LlamaContext(llama, n_ctx=64) as context:
        context.decode([Tokens(0, 0, list(range(min(8, llama.n_vocab))), "last")])


def _length(model: MoeModel, key: str) -> int:
    """Elements of an array in the metadata."""
    pair = model.gguf.keys.get(key)
    if pair is None:
        return 0
    return int.from_bytes(model.gguf.files[0].read(pair.value + 4, 8), "little")


def finish(
    model: MoeModel,
    rewrite: Rewrite,
    statistics: Statistics | None,
    paths: Paths,
    *,
    compared: int = 0,
    evaluation: Mapping[str, Any] | None = None,
) -> Pruned:
    """Write the drop metadata beside the result."""
    with GgufModel(rewrite.files[0].path) as result:
        metadata = drop_metadata.drop_metadata(model, result, rewrite.plan, statistics, evaluation)
    drop_metadata.save(paths.metadata, metadata)
    return Pruned(rewrite, statistics, metadata, compared, evaluation)


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Which text calibration and verification run on."""

    calibration: tuple[Source, ...]
    held_out: tuple[Source, ...]


def choose_text(
    named: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]] = (),
    *,
    share: float = 0.1,
) -> TextChoice:
    """The built-in text, or the user's with a part held out.

    A user's text is measured on what calibration does not see: the last tenth of each domain's
    documents, or of its one document's lines.

    Args:
        named: of --text; none for the built-in prompts.
        held_out: of --eval-text; none for the built-in answers, or a part of the user's text.
        share: of the text to hold out.
    """
    sources = load_or_builtin(named, CALIBRATION)
    if held_out or not named:
        measured = load_or_builtin(held_out, HELD_OUT)
        return TextChoice(sources, measured)
    parts = [_hold_out(source, share) for source in sources]
    held = tuple(part[1] for part in parts if part[1].documents)
    if not held:
        raise InputError("there is no text left to hold out", remedy="Give more text.")
    return TextChoice(tuple(part[0] for part in parts), held)


def _hold_out(source: Source, share: float) -> tuple[Source, Source]:
    documents = source.documents
    if len(documents) > 1:
        at = max(1, int(len(documents) * (1 - share)))
        kept, held = documents[:at], documents[at:]
    elif documents[0].text:
        lines = documents[0].text.splitlines(keepends=True)
        at = max(1, int(len(lines) * (1 - share)))
        where = documents[0].where
        kept = (Document(text="".join(lines[:at]), where=where),)
        rest = "".join(lines[at:])
        held = (Document(text=rest, where=where),) if rest.strip() else ()
    else:
        kept, held = documents, ()
    return Source(source.domain, kept), Source(source.domain, held)
