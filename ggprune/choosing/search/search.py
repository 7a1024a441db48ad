"""Searching for a better plan by measuring random ones, without fooling oneself.

1. One-shot plans are compared on the validation part of the search text; the best one is what
   has to be beaten.
2. Plans are drawn around the one that cover finds: Gumbel noise on the logarithm of its scores
   exchanges a share of the experts, in every layer at once. Each is measured on one chunk of the
   fitting part, and every chunk under several plans.
3. A regression on the differences between plans, token by token, tells what a share of each
   expert is worth (see credit), with all alike as prior. Cover chooses again with these.
4. Fits with weaker and stronger priors compete on the validation part, which no fit has seen. The
   winner replaces the one-shot plan only if the paired difference over chunks is significant;
   otherwise the one-shot plan stays.

Drawing again around the plan that was found gained nothing: what is left is not the noise of the
estimate but what shares cannot tell (docs/methods.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.choosing.cover import cover_scores
from ggprune.choosing.scores import marked
from ggprune.choosing.search import credit
from ggprune.choosing.search.credit import Observed
from ggprune.types import Floats, Ints

log = logging.getLogger(__name__)

Chooser = Callable[[Floats], Ints]

#: Share of the kept experts (of the dropped, if those are fewer) that a drawn plan exchanges.
EXCHANGED = 0.2
#: How far the fits that compete may leave the prior: standard deviations of what a share of an
#: expert is worth.
DEVIATIONS = (0.05, 0.1, 0.2)
#: Plans measured on each chunk of the fitting part: fewer leave too little to compare, more see
#: less text.
PLANS_A_CHUNK = 6
#: A difference must be this many standard errors below zero (one-sided 95 %).
SIGNIFICANT = 1.645
#: By how much one-shot plans differ, relatively: a standard deviation.
SPREAD = 0.15
_FLOOR = 1e-9


class Meter(Protocol):
    """Measures plans."""

    def kl(self, kept: Ints, chunks: Sequence[int]) -> Floats:
        """Mean KL divergence of each chunk when only these experts are kept, [chunks]."""

    def token_kl(self, kept: Ints, chunk: int) -> Floats:
        """KL divergence of each scored token of a chunk."""


@dataclass(frozen=True, slots=True)
class Text:
    """Parts of the search text, as numbers of chunks.

    Attributes:
        fitting, validation: for drawn plans, and for decisions.
        routing: of a fitting chunk in the whole model.
        more: routing of the calibration text, to choose by.
    """

    fitting: Sequence[int]
    validation: Sequence[int]
    routing: Callable[[int], Shares]
    more: Shares | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What a plan has to obey; ``choose`` applies protection and groups."""

    keep: int
    choose: Chooser
    fixed: npt.NDArray[np.bool_]
    groups: int = 1


@dataclass(slots=True)
class Found:
    """What a search found.

    Attributes:
        name: of the winner: a one-shot method, or ``search``.
        scores: of the winner, [layers, experts].
        kept: the winning plan, [layers, keep].
        base: name of the best one-shot method.
        kl: mean KL on the validation part, by candidate.
        gain: relative difference to the best one-shot there; negative is better.
        gain_error: its standard error over chunks.
        plans: measured.
    """

    name: str
    scores: Floats
    kept: Ints
    base: str
    kl: dict[str, float] = field(default_factory=dict)
    gain: float = 0.0
    gain_error: float = 0.0
    plans: int = 0


