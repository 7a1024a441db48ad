"""Statistics gathered apart, put together: exactly, in whatever order the parts are named."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import FIELDS, WEIGHT, Domain, ExpertSums, Statistics
from ggprune.errors import InputError, MismatchError
from ggprune.model import Identity

#: The setting that says which parts of a run a statistics file holds: "3/16" or "1,3-5/16".
SHARD = "shard"

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class _Part:
    """A statistics file: what it is called, and which shards of its run it holds."""

    name: str
    statistics: Statistics
    shards: frozenset[int]
    count: int

    @property
    def run(self) -> tuple[tuple[str, str], ...]:
        """What tells that shards are of one run: the texts."""
        return tuple(sorted((d.name, d.sha256) for d in self.statistics.domains))

    @property
    def settings(self) -> dict[str, str | int]:
        return {k: v for k, v in self.statistics.settings.items() if k != SHARD}


def merge(parts: Iterable[tuple[str, Statistics]]) -> Statistics:
    """Add statistics of one model gathered apart.

    Parts are shards of one run (``calibrate --shard 3/16``), or runs over different texts. Every
    number is the correctly rounded sum of its parts, so their order does not matter; shards that
    are all there give the settings of a run in one piece.

    Args:
        parts: with what each is called in messages.

    Raises:
        InputError: there are none, or two hold the same text.
        MismatchError: they are of different models, or of one run with different settings.
    """
    named = [_part(name, statistics) for name, statistics in parts]
    if not named:
        raise InputError("nothing to merge", remedy="Name at least one statistics file.")
    _check(named)
    first = named[0].statistics
    return Statistics(
        _named_identity(named),
        first.layers,
        _domains(named),
        _settings(named),
    )


def missing_shards(statistics: Statistics) -> list[int]:
    """Shards of its run that a merged file does not hold yet."""
    part = _part("", statistics)
    return sorted(set(range(1, part.count + 1)) - part.shards)


def _part(name: str, statistics: Statistics) -> _Part:
    text = str(statistics.settings.get(SHARD, "1/1"))
    numbers, _, count = text.partition("/")
    found: set[int] = set()
    for piece in numbers.split(","):
        match = _RANGE.fullmatch(piece)
        if match is None or not count.isdigit():
            raise InputError(f"{name}: its shard is {text!r}, expected for instance 3/16")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return _Part(name, statistics, frozenset(found), int(count))


def _check(parts: Sequence[_Part]) -> None:
    """Refuse parts that do not belong together, by name."""
    first = parts[0]
    for index, part in enumerate(parts):
        first.statistics.identity.check_same(part.statistics.identity, first.name, part.name)
        if part.statistics.layers != first.statistics.layers:
            raise MismatchError(f"{first.name} and {part.name} cover different layers")
        _check_setting(first, part, WEIGHT, "Give tokens the same weights in both.")
        for other in parts[:index]:
            _check_pair(other, part)


def _check_pair(one: _Part, other: _Part) -> None:
    common = _texts(one) & _texts(other)
    if not common:
        return
    names = f"{one.name} and {other.name}"
    if one.run != other.run:
        raise InputError(
            f"{names} both hold the text of {sorted(common)[0][0]!r}: it would count twice",
            remedy="Leave one of them out.",
        )
    if one.count != other.count:
        raise MismatchError(
            f"{names} are parts of different divisions: of {one.count} and of {other.count}",
            remedy="Merge shards of one run only.",
        )
    for key in sorted({*one.settings, *other.settings}):
        _check_setting(one, other, key, "Make all shards of a run with the same options.")
    if twice := one.shards & other.shards:
        what = f"shard {min(twice)}/{one.count}" if one.count > 1 else "the same text"
        raise InputError(
            f"{names} both hold {what}: it would count twice", remedy="Leave one of them out."
        )


def _check_setting(one: _Part, other: _Part, key: str, remedy: str) -> None:
    mine, theirs = (part.settings.get(key, "not set") for part in (one, other))
    if mine != theirs:
        raise MismatchError(
            f"{one.name} and {other.name} were made with {key} {mine} and {theirs}", remedy=remedy
        )


def _texts(part: _Part) -> set[tuple[str, str]]:
    """Texts by domain; a merged domain has several, joined with +."""
    return {
        (domain.name, sha256)
        for domain in part.statistics.domains
        for sha256 in domain.sha256.split("+")
    }


def _named_identity(parts: Sequence[_Part]) -> Identity:
    return min((part.statistics.identity for part in parts), key=lambda each: each.name)


def _domains(parts: Sequence[_Part]) -> tuple[Domain, ...]:
    """Merge domains, in the order of the first part that has each (by shard, then by text)."""
    ordered = sorted(parts, key=lambda part: (part.run, sorted(part.shards)))
    by_name: dict[str, list[Domain]] = {}
    for part in ordered:
        for domain in part.statistics.domains:
            by_name.setdefault(domain.name, []).append(domain)
    return tuple(_merged(domains) for domains in by_name.values())


def _merged(domains: Sequence[Domain]) -> Domain:
    if len(domains) == 1:
        return domains[0]
    hashes = sorted({sha256 for domain in domains for sha256 in domain.sha256.split("+")})
    arrays = {
        name: _total(name, [getattr(domain.sums, name) for domain in domains]) for name in FIELDS
    }
    return Domain(
        domains[0].name,
        sum(domain.tokens for domain in domains),
        "+".join(hashes),
        ExpertSums(**arrays),
        _joined([domain.shares for domain in domains if domain.tokens]),
    )


def _joined(parts: Sequence[Shares | None]) -> Shares | None:
    """Of all parts, if all have them."""
    known = [part for part in parts if part is not None]
    return Shares.joined(known) if known and len(known) == len(parts) else None


def _total(name: str, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Sum (or maximum) of arrays, rounded once: math.fsum is exact whatever the order."""
    stacked = np.stack(arrays)
    if name.endswith("_max"):
        return np.asarray(stacked.max(0))
    if stacked.dtype.kind == "i":
        return np.asarray(stacked.sum(0))
    columns = stacked.reshape(len(arrays), -1).T.tolist()
    return np.array([math.fsum(column) for column in columns]).reshape(stacked.shape[1:])


def _settings(parts: Sequence[_Part]) -> Mapping[str, str | int]:
    keys = sorted({key for part in parts for key in part.settings})
    merged: dict[str, str | int] = {}
    for key in keys:
        values = {part.settings[key] for part in parts if key in part.settings}
        merged[key] = values.pop() if len(values) == 1 else " | ".join(sorted(map(str, values)))
    runs = Counter(part.run for part in parts)
    for run in runs:
        mine = [part for part in parts if part.run == run]
        shards = sorted(frozenset().union(*(part.shards for part in mine)))
        if len(shards) < mine[0].count:
            if len(runs) > 1:
                raise MismatchError(
                    f"{mine[0].name} is part of a run of which {mine[0].count - len(shards)} of "
                    f"{mine[0].count} shards are missing",
                    remedy="Complete it before merging it with runs over other texts.",
                )
            merged[SHARD] = f"{_ranges(shards)}/{mine[0].count}"
    return merged


def _ranges(numbers: Sequence[int]) -> str:
    """1,3-5 for 1 3 4 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in found)
