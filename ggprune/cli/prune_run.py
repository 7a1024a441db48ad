"""The stages of ``prune`` put together, and what is said of the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggprune import pipeline
from ggprune.calibration.run import Run, Settings
from ggprune.calibration.statistics import Statistics
from ggprune.choosing.choose import Request, Resources, choose_plan, known_count
from ggprune.choosing.methods.sums import COVER
from ggprune.cli.common import table
from ggprune.errors import InputError
from ggprune.gguf_file import OutputFile
from ggprune.llama.options import RunOptions
from ggprune.model import MoeModel, open_model
from ggprune.model.architectures import Kind
from ggprune.pipeline import Paths, Pruned
from ggprune.plan import Plan
from ggprune.report.page import write_report
from ggprune.report.summary import summary_lines
from ggprune.rewrite import Rewrite, plan_rewrite
from ggprune.text.load import load_texts
from ggprune.types import Progress
from ggprune.util import human_size


@dataclass(slots=True, kw_only=True)
class PruneRun:
    """One run of ``prune``.

    Attributes:
        path: of the source.
        request: what to keep; None if a plan is given.
        options: how llama.cpp runs.
        arguments: the command's other arguments.
        bar: makes progress bars.
        say: takes notes for the user.
        command_line: for the report.
    """

    path: Path
    request: Request | None
    options: RunOptions
    arguments: Mapping[str, Any]
    bar: Progress
    say: Callable[[str], object]
    command_line: str
    _text: pipeline.TextChoice | None = field(default=None, init=False)

    def dry_run(self) -> Iterable[tuple[Path, int]]:
        """Check everything that can be checked without long work, and list what is written.

        The size is an upper bound where the number of experts depends on the statistics.
        """
        model = open_model(self.path)
        files = self._check(model, self._given_plan())
        return [(file.path, file.size) for file in files]

    def run(self) -> Pruned:
        """All stages.

        Raises:
            GgpruneError: of the stage that failed.
        """
        model = open_model(self.path)
        plan = self._given_plan()
        self._check(model, plan)
        statistics = None
        if plan is None:
            text = self.text()
            statistics = self._statistics(model, text)
            assert self.request is not None
            plan = choose_plan(statistics, self.request, self._resources(model, text))
        rewrite = self._rewrite(model, plan)
        paths = Paths(rewrite.files[0].path, model.gguf.stem)
        verify = not self.arguments["no_verify"]
        compared = pipeline.write(
            model, rewrite, self.bar, force=self.arguments["force"], verify=verify
        )
        evaluation = self._measure(model, paths) if verify else None
        return pipeline.finish(
            model, rewrite, statistics, paths, compared=compared, evaluation=evaluation
        )

    def _resources(self, model: MoeModel, text: pipeline.TextChoice) -> Resources:
        """What methods that run the model need."""
        return Resources(
            model=model,
            options=self.options,
            sources=text.calibration,
            search_sources=load_texts(self.arguments["search_texts"]),
            progress=self.bar,
            say=self.say,
        )

    def summary(self, pruned: Pruned) -> list[str]:
        """Write the report; what the terminal says at the end."""
        from ggprune.report.data import ReportInput

        paths = Paths(pruned.path, open_model(self.path).gguf.stem)
        given = ReportInput(
            pruned.statistics,
            pruned.rewrite.plan,
            pruned.metadata,
            pruned.evaluation,
            command=self.command_line,
        )
        report = write_report(paths.report, given)
        checked = f"{human_size(pruned.compared)} equal the source's bytes; it loads and computes"
        files = [["verified", checked]] if pruned.compared else []
        files.append(["result", str(pruned.path)])
        if pruned.statistics is not None:
            files.append(["statistics", str(self.arguments["stats_path"] or paths.statistics)])
        files += [["metadata", str(paths.metadata)], ["report", str(paths.report)]]
        if self.arguments["modelfile"]:
            files.append(["Modelfile", str(self._modelfile(pruned))])
        return [
            *summary_lines(report, 16),
            "",
            table(files),
            "",
            f"Run it:  llama-cli -m {shlex.quote(str(pruned.path))}",
        ]

    def _given_plan(self) -> Plan | None:
        path = self.arguments["plan_path"]
        return Plan.load(path) if path else None

    def _check(self, model: MoeModel, plan: Plan | None) -> tuple[OutputFile, ...]:
        """Find out early what cannot work."""
        keep = plan.keep if plan else self._known_count(model)
        asked = self.request.fixed_used if self.request else None
        files = pipeline.check_output(
            model,
            keep,
            self._target(model, keep),
            experts_used=plan.experts_used if plan else asked,
            method=plan.method if plan else (self.request and self.request.method) or COVER,
            mtp=self.arguments["mtp"],
            split_max_size=self.arguments["split_max_size"],
            force=self.arguments["force"],
        )
        self.text()
        return files

    def _known_count(self, model: MoeModel) -> int:
        assert self.request is not None
        return known_count(self.request.budget, model.counts, model) or model.experts

    def _target(self, model: MoeModel, keep: int) -> Path:
        given: Path | None = self.arguments["output"]
        return given or pipeline.default_result(model, keep, Path())

    def text(self) -> pipeline.TextChoice:
        """What to calibrate and to measure on; read (or downloaded) once."""
        if self._text is None:
            named, held_out = self.arguments["texts"], self.arguments["eval_texts"]
            self._text = pipeline.choose_text(named, held_out)
        return self._text

    def _statistics(self, model: MoeModel, text: pipeline.TextChoice) -> Statistics:
        given: Path | None = self.arguments["stats_path"]
        if given is not None:
            statistics = Statistics.load(given)
            statistics.identity.check_same(model.identity(), str(given), str(self.path))
            return statistics
        names = ("ctx", "max_tokens", "generate")
        seed = self.request.seed if self.request else 0
        settings = Settings(**{name: self.arguments[name] for name in names}, seed=seed)
        run = Run(model, text.calibration, settings, self.options, self.bar, say=self.say)
        target = self._target(model, model.experts)
        output = Paths(target, model.gguf.stem).statistics
        return pipeline.gather(run, output, force=self.arguments["force"])

    def _rewrite(self, model: MoeModel, plan: Plan) -> Rewrite:
        return plan_rewrite(
            model,
            plan,
            self._target(model, plan.keep),
            mtp=self.arguments["mtp"],
            split_max_size=self.arguments["split_max_size"],
            plan_name=str(self.arguments["plan_path"] or "the plan"),
        )

    def _measure(self, model: MoeModel, paths: Paths) -> Mapping[str, Any] | None:
        if model.architecture.kind is Kind.EMBEDDING:
            pipeline.check_loads(paths.result, self.options)
            self.say("not measured: an embedding model gives no probabilities")
            return None
        try:
            return pipeline.measure(
                model,
                paths.result,
                self.text().held_out,
                self.options,
                self.bar,
                ctx=min(self.arguments["ctx"], pipeline.MEASURE_CTX),
                max_tokens=self.arguments["max_tokens"],
            )
        except InputError as error:
            # Too little text to measure on is no reason to lose the result.
            pipeline.check_loads(paths.result, self.options)
            self.say(f"not measured: {error.message}")
            return None

    def _modelfile(self, pruned: Pruned) -> Path:
        from ggprune.publish.ollama import modelfile

        return modelfile.write(pruned.path, pruned.path.with_name("Modelfile"), force=True)
