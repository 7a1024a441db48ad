"""Checkpoints: what is saved is what was done, and damage is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggprune.calibration.checkpoint import Checkpoint
from ggprune.calibration.resume import Keeper, check_same_run
from ggprune.calibration.sequences import SEQUENCES, TokenSequence
from ggprune.calibration.statistics import FIELDS, Domain, ExpertSums, Statistics
from ggprune.errors import InputError, LlamaError, MismatchError
from ggprune.model import Identity

IDENTITY = Identity("qwen3moe", 2, 4, 2, tokenizer="t", router="r", name="Model")


def ones(group: Sequence[TokenSequence]) -> ExpertSums:
    sums = ExpertSums.zeros(2, 4)
    for name in FIELDS:
        getattr(sums, name)[:] = 1
    sums.tokens[:] = sum(len(each.tokens) for each in group)
    return sums


def sequence(domain: int, tokens: Sequence[int], *, stream: int | None = None) -> TokenSequence:
    return TokenSequence(domain, np.array(tokens, np.int32), stream)


def checkpoint(*sequences: TokenSequence, capacity: int = 8) -> Checkpoint:
    domains = tuple(Domain(name, 0, name, ExpertSums.zeros(2, 4)) for name in ("a", "b"))
    return Checkpoint(Statistics(IDENTITY, (0, 1), domains, {"ctx": 8}), sequences, capacity)


def written(state: Checkpoint) -> list[tuple[int, list[int], int | None]]:
    return [(each.domain, each.tokens.tolist(), each.stream) for each in state.sequences]


MIXED = (
    sequence(0, (1, 2, 3)),
    sequence(1, (4,)),
    sequence(0, (5, 6, 7, 8)),
    sequence(0, (9, 10)),
    sequence(1, (11,)),
)


def test_groups_are_of_one_domain_and_fit() -> None:
    found = checkpoint(*MIXED).groups
    assert [[tuple(each.tokens) for each in group] for group in found] == [
        [(1, 2, 3), (5, 6, 7, 8)],
        [(9, 10)],
        [(4,), (11,)],
    ]
    many = checkpoint(*[sequence(0, (1,))] * (SEQUENCES + 1), capacity=1000).groups
    assert [len(group) for group in many] == [SEQUENCES, 1]


def test_saved_and_loaded(tmp_path: Path) -> None:
    state = checkpoint(*MIXED, sequence(1, (12,), stream=3))
    state.answer({5: [13, 14]})
    assert state.unanswered == [] and written(state)[5] == (1, [12, 13, 14], None)
    state.finish(state.groups[0], ones(state.groups[0]))
    state.save(tmp_path / "c")
    again = Checkpoint.load(tmp_path / "c")
    assert written(again) == written(state)
    assert (again.done, again.capacity, again.tokens_done, again.tokens) == (1, 8, 7, 14)
    assert [d.tokens for d in again.statistics.domains] == [7, 0]
    assert (again.statistics.domains[0].sums.count == 1).all()
    assert not again.is_complete
    for group in again.groups[1:]:
        again.finish(group, ones(group))
    assert again.is_complete


def test_prompts_that_await_an_answer_are_kept(tmp_path: Path) -> None:
    state = checkpoint(
        sequence(0, (1, 2), stream=0), sequence(0, (3,)), sequence(1, (4,), stream=7)
    )
    state.save(tmp_path / "c")
    again = Checkpoint.load(tmp_path / "c")
    assert again.unanswered == [0, 2] and again.sequences[2].stream == 7


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
    statistics = checkpoint(*MIXED).statistics
    texts = {"a": "a", "b": "b"}

    def check(settings: dict[str, str | int], texts: dict[str, str]) -> None:
        check_same_run(statistics, IDENTITY, settings, texts, "c")

    check({"ctx": 8}, texts)
    with pytest.raises(MismatchError, match="c: was made with ctx 8, now it is 16") as caught:
        check({"ctx": 16}, texts)
    assert "remove c to start again" in caught.value.remedy
    with pytest.raises(MismatchError, match="shard not set, now it is 1/2"):
        check({"ctx": 8, "shard": "1/2"}, texts)
    with pytest.raises(MismatchError, match="the text of 'b' differs"):
        check({"ctx": 8}, {"a": "a", "b": "changed"})


@pytest.mark.llama
def test_what_is_kept_before_the_first_token_is_not_called_gathered(tmp_path: Path) -> None:
    state = checkpoint(*MIXED)
    for done in (False, True):
        if done:
            state.finish(state.groups[0], ones(state.groups[0]))
        with pytest.raises(LlamaError) as caught, Keeper(tmp_path / "p", 60).keeping(state):
            raise LlamaError("no")
        assert ("(7 tokens) is kept in" in caught.value.remedy) is done
        assert "(0 tokens)" not in caught.value.remedy
        assert "is kept in" in caught.value.remedy


def test_a_group_counts_only_if_every_layer_saw_every_token() -> None:
    state = checkpoint(*MIXED)
    sums = ones(state.groups[0])
    sums.tokens[1] = 6
    with pytest.raises(LlamaError, match="observed for 6 of 7 tokens"):
        state.finish(state.groups[0], sums)
    assert state.tokens_done == 0
    state.finish(state.groups[0], ones(state.groups[0]))
    with pytest.raises(LlamaError, match="observed for 7 of 11 tokens"):
        state.check_complete()


def test_large_checkpoints_are_quick(tmp_path: Path) -> None:
    """A long run has millions of tokens; each minute they are written."""
    tokens = tuple(np.random.default_rng(0).integers(0, 10**5, 2000).tolist())
    state = checkpoint(*[sequence(0, tokens)] * 100, capacity=2000)
    state.save(tmp_path / "c")
    assert written(Checkpoint.load(tmp_path / "c")) == written(state)
