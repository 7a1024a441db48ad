"""How long OpenMP's threads should spin before they sleep, on free and on busy cores.

    python benchmarks/waiting.py

Generates single tokens with the fixture, for each GOMP_SPINCOUNT in a process of its own, once with
the cores free and once beside as many busy processes as there are cores. ggprune sets 5000 on free
cores and lets threads sleep (0) on busy ones (see llama/library.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

FIXTURE = Path(__file__).parent.parent / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"
SPINS = (0, 1000, 5000, 20_000)
TOKENS = 400


def rate() -> float:
    """Tokens generated a second, in this process."""
    from ggprune.llama.options import RunOptions
    from ggprune.llama.session import LlamaContext, LlamaModel, Tokens

    options = RunOptions(threads=os.cpu_count())
    with LlamaModel(FIXTURE, options) as llama, LlamaContext(llama, n_ctx=512) as context:
        context.decode([Tokens(0, 0, [2, 3, 4], "last")])
        begun = time.perf_counter()
        for at in range(3, 3 + TOKENS):
            context.decode([Tokens(0, at, [at], "last")])
        return TOKENS / (time.perf_counter() - begun)


def measured(spins: int) -> str:
    """The rate in a child process."""
    environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
    child = subprocess.run(
        [sys.executable, __file__, "--child"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return child.stdout.strip()


def main() -> None:
    if "--child" in sys.argv:
        print(f"{rate():.0f}")
        return
    print("| GOMP_SPINCOUNT | cores free, tok/s | cores busy, tok/s |\n|---|---|---|")
    for spins in SPINS:
        free = measured(spins)
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(os.cpu_count() or 1)
        ]
        try:
            print(f"| {spins} | {free} | {measured(spins)} |", flush=True)
        finally:
            for process in busy:
                process.kill()


if __name__ == "__main__":
    main()
