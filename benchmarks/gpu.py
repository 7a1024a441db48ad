"""What only a GPU can show: the table for docs/scaling.md, and in words what is slow.

    python benchmarks/gpu.py            # minutes on a GPU
    python benchmarks/gpu.py --tiny     # a device in software: that it works, no speeds

Each row is a process of its own, since the backends read their switches once. Columns, in tokens a
second: *last*, a prefill without a callback that computes the last token's logits; *calibrate*,
what ``ggprune calibrate`` runs; *write*, 16 answers at a time without a callback; *masked*, the
same under a mask, as `probe` writes them. What counts are the two ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from calibrate import CHUNK, Bench
from generated import Shape, generate

from ggprune.calibration.generate import generate as answer
from ggprune.evaluation.masking import MaskObserver
from ggprune.llama.devices import offload_devices
from ggprune.llama.options import RunOptions
from ggprune.model import open_model

#: As wide as Qwen3-30B-A3B, with as many experts, and an eighth of its layers.
SHAPE = Shape(layers=6, experts=128, used=8, width=2048, inner=768, vocabulary=151_936)
TINY = Shape(layers=2, experts=16, used=4, width=256, inner=256, vocabulary=1024)
#: Below this share of the speed without a callback, a row is called slow.
ENOUGH = 0.9


@dataclass(frozen=True)
class Row:
    """A way to run.

    Attributes:
        experts: share of the experts that the model has.
        switches: environment variables.
        placement: fields of RunOptions.
    """

    name: str
    experts: float = 1.0
    switches: dict[str, str] = field(default_factory=dict)
    placement: dict[str, object] = field(default_factory=dict)


def rows(devices: list[str]) -> list[Row]:
    """What can be compared on these devices."""
    everything = {"gpu_layers": 999}
    found = [Row("all on the device", placement=everything)]
    if devices[0].startswith(("CUDA", "ROCm")):
        found += [
            Row(f"without {what}", switches={name: "1"}, placement=everything)
            for what, name in (
                ("graphs", "GGML_CUDA_DISABLE_GRAPHS"),
                ("fusion", "GGML_CUDA_DISABLE_FUSION"),
            )
        ]
    if devices[0].startswith("Vulkan"):
        switches = {"GGML_VK_DISABLE_FUSION": "1"}
        found.append(Row("without fusion", switches=switches, placement=everything))
    # CUDA's fused routing kernel takes powers of two.
    found.append(Row("15/16 of the experts", experts=15 / 16, placement=everything))
    found.append(Row("experts on the CPU", placement={"cpu_moe": True}))
    if len(devices) > 1:
        found.append(Row("one of the devices", placement={**everything, "split_mode": "none"}))
    return found


def measure(path: Path, options: RunOptions, args: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of each way; medians over chunks and rounds."""
    model = open_model(path)
    rounds, chunk = args.rounds, 32 if args.tiny else CHUNK
    bench = Bench(model, options, args.tokens, chunk)
    bench.round(time.perf_counter)
    chunks = [each for _ in range(rounds) for each in bench.round(time.perf_counter)]
    found = {
        way: chunk / statistics.median(each[way] for each in chunks)
        for way in ("last", "calibrate", "nodes")
    }
    dropped = {layer: range(model.experts // 4) for layer in model.moe_layers}
    prompts = [each.tokens[:16] for each in bench.chunks[:1] * 16]
    for way, observers in (("write", []), ("masked", [MaskObserver(model, dropped)])):
        seconds = []
        for _ in range(1 + rounds):
            start = time.perf_counter()
            written = answer(bench.llama, prompts, max_tokens=16, parallel=16, observers=observers)
            seconds.append((time.perf_counter() - start) / sum(map(len, written)))
        found[way] = 1 / statistics.median(seconds[1:])
    bench.close()
    return found


def child(args: argparse.Namespace) -> None:
    placement = json.loads(args.child[1])
    print(json.dumps(measure(Path(args.child[0]), RunOptions(**placement), args)))


def verdict(row: Row, found: dict[str, float], base: dict[str, float] | None) -> list[str]:
    """Say in words what is slow in a row."""
    slow, name = [], row.name
    for what, mine, free in (
        ("calibration reads", "calibrate", "last"),
        ("a mask writes", "masked", "write"),
    ):
        if found[mine] < ENOUGH * found[free]:
            slow.append(f"SLOW, {name}: {what} at {found[mine] / found[free]:.2f} of the speed "
                        "without a callback")  # fmt: skip
    if base and row.experts < 1 and found["write"] < ENOUGH * base["write"]:
        slow.append(f"SLOW, {name}: writes at {found['write'] / base['write']:.2f} of the speed "
                    "of the whole model")  # fmt: skip
    if base and row.experts == 1 and found["calibrate"] > base["calibrate"] / ENOUGH:
        slow.append(f"SLOW as it is: calibration is {found['calibrate'] / base['calibrate']:.2f} "
                    f"times as fast {name}")  # fmt: skip
    return slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="see that it works; no speeds")
    parser.add_argument("--tokens", type=int, default=4096, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    devices = offload_devices()
    if not devices:
        sys.exit("llama.cpp has no device but the CPU: see `ggprune doctor`")
    print(", ".join(f"{device.name}: {device.description}" for device in devices))
    shape = TINY if args.tiny else SHAPE
    size = ["--tiny", "--tokens", "32", "--rounds", "1"]
    if not args.tiny:
        size = ["--tokens", str(args.tokens), "--rounds", str(args.rounds)]
    words: list[str] = []
    base: dict[str, float] | None = None
    with tempfile.TemporaryDirectory(prefix="ggprune-bench-") as folder:
        print("| | last | calibrate | of last | observing adds | write | masked | of write |\n"
              "|---|---|---|---|---|---|---|---|")  # fmt: skip
        for row in rows([device.name for device in devices]):
            experts = round(shape.experts * row.experts)
            path = Path(folder) / f"{experts}.gguf"
            if not path.exists():
                generate(path, replace(shape, experts=experts))
            command = [sys.executable, __file__, "--child", str(path), json.dumps(row.placement)]
            done = subprocess.run(
                [*command, *size],
                env=os.environ | row.switches,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            if done.returncode:
                words.append(f"FAILED, {row.name}: see above")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            words += [] if args.tiny else verdict(row, found, base)
            base = base or found
            cells = [
                *(f"{found[way]:.0f}" for way in ("last", "calibrate")),
                f"{found['calibrate'] / found['last']:.2f}",
                f"{found['nodes'] / found['calibrate'] - 1:+.1%}",
                *(f"{found[way]:.0f}" for way in ("write", "masked")),
                f"{found['masked'] / found['write']:.2f}",
            ]
            print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
    print("\n".join(words) or ("It works." if args.tiny else "Nothing is slow."))
    if any(line.startswith("FAILED") for line in words):
        sys.exit(1)


if __name__ == "__main__":
    main()
