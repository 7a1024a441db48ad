"""A calibration run that can be continued: its tokens, and the sums so far, in one file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ggprune.calibration.packing import packed
from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import ExpertSums, Statistics
from ggprune.errors import FormatError, InputError, LlamaError, MismatchError
from ggprune.model import Identity

#: Sequences in one context: enough to fill batches with short prompts.
SEQUENCES = 32

_PREFIX = "checkpoint."
_OBSERVER = "observer."
_ANSWERED = -1

#: Arrays by name, by the number of the observer.
Observed = Mapping[int, Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence.

    Attributes:
        domain: index of the text it comes from.
        tokens: of the sequence.
        stream: a prompt that the model has still to answer, and which random numbers its answer
            is drawn with; None: complete.
    """

    domain: int
    tokens: tuple[int, ...]
    stream: int | None = None


class _State(NamedTuple):
    statistics: Statistics
    chunks: Sequence[Chunk]
    done: int
    shares: tuple[tuple[Shares, ...], ...]
    observed: Observed


class Checkpoint:
    """How far a run has come.

    The chunks are kept as tokens, answers of the model included, so that continuing neither
    tokenizes nor generates again, and gives the same sums as a run without a break.

    A signal may arrive between any two steps, so all that changes is one attribute: whenever the
    checkpoint is saved, its sums belong to exactly the groups that count as done.

    Args:
        statistics: sums over the groups that are done.
        chunks: all of the run.
        done: number of finished groups.
        capacity: tokens in one group.
        observed: what other observers gathered, by their number.
    """

    def __init__(
        self,
        statistics: Statistics,
        chunks: Sequence[Chunk],
        done: int,
        capacity: int,
        observed: Observed = MappingProxyType({}),
    ) -> None:
        self.capacity = capacity
        shares = tuple((d.shares,) if d.shares is not None else () for d in statistics.domains)
        self._state = _State(statistics, tuple(chunks), done, shares, observed)

    @property
    def statistics(self) -> Statistics:
        """Of the groups that are done."""
        return _with_shares(self._state)

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All sequences of the run."""
        return self._state.chunks

    @property
    def done(self) -> int:
        """Number of finished groups."""
        return self._state.done

    @property
    def observed(self) -> Observed:
        """What other observers gathered of the groups that are done."""
        return self._state.observed

    @property
    def unanswered(self) -> list[int]:
        """Indices of the prompts that the model has still to answer."""
        return [i for i, chunk in enumerate(self.chunks) if chunk.stream is not None]

    @property
    def groups(self) -> list[list[Chunk]]:
        """Chunks that share a context; final once every prompt is answered."""
        return list(_grouped(self.chunks, self.capacity))

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def tokens_done(self) -> int:
        """Tokens of the finished groups."""
        return sum(domain.tokens for domain in self._state.statistics.domains)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.unanswered and self.tokens_done == self.tokens

    def answer(self, answers: Mapping[int, Sequence[int]]) -> None:
        """Add the model's answers to prompts, by index of the chunk."""
        chunks = list(self.chunks)
        for index, tokens in answers.items():
            chunk = chunks[index]
            chunks[index] = Chunk(chunk.domain, chunk.tokens + tuple(tokens))
        self._state = self._state._replace(chunks=tuple(chunks))

    def finish(
        self,
        group: Sequence[Chunk],
        sums: ExpertSums,
        shares: Shares | None = None,
        observed: Observed = MappingProxyType({}),
    ) -> None:
        """Add a finished group; one that was interrupted never gets here.

        Args:
            group: its chunks.
            sums: of it alone.
            shares: of it alone.
            observed: what other observers gathered of all groups.

        Raises:
            LlamaError: a layer did not see every token of the group.
        """
        statistics, chunks, done, parts, _ = self._state
        new = sum(len(chunk.tokens) for chunk in group)
        if (sums.tokens != new).any():
            raise _incomplete(sums.tokens.min(), new)
        domains = list(statistics.domains)
        domain = domains[group[0].domain]
        total = domain.sums.copy()
        total.add(sums)
        tokens = domain.tokens + new
        index = group[0].domain
        domains[index] = replace(domain, tokens=tokens, sums=total)
        if shares is not None:
            parts = (*parts[:index], (*parts[index], shares), *parts[index + 1 :])
        statistics = replace(statistics, domains=tuple(domains))
        self._state = _State(statistics, chunks, done + 1, parts, observed)

    def check_complete(self) -> None:
        """Raise LlamaError unless every layer saw every token that was to be run."""
        if not self.is_complete:
            raise _incomplete(self.tokens_done, self.tokens)
        for domain in self._state.statistics.domains:
            if (domain.sums.tokens != domain.tokens).any():
                raise _incomplete(domain.sums.tokens.min(), domain.tokens)

    def check_same(
        self,
        identity: Identity,
        settings: Mapping[str, str | int],
        hashes: Mapping[str, str],
        name: str,
    ) -> None:
        """Raise MismatchError, naming what differs, unless this run may be continued."""
        check_same_run(self.statistics, identity, settings, hashes, name)

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            OutputError: it cannot be written; an older one stays.
        """
        # One look at the state: a signal may change it meanwhile.
        state = self._state
        chunks, done = state.chunks, state.done
        statistics = _with_shares(state)
        tokens = itertools.chain.from_iterable(chunk.tokens for chunk in chunks)
        streams = [_ANSWERED if chunk.stream is None else chunk.stream for chunk in chunks]
        arrays = {
            "tokens": list(tokens),
            "lengths": [len(chunk.tokens) for chunk in chunks],
            "domains": [chunk.domain for chunk in chunks],
            "streams": streams,
            "progress": [done, self.capacity],
        }
        extra: dict[str, npt.NDArray[Any]] = {
            _PREFIX + name: np.array(array, np.int32) for name, array in arrays.items()
        }
        for number, state_of in state.observed.items():
            extra |= {f"{_OBSERVER}{number}.{name}": each for name, each in state_of.items()}
        statistics.save(path, extra)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            InputError: it is damaged; its sums are not to be trusted then.
        """
        extra: dict[str, npt.NDArray[Any]] = {}
        try:
            statistics = Statistics.load(path, extra)
            arrays = {name.removeprefix(_PREFIX): array for name, array in extra.items()}
            ends = np.cumsum(arrays["lengths"])
            columns = (arrays[name] for name in ("domains", "streams", "lengths"))
            chunks = [
                Chunk(
                    int(domain),
                    tuple(arrays["tokens"][end - length : end].tolist()),
                    None if stream == _ANSWERED else int(stream),
                )
                for domain, stream, length, end in zip(*columns, ends, strict=True)
            ]
            done, capacity = (int(number) for number in arrays["progress"])
            observed: dict[int, dict[str, npt.NDArray[Any]]] = {}
            for name, array in extra.items():
                if name.startswith(_OBSERVER):
                    number, _, what = name.removeprefix(_OBSERVER).partition(".")
                    observed.setdefault(int(number), {})[what] = array
        except (InputError, FormatError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: is not a sound checkpoint: {error}",
                remedy=f"Remove {path} to start again.",
            ) from error
        return cls(statistics, chunks, done, capacity, observed)


