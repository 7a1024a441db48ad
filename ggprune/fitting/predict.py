"""What a file will cost, from a few measurements: divergence adds up over groups and counts.

Small changes of a model add up nearly independently: the divergence of a mix is the sum of what
each group costs at its type, plus what the experts cost that are missing. A group is measured in
two types; in between, and a little beyond, its divergence follows a power of the
importance-weighted error of rounding, fitted through the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggprune.fitting.space import Mix, Option, Space

#: Powers between two points are steeper or flatter only by chance.
_FLATTEST, _STEEPEST = 0.2, 1.2
_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Curve:
    """A power law through points, piece by piece.

    Attributes:
        points: (x, y), x ascending, y made ascending.
        usual: the power where there is only one point.
    """

    points: tuple[tuple[float, float], ...]
    usual: float = 0.5

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]], usual: float = 0.5) -> Curve:
        """Draw it; points at 0 say nothing and are left out."""
        found: list[tuple[float, float]] = []
        for x, y in sorted(points):
            if x > 0:
                found.append((x, max(y, _LEAST, found[-1][1] if found else 0.0)))
        return cls(tuple(found), usual)

    def at(self, x: float) -> float:
        """The value; 0 at 0."""
        if x <= 0 or not self.points:
            return 0.0
        after = next((i for i, (known, _) in enumerate(self.points) if known >= x), None)
        at = min(max(after if after is not None else len(self.points), 1), len(self.points) - 1)
        power, (near, value) = self.usual, self.points[max(at - 1, 0)]
        if at >= 1:
            far, other = self.points[at]
            power = math.log(other / value) / math.log(far / near) if far > near else self.usual
        if x < self.points[0][0] or x > self.points[-1][0]:
            power = min(max(power, _FLATTEST), _STEEPEST)
            near, value = self.points[0] if x < self.points[0][0] else self.points[-1]
        return value * (x / near) ** power


class Prediction:
    """Predicts the divergence of mixes.

    Args:
        space: what can be chosen.
        errors: importance-weighted error of each tensor in each type.
        base: divergence of the space's base.
        groups: measured divergence by (index of the group, option's types), all else as in base.
        counts: measured divergence by experts kept, all else as in base.
    """

    def __init__(
        self,
        space: Space,
        errors: Mapping[str, Mapping[str, float]],
        base: float,
        groups: Mapping[tuple[int, tuple[str, ...]], float],
        counts: Mapping[int, float],
    ) -> None:
        self._space, self._errors, self.base = space, errors, base
        self._groups = {key: value - base for key, value in groups.items()}
        points: list[list[tuple[float, float]]] = [[] for _ in space.groups]
        for (index, types), value in self._groups.items():
            points[index].append((self.error(index, types), value))
        self._curves = [Curve.through(each) for each in points]
        experts = space.model.experts
        dropped = [(experts - keep, value - base) for keep, value in counts.items()]
        self._counts = Curve.through(dropped, 1.2)

    def error(self, index: int, types: tuple[str, ...]) -> float:
        """Importance-weighted error of a group in these types."""
        tensors = self._space.groups[index].tensors
        return sum(
            self._errors[tensor.name].get(kind, 0.0)
            for tensor, kind in zip(tensors, types, strict=True)
        )

    def group(self, index: int, option: Option) -> float:
        """What a group costs."""
        known = self._groups.get((index, option.types))
        return max(known, 0.0) if known is not None else self._by_error(index, option)

    def _by_error(self, index: int, option: Option) -> float:
        return self._curves[index].at(self.error(index, option.types))

    def count(self, keep: int) -> float:
        """What missing experts cost."""
        return self._counts.at(self._space.model.experts - keep)

    def of(self, mix: Mix) -> float:
        """What a file costs."""
        groups = sum(self.group(index, option) for index, option in enumerate(mix.options))
        return self.base + self.count(mix.keep) + groups
