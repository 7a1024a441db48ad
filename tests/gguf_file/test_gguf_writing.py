"""Laying out and writing files: the same bytes where nothing changes, and nothing ever lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggprune.errors import FormatError, GgpruneError, InputError, OutputError
from ggprune.gguf_file import (
    ByteRange,
    GgufModel,
    KeyEdits,
    OutputTensor,
    TypedValue,
    ValueType,
    check_targets,
    joined,
    lay_out,
    padded,
    part_path,
    replacing,
    whole,
    write_files,
    write_text,
)
from tests.support.gguf_builder import (
    ARRAY,
    F32,
    I32,
    U8,
    U16,
    U64,
    Gguf,
    TensorSpec,
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

U32 = ValueType.UINT32


def identity(source: GgufModel, target: Path) -> bytes:
    files = lay_out(target, source, KeyEdits(), [whole(tensor) for tensor in source.tensors])
    assert sum(file.size for file in files) == source.size
    write_files(files, source)
    return target.read_bytes()


def edited(source: GgufModel, target: Path, edits: KeyEdits) -> GgufModel:
    write_files(lay_out(target, source, edits, [*map(whole, source.tensors)]), source)
    return GgufModel(target)


def sliced(source: GgufModel, experts: int, keep: list[int]) -> list[OutputTensor]:
    """Per-expert tensors cut along the outermost axis, as a pruner does."""
    result = []
    for tensor in source.tensors:
        if "exps" not in tensor.name and "gate_inp" not in tensor.name:
            result.append(whole(tensor))
            continue
        size = tensor.nbytes // experts
        ranges = joined(ByteRange(tensor.shard, tensor.offset + e * size, size) for e in keep)
        shape = (*tensor.shape[:-1], len(keep))
        result.append(OutputTensor(tensor.name, shape, tensor.type, ranges))
    return result


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def everything(alignment: int = 32) -> Gguf:
    keys: list[Any] = [
        ("general.architecture", string("llama")),
        ("general.alignment", u32(alignment)),
        ("empty", strings([])),
        (b"\xff", strings([b"\xfe", b""])),
        ("nested", array(ARRAY, [numbers(U8, [1]), array(ARRAY, [strings(["x"])])])),
        ("wide", scalar(U64, 2**64 - 1)),
    ]
    tensors = [
        f32_tensor("a", (3,), 1),
        TensorSpec("q2_0", (64, 3), 42, noise(54, 2)),
        TensorSpec("future", (64, 5000), 77, noise(105_000, 3)),
        TensorSpec("zero", (8, 0), 0, b""),
        f32_tensor("last", (5, 3), 4),
    ]
    return Gguf(keys, tensors, alignment=alignment)


@pytest.mark.parametrize("padded_end", [True, False])
@pytest.mark.parametrize("alignment", [8, 32, 64])
@pytest.mark.parametrize("version", [2, 3])
def test_nothing_changed_is_the_same_bytes(
    tmp_path: Path, version: int, alignment: int, padded_end: bool
) -> None:
    file = everything(alignment)
    file.version, file.padded_end = version, padded_end
    with GgufModel(file.write(tmp_path / "in.gguf")) as source:
        assert identity(source, tmp_path / "out.gguf") == file.build()


@pytest.mark.parametrize("file", [moe(), Gguf(), Gguf([("k", u32(1))]), Gguf([("k", string("x"))])])
@pytest.mark.parametrize("end", [b"", b"\0", bytes(77), b"signature" * 9])
def test_nothing_changed_whatever_the_end_of_the_file(
    tmp_path: Path, file: Gguf, end: bytes
) -> None:
    data = file.build() + end
    path = tmp_path / "in.gguf"
    path.write_bytes(data)
    with GgufModel(path) as source:
        assert identity(source, tmp_path / "out.gguf") == data


def test_nothing_changed_without_padding_after_a_header_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    path.write_bytes(Gguf([("k", u32(1))]).header())
    with GgufModel(path) as source:
        assert identity(source, tmp_path / "out.gguf") == path.read_bytes()


def test_nothing_changed_with_padding_that_is_not_zeros(tmp_path: Path) -> None:
    file = moe()
    head = file.header()
    data = bytearray(file.build())
    start = len(head) + (-len(head) % 32)
    data[len(head) : start] = b"\xaa" * (start - len(head))
    first = len(file.tensors[0].data)
    assert len(head) % 32
    assert first % 32 == 0
    norm = start + first + len(file.tensors[1].data)
    data[norm : norm + 4] = b"\xbb" * 4
    path = tmp_path / "in.gguf"
    path.write_bytes(data)
    with GgufModel(path) as source:
        assert identity(source, tmp_path / "out.gguf") == data


def package_file(path: Path, alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "qwen3moe")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint32("qwen3moe.expert_count", 4)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "x" * 300])
    for index, shape in enumerate([(4, 3, 5), (7,), (4, 2, 33), (3,)]):
        count = int(np.prod(shape))
        writer.add_tensor(f"t{index}", np.arange(count, dtype=np.float32).reshape(shape))
    writer.add_tensor("half", np.arange(11, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 32, 64])
def test_nothing_changed_in_a_file_of_the_gguf_package(
    tmp_path: Path, alignment: int | None
) -> None:
    path = package_file(tmp_path / "in.gguf", alignment)
    with GgufModel(path) as source:
        assert identity(source, tmp_path / "out.gguf") == path.read_bytes()


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, bytes]]]:
    """Keys and tensors as the gguf package sees them."""
    reader = gguf.GGUFReader(path)
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    tensors = {
        t.name: (t.shape.tolist(), int(t.tensor_type), t.data.tobytes()) for t in reader.tensors
    }
    return keys, tensors


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    source_path = package_file(tmp_path / "in.gguf", 64)
    keys, tensors = contents(source_path)
    edits = KeyEdits(
        {
            "qwen3moe.expert_count": TypedValue(U32, 2),
            "new.list": TypedValue(ValueType.ARRAY, [1.5, 2.5], ValueType.FLOAT32),
            "new.text": TypedValue(ValueType.STRING, "é"),
        }
    )
    out = tmp_path / "out.gguf"
    with GgufModel(source_path) as source, edited(source, out, edits):
        pass
    new = {"qwen3moe.expert_count": 2, "new.list": [1.5, 2.5], "new.text": "é"}
    assert contents(out) == ({**keys, **new}, tensors)


@pytest.mark.parametrize("padded_end", [True, False])
def test_the_gguf_package_reads_slices(tmp_path: Path, padded_end: bool) -> None:
    model = moe(experts=5, width=3)
    model.padded_end = padded_end
    # The package does not read empty arrays or strings that are not UTF-8.
    model.keys = [pair for pair in model.keys if not str(pair[0]).startswith("tokenizer")]
    path, out = model.write(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    keep = [0, 2, 3]
    with GgufModel(path) as source:
        write_files(lay_out(out, source, KeyEdits(), sliced(source, 5, keep)), source)
    keys, tensors = contents(path)
    found_keys, found = contents(out)
    assert found_keys == keys
    assert list(found) == list(tensors)
    for name, (shape, kind, data) in tensors.items():
        if "exps" in name or "gate_inp" in name:
            size = len(data) // 5
            data = b"".join(data[e * size : (e + 1) * size] for e in keep)
            shape = [*shape[:-1], 3]
        assert found[name] == (shape, kind, data)


def test_edits_in_place_removed_and_added(tmp_path: Path) -> None:
    file = moe()
    edits = KeyEdits(
        {
            "general.name": TypedValue(ValueType.STRING, "a much longer name than before"),
            "added": TypedValue(ValueType.UINT16, 5),
            "tokenizer.ggml.scores": TypedValue(ValueType.ARRAY, [7], ValueType.INT64),
        },
        frozenset({"qwen3moe.block_count", "not there"}),
    )
    expected = moe()
    expected.keys = [
        (k, v) for k, v in expected.keys if k != "qwen3moe.block_count"
    ]  # fmt: skip
    expected.keys[1] = ("general.name", string("a much longer name than before"))
    expected.keys[-1] = ("tokenizer.ggml.scores", numbers(11, [7]))
    expected.keys.append(("added", scalar(U16, 5)))
    out = tmp_path / "out.gguf"
    with GgufModel(file.write(tmp_path / "in.gguf")) as source, edited(source, out, edits):
        assert out.read_bytes() == expected.build()


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (TypedValue(ValueType.BOOL, True), scalar(7, True)),
        (TypedValue(ValueType.FLOAT32, 0.1), scalar(F32, 0.1)),
        (TypedValue(ValueType.INT32, -5), scalar(I32, -5)),
        (TypedValue(ValueType.STRING, "a\udcffé"), string(b"a\xff" + "é".encode())),
        (TypedValue(ValueType.ARRAY, [-1, 2]), numbers(I32, [-1, 2])),
    ],
)
def test_typed_values(value: TypedValue, encoded: Any) -> None:
    assert value.encode() == encoded.type.to_bytes(4, "little") + encoded.data


def test_the_alignment_cannot_be_edited(tmp_path: Path) -> None:
    with GgufModel(moe().write(tmp_path / "in.gguf")) as source:
        for edits in (
            KeyEdits({"general.alignment": TypedValue(U32, 64)}),
            KeyEdits(removed=frozenset({"general.alignment"})),
        ):
            with pytest.raises(InputError, match="alignment"):
                lay_out(tmp_path / "out.gguf", source, edits, [])


def test_slices_hold_the_bytes_of_the_kept_experts(tmp_path: Path) -> None:
    file = moe(experts=8, width=5)
    keep = [1, 2, 3, 6]
    expected = moe(experts=8, width=5)
    expected.tensors = [
        TensorSpec(t.name, (*t.shape[:-1], 4), t.type, _experts(t.data, 8, keep))
        if "exps" in str(t.name) or "gate_inp" in str(t.name)
        else t
        for t in file.tensors
    ]
    out = tmp_path / "out.gguf"
    with GgufModel(file.write(tmp_path / "in.gguf")) as source:
        write_files(lay_out(out, source, KeyEdits(), sliced(source, 8, keep)), source)
    assert out.read_bytes() == expected.build()


def _experts(data: bytes, count: int, keep: list[int]) -> bytes:
    size = len(data) // count
    return b"".join(data[e * size : (e + 1) * size] for e in keep)


def test_large_ranges_and_progress(tmp_path: Path, copying: None) -> None:
    """Ranges above and below the size that goes through memory, whatever method copies them."""
    data = noise(3_000_000)
    file = Gguf([], [TensorSpec("a", (3000, 250), 0, data), f32_tensor("b", (7,))])
    out = tmp_path / "out.gguf"
    lengths = [300_000, 1200, 700_000, 1, 262_144, 262_143]
    ranges, at = [], 0
    for length in lengths:
        ranges.append((at, length))
        at += length + 1000
    expected = b"".join(data[o : o + n] for o, n in ranges)
    written: list[int] = []
    with GgufModel(file.write(tmp_path / "in.gguf")) as source:
        base = source.tensors[0].offset
        parts = tuple(ByteRange(0, base + o, n) for o, n in ranges)
        tensor = OutputTensor("a", (sum(lengths),), 24, parts)
        files = lay_out(out, source, KeyEdits(), [tensor, whole(source.tensors[1])])
        write_files(files, source, progress=written.append)
        with GgufModel(out) as result:
            assert result.read(result.tensors[0]) == expected
            assert result.read(result.tensors[1]) == file.tensors[1].data
    assert sum(written) == files[0].size == out.stat().st_size


def _fails(code: int) -> Callable[..., int]:
    def method(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return method


@pytest.fixture(params=["kernel", "no copy_file_range", "buffer", "zeros", "missing"])
def copying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of copying, as on kernels and file systems that lack the better ones."""
    if request.param == "no copy_file_range":
        monkeypatch.setattr(os, "copy_file_range", _fails(errno.EXDEV), raising=False)
    elif request.param == "buffer":
        monkeypatch.setattr(os, "copy_file_range", _fails(errno.EINVAL), raising=False)
        monkeypatch.setattr(os, "sendfile", _fails(errno.EIO), raising=False)
    elif request.param == "zeros":  # Some kernels answer "nothing copied" for "cannot".
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    elif request.param == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.delattr(os, "sendfile", raising=False)


