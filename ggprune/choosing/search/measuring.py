"""Choosing by measuring plans on the search text: the count, the experts used, who stays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ggprune.calibration.routing import Shares
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.count import known_count
from ggprune.choosing.ranking import Decision, Ranking
from ggprune.choosing.request import QUALITY_RULES, Request, Resources
from ggprune.choosing.search import search
from ggprune.choosing.search.meter import CHUNK, MaskedMeter
from ggprune.errors import InputError
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.probe import SAMPLED
from ggprune.evaluation.probe_gate import confirms
from ggprune.evaluation.probing import can_chat, short_probe
from ggprune.evaluation.verdict import answers_in_a_line
from ggprune.plan import LayerPlan, Plan
from ggprune.text.builtin import SEARCH, builtin_texts
from ggprune.types import Floats, Ints

log = logging.getLogger(__name__)

#: Passes over the validation text that finding the number of experts used takes, and the share of
#: the time it may take.
_USED_PASSES = 4.0
_USED_SHARE = 0.1
#: The fewest chunks that decide anything.
FEWEST_CHUNKS = 12


@dataclass(slots=True, kw_only=True)
class Measuring:
    """State of one choice by measurement.

    Attributes:
        request: what is asked for.
        rankings: candidates by name.
        default: the candidate that is usually taken.
        meter: measures plans.
        routing: of the calibration text; None if the statistics hold sums only.
        tokens_left: tokens of plans that may still be measured.
    """

    request: Request
    rankings: Mapping[str, Ranking]
    default: str
    meter: MaskedMeter
    routing: Shares | None
    tokens_left: float
    fitting: list[int] = field(init=False)
    validation: list[int] = field(init=False)
    _base: Ranking | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.fitting, self.validation = self.meter.parts()

    def affordable(self, chunks: list[int], passes: float, share: float = 1.0) -> list[int]:
        """Take as many of the chunks as ``passes`` over them leave within a share of the time."""
        if self.request.search_plans is not None:
            return chunks
        room = int(share * self.tokens_left / CHUNK / passes)
        return chunks[: max(room, min(FEWEST_CHUNKS, len(chunks)))]

    def base_ranking(self, keep: int) -> Ranking:
        """Find the best candidate for a count, once: counts are tried with it."""
        if self._base is None:
            plans = {name: ranking.kept(keep) for name, ranking in self.rankings.items()}
            chunks = self.affordable(self.validation, 4 * len(plans))
            parts = search.quarters(chunks) if len(plans) > 1 else []
            lasted = search.compare_one_shot(self.meter, plans, parts)
            self._base = self.rankings[next(iter(lasted))]
        return self._base

    def count(self) -> tuple[int, dict[str, Any]]:
        """Find the fewest experts within the limit on quality, by bisection.

        Raises:
            InputError: only all experts are.
        """
        budget = self.request.budget
        counts = next(iter(self.rankings.values())).protection.counts
        allowed = counts.possible(budget.multiple_of)
        ranking = self.base_ranking(allowed[len(allowed) // 2])
        chunks = self.affordable([*self.fitting, *self.validation], len(allowed).bit_length() + 2)
        limit, seen = getattr(budget, budget.rule), {}

        def within(keep: int) -> bool:
            kl, ratio = self.meter.quality(ranking.kept(keep), chunks)
            seen[keep] = kl if budget.max_kld is not None else ratio
            return bool(seen[keep] <= limit)

        low, high = -1, len(allowed) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if within(allowed[middle]) else (middle, high)
        keep = allowed[high]
        if keep == counts.experts:
            raise InputError(
                f"{budget.asked}: dropping any expert exceeds it on the search text",
                remedy="Allow more.",
            )
        what = "mean KL" if budget.max_kld is not None else "perplexity ratio"
        numbers = ", ".join(f"{n}: {value:.4f}" for n, value in sorted(seen.items()))
        log.info("%d experts are the fewest within the limit; %s by count: %s", keep, what, numbers)
        return keep, {"search_counts": {str(n): round(v, 6) for n, v in sorted(seen.items())}}

    def find_used(self, keep: int) -> dict[str, Any]:
        """Let a token use other experts if that brings the plan closer to the model.

        And if a short probe confirms that what it writes then is no worse. A model that cannot
        chat keeps its number, unless another is asked for; then divergence alone decides.
        """
        model = self.meter.evaluator.description.prunable()
        chats = can_chat(model)
        own, most = model.experts_used, model.counts.most_used(keep)
        if self.request.experts_used is None:
            if not chats:
                return _said(f"{own}: there is no chat template to try answers of others with")
            try:
                model.check_used(1, keep)
                model.overrides(1)
            except InputError as error:
                return _said(f"{own}: {error.message}")
        ranking, measure = self._trial(keep)
        before = self.meter.tokens

        def using(experts_used: int) -> Floats:
            self.meter.use(experts_used)
            return measure()

        used, kl = search.best_used(using, own, most)
        self.meter.use(None)
        self.tokens_left -= self.meter.tokens - before
        numbers = ", ".join(f"{n}: {value:.4f}" for n, value in kl.items())
        log.info("mean KL by number of experts a token uses: %s", numbers)
        facts = {"experts_used_kl": {str(n): round(value, 6) for n, value in kl.items()}}
        if used == own:
            return facts | _said(f"{own}: no other number is surely closer to the whole model")
        if not chats:
            self.meter.use(used)
            return facts | _said(f"{used}, by divergence alone: there is no chat template")
        return facts | self._confirm(ranking.kept(keep), own, used)

    def _confirm(self, kept: Ints, own: int, used: int) -> dict[str, Any]:
        """Let a token use so many experts if the plan's answers are no worse with them."""
        found = self._answers(kept, used)
        if not found:
            return _said(f"{own}: too slow to try answers with {used} in the time given")
        mode = found["modes"][SAMPLED]
        why = f"{own}: answers do not confirm {used}"
        if confirms(mode["gate"]):
            self.meter.use(used)
            why = f"{used}, which answers confirm"
        return _said(f"{why}: {answers_in_a_line(mode)}") | {"experts_used_probe": mode["gate"]}

    def _answers(self, kept: Ints, used: int) -> dict[str, Any]:
        """Compare a plan's answers with so many experts used with those it gives anyway."""
        layers = {
            layer: LayerPlan(tuple(row.tolist()))
            for layer, row in zip(self.meter.layers, kept, strict=True)
        }
        plan = Plan(kept.shape[1], layers, zero_bias=self.meter.zero_bias)
        evaluator, minutes = self.meter.evaluator, self.request.search_minutes
        evaluator.unload()
        self.tokens_left *= 1 - _USED_SHARE  # What both sides may take.
        return short_probe(
            evaluator.description,
            Candidate.of(replace(plan, experts_used=used)),
            evaluator.options,
            base=plan,
            seconds=None if self.request.search_plans else 30 * minutes * _USED_SHARE,
        )

    def find_bias(self, keep: int) -> dict[str, Any]:
        """Leave the router's bias out if that brings the plan closer to the model."""
        _, measure = self._trial(keep)
        before, kl = self.meter.tokens, {}
        for self.meter.zero_bias in (False, True):
            kl["zero" if self.meter.zero_bias else "keep"] = measure()
        self.meter.zero_bias = search.is_better(kl["zero"], kl["keep"])
        self.tokens_left -= self.meter.tokens - before
        found = {name: round(float(each.mean()), 6) for name, each in kl.items()}
        best = "left out" if self.meter.zero_bias else "kept"
        log.info("the router's bias is %s; mean KL with and without: %s", best, found)
        return {"router_bias_kl": found}

    def _trial(self, keep: int) -> tuple[Ranking, Callable[[], Floats]]:
        """Return a ranking whose plan settings are tried on, and what measures it by chunk."""
        ranking = self.rankings.get(self.default) or self.base_ranking(keep)
        kept = ranking.kept(keep)
        chunks = self.affordable(self.validation, _USED_PASSES, _USED_SHARE)
        return ranking, lambda: self.meter.kl(kept, chunks)


