"""Killed, out of space, truncated, at once: the source stays, and no half-written result."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggprune.errors import FormatError, GgpruneError, OutputError
from ggprune.gguf_file import (
    ByteRange,
    GgufModel,
    KeyEdits,
    OutputFile,
    OutputTensor,
    joined,
    lay_out,
    write_files,
)
from tests.support.gguf_builder import Gguf, TensorSpec, f32_tensor, noise, u32

EXPERTS = 32
MEGABYTE = 1 << 20


def model(megabytes: int) -> Gguf:
    """Four tensors of experts with small ones between."""
    block = noise(MEGABYTE)
    tensors = []
    for layer in range(4):
        data = b"".join(block[i:] + block[:i] for i in range(layer, layer + megabytes // 4))
        shape = (len(data) // EXPERTS, EXPERTS)
        tensors += [f32_tensor(f"n{layer}", (9,)), TensorSpec(f"e{layer}", shape, 24, data)]
    return Gguf([("k", u32(1))], tensors)


def plan(source: GgufModel, target: Path, shard: int | None = None) -> tuple[OutputFile, ...]:
    """Keep three of four experts."""
    tensors = []
    for tensor in source.tensors:
        keep, size = range(9), 4
        if tensor.name.startswith("e"):
            keep, size = [e for e in range(EXPERTS) if e % 4], tensor.nbytes // EXPERTS
        ranges = joined(ByteRange(0, tensor.offset + e * size, size) for e in keep)
        shape = (*tensor.shape[:-1], len(keep))
        tensors.append(OutputTensor(tensor.name, shape, tensor.type, ranges))
    return lay_out(target, source, KeyEdits(), tensors, split_max_size=shard)


def prune(path: Path, target: Path, shard: int | None = None, **options: Any) -> list[Path]:
    with GgufModel(path) as source:
        files = plan(source, target, shard)
        write_files(files, source, **options)
        return [file.path for file in files]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def in_child(action: Callable[[], object]) -> int:
    """Start a forked child that does this; returns its process id."""
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    return process


@pytest.mark.process
@pytest.mark.parametrize("shard", [None, 20 * MEGABYTE])
def test_killed_at_any_moment(tmp_path: Path, shard: int | None) -> None:
    source, folder = tmp_path / "in.gguf", tmp_path / "out"
    model(64).write(source)
    before = digest(source)
    folder.mkdir()
    target = folder / "out.gguf"
    start = time.perf_counter()
    paths = prune(source, target, shard)
    duration = time.perf_counter() - start
    whole = {path.name: digest(path) for path in paths}
    rng = random.Random(1)
    caught = partial = 0
    for _ in range(50):
        process = in_child(lambda: prune(source, target, shard, force=True))
        time.sleep(rng.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        caught += os.WIFSIGNALED(status)
        partial += any(name.endswith(".part") for name in files_of(folder))
        for name in files_of(folder):
            assert name in whole or name.removesuffix(".part") in whole
            if name in whole:
                assert digest(folder / name) == whole[name]
        for path in paths:
            path.unlink(missing_ok=True)
    assert digest(source) == before
    # Otherwise nothing was tested.
    assert caught > 10
    assert partial > 5
    prune(source, target, shard)
    assert {path.name: digest(path) for path in folder.iterdir()} == whole


@pytest.mark.process
def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    source, target = model(4).write(tmp_path / "in.gguf"), tmp_path / "out.gguf"

    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _, status = os.waitpid(in_child(lambda: prune(source, target, progress=die)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert files_of(tmp_path) == {"in.gguf", "out.gguf.part"}
    prune(source, target)
    assert files_of(tmp_path) == {"in.gguf", "out.gguf"}
    with GgufModel(target) as result:
        assert len(result.tensors) == 8


@pytest.mark.process
def test_a_file_larger_than_ulimit(tmp_path: Path) -> None:
    source, target = model(8).write(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    before = digest(source)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MEGABYTE, 3 * MEGABYTE))
        with pytest.raises(OutputError, match="larger than the system"):
            prune(source, target)

    _, status = os.waitpid(in_child(limited), 0)
    assert status == 0
    assert files_of(tmp_path) == {"in.gguf"}
    assert digest(source) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Four megabytes of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not mount or not umount:
        pytest.skip("needs mount")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run([umount, str(folder)], check=True)


@pytest.mark.process
@pytest.mark.parametrize("shard", [None, 2 * MEGABYTE])
def test_a_full_disk(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, shard: int | None
) -> None:
    source, target = model(8).write(tmp_path / "in.gguf"), small_disk / "out.gguf"
    before = digest(source)
    with pytest.raises(OutputError, match="are free"):
        prune(source, target, shard)
    # Someone else takes the room after it was checked.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
    with pytest.raises(OutputError, match="disk is full"):
        prune(source, target, shard)
    assert files_of(small_disk) == set()
    assert digest(source) == before


@pytest.mark.process
def test_from_one_file_system_to_another(tmp_path: Path, small_disk: Path) -> None:
    source = model(4).write(tmp_path / "in.gguf")
    (there,) = prune(source, small_disk / "out.gguf")
    (here,) = prune(source, tmp_path / "out.gguf")
    assert digest(there) == digest(here)


@pytest.mark.parametrize("left", [0, 100, 2 * MEGABYTE])
def test_a_source_that_shrinks_while_it_is_read(tmp_path: Path, left: int) -> None:
    path, target = model(32).write(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    with pytest.raises(FormatError, match="shorter") as caught:
        prune(path, target, progress=lambda _: os.truncate(path, left))
    assert str(path) in caught.value.message
    assert files_of(tmp_path) == {"in.gguf"}


def refusal(source: Path, target: Path, shard: int | None, force: bool) -> str:
    with pytest.raises(GgpruneError) as caught:
        prune(source, target, shard, force=force)
    return caught.value.message


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("shard", [None, 2 * MEGABYTE])
def test_a_second_writer_at_any_moment(tmp_path: Path, shard: int | None, force: bool) -> None:
    """It is refused, and the first one's result is complete."""
    path, folder = model(8).write(tmp_path / "in.gguf"), tmp_path / "out"
    folder.mkdir()
    expected = [digest(each) for each in prune(path, folder / "first.gguf", shard)]
    refusals: list[str] = []

    def second(_: int) -> None:
        refusals.append(refusal(path, folder / "out.gguf", shard, force))

    paths = prune(path, folder / "out.gguf", shard, progress=second)
    assert len(refusals) > 1
    assert all("another ggprune is writing" in each for each in refusals)
    assert [digest(each) for each in paths] == expected
    assert not [name for name in files_of(folder) if name.endswith(".part")]


