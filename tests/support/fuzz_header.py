"""Mutate small valid GGUF files and open them: each must open or end in a GgpruneError.

    python -m tests.support.fuzz_header --count 20000 --seed 1

The mutations depend on the seed only. Exits with 1 at the first input that raises anything else,
takes more than two seconds or allocates more than 256 MiB, and saves it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ggprune.errors import GgpruneError
from ggprune.gguf_file import GgufModel, KeyEdits, lay_out, whole
from ggprune.model import MoeModel, describe
from tests.support.gguf_builder import (
    ARRAY,
    F32,
    F64,
    I32,
    U8,
    U16,
    Gguf,
    TensorSpec,
    Value,
    array,
    f32_tensor,
    moe,
    noise,
    numbers,
    scalar,
    string,
    strings,
    u32,
)

SECONDS = 2
MEMORY = 256 << 20
#: Lengths, counts, offsets and types that have broken other parsers.
EXTREMES = [
    0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 64, 255, 256, 4096, 65535, 65536, 2**20, 2**24, 2**28,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**48, 2**61, 2**62, 2**63 - 1, 2**63,
    2**64 - 64, 2**64 - 32, 2**64 - 8, 2**64 - 1,
]  # fmt: skip


def corpus() -> list[bytes]:
    """Valid files that hold, together, everything a header can hold."""
    kinds = Gguf(
        [
            ("general.architecture", string("llama")),
            ("general.alignment", u32(64)),
            (
                "nested",
                array(ARRAY, [numbers(U8, [1, 2]), strings(["a", b"\xff"]), numbers(5, [])]),
            ),
            ("float", scalar(F64, 1.5)),
            ("floats", numbers(F32, [1.0, 2.0])),
            (b"\xff\xfe", string(b"\xff")),
        ],
        [f32_tensor("a", (3, 5)), TensorSpec("b", (64, 40), 77, noise(21 * 40))],
        alignment=64,
    )
    grouped = moe(experts=8, layers=3, architecture="deepseek2")
    grouped.keys += [
        ("deepseek2.expert_group_count", u32(4)),
        ("deepseek2.expert_group_used_count", u32(2)),
        ("deepseek2.nextn_predict_layers", u32(1)),
        ("deepseek2.expert_gating_func", u32(2)),
        ("deepseek2.attention.head_count", numbers(I32, [1, 2, 3])),
    ]
    grouped.tensors.append(f32_tensor("blk.2.nextn.eh_proj.weight", (16, 8)))
    one_shard, first_of_two = moe(layers=1), moe(layers=1)
    one_shard.keys += _split(0, 1)
    first_of_two.keys += _split(0, 2)
    old = moe(experts=4, layers=1, architecture="llama")
    old.version = 2
    unpadded = moe(experts=3, layers=1)
    unpadded.padded_end = False
    files = (Gguf(), kinds, moe(), grouped, one_shard, first_of_two, old, unpadded)
    return [file.build() for file in files]


def _split(number: int, count: int) -> list[tuple[bytes | str, Value]]:
    return [
        ("split.no", scalar(U16, number)),
        ("split.tensors.count", scalar(I32, 8)),
        ("split.count", scalar(U16, count)),
    ]


def second_shard() -> bytes:
    """What a mutated first shard finds beside it."""
    return Gguf(_split(1, 2), [f32_tensor("last", (8,))]).build()


def header_length(data: bytes) -> int:
    """Where to mutate: tensor data (noise) is of no interest."""
    end = data.rfind(b"output_norm.weight")
    return min(len(data), end + 60 if end >= 0 else 1000)


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(header_length(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    """Write an extreme number, mostly where a number of that size stands."""
    code, size = rng.choice([("<Q", 8), ("<Q", 8), ("<I", 4), ("<H", 2)])
    at = rng.choice([i for i in _numbers(data) if i + size <= len(data)] or [0])
    if rng.random() < 0.2:
        at = rng.randrange(max(header_length(data) - size, 1))
    data[at : at + size] = struct.pack(code, rng.choice(EXTREMES) % (1 << 8 * size))


def _numbers(data: bytearray) -> list[int]:
    """Places followed by zeros: the low byte of a little-endian count, length or type."""
    end = header_length(data)
    return [i for i in range(4, end - 3) if data[i] and not data[i + 1] and not data[i + 2]]


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(header_length(data))
    del data[at : at + rng.choice([1, 4, 8, 12, 100])]


def duplicate(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(header_length(data))
    section = data[at : at + rng.choice([4, 8, 13, 30, 200])]
    data[at:at] = section * rng.choice([1, 2, 50])


def grow(data: bytearray, rng: random.Random) -> None:
    data += bytes([rng.choice([0, 9, 255])]) * rng.choice([1, 32, 5000])


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    overwrite,
    overwrite,
    overwrite,
    truncate,
    cut,
    duplicate,
    grow,
]


def mutated(files: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(files))
    if rng.random() < 0.05:  # The start of one file, the end of another.
        other = rng.choice(files)
        data[rng.randrange(header_length(data)) :] = other[rng.randrange(header_length(other)) :]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


def use(path: Path) -> None:
    """What a run does with a stranger's file before it is trusted."""
    with GgufModel(path) as file:
        model = describe(file)
        assert (model.refusal is None) == isinstance(model, MoeModel)
        output = lay_out(path.with_name("out.gguf"), file, KeyEdits(), [*map(whole, file.tensors)])
        assert len(output) == 1


@dataclass
class Outcome:
    """What a run of the fuzzer saw."""

    opened: int = 0
    refused: int = 0
    slowest: float = 0.0
    failure: str = ""
    culprit: bytes = b""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """An alarm after two seconds, and no room for more than 256 MiB on top of what is in use."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if status.exists():
        in_use = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(count: int, seed: int, folder: Path) -> Outcome:
    """Run ``count`` mutations; stop at the first failure."""
    files, rng, outcome = corpus(), random.Random(seed), Outcome()
    path = folder / "fuzz-00001-of-00002.gguf"
    path.with_name("fuzz-00002-of-00002.gguf").write_bytes(second_shard())
    with limits():
        for _ in range(count):
            data = mutated(files, rng)
            path.write_bytes(data)
            start = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                use(path)
                outcome.opened += 1
            except GgpruneError:
                outcome.refused += 1
            except Exception as error:
                outcome.failure = f"{type(error).__name__}: {error}"
                outcome.culprit = data
                break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failure.gguf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(options.count, options.seed, Path(folder))
    if outcome.failure:
        options.save.write_bytes(outcome.culprit)
        print(f"seed {options.seed}: {outcome.failure}; input saved as {options.save}")
        return 1
    print(
        f"seed {options.seed}: {outcome.opened + outcome.refused} mutated headers: "
        f"{outcome.opened} opened, {outcome.refused} refused, none failed; "
        f"slowest {outcome.slowest:.3f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
