"""Scores as a plan needs them: by method, blended over domains, with protected experts first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing import blend, protect
from ggprune.choosing.methods import sums as scoring
from ggprune.choosing.methods.cover import cover_scores
from ggprune.choosing.methods.sums import COVER, DEFAULT_METHOD, METHODS
from ggprune.errors import InputError
from ggprune.plan import LayerPlan, Plan
from ggprune.types import Floats

if TYPE_CHECKING:
    from ggprune.choosing.choose import Request

_DEFAULT_COVERAGE = 0.95
_MOST_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Everything that turns a count into a plan.

    Attributes:
        statistics: what calibration observed.
        method: name of the scores.
        scores: of all text together, [layers, experts].
        by_domain: additive scores that coverage is measured in, [domains, layers, experts].
        blend: see Request; empty ranks by ``scores``.
        protected: coverage that a domain keeps at least, by its index.
        forced: experts that always stay.
        seed: for the record.
        trust: in each layer's scores, 0 to 1, by how much text it saw; None: full.
        fallback: weight-only scores that take over where trust ends, [layers, experts].
        counted: gives scores for a count, where they depend on it; ``scores`` are then for
            orientation.
    """

    statistics: Statistics
    method: str
    scores: Floats
    by_domain: Floats
    blend: str = ""
    protected: Mapping[int, float]
    forced: protect.Forced
    seed: int = 0
    trust: Floats | None = None
    fallback: Floats | None = None
    counted: Callable[[int], Floats] | None = None

    @classmethod
    def of(
        cls,
        statistics: Statistics,
        request: Request,
        say: Callable[[str], object] = lambda _: None,
        *,
        scores: Floats | None = None,
        by_domain: Floats | None = None,
    ) -> Ranking:
        """Score by a request's method.

        Args:
            statistics: what calibration observed.
            request: method, blend and protection.
            say: takes notes for the user.
            scores: instead of the method's own.
            by_domain: additive scores that belong to them.

        Raises:
            InputError: unknown method or domain, or a blend of scores that do not add up.
        """
        if scores is None:
            scores = scoring.score(request.method, statistics.total, request.seed)
            additive = METHODS[request.method].additive
        else:
            additive = by_domain is not None
        if request.blend and not additive:
            names = ", ".join(name for name, method in METHODS.items() if method.additive)
            raise InputError(
                f"--blend: scores by {request.method} are no sums over tokens, so domains "
                "cannot be added up",
                remedy=f"Use --method with one of: {names}.",
            )
        if by_domain is None:
            by_domain = scores_by_domain(statistics, request.method)
        domains = [domain.name for domain in statistics.domains]
        return cls(
            statistics=statistics,
            method=request.method,
            scores=scores,
            by_domain=by_domain,
            blend=request.blend,
            protected=_protected(request.protect_domains, domains),
            forced=_forced(statistics, request, say),
            seed=request.seed,
        )

    @property
    def domains(self) -> list[str]:
        """Names of the domains."""
        return [domain.name for domain in self.statistics.domains]

    @property
    def groups(self) -> int:
        """Blocks of experts that stay equally large."""
        return self.statistics.identity.groups

    def fixed(self) -> npt.NDArray[np.bool_]:
        """Which experts always stay, [layers, experts]."""
        marked = np.zeros(self.scores.shape, np.bool_)
        for row, layer in enumerate(self.statistics.layers):
            marked[row, sorted(self.forced.get(layer, ()))] = True
        return marked

    def kept(self, scores: Floats, keep: int) -> npt.NDArray[np.int64]:
        """Experts that stay by some scores, protected ones included, [layers, keep]."""
        raised = protect.raised(scores, self.statistics.layers, self.forced)
        return scoring.choose_all(raised, keep, self.groups)

    def ranked(self, keep: int) -> tuple[Floats, dict[str, Any]]:
        """Scores for a count, and what is to be said of them in the plan's file.

        Raises:
            InputError: more is protected than can stay.
        """
        protect.check_room(self.forced, keep, self.statistics.identity.counts)
        scores, facts = self._blended(keep)
        scores = self._shrunk(scores)
        if self.protected:
            scores = self._protect(scores, keep)
        covered = self.coverage(self.kept(scores, keep))
        return scores, {**facts, "coverage": covered}

    def best(self, keep: int) -> npt.NDArray[np.int64]:
        """Experts that stay by the ranking's own scores, [layers, keep]."""
        return self.kept(self.ranked(keep)[0], keep)

    def choice(self, scores: Floats, keep: int) -> npt.NDArray[np.int64]:
        """Experts that stay by other scores under the same protection, [layers, keep]."""
        if self.protected:
            scores = self._protect(scores, keep)
        return self.kept(scores, keep)

    def coverage(self, kept: npt.NDArray[np.int64]) -> dict[str, float]:
        """How well domains are served, by name; see blend.Coverage."""
        covered = blend.Coverage(self.by_domain, kept.shape[1], self.groups).of(kept)
        return blend.named(self.domains, covered)

    def plan(self, keep: int, settings: Mapping[str, Any] | None = None) -> Plan:
        """Keep the best-ranked experts.

        Raises:
            InputError: an impossible count, or more is protected than can stay.
        """
        self.statistics.identity.counts.check(keep)
        scores, facts = self.ranked(keep)
        forced = {str(layer): sorted(experts) for layer, experts in self.forced.items()}
        if forced:
            facts["protected_experts"] = forced
        return make_plan(
            self.statistics,
            keep,
            self.method,
            scores=protect.raised(scores, self.statistics.layers, self.forced),
            seed=self.seed,
            settings={**(settings or {}), **facts},
        )

    def best_retained(self, keep: int) -> float:
        """The worst layer's share of Σ g‖f‖ under the best possible choice: a bound for all."""
        sums = self.statistics.total.contribution_sum
        kept = scoring.choose_all(sums, keep, self.groups)
        totals = sums.sum(axis=1)
        held = np.take_along_axis(sums, kept, axis=1).sum(axis=1)
        held_share: Floats = np.divide(held, totals, where=totals > 0, out=np.ones_like(totals))
        return float(held_share.min())

    def _blended(self, keep: int) -> tuple[Floats, dict[str, Any]]:
        if self.counted is not None:
            return self.counted(keep), {}
        if not self.blend:
            return self.scores, {}
        count = len(self.domains)
        if self.blend == "uniform":
            weights = np.full(count, 1 / count)
        elif self.blend == "maxmin":
            weights = blend.max_min_weights(
                self.by_domain, keep, lambda scores: self.kept(scores, keep), self.groups
            )
        else:
            weights = blend.parse_weights(self.blend, self.domains)
        facts = {"weights": blend.named(self.domains, weights)}
        return blend.blended(self.by_domain, weights), facts

    def _shrunk(self, scores: Floats) -> Floats:
        """Pull layers that saw too little text toward the weight-only scores."""
        if self.trust is None or self.fallback is None or (self.trust >= 1).all():
            return scores
        trust = self.trust[:, None]
        own = blend.shares(scores) if scores.min() >= 0 else _ranks(scores)
        mixed: Floats = trust * own + (1 - trust) * _ranks(self.fallback)
        return mixed

    def _protect(self, scores: Floats, keep: int) -> Floats:
        """Add weight to protected domains until each keeps its coverage."""
        served = blend.Coverage(self.by_domain, keep, self.groups)
        relative = blend.shares(self.by_domain)
        base = blend.shares(scores) if scores.min() >= 0 else _ranks(scores)
        index, wanted = list(self.protected), np.array(list(self.protected.values()))
        weights = np.zeros(len(index))
        for _ in range(_MOST_STEPS):
            mixed = base + np.tensordot(weights, relative[index], axes=1)
            missing = served.of(self.kept(mixed, keep))[index] < wanted - 1e-12
            if not missing.any():
                protected: Floats = mixed
                return protected
            weights[missing] = weights[missing] * 1.15 + 0.02
        covered = served.of(self.kept(mixed, keep))[index]
        told = ", ".join(f"{self.domains[i]} {c:.3f}" for i, c in zip(index, covered, strict=True))
        raise InputError(
            f"--protect-domain: with {keep} experts they cannot all be kept; reached {told}",
            remedy="Keep more experts, or protect less.",
        )


