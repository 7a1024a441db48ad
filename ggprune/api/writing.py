"""Writing a pruned model and its drop metadata, for ``prune`` and ``apply``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ggprune.calibration.statistics import Statistics
from ggprune.errors import InputError
from ggprune.evaluation.probe import without_texts
from ggprune.fields import check_fields
from ggprune.gguf_file import GgufModel, OutputFile, check_targets
from ggprune.model import MoeModel
from ggprune.plan import Plan
from ggprune.rewrite import (
    Rewrite,
    check_result,
    drop_metadata,
    plan_rewrite,
    result_files,
    verify_bytes,
    write_result,
)
from ggprune.types import Progress, option
from ggprune.util import read_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What :func:`prune` and :func:`apply` made.

    Attributes:
        files: the pruned model, first shard first.
        plan: complete: every layer with experts is in it.
        compared: bytes found equal to the source's; 0 if not verified.
        statistics: what the plan was chosen by; None if a plan was given, as their path.
        evaluation: of source and result on held-out text, as ``evaluate --json`` prints it; None
            if not measured.
        probe: their answers compared, as ``probe --json`` prints it; None if they were not.
        metadata: contents of the drop metadata.
        report: the numbers of the report; None if there is none, as its path.
    """

    files: tuple[Path, ...]
    plan: Plan
    compared: int = 0
    statistics: Statistics | None = None
    statistics_path: Path | None = None
    evaluation: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any]
    metadata_path: Path
    report: Mapping[str, Any] | None = None
    report_path: Path | None = None
    modelfile_path: Path | None = None

    @property
    def path(self) -> Path:
        """The pruned model, or its first shard."""
        return self.files[0]


class Written(NamedTuple):
    """Files that were written, the plan that is complete for them, and the bytes compared."""

    files: tuple[Path, ...]
    plan: Plan
    compared: int


@dataclass(frozen=True, slots=True)
class Writing:
    """How the result is written; see applying.apply."""

    output: str | Path | None
    mtp: str
    split_max_size: int | None = option(None, "Bytes of a shard.", minimum=1, metavar="SIZE")
    force: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def changes_nothing(self) -> bool:
        """Whether a model with all its experts would come out as it is."""
        return self.mtp == "prune" and self.split_max_size is None

    def target(self, model: MoeModel, keep: int) -> Path:
        """Return the path of the result."""
        return Path(self.output or f"{model.gguf.stem}-{keep}e.gguf")

    def statistics(self, model: MoeModel) -> Path:
        """Return the path of statistics beside it: they are the source's, whatever is kept."""
        return self.target(model, model.experts).with_name(f"{model.gguf.stem}.stats.gguf")

    def check(
        self, model: MoeModel, keep: int, used: int | None, method: str, *, continues: bool = False
    ) -> tuple[OutputFile, ...]:
        """Find out before any long work whether the result can be written: its files.

        With ``continues``, one of the same source that is not measured yet may be there.
        """
        files = result_files(
            model,
            keep,
            self.target(model, keep),
            experts_used=used,
            method=method,
            mtp=self.mtp,
            split_max_size=self.split_max_size,
        )
        if continues and self._unmeasured(model, files[0].path).get("keep") == keep:
            return files
        size = sum(file.size for file in files)
        check_targets([file.path for file in files], size, source=model.gguf, force=self.force)
        return files

    def write(
        self,
        model: MoeModel,
        plan: Plan,
        name: str,
        progress: Progress,
        check: Callable[[Path], object] | None = None,
    ) -> Written:
        """Write the result and compare it with the source.

        ``name`` is the plan's, for messages; ``check`` is called with the complete result, before
        it has its name.
        """
        rewrite = plan_rewrite(
            model,
            plan,
            self.target(model, plan.keep),
            mtp=self.mtp,
            split_max_size=self.split_max_size,
            plan_name=name,
        )
        files = tuple(file.path for file in rewrite.files)
        if self._is_written(model, rewrite):
            log.info("%s: an earlier run has written it; it is verified now", files[0])
            with check_result(files[0], rewrite) as result:
                compared = verify_bytes(model, rewrite, result.gguf)
            if check is not None:
                check(files[0])
        else:
            compared = write_result(
                model,
                rewrite,
                force=self.force,
                verify=self.verify,
                check=check,
                progress=progress,
            )
        return Written(files, rewrite.plan, compared)

    def _is_written(self, model: MoeModel, rewrite: Rewrite) -> bool:
        """Whether an earlier run has written just these files, and not measured them."""
        metadata = self._unmeasured(model, rewrite.files[0].path)
        return metadata.get("plan_sha256") == rewrite.plan.hash and all(
            file.path.is_file() and file.path.stat().st_size == file.size for file in rewrite.files
        )

    def _unmeasured(self, model: MoeModel, result: Path) -> Mapping[str, Any]:
        """Return the metadata of a result that was to be measured; nothing if there is none."""
        path = drop_metadata.metadata_path(result)
        if not self.verify or self.force or report_path(result).exists() or not path.exists():
            return {}
        with contextlib.suppress(InputError):
            metadata = read_json(path)
            if drop_metadata.is_of(metadata, model) and metadata.get("evaluation") is None:
                return dict(metadata)
        return {}


def described(
    model: MoeModel,
    written: Written,
    statistics: Statistics | None = None,
    statistics_path: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> Pruned:
    """Write the drop metadata beside the result."""
    first = written.files[0]
    path = drop_metadata.metadata_path(first)
    with GgufModel(first) as result:
        numbers = without_texts(probe) if probe else None
        metadata = drop_metadata.drop_metadata(
            model, result, written.plan, statistics, evaluation, numbers
        )
    drop_metadata.save(path, metadata)
    report_path(first).unlink(missing_ok=True)  # Of another result that this one has replaced.
    return Pruned(
        **written._asdict(),
        statistics=statistics,
        statistics_path=statistics_path,
        evaluation=evaluation,
        probe=probe,
        metadata=metadata,
        metadata_path=path,
    )


def report_path(result: Path) -> Path:
    """Return where the report of a result lies."""
    return result.with_name(result.name.removesuffix(".gguf") + ".report.html")
