"""From scores and a count to who stays: blend, trust, protection, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ggprune.choosing import blend
from ggprune.choosing.protect import Protection
from ggprune.choosing.scores import Scores, counts_by_layer, fractions
from ggprune.choosing.trust import Trust
from ggprune.types import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Who stays.

    Attributes:
        method: that chose them.
        kept: experts, [layers, keep], each row ascending; with counts by layer a row for each.
        facts: for the plan's file: what was measured, coverage.
        experts_used: experts per token in the result; None for the model's number.
        zero_bias: whether measuring found the router's bias better left out.
    """

    method: str
    kept: Ints | Sequence[Ints]
    facts: Mapping[str, Any]
    experts_used: int | None = None
    zero_bias: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Ranking:
    """Experts in the order of their worth, for any count.

    Attributes:
        method: that gave the scores.
        scores: its scores.
        by_domain: additive scores that coverage is measured in, [domains, layers, experts].
        protection: what limits every plan.
        blend: how domains are weighed; None adds all text up as it comes.
        trust: in layers that saw little text; None is full trust.
    """

    method: str
    scores: Scores
    by_domain: Floats
    protection: Protection
    blend: str | None = None
    trust: Trust | None = None
    _scored: dict[int, tuple[Floats, dict[str, Any]]] = field(default_factory=dict, init=False)

    def scored(self, keep: int) -> tuple[Floats, dict[str, Any]]:
        """Return the final scores for a count, with facts for the plan's file.

        Raises:
            InputError: more is protected than can stay.
        """
        if keep not in self._scored:
            self.protection.check_room(keep)
            scores, facts = self._blended(keep)
            if self.trust is not None:
                scores = self.trust.mixed(scores)
            scores = self.protection.serve(scores, keep, self.by_domain)
            facts["coverage"] = self.coverage(self.protection.kept(scores, keep))
            self._scored[keep] = scores, facts
        return self._scored[keep]

    def kept(self, keep: int) -> Ints:
        """Return the experts that stay, [layers, keep]."""
        return self.protection.kept(self.scored(keep)[0], keep)

    def choose(self, scores: Floats, keep: int) -> Ints:
        """Choose by other scores under the same protection, [layers, keep]."""
        served = self.protection.serve(scores, keep, self.by_domain)
        return self.protection.kept(served, keep)

    def coverage(self, kept: Ints) -> dict[str, float]:
        """Compute how well each domain is served, by name; see blend.Coverage."""
        covered = blend.Coverage(self.by_domain, kept.shape[1], self.protection.groups).of(kept)
        return blend.by_name(self.protection.domains, covered)

    def decided(self, keep: int, *, by_layer: bool = False) -> Decision:
        """Decide for the best-ranked experts of each layer, or of all layers together."""
        facts = dict(self.scored(keep)[1])
        if self.blend:
            facts["blend"] = self.blend
        forced = {str(n): sorted(experts) for n, experts in self.protection.forced.items()}
        if forced:
            facts["protected_experts"] = forced
        if not by_layer:
            return Decision(method=self.method, kept=self.kept(keep), facts=facts)
        del facts["coverage"]  # Which is measured against the best plan with one count.
        scores, protection = self.scored(keep)[0], self.protection
        sums = self.by_domain.sum(axis=0)
        # Between a share of the layer and one of all layers: see docs/methods.md#counts-by-layer.
        worth = np.sqrt(sums * fractions(sums))
        counts = counts_by_layer(np.where(protection.fixed, np.inf, worth), keep, protection.counts)
        kept = [protection.kept(scores, n)[row] for row, n in enumerate(counts.tolist())]
        return Decision(method=self.method, kept=kept, facts=facts)

    def _blended(self, keep: int) -> tuple[Floats, dict[str, Any]]:
        protection, scores = self.protection, self.scores
        if scores.for_count is not None:
            return scores.for_count(keep, protection.fixed, protection.groups), {}
        if not self.blend:
            return scores.total, {}
        mixed, weights = blend.mixed(
            self.blend,
            self.by_domain,
            protection.domains,
            keep,
            lambda by: protection.kept(by, keep),
            protection.groups,
        )
        return mixed, {"weights": blend.by_name(protection.domains, weights)}
