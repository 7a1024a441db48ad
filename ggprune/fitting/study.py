"""Everything that is measured of one model before files of any size can be fitted."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.choosing.choose import choose_plan
from ggprune.choosing.request import MEASURED, Budget, Request, Resources
from ggprune.errors import OutputError, UnsupportedModelError
from ggprune.evaluation.evaluator import Evaluator
from ggprune.evaluation.journal import Journal
from ggprune.evaluation.logcache import fingerprint
from ggprune.evaluation.masking import Dropped, dropped_by
from ggprune.fitting.calibrated import calibrated
from ggprune.fitting.job import Job
from ggprune.fitting.measure import Meter, Score, check_text
from ggprune.fitting.predict import POWER, Prediction
from ggprune.fitting.requantize import Requantizer
from ggprune.fitting.rounding import Errors
from ggprune.fitting.shards import Shards
from ggprune.fitting.solve import choose
from ggprune.fitting.space import AS_IS, Mix, Option, Space
from ggprune.gguf_file import Tensor
from ggprune.llama.options import QuantizeOptions
from ggprune.model import MoeModel
from ggprune.model.architectures import Kind
from ggprune.plan import Plan
from ggprune.quantization.imatrix import Imatrix
from ggprune.quantization.importance import ImatrixObserver
from ggprune.quantization.quantize import Quantizer
from ggprune.text.documents import Source
from ggprune.text.held_out import Texts
from ggprune.util import Closing, human_size

log = logging.getLogger(__name__)

#: Shares of the experts that are masked to learn what missing ones cost.
_COUNTS = (15 / 16, 3 / 4, 1 / 2, 1 / 4)
#: Counts that are tried for a file, at most.
_TRIED = 33
#: Bits of a weight in the type that every group is measured in first.
_FIRST_BITS = 4.5
_CTX = 512
_SCORED_FROM = 64


def check_predicts(source: MoeModel) -> None:
    """Raise UnsupportedModelError if divergence cannot be measured of a model."""
    if source.architecture.kind is not Kind.CAUSAL:
        raise UnsupportedModelError(
            f"{source.gguf.path}: predicts no next token, so no divergence can be measured"
        )


class Study(Closing):
    """One model, its texts, and what was measured; a context manager.

    Args:
        job: what to fit, and on what.
        source: ``job.model``, open; it is only read by the quantizer unless it is the reference
            too.
        reference: what divergence is measured from, and what is calibrated; None for the source.

    Raises:
        UnsupportedModelError: it predicts no next token.
        OutputError: no room for a candidate.
        MismatchError: reference, statistics or importance matrix are of another model.
    """

    def __init__(
        self, job: Job, source: MoeModel, texts: Texts, work: Path, reference: MoeModel | None
    ) -> None:
        check_predicts(source)
        self.source, self.reference = source, reference or source
        self.options, self.run, self.progress = job.options, job.run, job.progress
        self.work, self._texts = work, texts
        self._plans: dict[int, Plan] = {}
        self._method, self._blend = self.options.method, None
        if self.reference is not source:
            source.identity().check_same(
                self.reference.identity(), str(source.gguf.path), str(self.reference.gguf.path)
            )
        work.mkdir(parents=True, exist_ok=True)
        settings, observers = job.settings or Settings(ctx=_CTX), [ImatrixObserver()]
        model, text = self.reference, texts.calibration
        run = Run(model, text, settings, self.run, self.progress, observers=observers)
        self.statistics, self.imatrix = calibrated(run, work, job.statistics, job.imatrix)
        matrix = Imatrix.load(self.imatrix)
        means = {name: entry.means() for name, entry in matrix.entries.items()}
        self._requantizer = Requantizer(source.gguf, means, self.run.n_threads)
        quantizing = QuantizeOptions(imatrix=self.imatrix, allow_requantize=True)
        self.space = Space(
            source,
            work,
            groups=self.options.groups,
            wanted=[kind.upper() for kind in self.options.types] or None,
            covered=means,
            imatrix=self.imatrix,
            notes=Quantizer(source.gguf, quantizing, work).notes,
            method=self._find_method(),
        )
        self._say_beforehand()
        self.shards = Shards(self.space, self._requantizer, work, self.options.room)
        facts: dict[str, Any] = {
            "source": fingerprint(source.gguf),
            "imatrix": hashlib.sha256(self.imatrix.read_bytes()).hexdigest(),
        }
        self.errors = Errors(self._requantizer, Journal(work / "errors.jsonl", facts))
        self._search, search = self._evaluator(texts.search, self.options.search_tokens, "search")
        self._judge, held_out = self._evaluator(
            texts.held_out, self.options.held_out_tokens, "held-out"
        )
        facts |= {"reference": fingerprint(self.reference.gguf), "texts": [search, held_out]}
        facts |= {"statistics": [plan.hash for plan in self._plans.values()]}
        facts |= {"groups": [group.name for group in self.space.groups]}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        journal = Journal(work / f"measured-{digest}.jsonl", facts)
        if journal.known:
            log.info("using %d measurements in %s", len(journal.known), work)
        self.search = Meter(self._search, journal, work, "search", self.progress)
        self.judge = Meter(self._judge, journal, work, "held-out", self.progress)
        self._groups: dict[tuple[int, tuple[str, ...]], float] = {}

    def close(self) -> None:
        """Let go of models, threads and files; what was measured stays."""
        self._requantizer.close()
        self._search.close()
        self._judge.close()

    @property
    def passes(self) -> int:
        """Passes over text so far, without calibration."""
        return self.search.passes + self.judge.passes

    @property
    def surveyed(self) -> bool:
        """Whether there is anything to predict from."""
        return bool(self._groups)

    @property
    def refined(self) -> bool:
        """Whether groups were measured in a second type."""
        return len(self._groups) > len(self.space.groups)

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of experts that files are tried with, all first."""
        possible = self.source.counts.possible()
        step = -(-len(possible) // _TRIED)
        return tuple(dict.fromkeys((*possible[::-step], self.source.counts.least)))

    def _find_method(self) -> str:
        """Settle on one way to choose, with half of the experts kept, if none is asked for."""
        plan = self.plan(self.source.counts.rounded(self.source.experts // 2, "up"))
        if self._method in (None, MEASURED):
            self._method, self._blend = plan.method, plan.settings.get("blend")
        return plan.method

    def plan(self, keep: int) -> Plan:
        """Which experts stay of so many."""
        if keep not in self._plans:
            request = Request(budget=Budget(keep=keep), method=self._method, blend=self._blend)
            resources = Resources(
                model=self.reference,
                options=self.run,
                search_sources=self._texts.search,
                progress=self.progress,
            )
            plan = choose_plan(self.statistics, request, resources)
            self._plans[keep] = plan.for_model(self.source)
        return self._plans[keep]

    def survey(self) -> None:
        """Measure the base, missing experts, and every group in a first type."""
        space, base = self.space, self.space.base
        self._recall()
        self.errors.estimate(self._wanted_errors(), self.progress)
        if self.reference is not self.source or any(o.kind != AS_IS for o in base.options):
            self.measure(base, "all in the best type")
        for share in _COUNTS:
            keep = self.source.counts.rounded(round(self.source.experts * share), "up")
            if keep < self.source.experts:
                self.measure(Mix(keep, base.options), f"{keep} experts")
        for index in range(len(space.groups)):
            option = self._nearest(index, _FIRST_BITS)
            if option is not None:
                self.measure_group(index, option)

    def refine(self, limit: int, most: int) -> None:
        """Measure groups in a second type: that which they would get in a file of this size.

        Args:
            most: groups to measure; those that cost most come first.
        """
        for share in (1.0, 0.85):
            found, prediction = self.best(int(limit * share)), self.prediction()
            wanted = []
            for index, option in enumerate(found.options if found else ()):
                known = {option.types for option in self.space.options[index][:1]}
                known |= {types for i, types in self._groups if i == index}
                if option.types not in known and (len(known) < 3 or most == 1):
                    wanted.append((-prediction.group(index, option), index, option))
            for _, index, option in sorted(wanted, key=lambda each: each[:2])[:most]:
                self.measure_group(index, option)
                most -= 1

    def _recall(self) -> None:
        """Take in what an earlier run measured of groups."""
        for index, options in enumerate(self.space.options):
            for option in options[1:]:
                known = self.search.known(self._with(index, option).key)
                if known is not None:
                    self._groups[index, option.types] = known.kld_mean

    def _with(self, index: int, option: Option) -> Mix:
        options = list(self.space.base.options)
        options[index] = option
        return Mix(self.source.experts, tuple(options))

    def measure_group(self, index: int, option: Option) -> None:
        """Measure one group in a type, all others as in the base."""
        what = f"{self.space.groups[index].name} in {'/'.join(dict.fromkeys(option.types))}"
        score = self.measure(self._with(index, option), what)
        self._groups[index, option.types] = score.kld_mean

    def measure(self, mix: Mix, what: str, meter: Meter | None = None) -> Score:
        """Measure a file without writing it: shards joined by links, missing experts masked."""
        meter = meter or self.search
        known = meter.known(mix.key)
        if known is not None:
            return known
        total = self.space.size(self.space.base)
        with self.progress(total, f"quantizing {what}", "B") as advance:
            path = self.shards.candidate(mix.options, advance)
        return meter.measure(mix.key, path, what, self.dropped(mix.keep))

    def dropped(self, keep: int) -> Dropped | None:
        """Experts to mask."""
        return dropped_by(self.plan(keep)) if keep < self.source.experts else None

    def prediction(self, power: float = POWER) -> Prediction:
        """Return what all that was measured so far predicts, with this power of the sum."""
        base = self.search.known(self.space.base.key)
        counts = {}
        for keep in range(self.source.experts):
            score = self.search.known(Mix(keep, self.space.base.options).key)
            if score is not None:
                counts[keep] = score.kld_mean
        return Prediction(
            self.space,
            self.errors.of,
            base.kld_mean if base else 0.0,
            self._groups,
            counts,
            power,
        )

    def best(self, limit: int, keep: int | None = None, power: float = POWER) -> Mix | None:
        """Return the file of at most so many bytes with the least predicted divergence.

        Args:
            keep: only with so many experts; None tries all counts.
            power: see predict.
        """
        found: list[tuple[float, Mix]] = []
        prediction, options = self.prediction(power), self.space.options
        costs = [[prediction.group(i, o) ** power for o in each] for i, each in enumerate(options)]
        for count in self.counts if keep is None else (keep,):
            if found and prediction.base + prediction.count(count) > min(found, key=_cost)[0]:
                break
            bytes_of = partial(self.space.group_bytes, keep=count)
            sizes = [[bytes_of(i, o) for o in each] for i, each in enumerate(options)]
            chosen = choose(sizes, costs, limit - self.space.fixed_bytes(count))
            if chosen is not None:
                mix = Mix(count, tuple(e[c] for e, c in zip(options, chosen, strict=True)))
                found.append((prediction.of(mix), mix))
        return min(found, key=_cost)[1] if found else None

    def _nearest(self, index: int, bits: float) -> Option | None:
        """Return the option of a group, other than the first, with about so many bits a weight."""
        group, options = self.space.groups[index], self.space.options[index][1:]
        wanted = sum(math.prod(tensor.shape) for tensor in group.tensors) * bits / 8

        def distance(option: Option) -> tuple[float, bool]:
            size = self.space.group_bytes(index, option, self.source.experts)
            return abs(size - wanted), option.kind.startswith("I")

        return min(options, key=distance, default=None)

    def _wanted_errors(self) -> dict[Tensor, set[str]]:
        wanted: dict[Tensor, set[str]] = {}
        for group, options in zip(self.space.groups, self.space.options, strict=True):
            for option in options:
                for tensor, kind in zip(group.tensors, option.types, strict=True):
                    wanted.setdefault(tensor, set()).add(kind)
        return wanted

    def _evaluator(
        self, sources: Sequence[Source], tokens: int, what: str
    ) -> tuple[Evaluator, Any]:
        evaluator = Evaluator(
            self.reference.gguf.path,
            self.run,
            sources,
            n_ctx=_CTX,
            max_tokens=max(tokens // max(len(sources), 1), _CTX),
            scored_from=_SCORED_FROM,
            cache=self.work,
        )
        check_text(evaluator, f"{what} text")
        return evaluator, [tokens, [[source.domain, source.sha256] for source in sources]]

    def _say_beforehand(self) -> None:
        """Say what will be run, and what the disk must hold; refuse where it cannot.

        Raises:
            OutputError: no room for one candidate.
        """
        runs, needed = self.reference.gguf, self.space.size(self.space.base)
        free = shutil.disk_usage(self.work).free
        log.info(
            "%s (%s) is run; %s (%s) is only quantized; %s holds one candidate, up to %s, of %s "
            "that are free",
            runs.path.name,
            human_size(runs.size),
            self.source.gguf.path.name,
            human_size(self.source.gguf.size),
            self.work,
            human_size(needed),
            human_size(free),
        )
        if free < needed and not (self.work / "shards").exists():
            raise OutputError(
                f"{self.work}: {human_size(free)} are free, a candidate takes {human_size(needed)}",
                remedy="Name a folder on another disk: work=FOLDER.",
            )


def _cost(found: tuple[float, Mix]) -> float:
    return found[0]
