"""Traces: what a model answers, which of it is kept, and a run that was broken off."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ggprune
from ggprune.calibration.generate import generate
from ggprune.cli import cli
from ggprune.errors import InputError, Interrupted, MismatchError, OutputError
from ggprune.evaluation.probe import measure, own_sampling
from ggprune.gguf_file import GgufModel
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaModel
from ggprune.text.load import load_texts
from tests.support.calibrating import Breaking
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

OPTIONS = RunOptions(threads=1, ubatch=64)
#: A model with random weights ends about half of its answers within so many tokens.
HOW: dict[str, Any] = {"max_tokens": 150, "parallel": 2, "options": OPTIONS}
QUESTIONS = [f"sun and rain {number}" for number in range(20)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf", "qwen3moe")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Odd questions ask for a letter e."""
    path = tmp_path / "letters.jsonl"
    rows = [
        {"question": question, "pattern": "e" if number % 2 else "", "answer": "x", "class": "odd"}
        if number % 2
        else {"question": question, "pattern": "(?s).*"}
        for number, question in enumerate(QUESTIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_of(path: Path) -> list[tuple[str, bool]]:
    """Text of each answer, generated in the same groups, and whether it ended."""
    found = []
    with GgufModel(path) as gguf, LlamaModel(path, OPTIONS) as llama:
        for at in range(0, len(QUESTIONS), 4):
            ids = generate(
                llama,
                [llama.tokenize(question) for question in QUESTIONS[at : at + 4]],
                max_tokens=HOW["max_tokens"],
                parallel=HOW["parallel"],
                sampling=own_sampling(gguf),
                streams=range(at, at + 4),
            )
            answers = [measure(llama, each) for each in ids]
            found += [(answer.text, answer.ended) for answer in answers]
    return found


def test_what_ends_and_passes_is_kept(path: Path, tasks: Path, tmp_path: Path) -> None:
    output = tmp_path / "traces.jsonl"
    found = ggprune.traces(path, tasks, output, **HOW)
    answers = answers_of(path)
    right = [
        number
        for number, (text, ended) in enumerate(answers)
        if ended and (number % 2 == 0 or "e" in text)
    ]
    assert 0 < len(right) < len(QUESTIONS)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == found["traces"]
    assert rows == [
        {
            "domain": "odd" if number % 2 else "letters",
            "messages": [
                {"role": "user", "content": QUESTIONS[number]},
                {"role": "assistant", "content": answers[number][0]},
            ],
        }
        for number in right
    ]
    for name, rest in (("letters", 0), ("odd", 1)):
        numbers = range(rest, len(QUESTIONS), 2)
        counts = found["classes"][name]
        unfinished = sum(not answers[number][1] for number in numbers)
        passed = sum(number in right for number in numbers)
        assert (counts["tasks"], counts["passed"], counts["unfinished"], counts["wrong"]) == (
            10, passed, unfinished, 10 - passed - unfinished
        )  # fmt: skip
    assert list(tmp_path.glob("*.partial")) == []
    (source,) = load_texts([("math", str(output))])
    assert len(source.documents) == len(right)
    assert not any(document.awaits_answer for document in source.documents)
    with pytest.raises(OutputError, match="exists"):
        ggprune.traces(path, tasks, output, **HOW)


def test_broken_off_and_continued(path: Path, tasks: Path, tmp_path: Path) -> None:
    whole = ggprune.traces(path, tasks, **HOW)
    output = tmp_path / "t.jsonl"
    with pytest.raises(Interrupted) as caught:
        ggprune.traces(path, tasks, output, **HOW, progress=Breaking(1000))
    assert caught.value.remedy.startswith(f"8 of 20 answers are kept in {output}.partial")
    assert not output.exists()
    with pytest.raises(MismatchError, match=r"t\.jsonl\.partial: was made with other sampling"):
        ggprune.traces(path, tasks, output, **HOW, seed=1)
    assert ggprune.traces(path, tasks, output, **HOW) == whole
    assert output.exists()


def test_nothing_is_written_if_nothing_passes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "sun?", "answer": "no such words"}\n')
    with pytest.raises(
        InputError, match=r"none of 1 answers passed: 1 (wrong|unfinished); the first: "
    ):
        ggprune.traces(path, tmp_path / "t.jsonl", tmp_path / "o.jsonl", **HOW)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.jsonl"]


def test_a_prompt_beyond_the_context(path: Path, tasks: Path) -> None:
    trained = 4096
    with GgufModel(path) as gguf:
        assert gguf.get("qwen3moe.context_length") <= trained
    with pytest.raises(InputError, match=r"none of 20 answers passed: 20 too long$"):
        ggprune.traces(path, tasks, **{**HOW, "max_tokens": trained})


def test_thinking_that_the_prompt_began_is_kept_and_not_checked(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(llama: LlamaModel, prompts: list[list[int]], **_: object) -> list[list[int]]:
        ids = llama.tokenize("41?</think>\n\n42", add_special=False, parse_special=True)
        return [[*ids, llama.eos]]

    monkeypatch.setattr("ggprune.evaluation.traces.generate", said)
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"question": "<think>\n", "pattern": "^42$", "tools": tools}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (trace,) = ggprune.traces(path, tmp_path / "t.jsonl", **HOW)["traces"]
    assert trace["tools"] == tools
    assert trace["messages"][-1]["content"] == "<think>\n 41?</think>\n\n42"


@pytest.mark.process
def test_the_command(path: Path, tasks: Path, tmp_path: Path) -> None:
    check = tmp_path / "check.py"
    check.write_text(
        "import json, os, sys, time\n"
        "task = json.load(open(os.environ['GGPRUNE_TASK']))\n"
        "if task['question'].endswith('2'): time.sleep(60)\n"
        "sys.exit('e' not in sys.stdin.read())\n"
    )
    line = ["traces", str(path), str(tasks), "-o", str(tmp_path / "o.jsonl"), "--json", "-t", "1"]
    line += ["-ub", "64", "--max-tokens", "150", "-np", "2", "--check-seconds", "3"]
    line += ["--check", shlex.join([sys.executable, str(check)])]
    result = CliRunner().invoke(cli, line, catch_exceptions=False)
    classes = json.loads(result.stdout)["classes"]
    answers = answers_of(path)
    late = sum(ended for at, (_, ended) in enumerate(answers) if at in (2, 12))
    right = sum(
        ended and "e" in text for at, (text, ended) in enumerate(answers) if at not in (2, 12)
    )
    assert sum(counts["timed out"] for counts in classes.values()) == late
    assert sum(counts["passed"] for counts in classes.values()) == right
