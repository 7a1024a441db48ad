"""Time opening a header of 262,144 tokens and 500,000 merges, beside gguf.GGUFReader.

python benchmarks/header.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ggprune.gguf_file import GgufModel

TOKENS, MERGES = 262_144, 500_000
STRING, ARRAY, I32, F32 = 8, 9, 5, 6


def text(data: str) -> bytes:
    return struct.pack("<Q", len(data.encode())) + data.encode()


def strings(key: str, items: Iterable[str]) -> bytes:
    data = [text(item) for item in items]
    return text(key) + struct.pack("<IIQ", ARRAY, STRING, len(data)) + b"".join(data)


def generate(path: Path) -> None:
    """A file with a tokenizer like Gemma's and one tensor."""
    pairs = [
        text("general.architecture") + struct.pack("<I", STRING) + text("gemma4"),
        strings("tokenizer.ggml.tokens", (f"▁token{i}" for i in range(TOKENS))),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", ARRAY, F32, TOKENS) + bytes(4 * TOKENS),
        text("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", ARRAY, I32, TOKENS)
        + bytes(4 * TOKENS),
        strings("tokenizer.ggml.merges", (f"▁left{i} right" for i in range(MERGES))),
    ]
    info = text("output_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + info
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(32))


def open_with_ggprune(path: Path) -> None:
    with GgufModel(path) as model:
        assert len(model.tensors) == 1


def open_with_gguf(path: Path) -> None:
    import gguf

    assert len(gguf.GGUFReader(path).tensors) == 1


def timed(action: Callable[[Path], None], path: Path, runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        action(path)
        seconds.append(time.perf_counter() - start)
    return seconds


_CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import header, peak
before = peak.mebibytes()
header.open_with_ggprune(Path(sys.argv[2]))
print(json.dumps([before, peak.mebibytes()]))
"""


def memory(path: Path) -> float:
    """MiB that opening adds to a child process."""
    command = [sys.executable, "-c", _CHILD, str(Path(__file__).parent), str(path)]
    before, after = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return float(after - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--no-gguf", action="store_true", help="leave out the slow comparison")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "big.gguf")
        generate(path)
        print(f"header of {path.stat().st_size / 2**20:.0f} MiB, {TOKENS} tokens, {MERGES} merges")
        seconds = timed(open_with_ggprune, path, options.runs)
        print(
            f"ggprune: median {statistics.median(seconds):.3f} s, min {min(seconds):.3f}, "
            f"max {max(seconds):.3f} ({options.runs} runs), memory +{memory(path):.1f} MiB"
        )
        if not options.no_gguf:
            (reader,) = timed(open_with_gguf, path, 1)
            print(f"gguf.GGUFReader: {reader:.2f} s (1 run)")


if __name__ == "__main__":
    main()