def cover_ranking(
    statistics: Statistics, request: Request, say: Callable[[str], object] = lambda _: None
) -> Ranking:
    """Rank by cover, whose scores depend on how many experts stay.

    Raises:
        InputError: the statistics do not tell the routing of tokens.
    """
    shares = statistics.shares
    if shares is None:
        raise InputError(
            "--method cover: the statistics hold sums only, not the routing of tokens",
            remedy="Calibrate again, or use another --method, for instance contribution.",
        )
    experts = statistics.identity.experts
    ranking = Ranking.of(statistics, request, say, scores=shares.sums(experts))

    # Some seconds for long texts, and a search asks for the same count more than once.
    @functools.cache
    def counted(keep: int) -> Floats:
        fixed, groups = ranking.fixed(), ranking.groups
        return cover_scores(shares, keep, experts, fixed=fixed, groups=groups)

    return replace(ranking, method=COVER, counted=counted)


def scores_by_domain(statistics: Statistics, method: str) -> Floats:
    """Additive scores of each domain; Σ g‖f‖ for methods that are no sums.

    Returns:
        [domains, layers, experts].
    """
    known = METHODS.get(method)
    used = known if known is not None and known.additive else METHODS["contribution"]
    return np.array([used.score(domain.sums, 0) for domain in statistics.domains])


