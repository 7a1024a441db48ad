"""Calibration mixes by name, against a local Hub."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ggprune.cli.values import named_path
from ggprune.errors import InputError
from ggprune.text.load import load_texts
from ggprune.text.recipe_table import RECIPES, Part, Recipe
from ggprune.text.recipes import load_recipe
from tests.support.hub_server import HubServer


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


# The tables


def test_the_published_counts() -> None:
    seed, reap = RECIPES["seed-mix"], RECIPES["reap-agentic"]
    # The card's total, and 4,096 of each of six sources.
    assert (len(seed.parts), seed.count) == (12, 22_000)
    assert (len(reap.parts), reap.count) == (6, 24_576)


@pytest.mark.parametrize("name", RECIPES)
def test_parts_do_not_overlap(name: str) -> None:
    taken: dict[tuple[str, str, str], list[range]] = {}
    for part in RECIPES[name].parts:
        key = (part.dataset, part.subset, part.split)
        rows = range(part.skip, part.skip + part.count)
        for other in taken.setdefault(key, []):
            assert max(rows.start, other.start) >= min(rows.stop, other.stop)
        taken[key].append(rows)


SAMPLES: dict[str, dict[str, Any]] = {
    "theblackcat102/evol-codealpaca-v1": {"instruction": "Sort.", "output": "sorted()"},
    "open-r1/Mixture-of-Thoughts": {
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    },
    "Salesforce/xlam-function-calling-60k": {
        "tools": '[{"name": "f"}]',
        "query": "Call f.",
        "answers": '[{"name": "f", "arguments": {}}]',
    },
    "SWE-bench/SWE-smith-trajectories": {
        "messages": json.dumps(
            [
                {"role": "system", "content": "Fix."},
                {"role": "user", "content": [{"type": "text", "text": "A bug."}]},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "bash", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "done"},
            ]
        )
    },
    "qiaojin/PubMedQA": {
        "question": "Does it?",
        "context": {"contexts": ["One.", "Two."]},
        "long_answer": "It does.",
        "final_decision": "yes",
    },
    "derek-thomas/ScienceQA": {
        "question": "Which?",
        "choices": ["this", "that"],
        "answer": 1,
        "hint": "",
        "solution": "That one.",
    },
    "openai/gsm8k": {"question": "2*3?", "answer": "#### 6"},
    "HuggingFaceH4/MATH-500": {"problem": "x=1", "solution": "1"},
    "evalplus/humanevalplus": {"prompt": "def f():", "canonical_solution": " pass"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_part_reads_its_fields(name: str) -> None:
    for part in RECIPES[name].parts:
        sample = SAMPLES[part.dataset]
        assert set(part.fields) == set(sample)
        turns = list(part.form(sample))
        assert turns[-1].role in ("assistant", "tool")
        assert all(turn.content.strip() for turn in turns)


def test_what_the_special_forms_say() -> None:
    forms = {part.dataset: part.form for part in RECIPES["seed-mix"].parts}

    def said(dataset: str) -> list[tuple[str, str]]:
        return [(turn.role, turn.content) for turn in forms[dataset](SAMPLES[dataset])]

    assert said("derek-thomas/ScienceQA") == [
        ("user", "Which?\nA. this\nB. that"),
        ("assistant", "That one.\n\nAnswer: B"),
    ]
    assert said("qiaojin/PubMedQA") == [
        ("user", "One.\nTwo.\n\nDoes it?"),
        ("assistant", "It does.\n\nAnswer: yes"),
    ]
    assert said("SWE-bench/SWE-smith-trajectories") == [
        ("system", "Fix."),
        ("user", "A bug."),
        ("assistant", '{"name": "bash", "arguments": "{}"}'),
        ("tool", "done"),
    ]


# Loading


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of two parts of one data set and a third of another."""
    form = RECIPES["reap-agentic"].parts[0].form
    fields = ("instruction", "output")
    parts = (
        Part("code", "o/a", "train", 4, fields, form),
        Part("more", "o/a", "train", 3, fields, form, skip=4),
        Part("sub", "o/b", "test", 2, fields, form, subset="x"),
    )
    monkeypatch.setitem(RECIPES, "tiny", Recipe("Tiny", "here", "A note.", parts))


def rows(count: int, mark: str = "") -> list[dict[str, Any]]:
    return [{"instruction": f"{mark}{n}", "output": "o", "other": n} for n in range(count)]


def test_load_from_json_lines(
    hub: HubServer, two_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    hub.add("o/a", {"train.jsonl": jsonl(rows(20)), "test.jsonl": b"{}"}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5, "b"))}, kind="dataset")
    sources = load_recipe("@tiny")
    assert [(source.domain, len(source.documents)) for source in sources] == [
        ("code", 4),
        ("more", 3),
        ("sub", 2),
    ]
    asked = [d.messages[0].content for source in sources[:2] for d in source.documents]
    assert len(set(asked)) == 7 and set(asked) <= {str(n) for n in range(20)}
    assert sources[2].documents[0].where.startswith("o/b[x](test) row ")
    assert "A note." in caplog.messages[0]
    assert load_recipe("@tiny") == sources


