"""Which sequences share a context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar


class Sequence(Protocol):
    """Something with tokens."""

    @property
    def tokens(self) -> Sized:
        """Of the sequence."""


T = TypeVar("T", bound=Sequence)


def packed(sequences: Iterable[T], capacity: int, most: int) -> Iterator[list[T]]:
    """Consecutive sequences in groups that fit into a context; a longer one is alone.

    Args:
        sequences: in the order in which they are run.
        capacity: tokens of a context.
        most: sequences of a context.
    """
    group: list[T] = []
    filled = 0
    for sequence in sequences:
        size = len(sequence.tokens)
        if group and (filled + size > capacity or len(group) == most):
            yield group
            group, filled = [], 0
        group.append(sequence)
        filled += size
    if group:
        yield group
