"""Many prunings and quantizations from one file that says what is wanted, as make would do it.

What is newer than what it is made from is not made again, so an interrupted batch continues where
it was; a step that fails does not stop the steps that do not need it.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggprune.batch_config import BatchConfig
from ggprune.errors import GgpruneError
from ggprune.gguf_file import replacing, stem_of, write_text
from ggprune.quantization.names import result_stem
from ggprune.rewrite import drop_metadata

log = logging.getLogger(__name__)

CHECKSUMS = "SHA256SUMS"
#: Commands that replace an older result only when told to.
_FORCED = frozenset({"calibrate", "imatrix", "plan", "apply", "quantize", "modelfile", "card"})
_HASH_CHUNK = 8 << 20
#: A command is a process of its own: whatever happens in it, the batch goes on.
PROGRAM: tuple[str, ...] = (sys.executable, "-c", "from ggprune.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Step:
    """One file (or a few) to make.

    Attributes:
        outputs: the files.
        inputs: what they are made from.
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
    """What became of the steps.

    Attributes:
        made: done now.
        current: nothing to do.
        failed: with the reason.
        blocked: need what a failed one should have made.
    """

    made: list[Step] = field(default_factory=list)
    current: list[Step] = field(default_factory=list)
    failed: dict[Step, str] = field(default_factory=dict)
    blocked: list[Step] = field(default_factory=list)


def steps(config: BatchConfig) -> list[Step]:
    """List all steps of a batch, each after those it needs."""
    stem, out = result_stem(stem_of(config.model)), config.output
    stats, found = out / f"{stem}.stats.gguf", []
    if config.keep:
        words: list[object] = [config.model, "-o", stats]
        found.append(_step(config, "calibrate", [stats], [config.model], words))
    imatrix = None
    if config.imatrix is True:
        imatrix = out / f"{stem}.imatrix.gguf"
        words = [config.model, "-o", imatrix]
        found.append(_step(config, "imatrix", [imatrix], [config.model], words))
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
    words = [source, plan, "-o", pruned, *(["--mtp", config.mtp] if config.mtp != "prune" else [])]
    found = [
        _step(config, "plan", [plan], [stats], [stats, "--keep", keep, "-o", plan]),
        _step(config, "apply", [pruned, dropped], [source, plan], words),
    ]
    if imatrix is not None:
        sliced = work / f"{name}.imatrix{imatrix.suffix}"
        cut = ("slice-imatrix", imatrix, "--plan", plan, "-o", sliced, "--force")
        found.append(Step((sliced,), (imatrix, plan), _words(cut)))
        imatrix = sliced
    metadata = folder / f"{name}{drop_metadata.SUFFIX}"
    if config.types:
        found.append(Step((metadata,), (dropped,), ("@copy",)))
    models, extras = [], [metadata]
    for kind in config.types:
        model = folder / f"{name}-{kind}.gguf"
        models.append(model)
        found += _quantized(config, pruned, model, kind, imatrix)
        extras += [each for step in found[-2:] for each in step.outputs if each.suffix == ".json"]
    if models and config.card:
        card = folder / "README.md"
        words = [*(["--repo", config.repo] if config.repo else []), folder, "-o", card]
        found.append(_step(config, "card", [card], [*models, *extras], words))
    if models and config.checksums:
        found.append(Step((folder / CHECKSUMS,), tuple(models), ("@checksums",)))
    return found


def _quantized(
    config: BatchConfig, pruned: Path, model: Path, kind: str, imatrix: Path | None
) -> list[Step]:
    """One quantization, what it cost, its Modelfile."""
    found = [_quantize(config, pruned, model, kind, imatrix)]
    words: list[object]
    if config.modelfile:
        target = model.with_name(f"Modelfile-{kind}")
        words = [model, "-o", target]
        found.append(_step(config, "modelfile", [target], [model], words))
    if config.evaluate:
        target = model.with_name(f"{stem_of(model)}.evaluation.json")
        words = [config.model, model, "--json"]
        step = _step(config, "evaluate", [target], [config.model, model], words)
        found.append(Step(step.outputs, step.inputs, step.command, to_file=True))
    return found


def _quantize(
    config: BatchConfig, source: Path, model: Path, kind: str, imatrix: Path | None
) -> Step:
    words: list[object] = [source, kind, "-o", model.parent, "--allow-requantize"]
    inputs = [source]
    if imatrix is not None:
        words += ["--imatrix", imatrix]
        inputs.append(imatrix)
    return _step(config, "quantize", [model], inputs, words)


def _step(
    config: BatchConfig,
    command: str,
    outputs: Sequence[Path],
    inputs: Sequence[Path],
    words: Sequence[object],
) -> Step:
    extra = config.options.get(command, ())
    force = ["--force"] if command in _FORCED else []
    argv = _words((command, *words, *extra, *force))
    return Step(tuple(outputs), tuple(inputs), argv)


def _words(words: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(word) for word in words)


def run(
    todo: Sequence[Step],
    *,
    dry_run: bool = False,
    execute: Callable[[Step], str] | None = None,
) -> Outcome:
    """Take the steps that are not up to date.

    Args:
        todo: in an order in which each comes after those it needs.
        dry_run: only say which would be taken.
        execute: takes a step, gives the reason why it failed, or nothing.
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
            return ""
        if step.command[0] == "@checksums":
            write_text(step.outputs[0], checksums(step.inputs))
            return ""
        if not step.to_file:
            return _reason(_ggprune(step.command, 2))
        with replacing(step.outputs[0]) as part, open(part, "wb") as stream:
            if reason := _reason(_ggprune(step.command, stream.fileno())):
                raise GgpruneError(reason)
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
    return "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(paths))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while data := stream.read(_HASH_CHUNK):
            digest.update(data)
    return digest.hexdigest()
