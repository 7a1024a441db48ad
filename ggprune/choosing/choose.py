"""From statistics and what the user asks for to a plan: budget, method, blend, protection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ggprune.calibration.statistics import Statistics
from ggprune.choosing import budget as budgets
from ggprune.choosing.budget import Budget
from ggprune.choosing.methods import sums as scoring
from ggprune.choosing.methods.sums import COVER
from ggprune.choosing.ranking import Ranking, cover_ranking
from ggprune.errors import InputError
from ggprune.model import ExpertCounts, MoeModel
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import result_size
from ggprune.text.documents import Source
from ggprune.types import Progress, no_progress, option

if TYPE_CHECKING:
    from ggprune.llama.options import RunOptions


#: Methods that measure plans on the model.
MEASURED = ("auto", "search")
WEIGHTS = "weights"
#: Methods that run the model over the calibration text again, see extras.
EXTRA = ("easy-ep", "shape")
#: Tokens an evenly used expert needs to see for its score to stand on its own.
JUDGED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user wants.

    Attributes:
        budget: how many experts stay.
        method: how they are ranked; see docs/methods.md. Empty: ``cover`` where the statistics
            tell the routing of tokens, and neither a blend nor rounds ask for sums; else
            ``contribution``.
        seed: for what is drawn.
        blend: ``uniform``, ``maxmin`` or ``NAME=W,…``; empty adds all text up as it comes.
        protect_domains: ``NAME`` or ``NAME=0.95``: coverage that a domain keeps at least.
        always_keep: ``LAYER:EXPERT,EXPERT``.
        super_experts: keep experts with far larger outputs than all others.
        rounds: with more than one, part of the experts is dropped and statistics are gathered
            again before the next part is.
        search_minutes: what ``auto``, ``search`` and limits on quality may take.
        search_plans: plans that ``search`` draws, whatever the time; for runs that must repeat.
        experts_used: for each token in the result; ``auto`` takes the number, at most the model's,
            that is best on the search text; None is ``auto`` for ``search`` and else the model's.
    """

    budget: Budget
    method: str = option(
        "",
        "How experts are chosen.",
        default_help="cover; contribution with --blend, --rounds or sums alone",
    )
    seed: int = option(0, "For what is drawn at random.")
    blend: str = option(
        "",
        "Weigh domains: alike, for the one served worst, or by these weights.",
        metavar="uniform|maxmin|NAME=W,…",
    )
    protect_domains: tuple[str, ...] = option(
        (),
        "A domain that keeps at least this coverage; repeatable.",
        metavar="NAME[=0.95]",
    )
    always_keep: tuple[str, ...] = option(
        (),
        "Experts that stay in any case: 3:17,44; repeatable.",
        metavar="LAYER:EXPERT,…",
    )
    super_experts: bool = option(
        True, "Do not protect experts with far larger outputs than all others."
    )
    rounds: int = option(
        1, "Drop in so many parts, and gather statistics again between them.", minimum=1
    )
    experts_used: int | Literal["auto"] | None = option(
        None,
        "Experts each token uses in the result, at most the model's number; auto: as many as are "
        "best on the search text, as --method search does.",
        metavar="NUMBER|auto",
    )
    search_minutes: float = option(
        10.0, "Time for --method auto or search, --max-kld and --max-ppl-ratio.", above=0
    )
    search_plans: int | None = option(
        None, "Plans that search draws, whatever the time: repeats exactly.", minimum=1
    )

    @property
    def is_measured(self) -> bool:
        """Whether choosing measures plans on the search text."""
        limited = self.budget.rule in ("max_kld", "max_ppl_ratio")
        return self.method in MEASURED or limited or self.tries_fewer_used

    @property
    def fixed_used(self) -> int | None:
        """Experts a token is to use; None if no number was asked for."""
        return self.experts_used if isinstance(self.experts_used, int) else None

    @property
    def tries_fewer_used(self) -> bool:
        """Whether the number of experts a token uses is to be found."""
        return self.experts_used == "auto" or (
            self.experts_used is None and self.method == "search"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What choosing may use beside the statistics.

    Attributes:
        model: where a rule or a method needs it.
        options: how to run it.
        sources: text the statistics were gathered on, for what runs over it again; empty for
            the built-in one.
        search_sources: text to measure plans on; empty for the built-in one.
        cache: folder for the base model's probabilities on the search text; None removes them.
        journal: file that keeps what a search measured, so that it continues.
        progress: makes progress bars.
        say: takes notes for the user.
    """

    model: MoeModel | None = None
    options: RunOptions | None = None
    sources: tuple[Source, ...] = ()
    search_sources: tuple[Source, ...] = ()
    cache: Path | None = None
    journal: Path | None = None
    progress: Progress = no_progress
    say: Callable[[str], object] = field(default=lambda _: None)


def choose_plan(
    statistics: Statistics, request: Request, resources: Resources | None = None
) -> Plan:
    """Choose which experts stay.

    Args:
        statistics: what calibration observed.
        request: what the user wants.
        resources: what may be used.

    Raises:
        InputError: an impossible budget, an unknown method or domain, or a rule that needs the
            model and has none.
    """
    if not request.method:
        request = replace(request, method=default_method(statistics, request))
    statistics.identity.counts.check_used(request.fixed_used)
    plan = _chosen(statistics, request, resources or Resources())
    if request.fixed_used:
        plan = replace(plan, experts_used=request.fixed_used)
    # So that whoever measures the plan on the same text is told.
    calibration = {domain.name: domain.sha256 for domain in statistics.domains}
    return replace(plan, settings={**plan.settings, "calibration": calibration})


def default_method(statistics: Statistics, request: Request) -> str:
    """The best method that the statistics and the request allow (docs/evidence.md)."""
    by_sums = request.blend or request.rounds > 1 or not statistics.tells_routing
    return scoring.DEFAULT_METHOD if by_sums else COVER


def _chosen(statistics: Statistics, request: Request, have: Resources) -> Plan:
    if request.is_measured:
        from ggprune.choosing.search.measured import choose_measured

        return _noted(with_mtp(choose_measured(statistics, request, have), have.model), have)
    ranking = ranking_of(statistics, request, have)
    keep = known_count(request.budget, statistics.identity.counts, have.model)
    if keep is None:
        keep = _count_by_quality(request.budget, ranking)
    if request.rounds > 1:
        if request.method not in scoring.METHODS:
            raise InputError(
                f"--rounds: --method {request.method} does not score what a calibration gathers",
                remedy=f"Use one of: {', '.join(sorted(scoring.METHODS))}.",
            )
        from ggprune.choosing.methods.extras import iterated

        plan = iterated(ranking, request, have, keep)
        return _noted(with_mtp(plan, have.model), have)
    return _noted(with_mtp(ranking.plan(keep, settings_of(request)), have.model), have)


def ranking_of(statistics: Statistics, request: Request, have: Resources) -> Ranking:
    """Scores by the request's method, with weight-only scores where text was too little.

    Raises:
        InputError: unknown method or domain, or a method that needs the model and has none.
    """
    if request.method == WEIGHTS:
        from ggprune.choosing.methods.weights import weight_scores

        scores = weight_scores(require_model(have, request.method), statistics.layers)
        return Ranking.of(statistics, request, have.say, scores=scores)
    if request.method == COVER:
        return with_trust(cover_ranking(statistics, request, have.say), have)
    if request.method in EXTRA:
        from ggprune.choosing.methods.extras import extra_ranking

        return with_trust(extra_ranking(statistics, request, have), have)
    return with_trust(Ranking.of(statistics, request, have.say), have)


def with_trust(ranking: Ranking, have: Resources) -> Ranking:
    """Shrink layers that saw too few tokens for an expert to be judged; say how many."""
    statistics = ranking.statistics
    trust = trust_of(statistics)
    few = int((trust < 1).sum())
    if not few or ranking.method == "random":
        return ranking
    told = f"{few} of {len(trust)} layers saw fewer than {JUDGED} tokens an expert"
    if have.model is None:
        have.say(f"{told}: their choice is a guess; calibrate on more text, or give --model")
        return ranking
    from ggprune.choosing.methods.weights import weight_scores

    have.say(f"{told}: their scores are pulled toward the weights' own")
    return replace(ranking, trust=trust, fallback=weight_scores(have.model, statistics.layers))


def trust_of(statistics: Statistics) -> npt.NDArray[np.float64]:
    """How far each layer's scores can be believed, 0 to 1: tokens an expert over JUDGED.

    Tokens an expert are those of an evenly used one: tokens · used / experts. An expert that was
    hardly chosen among many tokens is judged well; one among few tokens is not.
    """
    identity = statistics.identity
    even = statistics.total.tokens * identity.experts_used / max(identity.experts, 1)
    trusted: npt.NDArray[np.float64] = np.minimum(even / JUDGED, 1.0)
    return trusted


def with_mtp(plan: Plan, model: MoeModel | None) -> Plan:
    """Add layers that decoding does not run (MTP): chosen by their weights.

    Without the model they are left out of the plan; writing the file then applies the last
    layer's choice to them (see rewrite).
    """
    layers = [n for n in model.mtp_layers if n in model.expert_layers] if model else []
    if model is None or not layers:
        return plan
    from ggprune.choosing.methods.weights import MTP_RULE, weight_scores

    kept = scoring.choose_all(weight_scores(model, layers), plan.keep, model.counts.groups)
    added = {
        layer: LayerPlan(tuple(row.tolist()), None, MTP_RULE)
        for layer, row in zip(layers, kept, strict=True)
    }
    return replace(plan, layers={**plan.layers, **added})


def require_model(have: Resources, method: str) -> MoeModel:
    """The model, for what cannot do without it."""
    if have.model is None:
        raise InputError(f"--method {method}: needs the model's file", remedy="Give --model MODEL.")
    return have.model


def _noted(plan: Plan, have: Resources) -> Plan:
    assert plan.identity is not None
    for note in budgets.notes_on(plan.keep, plan.identity.counts):
        have.say(note)
    return plan


def known_count(budget: Budget, counts: ExpertCounts, model: MoeModel | None) -> int | None:
    """The number of experts to keep, where no statistics are needed to know it; else None.

    Args:
        budget: what the user wants.
        counts: of the model.
        model: for sizes.

    Raises:
        InputError: an impossible budget, or a size without a model.
    """
    rule = budget.rule
    if rule == "keep":
        return budgets.by_keep(budget, counts)
    if rule == "ratio":
        return budgets.by_ratio(budget, counts)
    if rule in ("target_size", "fit_vram"):
        if model is None:
            option = f"--{rule.replace('_', '-')}"
            raise InputError(f"{option}: needs the model's file", remedy="Give it: --model MODEL")
        return _count_by_size(budget, model)
    return None


def _count_by_size(budget: Budget, model: MoeModel) -> int:
    if budget.fit_vram is not None:
        return _count_by_memory(budget, model, budget.fit_vram)
    assert budget.target_size is not None
    return budgets.most(
        budget,
        model.counts,
        lambda keep: result_size(model, keep),
        budget.target_size,
        "--target-size",
    )


def _count_by_memory(budget: Budget, model: MoeModel, limit: int) -> int:
    from ggprune.llama import memory

    use = memory.Use(context=budget.context, kv_type=budget.kv_type, parallel=budget.parallel)
    # Fewer experts make the compute buffers no larger, so the source's are an upper bound.
    plan = memory.planned(model, use)
    return budgets.most(
        budget,
        model.counts,
        lambda keep: memory.weight_bytes(model, keep) + plan.cache + plan.compute,
        limit,
        "--fit-vram",
    )


def _count_by_quality(budget: Budget, ranking: Ranking) -> int:
    wanted = budget.retain
    assert wanted is not None

    def fits(keep: int) -> bool:
        if ranking.best_retained(keep) < wanted:
            return False
        worst = ranking.plan(keep).worst_retained
        return worst is None or worst[1] >= wanted

    counts = ranking.statistics.identity.counts
    return budgets.fewest(budget, counts, fits, f"--retain {wanted}")


def settings_of(request: Request) -> Mapping[str, Any]:
    """What the plan's file says of how it was made."""
    budget = request.budget
    found: dict[str, Any] = {budget.rule: getattr(budget, budget.rule)}
    if budget.multiple_of > 1:
        found["multiple_of"] = budget.multiple_of
    for name in ("blend", "protect_domains", "always_keep"):
        if value := getattr(request, name):
            found[name] = value
    return found
