"""Measuring candidates: a pass over short text each, and a journal so that none is run twice."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggprune.errors import InputError
from ggprune.evaluation.evaluator import Evaluation, Evaluator
from ggprune.evaluation.masking import Dropped
from ggprune.gguf_file import replacing
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


class Journal:
    """Measurements in a folder, one line of JSON each.

    Args:
        facts: what the measurements are of; those of anything else lie in files of their own.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        first = json.dumps({"of": dict(facts)}, sort_keys=True)
        self._of = hashlib.sha256(first.encode()).hexdigest()[:12]
        self._folder, self._path = folder, folder / f"measured-{self._of}.jsonl"
        self._scores: dict[str, Score] = {}
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        if lines[:1] == [first]:
            for line in lines[1:]:
                try:
                    entry = json.loads(line)
                    self._scores[entry["key"]] = Score(**entry["score"])
                except (ValueError, KeyError, TypeError):  # The run was killed while writing it.
                    continue
            log.info("using %d measurements in %s", len(self._scores), self._path)
        with replacing(self._path) as part:
            kept = [json.dumps({"key": k, "score": asdict(s)}) for k, s in self._scores.items()]
            part.write_text("\n".join([first, *kept]) + "\n", encoding="utf-8")

    def get(self, key: str) -> Score | None:
        """Return a measurement, if there is one."""
        return self._scores.get(key)

    def put(self, key: str, score: Score) -> None:
        """Keep a measurement."""
        self._scores[key] = score
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "score": asdict(score)}) + "\n")

    def tokens_of(self, key: str) -> Path:
        """Where the divergence of every token is, for differences with an error."""
        name = hashlib.sha256(f"{self._of} {key}".encode()).hexdigest()[:16]
        return self._folder / f"kld-{name}.npy"


class Meter:
    """Measures on one text, counting passes.

    Args:
        journal: keeps what is measured.
        text: name of the text, ``search`` or ``held out``.

    Attributes:
        passes: computed so far, the reference's own included.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        text: str,
        progress: Progress = no_progress,
    ) -> None:
        self._evaluator, self._journal, self._text = evaluator, journal, text
        self._progress = progress
        self.passes = 0

    def known(self, key: str) -> Score | None:
        """Return what was measured, now or in an earlier run."""
        return self._journal.get(f"{self._text} {key}")

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
        key = f"{self._text} {key}"
        np.save(self._journal.tokens_of(key), evaluation.scores.kld.astype(np.float32))
        score = Score.of(evaluation)
        self._journal.put(key, score)
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

    def _klds(self, key: str) -> Floats32 | None:
        try:
            values: Floats32 = np.load(self._journal.tokens_of(f"{self._text} {key}"))
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
