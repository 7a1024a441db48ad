"""Quality against size: counts times types, measured, and which files no other beats."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ggprune.fitting.measure import Score, decode_speed
from ggprune.fitting.predict import POWER
from ggprune.fitting.space import AS_IS, Mix
from ggprune.fitting.study import Study
from ggprune.llama import memory
from ggprune.quantization.names import file_type
from ggprune.util import human_size

log = logging.getLogger(__name__)

#: Types of a frontier where none are asked for.
TYPES = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
#: Shares of the experts that are kept where no counts are asked for.
_KEPT = (1, 7 / 8, 3 / 4)
#: Contexts that llama.cpp is asked about; the second twice the first.
_CONTEXTS = (4096, 8192)


@dataclass(frozen=True, slots=True)
class Point:
    """One file of the grid, or one that was fitted.

    Attributes:
        types: llama-quantize's type, ``source`` for the source's own, or ``fit``.
        size: bytes, exact.
        score: on the held-out text.
        predicted: mean divergence on the search text; None if nothing was surveyed.
        speed: tokens a second of decoding; None if not measured.
        context: tokens that fit on the card beside the file; None if no card was named.
        best: whether no smaller file is better.
    """

    keep: int
    types: str
    size: int
    score: Score
    predicted: float | None = None
    speed: float | None = None
    context: int | None = None
    best: bool = False

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        return {
            "keep": self.keep,
            "types": self.types,
            "size_bytes": self.size,
            **asdict(self.score),
            "kld_predicted": self.predicted,
            "decode_tokens_per_second": self.speed,
            "context": self.context,
            "on_frontier": self.best,
        }


def frontier(
    study: Study,
    keeps: Sequence[int] = (),
    types: Sequence[str] = (),
    *,
    vram: int | None = None,
) -> tuple[Point, ...]:
    """Measure counts times types on the held-out text; all experts are always among them.

    A type needs one quantization, of which masks give all counts.

    Args:
        keeps: experts a layer; none for all, seven eighths and three quarters.
        types: llama-quantize's; none for TYPES.
        vram: bytes of a card, to say what context is left.

    Raises:
        InputError: an impossible count or type.
    """
    counts = study.source.counts
    experts = study.source.experts
    wanted = keeps or [counts.rounded(round(experts * share), "up") for share in _KEPT]
    for keep in wanted:
        counts.check(keep)
    kept = sorted({experts, *wanted}, reverse=True)
    # A source that is not quantized is measured as the Q8_0 that is made of it.
    own = AS_IS if all(o.kind == AS_IS for o in study.space.base.options) else "Q8_0"
    names = dict.fromkeys([own, *map(file_type, types or TYPES)])
    room = _Room(study, vram) if vram else None
    points = []
    for type_name in names:
        rate = None
        for keep in kept:
            if type_name == AS_IS and keep == experts:
                continue  # The reference itself.
            mix = _mix(study, type_name, keep, own)
            if not study.space.is_possible(mix):
                log.warning("%s: left out: the importance matrix does not cover all", type_name)
                break
            point = measured(study, mix, type_name, room)
            if keep == experts:
                rate = decode_speed(study.shards.candidate(mix.options), study.run)
            points.append(replace(point, speed=rate))
    return marked(points)


def measured(study: Study, mix: Mix, types: str, room: _Room | None = None) -> Point:
    """Measure one file on the held-out text."""
    score = study.measure(mix, f"{mix.keep} experts, {types}", study.judge)
    size = study.space.size(mix)
    predicted = study.prediction(POWER).of(mix) if study.surveyed else None
    return Point(
        mix.keep, types, size, score, predicted, None, room.context(size) if room else None
    )


def marked(points: Iterable[Point]) -> tuple[Point, ...]:
    """Mark the points that no smaller or equal file beats; smallest last."""
    found, best = [], float("inf")
    for point in sorted(points, key=lambda p: (p.size, p.score.kld_mean)):
        found.append(replace(point, best=point.score.kld_mean < best))
        best = min(best, point.score.kld_mean)
    return tuple(reversed(found))


class _Room:
    """Context that a card has room for beside a file: cache and buffers grow with it evenly."""

    def __init__(self, study: Study, vram: int) -> None:
        one, two = (memory.planned(study.source, memory.Use(context=n)) for n in _CONTEXTS)
        self._left = vram - one.cache - one.compute
        self._token = (two.cache + two.compute - one.cache - one.compute) / _CONTEXTS[0]
        self._most = study.source.trained_context or 1 << 20

    def context(self, size: int) -> int:
        """Tokens, in steps of 256, at most what the model was trained for."""
        left = self._left - size
        most = self._most if self._token <= 0 and left >= 0 else left / max(self._token, 1e-9)
        return max(0, min(int(_CONTEXTS[0] + most) // 256 * 256, self._most))


def _mix(study: Study, type_name: str, keep: int, own: str) -> Mix:
    if type_name == own:
        return Mix(keep, study.space.base.options)
    return study.space.of_file_type(type_name, keep)


def rows_of(points: Sequence[Point]) -> list[list[str]]:
    """Lay out the table: one line a file, large to small."""
    return [
        [
            "*" if point.best else "",
            point.types,
            str(point.keep),
            human_size(point.size),
            f"{point.score.kld_mean:.5f}",
            f"{point.score.kld_se:.5f}",
            f"{point.score.kld_p99:.4f}",
            f"{point.score.worst_domain} {point.score.worst_kld:.5f}",
            f"{point.speed:.0f}" if point.speed else "",
            f"{point.context:,}" if point.context is not None else "",
        ]
        for point in points
    ]


HEADER = ("", "types", "keep", "size", "KL", "±", "KL 99 %", "worst domain", "tok/s", "context")
