"""Fitting as a user asks for it: files, texts and options by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggprune.calibration.settings import Settings
from ggprune.choosing.methods import find
from ggprune.fitting import kinds
from ggprune.fitting.calibrated import check_files
from ggprune.fitting.options import FitOptions
from ggprune.llama.options import RunOptions
from ggprune.text.held_out import Texts, choose_texts
from ggprune.types import Progress, no_progress

Text = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to fit, and on what.

    Attributes:
        model: the best file there is of the model: BF16, F16, Q8_0.
        work: folder for what is kept between runs; None for ``<stem>.fit`` here.
        reference: another quantization of the same model, to run in place of ``model``.
        text, search_text, eval_text: (domain, path) pairs to calibrate on, choose on, and judge on.
        statistics, imatrix: of an earlier calibration.
        options, run, settings: see Study.
    """

    model: Path
    work: Path | None = None
    reference: Path | None = None
    text: Text = ()
    search_text: Text = ()
    eval_text: Text = ()
    statistics: Path | None = None
    imatrix: Path | None = None
    options: FitOptions = field(default_factory=FitOptions)
    run: RunOptions = field(default_factory=RunOptions)
    settings: Settings | None = None
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        """Raise InputError for what no calibration is needed to refuse."""
        kinds.check(self.options.types)
        if self.options.method is not None:
            find(self.options.method)
        check_files(self.statistics, self.imatrix)

    def texts(self) -> Texts:
        """Load the texts; of one, the end is kept back twice."""
        return choose_texts(self.text, self.eval_text, self.search_text, searches=True)
