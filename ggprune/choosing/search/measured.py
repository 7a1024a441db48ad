"""Methods and budgets that measure plans on the model: auto, search, limits on divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ggprune.calibration.statistics import Statistics
from ggprune.choosing import budget as budgets
from ggprune.choosing import protect
from ggprune.choosing.budget import Budget
from ggprune.choosing.methods.sums import COVER, METHODS
from ggprune.choosing.ranking import Ranking, cover_ranking, make_plan
from ggprune.choosing.search import search
from ggprune.choosing.search.meter import CHUNK, MaskedMeter
from ggprune.choosing.search.search import Found, Rules, Text
from ggprune.errors import InputError
from ggprune.plan import Plan
from ggprune.text.builtin import SEARCH, builtin_texts
from ggprune.types import Floats

if TYPE_CHECKING:
    from ggprune.choosing.choose import Request, Resources

#: What ``auto`` compares; the second part is the blend.
ONE_SHOT = (
    *(("reap", ""), ("contribution", ""), ("gate", ""), ("frequency", ""), ("ean", "")),
    *(("man", ""), ("msan", ""), ("contribution", "maxmin"), ("gate", "maxmin")),
)
#: Passes over the validation text that deciding takes: one-shot plans, then candidates, halving.
_DECIDING = 8.0
_DECIDING_SHARE = 0.35
#: The same for how many experts a token uses.
_USED_PASSES = 4.0
_USED_SHARE = 0.1
_FEWEST_PLANS = 30
_FEWEST_CHUNKS = 12


def choose_measured(statistics: Statistics, request: Request, have: Resources) -> Plan:
    """Choose by masked evaluation on the search text.

    Args:
        statistics: what calibration observed.
        request: with method ``auto`` or ``search``, or a limit on quality.
        have: the model, how to run it, and the search text.

    Raises:
        InputError: no model, or no count reaches the limit.
    """
    from ggprune.choosing.choose import with_trust

    if have.model is None or have.options is None:
        raise InputError(
            f"--method {request.method}: runs the model", remedy="Give it: --model MODEL"
        )
    sources = have.search_sources or builtin_texts(SEARCH)
    with MaskedMeter(
        have.model.gguf.path,
        have.options,
        statistics.layers,
        sources,
        cache=have.cache,
        journal=have.journal,
    ) as meter:
        rankings = one_shot_rankings(statistics, request)
        first = with_trust(next(iter(rankings.values())), have)
        rankings = {
            name: replace(ranking, trust=first.trust, fallback=first.fallback)
            for name, ranking in rankings.items()
        }
        with have.progress(meter.evaluator.tokens, "base model", "tok") as done:
            meter.evaluator.progress = done
            rate = meter.start()
        job = _Job(request, have, meter, rankings, rate)
        return job.plan()


def one_shot_rankings(statistics: Statistics, request: Request) -> dict[str, Ranking]:
    """Rankings to compare, by name; the request's own method alone if it names one."""
    if request.method == COVER:
        return {COVER: cover_ranking(statistics, request)}
    if request.method in METHODS:
        return {request.method: Ranking.of(statistics, request)}
    found = {}
    for method, blend in ONE_SHOT:
        if request.blend:
            if blend or not METHODS[method].additive:
                continue
            blend = request.blend
        asked = replace(request, method=method, blend=blend)
        if blend == "maxmin" and len(statistics.domains) < 2:
            continue
        found[f"{method}, {blend}" if blend else method] = Ranking.of(statistics, asked)
    if statistics.tells_routing and not request.blend:
        found[COVER] = cover_ranking(statistics, request)
    return found