@pytest.mark.parametrize("shard", [None, 2 * MEGABYTE])
def test_a_second_writer_just_before_the_first_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int | None
) -> None:
    path, folder = model(8).write(tmp_path / "in.gguf"), tmp_path / "out"
    folder.mkdir()
    expected = [digest(each) for each in prune(path, folder / "first.gguf", shard)]
    replace, refusals = os.replace, []

    def late(old: Any, new: Any) -> None:
        monkeypatch.setattr(os, "replace", replace)
        refusals.append(refusal(path, folder / "out.gguf", shard, True))
        replace(old, new)

    monkeypatch.setattr(os, "replace", late)
    paths = prune(path, folder / "out.gguf", shard)
    assert ["another ggprune is writing" in each for each in refusals] == [True]
    assert [digest(each) for each in paths] == expected


@pytest.mark.process
def test_a_second_process(tmp_path: Path) -> None:
    path, target = model(8).write(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    (other,) = prune(path, tmp_path / "other.gguf")
    started, go_on = os.pipe(), os.pipe()

    def wait(_: int) -> None:
        os.write(started[1], b"x")
        os.read(go_on[0], 1)

    first = in_child(lambda: prune(path, target, progress=wait))
    os.read(started[0], 1)
    assert "another ggprune is writing" in refusal(path, target, None, False)
    os.write(go_on[1], b"x" * 1000)
    assert os.waitpid(first, 0)[1] == 0
    assert digest(target) == digest(other)
    assert files_of(tmp_path) == {"in.gguf", "other.gguf", "out.gguf"}
    for descriptor in (*started, *go_on):
        os.close(descriptor)


def test_writing_that_fails_half_way_through_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(8).write(tmp_path / "in.gguf")
    calls, fsync = 0, os.fsync

    def sometimes(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sometimes)
    with pytest.raises(OutputError, match="Input/output error"):
        prune(path, tmp_path / "out.gguf", 2 * MEGABYTE)
    assert files_of(tmp_path) == {"in.gguf"}