def test_a_number_of_rows(hub: HubServer, two_parts: None) -> None:
    hub.add("o/a", {"train.jsonl": jsonl(rows(20))}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    sources = load_recipe("@tiny:5")
    assert [len(source.documents) for source in sources] == [2, 2, 1]


def test_empty_rows_are_skipped_with_a_note(
    hub: HubServer, two_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    empty = [{"instruction": "", "output": " ", "other": 0}]
    hub.add("o/a", {"train.jsonl": jsonl(empty * 7)}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    sources = load_recipe("@tiny")
    assert [len(source.documents) for source in sources] == [0, 0, 2]
    assert "o/a(train): 4 empty rows skipped" in caplog.messages


def test_a_broken_line_is_named(hub: HubServer, two_parts: None) -> None:
    hub.add("o/a", {"train.jsonl": jsonl(rows(20)) + b'{"instruction": '}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    with pytest.raises(InputError, match=r"o/a\(train\) line 21: invalid JSON"):
        load_recipe("@tiny")


def test_too_few_rows_are_noted(
    hub: HubServer, two_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    hub.add("o/a", {"train.jsonl": jsonl(rows(6))}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    sources = load_recipe("@tiny")
    assert len(sources[1].documents) == 2
    assert "o/a(train): has 2 of the 3 rows" in caplog.messages


def test_load_from_the_hubs_parquet(hub: HubServer, two_parts: None) -> None:
    hub.add("o/a", {"data.json": b"[]"}, kind="dataset")
    converted = {f"default/train/{n:04d}.parquet": parquet_bytes(rows(5, f"{n}.")) for n in (0, 1)}
    hub.add("o/a", converted, kind="dataset", branch="refs/convert/parquet")
    hub.add("o/b", {"x/test-00000-of-00001.parquet": parquet_bytes(rows(9))}, kind="dataset")
    hub.add("o/b", {}, kind="dataset", branch="elsewhere")
    sources = load_recipe("@tiny")
    assert [len(source.documents) for source in sources] == [4, 3, 2]
    asked = {d.messages[0].content for source in sources[:2] for d in source.documents}
    assert len(asked) == 7
    assert {text[0] for text in asked} == {"0", "1"}


def test_only_as_many_files_as_needed(hub: HubServer, two_parts: None) -> None:
    files = {f"train-{n}.jsonl": jsonl(rows(10)) for n in range(5)}
    hub.add("o/a", files, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    load_recipe("@tiny")
    assert hub.count("GET", r"/o/a/resolve/") == 1


def test_a_changed_data_set_is_named(hub: HubServer, two_parts: None) -> None:
    hub.add("o/a", {"train.jsonl": jsonl([{"question": "?"}] * 9)}, kind="dataset")
    with pytest.raises(InputError, match=r"o/a\(train\) row \d+: is not as expected"):
        load_recipe("@tiny")
    hub.add("o/a", {"train.jsonl": b""}, kind="dataset")
    del hub.repositories["dataset", "o/a"].branches["main"]["train.jsonl"]
    with pytest.raises(InputError, match="no file of this split"):
        load_recipe("@tiny")


def test_unknown_recipes_list_the_known() -> None:
    for name in ("@nothing", "@reap-agentic:x", "@"):
        with pytest.raises(InputError) as caught:
            load_recipe(name)
        assert "@reap-agentic, @seed-mix" in caught.value.remedy


# As --text


def test_the_text_option(hub: HubServer, two_parts: None) -> None:
    hub.add("o/a", {"train.jsonl": jsonl(rows(20))}, kind="dataset")
    hub.add("o/b", {"x/test.jsonl": jsonl(rows(5))}, kind="dataset")
    hub.add("o/d", {"t.jsonl": b'{"text": "hello"}\n'}, kind="dataset")
    named = [named_path(text) for text in ("@tiny", "all=@tiny", "mine=hf://datasets/o/d/t.jsonl")]
    found = {source.domain: len(source.documents) for source in load_texts(named)}
    assert found == {"code": 4, "more": 3, "sub": 2, "all": 9, "mine": 1}


def test_parquet_as_text(hub: HubServer, tmp_path: Path) -> None:
    data = parquet_bytes([{"prompt": "Hi", "response": "Ho", "n": 1}, {"prompt": "A", "n": 2}])
    hub.add("o/d", {"t.parquet": data}, kind="dataset")
    (source,) = load_texts([("mine", "hf://datasets/o/d/t.parquet")])
    assert [len(document.messages) for document in source.documents] == [2, 1]
    assert source.documents[0].where.endswith("t.parquet row 0")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="is not a Parquet file"):
        load_texts([("mine", str(tmp_path / "bad.parquet"))])


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="needs pyarrow") as caught:
        load_texts([("mine", str(tmp_path / "t.parquet"))])
    assert caught.value.remedy == "pip install 'ggprune[parquet]'"
