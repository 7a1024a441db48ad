"""Running the model over the calibration text again, with one more observer."""

from __future__ import annotations

from collections.abc import Sequence

from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.request import Resources
from ggprune.errors import InputError
from ggprune.llama.callback import Observer
from ggprune.text.builtin import CALIBRATION, builtin_texts
from ggprune.text.documents import Source


def calibrate_again(
    what: str,
    statistics: Statistics,
    resources: Resources,
    observer: Observer,
    sources: Sequence[Source] | None = None,
) -> Statistics:
    """Calibrate as the statistics say they were made.

    Args:
        what: needs it, for messages: ``method=easy-ep``.
        statistics: of the first run.
        resources: with the model, and the text it was calibrated on.
        observer: watches this run.
        sources: part of that text; None for all.

    Raises:
        InputError: there is no model.
    """
    model, options = resources.runnable_for(what)
    settings = Settings.from_recorded(statistics.settings)
    text = sources if sources is not None else text_of(resources)
    return Run(model, text, settings, options, resources.progress, observers=(observer,)).run()


def text_of(resources: Resources) -> tuple[Source, ...]:
    """Return the text that the statistics were gathered on."""
    return resources.sources or builtin_texts(CALIBRATION)


def text_of_domain(resources: Resources, name: str) -> list[Source]:
    """Return the text of one domain.

    Raises:
        InputError: none is given for it.
    """
    found = [source for source in text_of(resources) if source.domain == name]
    if not found:
        raise InputError(
            f"the statistics have a domain {name!r} that no text is given for",
            remedy=f"Give the text they were gathered on: text={name}=PATH",
        )
    return found
