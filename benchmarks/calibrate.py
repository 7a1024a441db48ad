"""Time calibration against what llama.cpp needs to read the same text.

    python benchmarks/calibrate.py [--llama-imatrix PATH/llama-imatrix]

In each round, one after the other in one process and on the same tokens:

* last: a prefill without a callback that computes the last token's logits only;
* all: the same with the logits of every token;
* calibrate: what ``ggprune calibrate`` runs;
* nodes: as calibrate, but nothing is done with what the callback receives.

What counts is the ratio within a round: the machine may be busy in one and not in another.
``llama-imatrix`` runs between rounds; its rate is without loading the model.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from generated import Shape, Type, generate

from ggprune.calibration.calibrate import Run, Settings
from ggprune.calibration.checkpoint import Chunk
from ggprune.calibration.collect import RoutingObserver
from ggprune.calibration.sequences import replay
from ggprune.llama.runtime import LlamaContext, LlamaModel, RunOptions, Tokens
from ggprune.model import MoeModel, open_model

FIXTURE = Path(__file__).parent.parent / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"
CHUNK = 512


class Receiving(RoutingObserver):
    """Stops for the same nodes, and looks at none."""

    def receive(self, name: str, tensor: object) -> bool:
        return name != f"ffn_moe_weighted-{self._last}"


def prefill(context: LlamaContext, chunks: Sequence[Chunk], logits: str) -> None:
    """Chunk by chunk, as llama-imatrix reads a text."""
    for chunk in chunks:
        context.clear()
        for at in range(0, len(chunk.tokens), context.n_batch):
            part = chunk.tokens[at : at + context.n_batch]
            context.decode([Tokens(0, at, part, logits)])


class Bench:
    """One model, loaded once, with a context for each way to run it."""

    def __init__(self, model: MoeModel, options: RunOptions, tokens: int) -> None:
        self.llama = LlamaModel(model.gguf.path, options)
        ids = np.random.default_rng(1).integers(3, self.llama.n_vocab, tokens).tolist()
        self.chunks = [Chunk(0, tuple(ids[i : i + CHUNK])) for i in range(0, tokens, CHUNK)]
        architecture = model.require_prunable()
        watched = (architecture, model.moe_layers, model.experts)
        self.observer, self.receiving = RoutingObserver(*watched), Receiving(*watched)
        run = Run(model, (), Settings(), options, None)  # type: ignore[arg-type]
        keep = run._keeps_rows(self.llama, self.observer)
        plain = LlamaContext(self.llama, n_ctx=CHUNK)
        observing, nodes = (
            LlamaContext(self.llama, n_ctx=CHUNK, observers=[each], keep_rows=keep)
            for each in (self.observer, self.receiving)
        )
        self.contexts = (plain, observing, nodes)
        self.ways: dict[str, Callable[[], None]] = {
            "last": lambda: prefill(plain, self.chunks, "last"),
            "all": lambda: prefill(plain, self.chunks, "all"),
            "calibrate": lambda: self._replay(observing),
            "nodes": lambda: self._replay(nodes),
        }

    def _replay(self, context: LlamaContext) -> None:
        for chunk in self.chunks:
            replay(context, [chunk])
            self.observer.take()

    def round(self, backwards: bool, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of each way."""
        seconds = {}
        for name in list(self.ways)[:: -1 if backwards else 1]:
            start = clock()
            self.ways[name]()
            seconds[name] = clock() - start
        return seconds

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        self.llama.close()


def imatrix(program: Path, model: Path, options: RunOptions, tokens: int) -> float:
    """Tokens a second, without the time to load the model, which its log tells."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        words = np.random.default_rng(1).integers(0, 20_000, tokens)
        text.write_text(" ".join(f"w{number}" for number in words))
        command = [str(program), "-m", str(model), "-f", str(text), "-c", str(CHUNK)]
        command += ["-b", str(CHUNK), "-ub", str(CHUNK), "-t", str(options.n_threads)]
        command += ["--chunks", str(tokens // CHUNK), "-o", f"{folder}/imatrix.gguf"]
        command += [] if options.repack else ["--no-repack"]
        begun = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
    log = result.stdout + result.stderr
    # Minutes, seconds, milliseconds, microseconds since the program was started.
    stamp = r"^(\d+)\.(\d+)\.(\d+)\.(\d+) I compute_imatrix: computing over (\d+) chunks"
    start = re.search(stamp, log, re.M)
    if start is None or result.returncode:
        sys.exit(f"{program}: {log[-500:]}")
    minutes, whole, milli, micro, chunks = (int(group) for group in start.groups())
    loading = 60 * minutes + whole + milli / 1e3 + micro / 1e6
    return chunks * CHUNK / (seconds - loading)


def measure(path: Path, options: RunOptions, args: argparse.Namespace) -> dict[str, float]:
    """Medians over the rounds: rates, and ratios of rates within a round."""
    model = open_model(path)
    bench = Bench(model, options, args.tokens)
    clock = time.process_time if args.cpu_time else time.perf_counter
    bench.round(False, clock)  # Pages in, caches warm.
    rounds, others = [], []
    for number in range(args.rounds):
        rounds.append(bench.round(bool(number % 2), clock))
        if args.llama_imatrix:
            others.append(imatrix(args.llama_imatrix, path, options, args.tokens))
    bench.close()
    model.gguf.close()
    rate = {name: [args.tokens / each[name] for each in rounds] for name in rounds[0]}
    found = {name: statistics.median(rates) for name, rates in rate.items()}
    for name in ("last", "all", "nodes"):
        pairs = zip(rate["calibrate"], rate[name], strict=True)
        found[f"/{name}"] = statistics.median(mine / other for mine, other in pairs)
    if others:
        found["imatrix"] = statistics.median(others)
        pairs = zip(rate["calibrate"], others, strict=True)
        found["/imatrix"] = statistics.median(mine / other for mine, other in pairs)
    return found


def peak_memory() -> float:
    """MB that this process ever had in memory, mapped model included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, action="append", help="instead of the usual ones")
    parser.add_argument("--llama-imatrix", type=Path, help="compare with this program too")
    parser.add_argument("--tokens", type=int, default=2048, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cpu-time", action="store_true", help="per CPU second: for a busy machine (not imatrix)"
    )
    args = parser.parse_args()
    options = RunOptions(threads=args.threads)
    with tempfile.TemporaryDirectory(prefix="ggprune-bench-") as folder:
        paths = args.model or [FIXTURE]
        if not args.model:
            for kind in (Type.Q4_K, Type.Q8_0):
                path = Path(folder) / f"generated-{kind.name}.gguf"
                paths.append(generate(path, Shape(type=kind)))
        unit = "CPU second" if args.cpu_time else "second"
        print(f"tokens a {unit}, median of {args.rounds} rounds of {args.tokens} tokens; "
              f"{options.n_threads} threads")  # fmt: skip
        print("| model | size | last | all | calibrate | of last | of all | observing adds "
              "| llama-imatrix | times |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for path in paths:
            found = measure(path, options, args)
            cells = [
                path.stem,
                f"{path.stat().st_size / 1e6:.0f} MB",
                *(f"{found[name]:.0f}" for name in ("last", "all", "calibrate")),
                *(f"{found[name]:.2f}" for name in ("/last", "/all")),
                f"{1 / found['/nodes'] - 1:+.1%}",
                f"{found['imatrix']:.0f}" if "imatrix" in found else "-",
                f"{found['/imatrix']:.2f}" if "/imatrix" in found else "-",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"peak memory, mapped models included: {peak_memory():.0f} MB")


if __name__ == "__main__":
    main()
