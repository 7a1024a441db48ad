"""Opening GGUF files: everything a header can hold, and everything that can be wrong with it."""

from __future__ import annotations

import ctypes
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggprune.errors import FormatError, InputError
from ggprune.gguf_file import TENSOR_TYPES, GgufFile, GgufModel, ValueType, tensor_type_name
from ggprune.gguf_file.cursor import MAX_ARRAYS, MAX_NESTING
from tests.support.gguf_builder import (
    ARRAY,
    BOOL,
    CODES,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    Gguf,
    TensorSpec,
    Value,
    array,
    counted,
    f32_tensor,
    moe,
    noise,
    numbers,
    scalar,
    string,
    strings,
    u32,
)

SCALAR_VALUES: dict[int, float] = {
    U8: 255, I8: -128, U16: 65535, I16: -32768, U32: 2**32 - 1, I32: -(2**31),
    F32: 0.5, BOOL: True, U64: 2**64 - 1, I64: -(2**63), F64: 1e300,
}  # fmt: skip


def opened(tmp_path: Path, file: Gguf) -> GgufFile:
    return GgufFile(file.write(tmp_path / "m.gguf"))


def refused(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        GgufFile(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value.message


def value_of(tmp_path: Path, value: Value) -> Any:
    # A key after it notices a value that ended at the wrong place.
    with opened(tmp_path, Gguf([("k", value), ("after", u32(7))])) as file:
        assert file.get("after") == 7
        return file.get("k")


@pytest.mark.parametrize("kind", sorted(SCALAR_VALUES))
def test_scalar_values(tmp_path: Path, kind: int) -> None:
    assert value_of(tmp_path, scalar(kind, SCALAR_VALUES[kind])) == SCALAR_VALUES[kind]


@pytest.mark.parametrize("kind", sorted(SCALAR_VALUES))
def test_arrays_of_scalars(tmp_path: Path, kind: int) -> None:
    items = [SCALAR_VALUES[kind], 0, 1]
    assert value_of(tmp_path, numbers(kind, items)) == items
    assert value_of(tmp_path, numbers(kind, [])) == []


def test_the_value_types_are_those_of_the_specification() -> None:
    assert {kind.name: int(kind) for kind in gguf.GGUFValueType} == {
        kind.name: int(kind) for kind in ValueType
    }


@pytest.mark.parametrize(
    ("text", "decoded"), [(b"", ""), ("é𝄞".encode(), "é𝄞"), (b"a\xff\x00b", "a\ufffd\x00b")]
)
def test_strings(tmp_path: Path, text: bytes, decoded: str) -> None:
    assert value_of(tmp_path, string(text)) == decoded
    assert value_of(tmp_path, strings([text, b"x", text])) == [decoded, "x", decoded]


def test_nested_arrays(tmp_path: Path) -> None:
    inner = [numbers(U8, [1, 2]), numbers(I32, []), strings(["a", ""]), array(ARRAY, [])]
    assert value_of(tmp_path, array(ARRAY, inner)) == [[1, 2], [], ["a", ""], []]


def nested(depth: int) -> Value:
    value = numbers(U8, [7])
    for _ in range(depth - 1):
        value = array(ARRAY, [value])
    return value


def test_arrays_nest_up_to_the_limit(tmp_path: Path) -> None:
    value = value_of(tmp_path, nested(MAX_NESTING))
    for _ in range(MAX_NESTING):
        (value,) = value
    assert value == 7


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 100_000])
def test_arrays_nested_deeper_are_refused(tmp_path: Path, depth: int) -> None:
    data = struct.pack("<IQ", ARRAY, 1) * (depth - 1) + struct.pack("<IQB", U8, 1, 7)
    assert "nests arrays" in refused(tmp_path, Gguf([("k", Value(ARRAY, data))]).build())


