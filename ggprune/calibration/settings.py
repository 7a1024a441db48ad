"""How a calibration run is set up: what it reads, and how much of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggprune.errors import InputError
from ggprune.fields import check_fields
from ggprune.types import option

#: Kinds of tokens in conversations that may have a weight. The end of thinking and tool calls are
#: parts of answers.
KINDS = ("prompt", "answer", "thinking-end", "tools")
_SAMPLING = re.compile(r"temperature (\S+), top_p (\S+)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run the model over, and how much of it.

    Attributes:
        ctx: tokens of a chunk; longer texts are cut into consecutive chunks.
        max_tokens: of each domain; None takes all.
        weight: how much tokens count, by KINDS, as pairs or a mapping; 1 where not given.
        shard: run the i-th of n equal parts of the text only, as (i, n) counted from 1; the
            statistics of all parts are put together by merge.
    """

    ctx: int = option(2048, "Context.", minimum=8)
    max_tokens: int | None = option(None, "Use at most this much of each text.", minimum=1)
    generate: int = option(
        128, "Tokens the model adds to a prompt before it is replayed; 0: none.", minimum=0
    )
    parallel: int = option(16, "Prompts answered at the same time.", minimum=1, maximum=256)
    seed: int = option(0, "For the answers.", minimum=0)
    temperature: float = 0.8
    top_p: float = 0.95
    weight: tuple[tuple[str, float], ...] = option(
        (),
        f"How much tokens count: {', '.join(KINDS)}; 1 where not given.",
        metavar="KIND=NUMBER,…",
    )
    shard: tuple[int, int] = option(
        (1, 1),
        "Do the I-th of N equal parts only; `ggprune merge` puts them together.",
        metavar="I/N",
    )

    def __post_init__(self) -> None:
        try:
            given = dict(self.weight)
        except (TypeError, ValueError):
            raise InputError(
                f"weight={self.weight!r:.60}: expected pairs of a kind and a number"
            ) from None
        for kind, value in given.items():
            known = isinstance(value, int | float) and 0 <= value < math.inf
            if kind not in KINDS or not known:
                expected = "a number that is not negative" if kind in KINDS else ", ".join(KINDS)
                raise InputError(f"weight={kind}={value}: expected {expected}")
        chosen = sorted((kind, float(value)) for kind, value in given.items() if value != 1)
        object.__setattr__(self, "weight", tuple(chosen))
        check_fields(self)

    def recorded(self) -> dict[str, str | int]:
        """Return what the statistics file says of them, which must agree to continue a run."""
        from ggprune.calibration.merge import SHARD
        from ggprune.calibration.statistics import WEIGHT
        from ggprune.llama.library import library
        from ggprune.version import VERSION

        number, count = self.shard
        part: dict[str, str | int] = {SHARD: f"{number}/{count}"} if count > 1 else {}
        if self.weight:
            part[WEIGHT] = ",".join(
                f"{kind}={str(value).removesuffix('.0')}" for kind, value in self.weight
            )
        return {
            **part,
            "ctx": self.ctx,
            "max_tokens": self.max_tokens or 0,
            "generate": self.generate,
            "seed": self.seed,
            "sampling": f"temperature {self.temperature}, top_p {self.top_p}",
            "ggprune": VERSION,
            "llama-cpp-python": library().version,
        }

    @classmethod
    def from_recorded(cls, recorded: Mapping[str, str | int]) -> Settings:
        """Return the settings that statistics were gathered with, for another run like theirs.

        Args:
            recorded: settings of the statistics; what they do not say is the default.
        """
        from ggprune.calibration.statistics import WEIGHT

        names = ("ctx", "max_tokens", "generate", "seed")
        known: dict[str, Any] = {n: recorded[n] for n in names if isinstance(recorded.get(n), int)}
        known["max_tokens"] = known.get("max_tokens") or None
        if match := _SAMPLING.fullmatch(str(recorded.get("sampling"))):
            known.update(temperature=float(match[1]), top_p=float(match[2]))
        given = (each.split("=") for each in str(recorded.get(WEIGHT, "")).split(",") if each)
        return cls(**known, weight=tuple((kind, float(value)) for kind, value in given))
