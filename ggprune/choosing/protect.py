"""Experts that stay whatever their score, and domains that keep their coverage."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing import blend
from ggprune.choosing.request import Request
from ggprune.choosing.scores import choose_all, comparable, fractions
from ggprune.errors import InputError
from ggprune.model import ExpertCounts
from ggprune.types import Floats, Ints
from ggprune.util import did_you_mean

log = logging.getLogger(__name__)

#: "Super experts": arXiv 2507.23279. Their outputs make the massive activations that attention
#: sinks rest on; without a handful of them a model collapses.
_PERCENTILE = 99.5
_OF_LARGEST = 0.1
_FIRST_LAYERS = 0.75

_DEFAULT_COVERAGE = 0.95
_MOST_STEPS = 200

Forced = Mapping[int, frozenset[int]]
_ENTRY = re.compile(r"(\d+):(\d+(?:,\d+)*)")


@dataclass(frozen=True, slots=True)
class Protection:
    """What limits every plan of a request, whatever the scores.

    Attributes:
        layers: block numbers that rows of scores stand for.
        counts: of the model.
        forced: experts that always stay, by layer.
        domains: their names.
        wanted: coverage that a domain keeps at least, by its index.
    """

    layers: tuple[int, ...]
    counts: ExpertCounts
    forced: Forced
    domains: tuple[str, ...]
    wanted: Mapping[int, float]

    @classmethod
    def of(cls, statistics: Statistics, request: Request, *, super_experts: bool) -> Protection:
        """Read a request's protection, with super experts where they are to stay.

        Raises:
            InputError: it names a layer, an expert or a domain that is not there.
        """
        identity, layers = statistics.identity, statistics.layers
        forced = parse_always_keep(request.always_keep, layers, identity.experts)
        if super_experts:
            found = find_super_experts(statistics.total.norm_max, layers, identity.layers)
            if found:
                named = (f"{n}:{','.join(map(str, sorted(e)))}" for n, e in found.items())
                log.info("super experts are kept (layer:expert): %s", "; ".join(named))
            for layer, experts in found.items():
                forced[layer] = forced.get(layer, frozenset()) | experts
        domains = tuple(domain.name for domain in statistics.domains)
        wanted = parse_domains(request.protect_domains, domains)
        return cls(layers, identity.counts, forced, domains, wanted)

    @property
    def groups(self) -> int:
        """Expert groups; each keeps the same number."""
        return self.counts.groups

    @property
    def fixed(self) -> npt.NDArray[np.bool_]:
        """Which experts always stay, [layers, experts]."""
        marks = np.zeros((len(self.layers), self.counts.experts), np.bool_)
        for row, layer in enumerate(self.layers):
            marks[row, sorted(self.forced.get(layer, ()))] = True
        return marks

    def kept(self, scores: Floats, keep: int) -> Ints:
        """Choose the best experts after the forced ones, [layers, keep]."""
        raised = np.where(self.fixed, np.inf, scores) if self.forced else scores
        return choose_all(raised, keep, self.groups)

    def check_room(self, keep: int) -> None:
        """Raise InputError if more experts of a group must stay than can."""
        size, room = self.counts.experts // self.groups, keep // self.groups
        for layer, experts in self.forced.items():
            for group in range(self.groups):
                inside = [e for e in sorted(experts) if e // size == group]
                if len(inside) > room:
                    where = f" of group {group}" if self.groups > 1 else ""
                    raise InputError(
                        f"layer {layer}: {len(inside)} experts{where} are protected ({inside}), "
                        f"only {room} can stay",
                        remedy="Keep more, or protect fewer (always_keep=…, super_experts=False).",
                    )

    def serve(self, scores: Floats, keep: int, by_domain: Floats) -> Floats:
        """Add weight to the protected domains until each keeps its coverage of ``by_domain``.

        Raises:
            InputError: they cannot all be kept.
        """
        if not self.wanted:
            return scores
        coverage = blend.Coverage(by_domain, keep, self.groups)
        relative, base = fractions(by_domain), comparable(scores)
        index, wanted = list(self.wanted), np.array(list(self.wanted.values()))
        weights = np.zeros(len(index))
        for _ in range(_MOST_STEPS):
            raised: Floats = base + np.tensordot(weights, relative[index], axes=1)
            covered = coverage.of(self.kept(raised, keep))[index]
            missing = covered < wanted - 1e-12
            if not missing.any():
                return raised
            weights[missing] = weights[missing] * 1.15 + 0.02
        reached = (f"{self.domains[i]} {c:.3f}" for i, c in zip(index, covered, strict=True))
        raise InputError(
            f"protect_domains: with {keep} experts they cannot all be kept; reached "
            f"{', '.join(reached)}",
            remedy="Keep more experts, or protect less.",
        )


def find_super_experts(
    norm_max: Floats, layers: Sequence[int], depth: int
) -> dict[int, frozenset[int]]:
    """Find experts whose largest output is far above all others', by layer.

    An expert is one if its max ‖f‖ is above the 99.5th percentile of all experts' and above a
    tenth of the largest, in the first three quarters of the model's layers (arXiv 2507.23279).

    Args:
        norm_max: max ‖f‖, [layers with experts, experts].
        layers: their block numbers.
        depth: layers of the model.
    """
    if not norm_max.size or norm_max.max() <= 0:
        return {}
    limit = max(float(np.percentile(norm_max, _PERCENTILE)), _OF_LARGEST * float(norm_max.max()))
    found = {}
    for row, layer in enumerate(layers):
        experts = np.flatnonzero(norm_max[row] > limit)
        if layer < _FIRST_LAYERS * depth and len(experts):
            found[layer] = frozenset(experts.tolist())
    return found


def parse_always_keep(
    texts: Iterable[str], layers: Sequence[int], experts: int
) -> dict[int, frozenset[int]]:
    """Read ``3:17,44`` (layer 3, experts 17 and 44), repeatable; ``3:17;5:2`` in one.

    Raises:
        InputError: it is not that, or there is no such layer or expert.
    """
    forced: dict[int, frozenset[int]] = {}
    for part in (part.strip() for text in texts for part in text.split(";")):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise InputError(
                f"always_keep={part}: is not LAYER:EXPERT,EXPERT", remedy="Write 3:17,44"
            )
        layer = int(match[1])
        numbers = frozenset(int(number) for number in match[2].split(","))
        if layer not in layers or max(numbers) >= experts:
            raise InputError(
                f"always_keep={part}: there is no such layer or expert",
                remedy=f"Layers with experts: {layers[0]} to {layers[-1]}; experts 0 to "
                f"{experts - 1}.",
            )
        forced[layer] = forced.get(layer, frozenset()) | numbers
    return forced


def parse_domains(texts: Iterable[str], domains: Sequence[str]) -> dict[int, float]:
    """Read ``NAME`` or ``NAME=0.95``: the coverage each domain keeps, by its index.

    Raises:
        InputError: there is no such domain, or it is no coverage.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in domains:
            raise InputError(
                f"protect_domains={text}: there is no domain {name!r}."
                f"{did_you_mean(name, domains)}",
                remedy=f"Domains: {', '.join(domains)}.",
            )
        try:
            wanted = float(value) if equals else _DEFAULT_COVERAGE
        except ValueError:
            wanted = -1.0
        if not 0 < wanted <= 1:
            raise InputError(
                f"protect_domains={text}: {value!r} is no coverage", remedy="Write NAME=0.95"
            )
        found[list(domains).index(name)] = wanted
    return found
