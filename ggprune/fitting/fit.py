"""The best file of one size: solved, measured, and judged."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ggprune.errors import InputError
from ggprune.fitting.measure import Score
from ggprune.fitting.predict import POWER
from ggprune.fitting.space import Mix
from ggprune.fitting.study import Study
from ggprune.model import MoeModel
from ggprune.util import human_size

#: llama-quantize's types that a single-type file is looked for among.
FILE_TYPES = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M"),
    *("IQ3_M", "Q3_K_S", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XS", "IQ2_XXS"),
)
#: Mixes measured on the search text for one size.
_MIXES, _LATER_MIXES = 5, 2
#: A difference of fewer standard errors is none.
_NOISE = 2.0
#: Other counts are measured if they are predicted to cost at most so many times as much.
_PROMISING = 1.2


@dataclass(frozen=True, slots=True)
class Rated:
    """A possible file and what it costs.

    Attributes:
        name: for people: ``48 experts, Q4_K_M``.
        size: bytes, exact.
        predicted: mean divergence on the search text.
        search, judged: measured on the search and on the held-out text; None if not.
    """

    mix: Mix
    name: str
    size: int
    predicted: float
    search: Score | None = None
    judged: Score | None = None

    def as_json(self) -> dict[str, Any]:
        """One of the alternatives that ``ggprune fit --json`` prints."""
        score = self.judged or self.search
        return {
            "keep": self.mix.keep,
            "types": self.name.partition(", ")[2],
            "size_bytes": self.size,
            "kld_mean": score.kld_mean if score else self.predicted,
            "measured": score is not None,
            "predicted": score is None,
            "text": "held-out" if self.judged else "search",
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer for one size.

    Attributes:
        limit: bytes asked for.
        whole: all experts in llama-quantize's best type that fits; None if none does.
        single: the best count of experts in one of those types; None if none fits.
        others: what was measured or predicted besides.
        note: why the best is what it is, if that needs a word.
    """

    limit: int
    experts: int
    best: Rated
    whole: Rated | None
    single: Rated | None
    others: tuple[Rated, ...]
    note: str = ""

    def as_json(self, study: Study) -> dict[str, Any]:
        """Return the form that ``ggprune fit --json`` prints."""
        rivals = [each for each in (self.whole, self.single, *self.others) if each is not None]
        unique = {
            each.mix.key: each for each in reversed(rivals) if each.mix.key != self.best.mix.key
        }
        score = self.best.judged or self.best.search
        assert score is not None
        return {
            "size_bytes": self.best.size,
            "keep": self.best.mix.keep,
            "experts": study.source.experts,
            "experts_used": study.source.experts_used,
            "types": {p: kind.lower() for p, kind in study.space.patterns(self.best.mix)},
            "kld_mean": score.kld_mean,
            "kld_se": score.kld_se,
            "kld_p99": score.kld_p99,
            "tokens": score.tokens,
            "kld_predicted": self.best.predicted,
            "passes": study.passes,
            "alternatives": [each.as_json() for each in reversed(unique.values())],
        }


def best_file(study: Study, limit: int, beside: int | None = None) -> Fit:
    """Find the best file of at most so many bytes.

    Args:
        beside: judge the source with only so many experts too.

    Raises:
        InputError: not even the smallest file fits; says how large that is.
    """
    smallest = study.space.smallest(study.source.counts.least)
    if study.space.size(smallest) > limit:
        known_cost = study.search.known(smallest.key)
        raise too_small(
            study.source,
            f"target_size={limit}",
            smallest.keep,
            study.space.size(smallest),
            known_cost.kld_mean if known_cost else None,
        )
    study.survey()
    first = not study.refined
    known = study.best(limit)
    if first or known is None or study.search.known(known.key) is None:
        study.refine(limit, len(study.space.groups) if first else 1)
    tried = _tried(study, limit, _MIXES if first else _LATER_MIXES)
    rivals = _rivals(study, limit)
    best = _judged(study, min(tried, key=_searched))
    complete = [each for each in rivals if each.mix.keep == study.source.experts]
    whole, single = (
        _judged(study, min(each, key=lambda rated: rated.predicted)) if each else None
        for each in (complete, rivals)
    )
    note = ""
    for simpler in (whole, single):
        if simpler is None or simpler.mix.key == best.mix.key:
            continue
        gain, error = study.judge.difference(simpler.mix.key, best.mix.key)
        if gain < _NOISE * error:
            note = (
                f"types by group gain {gain:.5f} ± {error:.5f} over {simpler.name}: within noise, "
                "so the simpler file is taken"
            )
            best = simpler
    others = [*tried, *rivals]
    if beside is not None:
        mix = Mix(beside, study.space.base.options)
        others.insert(
            0, _judged(study, _rated(study, mix, POWER, f"{beside} experts, as they are"))
        )
    return Fit(limit, study.source.experts, best, whole, single, tuple(others), note)


