"""Which text is calibrated on, and which is kept back to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggprune.errors import InputError
from ggprune.text.builtin import CALIBRATION, HELD_OUT, SEARCH
from ggprune.text.documents import Document, Source
from ggprune.text.load import load_or_builtin

#: Share of the user's text that is kept back to judge on, and of the rest to compare plans on.
_HELD_OUT = 0.1
_SEARCH = 0.2


@dataclass(frozen=True, slots=True)
class Texts:
    """Three texts that share nothing: to calibrate on, to choose on, and to judge on."""

    calibration: tuple[Source, ...]
    search: tuple[Source, ...]
    held_out: tuple[Source, ...]


def choose_texts(
    named: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]] = (),
    search: Sequence[tuple[str, str]] = (),
    *,
    searches: bool = False,
) -> Texts:
    """Choose the built-in texts, or the user's with parts held out.

    A user's text is measured on what calibration does not see: the last tenth of each domain's
    documents, or of its one document's lines (or words, if it is one line). What plans are
    compared on comes before it.

    Args:
        named: what to calibrate on, as (domain, path); none for the built-in prompts.
        held_out: what to measure on; none for the built-in answers, or a part of ``named``.
        search: what plans are compared on; none for a part of ``named``, or the built-in text.
        searches: whether plans are compared at all: otherwise nothing is set aside for that.

    Raises:
        InputError: a text cannot be used, or there is nothing to hold out.
    """
    calibration = load_or_builtin(named, CALIBRATION)
    if named and not held_out:
        calibration, judged = _hold_out(calibration, _HELD_OUT)
    else:
        judged = load_or_builtin(held_out, HELD_OUT)
    if named and searches and not search:
        calibration, compared = _hold_out(calibration, _SEARCH)
    else:
        compared = load_or_builtin(search, SEARCH)
    return Texts(calibration, compared, judged)


def _hold_out(
    sources: Sequence[Source], share: float
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Keep the end of every text back; InputError if that leaves nothing."""
    parts = [_halves(source, share) for source in sources]
    held = tuple(part[1] for part in parts if part[1].documents)
    if not held:
        raise InputError("there is no text left to hold out", remedy="Give more text.")
    return tuple(part[0] for part in parts), held


def _halves(source: Source, share: float) -> tuple[Source, Source]:
    documents = source.documents
    if len(documents) > 1:
        at = max(1, int(len(documents) * (1 - share)))
        kept, held = documents[:at], documents[at:]
    elif documents[0].text:
        text, where = documents[0].text, documents[0].where
        lines = text.splitlines(keepends=True)
        end = len("".join(lines[: max(1, int(len(lines) * (1 - share)))]))
        if len(lines) == 1:
            end = text.rfind(" ", 0, int(len(text) * (1 - share))) + 1 or end
        kept = (Document(text=text[:end], where=where),)
        rest = text[end:]
        held = (Document(text=rest, where=where),) if rest.strip() else ()
    else:
        kept, held = documents, ()
    return Source(source.domain, kept), Source(source.domain, held)
