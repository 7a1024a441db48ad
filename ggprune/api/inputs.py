"""What the functions of the API accept: texts by domain, records by their fields, files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.request import Budget, Request
from ggprune.errors import InputError
from ggprune.fields import check_known
from ggprune.gguf_file import is_gguf
from ggprune.plan import Plan

#: Texts by domain: a mapping, or pairs where a domain has several. A path is a file, a folder,
#: ``hf://datasets/…`` or ``@recipe``, see docs/calibration.md.
Text = Mapping[str, str | Path] | Iterable[tuple[str, str | Path]]

_BUDGET = [field.name for field in fields(Budget)]
_REQUEST = [field.name for field in fields(Request) if field.name != "budget"]


def pairs_of(text: Text, name: str = "text") -> list[tuple[str, str]]:
    """Return texts as (domain, path); ``name`` is the argument, for messages.

    Raises:
        InputError: a domain's name is missing.
    """
    if isinstance(text, str | Path):
        text = [text]  # type: ignore[list-item]
    return [_pair(each, name) for each in (text.items() if isinstance(text, Mapping) else text)]


def _pair(given: Any, name: str) -> tuple[str, str]:
    if isinstance(given, str) and given.startswith("@"):
        return given, given  # A recipe brings names of its own.
    if (
        isinstance(given, tuple | list)
        and len(given) == 2
        and isinstance(given[0], str)
        and isinstance(given[1], str | Path)
    ):
        return given[0], str(given[1])
    path = str(given) if isinstance(given, str | Path) else "my_project.txt"
    raise InputError(
        f"{name}: {given!r:.60} has no name of a domain",
        remedy=f"Write {name}={{{Path(path).stem!r}: {path!r}}}.",
    )


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


def statistics_of(statistics: Statistics | str | Path) -> tuple[Statistics, str]:
    """Return statistics, read if they are a path, and their name in messages."""
    if isinstance(statistics, Statistics):
        return statistics, "the statistics"
    return Statistics.load(Path(statistics)), str(statistics)


def request_of(
    request: Request | None, asked: Mapping[str, Any], function: Callable[..., Any]
) -> Request:
    """Make a request of fields of both records; one budget must be among them.

    ``function`` is the one that was called with them.

    Raises:
        InputError: there is no budget, or several.
        TypeError: a request and fields, or fields that neither record has.
    """
    check_known(function, asked, [*inspect.signature(function).parameters, *_BUDGET, *_REQUEST])
    if request is None:
        budget = {name: value for name, value in asked.items() if name in _BUDGET}
        rest = {name: value for name, value in asked.items() if name not in _BUDGET}
        request = Request(budget=Budget(**budget), **rest)
    elif asked:
        raise TypeError(f"request and {', '.join(asked)}: give one of them")
    _ = request.budget.rule
    return request
