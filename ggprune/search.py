"""Searching for a better plan by measuring random ones, without fooling oneself.

1. One-shot plans are compared on the search text; the best is what has to be beaten.
2. Plans are drawn around it (Gumbel noise on the logarithm of its score changes a share of the
   dropped experts in every layer at once). Each is measured on one chunk of text, another chunk
   each time, so that as much text as possible is seen and no chunk is learned by heart.
3. A regression credits the divergence to experts (see credit), with the one-shot score as prior.
   Its ranking is the centre of the next round, drawn closer.
4. The fits of all rounds, with weaker and stronger priors, compete on the validation part of the
   text, which no fit has seen. The winner replaces the one-shot plan only if the paired
   difference over chunks says so; otherwise the one-shot plan stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggprune import credit
from ggprune.credit import Measurements
from ggprune.scoring import Floats

Kept = npt.NDArray[np.int64]
Chooser = Callable[[Floats], Kept]

#: Shares of the dropped experts that a drawn plan exchanges, round by round.
EXCHANGED = (0.30, 0.20, 0.12)
#: Strengths of the prior that compete: a coefficient of variation of 1, 1/2 and 1/4.
STRENGTHS = (1.0, 4.0, 16.0)
#: A difference must be this many standard errors below zero (one-sided 95 %).
SIGNIFICANT = 1.645
_FLOOR = 1e-9


class Meter(Protocol):
    """Measures plans."""

    def kl(self, kept: Kept, chunks: Sequence[int]) -> Floats:
        """Mean KL divergence of each chunk when only these experts are kept, [chunks]."""


@dataclass(frozen=True, slots=True)
class Text:
    """Parts of the search text, as numbers of chunks.

    Attributes:
        fitting: for drawn plans.
        validation: for decisions.
        usage: Σ g by expert of each chunk of the fitting part, [fitting, layers, experts].
    """

    fitting: Sequence[int]
    validation: Sequence[int]
    usage: Floats


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
        explained: share of variance that the last regression explains.
        plans: measured.
    """

    name: str
    scores: Floats
    kept: Kept
    base: str
    kl: dict[str, float] = field(default_factory=dict)
    gain: float = 0.0
    gain_error: float = 0.0
    explained: float = 0.0
    plans: int = 0


def compare_one_shot(
    meter: Meter, plans: Mapping[str, Kept], chunks: Sequence[int], always: Sequence[str] = ()
) -> dict[str, Floats]:
    """Measure plans on more and more of the text, dropping the worse half each time.

    Args:
        meter: measures.
        plans: by name.
        chunks: of text, in an order that mixes domains.
        always: names that are measured to the end.

    Returns:
        Of those that lasted, KL by chunk of all the text, best first.
    """
    alive, measured = list(plans), {name: np.zeros(0) for name in plans}
    for share in (4, 2, 1):
        upto = max(1, len(chunks) // share)
        for name in alive:
            seen = len(measured[name])
            new = meter.kl(plans[name], chunks[seen:upto]) if upto > seen else np.zeros(0)
            measured[name] = np.concatenate([measured[name], new])
        alive.sort(key=lambda name: float(measured[name].mean()))
        if share > 1:
            half = alive[: max(2, -(-len(alive) // 2))]
            alive = half + [name for name in alive if name in always and name not in half]
    return {name: measured[name] for name in alive}


def search(
    meter: Meter,
    one_shot: Mapping[str, Floats],
    choose: Chooser,
    text: Text,
    plans: int,
    *,
    seed: int = 0,
    say: Callable[[str], object] = lambda _: None,
) -> Found:
    """Look for a plan with less divergence than the best one-shot plan.

    Args:
        meter: measures.
        one_shot: scores by method, [layers, experts], not negative.
        choose: scores -> experts kept; applies protection and groups.
        text: to search and to validate on.
        plans: how many to draw.
        seed: the same one draws the same plans.
        say: takes notes for the user.

    Returns:
        The winner; never worse than the best one-shot plan on the validation part.
    """
    order = list(text.validation)
    measured = compare_one_shot(meter, {n: choose(s) for n, s in one_shot.items()}, order)
    base = next(iter(measured))
    prior = one_shot[base]
    told = ", ".join(f"{name} {values.mean():.4f}" for name, values in measured.items())
    say(f"one-shot plans on the validation text, mean KL: {told}")
    candidates, explained = _candidates(meter, prior, choose, text, plans, seed, say)
    found = Found(base, prior, choose(prior), base, plans=plans, explained=explained)
    different = {
        name: scores
        for name, scores in candidates.items()
        if not np.array_equal(choose(scores), found.kept)
    }
    trials = compare_one_shot(meter, {n: choose(s) for n, s in different.items()}, order)
    found.kl = {name: float(values.mean()) for name, values in (measured | trials).items()}
    if not trials:
        return found
    best = next(iter(trials))
    found.gain, found.gain_error = paired(measured[base], trials[best])
    say(
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
    prior: Floats,
    choose: Chooser,
    text: Text,
    plans: int,
    seed: int,
    say: Callable[[str], object],
) -> tuple[dict[str, Floats], float]:
    """Draw plans round by round; the scores that each round's fits give."""
    random = np.random.default_rng(seed)
    centre, explained = prior, 0.0
    rows: list[npt.NDArray[np.bool_]] = []
    used: list[int] = []
    divergence: list[float] = []
    candidates: dict[str, Floats] = {}
    turns = _turns(len(text.fitting), plans, random)
    for number, share in enumerate(EXCHANGED, start=1):
        spread = spread_for(centre, choose, share, random)
        for turn in turns[(number - 1) * plans // 3 : number * plans // 3]:
            kept = choose(drawn(centre, spread, random))
            rows.append(_dropped(kept, prior.shape[1]))
            used.append(turn)
            divergence.append(float(meter.kl(kept, [text.fitting[turn]])[0]))
        measured = Measurements(
            np.array(rows, np.float64), text.usage[used], np.array(divergence)
        )
        for strength in STRENGTHS:
            fitted = credit.fit(measured, prior, strength)
            candidates[f"round {number}, prior {strength:g}"] = fitted.importance
            if strength == STRENGTHS[1]:
                centre, explained = fitted.importance, fitted.explained
        say(
            f"round {number} of {len(EXCHANGED)}: {len(rows)} plans, mean KL "
            f"{np.mean(divergence):.4f}, the regression explains {explained:.0%}"
        )
    return candidates, explained


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


def spread_for(
    scores: Floats, choose: Chooser, share: float, random: np.random.Generator
) -> float:
    """The noise with which drawn plans exchange this share of the dropped experts.

    Args:
        scores: the centre.
        choose: scores -> experts kept.
        share: of the dropped experts.
        random: for the trials that find it.
    """
    centre = _dropped(choose(scores), scores.shape[1])
    low, high = 1e-3, 30.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        changed = [
            (centre & ~_dropped(choose(drawn(scores, middle, random)), scores.shape[1])).sum()
            for _ in range(4)
        ]
        if np.mean(changed) / max(int(centre.sum()), 1) < share:
            low = middle
        else:
            high = middle
    return float((low * high) ** 0.5)


def _dropped(kept: Kept, experts: int) -> npt.NDArray[np.bool_]:
    dropped = np.ones((len(kept), experts), np.bool_)
    np.put_along_axis(dropped, kept, False, axis=1)
    return dropped
