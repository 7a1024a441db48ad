"""A calibration run that can be continued: its tokens, and the sums so far, in one file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggprune.errors import InputError, MismatchError
from ggprune.model import Identity
from ggprune.statistics import ExpertSums, Statistics

#: Sequences in one context: enough to fill batches with short prompts.
SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence; ``domain`` is the index of the text it comes from."""

    domain: int
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Checkpoint:
    """How far a run has come.

    The chunks are kept as tokens, answers of the model included, so that continuing neither
    tokenizes nor generates again, and gives the same sums as a run without a break.

    Attributes:
        statistics: sums over the groups that are done.
        chunks: all of the run.
        done: number of finished groups.
        capacity: tokens in one group.
    """

    statistics: Statistics
    chunks: Sequence[Chunk]
    done: int
    capacity: int
    groups: Sequence[Sequence[Chunk]] = ()

    def __post_init__(self) -> None:
        self.groups = list(_grouped(self.chunks, self.capacity))

    @property
    def tokens_done(self) -> int:
        """Tokens of the finished groups."""
        return sum(len(chunk.tokens) for group in self.groups[: self.done] for chunk in group)

    def finish(self, group: Sequence[Chunk], sums: ExpertSums) -> None:
        """Add a finished group; one that was interrupted never gets here."""
        domains = list(self.statistics.domains)
        index = group[0].domain
        domains[index].sums.add(sums)
        tokens = domains[index].tokens + sum(len(chunk.tokens) for chunk in group)
        domains[index] = replace(domains[index], tokens=tokens)
        self.statistics = replace(self.statistics, domains=tuple(domains))
        self.done += 1

    def check_same(
        self,
        identity: Identity,
        settings: Mapping[str, str | int],
        hashes: Mapping[str, str],
        name: str,
    ) -> None:
        """Raise MismatchError, naming what differs, unless this run may be continued."""
        self.statistics.identity.check_same(identity, name, "this model")
        remedy = f"Use the same options to continue, or remove {name} to start again."
        for key, value in self.statistics.settings.items():
            if settings.get(key) != value:
                raise MismatchError(
                    f"{name}: was made with {key} {value}, now it is {settings.get(key)}",
                    remedy=remedy,
                )
        known = {domain.name: domain.sha256 for domain in self.statistics.domains}
        if known != dict(hashes):
            different = sorted(set(known.items()) ^ set(hashes.items()))[0][0]
            raise MismatchError(f"{name}: the text of {different!r} differs", remedy=remedy)

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        self.statistics.save(
            path,
            {
                "checkpoint.tokens": np.array(
                    list(itertools.chain.from_iterable(c.tokens for c in self.chunks)), np.int32
                ),
                "checkpoint.lengths": np.array([len(c.tokens) for c in self.chunks], np.int32),
                "checkpoint.domains": np.array([c.domain for c in self.chunks], np.int32),
                "checkpoint.progress": np.array([self.done, self.capacity], np.int32),
            },
        )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            InputError: it is damaged; its sums are not to be trusted then.
        """
        extra: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int32]]] = {}
        statistics = Statistics.load(path, extra)
        try:
            tokens, lengths = extra["checkpoint.tokens"], extra["checkpoint.lengths"]
            ends = np.cumsum(lengths)
            chunks = [
                Chunk(int(domain), tuple(tokens[end - length : end].tolist()))
                for domain, length, end in zip(
                    extra["checkpoint.domains"], lengths, ends, strict=True
                )
            ]
            done, capacity = (int(n) for n in extra["checkpoint.progress"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: is not a checkpoint: {error}", remedy=f"Remove {path} to start again."
            ) from error
        return cls(statistics, chunks, done, capacity)


def _grouped(chunks: Sequence[Chunk], capacity: int) -> Iterator[list[Chunk]]:
    """Chunks that share a context: of one domain, since a batch's tokens may be reordered."""
    for _, same in itertools.groupby(sorted(chunks, key=_by_domain), key=_by_domain):
        group: list[Chunk] = []
        filled = 0
        for chunk in same:
            if group and (filled + len(chunk.tokens) > capacity or len(group) == SEQUENCES):
                yield group
                group, filled = [], 0
            group.append(chunk)
            filled += len(chunk.tokens)
        if group:
            yield group


def _by_domain(chunk: Chunk) -> int:
    return chunk.domain
