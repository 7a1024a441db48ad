"""What the functions of the API accept: texts by domain, records by their fields, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.request import Budget, Request
from ggprune.errors import InputError
from ggprune.gguf_file.header import MAGIC
from ggprune.plan import Plan

#: Texts by domain: a mapping, or pairs where a domain has several. A path is a file, a folder,
#: ``hf://datasets/…`` or ``@recipe``, see docs/calibration.md.
Text = Mapping[str, str | Path] | Iterable[tuple[str, str | Path]]

_BUDGET = {field.name for field in fields(Budget)}


def pairs_of(text: Text) -> list[tuple[str, str]]:
    """Return texts as (domain, path)."""
    pairs = text.items() if isinstance(text, Mapping) else text
    return [(domain, str(path)) for domain, path in pairs]


def datasets_of(named: Sequence[tuple[str, str]]) -> list[str]:
    """Name texts as an importance matrix does."""
    return [path for _, path in named] or ["ggprune's built-in calibration prompts"]


def plan_of(plan: Plan | str | Path) -> tuple[Plan, str]:
    """Return a plan, read if it is a path, and its name in messages."""
    if isinstance(plan, Plan):
        return plan, "the plan"
    try:
        return Plan.load(Path(plan)), str(plan)
    except InputError:
        if not is_gguf(plan):
            raise
        raise InputError(
            f"{plan}: is a GGUF file, and a plan is expected",
            remedy="The model comes first, then the plan.",
        ) from None


def is_gguf(path: str | Path) -> bool:
    """Whether there is a file that begins as GGUF files do."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def statistics_of(statistics: Statistics | str | Path) -> tuple[Statistics, str]:
    """Return statistics, read if they are a path, and their name in messages."""
    if isinstance(statistics, Statistics):
        return statistics, "the statistics"
    return Statistics.load(Path(statistics)), str(statistics)


def request_of(request: Request | None, asked: Mapping[str, Any]) -> Request:
    """Make a request of fields of both records; one budget must be among them.

    Raises:
        InputError: there is no budget, or several.
        TypeError: a request and fields, or fields that neither record has.
    """
    if request is None:
        budget = {name: value for name, value in asked.items() if name in _BUDGET}
        rest = {name: value for name, value in asked.items() if name not in _BUDGET}
        request = Request(budget=Budget(**budget), **rest)
    elif asked:
        raise TypeError(f"request and {', '.join(asked)}: give one of them")
    _ = request.budget.rule
    return request
