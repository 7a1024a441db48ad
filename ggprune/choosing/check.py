"""What can be said of a request before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

from ggprune.choosing import blend
from ggprune.choosing.count import known_count
from ggprune.choosing.methods import METHODS, Method, find
from ggprune.choosing.protect import Protection, parse_always_keep, parse_domains
from ggprune.choosing.request import Request
from ggprune.errors import InputError
from ggprune.model import ExpertCounts, architectures
from ggprune.plan import check_zero_bias


def check_request(
    request: Request,
    architecture: str,
    layers: Sequence[int],
    counts: ExpertCounts,
    domains: Sequence[str],
) -> None:
    """Check everything in a request that the model's header and the names of texts decide.

    Budgets in bytes are left to choosing. ``layers`` are block numbers with experts.

    Raises:
        InputError: an impossible budget or number, an unknown method, domain, layer or expert, or
            options that exclude each other.
    """
    if request.router_bias != "keep":
        check_zero_bias(
            architectures.ARCHITECTURES.get(architecture), f"router_bias={request.router_bias}"
        )
    method = find(request.method) if request.method else None
    forced = parse_always_keep(request.always_keep, layers, counts.experts)
    parse_domains(request.protect_domains, domains)
    if method is not None:
        _check_combination(request, method)
        if request.budget.rule == "retain" and method.decide is not None:
            raise InputError(
                f"{request.budget.asked}: is a share by one score, and method={method.name} "
                "chooses among many",
                remedy="Use max_kld or max_ppl_ratio, or another method.",
            )
    if request.blend and request.blend not in blend.NAMED:
        blend.parse_weights(request.blend, domains)
    if request.budget.rule not in ("keep", "ratio"):
        counts.check_used(request.fixed_used, counts.experts)
    else:
        keep = known_count(request.budget, counts, None)
        assert keep is not None
        counts.check_used(request.fixed_used, keep)
        Protection(tuple(layers), counts, forced, tuple(domains), {}).check_room(keep)


def _check_combination(request: Request, method: Method) -> None:
    """Raise InputError if the method cannot do what else is asked for."""
    if request.rounds > 1 and method.needs != "statistics":
        _refuse(
            f"rounds={request.rounds}: method={method.name} does not score what a calibration "
            "gathers",
            [each for each in METHODS.values() if each.needs == "statistics"],
        )
    if request.blend and not method.additive and method.decide is None:
        _refuse(
            f"blend={request.blend}: scores by method={method.name} are no sums over tokens, so "
            "domains cannot be added up",
            [each for each in METHODS.values() if each.additive],
        )


def _refuse(problem: str, others: Sequence[Method]) -> None:
    names = ", ".join(sorted(method.name for method in others))
    raise InputError(problem, remedy=f"Methods that can: {names}.")
