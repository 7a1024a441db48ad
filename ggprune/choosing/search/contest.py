"""Choosing among one-shot plans by measuring them, for a fraction of what calibration costs.

All plans run, masked, over the same few chunks of the search text, one of every domain in turn, so
that they are compared in pairs: what is hard in a chunk is hard for all of them. After every round
the worse half goes; the last are measured on as much text as the allowance is left for.
Nothing depends on time: the same input chooses the same plan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np

from ggprune.calibration.statistics import Statistics
from ggprune.choosing.ranking import Decision, Ranking
from ggprune.choosing.request import Request, Resources
from ggprune.choosing.search.meter import CHUNK, MaskedMeter
from ggprune.choosing.search.search import compare_one_shot, survivors
from ggprune.evaluation.logcache import tokens_kept
from ggprune.text.builtin import SEARCH, builtin_texts
from ggprune.types import Ints

log = logging.getLogger(__name__)

#: Tokens that the plans and the whole model may decode together, relative to calibration's. These
#: are scored, which calibration's are not: in computing time it is up to a quarter.
ALLOWANCE = 0.2
#: Tokens of a chunk of plain text. Divergences differ much more between documents than within one,
#: so many short chunks tell more; still shorter ones tell of another use of the model
#: (benchmarks/contests.py). An answer in a conversation may begin late: CHUNK for these.
_SHORT = 128
#: Fewer chunks rule nothing out.
_FEWEST = 5
#: Plans are taken for one if they differ in at most this share of the experts that stay, or go,
#: whichever are fewer.
_ALIKE = 0.02


def contest(
    rankings: Mapping[str, Ranking],
    statistics: Statistics,
    request: Request,
    resources: Resources,
    keep: int,
) -> Decision:
    """Decide for the candidate whose plan has the smallest mean KL divergence on the search text.

    Args:
        rankings: candidates by name, the most promising first: the last are left out where the
            allowance is too small for all of them.
        statistics: what calibration observed; the allowance is a share of its tokens.
        request: what is asked for.
        resources: the model, how to run it, and the search text.
        keep: experts a layer.

    Raises:
        InputError: no model, or text that is shorter than a chunk.
    """
    model, options = resources.runnable_for(f"method={request.method}")
    candidates = {name: each.kept(keep) for name, each in rankings.items()}
    plans = _distinct(candidates, min(keep, model.experts - keep))
    sources = resources.search_sources or builtin_texts(SEARCH)
    chats = any(document.messages for source in sources for document in source.documents)
    chunk = CHUNK if chats else _SHORT
    tokens = int(ALLOWANCE * sum(domain.tokens for domain in statistics.domains))
    open_meter = partial(
        MaskedMeter,
        *(model.gguf.path, options, statistics.layers, sources),
        chunk=chunk,
        cache=resources.cache,
    )
    length = _mean_length(open_meter, tokens // len(sources)) if chats else chunk
    allowed, most = tokens // length, tokens_kept(model) // length
    why = "too little text was calibrated on" if len(plans) > 1 else "all choose alike"
    while not (sizes := rounds(len(plans), allowed, len(sources), most)) and len(plans) > 1:
        plans.popitem()
    if not sizes:
        best = next(iter(plans))
        log.info("methods are not compared, as %s: %s is taken", why, best)
        decision = rankings[best].decided(keep)
        return replace(decision, facts={"chosen_by": request.method, **decision.facts})
    with open_meter(max_tokens=-(-sum(sizes) // len(sources)) * length) as meter:
        meter.use(request.fixed_used)
        meter.zero_bias = request.router_bias == "zero"
        with meter.showing(resources.progress, allowed * length, "comparing methods"):
            meter.base()
            lasted = compare_one_shot(meter, plans, _parts(meter.order(), sizes))
        best = next(iter(lasted))
        kl = {name: round(float(values.mean()), 6) for name, values in lasted.items()}
        numbers = "; ".join(f"{name} {value:.4f}" for name, value in kl.items())
        count = len(plans)
        log.info("%s is the best of %d methods on the search text: KL %s", best, count, numbers)
        decision = rankings[best].decided(keep)
        facts = {
            "chosen_by": request.method,
            "search_kl": kl,
            "search_text": meter.text_hash,
            "search_tokens": meter.evaluator.tokens + meter.tokens,
        }
        return replace(decision, facts={**facts, **decision.facts})


def _mean_length(open_meter: Callable[..., MaskedMeter], tokens: int) -> int:
    """Find how many tokens conversations have, cut at a chunk; of so many tokens of each domain."""
    with open_meter(max_tokens=tokens) as meter:
        return -(-meter.evaluator.tokens // len(meter.chunks))


def rounds(plans: int, allowed: int, domains: int, most: int) -> list[int]:
    """Find how many chunks each round adds.

    Args:
        plans: candidates; after every round some of them go.
        allowed: chunks that may be run, once for every plan and once for the whole model.
        domains: rounds read as much of each, if they read as many chunks.
        most: chunks of text, at most.

    Returns:
        Chunks by round; none if there is nothing to compare, or too little allowed to do so.
    """
    alive = [plans]
    while survivors(alive[-1]) < alive[-1]:
        alive.append(survivors(alive[-1]))
    runs = sum(alive)
    for each in range(min(allowed // (runs + len(alive)), most // len(alive)), _FEWEST - 1, -1):
        even = each - each % domains
        each = even if even >= _FEWEST else each
        # The whole model reads as many chunks of every domain.
        base = -(-each * len(alive) // domains) * domains
        left = allowed - runs * each - base
        if plans > 1 and left >= 0:
            more = min(left // (alive[-1] + 1), most - each * len(alive))
            more -= more % domains
            return [each] * (len(alive) - 1) + [each + max(more, 0)]
    return []


def _parts(order: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Divide chunks into rounds; where there are too few of them, in the same proportions."""
    ends = [min(end, end * len(order) // sum(sizes)) for end in accumulate(sizes)]
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return parts if all(parts) else [order]


def _distinct(plans: Mapping[str, Ints], fewer: int) -> dict[str, Ints]:
    """Leave out plans that are like an earlier one; ``fewer`` experts of a layer stay, or go."""
    found: dict[str, Ints] = {}
    for name, kept in plans.items():
        limit = _ALIKE * fewer * len(kept)
        if all(_exchanged(kept, other) > limit for other in found.values()):
            found[name] = kept
    return found


def _exchanged(one: Ints, other: Ints) -> int:
    """Count the experts that one plan keeps and the other does not."""
    return sum(len(np.setdiff1d(a, b)) for a, b in zip(one, other, strict=True))
