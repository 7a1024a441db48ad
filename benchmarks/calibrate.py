"""Time calibration against what llama.cpp needs to read the same text.

    python benchmarks/calibrate.py [--llama-imatrix PATH/llama-imatrix]

In each round, chunk by chunk, one after the other in one process and on the same tokens:

* last: a prefill without a callback that computes the last token's logits only;
* all: the same with the logits of every token;
* calibrate: what ``ggprune calibrate`` runs;
* nodes: as calibrate, but nothing is done with what the callback receives.

What counts is the ratio within a chunk: the machine may be faster at one moment than at another.
Ratios are medians over chunks, with their standard error. ``llama-imatrix`` runs between rounds;
its rate is without loading the model.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from generated import Shape, Type, generate

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.run import Run, replay
from ggprune.calibration.sequences import TokenSequence
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.model import MoeModel, open_model

FIXTURE = Path(__file__).parent.parent / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"
CHUNK = 512


class Receiving(RoutingObserver):
    """Stops for the same nodes, and looks at none."""

    def receive(self, name: str, tensor: object) -> bool:
        return name != f"ffn_moe_weighted-{self._last}"


def prefill(context: LlamaContext, chunk: TokenSequence, logits: str) -> None:
    """Read a chunk as llama-imatrix does."""
    context.clear()
    for at in range(0, len(chunk.tokens), context.n_batch):
        part = chunk.tokens[at : at + context.n_batch]
        context.decode([Tokens(0, at, part, logits)])
    # A device may still be computing.
    library().api.llama_synchronize(context._handle)


class Bench:
    """One model, loaded once, with a context for each way to run it."""

    def __init__(
        self, model: MoeModel, options: RunOptions, tokens: int, chunk: int = CHUNK
    ) -> None:
        self.llama = LlamaModel(model.gguf.path, options)
        ids = np.random.default_rng(1).integers(3, self.llama.n_vocab, tokens, np.int32)
        self.chunks = [TokenSequence(0, ids[i : i + chunk]) for i in range(0, tokens, chunk)]
        architecture = model.architecture
        watched = (architecture, model.moe_layers, model.experts)
        self.observer, self.receiving = RoutingObserver(*watched, every=1), Receiving(*watched)
        keep = Run(model, (), options=options).keeps_rows(self.llama, self.observer)
        plain = LlamaContext(self.llama, n_ctx=chunk)
        observing, nodes = (
            LlamaContext(self.llama, n_ctx=chunk, observers=[each], keep_rows=keep)
            for each in (self.observer, self.receiving)
        )
        self.contexts = (plain, observing, nodes)
        self.ways: dict[str, Callable[[TokenSequence], None]] = {
            "last": lambda chunk: prefill(plain, chunk, "last"),
            "all": lambda chunk: prefill(plain, chunk, "all"),
            "calibrate": lambda chunk: self._replay(observing, chunk),
            "nodes": lambda chunk: self._replay(nodes, chunk),
        }

    def _replay(self, context: LlamaContext, chunk: TokenSequence) -> None:
        replay(context, [chunk])
        self.observer.shares()
        self.observer.take()

    def round(self, clock: Callable[[], float]) -> list[dict[str, float]]:
        """Seconds of each way, by chunk; another way is the first each time."""
        found = []
        for number, chunk in enumerate(self.chunks):
            seconds = {}
            names = list(self.ways)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = clock()
                self.ways[name](chunk)
                seconds[name] = clock() - start
            found.append(seconds)
        return found

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


@dataclass(frozen=True)
class Ratio:
    """A median with its standard error."""

    median: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        """From ratios; their scatter is taken from the median deviation, so stalls count little."""
        median = statistics.median(values)
        scatter = 1.4826 * statistics.median(abs(value - median) for value in values)
        return cls(median, 1.2533 * scatter / len(values) ** 0.5)

    def __str__(self) -> str:
        return f"{self.median:.2f} ± {self.error:.2f}"


def measure(path: Path, options: RunOptions, args: argparse.Namespace) -> list[str]:
    """A row of the table: median rates, and ratios of rates within a chunk."""
    model = open_model(path)
    bench = Bench(model, options, args.tokens)
    clock = time.process_time if args.cpu_time else time.perf_counter
    bench.round(clock)  # Pages in, caches warm.
    chunks: list[dict[str, float]] = []
    others, against = [], []
    for _ in range(args.rounds):
        mine = bench.round(clock)
        chunks += mine
        if args.llama_imatrix:
            others.append(imatrix(args.llama_imatrix, path, options, args.tokens))
            against.append(args.tokens / sum(each["calibrate"] for each in mine) / others[-1])
    bench.close()
    model.gguf.close()

    def rate(way: str) -> str:
        return f"{CHUNK / statistics.median(each[way] for each in chunks):.0f}"

    def ratio(way: str) -> Ratio:
        return Ratio.of([each[way] / each["calibrate"] for each in chunks])

    added = Ratio.of([each["calibrate"] / each["nodes"] - 1 for each in chunks])
    return [
        path.stem,
        f"{path.stat().st_size / 1e6:.0f} MB",
        *(rate(way) for way in ("last", "all", "calibrate")),
        *(str(ratio(way)) for way in ("last", "all")),
        f"{added.median:+.1%} ± {added.error:.1%}",
        f"{statistics.median(others):.0f}" if others else "-",
        str(Ratio.of(against)) if others else "-",
    ]


def peak_memory() -> float:
    """MB that this process ever had in memory, mapped model included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, action="append", help="instead of the usual ones")
    parser.add_argument("--llama-imatrix", type=Path, help="compare with this program too")
    parser.add_argument("--tokens", type=int, default=4096, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=32_768, help="of the generated models")
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
                paths.append(generate(path, Shape(type=kind, vocabulary=args.vocabulary)))
        unit = "CPU second" if args.cpu_time else "second"
        print(f"tokens a {unit}; {args.rounds} rounds of {args.tokens} tokens; chunks of {CHUNK}; "
              f"{options.n_threads} threads")  # fmt: skip
        print("| model | size | last | all | calibrate | of last | of all | observing adds "
              "| llama-imatrix | times |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for path in paths:
            cells = measure(path, options, args)
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"peak memory, mapped models included: {peak_memory():.0f} MB")


if __name__ == "__main__":
    main()
