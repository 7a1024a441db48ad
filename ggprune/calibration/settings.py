"""How a calibration run is set up: what it reads, and how its progress is shown."""

from __future__ import annotations

from dataclasses import dataclass

from ggprune.calibration.merge import SHARD
from ggprune.llama.library import library


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run the model over, and how much of it.

    Attributes:
        ctx: tokens of a chunk; longer texts are cut into consecutive chunks.
        max_tokens: at most so many of each domain; None takes all.
        generate: tokens the model adds to a prompt; 0 turns that off.
        parallel: prompts answered at the same time.
        seed: for the answers.
        shard: run the i-th of n equal parts of the text only, as (i, n) counted from 1; the
            statistics of all parts are put together by merging.merge.
    """

    ctx: int = 2048
    max_tokens: int | None = None
    generate: int = 128
    parallel: int = 16
    seed: int = 0
    temperature: float = 0.8
    top_p: float = 0.95
    shard: tuple[int, int] = (1, 1)

    def recorded(self) -> dict[str, str | int]:
        """What the statistics file says of them, and what must agree to continue a run."""
        from ggprune.version import VERSION

        number, count = self.shard
        part: dict[str, str | int] = {SHARD: f"{number}/{count}"} if count > 1 else {}
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