class _Job:
    """One choice: what the stages share."""

    def __init__(
        self,
        request: Request,
        have: Resources,
        meter: MaskedMeter,
        rankings: Mapping[str, Ranking],
        rate: float,
    ) -> None:
        self.request, self.have, self.meter, self.rankings = request, have, meter, rankings
        self.budget_tokens = rate * 60 * request.search_minutes
        self.statistics = next(iter(rankings.values())).statistics
        self.fitting, self.validation = meter.parts()

    def plan(self) -> Plan:
        """The count, then the experts."""
        from ggprune.choosing.choose import known_count, settings_of

        counts = self.statistics.identity.counts
        keep = known_count(self.request.budget, counts, self.have.model)
        settings = dict(settings_of(self.request))
        with self.have.progress(round(self.budget_tokens), "searching", "tok") as done:
            self.meter.evaluator.progress = done
            self.meter.use(self.request.fixed_used)
            if keep is None:
                keep, facts = self._count()
                settings |= facts
            searches = self.request.method == "search"
            if self.request.tries_fewer_used:
                settings |= self._try_fewer_used(keep)
            plan = self._search(keep, settings) if searches else self._auto(keep, settings)
            return replace(plan, experts_used=self.meter.experts_used)

    def _try_fewer_used(self, keep: int) -> dict[str, Any]:
        """Let a token use fewer experts if that is closer to the model: fewer strangers step in."""
        ranking = self.rankings.get(COVER) or self._base_ranking(keep)
        kept = ranking.best(keep)
        chunks = self._affordable(self.validation, _USED_PASSES, _USED_SHARE)
        before = self.meter.tokens

        def measure(experts_used: int) -> Floats:
            self.meter.use(experts_used)
            return self.meter.kl(kept, chunks)

        used, kl = search.best_used(measure, self.statistics.identity.experts_used)
        self.meter.use(used)
        self.budget_tokens -= self.meter.tokens - before
        told = ", ".join(f"{n}: {value:.4f}" for n, value in kl.items())
        self.have.say(f"a token uses {used} experts; mean KL by number: {told}")
        return {"experts_used_kl": {str(n): round(value, 6) for n, value in kl.items()}}

    def _auto(self, keep: int, settings: dict[str, Any]) -> Plan:
        """The best one-shot plan on the search text."""
        plans = {name: ranking.best(keep) for name, ranking in self.rankings.items()}
        chunks = self._affordable([*self.fitting, *self.validation], len(plans) / 2 + 1)
        lasted = search.compare_one_shot(self.meter, plans, chunks, always=["reap"])
        best = next(iter(lasted))
        measured = {name: round(float(kl.mean()), 6) for name, kl in lasted.items()}
        if len(self.rankings) > 1:
            told = ", ".join(f"{name} {kl:.4f}" for name, kl in measured.items())
            self.have.say(f"auto takes {best}; mean KL on the search text: {told}")
        facts = {
            "chosen_by": self.request.method,
            "search_kl": measured,
            "search_text": self.meter.text_hash,
            "search_tokens": self.meter.tokens,
        }
        return self.rankings[best].plan(keep, {**settings, **facts})

    def _search(self, keep: int, settings: dict[str, Any]) -> Plan:
        ranking = next(iter(self.rankings.values()))
        protect.check_room(ranking.forced, keep, self.statistics.identity.counts)
        scores = {name: r.ranked(keep)[0] for name, r in self.rankings.items()}
        validation, plans = self._divided()
        with self.meter.routing() as routing:
            found = search.search(
                self.meter,
                scores,
                Rules(keep, lambda v: ranking.choice(v, keep), ranking.fixed(), ranking.groups),
                Text(self.fitting, validation, routing, self.statistics.shares),
                plans,
                seed=self.request.seed,
                say=self.have.say,
            )
        facts = {**self._facts(found), "coverage": ranking.coverage(found.kept)}
        return _search_plan(self.statistics, ranking, found, keep, {**settings, **facts})

    def _divided(self) -> tuple[list[int], int]:
        """Chunks to decide on, and plans to draw, within the minutes or for a number of plans."""
        plans = self.request.search_plans
        if plans is not None:
            share = _DECIDING_SHARE / (1 - _DECIDING_SHARE)
            return self.validation[: max(_FEWEST_CHUNKS, int(plans * share / _DECIDING))], plans
        validation = self._affordable(self.validation, _DECIDING, _DECIDING_SHARE)
        left = self.budget_tokens / CHUNK - _DECIDING * len(validation)
        # One run of the whole model for each of the chunks that plans share.
        plans = int(left / (1 + 1 / search.PLANS_A_CHUNK))
        return validation, max(_FEWEST_PLANS, plans)

    def _affordable(self, chunks: list[int], passes: float, share: float = 1.0) -> list[int]:
        """As many of the chunks as ``passes`` over them leave within the minutes."""
        if self.request.search_plans is not None:
            return chunks
        room = int(share * self.budget_tokens / CHUNK / passes)
        return chunks[: max(room, min(_FEWEST_CHUNKS, len(chunks)))]

    def _facts(self, found: Found) -> dict[str, Any]:
        return {
            "search_base": found.base,
            "search_won": found.name == "search",
            "search_kl": {name: round(kl, 6) for name, kl in found.kl.items()},
            "search_gain": round(found.gain, 5),
            "search_gain_error": round(found.gain_error, 5),
            "search_plans": found.plans,
            "search_tokens": self.meter.tokens,
            "search_text": self.meter.text_hash,
        }

    def _count(self) -> tuple[int, dict[str, Any]]:
        """The fewest experts within the limit on quality, by bisection."""
        budget = self.request.budget
        counts = self.statistics.identity.counts
        allowed = budgets.possible_counts(counts, budget.multiple_of)
        ranking = self._base_ranking(allowed[len(allowed) // 2])
        chunks = self._affordable([*self.fitting, *self.validation], len(allowed).bit_length() + 2)
        seen: dict[int, float] = {}

        def within(keep: int) -> bool:
            kl, ratio = self.meter.quality(ranking.best(keep), chunks)
            seen[keep] = kl if budget.max_kld is not None else ratio
            return seen[keep] <= _limit(budget)

        low, high = -1, len(allowed) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(allowed[middle]) else (middle, high)
        keep = allowed[high]
        what = "mean KL" if budget.max_kld is not None else "perplexity ratio"
        if keep == counts.experts:
            raise InputError(
                f"--{budget.rule.replace('_', '-')} {_limit(budget)}: dropping any expert exceeds "
                "it on the search text",
                remedy="Allow more.",
            )
        told = ", ".join(f"{n}: {value:.4f}" for n, value in sorted(seen.items()))
        self.have.say(f"{keep} experts are the fewest within the limit; {what} by count: {told}")
        return keep, {"search_counts": {str(n): round(v, 6) for n, v in sorted(seen.items())}}

    def _base_ranking(self, keep: int) -> Ranking:
        """The ranking that counts are tried with."""
        if len(self.rankings) == 1:
            return next(iter(self.rankings.values()))
        plans = {name: ranking.best(keep) for name, ranking in self.rankings.items()}
        chunks = self._affordable(self.validation, 4 * len(plans))
        return self.rankings[next(iter(search.compare_one_shot(self.meter, plans, chunks)))]


def _limit(budget: Budget) -> float:
    limit = budget.max_kld if budget.max_kld is not None else budget.max_ppl_ratio
    assert limit is not None
    return limit


def _search_plan(
    statistics: Statistics,
    ranking: Ranking,
    found: Found,
    keep: int,
    settings: Mapping[str, Any],
) -> Plan:
    """The winning plan; its scores only rank, so they are replaced by who stays."""
    stays = np.zeros_like(found.scores)
    np.put_along_axis(stays, found.kept, 1.0, axis=1)
    name = "search" if found.name == "search" else found.base
    said = {**settings, "chosen_by": "search"}
    return make_plan(statistics, keep, name, scores=stays, seed=ranking.seed, settings=said)
