"""What was observed of each expert: sums and counts, by domain, in a file of their own.

Only sums, counts and maxima are kept, never means, so merging two runs is addition. The file is
a GGUF file: any reader of the format can open it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.errors import GgpruneError, InputError
from ggprune.gguf_file import replacing
from ggprune.model import Identity
from ggprune.types import Floats, Ints

FILE_TYPE = "ggprune-stats"
_VERSION = 1
_PREFIX = "ggprune.stats"


@dataclass(slots=True)
class ExpertSums:
    """Sums over the tokens of one domain, arrays of shape [layers with experts, experts].

    For a token routed to an expert, g is the gate weight multiplied into the output as llama.cpp
    does it, f the expert's output; g·f is what is added to the residual stream.

    Attributes:
        tokens: routed in each layer, [layers].
        count: tokens routed to the expert.
        gate_sum: Σ g.
        norm_sum: Σ ‖f‖.
        norm_sq_sum: Σ ‖f‖².
        contribution_sum: Σ g‖f‖.
        norm_max: max ‖f‖.
    """

    tokens: Ints
    count: Ints
    gate_sum: Floats
    norm_sum: Floats
    norm_sq_sum: Floats
    contribution_sum: Floats
    norm_max: Floats

    @classmethod
    def zeros(cls, layers: int, experts: int) -> ExpertSums:
        """No tokens yet."""
        shape = (layers, experts)
        return cls(
            np.zeros(layers, np.int64),
            np.zeros(shape, np.int64),
            *(np.zeros(shape, np.float64) for _ in range(5)),
        )

    def add(self, other: ExpertSums) -> None:
        """Add what was observed elsewhere."""
        for name in FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name.endswith("_max"):
                np.maximum(mine, theirs, out=mine)
            else:
                mine += theirs

    def copy(self) -> ExpertSums:
        """An independent copy."""
        return ExpertSums(*(getattr(self, name).copy() for name in FIELDS))


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


@dataclass(frozen=True, slots=True)
class Statistics:
    """Everything calibration found out.

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
        total = ExpertSums.zeros(len(self.layers), self.identity.experts)
        for domain in self.domains:
            total.add(domain.sums)
        return total

    @property
    def shares(self) -> Shares | None:
        """Of the tokens of all domains; None if a domain has none."""
        if not self.tells_routing:
            return None
        return Shares.joined([d.shares for d in self.domains if d.shares is not None])

    @property
    def tells_routing(self) -> bool:
        """Whether every domain has its shares."""
        return bool(self.domains) and all(d.shares is not None for d in self.domains)

    def domain(self, name: str) -> Domain:
        """The domain of this name.

        Raises:
            InputError: there is none; names those that exist.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        known = ", ".join(domain.name for domain in self.domains)
        raise InputError(
            f"the statistics have no domain {name!r}; they have: {known}",
            remedy="Calibrate with --text NAME=PATH to add a domain.",
        )

    def as_json(self) -> dict[str, Any]:
        """The form that ``ggprune stats --json`` prints."""
        total = self.total
        return {
            "model": asdict(self.identity),
            "settings": dict(self.settings),
            "domains": {d.name: {"tokens": d.tokens, "sha256": d.sha256} for d in self.domains},
            "layers": {
                str(layer): {name: getattr(total, name)[row].tolist() for name in FIELDS}
                for row, layer in enumerate(self.layers)
            },
        }

    def save(self, path: Path, extra: Mapping[str, npt.NDArray[Any]] | None = None) -> None:
        """Write the statistics file, whole or not at all.

        Args:
            path: its name.
            extra: other tensors to keep in it (a checkpoint's).

        Raises:
            OutputError: it cannot be written.
        """
        with replacing(path) as part:
            _write(self, part, extra or {})

    @classmethod
    def load(cls, path: Path, extra: dict[str, npt.NDArray[Any]] | None = None) -> Statistics:
        """Read a statistics file.

        Args:
            path: its name.
            extra: filled with the tensors that are not the statistics' own.

        Raises:
            InputError: it is missing, or not a (sound) statistics file.
        """
        return _read(path, extra)


def _write(statistics: Statistics, path: Path, extra: Mapping[str, npt.NDArray[Any]]) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, statistics.identity.architecture)
    writer.add_type(FILE_TYPE)
    writer.add_uint32(f"{_PREFIX}.version", _VERSION)
    for name, value in asdict(statistics.identity).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{_PREFIX}.model.{name}", value)
    writer.add_array(f"{_PREFIX}.layers", list(statistics.layers))
    writer.add_string(f"{_PREFIX}.settings", json.dumps(dict(statistics.settings), sort_keys=True))
    writer.add_array(f"{_PREFIX}.domains", [domain.name for domain in statistics.domains])
    writer.add_array(f"{_PREFIX}.texts", [domain.sha256 for domain in statistics.domains])
    writer.add_array(f"{_PREFIX}.tokens", [domain.tokens for domain in statistics.domains])
    for index, domain in enumerate(statistics.domains):
        for name in FIELDS:
            writer.add_tensor(f"domain.{index}.{name}", getattr(domain.sums, name))
        if domain.shares is not None:
            for name in SHARES:
                writer.add_tensor(f"domain.{index}.{name}", getattr(domain.shares, name))
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.add_string(f"{_PREFIX}.sha256", _digest(statistics, extra))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _digest(statistics: Statistics, extra: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of everything that the file holds, to recognise a damaged one."""
    digest = hashlib.sha256()
    texts = [[domain.name, domain.sha256, domain.tokens] for domain in statistics.domains]
    facts = [asdict(statistics.identity), statistics.layers, dict(statistics.settings), texts]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for domain in statistics.domains:
        for name in FIELDS:
            digest.update(getattr(domain.sums, name).tobytes())
        if domain.shares is not None:
            for name in SHARES:
                digest.update(getattr(domain.shares, name).tobytes())
    for name in sorted(extra):
        digest.update(name.encode() + extra[name].tobytes())
    return digest.hexdigest()


def _read(path: Path, extra: dict[str, npt.NDArray[Any]] | None) -> Statistics:
    import gguf

    from ggprune.gguf_file import GgufFile

    # Our own reader first: it has the clear messages for what is not a GGUF file.
    with GgufFile(path) as file:
        kind = file.get("general.type")
        if kind != FILE_TYPE:
            raise InputError(
                f"{path}: is not a statistics file (general.type is {kind!r})",
                remedy=f"Make one: ggprune calibrate MODEL -o {path.name}",
            )
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        others = {n: t for n, t in tensors.items() if not n.startswith("domain.")}
        if extra is not None:
            extra.update(others)
        statistics = _from_file(values, tensors)
        if values[f"{_PREFIX}.sha256"] != _digest(statistics, others):
            raise ValueError("its content is not what was written")
        return statistics
    except GgpruneError:
        raise
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: damaged statistics file: {error}", remedy="Calibrate again."
        ) from error


