"""Models in several files, as llama-gguf-split makes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from ggprune.errors import FormatError, GgpruneError, InputError, OutputError
from ggprune.gguf_file import (
    GgufFile,
    GgufModel,
    KeyEdits,
    TypedValue,
    ValueType,
    lay_out,
    shard_name,
    stem_of,
    whole,
    write_files,
)
from tests.support.gguf_builder import (
    I32,
    U16,
    Gguf,
    Value,
    f32_tensor,
    moe,
    numbers,
    scalar,
    string,
    u32,
)


def split_keys(number: int, count: int, tensors: int) -> list[tuple[bytes | str, Value]]:
    """In the order that llama-gguf-split leaves them: the count is set last, at the end."""
    return [
        ("split.no", scalar(U16, number)),
        ("split.tensors.count", scalar(I32, tensors)),
        ("split.count", scalar(U16, count)),
    ]


def split_by_hand(model: Gguf, limit: int) -> list[bytes]:
    """Tensors in order, as many as fit into a file; pairs as llama-gguf-split writes them."""
    aligned = [pair for pair in model.keys if pair[0] == "general.alignment"]

    def build(number: int, count: int, group: list[Any]) -> bytes:
        keys = (model.keys if number == 0 else aligned) + split_keys(
            number, count, len(model.tensors)
        )
        return Gguf(keys, group, alignment=model.alignment).build()

    groups: list[list[Any]] = [[]]
    for tensor in model.tensors:
        if len(build(len(groups) - 1, 1, [*groups[-1], tensor])) > limit:
            groups.append([])
        groups[-1].append(tensor)
    return [build(number, len(groups), group) for number, group in enumerate(groups)]


def write_shards(folder: Path, model: Gguf, limit: int = 3000, prefix: str = "m") -> list[Path]:
    files = split_by_hand(model, limit)
    paths = [folder / shard_name(prefix, i, len(files)) for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


def refused(path: Path) -> GgpruneError:
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(GgpruneError) as caught:
        GgufModel(path)
    assert len(os.listdir("/dev/fd")) == descriptors
    assert caught.value.remedy
    return caught.value


def written(source: GgufModel, target: Path, edits: KeyEdits, limit: int | None) -> list[Path]:
    files = lay_out(
        target, source, edits, [*map(whole, source.tensors)], split_max_size=limit
    )  # fmt: skip
    write_files(files, source)
    return [file.path for file in files]


def test_names() -> None:
    assert shard_name("a-b", 0, 12) == "a-b-00001-of-00012.gguf"
    assert stem_of(Path("x/a-b-00001-of-00012.gguf")) == "a-b"
    assert stem_of(Path("x/a-b.gguf")) == "a-b"
    assert stem_of(Path("a-00001-of-00002-00003-of-00004.gguf")) == "a-00001-of-00002"
    arabic = "\u0661" * 5
    for odd in ("a-1-of-2.gguf", "a-00001-of-00002.gguf\n", f"a-{arabic}-of-00002.gguf"):
        assert stem_of(Path(odd)) == odd.removesuffix(".gguf")


def test_any_shard_opens_the_set(tmp_path: Path) -> None:
    model = moe()
    paths = write_shards(tmp_path, model)
    assert len(paths) > 3
    for path in paths:
        with GgufModel(path) as opened:
            assert opened.path == paths[0]
            assert opened.stem == "m"
            assert opened.size == sum(p.stat().st_size for p in paths)
            assert opened.get("general.name") == "Tiny 8x1M"
            assert [t.name for t in opened.tensors] == [t.name for t in model.tensors]
            for tensor, spec in zip(opened.tensors, model.tensors, strict=True):
                assert opened.read(tensor) == spec.data


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    paths[2].unlink()
    for path in (paths[0], paths[3]):
        error = refused(path)
        assert str(paths[2]) in error.message
        assert f"shard 3 of {len(paths)} is missing" in error.message


def test_a_doubled_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    shutil.copy(paths[1], paths[2])
    message = refused(paths[0]).message
    assert str(paths[2]) in message
    assert "says it is shard 2" in message


def test_a_shard_of_another_split_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    other = tmp_path / "other"
    other.mkdir()
    others = write_shards(other, moe(), limit=6000)
    shutil.copy(others[1], paths[1])
    message = refused(paths[0]).message
    assert str(paths[1]) in message
    assert f"of {len(others)}" in message


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    moe().write(paths[1])
    message = refused(paths[0]).message
    assert str(paths[1]) in message
    assert "does not say that it is a shard" in message


def test_a_shard_with_tensors_of_another_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    doubled = Gguf(split_keys(1, len(paths), 12), [f32_tensor("token_embd.weight", (8, 5))])
    doubled.write(paths[1])
    message = refused(paths[0]).message
    assert str(paths[1]) in message
    assert paths[0].name in message


def test_a_shard_of_another_model_is_noticed_by_the_number_of_tensors(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    stranger = Gguf(split_keys(1, len(paths), 12), [f32_tensor(f"x{i}", (8,)) for i in range(9)])
    stranger.write(paths[1])
    assert "belongs to another model" in refused(paths[0]).message


def test_renamed_shards_are_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    renamed = paths[0].rename(tmp_path / "model.gguf")
    error = refused(renamed)
    assert str(renamed) in error.message
    assert shard_name("NAME", 0, len(paths)) in error.remedy
    wrong = renamed.rename(tmp_path / "m-00001-of-00002.gguf")
    assert "not named like one" in refused(wrong).message


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    os.truncate(paths[2], 100)
    error = refused(paths[0])
    assert isinstance(error, FormatError)
    assert str(paths[2]) in error.message


def test_a_folder_in_place_of_a_shard(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    paths[1].unlink()
    paths[1].mkdir()
    assert isinstance(refused(paths[0]), InputError)


@pytest.mark.parametrize("key", ["split.no", "split.count", "split.tensors.count"])
@pytest.mark.parametrize("value", [string("2"), numbers(U16, [2]), scalar(6, 2.5)])
def test_split_keys_that_are_not_numbers(tmp_path: Path, key: str, value: Value) -> None:
    pairs = [(k, value if k == key else v) for k, v in split_keys(0, 2, 1)]
    path = Gguf(pairs, [f32_tensor("t", (8,))]).write(tmp_path / "m-00001-of-00002.gguf")
    Gguf(split_keys(1, 2, 1)).write(tmp_path / "m-00002-of-00002.gguf")
    assert key in refused(path).message


@pytest.mark.parametrize("count", [0, 1])
def test_one_shard_of_one_keeps_its_keys(tmp_path: Path, count: int) -> None:
    model = moe()
    model.keys += split_keys(0, count, len(model.tensors))
    with GgufModel(model.write(tmp_path / "m.gguf")) as source:
        (path,) = written(source, tmp_path / "o.gguf", KeyEdits(), None)
    assert path.read_bytes() == model.build()


@pytest.mark.parametrize("alignment", [32, 64])
def test_shards_are_joined_into_the_file_they_were_made_of(tmp_path: Path, alignment: int) -> None:
    model = moe(width=9)
    model.alignment = alignment
    if alignment != 32:
        model.keys.append(("general.alignment", u32(alignment)))
    paths = write_shards(tmp_path, model, limit=6000)
    assert len(paths) > 2
    with GgufModel(paths[1]) as source:
        (path,) = written(source, tmp_path / "joined.gguf", KeyEdits(), None)
    assert path.read_bytes() == model.build()


def test_shards_of_different_alignment_are_joined(tmp_path: Path) -> None:
    """Padding of one shard must not reach into its next tensor."""
    tensors = [f32_tensor(name, (9,), seed) for seed, name in enumerate("abcd")]
    first = Gguf([("general.alignment", u32(64)), *split_keys(0, 2, 4)], tensors[:2], alignment=64)
    second = Gguf(split_keys(1, 2, 4), tensors[2:])
    first.write(tmp_path / "m-00001-of-00002.gguf")
    second.write(tmp_path / "m-00002-of-00002.gguf")
    expected = Gguf([("general.alignment", u32(64))], tensors, alignment=64)
    with GgufModel(tmp_path / "m-00001-of-00002.gguf") as source:
        (path,) = written(source, tmp_path / "o.gguf", KeyEdits(), None)
    # How the source's last shard ended is kept: padded to 32.
    assert expected.build().startswith(path.read_bytes())
    with GgufModel(path) as result:
        assert [result.read(t) for t in result.tensors] == [t.data for t in tensors]


@pytest.mark.parametrize("alignment", [32, 64])
@pytest.mark.parametrize("limit", [2400, 6000, 12_000])
def test_output_shards_are_those_of_llama_gguf_split(
    tmp_path: Path, limit: int, alignment: int
) -> None:
    model = moe()
    model.alignment = alignment
    if alignment != 32:
        model.keys.append(("general.alignment", u32(alignment)))
    with GgufModel(model.write(tmp_path / "in.gguf")) as source:
        paths = written(source, tmp_path / "out.gguf", KeyEdits(), limit)
    expected = split_by_hand(model, limit)
    assert [path.name for path in paths] == [
        shard_name("out", i, len(expected)) for i in range(len(expected))
    ]
    assert [path.read_bytes() for path in paths] == expected
    with GgufModel(paths[-1]) as result:
        assert [result.read(t) for t in result.tensors] == [t.data for t in model.tensors]


def test_shards_again_into_other_shards(tmp_path: Path) -> None:
    model = moe()
    paths = write_shards(tmp_path, model, limit=3000)
    edits = KeyEdits({"new": TypedValue(ValueType.UINT32, 7)})
    model.keys.append(("new", u32(7)))
    with GgufModel(paths[0]) as source:
        out = written(source, tmp_path / "out.gguf", edits, 6000)
    assert [path.read_bytes() for path in out] == split_by_hand(model, 6000)


def test_edits_of_split_keys_do_not_get_in_the_way(tmp_path: Path) -> None:
    model = moe()
    edits = KeyEdits({"split.count": TypedValue(ValueType.UINT16, 9)})
    with GgufModel(model.write(tmp_path / "in.gguf")) as source:
        out = written(source, tmp_path / "out.gguf", edits, 6000)
    assert [path.read_bytes() for path in out] == split_by_hand(model, 6000)


def test_the_gguf_package_reads_shards(tmp_path: Path) -> None:
    model = moe()
    model.keys = [pair for pair in model.keys if not str(pair[0]).startswith("tokenizer")]
    with GgufModel(model.write(tmp_path / "in.gguf")) as source:
        paths = written(source, tmp_path / "out.gguf", KeyEdits(), 6000)
    found: dict[str, bytes] = {}
    for number, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        numbers_found = [
            reader.fields[key].contents()
            for key in ("split.no", "split.count", "split.tensors.count")
        ]
        assert numbers_found == [number, len(paths), len(model.tensors)]
        types = [reader.fields[key].types[0].name for key in ("split.no", "split.tensors.count")]
        assert types == ["UINT16", "INT32"]
        found |= {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    assert found == {tensor.name: tensor.data for tensor in model.tensors}


def test_limits_that_cannot_be(tmp_path: Path) -> None:
    with GgufModel(moe().write(tmp_path / "in.gguf")) as source:
        for limit in (0, 100):
            with pytest.raises(InputError, match="alone has"):
                lay_out(
                    tmp_path / "o.gguf", source, KeyEdits(), [*map(whole, source.tensors)],
                    split_max_size=limit,
                )  # fmt: skip


def test_more_shards_than_can_be_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggprune.gguf_file.layout._MAX_SHARDS", 3)
    with (
        GgufModel(moe().write(tmp_path / "in.gguf")) as source,
        pytest.raises(InputError, match="3 at most"),
    ):
        lay_out(
            tmp_path / "o.gguf", source, KeyEdits(), [*map(whole, source.tensors)],
            split_max_size=2400,
        )  # fmt: skip


def test_a_shard_of_the_source_is_never_a_target(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe(), limit=6000)
    before = [path.read_bytes() for path in paths]
    with GgufModel(paths[0]) as source:
        for target, limit in [(tmp_path / "m.gguf", 6000), (paths[1], None)]:
            with pytest.raises(OutputError, match="is the source itself"):
                files = lay_out(
                    target, source, KeyEdits(), [*map(whole, source.tensors)],
                    split_max_size=limit,
                )  # fmt: skip
                write_files(files, source, force=True)
    assert [path.read_bytes() for path in paths] == before


def test_a_shard_opened_alone_knows_its_number(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, moe())
    with GgufFile(paths[1], shard=1) as file:
        assert {tensor.shard for tensor in file.tensors} == {1}


def test_no_shard_exceeds_the_limit_header_included(tmp_path: Path) -> None:
    with GgufModel(moe().write(tmp_path / "in.gguf")) as source:
        tensors = [*map(whole, source.tensors)]
        for limit in range(2500, source.size + 100, 97):
            files = lay_out(tmp_path / "o.gguf", source, KeyEdits(), tensors, split_max_size=limit)
            assert max(file.size for file in files) <= limit
            assert (len(files) == 1) == (source.size <= limit)


@pytest.mark.llama
def test_metadata_may_fill_the_first_shard(tmp_path: Path) -> None:
    """llama.cpp takes a first shard without tensors (its own --no-tensor-first-split)."""
    from ggprune.llama.memory import check_loads
    from tests.support.tiny import write_tiny

    with GgufModel(write_tiny(tmp_path / "m.gguf", "qwen3moe")) as source:
        # A vocabulary so long that no tensor fits beside it.
        scores = TypedValue(ValueType.ARRAY, [0] * 30_000, ValueType.INT32)
        edits = KeyEdits({"ggprune.padding": scores})
        paths = written(source, tmp_path / "o.gguf", edits, 140_000)
    with GgufFile(paths[0]) as first:
        assert first.tensors == () and first.size > 120_000
    assert max(path.stat().st_size for path in paths) <= 140_000
    check_loads(paths[0])
    with GgufModel(paths[0]) as source:
        (whole_again,) = written(source, tmp_path / "w.gguf", KeyEdits(), None)
    check_loads(whole_again)
