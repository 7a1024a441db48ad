"""The gate of a probe: intervals against published ones, verdicts on answers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from ggprune.evaluation.probe_gate import Answer, gate, median_interval, rise_interval
from ggprune.evaluation.verdict import answers_in_a_line, verdict

GOOD = Answer("yes", 40, 30, 1.0, loop=False, collapse=False, ended=True, end="<end>")
LOOPING = replace(GOOD, tokens=96, loop=True, ended=False, end="")


def test_interval_of_a_rise_is_the_published_one() -> None:
    """Cavo et al. 2012, in Fagerland, Lydersen and Laake, Contingency Tables (2017), chapter 8.

    The authors' own R package `contingencytables` prints -0.1186 to -0.0046 for the fall.
    """
    assert rise_interval(59, 6, 16, 80) == pytest.approx((0.0046, 0.1186), abs=5e-5)
    # The other way round it is the same with the sign changed.
    assert rise_interval(59, 16, 6, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


@pytest.mark.parametrize("count", [10, 96, 1000])
def test_where_nothing_loops_the_interval_is_wilsons(count: int) -> None:
    """Of no event in n, Wilson's upper end is z² / (n + z²)."""
    end = 1.96**2 / (count + 1.96**2)
    assert rise_interval(0, 0, 0, count) == pytest.approx((-end, end), rel=1e-3)


@pytest.mark.parametrize(
    ("count", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33)), (100, (40, 61))]
)
def test_ranks_of_the_medians_interval(count: int, ranks: tuple[int, int]) -> None:
    """Table of Campbell and Gardner (1988), 95 %."""
    assert median_interval(range(1, count + 1)) == ranks


def test_five_values_have_no_interval() -> None:
    """All five lie on one side of the median in 2 of 32 cases: 6 %."""
    assert median_interval([1.0] * 5) == (0.0, math.inf)


def checks(base: list[Answer], candidate: list[Answer]) -> dict[str, str]:
    found = gate(base, candidate)
    return {"all": found["verdict"]} | {n: c["verdict"] for n, c in found["checks"].items()}


def test_the_same_answers_pass() -> None:
    base = [GOOD] * 80 + [LOOPING] * 20
    assert set(checks(base, base).values()) == {"pass"}


def test_few_answers_decide_nothing_but_a_ruin() -> None:
    assert checks([GOOD] * 20, [GOOD] * 20) == {
        "all": "undecided", "loops": "undecided", "endless": "undecided", "length": "pass",
        "format": "undecided",
    }  # fmt: skip
    assert checks([GOOD] * 20, [LOOPING] * 20)["loops"] == "fail"
    assert checks([], [])["all"] == "undecided"


@pytest.mark.parametrize(
    ("answer", "count", "failing"),
    [
        (replace(GOOD, loop=True), 12, {"loops"}),
        (replace(GOOD, ended=False, end=""), 12, {"endless"}),
        # Another end token than the base has is another turn's.
        (replace(GOOD, end="<eot>"), 12, {"format"}),
        (replace(GOOD, json=False), 12, {"format"}),
        (replace(GOOD, tokens=0, collapse=True), 12, {"format"}),
        (replace(GOOD, tokens=45), 100, {"length"}),
        (replace(GOOD, tokens=30), 100, set()),
        (LOOPING, 100, {"loops", "endless", "length"}),
    ],
)
def test_what_is_worse_fails(answer: Answer, count: int, failing: set[str]) -> None:
    candidate = [answer] * count + [GOOD] * (100 - count)
    found = checks([GOOD] * 100, candidate)
    assert {name for name, one in found.items() if one == "fail"} - {"all"} == failing
    assert found["all"] == ("fail" if failing else "pass")


def test_worse_for_certain_fails_even_if_perhaps_by_little() -> None:
    """Of 8 in 100 the interval begins above no difference and below the limit."""
    found = gate([GOOD] * 100, [replace(GOOD, loop=True)] * 8 + [GOOD] * 92)["checks"]["loops"]
    assert 0 < found["low"] < 0.05 < found["high"] and found["verdict"] == "fail"


def test_longer_or_shorter_is_undecided() -> None:
    candidate = [replace(GOOD, tokens=30)] * 50 + [replace(GOOD, tokens=60)] * 50
    assert checks([GOOD] * 100, candidate)["length"] == "undecided"


def test_numbers_by_hand() -> None:
    """Four of ten loop, then three; ratios where one ends: 0.5, 1, 1, 1, 2, 2 and 48 / 96."""
    base = [GOOD] * 6 + [LOOPING] * 4
    lengths = (20, 40, 40, 40, 80, 80)
    candidate = [replace(GOOD, tokens=n) for n in lengths]
    candidate += [LOOPING, LOOPING, LOOPING, replace(GOOD, tokens=48)]
    found = gate(base, candidate)["checks"]
    assert (found["loops"]["base"], found["loops"]["candidate"]) == (0.4, 0.3)
    assert found["loops"]["value"] == pytest.approx(-0.1) and found["loops"]["pairs"] == 10
    # Both are cut in three pairs, which say nothing of length; the last goes from 96 to 48.
    assert found["length"]["pairs"] == 7 and found["length"]["value"] == 1.0
    assert (found["length"]["low"], found["length"]["high"]) == (0.5, 2.0)
    assert (found["length"]["base"], found["length"]["candidate"]) == (40, 40)


def test_the_verdict_counts_what_fails() -> None:
    def probe(candidate: list[Answer]) -> dict[str, Any]:
        mode = {"base": {"probes": 100}, "gate": gate([GOOD] * 100, candidate)}
        return {"modes": {"sampled": mode}}

    (finding,) = verdict(probe=probe([LOOPING] * 30 + [GOOD] * 70))
    assert finding.gate == "answers"
    assert "(sampled): loops 0% -> 30% (+21 to +40 points); no end 0% -> 30%" in finding.text
    assert not verdict(probe=probe([GOOD] * 100))
    assert not verdict(probe=probe([LOOPING] * 3 + [GOOD] * 97)), "undecided"
    assert not verdict(probe={"modes": {"greedy": {"base": {}}}}), "of a version without a gate"
    line = answers_in_a_line(probe([GOOD] * 100)["modes"]["sampled"])
    assert line.startswith("100 answers, pass: loops 0% -> 0% (-4 to +4 points)")
