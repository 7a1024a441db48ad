"""Many prunings and quantizations from one file that says what is wanted, as make would do it.

What is newer than what it is made from is not made again, so an interrupted batch continues where
it was; a step that fails does not stop the steps that do not need it.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggprune.batch_config import BatchConfig
from ggprune.errors import GgpruneError
from ggprune.gguf_file import is_gguf, replacing, stem_of, write_text
from ggprune.hub.files import LocalFile
from ggprune.model import open_model
from ggprune.publish.upload import CHECKSUMS
from ggprune.quantization.names import result_stem
from ggprune.rewrite import drop_metadata

log = logging.getLogger(__name__)

#: Commands that replace an older result only when told to.
_FORCED = frozenset(
    ["calibrate", "imatrix", "slice-imatrix", "plan", "apply", "quantize", "modelfile", "card"]
)
#: A command is a process of its own: whatever happens in it, the batch goes on.
PROGRAM: tuple[str, ...] = (sys.executable, "-c", "from ggprune.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Step:
    """One file (or a few) to make.

    Attributes:
        command: arguments of ggprune; or ``@copy``, ``@checksums``.
        to_file: whether what the command prints is the output.
    """

    outputs: tuple[Path, ...]
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    to_file: bool = False

    @property
    def text(self) -> str:
        """The step as a shell would be told."""
        if self.command[0] == "@copy":
            return f"cp {self.inputs[0]} {self.outputs[0]}"
        if self.command[0] == "@checksums":
            return f"sha256sum … > {self.outputs[0]}"
        words = shlex.join(("ggprune", *self.command))
        return words + (f" > {shlex.quote(str(self.outputs[0]))}" if self.to_file else "")


@dataclass(slots=True)
class Outcome:
    """What became of the steps: ``blocked`` ones need what one that failed should have made."""

    made: list[Step] = field(default_factory=list)
    current: list[Step] = field(default_factory=list)
    failed: dict[Step, str] = field(default_factory=dict)
    blocked: list[Step] = field(default_factory=list)


def check_counts(config: BatchConfig) -> None:
    """Check the numbers of experts by the models' headers: before calibration, which takes long.

    A model that is missing or damaged is left to the step that needs it.

    Raises:
        InputError: a model cannot keep so many.
        UnsupportedModelError: its experts cannot be pruned.
    """
    if any(word.startswith("--round") for word in config.options.get("plan", ())):
        return
    for path in dict.fromkeys(filter(None, (config.model, config.source))):
        if config.keep and is_gguf(path):
            with open_model(path) as model:
                for keep in config.keep:
                    model.counts.check(keep)


def steps(config: BatchConfig) -> list[Step]:
    """List all steps of a batch, each after those it needs."""
    stem, out = result_stem(stem_of(config.model)), config.output
    stats, found = out / f"{stem}.stats.gguf", []
    if config.keep:
        found.append(_step(config, "calibrate", [stats], [config.model, "-o", stats]))
    imatrix = None
    if config.imatrix is True:
        imatrix = out / f"{stem}.imatrix.gguf"
        found.append(_step(config, "imatrix", [imatrix], [config.model, "-o", imatrix]))
    elif config.imatrix:
        imatrix = config.imatrix
    for keep in config.keep:
        found += _release(config, f"{stem}-{keep}e", keep, stats, imatrix)
    if not config.keep:
        source = config.source or config.model
        models = [(kind, out / f"{stem}-{kind}.gguf") for kind in config.types]
        found += [_quantize(config, source, m, k, imatrix) for k, m in models if m != source]
    return found


def _release(
    config: BatchConfig, name: str, keep: int, stats: Path, imatrix: Path | None
) -> list[Step]:
    """One number of experts: the pruned file, and a folder with its quantizations."""
    folder, work = config.output / name, config.output / "pruned"
    plan, pruned = work / f"{name}.plan.json", work / f"{name}.gguf"
    source = config.source or config.model
    dropped = pruned.with_name(f"{name}{drop_metadata.SUFFIX}")
    mtp = ["--mtp", config.mtp] if config.mtp != "prune" else []
    found = [
        _step(config, "plan", [plan], [stats, "--keep", keep, "-o", plan]),
        _step(config, "apply", [pruned, dropped], [source, plan, "-o", pruned, *mtp]),
    ]
    if imatrix is not None:
        sliced = work / f"{name}.imatrix{imatrix.suffix}"
        words = [imatrix, "--plan", plan, "-o", sliced]
        found.append(_step(config, "slice-imatrix", [sliced], words))
        imatrix = sliced
    metadata = folder / f"{name}{drop_metadata.SUFFIX}"
    if config.types:
        found.append(Step((metadata,), (dropped,), ("@copy",)))
    models, extras = [], [metadata]
    for kind in config.types:
        model = folder / f"{name}-{kind}.gguf"
        models.append(model)
        found.append(_quantize(config, pruned, model, kind, imatrix))
        if config.modelfile:
            target = model.with_name(f"Modelfile-{kind}")
            found.append(_step(config, "modelfile", [target], [model, "-o", target]))
        if config.evaluate:
            target = model.with_name(f"{stem_of(model)}.evaluation.json")
            step = _step(config, "evaluate", [target], [config.model, model, "--json"])
            found.append(replace(step, to_file=True))
            extras.append(target)
    if models and config.card:
        card = folder / "README.md"
        repo = ["--repo", config.repo] if config.repo else []
        step = _step(config, "card", [card], [*repo, folder, "-o", card])
        found.append(replace(step, inputs=(*models, *extras)))
    if models and config.checksums:
        found.append(Step((folder / CHECKSUMS,), tuple(models), ("@checksums",)))
    return found


def _quantize(
    config: BatchConfig, source: Path, model: Path, kind: str, imatrix: Path | None
) -> Step:
    words = [source, kind, "-o", str(model.parent), "--allow-requantize"]
    more = ["--imatrix", imatrix] if imatrix is not None else []
    return _step(config, "quantize", [model], [*words, *more])


def _step(
    config: BatchConfig, command: str, outputs: Sequence[Path], words: Sequence[object]
) -> Step:
    """Make the step of a command; the paths among its words are inputs, but for the outputs."""
    inputs = [word for word in words if isinstance(word, Path) and word not in outputs]
    extra = config.options.get(command, ())
    force = ["--force"] if command in _FORCED else []
    argv = map(str, (command, *words, *extra, *force))
    return Step(tuple(outputs), tuple(inputs), tuple(argv))


def run(
    todo: Sequence[Step], *, dry_run: bool = False, execute: Callable[[Step], str] | None = None
) -> Outcome:
    """Take the steps that are not up to date; each comes after those it needs.

    ``execute`` takes a step, and gives the reason why it failed, or nothing.
    """
    outcome, execute = Outcome(), execute or execute_step
    missing: set[Path] = set()  # What failed steps should have made.
    fresh: set[Path] = set()  # What this run made, or (dry) would have.
    for step in todo:
        if missing.intersection(step.inputs):
            outcome.blocked.append(step)
            missing.update(step.outputs)
        elif not fresh.intersection(step.inputs) and up_to_date(step):
            outcome.current.append(step)
        else:
            if not dry_run:
                log.info("%s", step.text)
            reason = "" if dry_run else execute(step)
            if reason:
                outcome.failed[step] = reason
                missing.update(step.outputs)
            else:
                outcome.made.append(step)
                fresh.update(step.outputs)
    return outcome


def up_to_date(step: Step) -> bool:
    """Whether all outputs are there and none is older than an input."""
    try:
        oldest = min(path.stat().st_mtime_ns for path in step.outputs)
        return all(path.stat().st_mtime_ns <= oldest for path in step.inputs)
    except OSError:
        return False


def execute_step(step: Step) -> str:
    """Take one step; return the reason why it failed, or nothing."""
    try:
        for path in step.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        if step.command[0] == "@copy":
            with replacing(step.outputs[0]) as part:
                shutil.copyfile(step.inputs[0], part)
        elif step.command[0] == "@checksums":
            write_text(step.outputs[0], checksums(step.inputs))
        elif step.to_file:
            with replacing(step.outputs[0]) as part, open(part, "wb") as stream:
                if reason := _reason(_ggprune(step.command, stream.fileno())):
                    raise GgpruneError(reason)
        else:
            return _reason(_ggprune(step.command, 2))
    except GgpruneError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _ggprune(words: Sequence[str], stdout: int) -> int:
    # What it prints goes to stderr: stdout is for the batch's own result.
    return subprocess.run([*PROGRAM, *words], stdout=stdout, check=False).returncode


def _reason(status: int) -> str:
    if status < 0:
        return f"died of signal {-status}"
    return f"exit code {status}, see above" if status else ""


def checksums(paths: Sequence[Path]) -> str:
    """Return what ``sha256sum`` prints of files of one folder, in it."""
    files = [LocalFile.of(path, path.name) for path in sorted(paths)]
    return "".join(f"{file.sha256}  {file.name}\n" for file in files)
