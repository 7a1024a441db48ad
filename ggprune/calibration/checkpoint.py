"""A calibration run that can be continued: its tokens, and the sums so far, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.calibration.sequences import TokenSequence, answered, grouped
from ggprune.calibration.statistics import ExpertSums, Statistics
from ggprune.errors import FormatError, InputError, LlamaError
from ggprune.types import Floats

_PREFIX = "checkpoint."
_WEIGHTS = _PREFIX + "weights"
_OBSERVER = "observer."
_ANSWERED = -1

#: Arrays by name, by the number of the observer.
Observed = Mapping[int, Mapping[str, npt.NDArray[Any]]]


class Checkpoint:
    """How far a run has come: its sums belong to exactly the groups that count as done.

    The sequences are kept as tokens, answers of the model included, so that continuing neither
    tokenizes nor generates again, and gives the same sums as a run without a break.

    Args:
        statistics: sums over the groups that are done.
        sequences: all of the run.
        capacity: tokens in one group.
        done: number of finished groups.
        observed: what other observers gathered, by their number.
    """

    def __init__(
        self,
        statistics: Statistics,
        sequences: Sequence[TokenSequence],
        capacity: int,
        done: int = 0,
        observed: Observed = MappingProxyType({}),
    ) -> None:
        self.sequences = list(sequences)
        self.capacity = capacity
        self.done = done
        self.observed = observed
        self._statistics = statistics
        self._domains = list(statistics.domains)
        # Joined only when they are asked for: each group adds to them.
        self._shares = [[d.shares] if d.shares is not None else [] for d in self._domains]

    @property
    def statistics(self) -> Statistics:
        """Of the groups that are done."""
        domains = tuple(
            replace(domain, shares=Shares.joined(parts) if parts else None)
            for domain, parts in zip(self._domains, self._shares, strict=True)
        )
        return replace(self._statistics, domains=domains)

    @property
    def unanswered(self) -> list[int]:
        """Indices of the prompts that the model has still to answer."""
        return [i for i, sequence in enumerate(self.sequences) if sequence.stream is not None]

    @property
    def groups(self) -> list[list[TokenSequence]]:
        """Sequences that share a context; final once every prompt is answered."""
        return list(grouped(self.sequences, self.capacity))

    @property
    def tokens(self) -> int:
        """Tokens of the run."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def tokens_done(self) -> int:
        """Tokens of the finished groups."""
        return sum(domain.tokens for domain in self._domains)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.unanswered and self.tokens_done == self.tokens

    def answer(
        self,
        answers: Mapping[int, Sequence[int]],
        weights: Mapping[int, Floats] = MappingProxyType({}),
    ) -> None:
        """Add the model's answers to prompts, and their weights, by index of the sequence."""
        for index, tokens in answers.items():
            self.sequences[index] = answered(self.sequences[index], tokens, weights.get(index))

    def finish(
        self,
        group: Sequence[TokenSequence],
        sums: ExpertSums,
        shares: Shares | None = None,
        observed: Observed = MappingProxyType({}),
    ) -> None:
        """Add a finished group; one that was interrupted never gets here.

        Args:
            group: its sequences.
            sums: of it alone.
            shares: of it alone.
            observed: what other observers gathered of all groups.

        Raises:
            LlamaError: a layer did not see every token of the group.
        """
        new = sum(len(sequence.tokens) for sequence in group)
        _check(sums, new)
        index = group[0].domain
        domain = self._domains[index]
        total = domain.sums.copy()
        total.add(sums)
        self._domains[index] = replace(domain, tokens=domain.tokens + new, sums=total)
        if shares is not None:
            self._shares[index].append(shares)
        self.observed = observed
        self.done += 1

    def check_complete(self) -> None:
        """Compare the sums with what was to be run.

        Raises:
            LlamaError: a token is missing.
        """
        if not self.is_complete:
            raise _incomplete(self.tokens_done, self.tokens)
        for domain in self._domains:
            _check(domain.sums, domain.tokens)

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            OutputError: it cannot be written; an older one stays.
        """
        sequences = self.sequences
        streams = [_ANSWERED if each.stream is None else each.stream for each in sequences]
        columns = {
            "tokens": np.concatenate([each.tokens for each in sequences]),
            "lengths": [len(each.tokens) for each in sequences],
            "domains": [each.domain for each in sequences],
            "streams": streams,
            "progress": [self.done, self.capacity],
        }
        others: dict[str, npt.NDArray[Any]] = {
            _PREFIX + name: np.array(column, np.int32) for name, column in columns.items()
        }
        weights = [each.weights for each in sequences if each.weights is not None]
        if weights:
            others[_WEIGHTS] = np.concatenate(weights)
        for number, state in self.observed.items():
            others |= {f"{_OBSERVER}{number}.{name}": array for name, array in state.items()}
        self.statistics.save(path, others)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            InputError: it is damaged; its sums are not to be trusted then.
        """
        try:
            statistics, others = Statistics.load_with_others(path)
            tokens, lengths, domains, streams, progress = (
                others[_PREFIX + name]
                for name in ("tokens", "lengths", "domains", "streams", "progress")
            )
            ends = np.cumsum(lengths)[:-1]
            parts = np.split(tokens, ends)
            weights: Sequence[npt.NDArray[Any] | None] = [None] * len(parts)
            if _WEIGHTS in others:
                weights = np.split(others[_WEIGHTS], ends)
            sequences = [
                TokenSequence(int(domain), part, None if stream == _ANSWERED else int(stream), each)
                for domain, part, stream, each in zip(domains, parts, streams, weights, strict=True)
            ]
            done, capacity = progress.tolist()
            observed: dict[int, dict[str, npt.NDArray[Any]]] = {}
            for name, array in others.items():
                if name.startswith(_OBSERVER):
                    number, _, what = name.removeprefix(_OBSERVER).partition(".")
                    observed.setdefault(int(number), {})[what] = array
        except (InputError, FormatError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: is not a sound checkpoint: {error}",
                remedy=f"Remove {path} to start again.",
            ) from error
        return cls(statistics, sequences, capacity, done, observed)


def _check(sums: ExpertSums, tokens: int) -> None:
    if (sums.tokens != tokens).any():
        raise _incomplete(int(sums.tokens.min()), tokens)


def _incomplete(seen: int, wanted: int) -> LlamaError:
    return LlamaError(
        f"experts were observed for {seen:,} of {wanted:,} tokens",
        remedy="This llama-cpp-python is none of those ggprune was tested with.",
    )
