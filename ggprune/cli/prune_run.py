"""The stages of ``prune`` put together, and what is said of the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune import pipeline
from ggprune.calibrate import ProgressFactory, Settings
from ggprune.cli.common import human_size
from ggprune.errors import InputError
from ggprune.llama.runtime import RunOptions
from ggprune.model import MoeModel, open_model
from ggprune.pipeline import Paths, Pruned
from ggprune.plan import Plan, make_plan
from ggprune.rewrite import Rewrite, plan_rewrite
from ggprune.statistics import Statistics


@dataclass(slots=True)
class PruneRun:
    """One run of ``prune`` with the command's arguments."""

    path: Path
    options: RunOptions
    arguments: Mapping[str, Any]
    bar: ProgressFactory

    def dry_run(self) -> Rewrite:
        """Check everything that can be checked without long work."""
        model = open_model(self.path)
        return self._check(model, self._given_plan())

    def run(self, say: Callable[[str], object]) -> Pruned:
        """All stages.

        Raises:
            GgpruneError: of the stage that failed.
        """
        model = open_model(self.path)
        plan = self._given_plan()
        paths = Paths(self._check(model, plan).files[0].path)
        statistics = None
        if plan is None:
            text = pipeline.choose_text(self.arguments["texts"])
            statistics = self._statistics(model, text, paths, say)
            plan = self._choose(statistics)
        rewrite = self._rewrite(model, plan, self._target(model, plan.keep))
        verify = not self.arguments["no_verify"]
        compared = pipeline.write(
            model, rewrite, self.bar, force=self.arguments["force"], verify=verify
        )
        if verify:
            pipeline.check_loads(rewrite.files[0].path, self.options)
        return pipeline.finish(model, rewrite, statistics, paths, compared=compared)

    def summary(self, pruned: Pruned) -> list[list[str]]:
        """Rows of the table at the end."""
        before = open_model(self.path)
        plan, size = pruned.rewrite.plan, pruned.rewrite.size
        change = size / before.gguf.size - 1
        rows = [
            ["experts", f"{plan.experts} -> {plan.keep} a layer, by {plan.method}"],
            [
                "size",
                f"{human_size(before.gguf.size)} -> {human_size(size)} ({change:+.1%})",
            ],
        ]
        if plan.worst_retained and plan.mean_retained is not None:
            layer, share = plan.worst_retained
            rows.append(
                ["retained", f"worst {share:.2%} (layer {layer}), mean {plan.mean_retained:.2%}"]
            )
        if pruned.compared:
            rows.append(["verified", f"{human_size(pruned.compared)} equal the source's, loads"])
        paths = Paths(pruned.path)
        rows.append(["result", str(pruned.path)])
        if pruned.statistics is not None and self.arguments["stats_path"] is None:
            rows.append(["statistics", str(paths.statistics)])
        rows.append(["metadata", str(paths.metadata)])
        return rows

    def try_command(self, pruned: Pruned) -> str:
        """How to run the result."""
        return f"llama-cli -m {shlex.quote(str(pruned.path))}"

    def _given_plan(self) -> Plan | None:
        path = self.arguments["plan_path"]
        return Plan.load(path) if path else None

    def _check(self, model: MoeModel, plan: Plan | None) -> Rewrite:
        keep = plan.keep if plan else self.arguments["keep"]
        if keep is None:
            raise InputError(
                "how many experts should stay?",
                remedy="Say so with --keep N; `ggprune inspect` shows the size for each N.",
            )
        target = self._target(model, keep)
        makes_statistics = plan is None and self.arguments["stats_path"] is None
        return pipeline.check_output(
            model,
            keep,
            target,
            mtp=self.arguments["mtp"],
            split_max_size=self.arguments["split_max_size"],
            others=[Paths(target).statistics] if makes_statistics else [],
            force=self.arguments["force"],
        )

    def _target(self, model: MoeModel, keep: int) -> Path:
        given: Path | None = self.arguments["output"]
        return given or pipeline.default_result(model, keep, Path())

    def _statistics(
        self,
        model: MoeModel,
        text: pipeline.TextChoice,
        paths: Paths,
        say: Callable[[str], object],
    ) -> Statistics:
        given: Path | None = self.arguments["stats_path"]
        if given is not None:
            statistics = Statistics.load(given)
            statistics.identity.check_same(model.identity(), str(given), str(self.path))
            return statistics
        settings = Settings(
            ctx=self.arguments["ctx"],
            max_tokens=self.arguments["max_tokens"],
            generate=self.arguments["generate"],
            seed=self.arguments["seed"],
        )
        return pipeline.gather(
            model, text.calibration, settings, self.options, paths, self.bar, say
        )

    def _choose(self, statistics: Statistics) -> Plan:
        return make_plan(
            statistics,
            self.arguments["keep"],
            self.arguments["method"],
            seed=self.arguments["seed"],
        )

    def _rewrite(self, model: MoeModel, plan: Plan, target: Path) -> Rewrite:
        return plan_rewrite(
            model,
            plan,
            target,
            mtp=self.arguments["mtp"],
            split_max_size=self.arguments["split_max_size"],
            plan_name=str(self.arguments["plan_path"] or "the plan"),
        )
