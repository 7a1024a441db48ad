"""Which text is calibrated on, and which is kept back to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggprune.errors import InputError
from ggprune.text.builtin import CALIBRATION, HELD_OUT
from ggprune.text.documents import Document, Source
from ggprune.text.load import load_or_builtin


@dataclass(frozen=True, slots=True)
class TextChoice:
    """Which text calibration, verification, and methods that measure plans run on: disjoint parts.

    ``search`` is empty for the built-in search text.
    """

    calibration: tuple[Source, ...]
    held_out: tuple[Source, ...]
    search: tuple[Source, ...] = ()


def choose_text(
    named: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]] = (),
    *,
    search_share: float = 0.0,
) -> TextChoice:
    """Choose the built-in text, or the user's with a part held out.

    A user's text is measured on what calibration does not see: the last tenth of each domain's
    documents, or of its one document's lines (or words, if it is one line). What plans are
    compared on comes before it.

    Args:
        named: what to calibrate on, as (domain, path); none for the built-in prompts.
        held_out: what to measure on; none for the built-in answers, or a part of ``named``.
        search_share: of what is left of the text, for comparing plans.

    Raises:
        InputError: a text cannot be used, or there is nothing to hold out.
    """
    sources = load_or_builtin(named, CALIBRATION)
    if held_out or not named:
        choice = TextChoice(sources, load_or_builtin(held_out, HELD_OUT))
    else:
        choice = hold_out(sources)
    if not named or not search_share:
        return choice
    parts = hold_out(choice.calibration, search_share)
    return TextChoice(parts.calibration, choice.held_out, parts.held_out)


def hold_out(sources: Sequence[Source], share: float = 0.1) -> TextChoice:
    """Keep the end of every text back; InputError if that leaves nothing."""
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
