"""Compare the ways to choose experts, on text that none of them saw: `make evidence`.

Calibrates on one set of texts, lets `auto` and `search` measure on a second, and evaluates every
plan on a third, by masking. Results are kept as they come, so a run that was stopped continues.
By default it runs on the models in fixtures/ that are there; any model and texts can be named:

    python benchmarks/evidence.py MODEL.gguf --texts FOLDER --keep 96 --keep 64 --out results/

FOLDER holds calibration/, search/ and heldout/ with one NAME.txt (or .jsonl) for each domain.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from evidence_report import write_report

from ggprune.calibration.run import Run
from ggprune.calibration.settings import Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import choose_plan, plan_of, rank
from ggprune.choosing.methods import METHODS, find
from ggprune.choosing.ranking import Ranking
from ggprune.choosing.request import Budget, Request, Resources
from ggprune.evaluation.chunks import hash_of
from ggprune.evaluation.evaluator import Evaluator
from ggprune.gguf_file import write_text
from ggprune.llama.options import RunOptions
from ggprune.model import open_model
from ggprune.plan import Plan
from ggprune.text.documents import Source
from ggprune.text.load import load_texts
from ggprune.types import no_progress

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 512
SCORED_FROM = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its texts.

    Attributes:
        heldout_tokens: of each domain, from all over it, that plans are judged on; None: all.
        search_plans: that search draws; 0: no search, no method that calibrates again.
        calibration_tokens: of each domain; None: all.
    """

    model: Path
    texts: Path
    heldout_tokens: int | None
    search_plans: int
    calibration_tokens: int | None = None


#: What is in fixtures/, as much of each as two cores do in an hour and a half; the last model is
#: made by `make chatty`. The second is small and its plans are close, so it is judged on more.
CASES: tuple[Case, ...] = (
    Case(ROOT / "fixtures/gemma4-moe-tiny-Q8_0.gguf", ROOT / "fixtures", 4096, 600),
    Case(ROOT / "fixtures/glm4-moe-tiny-Q8_0.gguf", ROOT / "fixtures/glm4-moe", 12288, 0),
    Case(ROOT / "out/chatty-Q8_0.gguf", ROOT / "fixtures/glm4-moe", 2048, 0, 12288),
)
#: Method and blend; the first six are what auto chooses from.
ONE_SHOT = (
    *(("cover", ""), ("consensus", ""), ("contribution", "maxmin"), ("contribution", "")),
    *(("gate", ""), ("reap", ""), ("contribution", "uniform"), ("gate", "maxmin")),
    *(("frequency", ""), ("ean", "")),
)
OTHERS = (("weights", ""), ("man", ""), ("msan", ""))
#: Also measured with as many experts a token as search takes.
TOLD = (("cover", ""), ("contribution", ""), ("gate", "maxmin"), ("reap", ""))
SEEDS = 3
ROUNDS = 2
SEARCH_PLANS = "that search draws; 0: no search, no method that calibrates again"


