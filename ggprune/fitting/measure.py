"""Measuring candidates: a pass over short text each, none of them twice."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ggprune.errors import InputError
from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.evaluation.journal import Journal
from ggprune.evaluation.masking import Dropped
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.types import Floats32, Progress, no_progress

log = logging.getLogger(__name__)

_SPEED_TOKENS, _SPEED_CONTEXT = 24, 64


@dataclass(frozen=True, slots=True)
class Score:
    """What a candidate costs on some text.

    Attributes:
        kld_mean, kld_se, kld_p99: KL divergence from the reference in nats a token: mean, its
            standard error, 99th percentile.
        worst_domain, worst_kld: the kind of text that it costs most, and how much there.
        tokens: scored.
    """

    kld_mean: float
    kld_se: float
    kld_p99: float
    worst_domain: str
    worst_kld: float
    tokens: int

    @classmethod
    def of(cls, evaluation: Evaluation) -> Score:
        """Sum up an evaluation."""
        total = evaluation.total
        by_domain = {name: metrics.kld_mean for name, metrics in evaluation.domains.items()}
        worst = max(by_domain, key=by_domain.__getitem__)
        return cls(
            total.kld_mean, total.kld_se, total.kld_p99, worst, by_domain[worst], total.tokens
        )


class Meter:
    """Measures on one text, counting passes.

    Args:
        journal: keeps what is measured, in ``folder`` as the divergences of all tokens.
        text: name of the text, ``search`` or ``held out``.

    Attributes:
        passes: computed so far, the reference's own included.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        folder: Path,
        text: str,
        progress: Progress = no_progress,
    ) -> None:
        self._evaluator, self._journal, self._text = evaluator, journal, text
        self._folder, self._progress = folder, progress
        self.passes = 0

    def known(self, key: str) -> Score | None:
        """Return what was measured, now or in an earlier run."""
        score = self._journal.known.get(f"{self._text} {key}")
        return score and Score(**score)

    def measure(self, key: str, path: Path, what: str, dropped: Dropped | None = None) -> Score:
        """Measure a candidate, unless that was done before.

        Args:
            key: names it in the journal.
            what: the candidate, for people.
        """
        known = self.known(key)
        if known is not None:
            return known
        self.reference()
        with self._progress(self._evaluator.tokens, f"measuring {what}", "tok") as advance:
            evaluation = self._evaluator.measure_file(path, dropped, advance=advance)
        self.passes += 1
        np.save(self._tokens_of(key), evaluation.scores.kld.astype(np.float32))
        score = Score.of(evaluation)
        self._journal.put(f"{self._text} {key}", asdict(score))
        log.info("%s: %.5f ± %.5f on the %s text", what, score.kld_mean, score.kld_se, self._text)
        return score

    def reference(self) -> None:
        """Compute the reference's own probabilities, if they are not there."""
        if not self._evaluator.base_is_known:
            with self._progress(
                self._evaluator.tokens, "measuring the reference", "tok"
            ) as advance:
                self._evaluator.base(advance)
            self.passes += 1

    def difference(self, one: str, other: str) -> tuple[float, float]:
        """Mean divergence of one candidate minus another's, and its standard error, by token."""
        a, b = (self._klds(key) for key in (one, other))
        if a is None or b is None or len(a) != len(b):
            first, second = self.known(one), self.known(other)
            assert first and second
            error = float(np.hypot(first.kld_se, second.kld_se))
            return first.kld_mean - second.kld_mean, error
        each = a.astype(np.float64) - b
        return float(each.mean()), float(each.std() / max(len(each) - 1, 1) ** 0.5)

    def _tokens_of(self, key: str) -> Path:
        """Where the divergence of every token is, for differences with an error."""
        name = hashlib.sha256(f"{self._journal.of} {self._text} {key}".encode()).hexdigest()[:16]
        return self._folder / f"kld-{name}.npy"

    def _klds(self, key: str) -> Floats32 | None:
        try:
            values: Floats32 = np.load(self._tokens_of(key))
        except (OSError, ValueError):
            return None
        return values


def decode_speed(path: Path, options: RunOptions) -> float:
    """Tokens a second that a model generates, measured over a few.

    Raises:
        LlamaError: it does not load.
    """
    with (
        LlamaModel(path, options) as llama,
        LlamaContext(llama, n_ctx=_SPEED_CONTEXT) as context,
    ):
        context.decode([Tokens(0, 0, list(range(8)), "last")])
        best = 0.0
        for start in (8, 8 + _SPEED_TOKENS):
            began = time.perf_counter()
            for at in range(start, start + _SPEED_TOKENS):
                context.decode([Tokens(0, at, [at % llama.n_vocab], "last")])
            best = max(best, _SPEED_TOKENS / (time.perf_counter() - began))
    return best


def check_text(evaluator: Evaluator, what: str) -> None:
    """Refuse text that says too little.

    Raises:
        InputError: fewer than 100 scored tokens.
    """
    if evaluator.scored < 100:
        raise InputError(f"the {what} has {evaluator.scored} scored tokens: too few to measure on")
