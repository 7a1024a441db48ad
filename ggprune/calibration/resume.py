"""Keeping what a run gathered when it ends before its time, and going on from there."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.statistics import Statistics
from ggprune.errors import (
    GgpruneError,
    Interrupted,
    MismatchError,
    NonFiniteError,
    OutputError,
)
from ggprune.llama.library import library
from ggprune.model import Identity

log = logging.getLogger(__name__)


def partial_path(output: Path) -> Path:
    """Return where a run keeps what it gathered until ``output`` is complete."""
    return output.with_name(output.name + ".partial")


class Keeper:
    """Saves the checkpoint of a run: now and then, and when it ends however it ends.

    Args:
        path: of the file; None keeps nothing.
        seconds: from one save to the next.
    """

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path = path
        self._seconds = seconds
        self._saved_at = time.monotonic()

    def save_if_due(self, checkpoint: Checkpoint) -> None:
        """Save if it is time to."""
        if time.monotonic() - self._saved_at > self._seconds:
            self._save(checkpoint)

    @contextmanager
    def keeping(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Save when the block ends with an error, Ctrl-C, or llama.cpp ending the process.

        Raises:
            Interrupted: in place of a KeyboardInterrupt.
        """
        self._saved_at = time.monotonic()
        with library().on_abort(lambda: self._rescue(checkpoint)):
            try:
                yield
            except KeyboardInterrupt:
                remedy = self._rescue(checkpoint)
                what = "interrupted" if remedy else "interrupted: nothing was kept"
                raise Interrupted(what, remedy=remedy) from None
            except NonFiniteError:
                # Going on would end in the same place.
                raise
            except GgpruneError as error:
                error.remedy = f"{error.remedy} {self._rescue(checkpoint)}".strip()
                raise

    def _rescue(self, checkpoint: Checkpoint) -> str:
        """Save, and say where."""
        if not self._save(checkpoint):
            return ""
        done = checkpoint.tokens_done
        what = f"What was gathered ({done:,} tokens)" if done else "What was prepared"
        return f"{what} is kept in {self.path}; the same command continues from there."

    def _save(self, checkpoint: Checkpoint) -> bool:
        """Save, or say why not: a full disk now need not be one at the end."""
        if self.path is None:
            return False
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self.path)
        except OutputError as error:
            log.warning("what was gathered so far cannot be kept: %s", error.message)
            return False
        return True


def check_same_run(
    statistics: Statistics,
    identity: Identity,
    settings: Mapping[str, str | int],
    hashes: Mapping[str, str],
    name: str,
) -> None:
    """Compare statistics with what a run would gather.

    Args:
        statistics: finished ones, or those of a checkpoint.
        identity: of the run's model.
        settings: recorded ones of the run.
        hashes: of its texts, by domain.
        name: of the statistics, in messages.

    Raises:
        MismatchError: they are of another model, text or setting; names what differs.
    """
    statistics.identity.check_same(identity, name, "this model")
    remedy = f"Use the same options to continue, or remove {name} to start again."
    mine = statistics.settings
    for key in (*mine, *(key for key in settings if key not in mine)):
        if settings.get(key) != mine.get(key):
            raise MismatchError(
                f"{name}: was made with {key} {mine.get(key, 'not set')}, "
                f"now it is {settings.get(key, 'not set')}",
                remedy=remedy,
            )
    known = {domain.name: domain.sha256 for domain in statistics.domains}
    different = sorted({text for text, _ in set(known.items()) ^ set(hashes.items())})
    if different:
        raise MismatchError(f"{name}: the text of {different[0]!r} differs", remedy=remedy)