class Evidence:
    """One run: what is measured, and where it is kept."""

    def __init__(self, case: Case, keeps: list[int] | None, out: Path, threads: int | None) -> None:
        self.case, self.keeps, self.out = case, keeps, out
        self.since = time.monotonic(), time.process_time()
        self.model = open_model(case.model)
        self.work = out / "evidence-work" / case.model.stem
        self.work.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "evidence.json"
        self.all = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self.results: dict[str, Any] = self.all.setdefault(self.model.name, {})
        self.options = RunOptions(threads=threads)
        self.statistics = self._statistics()
        self._rankings: dict[str, Ranking] = {}

    def run(self) -> None:
        """Everything that is not there yet, cheapest first."""
        experts, used = self.model.experts, self.model.experts_used
        keeps = self.keeps or [max(round(experts * share), used) for share in (0.75, 0.5, 0.25)]
        self.results["model"] = {
            "name": self.model.name,
            "experts": self.model.experts,
            "used": self.model.experts_used,
            "layers": len(self.model.moe_layers),
            "keeps": sorted(keeps, reverse=True),
            "tokens": {d.name: d.tokens for d in self.statistics.domains},
        }
        with Evaluator(
            self.model.gguf.path,
            self.options,
            self._texts("heldout"),
            n_ctx=CONTEXT,
            max_tokens=self.case.heldout_tokens,
            spread=True,
            scored_from=SCORED_FROM,
            cache=self.work,
        ) as evaluator:
            evaluator.base()
            text = hash_of(evaluator.chunks)
            if self.results.get("heldout", {}).get("text") != text:
                self.results.pop("plans", None)  # Measured on other text.
            self.results["heldout"] = {
                "tokens": evaluator.scored,
                "chunks": len(evaluator.chunks),
                "text": text,
            }
            stages = [self._one_shot, self._measured, self._others]
            if self.case.search_plans:
                stages += [self._fewer_used, self._more_passes]
            for stage in stages:
                for keep in keeps:
                    for name, plan in stage(keep):
                        self._evaluate(evaluator, keep, name, plan)
        self._took()
        write_report(self.all, self.out)

    def _statistics(self) -> Statistics:
        path = self.work / "stats.gguf"
        if not path.exists():
            most = self.case.calibration_tokens
            settings = Settings(ctx=CONTEXT, generate=0, max_tokens=most)
            run = Run(self.model, self._texts("calibration"), settings, self.options, no_progress)
            run.run().save(path)
        return Statistics.load(path)

    def _texts(self, part: str) -> tuple[Source, ...]:
        found = sorted((self.case.texts / part).glob("*.[tj]*"))
        return load_texts((path.stem, str(path)) for path in found)

    def _one_shot(self, keep: int) -> Iterator[tuple[str, Plan]]:
        for method, blend in ONE_SHOT:
            yield self._scored(keep, method, blend)

    def _scored(self, keep: int, method: str, blend: str) -> tuple[str, Plan]:
        name = f"{method}, {blend}" if blend else method
        return name, self._plan(keep, name, method, blend=blend or None)

    def _measured(self, keep: int) -> Iterator[tuple[str, Plan]]:
        yield "auto", self._plan(keep, "auto", "auto")
        if self.case.search_plans:
            yield "search", self._searched(keep)

    def _searched(self, keep: int) -> Plan:
        return self._plan(keep, "search", "search", search_plans=self.case.search_plans)

    def _fewer_used(self, keep: int) -> Iterator[tuple[str, Plan]]:
        """What search gains by its experts, and what by how many of them a token uses."""
        found = self._searched(keep)
        used = found.experts_used
        if not used:
            return
        yield f"search, {self.model.experts_used} used", replace(found, experts_used=None)
        for method, blend in TOLD:
            name, plan = self._scored(keep, method, blend)
            yield f"{name}, {used} used", replace(plan, experts_used=used)

    def _others(self, keep: int) -> Iterator[tuple[str, Plan]]:
        for seed in range(SEEDS):
            yield f"random {seed}", self._plan(keep, f"random {seed}", "random", seed=seed)
        for method, _ in OTHERS:
            yield method, self._plan(keep, method, method)

    def _more_passes(self, keep: int) -> Iterator[tuple[str, Plan]]:
        """Methods that run the model over the calibration text again."""
        for method in (name for name, each in METHODS.items() if each.needs == "run"):
            yield method, self._once(keep, method, partial(self._ranked_again, method, keep))
        name = f"contribution, {ROUNDS} rounds"
        yield name, self._plan(keep, name, "contribution", rounds=ROUNDS)

    def _ranked_again(self, method: str, keep: int) -> Plan:
        """One pass serves all sizes."""
        request = Request(budget=Budget(keep=keep), method=method, super_experts=False)
        if method not in self._rankings:
            resources = self._resources(None)
            self._rankings |= rank(find(method), self.statistics, request, resources)
        return plan_of(self._rankings[method].decided(keep), self.statistics, request)

    def _plan(self, keep: int, name: str, method: str, **more: Any) -> Plan:
        """Choose as the command line does, or take what was chosen before."""
        request = Request(
            budget=Budget(keep=keep),
            method=method,
            super_experts=False,
        )
        journal = self.work / f"{keep} {name}.journal" if method == "search" else None
        resources = self._resources(journal)
        make = partial(choose_plan, self.statistics, replace(request, **more), resources)
        return self._once(keep, name, make)

    def _once(self, keep: int, name: str, make: Callable[[], Plan]) -> Plan:
        path = self.work / f"{keep} {name}.json"
        if path.exists():
            return Plan.load(path)
        before = time.monotonic()
        plan = make()
        seconds = time.monotonic() - before
        plan = replace(plan, settings={**plan.settings, "seconds": round(seconds, 2)})
        plan.save(path)
        return plan

    def _resources(self, journal: Path | None) -> Resources:
        return Resources(
            model=self.model,
            options=self.options,
            sources=self._texts("calibration"),
            search_sources=self._texts("search"),
            cache=self.work,
            journal=journal,
        )

    def _evaluate(self, evaluator: Evaluator, keep: int, name: str, plan: Plan) -> None:
        rows = self.results.setdefault("plans", {}).setdefault(str(keep), {})
        if name in rows and rows[name]["hash"] == plan.hash:
            return
        same = next((row for row in rows.values() if row["hash"] == plan.hash), None)
        rows[name] = {**(same or self._measure(evaluator, plan)), "settings": dict(plan.settings)}
        rows[name]["method"], rows[name]["hash"] = plan.method, plan.hash
        self._took()
        kl = rows[name]["kld_mean"]
        print(f"keep {keep}  {name:24} KL {kl:.4f}", file=sys.stderr, flush=True)

    def _took(self) -> None:
        """Add the time since the last call to what all runs took, and write everything down."""
        now = time.monotonic(), time.process_time()
        spent = self.results.setdefault("seconds", {"wall": 0.0, "cpu": 0.0})
        for name, before, after in zip(("wall", "cpu"), self.since, now, strict=True):
            spent[name] = round(spent[name] + after - before, 1)
        self.since = now
        write_text(self.path, json.dumps(self.all) + "\n")

    def _measure(self, evaluator: Evaluator, plan: Plan) -> dict[str, Any]:
        found = evaluator.measure_plan(plan)
        row: dict[str, Any] = _numbers(found.total)
        row["domains"] = {name: _numbers(metrics) for name, metrics in found.domains.items()}
        # By chunk, so that plans can be compared in pairs.
        slices = [evaluator.chunk_slice(n) for n in range(len(evaluator.chunks))]
        row["chunks"] = [round(float(np.mean(found.scores.kld[s])), 6) for s in slices]
        return row


def _numbers(metrics: Any) -> dict[str, Any]:
    names = ("ppl_ratio", "ppl_ratio_se", "kld_mean", "kld_se", "top1_agreement")
    return {name: round(float(getattr(metrics, name)), 6) for name in names}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", type=Path, help="default: all in fixtures/")
    parser.add_argument("--texts", type=Path, default=ROOT / "fixtures")
    parser.add_argument("--keep", type=int, action="append", help="default: 75, 50, 25 %%")
    parser.add_argument("--search-plans", type=int, default=600, help=SEARCH_PLANS)
    parser.add_argument("--calibration-tokens", type=int, help="of each domain; default: all")
    parser.add_argument("--heldout-tokens", type=int, default=4096, help="of each domain; 0: all")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    told = parser.parse_args()
    cases = CASES
    if told.model:
        tokens = told.heldout_tokens or None, told.search_plans, told.calibration_tokens
        cases = (Case(told.model, told.texts, *tokens),)
    for case in cases:
        if case.model.exists():
            Evidence(case, told.keep, told.out, told.threads).run()
        else:
            print(f"{case.model}: not there, left out", file=sys.stderr)


if __name__ == "__main__":
    main()
