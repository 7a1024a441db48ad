"""Merging: exact, order-independent, and nothing counted twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ggprune.calibration.merge import merge, missing_shards
from ggprune.calibration.statistics import FIELDS, Domain, ExpertSums, Statistics
from ggprune.cli.merge import command
from ggprune.errors import InputError, MismatchError
from ggprune.model import Identity

IDENTITY = Identity("qwen3moe", 2, 4, 2, tokenizer="t", router="r", name="Model")
LAYERS, EXPERTS = 2, 4


def sums(seed: int) -> ExpertSums:
    random = np.random.default_rng(seed)
    shape = (LAYERS, EXPERTS)
    # Sizes that float addition rounds differently in every order.
    floats = [random.uniform(0, 1, shape) * 10.0 ** random.integers(-9, 9, shape) for _ in range(5)]
    return ExpertSums(
        random.integers(0, 100, LAYERS, np.int64), random.integers(0, 100, shape, np.int64), *floats
    )


def part(seed: int, *texts: tuple[str, str], **settings: str | int) -> Statistics:
    domains = [Domain(name, 10, sha, sums(seed + i)) for i, (name, sha) in enumerate(texts)]
    return Statistics(IDENTITY, (0, 1), tuple(domains), {"ctx": 2048, **settings})


def shards(count: int) -> list[tuple[str, Statistics]]:
    texts = (("code", "c1"), ("math", "m1"))
    return [(f"part-{i}", part(100 * i, *texts, shard=f"{i}/{count}")) for i in range(1, count + 1)]


def assert_equal(one: Statistics, other: Statistics) -> None:
    assert (one.identity, one.layers, dict(one.settings)) == (
        other.identity,
        other.layers,
        dict(other.settings),
    )
    for mine, theirs in zip(one.domains, other.domains, strict=True):
        assert (mine.name, mine.tokens, mine.sha256) == (theirs.name, theirs.tokens, theirs.sha256)
        for name in FIELDS:
            assert np.array_equal(getattr(mine.sums, name), getattr(theirs.sums, name)), name


def test_every_order_gives_the_same_bits() -> None:
    parts = shards(4)
    first = merge(parts)
    for order in itertools.permutations(parts):
        assert_equal(merge(order), first)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True))
def test_sums_are_exact(seeds: list[int]) -> None:
    """Compared with fractions, which do not round."""
    parts = [(str(seed), part(seed, ("code", f"text {seed}"))) for seed in seeds]
    merged = merge(parts).domains[0].sums
    for name in FIELDS:
        arrays = [getattr(p.domains[0].sums, name) for _, p in parts]
        for index in np.ndindex(arrays[0].shape):
            values = [Fraction(array[index].item()) for array in arrays]
            wanted = max(values) if name == "norm_max" else sum(values)
            assert getattr(merged, name)[index].item() == float(wanted)


def test_all_shards_are_a_whole_run() -> None:
    merged = merge(shards(3))
    assert dict(merged.settings) == {"ctx": 2048} and missing_shards(merged) == []
    assert [(d.name, d.tokens, d.sha256) for d in merged.domains] == [
        ("code", 30, "c1"),
        ("math", 30, "m1"),
    ]


def test_some_shards_say_which() -> None:
    parts = shards(6)
    some = merge([parts[0], parts[2], parts[3]])
    assert some.settings["shard"] == "1,3-4/6" and missing_shards(some) == [2, 5, 6]
    whole = merge([("some", some), parts[1], parts[4], parts[5]])
    assert dict(whole.settings) == {"ctx": 2048}
    with pytest.raises(InputError, match="some and part-3 both hold shard 3/6"):
        merge([("some", some), parts[2]])


def test_the_same_part_twice() -> None:
    parts = shards(2)
    with pytest.raises(InputError, match="part-1 and copy both hold shard 1/2"):
        merge([*parts, ("copy", parts[0][1])])
    whole = ("a", part(1, ("code", "c1")))
    with pytest.raises(InputError, match="a and b both hold the same text"):
        merge([whole, ("b", whole[1])])
    with pytest.raises(InputError, match="a and b both hold the text of 'code'"):
        merge([whole, ("b", part(1, ("code", "c1"), ("math", "m1")))])


def test_runs_over_different_texts() -> None:
    merged = merge([("a", part(1, ("code", "c1"))), ("b", part(2, ("code", "c2"), ("math", "m")))])
    code, math = merged.domains
    assert (code.sha256, code.tokens, math.sha256) == ("c1+c2", 20, "m")
    with pytest.raises(InputError, match="ab and c both hold the text of 'code'"):
        merge([("ab", merged), ("c", part(3, ("code", "c2")))])
    other = merge([("a", part(1, ("code", "c1"))), ("b", part(2, ("math", "m"), ctx=512))])
    assert other.settings["ctx"] == "2048 | 512"


def test_parts_that_do_not_belong_together() -> None:
    parts = shards(2)
    name, second = parts[1]
    foreign = replace(second, identity=replace(IDENTITY, router="another"))
    with pytest.raises(MismatchError, match="part-1 and part-2 are not of one model: router"):
        merge([parts[0], (name, foreign)])
    with pytest.raises(MismatchError, match="cover different layers"):
        merge([parts[0], (name, replace(second, layers=(1, 2)))])
    with pytest.raises(MismatchError, match="made with ctx 2048 and 512"):
        merge([parts[0], (name, replace(second, settings={**second.settings, "ctx": 512}))])
    with pytest.raises(MismatchError, match="different divisions: of 2 and of 3"):
        merge([parts[0], shards(3)[1]])
    with pytest.raises(MismatchError, match="1 of 2 shards are missing"):
        merge([parts[0], ("other", part(5, ("prose", "p")))])
    with pytest.raises(InputError, match="nothing to merge"):
        merge([])
    with pytest.raises(InputError, match="its shard is 'x/2'"):
        merge([("bad", part(1, ("code", "c"), shard="x/2"))])


def test_the_command(tmp_path: Path) -> None:
    names = []
    for name, statistics in shards(3):
        statistics.save(tmp_path / f"{name}.gguf")
        names.append(str(tmp_path / f"{name}.gguf"))
    output = tmp_path / "stats.gguf"
    result = CliRunner().invoke(command, [*names[:2], "-o", str(output)], catch_exceptions=False)
    assert "still missing: shards 3" in result.output
    result = CliRunner().invoke(command, [*names, "-o", str(output), "--force"])
    assert result.exit_code == 0
    assert_equal(Statistics.load(output), merge(shards(3)))
