"""Types that many modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Json = dict[str, Any]
#: Takes the number of units just done.
Advance = Callable[[int], object]


class Progress(Protocol):
    """Makes progress bars; a long-running function takes one as its ``progress`` argument."""

    def __call__(
        self, total: int, what: str, unit: str, *, initial: int = 0
    ) -> AbstractContextManager[Advance]:
        """Open a bar of ``total`` units, ``initial`` of them done."""


@contextmanager
def no_progress(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda _: None
