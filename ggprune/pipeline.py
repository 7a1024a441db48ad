"""The whole job in stages: check, calibrate, choose, write, verify. The command line adds words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggprune import drop_metadata, texts
from ggprune.calibrate import ProgressFactory, Run, Settings
from ggprune.errors import InputError, LlamaError, OutputError
from ggprune.gguf_file import GgufModel, check_targets, write_files
from ggprune.llama.runtime import LlamaContext, LlamaModel, RunOptions, Tokens
from ggprune.model import MoeModel
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import Rewrite, check_result, plan_rewrite, verify_bytes
from ggprune.statistics import Statistics

#: Chosen so that an answer is finite only if all layers compute: any text would do.
_PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True, slots=True)
class Paths:
    """Names of everything a run writes, from the name of the result."""

    result: Path

    @property
    def statistics(self) -> Path:
        """What calibration observed."""
        return self._beside(".stats.gguf")

    @property
    def partial(self) -> Path:
        """What an interrupted calibration observed."""
        return self._beside(".stats.gguf.partial")

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
    mtp: str = "prune",
    split_max_size: int | None = None,
    others: Sequence[Path] = (),
    force: bool = False,
) -> Rewrite:
    """Find out before any long work whether the result can be written, and how large it is.

    The size does not depend on which experts stay, so any plan tells.

    Args:
        model: the source.
        keep: experts a layer.
        target: name of the result.
        mtp, split_max_size: see rewrite.plan_rewrite.
        others: further files that will be written.
        force: allow replacing files.

    Raises:
        InputError: an impossible number.
        OutputError: see gguf_file.check_targets.
    """
    model.require_prunable()
    model.counts.check(keep)
    size = model.experts // model.groups
    first = tuple(e for e in range(model.experts) if e % size < keep // model.groups)
    plan = Plan(keep, {layer: LayerPlan(first) for layer in model.moe_layers})
    rewrite = plan_rewrite(model, plan, target, mtp=mtp, split_max_size=split_max_size)
    paths = [file.path for file in rewrite.files]
    check_targets(paths, rewrite.size, source=model.gguf, force=force)
    for path in others:
        if path.exists() and not force:
            raise OutputError(
                f"{path}: exists", remedy="Use --force to replace it, or -o for another name."
            )
    return rewrite


def gather(
    model: MoeModel,
    sources: Sequence[texts.Source],
    settings: Settings,
    options: RunOptions,
    paths: Paths,
    progress: ProgressFactory,
    say: Callable[[str], object] = lambda _: None,
) -> Statistics:
    """Calibrate, and keep the statistics beside the result.

    Raises:
        See calibrate.Run.run.
    """
    run = Run(model, sources, settings, options, progress, partial=paths.partial, say=say)
    statistics = run.run()
    statistics.save(paths.statistics)
    paths.partial.unlink(missing_ok=True)
    return statistics


def write(
    model: MoeModel,
    rewrite: Rewrite,
    progress: ProgressFactory,
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


def check_loads(path: Path, options: RunOptions) -> None:
    """Load a model in llama.cpp and compute a few tokens.

    Raises:
        LlamaError: it does not load, or its logits are not finite.
    """
    import numpy as np

    with LlamaModel(path, options) as model:
        ids = model.tokenize(_PROBE_TEXT) or [0, 1, 2, 3]
        with LlamaContext(model, n_ctx=max(64, len(ids))) as context:
            context.decode([Tokens(0, 0, ids)])
            if not np.isfinite(context.all_logits(len(ids))).all():
                raise LlamaError(f"{path}: computes logits that are not finite")


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
        metadata = drop_metadata.drop_metadata(
            model, result, rewrite.plan, statistics, evaluation
        )
    drop_metadata.save(paths.metadata, metadata)
    return Pruned(rewrite, statistics, metadata, compared, evaluation)


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Which text calibration and verification run on."""

    calibration: tuple[texts.Source, ...]
    held_out: tuple[texts.Source, ...]
    #: Named in the report: "built-in" or the user's.
    name: str = field(default="built-in")


def choose_text(named: Sequence[tuple[str, str]], *, share: float = 0.1) -> TextChoice:
    """The built-in text, or the user's with a part held out.

    A user's text is measured on what calibration does not see: the last tenth of each domain's
    documents, or of its one document's lines.

    Args:
        named: of --text; none for the built-in prompts.
        share: of the text to hold out.
    """
    if not named:
        return TextChoice(texts.builtin(texts.CALIBRATION), texts.builtin(texts.HELD_OUT))
    sources = texts.load(named)
    parts = [_hold_out(source, share) for source in sources]
    held = tuple(part[1] for part in parts if part[1].documents)
    if not held:
        raise InputError("there is no text left to hold out", remedy="Give more text.")
    return TextChoice(tuple(part[0] for part in parts), held, "yours")


def _hold_out(source: texts.Source, share: float) -> tuple[texts.Source, texts.Source]:
    documents = source.documents
    if len(documents) > 1:
        at = max(1, int(len(documents) * (1 - share)))
        kept, held = documents[:at], documents[at:]
    elif documents[0].text:
        lines = documents[0].text.splitlines(keepends=True)
        at = max(1, int(len(lines) * (1 - share)))
        where = documents[0].where
        kept = (texts.Document(text="".join(lines[:at]), where=where),)
        rest = "".join(lines[at:])
        held = (texts.Document(text=rest, where=where),) if rest.strip() else ()
    else:
        kept, held = documents, ()
    return texts.Source(source.domain, kept), texts.Source(source.domain, held)
