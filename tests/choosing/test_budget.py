"""Budgets: each promise is kept, and the next count would break it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggprune.choosing import count as budgets
from ggprune.choosing.request import Budget
from ggprune.errors import InputError
from ggprune.gguf_file import write_files
from ggprune.llama.library import has_backend
from ggprune.model import ExpertCounts, MoeModel, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.rewrite import plan_rewrite, result_size
from tests.support.tiny import write_tiny

COUNTS = ExpertCounts(128, 8)
GROUPED = ExpertCounts(256, 8, groups=8, groups_used=4)


def test_keep_as_given() -> None:
    assert budgets.by_keep(Budget(keep=109), COUNTS) == 109


@pytest.mark.parametrize(("way", "expected"), [("down", 104), ("up", 112)])
def test_keep_rounded_to_a_multiple(way: str, expected: int) -> None:
    assert budgets.by_keep(Budget(keep=109, multiple_of=8, rounding=way), COUNTS) == expected


def test_keep_that_is_no_multiple_names_the_nearest() -> None:
    with pytest.raises(InputError, match="multiple of 8") as raised:
        budgets.by_keep(Budget(keep=109, multiple_of=8), COUNTS)
    assert "104 or 112" in raised.value.remedy


@pytest.mark.parametrize("keep", [7, 129, 100])
def test_impossible_counts_are_refused(keep: int) -> None:
    counts = GROUPED if keep == 100 else COUNTS
    with pytest.raises(InputError):
        budgets.by_keep(Budget(keep=keep), counts)


def test_groups_round_to_their_multiple() -> None:
    assert budgets.by_keep(Budget(keep=100, rounding="up"), GROUPED) == 104
    assert budgets.by_keep(Budget(keep=100, rounding="down"), GROUPED) == 96


@pytest.mark.parametrize(
    ("ratio", "keep"), [(0, 128), (0.2, 103), (0.25, 96), (0.5, 64), (0.9, 13), (0.99, 8)]
)
def test_ratio_drops_at_most_its_share(ratio: float, keep: int) -> None:
    assert budgets.by_ratio(Budget(ratio=ratio), COUNTS) == keep


@settings(deadline=None)
@given(st.floats(0, 0.99), st.integers(1, 32))
def test_ratio_is_the_fewest_that_drop_no_more(ratio: float, multiple: int) -> None:
    allowed = COUNTS.possible(multiple)
    keep = budgets.by_ratio(Budget(ratio=ratio, multiple_of=multiple), COUNTS)
    dropped = 1 - keep / 128
    assert keep in allowed
    assert dropped <= ratio + 1e-9 or keep == allowed[-1]
    fewer = [n for n in allowed if n < keep]
    assert not fewer or 1 - fewer[-1] / 128 > ratio - 1e-9


def test_exactly_one_rule() -> None:
    with pytest.raises(InputError, match="how many"):
        _ = Budget().rule
    with pytest.raises(InputError, match=r"keep=3, ratio=0\.5"):
        _ = Budget(keep=3, ratio=0.5).rule
    assert Budget(retain=0.9).rule == "retain"


def test_fewest_is_minimal() -> None:
    asked = Budget(retain=0.9)
    assert budgets.fewest(asked, COUNTS, lambda n: n >= 77) == 77
    assert budgets.fewest(Budget(retain=0.9, multiple_of=10), COUNTS, lambda n: n >= 77) == 80
    with pytest.raises(InputError, match=r"retain=0\.9"):
        budgets.fewest(asked, COUNTS, lambda _: False)


def test_most_is_maximal() -> None:
    assert budgets.most(Budget(), COUNTS, lambda n: n * 10, 777, "target_size=1") == 77
    assert budgets.most(Budget(), COUNTS, lambda n: n * 10, 770, "target_size=1") == 77
    assert budgets.most(Budget(rounding="up"), COUNTS, lambda n: n * 10, 777, "x") == 78
    assert budgets.most(Budget(), COUNTS, lambda n: n * 10, 10**9, "x") == 128
    with pytest.raises(InputError, match="80 bytes"):
        budgets.most(Budget(), COUNTS, lambda n: n * 10, 79, "target_size=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoeModel:
    path = tmp_path_factory.mktemp("size") / "m.gguf"
    return open_model(write_tiny(path, "qwen3moe", experts=32))


def test_target_size_is_within_one_expert(model: MoeModel, tmp_path: Path) -> None:
    limit = model.gguf.size * 2 // 3

    def size(keep: int) -> int:
        return result_size(model, keep)

    keep = budgets.most(Budget(), model.counts, size, limit, "target_size=1")
    plan = Plan(keep, {layer: LayerPlan(tuple(range(keep))) for layer in model.moe_layers})
    written = plan_rewrite(model, plan, tmp_path / "out.gguf")
    write_files(written.files, model.gguf)
    on_disk = (tmp_path / "out.gguf").stat().st_size
    # The key that names the method and the hash may differ by some bytes from the estimate.
    assert on_disk == pytest.approx(size(keep), abs=64)
    assert on_disk <= limit < on_disk + model.expert_bytes // model.experts + 64


def test_file_size_of_groups_and_mtp(tmp_path: Path) -> None:
    grouped = open_model(write_tiny(tmp_path / "g.gguf", "bailingmoe2"))
    sizes = [result_size(grouped, keep) for keep in grouped.counts.possible()]
    assert sizes == sorted(sizes)
    assert sizes[-1] == grouped.gguf.size


@pytest.mark.parametrize(
    ("keep", "used", "said"),
    [
        (109, None, ["with 109 experts CUDA's fused top-k is not used", "64 or 128"]),
        (64, None, []),
        (128, None, []),
        (64, 7, ["with 7 experts a token CUDA reads prompts by a general kernel", "6 or 8"]),
        (64, 6, []),
        (8, None, ["exactly 8 experts as Mixtral"]),
    ],
)
def test_counts_that_are_slower_on_cuda(
    keep: int, used: int | None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(keep, {}, experts_used=used)
    monkeypatch.setattr(budgets, "has_backend", lambda *names: "cuda" in names)
    notes = budgets.notes_on(plan, COUNTS)
    assert len(notes) == bool(said)
    assert all(part in notes[0] for part in said)
    monkeypatch.setattr(budgets, "has_backend", lambda *_: False)
    assert budgets.notes_on(plan, COUNTS) == [n for n in notes if "Mixtral" in n]


def test_a_model_without_fused_top_k_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "has_backend", lambda *_: True)
    assert budgets.notes_on(Plan(50, {}), ExpertCounts(60, 4)) == []
    assert budgets.notes_on(Plan(288, {}), ExpertCounts(512, 8)) == []
    assert budgets.notes_on(Plan(200, {}), GROUPED) == []


def test_backends_are_known_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    (tmp_path / "libggml-cpu.so").touch()
    assert has_backend("cpu") and not has_backend("cuda", "hip")
    (tmp_path / "ggml-cuda.dll").touch()
    assert has_backend("cuda", "hip")
