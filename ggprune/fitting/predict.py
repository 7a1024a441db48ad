"""What a file will cost, from a few measurements: what groups and missing experts cost adds up.

Independent small changes of a model add up: large ones as divergence d itself, small ones more
like their sizes in different directions, since any change at all flips some near ties of the
router, and two changes mostly flip the same. So a mix costs (Σ d^p)^(1/p) over its groups, with a
power p between 1 and 2 that is fitted to mixes measured whole, plus what missing experts cost. A
group is measured in two types; in between, and a little beyond, its divergence follows a power of
the importance-weighted error of rounding, drawn through the measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggprune.fitting.space import Mix, Option, Space
from ggprune.gguf_file import Tensor

#: Powers between two points are steeper or flatter only by chance.
_FLATTEST, _STEEPEST = 0.2, 1.2
_LEAST = 1e-9
#: The power before any mix was measured, and the range that it is looked for in.
POWER = 1.2
_POWERS = (1.0, 2.0)


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
        """Return the value; 0 at 0."""
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
        return float(value * (x / near) ** power)


class Prediction:
    """Predicts the divergence of mixes.

    Args:
        error_of: importance-weighted error of a tensor in a type.
        base: divergence of the space's base.
        groups: measured divergence by (index of the group, option's types), all else as in base.
        counts: measured divergence by experts kept, all else as in base.
        power: p of the sum.
    """

    def __init__(
        self,
        space: Space,
        error_of: Callable[[Tensor, str], float],
        base: float,
        groups: Mapping[tuple[int, tuple[str, ...]], float],
        counts: Mapping[int, float],
        power: float = POWER,
    ) -> None:
        self._space, self._error_of, self.base = space, error_of, base
        self.power = power
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
            self._error_of(tensor, kind) for tensor, kind in zip(tensors, types, strict=True)
        )

    def group(self, index: int, option: Option) -> float:
        """Predict what a group costs."""
        known = self._groups.get((index, option.types))
        return max(known, 0.0) if known is not None else self._by_error(index, option)

    def _by_error(self, index: int, option: Option) -> float:
        return self._curves[index].at(self.error(index, option.types))

    def count(self, keep: int) -> float:
        """Predict what missing experts cost."""
        return self._counts.at(self._space.model.experts - keep)

    def of(self, mix: Mix) -> float:
        """Predict what a file costs."""
        groups = self._sum(mix, self.power)
        return self.base + self.count(mix.keep) + groups

    def power_of(self, mix: Mix, measured: float) -> float:
        """Return the power with which the prediction for a mix is what was measured."""
        left = measured - self.base - self.count(mix.keep)
        low, high = _POWERS
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._sum(mix, middle) > left else (low, middle)
        return low

    def _sum(self, mix: Mix, power: float) -> float:
        costs = (self.group(index, option) for index, option in enumerate(mix.options))
        return float(sum(cost**power for cost in costs) ** (1 / power))
