"""Commands interrupted at random moments: ``python -m tests.support.interrupts 100 0 trained``
(moments, seed, model; then names of commands, or none for all).

Each command runs in a fork of this process, gets SIGINT or SIGTERM (now and then twice), and is
then run to its end. Its files must equal those of a run without a break.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ggprune
from ggprune import cli
from ggprune.interrupts import interrupts
from tests.support.tiny import write_tiny

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"
_TEXTS = ROOT / "fixtures" / "calibration"
#: Longest time from a signal to the end.
_PATIENCE = 20.0
_CHAT = '{"messages": [{"role": "user", "content": "%s"}]}\n'


@dataclass(frozen=True)
class Scenario:
    """A command.

    Attributes:
        name: of it.
        arguments: by the model; files to read are in ../given.
        files: that it writes.
        partial: whether what was gathered is kept for the next run.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    files: tuple[str, ...]
    partial: bool = False


_TEXT = ["--text", "python=../given/python.txt", "--text", "french=../given/french.txt"]
_RUN = ["--threads", "1", "--ubatch", "32"]

SCENARIOS = (
    Scenario(
        "calibrate",
        lambda model: [
            *("calibrate", str(model), "-o", "s.gguf", "--imatrix", "i.gguf", *_TEXT),
            *("--ctx", "64", "--max-tokens", "384", *_RUN),
        ],
        ("s.gguf", "i.gguf"),
        partial=True,
    ),
    Scenario(
        "generate",
        lambda model: [
            *("calibrate", str(model), "-o", "s.gguf", "--text", "chat=../given/chat.jsonl"),
            *("--generate", "16", "--parallel", "2", *_RUN),
        ],
        ("s.gguf",),
        partial=True,
    ),
    Scenario(
        "traces",
        lambda model: [
            *("traces", str(model), "../given/chat.jsonl", "-o", "t.jsonl", "--check", "true"),
            *("--max-tokens", "150", "--parallel", "1", *_RUN),
        ],
        ("t.jsonl",),
        partial=True,
    ),
    Scenario(
        "prune",
        lambda model: [
            *("prune", str(model), "--keep", "half", "-o", "p.gguf", *_TEXT),
            *("--ctx", "64", "--max-tokens", "256", *_RUN),
        ],
        ("p.gguf", "p.expert_drop_metadata.json"),
        partial=True,
    ),
    Scenario(
        "imatrix",
        lambda model: [
            *("imatrix", str(model), "-o", "i.gguf", *_TEXT, "--ctx", "32", "--chunks", "12"),
            *_RUN,
        ],
        ("i.gguf",),
    ),
    Scenario(
        "evaluate",
        lambda model: [
            *("evaluate", str(model), "../given/plan.json", *_TEXT, "--ctx", "64"),
            *("--max-tokens", "256", "--cache", "cache", "--json", *_RUN),
        ],
        ("output",),
    ),
    Scenario(
        "search",
        lambda model: [
            *("plan", "../given/s.gguf", "--model", str(model), "--keep", "half"),
            *("--method", "search", "--search-plans", "6", "--search-text"),
            *("python=../given/python.txt", "-o", "plan.json", *_RUN),
        ],
        ("plan.json",),
    ),
    Scenario(
        "probe",
        lambda model: [
            *("probe", str(model), "../given/plan.json", "--max-tokens", "6", "--mode"),
            *("greedy", "-o", "probe.json", *_RUN),
        ],
        ("probe.json",),
    ),
)


@dataclass
class Outcome:
    """How a run ended: exit code, what it said on stderr, seconds from the signal to the end."""

    code: int
    errors: str
    seconds: float = 0.0


def run(arguments: list[str], folder: Path, signals: list[tuple[float, int]]) -> Outcome:
    """Run a command in a fork, and send it signals after so many seconds each."""
    child = os.fork()
    if child == 0:
        _become(arguments, folder)
    while not (folder / "errors").exists():
        time.sleep(0.005)
    started = time.monotonic()
    for after, number in signals:
        while (left := started + after - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        os.kill(child, number)
    sent = time.monotonic()
    limit = sent + (_PATIENCE if signals else 300)
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            errors = (folder / "errors").read_text()
            return Outcome(os.waitstatus_to_exitcode(status), errors, time.monotonic() - sent)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"{arguments[0]} did not stop within {_PATIENCE} s")


