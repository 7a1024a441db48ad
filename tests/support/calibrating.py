"""Calibration runs that are broken off, and statistics compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ggprune.calibration.statistics import FIELDS, Statistics

# A cache in F16 rounds, and so does flash attention on a CPU: a token may then choose another one
# of two experts that are as good.
EXACT = {
    **{"repack": False, "gpu_layers": 0, "flash_attn": "off"},
    **{"cache_type_k": "f32", "cache_type_v": "f32"},
}


class Breaking:
    """A progress bar that raises after some steps."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.error = after, error

    @contextmanager
    def __call__(self, total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[object]:
        yield self.step

    def step(self, _: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("broken off")


def assert_same(found: Statistics, wanted: Statistics, tolerance: float = 0.0) -> None:
    assert [d.name for d in found.domains] == [d.name for d in wanted.domains]
    for mine, theirs in zip(found.domains, wanted.domains, strict=True):
        assert (mine.tokens, mine.sha256) == (theirs.tokens, theirs.sha256)
        for name in FIELDS:
            ours, others = getattr(mine.sums, name), getattr(theirs.sums, name)
            if tolerance == 0 or ours.dtype.kind == "i":
                assert np.array_equal(ours, others), (mine.name, name)
            else:
                np.testing.assert_allclose(ours, others, rtol=tolerance, err_msg=name)
