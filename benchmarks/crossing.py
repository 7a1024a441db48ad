"""What crosses from a device for one ubatch, and where its graph stops, without and with observing.

    python benchmarks/crossing.py [--model PATH …]

Every byte that leaves the device is written down by crossing.c, which is loaded before llama.cpp:
what ggprune reads, what llama.cpp hands out, what it copies to the CPU between two splits. Linux,
a C compiler, and a device are needed (``make test-vulkan`` builds one in software).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from calibrate import FIXTURE
from generated import Shape, generate

from ggprune.calibration.observers import RoutingObserver
from ggprune.calibration.run import Run
from ggprune.llama.callback import Dispatcher
from ggprune.llama.devices import offload_devices
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from ggprune.llama.tensor import node_name
from ggprune.model import open_model

SHAPE = Shape(layers=2, experts=32, used=4, width=256, inner=256, vocabulary=2048)
#: Of a ubatch; few, since a device in software is slow.
TOKENS = 64


def by_node(log: Path) -> Counter[str]:
    """Bytes by node, layers together; the file is emptied."""
    found: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        size, _, name = line.partition(" ")
        # Layers together; the graph that reduces norms numbers its nodes.
        name = re.sub(r"-\d+( \(\w+\))?$|_\d+$", "", node_name(name.encode()))
        found["norms" if name == "node" else name] += int(size)
    log.write_text("")
    return found


def measure(path: Path, log: Path) -> None:
    """Print a row for a decode of one ubatch without a callback, and one for an observed one."""
    ggml, loaded = library().ggml, ctypes.CDLL(None)
    # Python would find llama.cpp's own.
    read = ggml["ggml_backend_tensor_get"]
    counting = loaded.ggml_backend_tensor_get
    counting.argtypes, counting.restype = read.argtypes, read.restype
    ggml["ggml_backend_tensor_get"] = counting
    model, options = open_model(path), RunOptions(gpu_layers=999, ubatch=TOKENS)
    stops = 0
    receive = Dispatcher._receive

    def stopping(self: Dispatcher, raw: bytes, address: int) -> bool:
        nonlocal stops
        stops += 1
        return receive(self, raw, address)

    Dispatcher._receive = stopping  # type: ignore[method-assign]
    observer = RoutingObserver(model.architecture, model.moe_layers, model.experts)
    with LlamaModel(path, options) as llama:
        keep = Run(model, (), options=options).keeps_rows(llama, observer)
        ids = np.random.default_rng(1).integers(3, llama.n_vocab, TOKENS, np.int32)
        for way, observers, keeps in (("plain", [], False), ("observing", [observer], keep)):
            logits = "last" if not observers else "none" if keeps else "all"
            with (
                library().listening() as lines,
                LlamaContext(llama, n_ctx=TOKENS, observers=observers, keep_rows=keeps) as context,
            ):
                context.decode([Tokens(0, 0, ids, logits)])
                context.clear()
                by_node(log)
                stops = 0
                context.decode([Tokens(0, 0, ids, logits)])
            splits = re.findall(r"splits = (\d+)", "".join(lines))[0]
            bytes_of = by_node(log)
            parts = ", ".join(f"{name} {size:,}" for name, size in bytes_of.most_common())
            total = sum(bytes_of.values())
            print(f"| {path.stem} | {way} | {splits} | {stops} | {total:,} | {parts} |", flush=True)
    layers, used, experts = len(model.moe_layers), model.experts_used, model.experts
    norms = layers * used * TOKENS * 4
    outputs = norms * int(model.gguf.get(f"{model.architecture.name}.embedding_length"))
    print(f"  norms and gates are {norms:,} bytes each, rows of {experts} sorted ids "
          f"{layers * experts * TOKENS * 4:,}, the experts' outputs {outputs:,}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, action="append", help="instead of the usual ones")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(*args.child)
        return
    if sys.platform != "linux" or not offload_devices():
        print("Bytes that cross from a device: not measured, llama.cpp has none here (Linux only).")
        return
    print(f"For one ubatch of {TOKENS} tokens on {offload_devices()[0].description}:")
    print("| model | | splits | stops | bytes | of them |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="ggprune-bench-") as folder:
        shim, log = Path(folder) / "crossing.so", Path(folder) / "log"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source], check=True)
        paths = args.model or [FIXTURE, generate(Path(folder) / "qwen3moe.gguf", SHAPE)]
        for path in paths:
            log.write_text("")
            subprocess.run(
                [sys.executable, __file__, "--child", path, log],
                env=os.environ | {"LD_PRELOAD": str(shim), "CROSSING": str(log)},
                check=True,
            )


if __name__ == "__main__":
    main()
