"""Try releases of llama-cpp-python: ``python -m tests.support.runtimes FOLDER 0.3.27 0.3.37``.

Each is installed into a virtual environment of its own in FOLDER (compiled, if pip has no wheel of
it), which sees this one's other packages, and runs the tests that load llama.cpp. Prints a row for
docs/runtimes.md and, for ``RELEASES`` in ggprune/llama/runtime.py, the release's ggml.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from ggprune.llama.runtime import UNCHECKED
from ggprune.model.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
_NAMES = "|".join(sorted(map(re.escape, ARCHITECTURES), key=len, reverse=True))
_VERSIONS = (
    "import llama_cpp; from ggprune.llama.library import library; "
    "print(llama_cpp.__version__, library().ggml['ggml_version']().decode())"
)


def environment(folder: Path, release: str) -> Path:
    """Install a release, unless it is there; return its Python."""
    python = folder / release / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / release], check=True)
    (packages,) = (folder / release).rglob("site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    if not (packages / "llama_cpp").exists():
        what = f"llama-cpp-python=={release}"
        # What it needs is here already.
        subprocess.run([python, "-m", "pip", "install", "--no-deps", what], check=True)
    return python


def trial(python: Path, *tests: str) -> str:
    """Run the tests; return the row of the table."""
    settings = {UNCHECKED: "1", "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "pytest", "-q", "-n", "auto", "-m", "llama", "-rsf", "--tb=line"]
    found = subprocess.run(
        [python, "-c", _VERSIONS],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if found.returncode:
        return f"| {python.parents[1].name} | does not load | | |"
    release, ggml = found.stdout.split()
    with subprocess.Popen(
        [*command, *tests],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        lines = [print(line, end="", flush=True) or line for line in run.stdout]
    text = "".join(lines)
    unknown = sorted(set(re.findall(rf"SKIPPED.*not loaded: \S*\b({_NAMES})\b", text)))
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", lines[-1])}
    bad = counts.get("failed", 0) + counts.get("error", 0)
    names = " ".join(f"`{name}`" for name in unknown)
    return f"| {release} | {ggml} | {counts.get('passed', 0)} passed, {bad} failed | {names} |"


if __name__ == "__main__":
    table = [trial(environment(Path(sys.argv[1]), release)) for release in sys.argv[2:]]
    print("", "| release | ggml | tests | does not load |", *table, sep="\n")
    sys.exit(any(" 0 failed" not in row for row in table))