def compare_one_shot(
    meter: Meter, plans: Mapping[str, Ints], parts: Sequence[Sequence[int]]
) -> dict[str, Floats]:
    """Measure plans on one part of the text after the other, dropping the worse half each time.

    Divergences of a few chunks are noisy, and the best of many plans was lucky too. So plans go by
    what is to be expected of their difference to the first one, which stays to the end: the
    measured one, shrunk by how uncertain it is.

    Args:
        meter: measures.
        plans: by name; the first is the one to take if nothing is known.
        parts: chunks, none of them empty, in an order that mixes domains.

    Returns:
        Of those that lasted, KL by chunk of all the text, best first.
    """
    alive, measured = list(plans), {name: np.zeros(0) for name in plans}
    first = alive[0]

    def expected(name: str) -> float:
        change, error = paired(measured[first], measured[name])
        return change / (1 + (error / SPREAD) ** 2)

    for number, part in enumerate(parts, 1):
        for name in alive:
            measured[name] = np.concatenate([measured[name], meter.kl(plans[name], part)])
        alive.sort(key=expected)
        if number < len(parts):
            best = [name for name in alive if name != first][: survivors(len(alive)) - 1]
            alive = [name for name in alive if name in (first, *best)]
    return {name: measured[name] for name in alive}


def survivors(plans: int) -> int:
    """How many plans are left after a round: the first one, and half of the others, at least 2."""
    return min(plans, 1 + max(2, plans // 2))


def is_better(one: Floats, other: Floats) -> bool:
    """Whether divergences by chunk are significantly smaller than others of the same chunks."""
    gain, error = paired(other, one)
    return bool(gain + SIGNIFICANT * error < 0)


def quarters(chunks: Sequence[int]) -> list[Sequence[int]]:
    """Divide chunks into a quarter, another, and the rest, for :func:`compare_one_shot`."""
    first, second = len(chunks) // 4, len(chunks) // 2
    return [part for part in (chunks[:first], chunks[first:second], chunks[second:]) if part]


def best_used(
    measure: Callable[[int], Floats], used: int, most: int
) -> tuple[int, dict[int, float]]:
    """How many experts a token should use in a plan.

    Where many experts are dropped, those that step in for them are none that the router wanted;
    without the last of them a token is often closer to the whole model, or with some more.

    Args:
        measure: gives mean KL by chunk if a token uses so many.
        used: of the model; fewer are tried one by one for as long as that helps, else more.
        most: that can be used.

    Returns:
        The best number, which is the model's own unless the gain is significant, and mean KL by
        number.
    """
    base = best = measure(used)
    number, seen = used, {used: float(base.mean())}
    for tried in (range(used - 1, 0, -1), range(used + 1, most + 1)):
        for other in tried if number == used else ():
            kl = measure(other)
            seen[other] = float(kl.mean())
            if kl.mean() >= best.mean():
                break
            number, best = other, kl
    return (number if is_better(best, base) else used), seen


def search(
    meter: Meter,
    one_shot: Mapping[str, Floats],
    rules: Rules,
    text: Text,
    plans: int,
    *,
    seed: int = 0,
) -> Found:
    """Look for a plan with less divergence than the best one-shot plan.

    Args:
        meter: measures.
        one_shot: scores by method, [layers, experts].
        rules: for plans.
        text: to search and to validate on.
        plans: how many to draw.
        seed: the same one draws the same plans.

    Returns:
        The winner; never worse than the best one-shot plan on the validation part.
    """
    choose, order = rules.choose, list(text.validation)
    measured = compare_one_shot(meter, {n: choose(s) for n, s in one_shot.items()}, quarters(order))
    base = next(iter(measured))
    numbers = "; ".join(f"{name} {values.mean():.4f}" for name, values in measured.items())
    log.info("one-shot plans on the validation text, mean KL: %s", numbers)
    candidates = _candidates(meter, rules, text, plans, seed)
    scores = one_shot[base]
    found = Found(base, scores, choose(scores), base, plans=plans)
    different = {
        name: scores
        for name, scores in candidates.items()
        if not np.array_equal(choose(scores), found.kept)
    }
    trials = compare_one_shot(meter, {n: choose(s) for n, s in different.items()}, quarters(order))
    found.kl = {name: float(values.mean()) for name, values in (measured | trials).items()}
    if not trials:
        return found
    best = next(iter(trials))
    found.gain, found.gain_error = paired(measured[base], trials[best])
    log.info(
        f"best of the search: {best}, {found.gain:+.1%} ± {found.gain_error:.1%} against {base} "
        "on the validation text"
    )
    if found.gain + SIGNIFICANT * found.gain_error < 0:
        found.name, found.scores = "search", candidates[best]
        found.kept = choose(found.scores)
    return found


def paired(base: Floats, candidate: Floats) -> tuple[float, float]:
    """Relative difference of the means, with its standard error from chunks in pairs."""
    difference = candidate - base
    scale = max(float(base.mean()), _FLOOR)
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()) / scale, error / scale


def _candidates(
    meter: Meter,
    rules: Rules,
    text: Text,
    plans: int,
    seed: int,
) -> dict[str, Floats]:
    """Draw plans; the scores that fits to them give."""
    random = np.random.default_rng(seed)
    used = min(len(text.fitting), max(1, plans // PLANS_A_CHUNK))
    observed = [Observed(text.routing(chunk)) for chunk in text.fitting[:used]]
    seen = [part.routing for part in observed] + ([text.more] if text.more is not None else [])
    routing = Shares.joined(seen)

    def covering(worth: Floats | None) -> Floats:
        return cover_scores(
            routing,
            rules.keep,
            rules.fixed.shape[1],
            worth=worth,
            fixed=rules.fixed,
            groups=rules.groups,
        )

    alike = covering(None)
    noise = spread_for(alike, rules.choose, EXCHANGED, random)
    total = 0.0
    for turn in _turns(used, plans, random):
        kept = rules.choose(drawn(alike, noise, random))
        kl = meter.token_kl(kept, text.fitting[turn])
        observed[turn].dropped.append(_dropped(kept, rules.fixed.shape[1]))
        observed[turn].divergence.append(kl)
        total += float(kl.mean())
    fits = credit.fit(observed, rules.fixed.shape, DEVIATIONS)
    log.info(
        f"{plans} plans on {used} chunks, mean KL {total / max(plans, 1):.4f}; worth of experts "
        f"1 ± {fits[1].std():.2f}"
    )
    fitted = {
        f"deviation {deviation:g}": covering(worth)
        for deviation, worth in zip(DEVIATIONS, fits, strict=True)
    }
    return {"all alike": alike, **fitted}


def _turns(chunks: int, plans: int, random: np.random.Generator) -> list[int]:
    """Which chunk each plan is measured on: all of them equally often, in mixed order."""
    turns: list[int] = []
    while len(turns) < plans:
        turns += random.permutation(chunks).tolist()
    return turns[:plans]


def drawn(scores: Floats, spread: float, random: np.random.Generator) -> Floats:
    """Scores to choose a random plan by: their logarithm with Gumbel noise."""
    logs: Floats = np.log(np.maximum(scores, _FLOOR * scores.max() + 1e-300))
    return logs + spread * random.gumbel(size=scores.shape)


def spread_for(scores: Floats, choose: Chooser, share: float, random: np.random.Generator) -> float:
    """Find the noise with which drawn plans exchange this share of experts.

    Args:
        scores: the centre.
        choose: scores -> experts kept.
        share: of the kept or of the dropped experts, whichever are fewer.
        random: for the trials that find it.
    """
    centre = _dropped(choose(scores), scores.shape[1])
    fewer = max(min(int(centre.sum()), int((~centre).sum())), 1)
    low, high = 1e-3, 30.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        changed = [
            (centre & ~_dropped(choose(drawn(scores, middle, random)), scores.shape[1])).sum()
            for _ in range(4)
        ]
        if np.mean(changed) / fewer < share:
            low = middle
        else:
            high = middle
    return float((low * high) ** 0.5)


def _dropped(kept: Ints, experts: int) -> npt.NDArray[np.bool_]:
    return ~marked(kept, experts)
