"""Checkpoints: what is saved is what was done, and damage is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.calibration.checkpoint import SEQUENCES, Checkpoint, Chunk
from ggprune.calibration.statistics import FIELDS, Domain, ExpertSums, Statistics
from ggprune.errors import InputError, MismatchError
from ggprune.model import Identity

IDENTITY = Identity("qwen3moe", 2, 4, 2, tokenizer="t", router="r", name="Model")


def ones(group: Sequence[Chunk]) -> ExpertSums:
    sums = ExpertSums.zeros(2, 4)
    for name in FIELDS:
        getattr(sums, name)[:] = 1
    sums.tokens[:] = sum(len(chunk.tokens) for chunk in group)
    return sums


def checkpoint(*chunks: Chunk, capacity: int = 8) -> Checkpoint:
    domains = tuple(Domain(name, 0, name, ExpertSums.zeros(2, 4)) for name in ("a", "b"))
    return Checkpoint(Statistics(IDENTITY, (0, 1), domains, {"ctx": 8}), chunks, 0, capacity)


MIXED = (
    Chunk(0, (1, 2, 3)),
    Chunk(1, (4,)),
    Chunk(0, (5, 6, 7, 8)),
    Chunk(0, (9, 10)),
    Chunk(1, (11,)),
)


def test_groups_are_of_one_domain_and_fit() -> None:
    found = checkpoint(*MIXED).groups
    assert [[chunk.tokens for chunk in group] for group in found] == [
        [(1, 2, 3), (5, 6, 7, 8)],
        [(9, 10)],
        [(4,), (11,)],
    ]
    many = checkpoint(*[Chunk(0, (1,))] * (SEQUENCES + 1), capacity=1000).groups
    assert [len(group) for group in many] == [SEQUENCES, 1]


def test_saved_and_loaded(tmp_path: Path) -> None:
    state = checkpoint(*MIXED, Chunk(1, (12,), stream=3))
    state.answer({5: [13, 14]})
    assert state.unanswered == [] and state.chunks[5].tokens == (12, 13, 14)
    state.finish(state.groups[0], ones(state.groups[0]))
    state.save(tmp_path / "c")
    again = Checkpoint.load(tmp_path / "c")
    assert again.chunks == state.chunks
    assert (again.done, again.capacity, again.tokens_done, again.tokens) == (1, 8, 7, 14)
    assert [d.tokens for d in again.statistics.domains] == [7, 0]
    assert (again.statistics.domains[0].sums.count == 1).all()
    assert not again.is_complete
    for group in again.groups[1:]:
        again.finish(group, ones(group))
    assert again.is_complete


def test_prompts_that_await_an_answer_are_kept(tmp_path: Path) -> None:
    state = checkpoint(Chunk(0, (1, 2), stream=0), Chunk(0, (3,)), Chunk(1, (4,), stream=7))
    state.save(tmp_path / "c")
    again = Checkpoint.load(tmp_path / "c")
    assert again.unanswered == [0, 2] and again.chunks[2].stream == 7


def test_sums_and_progress_change_at_once() -> None:
    """Whatever was read before is a whole state: an interrupt may come between any two lines."""
    state = checkpoint(*MIXED)
    before = state.statistics
    state.finish(state.groups[0], ones(state.groups[0]))
    assert (before.total.count == 0).all() and before.domains[0].tokens == 0


@pytest.mark.parametrize("part", ["sums", "tokens", "progress", "metadata"])
def test_one_flipped_bit_is_recognised(tmp_path: Path, part: str) -> None:
    state = checkpoint(*MIXED)
    state.finish(state.groups[0], ones(state.groups[0]))
    path = tmp_path / "c"
    state.save(path)
    content = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    offsets = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    places = {
        "sums": offsets["domain.0.norm_sum"] + 3,
        "tokens": offsets["checkpoint.tokens"] + 1,
        "progress": offsets["checkpoint.progress"],
        "metadata": content.index(b'"ctx": 8') + 7,
    }
    content[places[part]] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a sound checkpoint") as caught:
        Checkpoint.load(path)
    assert f"Remove {path}" in caught.value.remedy


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint(*MIXED).save(path)
    whole = path.read_bytes()
    for size in (0, 10, 100, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a sound checkpoint"):
            Checkpoint.load(path)


def test_finished_statistics_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "s"
    checkpoint(*MIXED).statistics.save(path)
    with pytest.raises(InputError, match="not a sound checkpoint"):
        Checkpoint.load(path)


def test_what_differs_is_named() -> None:
    state = checkpoint(*MIXED)
    texts = {"a": "a", "b": "b"}
    state.check_same(IDENTITY, {"ctx": 8}, texts, "c")
    with pytest.raises(MismatchError, match="c: was made with ctx 8, now it is 16") as caught:
        state.check_same(IDENTITY, {"ctx": 16}, texts, "c")
    assert "remove c to start again" in caught.value.remedy
    with pytest.raises(MismatchError, match="shard not set, now it is 1/2"):
        state.check_same(IDENTITY, {"ctx": 8, "shard": "1/2"}, texts, "c")
    with pytest.raises(MismatchError, match="the text of 'b' differs"):
        state.check_same(IDENTITY, {"ctx": 8}, {"a": "a", "b": "changed"}, "c")


def test_large_checkpoints_are_quick(tmp_path: Path) -> None:
    """A long run has millions of tokens; each minute they are written."""
    tokens = tuple(np.random.default_rng(0).integers(0, 10**5, 2000).tolist())
    state = checkpoint(*[Chunk(0, tokens)] * 100, capacity=2000)
    state.save(tmp_path / "c")
    assert Checkpoint.load(tmp_path / "c").chunks == state.chunks
