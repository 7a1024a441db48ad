"""What each expert does for each token: the routing that sums no longer tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.types import Floats, Floats32

#: Bytes of Shares that statistics keep; of longer texts, every so many-th token.
KEPT_BYTES = 64 << 20
#: Bytes of an expert that a token uses, and of the token's norm.
_BYTES, _NORM_BYTES = 4, 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Who did how much for each token, arrays of shape [tokens, layers with experts, used].

    The share of an expert is (g‖f‖)² over the sum of it over the experts the token uses in the
    layer: outputs of different experts are nearly orthogonal, so squares add up.

    Attributes:
        experts: their numbers, int16.
        shares: float16; they add up to 1 over the experts that a token uses in a layer.
        norms: √Σ (g‖f‖)² over these, [tokens, layers]; None: a file from before they were kept.
        weights: how much each token counts, [tokens]; None: all count 1.
    """

    experts: npt.NDArray[np.int16]
    shares: npt.NDArray[np.float16]
    norms: Floats32 | None = None
    weights: Floats32 | None = None

    @classmethod
    def of(
        cls,
        experts: npt.NDArray[np.integer],
        contributions: npt.NDArray[np.floating],
        weights: Floats32 | None = None,
    ) -> Shares:
        """Compute them from experts and g‖f‖, [tokens, layers, used] each."""
        squares = contributions.astype(np.float64) ** 2
        totals = squares.sum(axis=-1, keepdims=True)
        even = np.full_like(squares, 1 / squares.shape[-1])
        shares = np.divide(squares, totals, where=totals > 0, out=even)
        norms = np.sqrt(totals[..., 0]).astype(np.float32)
        return cls(experts.astype(np.int16), shares.astype(np.float16), norms, weights)

    @classmethod
    def kept(cls, arrays: Mapping[str, Any], layers: int) -> Shares | None:
        """Take those of a file, if it has them; raises ValueError if they have another shape."""
        experts, shares, norms, weights = (arrays[name] for name in cls.__slots__)
        if experts is None or shares is None:
            return None
        if experts.shape != shares.shape or experts.ndim != 3 or experts.shape[1] != layers:
            raise ValueError(f"shares of the shapes {experts.shape} and {shares.shape}")
        if norms is not None and norms.shape != experts.shape[:2]:
            raise ValueError(f"shares of the shape {shares.shape}, norms of {norms.shape}")
        if weights is not None and weights.shape != experts.shape[:1]:
            raise ValueError(f"{len(experts)} tokens with weights of the shape {weights.shape}")
        return cls(experts, shares, norms, weights)

    @classmethod
    def joined(cls, parts: Sequence[Shares]) -> Shares:
        """Put texts one after the other."""
        weighted = any(part.weights is not None for part in parts)
        norms = [part.norms for part in parts if part.norms is not None]
        return cls(
            np.concatenate([part.experts for part in parts]),
            np.concatenate([part.shares for part in parts]),
            np.concatenate(norms) if len(norms) == len(parts) else None,
            np.concatenate([part.weight.astype(np.float32) for part in parts])
            if weighted
            else None,
        )

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def weight(self) -> Floats:
        """How much each token counts, [tokens]."""
        return np.ones(len(self)) if self.weights is None else self.weights.astype(np.float64)

    def at(self, tokens: npt.NDArray[np.integer]) -> Shares:
        """Return the shares of the given tokens."""
        each = (self.experts, self.shares, self.norms, self.weights)
        return Shares(*(None if part is None else part[tokens] for part in each))  # type: ignore[arg-type]

    def sums(self, experts: int) -> npt.NDArray[np.float64]:
        """Sum shares over tokens by their weight, [layers, experts]."""
        weight, rows = self.weight[:, None], range(self.experts.shape[1])
        return np.array(
            [
                np.bincount(
                    self.experts[:, row].ravel(), (self.shares[:, row] * weight).ravel(), experts
                )
                for row in rows
            ]
        )


def stride(tokens: int, layers: int, used: int, runs: int = 1) -> int:
    """Return of every how many tokens one is kept, so that all runs stay within KEPT_BYTES.

    Args:
        tokens: of this run.
        layers: with experts.
        used: experts that work on a token.
        runs: that will be merged.
    """
    size = tokens * layers * (used * _BYTES + _NORM_BYTES) * runs
    return max(1, -(-size // KEPT_BYTES))
