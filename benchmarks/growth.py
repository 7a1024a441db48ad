"""How calibration grows: twice the tokens, layers or experts; and whether memory stays constant.

    python benchmarks/growth.py

Times are CPU time on one thread, so that a busy machine does not matter; what counts is how many
times the base it is. Twice the tokens and layers should take twice the time; twice the experts, of
which as many work on a token, little more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from generated import Shape, Type, generate

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.run import replay
from ggprune.calibration.sequences import TokenSequence
from ggprune.calibration.statistics import ExpertSums
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel
from ggprune.model import open_model

BASE = Shape(layers=4, experts=32, used=4, width=512, inner=256, vocabulary=4096, type=Type.Q8_0)
CHUNK = 512


def resident() -> float:
    """MB of this process that are in memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return float("nan")


class Calibration:
    """One model and a context that observes it."""

    def __init__(self, path: Path) -> None:
        model = open_model(path)
        self.total = ExpertSums.zeros(len(model.moe_layers), model.experts)
        self.observer = RoutingObserver(model.architecture, model.moe_layers, model.experts)
        self.llama = LlamaModel(path, RunOptions(threads=1))
        self.context = LlamaContext(self.llama, n_ctx=CHUNK, observers=[self.observer])
        self.ids = np.random.default_rng(1).integers(3, self.llama.n_vocab, CHUNK, np.int32)

    def run(self, chunks: int) -> float:
        """CPU seconds for so many chunks."""
        start = time.process_time()
        for _ in range(chunks):
            replay(self.context, [TokenSequence(0, self.ids)])
            self.total.add(self.observer.take())
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=8, help=f"of {CHUNK} tokens, in the base")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shapes = {
        "base": (BASE, 1),
        "twice the tokens": (BASE, 2),
        "twice the layers": (replace(BASE, layers=2 * BASE.layers), 1),
        "twice the experts": (replace(BASE, experts=2 * BASE.experts), 1),
    }
    with tempfile.TemporaryDirectory(prefix="ggprune-bench-") as folder:
        runs = {}
        for number, (name, (shape, times)) in enumerate(shapes.items()):
            path = generate(Path(folder) / f"{number}.gguf", shape)
            runs[name] = (Calibration(path), times)
        for calibration, _ in runs.values():
            calibration.run(1)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, (calibration, times) in runs.items():
                seconds[name].append(calibration.run(times * args.chunks))
        base = statistics.median(seconds["base"])
        print("| | CPU s | times the base |\n|---|---|---|")
        for name, found in seconds.items():
            median = statistics.median(found)
            print(f"| {name} | {median:.2f} | {median / base:.2f} |")
        memory = [resident()]
        for _ in range(4):
            runs["base"][0].run(2 * args.chunks)
            memory.append(resident())
        steps = 2 * args.chunks * CHUNK
        print(f"memory after every {steps:,} tokens, MB: {', '.join(f'{m:.1f}' for m in memory)}")


if __name__ == "__main__":
    main()
