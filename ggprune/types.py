"""Types that many modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# As text: help is made from records that this module describes, and must not wait for numpy.
Floats: TypeAlias = "npt.NDArray[np.float64]"
Floats32: TypeAlias = "npt.NDArray[np.float32]"
Ints: TypeAlias = "npt.NDArray[np.int64]"
Ints32: TypeAlias = "npt.NDArray[np.int32]"
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
    yield no_advance


def no_advance(done: int) -> None:
    """Count nothing."""


#: Between two lines of log_progress.
_LOG_SECONDS = 10.0


@contextmanager
def log_progress(total: int, what: str, unit: str, *, initial: int = 0) -> Iterator[Advance]:
    """Log a line every ten seconds, where there is no terminal to draw a bar on."""
    import logging
    import time

    done, logged = initial, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, logged
        done += count
        if (now := time.monotonic()) - logged >= _LOG_SECONDS:
            logged = now
            share = f"{done / total:.0%}" if total else ""
            logging.getLogger("ggprune").info("%s: %s of %s %s", what, share, f"{total:,}", unit)

    yield advance


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    default_help: str | None = None,
) -> Any:
    """Declare a field of an options record; the command line makes its option from it.

    Args:
        default: value of the field when it is not given; None means "not given".
        help: what ``--help`` says; of a switch that is on, what switching it off does.
        choices: the only values allowed.
        minimum, maximum: the range allowed, both included.
        above, below: bounds that the number must not reach.
        metavar: how ``--help`` names the value.
        default_help: the default in words, where the value says too little.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "minimum": minimum,
            "maximum": maximum,
            "above": above,
            "below": below,
            "metavar": metavar,
            "default_help": default_help,
        },
    )
