"""The table of methods: each way to choose experts, under the name it is asked for by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ggprune.choosing.scores import Scores
from ggprune.errors import InputError
from ggprune.types import Floats
from ggprune.util import did_you_mean

if TYPE_CHECKING:
    from ggprune.calibration.statistics import ExpertSums, Statistics
    from ggprune.choosing.request import Request, Resources
    from ggprune.choosing.search.measuring import Decide

#: What a method needs, in the words of the documentation; cheap ones first.
NEEDS = {
    "routing": "statistics with the routing of tokens",
    "statistics": "statistics",
    "weights": "the model's file; seconds",
    "run": "a calibration pass for each domain",
    "search": "masked passes over the search text",
    "nothing": "nothing",
}
Needs = Literal["routing", "statistics", "weights", "run", "search", "nothing"]

SumsFunction = Callable[["ExpertSums", int], Floats]
ScoreFunction = Callable[["Statistics", "Request", "Resources"], Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to choose experts; it has ``sums``, ``score`` or ``decide``.

    Attributes:
        name: what it is asked for by.
        formula: the score, for people.
        source: where it comes from.
        needs: a key of NEEDS.
        sums: score from sums and a seed, [layers, experts].
        score: score from statistics, request and resources.
        decide: choose among the plans of all candidates by measuring them.
        additive: whether ``sums`` adds up over tokens, so that domains can be blended.
        candidate: whether methods that measure plans try this one, beside the default.
        blends: the ways in which they weigh several domains with it, a plan for each; None adds
            all text up as it comes.
        baseline: whether people look for models by it: a card is tagged with its name.
        finds_used: whether it finds how many experts a token should use, unless told.
        summary: the clause of a model card that says how experts were chosen; empty for a score.
    """

    name: str
    formula: str
    source: str
    needs: Needs
    sums: SumsFunction | None = None
    score: ScoreFunction | None = None
    decide: Decide | None = None
    additive: bool = False
    candidate: bool = False
    blends: tuple[str | None, ...] = (None,)
    baseline: bool = False
    finds_used: bool = False
    summary: str = ""

    @property
    def observes(self) -> bool:
        """Whether the choice depends on what calibration observed."""
        return self.needs not in ("weights", "nothing")

    @property
    def is_control(self) -> bool:
        """Whether it knows nothing of the model: what other methods are compared with."""
        return self.needs == "nothing"

    @property
    def described(self) -> str:
        """Say how experts were chosen, in a clause."""
        return self.summary or (
            f"each expert of each layer got a score by the method `{self.name}`: {self.formula} "
            f"({self.source})"
        )

    def scores(self, statistics: Statistics, request: Request, resources: Resources) -> Scores:
        """Score all experts.

        Raises:
            InputError: something that the method needs is missing.
        """
        if self.score is not None:
            return self.score(statistics, request, resources)
        assert self.sums is not None
        total = self.sums(statistics.total, request.seed)
        if not self.additive:
            return Scores(total=total)
        return Scores(total=total, by_domain=self.by_domain(statistics, request.seed))

    def by_domain(self, statistics: Statistics, seed: int = 0) -> Floats:
        """Score the sums of each domain, [domains, layers, experts]."""
        assert self.sums is not None
        return np.array([self.sums(domain.sums, seed) for domain in statistics.domains])


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the table: from then on it can be asked for by its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"there is a method {method.name} already")
    METHODS[method.name] = method
    return method


def of_sums(
    name: str, formula: str, source: str, **more: Any
) -> Callable[[SumsFunction], SumsFunction]:
    """Register the decorated function of an ExpertSums and a seed as a method; see Method."""

    def decorate(function: SumsFunction) -> SumsFunction:
        about = {"needs": "statistics", **more}
        register(Method(name=name, formula=formula, source=source, sums=function, **about))
        return function

    return decorate


def ordered() -> list[Method]:
    """List the methods by what they need, then in the order of registration."""
    order = list(NEEDS)
    return sorted(METHODS.values(), key=lambda method: order.index(method.needs))


def find(name: str) -> Method:
    """Look a method up.

    Raises:
        InputError: there is none; lists all, and names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    known = ", ".join(method.name for method in ordered())
    raise InputError(
        f"method={name}: there is no such method.{did_you_mean(name, METHODS)}",
        remedy=f"One of: {known}.",
    )