def _from_file(values: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Statistics:
    version = values[f"{_PREFIX}.version"]
    if version != _VERSION:
        raise InputError(
            f"statistics of version {version}, this ggprune reads {_VERSION}",
            remedy="Calibrate again, or use a newer ggprune.",
        )
    fields = Identity.__dataclass_fields__
    # Empty strings are left out by the gguf package's writer.
    model = {name: values.get(f"{_PREFIX}.model.{name}", "") for name in fields}
    identity = Identity(**model)
    layers = tuple(values[f"{_PREFIX}.layers"])
    domains = []
    for index, name in enumerate(values[f"{_PREFIX}.domains"]):
        arrays = {each: tensors[f"domain.{index}.{each}"] for each in FIELDS}
        for each, array in arrays.items():
            wanted = (len(layers), identity.experts) if each != "tokens" else (len(layers),)
            if array.shape != wanted:
                raise ValueError(f"{each} has the shape {array.shape}, expected {wanted}")
        tokens = values[f"{_PREFIX}.tokens"][index]
        sha256 = values[f"{_PREFIX}.texts"][index]
        shares = _shares(tensors, index, len(layers))
        domains.append(Domain(name, int(tokens), sha256, ExpertSums(**arrays), shares))
    settings = json.loads(values[f"{_PREFIX}.settings"])
    return Statistics(identity, layers, tuple(domains), settings)


def _shares(tensors: Mapping[str, npt.NDArray[Any]], index: int, layers: int) -> Shares | None:
    found = [tensors.get(f"domain.{index}.{name}") for name in SHARES]
    experts, shares = found
    if experts is None or shares is None:
        return None
    if experts.shape != shares.shape or experts.ndim != 3 or experts.shape[1] != layers:
        raise ValueError(f"shares of the shapes {experts.shape} and {shares.shape}")
    return Shares(experts, shares)
