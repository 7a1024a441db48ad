"""How many experts of a layer can be kept: top-k and groups limit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ggprune.errors import InputError


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """What limits how many experts can be kept.

    Attributes:
        experts: in each layer.
        used: top-k.
        groups: blocks of equal size that the router first chooses from; 1 for none.
        groups_used: how many of them a token may use.
    """

    experts: int
    used: int
    groups: int = 1
    groups_used: int = 1

    @property
    def least(self) -> int:
        """The smallest number that can be kept.

        llama.cpp scores a group by its best two experts, so two a group must stay.
        """
        if self.groups <= 1:
            return self.used
        return max(2, -(-self.used // self.groups_used)) * self.groups

    def possible(self, multiple_of: int = 1) -> range:
        """List the numbers that can be kept, ascending, all of them included.

        Raises:
            InputError: none is a multiple of ``multiple_of``.
        """
        step = math.lcm(self.groups, multiple_of)
        possible = range(-(-self.least // step) * step, self.experts + 1, step)
        if not possible:
            raise InputError(
                f"multiple_of={multiple_of}: no possible count of experts is one",
                remedy=f"Possible: {self.least} to {self.experts} in steps of {self.groups}.",
            )
        return possible

    def check(self, keep: int) -> None:
        """Raise InputError, with the nearest possible numbers, unless ``keep`` is possible."""
        if keep in self.possible():
            return
        if keep >= self.experts:
            problem = f"the model has {self.experts} experts a layer"
        elif keep < self.least:
            problem = f"at least {self.least} must stay ({self.used} are used for each token)"
        else:
            problem = f"the experts form {self.groups} groups, which must stay equal"
        remedy = f"Possible and nearest: {around(keep, self.possible())}."
        if keep > self.experts and (pruning := self.possible()[:-1]):
            remedy = f"The largest count that prunes: {pruning[-1]}."
        raise InputError(f"keep={keep}: {problem}", remedy=remedy)

    def most_used(self, keep: int) -> int:
        """Return the largest number of experts that a token can use of ``keep``."""
        return keep // self.groups * self.groups_used

    def check_used(self, experts_used: int | None, keep: int) -> None:
        """Raise InputError unless a token can use so many of ``keep``; None leaves the number."""
        most = self.most_used(keep)
        if experts_used is not None and not 1 <= experts_used <= most:
            raise InputError(
                f"experts_used={experts_used}: the model uses {self.used}, and {keep} are kept",
                remedy=f"Take a number from 1 to {most}.",
            )

    def rounded(self, keep: float, way: str, multiple_of: int = 1) -> int:
        """Find the :func:`nearest` possible number.

        Raises:
            InputError: no possible number is a multiple of ``multiple_of``.
        """
        return nearest(keep, self.possible(multiple_of), way)


def nearest(wanted: float, counts: Sequence[int], way: str) -> int:
    """Find the largest count not above (``down``) or the smallest not below (``up``) a number.

    Where there is none on that side, take the outermost count.
    """
    if way == "down":
        return max((n for n in counts if n <= wanted), default=counts[0])
    return min((n for n in counts if n >= wanted), default=counts[-1])


def around(wanted: float, counts: Sequence[int]) -> str:
    """Name the counts next to a number, for a message."""
    both = sorted({nearest(wanted, counts, way) for way in ("down", "up")})
    return " or ".join(map(str, both))
