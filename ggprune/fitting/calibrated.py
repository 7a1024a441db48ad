"""Statistics and importance matrix of one calibration, kept in a folder."""

from __future__ import annotations

from pathlib import Path

from ggprune.calibration.run import Run
from ggprune.calibration.statistics import Statistics
from ggprune.errors import InputError
from ggprune.quantization.importance import ImatrixObserver


def check_files(statistics: Path | None, imatrix: Path | None) -> None:
    """Raise InputError if only one of the files of a calibration is given."""
    if (statistics is None) != (imatrix is None):
        given, missing = ("statistics", "imatrix") if statistics else ("imatrix", "statistics")
        raise InputError(f"`{given}`: give `{missing}` of the same calibration too, or neither")


def calibrated(
    run: Run, folder: Path, statistics: Path | None, imatrix: Path | None
) -> tuple[Statistics, Path]:
    """Take what is given, or what an earlier run left; else calibrate, both in one pass.

    Args:
        run: with an ImatrixObserver as its only observer.
        statistics, imatrix: files to use instead, of one calibration.

    Raises:
        InputError: only one of the files is given.
        MismatchError: the statistics are of another model.
    """
    if statistics and imatrix:
        found = Statistics.load(statistics)
        path = str(run.model.gguf.path)
        found.identity.check_same(run.model.identity(), str(statistics), path)
        return found, imatrix
    check_files(statistics, imatrix)
    ours = folder / "stats.gguf", folder / "imatrix.gguf"
    if all(path.exists() for path in ours):
        known = Statistics.load(ours[0])
        if not run.difference(known):
            return known, ours[1]
    found = run.run_into(ours[0], force=True)
    (observer,) = run.observers
    assert isinstance(observer, ImatrixObserver)
    names, ctx = [source.domain for source in run.sources], run.settings.ctx
    chunks = max(sum(domain.tokens for domain in found.domains) // ctx, 1)
    observer.save(ours[1], names, chunks, ctx)
    return found, ours[1]