#: Chooses, for a count, who stays.
Decide = Callable[[Measuring, int], Decision]


def best(measuring: Measuring, keep: int) -> Decision:
    """Decide for the best of the candidates, where the count or the experts used are measured too.

    (Where they are not, see contest.)
    """
    decision = measuring.base_ranking(keep).decided(keep)
    facts = {
        "chosen_by": measuring.request.method,
        "search_text": measuring.meter.text_hash,
        "search_tokens": measuring.meter.tokens,
    }
    return replace(decision, facts={**facts, **decision.facts})


def decide_measured(
    decide: Decide,
    rankings: Mapping[str, Ranking],
    statistics: Statistics,
    request: Request,
    resources: Resources,
    *,
    default: str,
    find_used: bool,
) -> Decision:
    """Choose by masked evaluation on the search text.

    Args:
        decide: chooses among the rankings.
        rankings: candidates by name.
        statistics: what calibration observed.
        request: what is asked for; its method is for messages.
        resources: the model, how to run it, and the search text.
        default: the candidate that is usually taken.
        find_used: whether to find how many experts a token should use.

    Raises:
        InputError: no model, or no count reaches a limit.
    """
    model, options = resources.runnable_for(_reason(request))
    sources = resources.search_sources or builtin_texts(SEARCH)
    with MaskedMeter(
        model.gguf.path,
        options,
        statistics.layers,
        sources,
        cache=resources.cache,
        journal=resources.journal,
    ) as meter:
        rate = meter.start(resources.progress)
        measuring = Measuring(
            request=request,
            rankings=rankings,
            default=default,
            meter=meter,
            routing=statistics.shares,
            tokens_left=rate * 60 * request.search_minutes,
        )
        text = ", ".join(dict.fromkeys(chunk.domain for chunk in meter.chunks))
        if sources == builtin_texts(SEARCH):
            text = f"the built-in conversations ({text}); search_text=NAME=PATH measures on yours"
        log.info("plans are measured on %s tokens of %s", f"{meter.evaluator.tokens:,}", text)
        with meter.showing(resources.progress, round(measuring.tokens_left), "searching"):
            meter.use(request.fixed_used)
            meter.zero_bias = request.router_bias == "zero"
            keep = known_count(request.budget, statistics.identity.counts, model)
            facts: dict[str, Any] = {}
            if keep is None:
                keep, facts = measuring.count()
            if request.router_bias == "auto":
                facts |= measuring.find_bias(keep)
            if find_used:
                facts |= measuring.find_used(keep)
            decision = decide(measuring, keep)
            facts |= decision.facts
            used, zero = meter.experts_used, meter.zero_bias
            return replace(decision, facts=facts, experts_used=used, zero_bias=zero)


def _said(reason: str) -> dict[str, Any]:
    """Log why a token uses so many experts, and return it for the plan."""
    log.info("experts used: %s", reason)
    return {"experts_used_reason": reason}


def _reason(request: Request) -> str:
    for name in ("experts_used", "router_bias"):
        if getattr(request, name) == "auto":
            return f"{name}=auto"
    measured = request.budget.rule in QUALITY_RULES
    return request.budget.asked if measured else f"method={request.method}"
