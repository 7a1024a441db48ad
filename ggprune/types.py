"""Types that many modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field
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


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare a field of an options record; the command line makes its option from it.

    Args:
        default: value of the field when it is not given; None means "not given".
        help: what ``--help`` says.
        choices: the only values allowed.
        minimum, maximum: the range allowed, both included.
        metavar: how ``--help`` names the value.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "minimum": minimum,
            "maximum": maximum,
            "metavar": metavar,
        },
    )
