"""Tasks and their checks: what counts as the right answer, and a command that checks."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ggprune.errors import InputError
from ggprune.text.answers import calls_of, final_answer, opened_thinking
from ggprune.text.documents import Message
from ggprune.text.tasks import Command, Task, is_same, read_tasks

CALL = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'


def tasks_of(folder: Path, *rows: Any, command: Command | None = None) -> list[Task]:
    path = folder / "math.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_tasks(str(path), command)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("So it is 42.", "She has 6 * 7 = <<6*7=42>>42 left.\n#### 42", True),
        ("So it is 41.", "#### 42", False),
        ("That makes $42.", "42", True),
        ("42.0", "42", True),
        ("42.5", "42", False),
        ("1,000", "1000", True),
        ("She pays $1,000.", "#### 1,000", True),
        ("It is 1000 in all", "1,000.00", True),
        ("10,00", "1000", False),
        ("-7", "\u22127", True),
        ("10-7", "-7", False),
        ("Losses of -$5.", "-5", True),
        ("about 30%", "30", True),
        ("It is 42", "$42.", True),
        ("30", "30%", True),
        ("The answer is 8, since 3 of 11 are gone.", "8", True),
        ("The answer is 8, since 3 of 11 are gone.", "11", False),
        ("**Answer:** 1,250 apples, 3 each", "1250", True),
        ("First 3, then \\boxed{12}, which is above 5.", "12", True),
        ("There are #### 5\n7 of them", "5", True),
        ("none", "5", False),
        ("\\boxed{\\frac{1}{2}}", "It is \\boxed{\\frac{1}{2}}.", True),
        ("Paris", "paris.", True),
        ("I think so.\n**Paris**", "Paris", True),
        ("The answer is (B).", "B", True),
        ("The answer is not B", "B", False),
        ("Paris is nice", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_same(answer: str, reference: str, same: bool) -> None:
    assert is_same(answer, reference) == same


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        ({"question": "6 * 7?", "answer": "6 * 7 = 42\n#### 42"}, "42", "43"),
        ({"question": "6 * 7?", "answer": 42}, "It is 42.0", "It is 4"),
        ({"problem": "6 * 7?", "solution": "so 6 * 7 is \\boxed{42}"}, "42", "6"),
        ({"problem": "6 * 7?", "solution": "long, with 3 and 4", "answer": "42"}, "42", "4"),
        ({"prompt": "a year?", "pattern": r"\b(19|20)\d\d\b"}, "in 1999", "in 99"),
        ({"text": "a year?", "regex": "^1", "more": "ignored"}, "1", "0"),
        ({"prompt": "weather?", "completion": CALL}, CALL, CALL.replace("2", "3")),
    ],
)
def test_rows(tmp_path: Path, row: dict[str, Any], right: str, wrong: str) -> None:
    (task,) = tasks_of(tmp_path, row)
    assert [message.role for message in task.document.messages] == ["user"]
    assert (task.check(right), task.check(wrong)) == (True, False)


def test_classes(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "1"}
    tasks = tasks_of(tmp_path, row, {**row, "class": "sums"}, {**row, "domain": "more"})
    assert [task.domain for task in tasks] == ["math", "sums", "more"]


def test_a_conversation_with_tools_is_asked_for_its_last_call(tmp_path: Path) -> None:
    called = {"function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 2}'}}
    turns = [
        {"role": "system", "content": "Call weather(city, days)."},
        {"role": "user", "content": "Oslo, two days?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It will rain."},
    ]
    (task,) = tasks_of(tmp_path, {"messages": turns})
    assert task.document.messages == (
        Message("system", "Call weather(city, days)."),
        Message("user", "Oslo, two days?"),
    )
    other = '{"name": "weather", "arguments": {"days": 2, "city": "Oslo"}}'
    tagged = f"Of course.\n<tool_call>\n{other}\n</tool_call>"
    assert task.check(tagged) and task.check(CALL) and task.check(f"```json\n{CALL}\n```")
    assert not task.check(f"{CALL}\n{CALL}") and not task.check("It will rain.")
    assert not task.check(CALL.replace("weather", "forecast"))


def test_calls() -> None:
    assert calls_of(CALL) == [("weather", {"city": "Oslo", "days": 2})]
    assert calls_of(f'[TOOL_CALLS][{CALL}, {{"name": "g", "parameters": {{}}}}]') == [
        ("weather", {"city": "Oslo", "days": 2}),
        ("g", {}),
    ]
    assert calls_of('{"name": "Ann", "age": 3}') == calls_of("no call") == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("<think>is it 41?</think>\n\n42", "42"),
        ("is it 41?</think>42", "42"),
        ("<think>is it 41", ""),
        ("<|channel>thought\n41<channel|>42", "42"),
        ("<|channel|>analysis<|message|>41<|end|><|start|>assistant<|channel|>final<|message|>42",
         "42"),
    ],
)  # fmt: skip
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_thinking_that_the_prompt_begins() -> None:
    assert opened_thinking("…assistant\n<think>\n") == "<think>\n"
    assert opened_thinking("…<think>\n\n</think>\n\n") == opened_thinking("…assistant\n") == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?"}, "line 1: has nothing to check an answer by"),
        ({"question": "?", "choices": ["a", "b"], "answer": 1}, "has 'choices', which no layout"),
        ({"question": "?", "pattern": "("}, "'\\(' is no regular expression"),
        ({"question": "", "answer": "1"}, "line 1: has no question"),
        ({"q": "?"}, "has none of the known layouts"),
        ("?", "line 1: is not an object"),
    ],
)
def test_what_is_no_task(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tasks_of(tmp_path, row)
    (tmp_path / "plain.txt").write_text("a text")
    with pytest.raises(InputError, match="is no file of rows"):
        read_tasks(str(tmp_path / "plain.txt"))


SCHEMA = {"type": "object", "required": ["year"], "properties": {"year": {"type": "integer"}}}


def test_a_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonschema")
    for given in (SCHEMA, json.dumps(SCHEMA)):
        (task,) = tasks_of(tmp_path, {"prompt": "a year as JSON?", "schema": given})
        assert task.check('```json\n{"year": 1999}\n```')
        assert not task.check('{"year": "1999"}') and not task.check("1999, {")
    with pytest.raises(InputError, match="line 1: its JSON schema cannot be used: 'x' is not"):
        tasks_of(tmp_path, {"prompt": "?", "schema": {"type": "x"}})
    (task,) = tasks_of(tmp_path, {"prompt": "?", "schema": {"$ref": "http://127.0.0.1:9/s"}})
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", fetched.append)
    with pytest.raises(InputError, match="cannot be used: Unresolvable"):
        task.check("{}")
    assert fetched == []


def test_a_schema_without_jsonschema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema.validators", None)
    with pytest.raises(InputError, match="needs jsonschema") as caught:
        tasks_of(tmp_path, {"prompt": "?", "schema": SCHEMA})
    assert caught.value.remedy == "pip install 'ggprune[schema]'"


def python(code: str, seconds: float = 20.0) -> Command:
    return Command((sys.executable, "-c", code), seconds)


@pytest.mark.process
def test_a_command_gets_the_answer_and_the_task(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; task = json.load(open(os.environ['GGPRUNE_TASK']));"
        "sys.exit(sys.stdin.read() != task['canonical_solution'])"
    )
    rows = [{"prompt": "def f():", "canonical_solution": "pass é", "test": "f()"}]
    (task,) = tasks_of(tmp_path, *rows, command=python(code))
    assert task.document.messages == (Message("user", "def f():"),)
    assert task.check("pass é") and not task.check("return")


@pytest.mark.process
def test_a_command_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    (task,) = tasks_of(tmp_path, {"prompt": "?"}, command=python(code, 1.0))
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        task.check("x")
    assert time.monotonic() - started < 2.5
    time.sleep(4 - (time.monotonic() - started))
    assert not late.exists()


@pytest.mark.process
def test_there_is_no_shell(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = Command((sys.executable, "-c", "import sys; sys.exit(len(sys.argv) != 4)",
                       ";", "touch", str(made)))  # fmt: skip
    (task,) = tasks_of(tmp_path, {"prompt": "?"}, command=command)
    assert task.check("$(touch x); `touch y`") and not made.exists()
    with pytest.raises(InputError, match="check=no-such-program: there is no such program"):
        Command(("no-such-program",))
