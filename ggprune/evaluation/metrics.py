"""Perplexity and divergence over many tokens, with errors, as ``llama-perplexity`` defines them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.evaluation.logprobs import TokenScores
from ggprune.types import Floats


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood, and its standard error."""

    ppl: float
    ppl_se: float

    @classmethod
    def of(cls, nll: Floats) -> Perplexity:
        """Compute both from -ln p of each token."""
        mean, error = mean_and_error(nll)
        value = _exp(mean)
        return cls(value, value * error)


@dataclass(frozen=True, slots=True)
class Metrics:
    """A candidate against the base over some text.

    Attributes:
        tokens: scored.
        base, candidate: perplexities.
        ppl_ratio: candidate's over base's.
        ppl_ratio_se: standard error of the ratio, from paired differences.
        kld_mean, kld_se, kld_median, kld_p95, kld_p99, kld_max: KL divergence base‖candidate in
            nats a token.
        top1_agreement: share of tokens where both find the same token most probable.
        overlap: mean Σ min(p, q).
    """

    tokens: int
    base: Perplexity
    candidate: Perplexity
    ppl_ratio: float
    ppl_ratio_se: float
    kld_mean: float
    kld_se: float
    kld_median: float
    kld_p95: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    overlap: float

    @classmethod
    def of(cls, base_nll: Floats, scores: TokenScores) -> Metrics:
        """Sum up tokens.

        The error of the ratio is that of the mean difference of log-likelihoods, token by token:
        llama.cpp's sqrt(var + var - 2 cov) is the same.
        """
        difference, error = mean_and_error(scores.nll - base_nll)
        ratio = _exp(difference)
        kld, kld_se = mean_and_error(scores.kld)
        median, p95, p99, most = np.quantile(scores.kld, [0.5, 0.95, 0.99, 1.0]).tolist()
        return cls(
            len(base_nll),
            Perplexity.of(base_nll),
            Perplexity.of(scores.nll),
            ratio,
            ratio * error,
            kld,
            kld_se,
            median,
            p95,
            p99,
            most,
            float(scores.same_top.mean()),
            float(scores.overlap.mean()),
        )

    def as_json(self) -> dict[str, Any]:
        """Return what ``ggprune evaluate --json`` prints."""
        return asdict(self)


def mean_and_error(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean, and its standard error as llama.cpp has it: sqrt((⟨x²⟩ - ⟨x⟩²) / (n - 1))."""
    x = values.astype(np.float64)
    error = math.sqrt(float(x.var()) / (len(x) - 1)) if len(x) > 1 else 0.0
    return float(x.mean()), error


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
