"""The gate of ``probe``: whether a candidate's answers are as good as the base's, by intervals.

Each check compares answers to the same prompts in pairs, and ends in one of three words: ``pass``
if the whole 95 % interval is within the limit, ``fail`` if it is not and all of it is worse than no
difference, else ``undecided``: there are too few answers to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
#: Of a hundred answers so many more may loop, never end or break the format.
MAX_RATE_RISE = 0.05
#: Answers may be so many times as long, at the median.
MAX_LENGTH_RATIO = 1.10
#: 97.5 % quantile of the normal distribution.
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote, measured.

    Attributes:
        text: with the special tokens in it.
        tokens: how many.
        words: separated by white space.
        distinct4: distinct 4-grams of tokens over all of them; 1 for a short text.
        loop: distinct4 below 0.55, or the text ends in a piece that is repeated.
        collapse: empty, one token over and over, or bytes that are not UTF-8.
        ended: by itself, not by the limit.
        end: the token that ended it; "" if none did.
        json: whether it is JSON; None where that was not asked for.
    """

    text: str
    tokens: int
    words: int
    distinct4: float
    loop: bool
    collapse: bool
    ended: bool
    end: str = ""
    json: bool | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing compared.

    Attributes:
        base, candidate: rates of all answers; for lengths, median tokens of the answers compared.
        value: candidate - base; for lengths, the median ratio.
        low, high: its 95 % interval.
        pairs: prompts that it is of.
        verdict: pass, fail or undecided.
    """

    base: float
    candidate: float
    value: float
    low: float
    high: float | None
    pairs: int
    verdict: str


def gate(base: Sequence[Answer], candidate: Sequence[Answer]) -> dict[str, Any]:
    """Compare answers to the same prompts.

    Args:
        base, candidate: in the same order.

    Returns:
        ``verdict``, the worst of the checks', and ``checks`` by name: ``loops``; ``endless``, cut
        by the limit on tokens; ``length`` in tokens, of pairs of which one ends at least, the limit
        counting as the length of what it cut; ``format``, broken by an end token with which no
        answer of the base ends (another than the chat template's), by what is not JSON where that
        was asked for, or by a collapse.
    """
    ends = {answer.end for answer in base if answer.ended}

    def broken(answer: Answer) -> bool:
        stray = bool(ends) and answer.ended and answer.end not in ends
        return answer.collapse or answer.json is False or stray

    pairs = list(zip(base, candidate, strict=True))
    ending = [(b.tokens, c.tokens) for b, c in pairs if b.ended or c.ended]
    checks = {
        "loops": _rates([(b.loop, c.loop) for b, c in pairs]),
        "endless": _rates([(not b.ended, not c.ended) for b, c in pairs]),
        "length": _lengths(ending),
        "format": _rates([(broken(b), broken(c)) for b, c in pairs]),
    }
    found = {check.verdict for check in checks.values()}
    worst = next(verdict for verdict in (FAIL, UNDECIDED, PASS) if verdict in found)
    return {"verdict": worst, "checks": {name: asdict(check) for name, check in checks.items()}}


def confirms(found: Mapping[str, Any]) -> bool:
    """Whether a gate shows that answers loop no more and are no longer, and nothing is worse."""
    shown = [found["checks"][name]["verdict"] for name in ("loops", "length")]
    return found["verdict"] != FAIL and shown == [PASS, PASS]


def _rates(pairs: Sequence[tuple[bool, bool]]) -> Check:
    count = len(pairs)
    both = sum(b and c for b, c in pairs)
    before, after = sum(b for b, _ in pairs), sum(c for _, c in pairs)
    low, high = rise_interval(both, before - both, after - both, count - before - after + both)
    rates = before / max(count, 1), after / max(count, 1)
    verdict = _verdict(low, high, 0.0, MAX_RATE_RISE)
    return Check(*rates, rates[1] - rates[0], low, high, count, verdict)


def _lengths(pairs: Sequence[tuple[int, int]]) -> Check:
    # An empty answer is as long as one token: a ratio needs a number.
    ratios = sorted(max(after, 1) / max(before, 1) for before, after in pairs)
    low, high = median_interval(ratios)
    verdict = _verdict(low, high, 1.0, MAX_LENGTH_RATIO)
    before, after = ([pair[side] for pair in pairs] or [0] for side in (0, 1))
    return Check(
        float(median(before)),
        float(median(after)),
        median(ratios or [1.0]),
        low,
        high if math.isfinite(high) else None,
        len(pairs),
        verdict,
    )


def _verdict(low: float, high: float, none: float, limit: float) -> str:
    if high <= limit:
        return PASS
    return FAIL if low > none else UNDECIDED


def rise_interval(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """95 % interval of the rise from the first of two paired rates to the second.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635: the Wilson intervals of both
    rates, put together with their correlation. It has a width where no pair differs, too.

    Args:
        both, first, second, neither: pairs in which so it was.
    """
    count = both + first + second + neither
    if not count:
        return -1.0, 1.0
    rates = (both + first) / count, (both + second) / count
    (low1, high1), (low2, high2) = (_wilson(rate, count) for rate in rates)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess = float(both * neither - first * second)
    excess = max(excess - count / 2, 0.0) if excess > 0 else excess
    correlation = excess / math.sqrt(product) if product else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * correlation * down * up + up**2, 0.0))

    rise = rates[1] - rates[0]
    return (
        rise - reach(rates[1] - low2, high1 - rates[0]),
        rise + reach(high2 - rates[1], rates[0] - low1),
    )


def _wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson, J. Am. Stat. Assoc. 22 (1927) 209)."""
    square = _Z**2 / count
    middle = (rate + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(rate * (1 - rate) / count + square / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median, whatever the distribution: two of the values.

    Half of a distribution lies below its median, so how many of n values do is binomial; the k-th
    from each end are taken for the largest k with P(fewer than k below) <= 2.5 % (Campbell and
    Gardner, BMJ 296 (1988) 1454).

    Args:
        values: ascending; of fewer than 6 the interval is (0, infinity).
    """
    count, below, rank = len(values), 0, 0
    while (below := below + math.comb(count, rank)) * 40 <= 2**count:
        rank += 1
    return (values[rank - 1], values[-rank]) if rank else (0.0, math.inf)