def test_a_wide_array_of_arrays(tmp_path: Path) -> None:
    many = array(ARRAY, [numbers(U8, [i % 256]) for i in range(5000)])
    assert value_of(tmp_path, many) == [[i % 256] for i in range(5000)]


def test_more_arrays_than_any_model_has_are_refused(tmp_path: Path) -> None:
    count = MAX_ARRAYS + 1
    data = struct.pack("<IQ", ARRAY, count) + struct.pack("<IQ", U8, 0) * count
    assert "arrays" in refused(tmp_path, Gguf([("k", Value(ARRAY, data))]).build())


@pytest.mark.parametrize("kind", [13, 99, 2**32 - 1])
def test_unknown_value_types(tmp_path: Path, kind: int) -> None:
    assert "unknown value type" in refused(
        tmp_path, Gguf([("k", Value(kind, bytes(8))), ("l", u32(1))]).build()
    )
    assert "unknown value type" in refused(tmp_path, Gguf([("k", array(kind, []))]).build())


def test_keys_that_are_not_utf8_are_kept_apart(tmp_path: Path) -> None:
    with opened(tmp_path, Gguf([(b"\xff", u32(1)), (b"\xfe", u32(2))])) as file:
        assert [file.get(key) for key in file.keys] == [1, 2]
        assert [key.encode("utf-8", "surrogateescape") for key in file.keys] == [b"\xff", b"\xfe"]
        assert file.get("missing", 5) == 5


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3(tmp_path: Path, version: int) -> None:
    model = moe()
    model.version = version
    with opened(tmp_path, model) as file:
        assert (file.version, len(file.tensors)) == (version, len(model.tensors))


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_other_versions(tmp_path: Path, version: int) -> None:
    assert f"version {version}" in refused(tmp_path, Gguf(version=version).build())


def test_version_1_with_its_shorter_preamble(tmp_path: Path) -> None:
    assert "version 1" in refused(tmp_path, b"GGUF" + struct.pack("<III", 1, 0, 0))


@pytest.mark.parametrize("version", [2, 3])
def test_big_endian(tmp_path: Path, version: int) -> None:
    data = Gguf([("k", u32(1))], version=version, order=">").build()
    assert "big-endian" in refused(tmp_path, data)


@pytest.mark.parametrize("data", [b"", b"GG", b"ggml" + bytes(40), bytes(100), b"PK\3\4" * 9])
def test_not_gguf(tmp_path: Path, data: bytes) -> None:
    assert "not a GGUF file" in refused(tmp_path, data)


def test_duplicates(tmp_path: Path) -> None:
    assert "'k' stands twice" in refused(tmp_path, Gguf([("k", u32(1)), ("k", u32(1))]).build())
    twice = Gguf(tensors=[f32_tensor("t", (8,)), f32_tensor("t", (8,))])
    assert "'t' stands twice" in refused(tmp_path, twice.build())


def test_names(tmp_path: Path) -> None:
    longest = Gguf([("k" * 65535, u32(1))], [f32_tensor("t" * 63, (8,))])
    with opened(tmp_path, longest) as file:
        assert file.tensors[0].name == "t" * 63
    assert "64 bytes" in refused(tmp_path, Gguf(tensors=[f32_tensor("t" * 64, (8,))]).build())
    message = refused(tmp_path, Gguf([("k" * 65536, u32(1))]).build())
    assert "65536 bytes" in message
    assert "empty" in refused(tmp_path, Gguf([("", u32(1))]).build())
    message = refused(tmp_path, Gguf([("k" * 9999, Value(77, b""))]).build())
    assert len(message) < 500


def test_names_that_are_many_megabytes_together(tmp_path: Path) -> None:
    keys: list[Any] = [(f"{i:08}" + "k" * 65000, scalar(U8, 1)) for i in range(300)]
    assert "at most" in refused(tmp_path, Gguf(keys).build())


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = [f32_tensor("a", (3,)), f32_tensor("b", (5,), 2)]
    keys: list[Any] = [("general.alignment", u32(alignment))]
    file = Gguf(keys, tensors, alignment=alignment)
    with opened(tmp_path, file) as read:
        assert read.alignment == alignment
        for tensor, spec in zip(read.tensors, tensors, strict=True):
            assert tensor.offset % alignment == 0
            assert read.read(tensor.offset, tensor.nbytes) == spec.data


