"""Time pruning a model of a few gigabytes against ``cp`` of as many bytes.

    python benchmarks/rewrite.py --folder /a/disk/with/room

Makes a file like a mixture-of-experts model (random bytes), rewrites it with about 85 % of the
experts, and alternates that with ``cp`` of a file as large as the result. Every pair counts. The
source is in the page cache for both. Needs three times --gigabytes of room.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ggprune.gguf_file import (
    ByteRange,
    GgufModel,
    KeyEdits,
    OutputTensor,
    TypedValue,
    ValueType,
    joined,
    lay_out,
    whole,
    write_files,
)

LAYERS, EXPERTS, WIDTH = 12, 128, 2048
KEPT = 109
Q8_0, F32 = 8, 0


def tensors_of(gigabytes: float) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape, type and bytes; the experts' inner size makes up the gigabytes."""
    per_weight = LAYERS * EXPERTS * 3 * WIDTH * 34 / 32
    inner = round(gigabytes * 1e9 / per_weight / 32) * 32
    found = [("token_embd.weight", (WIDTH, 8192), Q8_0, WIDTH * 8192 // 32 * 34)]
    for layer in range(LAYERS):
        blk = f"blk.{layer}"
        found.append((f"{blk}.attn_q.weight", (WIDTH, WIDTH), Q8_0, WIDTH * WIDTH // 32 * 34))
        found.append((f"{blk}.ffn_gate_inp.weight", (WIDTH, EXPERTS), F32, WIDTH * EXPERTS * 4))
        for name, shape in [
            ("gate", (WIDTH, inner, EXPERTS)),
            ("up", (WIDTH, inner, EXPERTS)),
            ("down", (inner, WIDTH, EXPERTS)),
        ]:
            nbytes = WIDTH * inner * EXPERTS // 32 * 34
            found.append((f"{blk}.ffn_{name}_exps.weight", shape, Q8_0, nbytes))
    return found


def generate(path: Path, gigabytes: float) -> None:
    """Write the source, header by hand, without holes."""
    infos, offset = b"", 0
    tensors = tensors_of(gigabytes)
    for name, shape, kind, nbytes in tensors:
        infos += struct.pack("<Q", len(name)) + name.encode()
        infos += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-nbytes // 32) * 32
    key = b"general.architecture"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 8) + b"qwen3moe"
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + pair + infos
    noise = random.Random(1).randbytes(64 << 20)
    with open(path, "wb") as stream:
        stream.write(head + bytes(-len(head) % 32))
        while offset:
            offset -= stream.write(noise[: min(offset, len(noise))])


def rewrite(source_path: Path, target: Path) -> None:
    """What ``ggprune prune`` does to the file: 15 % of the experts go, other ones in each layer."""
    rng = random.Random(7)
    keeps = [sorted(rng.sample(range(EXPERTS), KEPT)) for _ in range(LAYERS)]
    with GgufModel(source_path) as source:
        tensors = []
        for tensor in source.tensors:
            if "exps" not in tensor.name and "gate_inp" not in tensor.name:
                tensors.append(whole(tensor))
                continue
            size = tensor.nbytes // EXPERTS
            keep = keeps[int(tensor.name.split(".")[1])]
            ranges = joined(ByteRange(0, tensor.offset + e * size, size) for e in keep)
            shape = (*tensor.shape[:-1], KEPT)
            tensors.append(OutputTensor(tensor.name, shape, tensor.type, ranges))
        edits = KeyEdits({"qwen3moe.expert_count": TypedValue(ValueType.UINT32, KEPT)})
        write_files(lay_out(target, source, edits, tensors), source)


def copy(source: Path, target: Path) -> None:
    """The yardstick, without flushing."""
    subprocess.run(["cp", source, target], check=True)


def copy_and_sync(source: Path, target: Path) -> None:
    """The yardstick, on the disk at the end as the rewritten file is."""
    copy(source, target)
    subprocess.run(["sync", target], check=True)


@contextmanager
def no_flushing() -> Iterator[None]:
    """Leave out fsync, to time the copying alone."""
    fsync = os.fsync
    os.fsync = lambda _: None
    try:
        yield
    finally:
        os.fsync = fsync


def timed(action: Callable[[Path, Path], None], source: Path, target: Path) -> tuple[float, float]:
    """Seconds on the clock, and of the processor (children too)."""
    target.unlink(missing_ok=True)
    warm(source)
    os.sync()  # Nothing of the run before is still on its way to the disk.
    before = os.times()
    action(source, target)
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


def warm(path: Path) -> None:
    """Read it into the page cache, so that neither side waits for reading."""
    buffer = bytearray(8 << 20)
    with open(path, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


Timer = Callable[[], tuple[float, float]]


def compare(name: str, pairs: int, ours: Timer, cp: Timer) -> None:
    """Alternate A B A B, print every pair and the ratios."""
    ratios, processor = [], []
    for number in range(pairs):
        (mine, my_cpu), (theirs, their_cpu) = ours(), cp()
        ratios.append(mine / theirs)
        processor.append(my_cpu / their_cpu)
        print(f"  {name} {number + 1}: {mine:.2f} s, cp {theirs:.2f} s, ratio {ratios[-1]:.2f}")
    print(
        f"{name}: median ratio {statistics.median(ratios):.2f}, "
        f"min {min(ratios):.2f}, max {max(ratios):.2f}; "
        f"processor time {statistics.median(processor):.2f} ({pairs} pairs)"
    )


_CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import peak, rewrite
before = peak.mebibytes()
rewrite.rewrite(Path(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps([before, peak.mebibytes()]))
"""


def memory(source: Path, target: Path) -> tuple[float, float]:
    """Peak memory in MiB after the imports, and after writing, of a child process."""
    command = [sys.executable, "-c", _CHILD, str(Path(__file__).parent), str(source), str(target)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = json.loads(output)
    return before, after


def benchmark(folder: Path, gigabytes: float, pairs: int) -> None:
    source, target, same = (folder / name for name in ("source.gguf", "out.gguf", "same.gguf"))
    generate(source, gigabytes)
    before, after = memory(source, target)
    shutil.copyfile(target, same)
    print(
        f"source {source.stat().st_size / 1e9:.2f} GB, result {same.stat().st_size / 1e9:.2f} GB, "
        f"{KEPT} of {EXPERTS} experts in {LAYERS} layers"
    )
    print(f"memory: {before:.0f} MiB after imports, peak {after:.0f} MiB while writing")
    compare(
        "write + fsync / cp + sync",
        pairs,
        lambda: timed(rewrite, source, target),
        lambda: timed(copy_and_sync, same, target),
    )
    with no_flushing():
        compare(
            "copying alone / cp",
            pairs,
            lambda: timed(rewrite, source, target),
            lambda: timed(copy, same, target),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        benchmark(Path(folder), options.gigabytes, options.pairs)


if __name__ == "__main__":
    main()
