"""Choosing experts token by token, so that no token loses most of what its experts do.

s_tj is what expert j does for token t in a layer, relative to what all of its experts do (see
losses). A plan takes x_t = mean over layers of Σ s_tj over dropped j from token t. The divergence
of a token grows with x_t about as exp(β x_t) (docs/methods.md), so the plan sought is the one with
the smallest

    Σ_t u_t exp(β Σ_lj d_lj w_lj s_tlj / layers),

u_t the token's weight (Shares.weight), d_lj = 1 for dropped experts, and w_lj what a share of the
expert is worth, 1 unless measured (see credit). Scores that are sums over tokens are the case
β -> 0. A token that has lost much counts more than one that has lost little, and so does the domain
that is served worst.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ggprune.calibration.routing import Shares
from ggprune.choosing.scores import choose_all, marked
from ggprune.types import Floats

#: Growth of divergence with the share of squares lost, under random plans.
BETA = 5.0
#: The same for what :func:`losses` makes of shares.
GENTLE = 4.0
#: By how much a token may count more than the mean one.
LARGEST = 3.0
_SWEEPS = 200
#: Candidates on each side of a swap whose effect together is computed.
_SHORTLIST = 8
#: A swap must gain this part of the objective, or rounding could make it swing.
_LEAST_GAIN = 1e-9


def cover_scores(
    text: Shares,
    keep: int,
    experts: int,
    *,
    worth: Floats | None = None,
    fixed: npt.NDArray[np.bool_] | None = None,
    groups: int = 1,
    beta: float = BETA,
) -> Floats:
    """Compute scores whose best experts are a plan that no swap within a layer improves.

    Args:
        text: what each expert does for each token.
        keep: experts a layer.
        experts: in a layer.
        worth: w, [layers, experts]; None is 1.
        fixed: experts that stay, [layers, experts].
        groups: expert groups; each keeps the same number.
        beta: β.

    Returns:
        [layers, experts]. Of an expert that stays, what dropping it would cost, of one that goes,
        what keeping it would gain, raised or lowered where needed so that order says who stays.
    """
    problem = _Problem(text, experts, worth, beta)
    scores = text.sums(experts)
    if fixed is not None:
        scores = np.where(fixed, np.inf, scores)
    stays = marked(choose_all(scores, keep, groups), experts)
    movable = ~fixed if fixed is not None else np.ones_like(stays)
    problem.start(stays)
    for _ in range(_SWEEPS):
        swapped = [
            problem.swap(row, stays[row], movable[row], block)
            for row in range(len(stays))
            for block in np.split(np.arange(experts), groups)
        ]
        if not any(swapped):
            break
    return np.array([problem.ranked(row, stays[row]) for row in range(len(stays))])


def losses(routing: Shares, *, normed: bool) -> Shares:
    """Return what dropping each of its experts takes from a token: its part of g‖f‖.

    Args:
        routing: shares of (g‖f‖)².
        normed: what experts add is normalised before it reaches the residual stream, so it counts
            alike however large it is: parts of a token add up to 1. Otherwise they add up to the
            token's Σ g‖f‖ over the mean token's (where norms are known), at most to LARGEST:
            massive activations would outweigh all other text.
    """
    parts = np.sqrt(routing.shares.astype(np.float32))
    whole = parts.sum(axis=-1, keepdims=True)
    parts /= whole
    if not normed and routing.norms is not None:
        sizes = whole[..., 0] * routing.norms
        mean = (sizes * routing.weight[:, None]).sum(axis=0) / routing.weight.sum()
        sizes /= np.maximum(mean, np.finfo(np.float32).tiny)
        parts *= np.minimum(sizes, LARGEST)[..., None]
    return replace(routing, shares=parts.astype(np.float16))


class _Problem:
    """The objective, and how a swap changes it."""

    def __init__(self, text: Shares, experts: int, worth: Floats | None, beta: float) -> None:
        self._experts = experts
        self._chosen = text.experts.transpose(1, 0, 2).astype(np.intp)
        layers = len(self._chosen)
        self._shares = text.shares.transpose(1, 0, 2).astype(np.float32) * (beta / layers)
        if worth is not None:
            for row, values in enumerate(worth.astype(np.float32)):
                self._shares[row] *= values[self._chosen[row]]
        self._up, self._down = np.expm1(self._shares), -np.expm1(-self._shares)
        self._counted, self._weight = text.weight, np.zeros(0)

    def start(self, stays: npt.NDArray[np.bool_]) -> None:
        """Start from a plan."""
        lost = np.zeros(self._chosen.shape[1])
        for row, kept in enumerate(stays):
            lost += np.where(kept[self._chosen[row]], 0, self._shares[row]).sum(axis=1)
        self._weight = self._counted * np.exp(lost)

    def ranked(self, row: int, stays: npt.NDArray[np.bool_]) -> Floats:
        """Turn the costs and gains of a layer into scores that put those who stay first."""
        costs, gains = self._values(row)
        limit = gains[~stays].max(initial=0.0) * (1 + 1e-9)
        return np.where(stays, np.maximum(costs, np.nextafter(limit, np.inf)), gains)

    def swap(
        self,
        row: int,
        stays: npt.NDArray[np.bool_],
        movable: npt.NDArray[np.bool_],
        block: npt.NDArray[np.intp],
    ) -> bool:
        """Make the exchange within a block that helps most, if one does.

        Of tokens that use both experts, dropping j and keeping i changes the sum by less than the
        two alone: (1 + up_j)(1 - down_i) - 1 = up_j - down_i - up_j · down_i.
        """
        costs, gains = self._values(row)
        inside, outside = block[stays[block] & movable[block]], block[~stays[block]]
        inside = inside[np.argsort(costs[inside], kind="stable")[:_SHORTLIST]]
        outside = outside[np.argsort(-gains[outside], kind="stable")[:_SHORTLIST]]
        if not len(inside) or not len(outside):
            return False
        up, down = self._of(row, inside, self._up), self._of(row, outside, self._down)
        both = (up * self._weight[:, None]).T @ down
        helps = gains[outside] - costs[inside][:, None] + both
        goes, comes = np.unravel_index(int(helps.argmax()), helps.shape)
        if helps[goes, comes] <= _LEAST_GAIN * self._weight.sum():
            return False
        self._weight = self._weight * (1 + up[:, goes]) * (1 - down[:, comes])
        stays[inside[goes]], stays[outside[comes]] = False, True
        return True

    def _of(
        self, row: int, experts: npt.NDArray[np.intp], values: npt.NDArray[np.float32]
    ) -> Floats:
        """Values of some experts of a layer, 0 where a token does not use them, [tokens, few]."""
        column = np.full(self._experts, -1)
        column[experts] = np.arange(len(experts))
        columns = column[self._chosen[row]]
        tokens, slots = np.nonzero(columns >= 0)
        found = np.zeros((len(columns), len(experts)))
        found[tokens, columns[tokens, slots]] = values[row][tokens, slots]
        return found

    def _values(self, row: int) -> tuple[Floats, Floats]:
        """Sum what dropping each expert of a layer costs, and what keeping it gains."""
        chosen, weight = self._chosen[row].ravel(), self._weight[:, None]

        def summed(each: npt.NDArray[np.float32]) -> Floats:
            values = (weight * each).ravel()
            return np.bincount(chosen, values, self._experts).astype(np.float64)

        return summed(self._up[row]), summed(self._down[row])
