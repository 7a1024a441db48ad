"""The curve of size against damage: plans for several counts, each measured by masking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.plan import Plan
from ggprune.rewrite import result_size
from ggprune.types import Advance, no_advance

FORMAT = "ggprune-sweep"
_VERSION = 1
#: The curve breaks where divergence grows faster than this power of the number of dropped experts.
BREAK_POWER = 3.0
#: Nats a token: below this, growth is not damage.
BREAK_LEAST = 0.1

Planner = Callable[[str, int], Plan]


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of the curve.

    Attributes:
        method: how experts were chosen.
        keep: experts a layer.
        size: bytes of the file it would make, about.
        retained: of the worst layer, share of Σ g‖f‖; None if unknown.
        evaluation: what it costs.
    """

    method: str
    keep: int
    size: int
    retained: float | None
    evaluation: Evaluation

    def as_json(self) -> dict[str, Any]:
        """Its numbers, with the keys of ``evaluate --json``."""
        return {
            "method": self.method,
            "keep": self.keep,
            "size_bytes": self.size,
            "worst_retained": self.retained,
            **self.evaluation.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a user accepts; None accepts anything.

    Attributes:
        max_kld: mean KL divergence in nats a token.
        max_ppl_ratio: perplexity ratio.
    """

    max_kld: float | None = None
    max_ppl_ratio: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.max_kld is not None or self.max_ppl_ratio is not None

    def accepts(self, point: Point) -> bool:
        """Whether a point is within it."""
        total = point.evaluation.total
        return (self.max_kld is None or total.kld_mean <= self.max_kld) and (
            self.max_ppl_ratio is None or total.ppl_ratio <= self.max_ppl_ratio
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """A measured curve.

    Attributes:
        model: name of the base model's file.
        experts: a layer in the base model.
        points: by method, larger counts first.
        tolerance: what the user accepts.
        settings: how it was measured.
    """

    model: str
    experts: int
    points: tuple[Point, ...]
    tolerance: Tolerance = field(default_factory=Tolerance)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order they were asked for."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    def of(self, method: str) -> tuple[Point, ...]:
        """Return a method's points, larger counts first."""
        own = (point for point in self.points if point.method == method)
        return tuple(sorted(own, key=lambda point: -point.keep))

    def cliff(self, method: str) -> int | None:
        """Find the last count before the curve breaks; None if it does not."""
        curve = [(point.keep, point.evaluation.total.kld_mean) for point in self.of(method)]
        return find_cliff(curve, self.experts)

    def smallest(self, method: str) -> int | None:
        """Find the smallest count that is within the tolerance as all larger ones are, or None."""
        found = None
        for point in self.of(method):
            if not self.tolerance.given or not self.tolerance.accepts(point):
                break
            found = point.keep
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what ``ggprune sweep`` writes."""
        return {
            "format": FORMAT,
            "version": _VERSION,
            "model": self.model,
            "experts": self.experts,
            "settings": self.settings,
            "points": [point.as_json() for name in self.methods for point in self.of(name)],
            "cliff": {name: self.cliff(name) for name in self.methods},
            "tolerance": {
                "max_kld": self.tolerance.max_kld,
                "max_ppl_ratio": self.tolerance.max_ppl_ratio,
            },
            "smallest": {name: self.smallest(name) for name in self.methods},
        }


def find_cliff(curve: Sequence[tuple[int, float]], experts: int) -> int | None:
    """Where a curve breaks: the last count before it does, or None.

    Going down, it breaks at the first step over which mean KL divergence grows faster than the
    third power of the number of dropped experts, and arrives at 0.1 nats or more. The power
    between two points does not depend on how far apart they are.

    Args:
        curve: (experts kept, mean KL divergence), larger counts first.
        experts: of the base model.
    """
    known = [(experts - keep, keep, kld) for keep, kld in curve if keep < experts]
    for (dropped, keep, kld), (further, _, grown) in itertools.pairwise(known):
        if grown < BREAK_LEAST or further <= dropped:
            continue
        power = math.log(grown / max(kld, 1e-9)) / math.log(further / dropped)
        if power > BREAK_POWER:
            return keep
    return None


def sweep(
    evaluator: Evaluator,
    planner: Planner,
    keeps: Iterable[int],
    methods: Sequence[str],
    *,
    tolerance: Tolerance | None = None,
    settings: dict[str, Any] | None = None,
    advance: Advance = no_advance,
) -> Sweep:
    """Measure plans for several counts: one pass over the text each, and one for the base.

    Args:
        planner: makes the plan of a method and a count.

    Raises:
        InputError, MismatchError: a count or a method is impossible, or the statistics behind
            ``planner`` are of another model; before anything is measured.
    """
    counts = sorted(set(keeps), reverse=True)
    model = evaluator.description.prunable()
    plans = [
        planner(method, keep).for_model(model, f"the plan for {keep} experts by {method}")
        for method in methods
        for keep in counts
    ]
    points = []
    for plan, method in zip(plans, (m for m in methods for _ in counts), strict=True):
        worst = plan.worst_retained
        point = Point(
            method,
            plan.keep,
            result_size(model, plan.keep, method=plan.method, experts_used=plan.experts_used),
            worst[1] if worst else None,
            evaluator.measure_plan(plan, f"{plan.keep} experts by {method}", advance=advance),
        )
        points.append(point)
    return Sweep(
        model.gguf.path.name, model.experts, tuple(points), tolerance or Tolerance(), settings or {}
    )


def default_counts(possible: Sequence[int]) -> list[int]:
    """Seven counts below all experts and down to half of them, of those that are possible."""
    most, fewer = possible[-1], possible[:-1] or possible
    wanted = [most * share / 16 for share in (15, 14, 13, 12, 11, 10, 8)]
    return sorted({min(fewer, key=lambda n: (abs(n - w), n)) for w in wanted}, reverse=True)