@pytest.mark.parametrize(
    "value",
    [u32(0), u32(3), u32(48), u32(1 << 31), scalar(U64, 32), string("32"), numbers(U32, [32])],
)
def test_wrong_alignment(tmp_path: Path, value: Value) -> None:
    assert "general.alignment" in refused(tmp_path, Gguf([("general.alignment", value)]).build())


def three_tensors(*offsets: int | None) -> bytes:
    specs = [
        TensorSpec(name, (8,), 0, noise(32, seed), offset)
        for seed, (name, offset) in enumerate(zip("abc", offsets, strict=True))
    ]
    return Gguf(tensors=specs).build()


@pytest.mark.parametrize(
    "offsets",
    [
        (0, 64, 32),  # out of order
        (0, 0, 32),  # overlapping
        (0, 16, 64),  # unaligned
        (0, 64, 96),  # a gap
        (32, 64, 96),  # a gap before the first
        (0, 32, 2**64 - 32),
    ],
)
def test_wrong_offsets(tmp_path: Path, offsets: tuple[int, ...]) -> None:
    assert "expected" in refused(tmp_path, three_tensors(*offsets) + bytes(200))


def test_right_offsets(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(three_tensors(0, 32, 64))
    with GgufFile(path) as file:
        assert [t.offset - file.data_offset for t in file.tensors] == [0, 32, 64]


def test_truncated_anywhere(tmp_path: Path) -> None:
    """At every single byte: each structural boundary is among them."""
    model = moe(experts=3, layers=1, width=3)
    model.padded_end = False
    data = model.build()
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    GgufFile(path).close()
    for length in range(len(data) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FormatError):
            GgufFile(path)


def test_a_truncated_download_says_so(tmp_path: Path) -> None:
    data = moe().build()
    assert "truncated" in refused(tmp_path, data[: len(data) - 100])


@pytest.mark.parametrize("count", [2**16 + 1, 2**31, 2**63, 2**64 - 1])
def test_huge_counts(tmp_path: Path, count: int) -> None:
    refused(tmp_path, Gguf(n_tensors=count).build() + bytes(1000))
    refused(tmp_path, Gguf(n_keys=count).build() + bytes(1000))


def test_counts_that_the_file_has_no_room_for(tmp_path: Path) -> None:
    assert "does not have" in refused(tmp_path, Gguf(n_tensors=60_000).build())
    assert "does not have" in refused(tmp_path, Gguf(n_keys=60_000).build())


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_huge_lengths(tmp_path: Path, length: int) -> None:
    end = bytes(1000)
    long = struct.pack("<Q", length)
    refused(tmp_path, Gguf([("k", Value(STRING, long))]).build() + end)
    refused(tmp_path, Gguf([("k", array(STRING, [Value(STRING, long)]))]).build() + end)
    for kind in (U8, U64, STRING, ARRAY):
        refused(tmp_path, Gguf([("k", array(kind, [], count=length))]).build() + end)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + long
    refused(tmp_path, head + end)


@pytest.mark.parametrize(
    "shape",
    [(2**63,), (2**32, 2**32), (2**40, 2**40, 2**40), (2**63, 0), (2**62,), (2**20, 2**20, 4)],
)
def test_impossible_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    refused(tmp_path, Gguf(tensors=[TensorSpec("t", shape, 0, bytes(64))]).build())


def test_five_dimensions(tmp_path: Path) -> None:
    file = Gguf(tensors=[TensorSpec("t", (1, 1, 1, 1, 1), 0, bytes(4))])
    assert "dimensions" in refused(tmp_path, file.build())


def test_a_tensor_without_dimensions_is_one_weight(tmp_path: Path) -> None:
    with opened(tmp_path, Gguf(tensors=[TensorSpec("t", (), 0, bytes(4))])) as file:
        assert file.tensors[0].nbytes == 4
    assert "rows of 1" in refused(
        tmp_path, Gguf(tensors=[TensorSpec("t", (), 8, bytes(34))]).build()
    )


def test_a_tensor_without_weights(tmp_path: Path) -> None:
    specs = [TensorSpec("t", (8, 0), 0, b""), f32_tensor("u", (8,))]
    with opened(tmp_path, Gguf(tensors=specs)) as file:
        assert [t.nbytes for t in file.tensors] == [0, 32]


@pytest.mark.parametrize("kind", sorted(TENSOR_TYPES))
def test_every_tensor_type(tmp_path: Path, kind: int) -> None:
    known = TENSOR_TYPES[kind]
    shape = (known.block * 2, 3, 2)
    data = noise(known.size * 12)
    specs = [TensorSpec("t", shape, kind, data), f32_tensor("u", (8,))]
    with opened(tmp_path, Gguf(tensors=specs)) as file:
        tensor = file.tensors[0]
        assert file.read(tensor.offset, tensor.nbytes) == data
    if known.block > 1:
        ragged = [TensorSpec("t", (known.block + 1, 3), kind, data)]
        assert "not a multiple" in refused(tmp_path, Gguf(tensors=ragged).build())


@pytest.mark.llama
def test_sizes_of_tensor_types_are_those_of_llama_cpp() -> None:
    library = pytest.importorskip("llama_cpp").llama_cpp._lib
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    known = {
        kind: (library.ggml_blck_size(kind), library.ggml_type_size(kind))
        for kind in range(43)
        if library.ggml_blck_size(kind)
    }
    assert known == {kind: (each.block, each.size) for kind, each in TENSOR_TYPES.items()}
    for kind in known:
        name = library.ggml_type_name(kind).decode().upper()
        assert tensor_type_name(kind) == name


def test_sizes_of_tensor_types_agree_with_the_gguf_package() -> None:
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind != gguf.GGMLQuantizationType.Q8_1:  # Never stored; the package says 40, not 36.
            assert TENSOR_TYPES[int(kind)][1:] == (block, size), kind.name
        assert tensor_type_name(int(kind)) == kind.name


def test_q2_0_which_the_gguf_package_does_not_know() -> None:
    assert TENSOR_TYPES[42] == ("Q2_0", 64, 18)
    assert tensor_type_name(77) == "type 77"


@pytest.mark.parametrize("padded_end", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_future_type_is_sized_by_its_neighbour(
    tmp_path: Path, last: bool, padded_end: bool
) -> None:
    data = noise(21 * 40 * 3)
    specs = [f32_tensor("a", (9,)), TensorSpec("t", (64, 40, 3), 77, data)]
    if not last:
        specs.append(f32_tensor("b", (9,)))
    with opened(tmp_path, Gguf(tensors=specs, padded_end=padded_end)) as file:
        tensor = file.tensors[1]
        assert file.read(tensor.offset, tensor.nbytes) == data


@pytest.mark.parametrize("shape", [(64,), (64, 7), (0, 40), (64, 0), (64, 4000)])
def test_a_future_type_without_a_certain_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    specs = [TensorSpec("t", shape, 77, noise(21 * 40)), f32_tensor("b", (9,))]
    message = refused(tmp_path, Gguf(tensors=specs).build())
    assert "type 77" in message or "expected" in message


def test_many_tensors_of_a_future_type_with_a_huge_alignment(tmp_path: Path) -> None:
    """Finding their sizes must not take time that grows with the alignment."""
    alignment = 1 << 20
    specs = [TensorSpec(f"t{i}", (64, 7), 77, b"") for i in range(3000)]
    specs[0] = TensorSpec("t0", (64, alignment), 77, noise(16))
    file = Gguf([("general.alignment", u32(alignment))], specs, alignment=alignment)
    data = file.build()
    path = tmp_path / "bad.gguf"
    with open(path, "wb") as stream:
        stream.write(data)
        stream.truncate(1 << 40)
    with pytest.raises(FormatError):
        GgufFile(path)


def test_special_files(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, what in [
        (fifo, "not a regular file"),
        (tmp_path, "a folder"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / "missing.gguf", "No such file"),
        (tmp_path / "nul\0byte", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            GgufFile(path)
        assert str(path) in caught.value.message


def test_a_pipe_that_appears_after_the_first_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = Gguf().write(tmp_path / "m.gguf")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    status = os.stat(regular)
    monkeypatch.setattr(os, "stat", lambda path, **_: status)
    with pytest.raises(InputError, match="not a regular file"):
        GgufFile(fifo)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Gguf().write(tmp_path / "m.gguf")
    path.chmod(0)
    if os.geteuid() == 0:  # Root may read everything.

        def denied(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match="Permission denied"):
        GgufFile(path)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = moe().write(tmp_path / "m.gguf")
    with GgufModel(path) as model:

        def broken(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", broken)
        for read in (lambda: model.read(model.tensors[0]), lambda: GgufFile(path)):
            with pytest.raises(InputError, match="Input/output error"):
                read()


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    path = Gguf([("k", strings(["abc", "def"]))]).write(tmp_path / "m.gguf")
    with GgufFile(path) as file:
        data = path.read_bytes()
        path.write_bytes(data.replace(counted("abc"), struct.pack("<Q", 2**60) + b"abc"))
        with pytest.raises(FormatError, match="changed"):
            file.get("k")
        path.write_bytes(data[:30])
        with pytest.raises(FormatError, match="shorter"):
            file.get("k")


def test_a_file_that_is_closed_twice(tmp_path: Path) -> None:
    file = opened(tmp_path, Gguf())
    file.close()
    file.close()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(moe().build()[:500])
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with pytest.raises(FormatError):
            GgufModel(bad)
        with pytest.raises(InputError):
            GgufModel(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_array("list", [1, 2, 3])
    writer.add_string("name", "é")
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer.add_tensor("w", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(path) as file:
        assert {key: file.get(key) for key in file.keys} == {
            "general.architecture": "qwen3moe",
            "list": [1, 2, 3],
            "name": "é",
        }
        (tensor,) = file.tensors
        assert tensor.shape == (4, 3, 2)
        assert file.read(tensor.offset, tensor.nbytes) == weights.tobytes()


def big_vocabulary(path: Path, tokens: int = 131_072, merges: int = 250_000) -> Path:
    """A header half as large as Gemma's."""

    def same(kind: int, value: Value, count: int) -> Value:
        return Value(ARRAY, struct.pack("<IQ", kind, count) + value.data * count)

    file = Gguf(
        [
            ("general.architecture", string("gemma4")),
            ("tokenizer.ggml.tokens", same(STRING, string("token123456"), tokens)),
            ("tokenizer.ggml.scores", same(F32, scalar(F32, 0.0), tokens)),
            ("tokenizer.ggml.token_type", same(I32, scalar(I32, 1), tokens)),
            ("tokenizer.ggml.merges", same(STRING, string("left123456 right"), merges)),
            ("general.name", string("big")),
        ],
        [f32_tensor("w", (32, 4))],
    )
    return file.write(path)


def test_a_large_vocabulary_needs_little_memory(tmp_path: Path) -> None:
    path = big_vocabulary(tmp_path / "big.gguf")
    tracemalloc.start()
    try:
        with GgufModel(path) as model:
            assert (model.get("general.name"), len(model.tensors)) == ("big", 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_all_scalar_codes_are_covered() -> None:
    assert set(SCALAR_VALUES) == set(CODES)