def _incomplete(seen: int, wanted: int) -> LlamaError:
    return LlamaError(
        f"experts were observed for {seen:,} of {wanted:,} tokens",
        remedy="This llama-cpp-python is not the one ggprune was tested with.",
    )


def _with_shares(state: _State) -> Statistics:
    domains = tuple(
        replace(domain, shares=Shares.joined(parts) if parts else None)
        for domain, parts in zip(state.statistics.domains, state.shares, strict=True)
    )
    return replace(state.statistics, domains=domains)


def _grouped(chunks: Sequence[Chunk], capacity: int) -> Iterator[list[Chunk]]:
    """Chunks that share a context: of one domain, since a batch's tokens may be reordered."""
    for _, same in itertools.groupby(sorted(chunks, key=_by_domain), key=_by_domain):
        yield from packed(same, capacity, SEQUENCES)


def _by_domain(chunk: Chunk) -> int:
    return chunk.domain


def check_same_run(
    statistics: Statistics,
    identity: Identity,
    settings: Mapping[str, str | int],
    hashes: Mapping[str, str],
    name: str,
) -> None:
    """Compare statistics with what a run would gather.

    Raises:
        MismatchError: they are of another model, text or setting; names what differs.
    """
    statistics.identity.check_same(identity, name, "this model")
    remedy = f"Use the same options to continue, or remove {name} to start again."
    mine = statistics.settings
    for key in (*mine, *(key for key in settings if key not in mine)):
        if settings.get(key) != mine.get(key):
            raise MismatchError(
                f"{name}: was made with {key} {mine.get(key, 'not set')}, "
                f"now it is {settings.get(key, 'not set')}",
                remedy=remedy,
            )
    known = {domain.name: domain.sha256 for domain in statistics.domains}
    different = sorted({text for text, _ in set(known.items()) ^ set(hashes.items())})
    if different:
        raise MismatchError(f"{name}: the text of {different[0]!r} differs", remedy=remedy)