def _become(arguments: list[str], folder: Path) -> None:
    code = 99
    try:
        # A shell that started this in the background has made it ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.listen()
        os.chdir(folder)
        for name, number in (("output", 1), ("errors", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["ggprune", *arguments]
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        code = 130  # Before the command has begun.
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Case:
    """A scenario on a model, with the files and the seconds of a run without a break."""

    scenario: Scenario
    model: Path
    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0

    def measure(self) -> Path:
        """Run it without a break, twice, since the first time has more to load."""
        for number in range(2):
            folder = self._new(f"{self.scenario.name}-{number}")
            before = time.monotonic()
            self._finish(folder)
            self.seconds = time.monotonic() - before
        self.hashes = self._hashes(folder)
        return folder

    def interrupt(self, name: str, draw: random.Random) -> str:
        """Interrupt it, let it continue, compare; what happened, in a word."""
        folder = self._new(name)
        number = draw.choice([signal.SIGINT, signal.SIGTERM])
        signals = [(draw.uniform(0.02, self.seconds), number)]
        if draw.random() < 0.2:
            signals.append((signals[0][0] + draw.uniform(0, 0.1), number))
        outcome = run(self._arguments, folder, signals)
        told = f"{signals}: {outcome.code} after {outcome.seconds:.2f} s\n{outcome.errors}"
        assert outcome.code in (0, 130), told
        assert "Traceback" not in outcome.errors and "ignored" not in outcome.errors, told
        kept = [path.name for path in folder.glob("*.partial")]
        if "is kept in" in outcome.errors:
            assert kept, told
        if outcome.code == 130:
            self.slowest = max(self.slowest, outcome.seconds)
            self._finish(folder)
            assert not list(folder.glob("*.partial")), told
        assert self._hashes(folder) == self.hashes, told
        shutil.rmtree(folder)
        return ("continued" if kept else "repeated") if outcome.code else "finished"

    @property
    def _arguments(self) -> list[str]:
        half = "32" if self.model == TRAINED else "4"
        return [half if part == "half" else part for part in self.scenario.arguments(self.model)]

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _finish(self, folder: Path) -> None:
        outcome = run(self._arguments, folder, [])
        # The result was complete, and only its summary not yet shown; the hashes tell.
        there = [name for name in self.scenario.files if f"{name}: exists" in outcome.errors]
        is_whole = there and ("p.gguf" not in there or (folder / "p.report.html").exists())
        assert outcome.code == 0 or is_whole, outcome.errors

    def _hashes(self, folder: Path) -> dict[str, str]:
        files = self.scenario.files
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def cases(folder: Path, model: Path, names: Sequence[str]) -> Iterator[Case]:
    """Scenarios of these names (or all) on a model, ready to be interrupted."""
    # Imported here, so that signals come while forks work.
    for module in pkgutil.walk_packages(ggprune.__path__, "ggprune."):
        importlib.import_module(module.name)
    import gguf  # noqa: F401
    import jinja2.sandbox  # noqa: F401
    import llama_cpp  # noqa: F401

    given = folder / "given"
    given.mkdir(parents=True)
    (given / "chat.jsonl").write_text("".join(_CHAT % f"Count to {n}." for n in range(6)))
    for domain in ("python", "french"):
        (given / f"{domain}.txt").write_text((_TEXTS / f"{domain}.txt").read_text()[:6000])
    for scenario in SCENARIOS:
        if names and scenario.name not in ("calibrate", *names):
            continue
        case = Case(scenario, model, folder)
        whole = case.measure()
        if scenario.name == "calibrate":
            shutil.copy(whole / "s.gguf", given)
            plan = ["plan", "s.gguf", "--keep", "32" if model == TRAINED else "4"]
            assert run([*plan, "-o", "plan.json"], given, []).code == 0
        if not names or scenario.name in names:
            yield case


def main() -> None:
    """Interrupt every command at so many moments, and print a table."""
    moments, seed, which = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    draw, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="interrupts-") as name:
        os.environ["XDG_CACHE_HOME"] = name
        model = TRAINED
        if which != "trained":
            model = write_tiny(Path(name) / "tiny.gguf", which, dtype="Q8_0")
        for case in cases(Path(name) / "runs", model, sys.argv[4:]):
            counts: dict[str, int] = {}
            for moment in range(moments):
                try:
                    ended = case.interrupt(f"{case.scenario.name}-at-{moment}", draw)
                except AssertionError as error:
                    ended, failed = "failed", failed + 1
                    print(f"FAILED {which} {case.scenario.name}: {error}", flush=True)
                counts[ended] = counts.get(ended, 0) + 1
            took = f"{case.seconds:.1f} s, ends within {case.slowest:.2f} s"
            print(f"{which:10} {case.scenario.name:10} {took} {counts}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