def too_small(source: MoeModel, asked: str, keep: int, size: int, cost: float | None) -> InputError:
    """Say how large the smallest file is, and its mean divergence or how to measure that.

    Args:
        asked: the limit with its name.
    """
    command = f"ggprune fit {shlex.quote(str(source.gguf.path))} --target-size {size}"
    known = "" if cost is None else f", mean KL divergence {cost:.3f}"
    return InputError(
        f"{asked}: the smallest file has {size} bytes ({human_size(size)}): "
        f"{keep} of {source.experts} experts, everything in its smallest type{known}",
        remedy="Ask for more, or take a smaller model."
        + (f" What the smallest file costs is measured by: {command}" if cost is None else ""),
    )


def _tried(study: Study, limit: int, most: int) -> list[Rated]:
    """Solve, measure, learn how costs add up, solve again; then see what other counts would do."""
    tried: dict[str, Rated] = {}
    power, keeps = POWER, dict.fromkeys(study.counts)
    mix = study.best(limit, None, power)
    while mix is not None and len(tried) < most:
        keeps.pop(mix.keep, None)
        name = name_of(study, mix)
        rated = _rated(study, mix, power, name)
        score = study.measure(mix, f"mix {len(tried) + 1} for {human_size(limit)}")
        tried[mix.key] = replace(rated, search=score)
        power = study.prediction().power_of(mix, score.kld_mean)
        mix = study.best(limit, None, power)
        if mix is not None and mix.key in tried:
            mix = _promising(study, limit, power, keeps, min(tried.values(), key=_searched))
    return list(tried.values())


def _promising(
    study: Study, limit: int, power: float, keeps: Iterable[int], best: Rated
) -> Mix | None:
    """Return the best with another count, if the prediction for it is nearly that good."""
    others = [study.best(limit, keep, power) for keep in keeps]
    prediction = study.prediction(power)
    found = [(prediction.of(mix), mix.keep, mix) for mix in others if mix is not None]
    if not found:
        return None
    cost, _, mix = min(found, key=lambda each: each[:2])
    return mix if cost < _PROMISING * _searched(best) else None


def _rivals(study: Study, limit: int) -> list[Rated]:
    """Of every type of llama-quantize, the most experts that fit."""
    found = []
    for type_name in FILE_TYPES:
        for keep in study.counts:
            mix = study.space.of_file_type(type_name, keep)
            if study.space.size(mix) <= limit and study.space.is_possible(mix):
                found.append(_rated(study, mix, POWER, f"{keep} experts, {type_name}"))
                break
    return found


def _rated(study: Study, mix: Mix, power: float, name: str) -> Rated:
    return Rated(mix, name, study.space.size(mix), study.prediction(power).of(mix))


def _judged(study: Study, rated: Rated) -> Rated:
    return replace(rated, judged=study.measure(rated.mix, rated.name, study.judge))


def _searched(rated: Rated) -> float:
    assert rated.search is not None
    return rated.search.kld_mean


def name_of(study: Study, mix: Mix) -> str:
    """Say what a mix is, in a few words: experts, and the types by class of tensor."""
    by_part: dict[str, dict[str, None]] = {}
    for group, option in zip(study.space.groups, mix.options, strict=True):
        by_part.setdefault(group.part, {}).update(dict.fromkeys(option.types))
    types = "; ".join(f"{part} {'/'.join(found)}" for part, found in by_part.items())
    return f"{mix.keep} experts, {types}"