def test_a_source_that_ends_early(tmp_path: Path, copying: None) -> None:
    path = Gguf([], [TensorSpec("a", (1000, 750), 0, noise(3_000_000))]).write(tmp_path / "in.gguf")
    with GgufModel(path) as source:
        files = lay_out(tmp_path / "out.gguf", source, KeyEdits(), [*map(whole, source.tensors)])
        os.truncate(path, 2_000_000)
        with pytest.raises(FormatError, match="shorter") as caught:
            write_files(files, source)
        assert str(path) in caught.value.message
    assert files_of(tmp_path) == ["in.gguf"]


def test_a_source_on_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Gguf([], [TensorSpec("a", (1000, 750), 0, noise(3_000_000))]).write(tmp_path / "in.gguf")
    with GgufModel(path) as source:
        files = lay_out(tmp_path / "out.gguf", source, KeyEdits(), [*map(whole, source.tensors)])
        for name in ("copy_file_range", "sendfile", "pread"):
            monkeypatch.setattr(os, name, _fails(errno.EIO), raising=False)
        with pytest.raises(InputError, match=r"in.gguf: cannot be read at byte .*Input/output"):
            write_files(files, source)
    assert files_of(tmp_path) == ["in.gguf"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = Gguf([], [TensorSpec("a", (1000, 750), 0, noise(3_000_000))]).write(tmp_path / "in.gguf")
    with GgufModel(path) as source:
        files = lay_out(tmp_path / "out.gguf", source, KeyEdits(), [*map(whole, source.tensors)])
        monkeypatch.setattr(os, "copy_file_range", _fails(code), raising=False)
        with pytest.raises(OutputError, match="disk is full"):
            write_files(files, source)
    assert files_of(tmp_path) == ["in.gguf"]


def test_joined() -> None:
    parts = [ByteRange(0, 0, 5), ByteRange(0, 5, 5), ByteRange(1, 10, 5), ByteRange(1, 14, 1)]
    assert joined(parts) == (ByteRange(0, 0, 10), ByteRange(1, 10, 5), ByteRange(1, 14, 1))
    assert joined([]) == ()


def test_an_unchanged_file_is_copied_in_few_pieces(tmp_path: Path) -> None:
    with GgufModel(moe().write(tmp_path / "in.gguf")) as source:
        (file,) = lay_out(tmp_path / "o.gguf", source, KeyEdits(), [*map(whole, source.tensors)])
        # The preamble, all pairs, tensor infos, all data.
        assert len(file.segments) == 4


# Where a result may go


def attempt(source: Path, target: Path, **options: Any) -> GgpruneError:
    with GgufModel(source) as model:
        files = lay_out(target, model, KeyEdits(), [*map(whole, model.tensors)])
        with pytest.raises(OutputError) as caught:
            write_files(files, model, **options)
    return caught.value


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
@pytest.mark.parametrize("force", [True, False])
def test_the_source_is_never_the_target(tmp_path: Path, link: str, force: bool) -> None:
    source = moe().write(tmp_path / "in.gguf")
    target = source if link == "itself" else tmp_path / "out.gguf"
    if link == "symlink":
        target.symlink_to(source)
    elif link == "hard link":
        target.hardlink_to(source)
    assert "is the source itself" in attempt(source, target, force=force).message
    assert source.read_bytes() == moe().build()
    assert not part_path(target).exists()


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_the_source_is_never_the_temporary_file(tmp_path: Path, link: str) -> None:
    source = tmp_path / ("out.gguf.part" if link == "itself" else "in.gguf")
    moe().write(source)
    if link == "symlink":
        (tmp_path / "out.gguf.part").symlink_to(source)
    elif link == "hard link":
        (tmp_path / "out.gguf.part").hardlink_to(source)
    error = attempt(source, tmp_path / "out.gguf", force=True)
    assert "out.gguf" in error.message
    assert source.read_bytes() == moe().build()
    assert not (tmp_path / "out.gguf").exists()


def test_a_temporary_name_that_is_another_name_of_a_file_of_the_user(tmp_path: Path) -> None:
    source = moe().write(tmp_path / "in.gguf")
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    (tmp_path / "out.gguf.part").hardlink_to(mine)
    with GgufModel(source) as model:
        identity(model, tmp_path / "out.gguf")
    assert mine.read_text() == "precious"
    assert files_of(tmp_path) == ["in.gguf", "mine.txt", "out.gguf"]


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
def test_something_strange_under_the_temporary_name(tmp_path: Path, kind: str) -> None:
    source = moe().write(tmp_path / "in.gguf")
    part = tmp_path / "out.gguf.part"
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    {
        "symlink": lambda: part.symlink_to(mine),
        "folder": part.mkdir,
        "fifo": lambda: os.mkfifo(part),
    }[kind]()
    assert "out.gguf" in attempt(source, tmp_path / "out.gguf").message
    assert mine.read_text() == "precious"
    assert not (tmp_path / "out.gguf").exists()


def test_an_existing_file(tmp_path: Path) -> None:
    source = moe().write(tmp_path / "in.gguf")
    target = tmp_path / "out.gguf"
    target.write_text("old")
    error = attempt(source, target)
    assert "exists" in error.message
    assert "force=True" in error.remedy
    assert target.read_text() == "old"
    with GgufModel(source) as model:
        write_files(
            lay_out(target, model, KeyEdits(), [*map(whole, model.tensors)]), model, force=True
        )
    assert target.read_bytes() == source.read_bytes()


def test_a_file_that_appears_while_writing(tmp_path: Path) -> None:
    source = moe().write(tmp_path / "in.gguf")
    target = tmp_path / "out.gguf"
    error = attempt(source, target, progress=lambda _: target.write_text("someone's"))
    assert "exists" in error.message
    assert target.read_text() == "someone's"
    assert files_of(tmp_path) == ["in.gguf", "out.gguf"]


def test_a_symlink_under_the_final_name_is_replaced_not_followed(tmp_path: Path) -> None:
    source = moe().write(tmp_path / "in.gguf")
    mine = tmp_path / "mine.gguf"
    mine.write_text("precious")
    target = tmp_path / "out.gguf"
    target.symlink_to(mine)
    assert "exists" in attempt(source, target).message
    with GgufModel(source) as model:
        files = lay_out(target, model, KeyEdits(), [*map(whole, model.tensors)])
        write_files(files, model, force=True)
    assert mine.read_text() == "precious"
    assert not target.is_symlink()


def test_a_dangling_symlink_under_the_final_name(tmp_path: Path) -> None:
    source = moe().write(tmp_path / "in.gguf")
    (tmp_path / "out.gguf").symlink_to(tmp_path / "nowhere")
    assert "exists" in attempt(source, tmp_path / "out.gguf").message


@pytest.mark.parametrize("force", [True, False])
def test_targets_that_cannot_be(tmp_path: Path, force: bool) -> None:
    source = moe().write(tmp_path / "in.gguf")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target, what in [
        (tmp_path / "missing" / "out.gguf", "does not exist"),
        (source / "out.gguf", "does not exist"),
        (tmp_path, "is a folder"),
        (fifo, "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / ("n" * 300), "File name too long"),
    ]:
        assert what in attempt(source, target, force=force).message


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = moe().write(tmp_path / "in.gguf")
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.geteuid() == 0:  # Root may write everywhere.
        really_open = os.open

        def denied(path: Any, flags: int, *rest: int) -> int:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "Permission denied")
            return really_open(path, flags, *rest)

        monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in attempt(source, folder / "out.gguf").message


@pytest.mark.process
def test_a_folder_that_really_is_immutable(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    chattr = shutil.which("chattr")
    if not chattr or subprocess.run([chattr, "+i", folder], capture_output=True).returncode:
        pytest.skip("needs chattr +i: root, on a file system that has it")
    try:
        message = attempt(moe().write(tmp_path / "in.gguf"), folder / "out.gguf").message
    finally:
        subprocess.run([chattr, "-i", folder], check=True)
    assert "cannot be written" in message
    assert files_of(folder) == []


def test_not_enough_room_is_noticed_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = moe().write(tmp_path / "in.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    error = attempt(source, tmp_path / "out.gguf", progress=lambda _: pytest.fail("wrote"))
    assert "1,000 are free" in error.message
    assert files_of(tmp_path) == ["in.gguf"]


def test_room_that_a_stale_part_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "out.gguf.part"
    stale.write_bytes(bytes(100_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    check_targets([tmp_path / "out.gguf"], 90_000)
    assert files_of(tmp_path) == []
    stale.touch()
    os.truncate(stale, 1 << 30)  # Sparse: it holds nothing.
    with pytest.raises(OutputError, match="are free"):
        check_targets([tmp_path / "out.gguf"], 90_000)


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_targets([tmp_path / "a.gguf", tmp_path / "b.gguf"], 100)
    assert files_of(tmp_path) == []


# Atomicity


def test_the_final_name_appears_only_complete(tmp_path: Path) -> None:
    source = Gguf([], [TensorSpec("a", (1000, 750), 0, noise(3_000_000))])
    target = tmp_path / "out.gguf"
    seen: list[bool] = []
    with GgufModel(source.write(tmp_path / "in.gguf")) as model:
        files = lay_out(target, model, KeyEdits(), [*map(whole, model.tensors)])
        write_files(files, model, progress=lambda _: seen.append(target.exists()))
    assert seen and not any(seen)
    assert files_of(tmp_path) == ["in.gguf", "out.gguf"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(_: int) -> None:
        raise error

    with GgufModel(moe().write(tmp_path / "in.gguf")) as model:
        files = lay_out(tmp_path / "o.gguf", model, KeyEdits(), [*map(whole, model.tensors)])
        with pytest.raises(error):
            write_files(files, model, progress=stop)
    assert files_of(tmp_path) == ["in.gguf"]


def test_everything_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave an empty file under the final name."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")
        fsync(descriptor)

    def note_replace(old: Any, new: Any) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with GgufModel(moe().write(tmp_path / "in.gguf")) as model:
        identity(model, tmp_path / "out.gguf")
    assert events == ["file", "rename", "folder"]
    events.clear()
    write_text(tmp_path / "plan.json", "{}")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_shards_appear_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls = 0
    replace = os.replace

    def sometimes(old: Any, new: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(old, new)

    with GgufModel(moe(layers=1).write(tmp_path / "in.gguf")) as model:
        files = lay_out(
            tmp_path / "o.gguf", model, KeyEdits(), [*map(whole, model.tensors)],
            split_max_size=3600,
        )  # fmt: skip
        assert len(files) == 3
        monkeypatch.setattr(os, "replace", sometimes)
        with pytest.raises(OutputError):
            write_files(files, model)
    assert files_of(tmp_path) == ["in.gguf"]


def test_an_old_first_shard_never_stands_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GgufModel(moe(layers=1).write(tmp_path / "in.gguf")) as model:
        files = lay_out(
            tmp_path / "o.gguf", model, KeyEdits(), [*map(whole, model.tensors)],
            split_max_size=3600,
        )  # fmt: skip
        for file in files:
            file.path.write_text("old")
        seen: list[bool] = []
        replace = os.replace

        def note(old: Any, new: Any) -> None:
            seen.append(files[0].path.exists())
            replace(old, new)

        monkeypatch.setattr(os, "replace", note)
        write_files(files, model, force=True)
    assert seen == [False] * 3


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_bytes() == "é".encode()
    assert files_of(tmp_path) == ["x.json"]
    for bad in (tmp_path / "missing" / "x.json", tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            write_text(bad, "")


def test_replacing_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with replacing(path) as part:
        part.write_text("first")
        with pytest.raises(OutputError, match="another ggprune"):
            write_text(path, "second")
    assert path.read_text() == "first"


def test_a_part_that_is_renamed_before_it_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that had it finished between our opening and our locking: its result must stay."""
    import fcntl

    result, other = tmp_path / "out.gguf", tmp_path / "out.gguf.part"
    other.write_bytes(b"complete")
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if other.exists() and other.stat().st_size:
            os.replace(other, result)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    check_targets([result], 10, force=True)
    assert result.read_bytes() == b"complete"


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", _fails(errno.ENOLCK))
    with GgufModel(moe().write(tmp_path / "in.gguf")) as model:
        assert identity(model, tmp_path / "out.gguf") == moe().build()


def test_random_order_of_tensors(tmp_path: Path) -> None:
    """Tensors may be left out and reordered; each keeps its bytes."""
    file = moe(width=3)
    order = random.Random(1).sample(range(len(file.tensors)), 7)
    expected = Gguf(file.keys, [file.tensors[i] for i in order])
    with GgufModel(file.write(tmp_path / "in.gguf")) as source:
        picked = [whole(source.tensors[i]) for i in order]
        write_files(lay_out(tmp_path / "o.gguf", source, KeyEdits(), picked), source)
    data = (tmp_path / "o.gguf").read_bytes()
    assert data == expected.build()
    assert counted("general.architecture") in data


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_what_fails_its_check_never_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool, links: bool
) -> None:
    source = package_file(tmp_path / "s.gguf")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    seen: list[dict[str, bytes]] = []

    def check(path: Path) -> None:
        with GgufModel(path) as complete:
            assert not target.exists() or target.read_text() == "old"
            seen.append({t.name: complete.read(t) for t in complete.tensors})
            if len(seen) == 1:
                raise ValueError("not right")

    with GgufModel(source) as model:
        tensors = [whole(t) for t in model.tensors]
        limit = max(padded(t.nbytes, 32) for t in tensors) + 1000 if split else None
        files = lay_out(tmp_path / "o.gguf", model, KeyEdits(), tensors, split_max_size=limit)
        assert (len(files) > 1) == split
        target = files[0].path
        target.write_text("old")
        with pytest.raises(ValueError, match="not right"):
            write_files(files, model, force=True, check=check)
        assert target.read_text() == "old"
        assert {p.name for p in tmp_path.iterdir()} == {"s.gguf", target.name}
        write_files(files, model, force=True, check=check)
    assert seen[0] == seen[1] and len(seen[0]) > 1
    with GgufModel(target) as written:
        assert {t.name: written.read(t) for t in written.tensors} == seen[1]
    assert {p.name for p in tmp_path.iterdir()} == {"s.gguf", *(file.path.name for file in files)}
