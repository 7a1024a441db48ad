"""Random headers, tensors and slices: what must hold for all of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggprune.gguf_file import (
    TENSOR_TYPES,
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
from tests.support import fuzz_header
from tests.support.gguf_builder import (
    ARRAY,
    CODES,
    Gguf,
    TensorSpec,
    array,
    noise,
    scalar,
    string,
    strings,
    u32,
)

RUNS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

BITS = {"B": 8, "b": 8, "H": 16, "h": 16, "I": 32, "i": 32, "Q": 64, "q": 64}


def plain(kind: int) -> st.SearchStrategy[Any]:
    code = CODES[kind]
    if code == "?":
        return st.booleans().map(lambda value: scalar(kind, value))
    if code in "fd":
        width = 32 if code == "f" else 64
        return st.floats(width=width).map(lambda value: scalar(kind, value))
    low, high = (0, 2 ** BITS[code]) if code.isupper() else (-(2 ** (BITS[code] - 1)), 0)
    high = high or 2 ** (BITS[code] - 1)
    return st.integers(low, high - 1).map(lambda value: scalar(kind, value))


SCALAR_KINDS = st.sampled_from(sorted(CODES))
FLAT_ARRAYS = st.one_of(
    SCALAR_KINDS.flatmap(
        lambda kind: st.lists(plain(kind), max_size=5).map(lambda items: array(kind, items))
    ),
    st.lists(st.binary(max_size=9), max_size=5).map(strings),
)
ARRAYS = st.recursive(
    FLAT_ARRAYS,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: array(ARRAY, items)),
    max_leaves=6,
)
VALUES = st.one_of(SCALAR_KINDS.flatmap(plain), st.binary(max_size=40).map(string), ARRAYS)
NAMES = st.binary(min_size=1, max_size=20)
#: Names with a meaning of their own, which the layout acts upon.
SPECIAL = {b"general.alignment", b"split.no", b"split.count", b"split.tensors.count"}


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[TensorSpec]:
    specs = []
    for name in draw(st.lists(NAMES, unique=True, max_size=6)):
        kind = draw(st.sampled_from(sorted(TENSOR_TYPES)))
        known = TENSOR_TYPES[kind]
        rows = draw(st.lists(st.integers(1, 5), max_size=3))
        blocks = draw(st.integers(1, 3))
        length = known.size * blocks
        for count in rows:
            length *= count
        shape = (known.block * blocks, *rows)
        specs.append(TensorSpec(name, shape, kind, noise(length, len(specs))))
    return specs


@st.composite
def files(draw: st.DrawFn) -> Gguf:
    alignment = draw(st.sampled_from([1, 8, 32, 64, 128]))
    names = draw(st.lists(NAMES.filter(lambda name: name not in SPECIAL), unique=True, max_size=8))
    keys: list[Any] = [(name, draw(VALUES)) for name in names]
    if alignment != 32:
        keys.insert(draw(st.integers(0, len(keys))), ("general.alignment", u32(alignment)))
    return Gguf(
        keys,
        draw(tensor_lists()),
        version=draw(st.sampled_from([2, 3])),
        alignment=alignment,
        padded_end=draw(st.booleans()),
    )


@contextmanager
def opened(data: bytes) -> Iterator[tuple[GgufModel, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.gguf")
        path.write_bytes(data)
        with GgufModel(path) as source:
            yield source, Path(folder, "out.gguf")


@RUNS
@given(file=files(), end=st.binary(max_size=70))
def test_nothing_changed_is_the_same_bytes(file: Gguf, end: bytes) -> None:
    data = file.build() + end
    with opened(data) as (source, target):
        layout = lay_out(target, source, KeyEdits(), [*map(whole, source.tensors)])
        write_files(layout, source)
        assert target.read_bytes() == data


@RUNS
@given(file=files())
def test_every_value_can_be_decoded_and_has_its_bytes(file: Gguf) -> None:
    with opened(file.build()) as (source, _):
        assert len(source.keys) == len(file.keys)
        for (_, value), pair in zip(file.keys, source.keys.values(), strict=True):
            assert source.files[0].read(pair.value, pair.end - pair.value) == value.data
            source.get(pair.key)
        for spec, tensor in zip(file.tensors, source.tensors, strict=True):
            assert (source.read(tensor), tensor.shape) == (spec.data, spec.shape)


@RUNS
@given(file=files(), drawn=st.data())
def test_changes_leave_everything_else(file: Gguf, drawn: st.DataObject) -> None:
    """Pairs set, removed and added; the file by hand with the same pairs is the same."""
    editable = [i for i, (key, _) in enumerate(file.keys) if key != "general.alignment"]
    removed = drawn.draw(st.sets(st.sampled_from(editable)) if editable else st.just(set()))
    changed = drawn.draw(st.sets(st.sampled_from(editable)) if editable else st.just(set()))
    edits = KeyEdits(
        {
            **{_text(file.keys[i][0]): TypedValue(ValueType.UINT32, i) for i in sorted(changed)},
            "a key that is longer than any other": TypedValue(ValueType.STRING, "é"),
        },
        frozenset(_text(file.keys[i][0]) for i in removed - changed),
    )
    keys = [
        (key, u32(i) if i in changed else value)
        for i, (key, value) in enumerate(file.keys)
        if i in changed or i not in removed
    ]
    keys.append(("a key that is longer than any other", string("é")))
    expected = Gguf(
        keys, file.tensors, file.version, file.alignment, padded_end=file.padded_end
    ).build()
    with opened(file.build()) as (source, target):
        write_files(lay_out(target, source, edits, [*map(whole, source.tensors)]), source)
        assert target.read_bytes() == expected


def _text(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "surrogateescape")


@RUNS
@given(
    experts=st.integers(1, 12),
    width=st.integers(1, 9),
    limit=st.one_of(st.none(), st.integers(4096, 9000)),
    drawn=st.data(),
)
def test_slices_are_the_bytes_of_the_kept_experts(
    experts: int, width: int, limit: int | None, drawn: st.DataObject
) -> None:
    """Any experts, in any order, in one file or in shards."""
    specs = [
        TensorSpec(f"t{i}", (width, 3, experts), 0, noise(12 * width * experts, i))
        for i in range(4)
    ]
    keeps = [drawn.draw(st.lists(st.integers(0, experts - 1), max_size=experts)) for _ in specs]
    with opened(Gguf([("k", u32(1))], specs).build()) as (source, target):
        size = 12 * width
        tensors = [
            OutputTensor(
                tensor.name,
                (width, 3, len(keep)),
                0,
                joined(ByteRange(0, tensor.offset + e * size, size) for e in keep),
            )
            for tensor, keep in zip(source.tensors, keeps, strict=True)
        ]
        layout = lay_out(target, source, KeyEdits(), tensors, split_max_size=limit)
        write_files(layout, source)
        with GgufModel(layout[0].path) as result:
            assert len(result.tensors) == len(specs)
            for tensor, spec, keep in zip(result.tensors, specs, keeps, strict=True):
                wanted = b"".join(spec.data[e * size : (e + 1) * size] for e in keep)
                assert result.read(tensor) == wanted


@RUNS
@given(
    st.lists(
        st.builds(ByteRange, st.integers(0, 1), st.integers(0, 40), st.integers(0, 9)), max_size=12
    )
)
def test_joined_ranges_are_the_same_bytes(ranges: list[ByteRange]) -> None:
    data = [bytes(range(50)), bytes(range(100, 150))]

    def read(parts: Any) -> bytes:
        return b"".join(data[p.shard][p.offset : p.offset + p.length] for p in parts)

    merged = joined(ranges)
    assert read(merged) == read(ranges)
    for one, other in itertools.pairwise(merged):
        assert (one.shard, one.offset + one.length) != (other.shard, other.offset)


@pytest.mark.process
def test_mutated_headers_open_or_are_refused(tmp_path: Path) -> None:
    """``make fuzz`` runs more; in a process of its own because memory is limited."""
    module = ["-m", "tests.support.fuzz_header"]
    command = [sys.executable, *module, "--count", "5000", "--seed", "1"]
    command += ["--save", str(tmp_path / "failure.gguf")]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5000 mutated headers" in result.stdout


def test_the_fuzzer_notices_what_it_is_for(tmp_path: Path, monkeypatch: Any) -> None:
    def crash(_: Path) -> None:
        raise KeyError("not a GgpruneError")

    def hang(_: Path) -> None:
        time.sleep(60)

    def swell(_: Path) -> None:
        bytearray(fuzz_header.MEMORY + (64 << 20))

    monkeypatch.setattr(fuzz_header, "SECONDS", 0.2)
    for use, name in [(crash, "KeyError"), (hang, "TimeoutError"), (swell, "MemoryError")]:
        monkeypatch.setattr(fuzz_header, "use", use)
        outcome = fuzz_header.fuzz(10, 1, tmp_path)
        assert outcome.failure.startswith(name)
        assert outcome.culprit
