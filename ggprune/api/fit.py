"""``fit``: the best file of a size, found, written, verified and measured."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.choosing.count import notes_on
from ggprune.errors import InputError, OutputError
from ggprune.fitting.fit import Fit, best_file, too_small
from ggprune.fitting.hint import answers, remember, work_folder
from ggprune.fitting.job import Job
from ggprune.fitting.opening import open_study
from ggprune.fitting.space import Space
from ggprune.fitting.study import check_predicts
from ggprune.fitting.writing import Written, write
from ggprune.llama import memory
from ggprune.model import MoeModel, open_model
from ggprune.plan import Plan
from ggprune.quantization.imatrix import Imatrix
from ggprune.util import human_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of it.

    Attributes:
        answer: see Fit; None if the source itself fits, and nothing was measured.
        path: the file; None if none was to be written.
        numbers: what ``ggprune fit --json`` prints.
    """

    answer: Fit | None
    path: Path | None
    written: Written | None
    numbers: dict[str, Any]


def fit(
    job: Job,
    output: Path | None = None,
    *,
    target_size: int | None = None,
    fit_vram: int | None = None,
    context: int = 4096,
    kv_type: str = "f16",
    parallel: int = 1,
    beside: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Fitted:
    """Find the best file of a size, write it, verify and measure it.

    Where the source itself fits, that is the answer, unless types or ``beside`` are asked for.

    Args:
        output: the file; None for ``<stem>-fit-<size>.gguf`` here.
        target_size: bytes of the file, at most.
        fit_vram: or bytes of memory for weights, KV cache and compute buffers.
        context, kv_type, parallel: for ``fit_vram``.
        beside: judge the source with only so many experts too.
        dry_run: only find out what it would be.

    Raises:
        InputError: no limit or two, or nothing fits.
        GgpruneError: of the stage that failed.
    """
    if (target_size is None) == (fit_vram is None):
        raise InputError("`target_size` and `fit_vram`: give one of them")
    with open_model(job.model) as model:
        limit = target_size or _limit_of(model, fit_vram or 0, context, kv_type, parallel)
        if model.gguf.size <= limit and not job.options.types and beside is None:
            return _as_it_is(model, limit)
        asked = f"target_size={limit}" if fit_vram is None else f"fit_vram={fit_vram}"
        _check_smallest(job, model, limit, asked)
        target = output or Path(f"{model.gguf.stem}-fit-{limit // 1_000_000}M.gguf")
    if target.exists() and not force and not dry_run:
        raise OutputError(f"{target}: exists", remedy="Pass force=True to replace it.")
    with open_study(job) as study:
        answer = best_file(study, limit, beside)
        for note in notes_on(Plan(answer.best.mix.keep, {}), study.source.counts):
            log.info(note)
        known = answer.as_json(study)
        names = ("size_bytes", "keep", "experts", "kld_mean", "kld_se")
        remember(study.work, {name: known[name] for name in names})
        if dry_run:
            return Fitted(answer, None, None, known)
        written = write(study, answer.best.mix, target, force=force)
        numbers = known | {
            "file": str(target),
            "compared_bytes": written.compared,
            "decode_tokens_per_second": written.speed,
        }
        return Fitted(answer, target, written, numbers)


def words_on(fitted: Fitted) -> list[str]:
    """Write what the terminal says: the file, and what it beat."""
    answer = fitted.answer
    if answer is None:
        return [fitted.numbers["note"]]
    best = answer.best
    score = fitted.written.score if fitted.written else best.judged
    assert score is not None
    lines = [
        f"{best.name}",
        f"{human_size(best.size)} of {human_size(answer.limit)}, KL divergence "
        f"{score.kld_mean:.5f} ± {score.kld_se:.5f} (99 %: {score.kld_p99:.4f}) on "
        f"{score.tokens:,} unseen tokens; predicted {best.predicted:.5f} on the search text",
    ]
    rivals = [("all experts in one type", answer.whole), ("the best count in one", answer.single)]
    said = {best.mix.key}
    for what, rival in (*rivals, *(("pruning alone", other) for other in answer.others)):
        if rival is not None and rival.mix.key not in said and rival.judged is not None:
            said.add(rival.mix.key)
            times = rival.judged.kld_mean / max(score.kld_mean, 1e-9)
            lines.append(
                f"beats {what}: {rival.name}, {human_size(rival.size)}, "
                f"{rival.judged.kld_mean:.5f} ({times:.1f} times as much)"
            )
    if fitted.written:
        lines.append(
            f"{human_size(fitted.written.compared)} equal what was measured; it loads and decodes "
            f"{fitted.written.speed:.0f} tokens a second"
        )
    if answer.note:
        lines.append(answer.note)
    experts = best.mix.keep
    lines.append(
        "do not prune for this size: the whole model with these types is better"
        if experts == answer.experts
        else f"dropping experts pays at this size: {experts} of {answer.experts} stay"
    )
    return lines


def _as_it_is(model: MoeModel, limit: int) -> Fitted:
    note = (
        f"{model.gguf.path} itself fits: {human_size(model.gguf.size)} of {human_size(limit)}. "
        "Nothing is lost by keeping it, so nothing was measured or written"
    )
    numbers = {
        "size_bytes": model.gguf.size,
        "keep": model.experts,
        "experts": model.experts,
        "experts_used": model.experts_used,
        "types": {},
        **dict.fromkeys(("kld_mean", "kld_se", "kld_p99", "kld_predicted"), 0.0),
        **dict.fromkeys(("tokens", "passes"), 0),
        "alternatives": [],
        "file": str(model.gguf.path),
        "note": note,
    }
    return Fitted(None, None, None, numbers)


def _check_smallest(job: Job, model: MoeModel, limit: int, asked: str) -> None:
    """Refuse a size that the header shows to be too small.

    Before calibration a few notes in the header, and matrices that the importance matrix will
    lack, are not known: files are taken to be smaller, and the size that is named to be larger.
    """
    check_predicts(model)
    work = job.work or work_folder(model.gguf.path)
    matrix = job.imatrix or work / "imatrix.gguf"
    covered = {t.name for t in model.gguf.tensors if t.name.startswith("blk.")}
    if matrix.exists():
        covered &= set(Imatrix.load(matrix).entries)
    wanted = [kind.upper() for kind in job.options.types] or None
    with tempfile.TemporaryDirectory() as folder:
        space = Space(
            model, Path(folder), groups=job.options.groups, wanted=wanted, covered=covered
        )
        keep = model.counts.least
        size = space.size(space.smallest(keep))
    if size <= limit:
        return
    enough = size + size // 1000 + 4096
    known = [a["kld_mean"] for a in answers(work) if size <= a["size_bytes"] <= enough]
    raise too_small(model, asked, keep, enough, known[-1] if known else None)


def _limit_of(model: MoeModel, vram: int, context: int, kv_type: str, parallel: int) -> int:
    """Bytes of a file that leave room for cache and compute buffers."""
    use = memory.Use(context=context, kv_type=kv_type, parallel=parallel)
    planned = memory.planned(model, use)
    limit = vram - planned.cache - planned.compute
    if limit <= 0:
        raise InputError(
            f"fit_vram={vram}: cache and buffers alone take "
            f"{human_size(planned.cache + planned.compute)} with context={context}",
            remedy="Ask for less context, or a smaller type of the cache.",
        )
    return limit
