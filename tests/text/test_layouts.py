"""The layouts that people publish text in, each row by hand; none is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ggprune.errors import InputError
from ggprune.text.documents import Document
from ggprune.text.load import load_texts

CALL = {"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"at": "Köln"}'}}


def turns(document: Document) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in document.messages]


def load(path: Path) -> list[Document]:
    (source,) = load_texts([("mine", str(path))])
    return list(source.documents)


def read(tmp_path: Path, *rows: Any) -> list[Document]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(path)


HI = [("user", "hi"), ("assistant", "hello")]
SYSTEM = ("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi", "completion": "hello"}, HI),
        ({"prompt": "hi", "response": "hello", "id": 3, "source": "web"}, HI),
        ({"prompt": "hi"}, HI[:1]),
        ({"prompt": "hi", "completion": None, "category": "chat"}, HI[:1]),
        ({"instruction": "hi", "input": "", "output": "hello"}, HI),
        ({"instruction": "hi", "output": "hello", "text": "### Instruction: hi"}, HI),
        (
            {"instruction": "Add.", "input": "2, 3", "output": "5"},
            [("user", "Add.\n\n2, 3"), ("assistant", "5")],
        ),
        (
            {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada."},
            [("user", "Who?\n\nAda wrote it."), ("assistant", "Ada.")],
        ),
        ({"question": "hi", "answer": "hello"}, HI),
        (
            {"system_prompt": "Be brief.", "question": "hi", "response": "hello"},
            [SYSTEM, *HI],
        ),
        (
            {"context": "It rains.", "question": "Wet?", "answer": "Yes."},
            [("user", "It rains.\n\nWet?"), ("assistant", "Yes.")],
        ),
        ({"problem": "hi", "solution": "hello", "level": 3}, HI),
        ({"problem": "hi", "answer": "hello"}, HI),
        ({"prompt": None, "instruction": "hi", "output": "hello"}, HI),
        ({"messages": [], "question": "hi", "answer": "hello"}, HI),
        ({"query": "hi", "response": "hello"}, HI),
        ({"input": "hi", "output": "hello"}, HI),
        (
            {"system": "Be brief.", "context": "It rains.", "input": "Wet?", "output": "Yes."},
            [SYSTEM, ("user", "It rains.\n\nWet?"), ("assistant", "Yes.")],
        ),
        (
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "hi"},
                ],
                "completion": [{"role": "assistant", "content": "hello"}],
            },
            [SYSTEM, *HI],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                ]
            },
            HI,
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [
                    {"from": "human", "value": "hi", "weight": None},
                    {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "sun"},
                    {"from": "gpt", "value": "hello"},
                ],
            },
            [SYSTEM, HI[0], ("assistant", "{}"), ("tool", "sun"), HI[1]],
        ),
        ({"conversations": [{"role": "user", "content": "hi"}]}, HI[:1]),
        ({"messages": json.dumps([{"role": "user", "content": "hi"}]), "prompt": "hi"}, HI[:1]),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "content": "sun", "tool_call_id": "1"},
                    {"role": "assistant", "content": "hello", "tool_calls": None},
                ]
            },
            [
                HI[0],
                ("assistant", json.dumps(CALL["function"], ensure_ascii=False)),
                ("tool", "sun"),
                HI[1],
            ],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "x.png"}},
                            {"type": "text", "text": "What"},
                            "is it?",
                        ],
                    },
                    {"role": "assistant", "content": ""},
                ]
            },
            [("user", "What\nis it?")],
        ),
        (
            {
                "messages": [
                    {"role": "Human", "content": "hi"},
                    {"role": "model", "content": "hello"},
                ]
            },
            HI,
        ),
    ],
    ids=str,
)
def test_each_layout(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    (document,) = read(tmp_path, row)
    assert turns(document) == expected
    assert document.text == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"txt": "x", "n": 3}, "its keys are 'txt', 'n'"),
        ({"content": "x"}, "its keys are 'content'"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "beside 'chosen', 'rejected'"),
        ({"prompt": "def f():", "canonical_solution": "pass"}, "beside 'canonical_solution'"),
        ({"question": "x", "answers": {"text": ["a"]}}, "beside 'answers'"),
        ({"prompt": "x", "title": "t", "label": "a"}, "beside 'label'"),
        ({"prompt": "x", "completion": "a", "response": "b"}, "which answers"),
        ({"prompt": "", "completion": "a"}, "'prompt' is empty"),
        ({"problem": "x", "solution": "a", "answer": "b"}, "which answers"),
        ({"text": 3}, "text is 3, expected text"),
        ({"text": math.nan}, "text is NaN, expected text"),
        ({"text": {"en": "x"}}, 'text is {"en": "x"}, expected text'),
        ({"prompt": math.nan, "completion": "x"}, "prompt is NaN, expected text"),
        ({"prompt": "x", "completion": math.nan}, "completion is NaN, expected text"),
        ({"question": "x", "answer": 5}, "answer is 5, expected text"),
        ({"input": "x"}, "its keys are 'input'"),
        ({"problem": "p", "input": "x", "output": "y"}, "beside 'output'"),
        ({"instruction": "", "input": "x", "output": "y"}, "'instruction' is empty"),
        ({"prompt": {"a": 1}, "completion": "x"}, "turns are not a list"),
        ({"messages": "hello"}, "not JSON"),
        ({"messages": {"role": "user"}}, 'messages is {"role": "user"}, expected a list of turns'),
        ({"messages": ["hi"]}, '"role" and "content"'),
        ({"messages": [{"role": "king", "content": "x"}]}, "Roles: system, user"),
        ({"messages": [{"role": "user", "content": 7}]}, '"role" and "content"'),
        ({"messages": [{"role": "user", "content": [7]}]}, "no part of a turn"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            "no part of a turn",
        ),
        ({"conversations": [{"from": "human", "text": "x"}]}, '"from" and "value"'),
        ({"conversations": [["human", "x"]]}, '"from" and "value"'),
        (["a"], "expected an object"),
        ("a", "expected an object"),
        (None, "expected an object"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, {"text": "ok"}, row)
    everything = f"{caught.value.message}\n{caught.value.remedy}"
    assert said in everything
    assert "rows.jsonl line 2: " in caught.value.message
    if "keys" in said or "beside" in said:
        assert '"instruction" with "input" and "output"' in caught.value.remedy


def test_empty_rows_are_skipped_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    rows = ({"text": "ok"}, {"text": ""}, {"prompt": " ", "completion": None}, {"messages": []}, {})
    documents = read(tmp_path, *rows, {"text": None}, {"text": "more"})
    assert [document.text for document in documents] == ["ok", "more"]
    assert caplog.messages == [
        f"{tmp_path / 'rows.jsonl'}: 5 empty rows skipped (line 2, line 3, line 4, line 5, line 6)"
    ]
    with pytest.raises(InputError, match=r"rows\.jsonl: is empty: no row has any text"):
        read(tmp_path, {"text": ""})


def test_text_that_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ggprune")
    row = {"prompt": "hi", "completion": "hello", "thoughts": "hm", "id": "x", "tools": [{}]}
    assert turns(read(tmp_path, row, row)[1]) == HI
    assert caplog.messages == [f"{tmp_path / 'rows.jsonl'}: not used: 'thoughts', 'tools'"]


def test_what_turns_leave_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ggprune")
    said = [{"type": "text", "text": "hello"}, {"type": "image", "path": "x.png"}]
    turn = {"role": "assistant", "content": said, "reasoning_content": "hm", "name": "bot"}
    asked = {"role": "user", "content": "hi"}
    assert turns(read(tmp_path, {"messages": [asked, turn]})[0]) == HI
    assert caplog.messages == [
        f"{tmp_path / 'rows.jsonl'}: not used: 'image of turns', 'reasoning_content of turns'"
    ]


def test_text_beside_empty_turns_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, {"messages": [], "text": "hello"})[0].text == "hello"


@pytest.mark.parametrize(
    ("name", "content", "message", "remedy"),
    [
        ("a.csv", b"prompt,completion\nhi,hello, you\n", "row 1: has more cells", "double quotes"),
        ("a.csv", b"prompt,completion\nhi," + b"x" * 200_000, "a.csv: field larger", ""),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00\xff", "is not UTF-8", "compressed"),
        ("a.txt", "hé".encode("utf-16"), "is not UTF-8", "iconv -f utf-16"),
        ("a.txt", "hé".encode("latin1"), "is not UTF-8", "iconv -f latin1"),
        ("a.json", b"[]", "a.json: is an empty JSON array", '"text"; "messages"'),
        ("a.json", b'["a", "b"]', 'row 1: expected an object, found "a"', '"text"; "messages"'),
        ("a.jsonl", b"[" * 100_000, "line 1: invalid JSON", ""),
        ("a.json", b'{"messages": ' + b"[" * 100_000, "line 1: invalid JSON", ""),
    ],
    ids=str,
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, message: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / name)
    assert remedy in caught.value.remedy


ROWS = [
    {"instruction": "hi", "input": "", "output": "hello"},
    {"instruction": "hi", "output": "hello"},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=2)),
        ("a.json", "\n".join(map(json.dumps, ROWS))),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, ROWS))),
        ("a.NDJSON", "\n".join(map(json.dumps, ROWS))),
        ("a.csv", "\ufeffinstruction,output\r\nhi,hello\r\nhi,hello\r\n"),
        ("a.tsv", "instruction\toutput\nhi\thello\nhi\thello\n"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_files_of_rows(tmp_path: Path, name: str, content: str, in_folder: bool) -> None:
    path = tmp_path / "texts" / name
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8", newline="")
    documents = load(path.parent if in_folder else path)
    assert [turns(document) for document in documents] == [HI, HI]


def test_one_object_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert turns(load(path)[0]) == HI
    path.write_text(json.dumps({"data": ROWS}))
    for named in (path, tmp_path):
        with pytest.raises(InputError, match="its keys are 'data'"):
            load(named)


def test_source_files_in_a_folder_stay_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ggprune")
    contents = {
        "package.json": '{"name": "x", "files": ["a"]}',
        "tsconfig.json": "{ // comment\n}",
        "table.csv": "a,b\n1,2\n",
        "list.json": "[1, 2]",
        "rollup.json": '{"input": "src/index.js"}',
        "empty.json": "[]",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhi")
    (tmp_path / "old.txt").write_bytes(b"caf\xe9")
    texts = {Path(document.where).name: document.text for document in load(tmp_path)}
    assert texts == {**contents, "bom.txt": "hi"}
    assert caplog.messages == [f"{tmp_path}: 1 files are not UTF-8 text and left out: old.txt"]


def test_rows_of_an_unknown_layout_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"txt": "x"}]))
    with pytest.raises(InputError, match=r"a\.json row 1: .* 'txt'"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"a\.json row 2: expected an object"):
        (tmp_path / "a.json").write_text(json.dumps([{"text": "x"}, 3]))
        load(tmp_path)


def test_parquet_in_a_folder(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [{"prompt": "hi", "completion": "hello", "input": None}]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (document,) = load(tmp_path)
    assert turns(document) == HI


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_tools_of_a_conversation(tmp_path: Path, wrapped: bool, as_text: bool) -> None:
    function = {"name": "weather", "description": "of a city", "parameters": {}}
    tools: Any = [{"type": "function", "function": function} if wrapped else function]
    calls = '[{"name": "weather", "arguments": {"city": "Oslo"}}]'
    row = {"query": "Oslo?", "tools": json.dumps(tools) if as_text else tools, "answers": calls}
    (document,) = read(tmp_path, row)
    assert turns(document) == [("user", "Oslo?"), ("assistant", calls)]
    assert json.loads(document.tools) == [{"type": "function", "function": function}]