def _ranks(scores: Floats) -> Floats:
    """Ranks from 0 to 1 divided by the layer's sum: comparable with shares."""
    order = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1, kind="stable")
    return blend.shares(order.astype(np.float64))


def _protected(texts: tuple[str, ...], domains: list[str]) -> dict[int, float]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in domains:
            raise InputError(
                f"--protect-domain {text}: there is no domain {name!r}",
                remedy=f"Domains: {', '.join(domains)}.",
            )
        try:
            wanted = float(value) if equals else _DEFAULT_COVERAGE
        except ValueError:
            wanted = -1.0
        if not 0 < wanted <= 1:
            raise InputError(
                f"--protect-domain {text}: {value!r} is no coverage", remedy="Write NAME=0.95"
            )
        found[domains.index(name)] = wanted
    return found


def _forced(
    statistics: Statistics, request: Request, say: Callable[[str], object]
) -> dict[int, frozenset[int]]:
    identity = statistics.identity
    named = protect.parse_always_keep(request.always_keep, statistics.layers, identity.experts)
    if not request.super_experts or request.method == "random":
        return protect.joined(named)
    found = protect.super_experts(statistics.total.norm_max, statistics.layers, identity.layers)
    if found:
        told = "; ".join(f"{layer}:{','.join(map(str, sorted(e)))}" for layer, e in found.items())
        say(f"super experts are kept (layer:expert): {told}")
    return protect.joined(named, found)


def make_plan(
    statistics: Statistics,
    keep: int,
    method: str = DEFAULT_METHOD,
    *,
    scores: Floats | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Keep the best-scored experts of every layer.

    Args:
        statistics: what calibration observed.
        keep: experts a layer that stay.
        method: see scoring.METHODS; only a name if ``scores`` are given.
        scores: [layers, experts], instead of the method's own.
        seed: for methods that draw.
        settings: to record in the plan.

    Raises:
        InputError: an unknown method or an impossible number.
    """
    identity = statistics.identity
    identity.counts.check(keep)
    total = statistics.total
    if scores is None:
        scores = scoring.score(method, total, seed)
    layers = {}
    for row, layer in enumerate(statistics.layers):
        kept = scoring.choose(scores[row], keep, identity.groups)
        share = scoring.retained(total, row, kept)
        layers[layer] = LayerPlan(tuple(kept.tolist()), share)
    return Plan(
        keep,
        layers,
        method,
        identity.experts,
        identity.architecture,
        identity,
        {"seed": seed, **(settings or {})},
    )
