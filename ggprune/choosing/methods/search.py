"""Searching beyond the one-shot methods; see choosing.search.search for how."""

from __future__ import annotations

from typing import Any

from ggprune.choosing.methods.method import Method, register
from ggprune.choosing.ranking import Decision
from ggprune.choosing.search import search
from ggprune.choosing.search.measuring import FEWEST_CHUNKS, Measuring
from ggprune.choosing.search.meter import CHUNK
from ggprune.choosing.search.search import Found, Rules, Text
from ggprune.errors import InputError

#: Passes over the validation text that deciding takes: one-shot plans, then candidates, halving.
_DECIDING = 8.0
_DECIDING_SHARE = 0.35
_FEWEST_PLANS = 30


def _decide(measuring: Measuring, keep: int) -> Decision:
    """Search for a plan that is better than the best one-shot plan.

    Raises:
        InputError: the search text is too short to draw plans on one part of it.
    """
    if not measuring.fitting:
        raise InputError(
            f"method={measuring.request.method}: the search text has no domain of two chunks of "
            f"{CHUNK} tokens: one to measure plans on, one to decide",
            remedy="Give more search_text, or choose another method.",
        )
    meter, rankings, request = measuring.meter, measuring.rankings, measuring.request
    first = next(iter(rankings.values()))
    scores = {name: ranking.scored(keep)[0] for name, ranking in rankings.items()}
    validation, plans = _divided(measuring)
    protection = first.protection
    with meter.routing() as routing:
        found = search.search(
            meter,
            scores,
            Rules(keep, lambda v: first.choose(v, keep), protection.fixed, protection.groups),
            Text(measuring.fitting, validation, routing, measuring.routing),
            plans,
            seed=request.seed,
        )
    won = found.name == request.method
    base = rankings[found.base].decided(keep)
    facts = {
        **({} if won else base.facts),  # How domains were weighed.
        **_facts(found, measuring, won),
        "coverage": first.coverage(found.kept),
        "chosen_by": request.method,
    }
    method = found.name if won else base.method
    return Decision(method=method, kept=found.kept, facts=facts)


def _divided(measuring: Measuring) -> tuple[list[int], int]:
    """Chunks to decide on, and plans to draw, within the minutes or for a number of plans."""
    plans = measuring.request.search_plans
    if plans is not None:
        share = _DECIDING_SHARE / (1 - _DECIDING_SHARE)
        chunks = max(FEWEST_CHUNKS, int(plans * share / _DECIDING))
        return measuring.validation[:chunks], plans
    validation = measuring.affordable(measuring.validation, _DECIDING, _DECIDING_SHARE)
    left = measuring.tokens_left / CHUNK - _DECIDING * len(validation)
    # One run of the whole model for each of the chunks that plans share.
    plans = int(left / (1 + 1 / search.PLANS_A_CHUNK))
    return validation, max(_FEWEST_PLANS, plans)


def _facts(found: Found, measuring: Measuring, won: bool) -> dict[str, Any]:
    return {
        "search_base": found.base,
        "search_won": won,
        "search_kl": {name: round(kl, 6) for name, kl in found.kl.items()},
        "search_gain": round(found.gain, 5),
        "search_gain_error": round(found.gain_error, 5),
        "search_plans": found.plans,
        "search_tokens": measuring.meter.tokens,
        "search_text": measuring.meter.text_hash,
    }


register(
    Method(
        name="search",
        formula="cover by what experts are worth, learned by measuring plans; also finds how many "
        "a token should use",
        source="docs/methods.md#search",
        needs="search",
        decide=_decide,
        finds_used=True,
        summary="the experts to keep were found by measuring plans on other text (method `search`)",
    )
)
