"""What was observed of each expert: sums and counts, by domain, in a file of their own.

Only sums, counts and maxima are kept, never means, so merging two runs is addition.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration import statistics_file
from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics_file import Arrays
from ggprune.errors import InputError
from ggprune.model import Identity
from ggprune.types import Floats, Ints

_VERSION = 1
_PREFIX = "ggprune.stats"


@dataclass(slots=True)
class ExpertSums:
    """Sums over the tokens of one domain, arrays of shape [layers with experts, experts].

    For a token routed to an expert, g is the gate weight multiplied into the output as llama.cpp
    does it, f the expert's output; g·f is what is added to the residual stream.

    Where tokens have weights (``Settings.weight``), each counts so many times in every sum, and
    one of weight 0 is not seen at all.

    Attributes:
        tokens: routed in each layer, [layers], whatever their weight.
        count: tokens routed to the expert; with weights, their sum.
        gate_sum: Σ g.
        norm_sum: Σ ‖f‖.
        norm_sq_sum: Σ ‖f‖².
        contribution_sum: Σ g‖f‖.
        norm_max: max ‖f‖.
    """

    tokens: Ints
    count: Ints | Floats
    gate_sum: Floats
    norm_sum: Floats
    norm_sq_sum: Floats
    contribution_sum: Floats
    norm_max: Floats

    @classmethod
    def zeros(cls, layers: int, experts: int, *, weighted: bool = False) -> ExpertSums:
        """Return the sums of no tokens; ``weighted``: of tokens with weights."""
        shape = (layers, experts)
        return cls(
            np.zeros(layers, np.int64),
            np.zeros(shape, np.float64) if weighted else np.zeros(shape, np.int64),
            *(np.zeros(shape, np.float64) for _ in range(5)),
        )

    @classmethod
    def of(cls, arrays: Mapping[str, Any], layers: int, experts: int) -> ExpertSums:
        """Take the sums of a file; raises ValueError if one is not there or has another shape."""
        for name in FIELDS:
            wanted = (layers, experts) if name != "tokens" else (layers,)
            if (found := np.shape(arrays[name])) != wanted:
                raise ValueError(f"{name} has the shape {found}, expected {wanted}")
        return cls(*(arrays[name] for name in FIELDS))

    def add(self, other: ExpertSums) -> None:
        """Add what was observed elsewhere."""
        for name in FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name.endswith("_max"):
                np.maximum(mine, theirs, out=mine)
            else:
                mine += theirs

    def copy(self) -> ExpertSums:
        """Return an independent copy."""
        return ExpertSums(*(getattr(self, name).copy() for name in FIELDS))


#: The setting that says how much tokens count: ``answer=1,prompt=0.25``; not there if all count 1.
WEIGHT = "weight"

FIELDS = tuple(ExpertSums.__slots__)
SHARES = tuple(Shares.__slots__)
PER_EXPERT = tuple(name for name in FIELDS if name != "tokens")


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of calibration text.

    Attributes:
        name: as the user gave it.
        tokens: of text run through the model.
        sha256: of the text, so that evaluation can tell it apart.
        sums: what was observed.
        shares: who did what for each token, or for a part of them; None: not gathered.
    """

    name: str
    tokens: int
    sha256: str
    sums: ExpertSums
    shares: Shares | None = None

    def arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield all arrays by name, in the order of the file."""
        for name in FIELDS:
            yield name, getattr(self.sums, name)
        for name in SHARES:
            if (array := getattr(self.shares, name, None)) is not None:
                yield name, array


@dataclass(frozen=True, slots=True)
class Statistics:
    """What calibration observed.

    Attributes:
        identity: of the model observed.
        layers: the block numbers that rows of the sums stand for.
        domains: by kind of text.
        settings: how it was run: context, generated tokens, versions.
    """

    identity: Identity
    layers: tuple[int, ...]
    domains: tuple[Domain, ...]
    settings: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def total(self) -> ExpertSums:
        """Sums over all domains."""
        weighted = WEIGHT in self.settings
        total = ExpertSums.zeros(len(self.layers), self.identity.experts, weighted=weighted)
        for domain in self.domains:
            total.add(domain.sums)
        return total

    @property
    def shares(self) -> Shares | None:
        """The routing of tokens of all domains; None if a domain has none."""
        if not self.tells_routing:
            return None
        return Shares.joined([d.shares for d in self.domains if d.shares is not None])

    @property
    def tells_routing(self) -> bool:
        """Whether every domain has its shares."""
        return bool(self.domains) and all(d.shares is not None for d in self.domains)

    def domain(self, name: str) -> Domain:
        """Return the domain of this name.

        Raises:
            InputError: there is none; names those that exist.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        known = ", ".join(domain.name for domain in self.domains)
        raise InputError(
            f"the statistics have no domain {name!r}; they have: {known}",
            remedy=f"Calibrate with text={name}=PATH to add a domain.",
        )

    def as_json(self) -> dict[str, Any]:
        """Return what ``ggprune stats --json`` prints."""
        total = self.total
        return {
            "model": self.identity.as_dict(),
            "settings": dict(self.settings),
            "domains": {d.name: {"tokens": d.tokens, "sha256": d.sha256} for d in self.domains},
            "layers": {
                str(layer): {name: getattr(total, name)[row].tolist() for name in FIELDS}
                for row, layer in enumerate(self.layers)
            },
        }

    def save(self, path: Path, others: Arrays = MappingProxyType({})) -> None:
        """Write the statistics file, whole or not at all.

        Args:
            others: other arrays to keep in it (a checkpoint's).

        Raises:
            OutputError: it cannot be written.
        """
        values = {
            f"{_PREFIX}.version": _VERSION,
            **{f"{_PREFIX}.model.{name}": v for name, v in self.identity.as_dict().items()},
            f"{_PREFIX}.layers": list(self.layers),
            f"{_PREFIX}.settings": json.dumps(dict(self.settings), sort_keys=True),
            f"{_PREFIX}.domains": [domain.name for domain in self.domains],
            f"{_PREFIX}.texts": [domain.sha256 for domain in self.domains],
            f"{_PREFIX}.tokens": [domain.tokens for domain in self.domains],
            f"{_PREFIX}.sha256": self._digest(others),
        }
        arrays = {
            f"domain.{index}.{name}": array
            for index, domain in enumerate(self.domains)
            for name, array in domain.arrays()
        }
        statistics_file.write(path, self.identity.architecture, values, {**arrays, **others})

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read a statistics file.

        Raises:
            InputError: it is missing, or not a (sound) statistics file.
        """
        return cls.load_with_others(path)[0]

    @classmethod
    def load_with_others(cls, path: Path) -> tuple[Statistics, Arrays]:
        """Read a statistics file, and the other arrays that were kept in it; see load."""
        values, arrays = statistics_file.read(path)
        others = {n: array for n, array in arrays.items() if not n.startswith("domain.")}
        try:
            statistics = cls._of(values, arrays)
            if values[f"{_PREFIX}.sha256"] != statistics._digest(others):
                raise ValueError("its content is not what was written")
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise statistics_file.damaged(path, error) from error
        return statistics, others

    def _digest(self, others: Arrays) -> str:
        """SHA-256 of everything that the file holds, to recognise a damaged one."""
        digest = hashlib.sha256()
        texts = [[domain.name, domain.sha256, domain.tokens] for domain in self.domains]
        facts = [self.identity.as_dict(), self.layers, dict(self.settings), texts]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for domain in self.domains:
            for _, array in domain.arrays():
                digest.update(array.tobytes())
        for name in sorted(others):
            digest.update(name.encode() + others[name].tobytes())
        return digest.hexdigest()

    @classmethod
    def _of(cls, values: Mapping[str, Any], arrays: Arrays) -> Statistics:
        version = values[f"{_PREFIX}.version"]
        if version != _VERSION:
            raise InputError(
                f"statistics of version {version}, this ggprune reads {_VERSION}",
                remedy="Calibrate again, or use a newer ggprune.",
            )
        fields = Identity.__dataclass_fields__
        identity = Identity(**{name: values.get(f"{_PREFIX}.model.{name}", "") for name in fields})
        layers = tuple(values[f"{_PREFIX}.layers"])
        columns = (values[f"{_PREFIX}.{name}"] for name in ("domains", "tokens", "texts"))
        domains = []
        for index, (name, tokens, sha256) in enumerate(zip(*columns, strict=True)):
            own = {each: arrays.get(f"domain.{index}.{each}") for each in (*FIELDS, *SHARES)}
            domains.append(
                Domain(
                    name,
                    int(tokens),
                    sha256,
                    ExpertSums.of(own, len(layers), identity.experts),
                    Shares.kept(own, len(layers)),
                )
            )
        return cls(identity, layers, tuple(domains), json.loads(values[f"{_PREFIX}.settings"]))
