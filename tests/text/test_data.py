"""The built-in prompts have the promised shape, and the files share no text."""

import hashlib
import importlib.resources
import json
import re
from collections import Counter

import pytest

DOMAINS = {"math", "logic", "code", "science", "creative", "tools", "multilingual", "knowledge"}
ANSWERED = ("search", "heldout")
FILES = ("calibration", *ANSWERED, "probes")
PROBES = {
    "code": 3,
    "math": 3,
    "philosophy": 3,
    "long_context": 2,
    "repetition": 3,
    "tools": 3,
    "language": 4,
    "short": 96,
}


def load(name):
    text = (importlib.resources.files("ggprune.text.builtin") / f"{name}.jsonl").read_text(
        encoding="utf-8"
    )
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def contents(name):
    return [m["content"] for row in load(name) for m in row["messages"]]


def said_by(row, role):
    return [m["content"] for m in row["messages"] if m["role"] == role]


def size(text):
    """Words, with the scripts that write none between spaces counted at two characters a word."""
    cjk = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", text)
    return len(text.split()) + len(cjk) // 2


@pytest.mark.parametrize("name", FILES)
def test_messages_are_well_formed(name):
    for row in load(name):
        messages = row["messages"]
        for message in messages:
            assert set(message) == {"role", "content"}
            assert isinstance(message["content"], str)
            assert message["content"]
            assert message["content"] == message["content"].strip()
        roles = [m["role"] for m in messages]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles
        assert all(r == ("user", "assistant")[i % 2] for i, r in enumerate(roles))
        assert roles[-1] == ("assistant" if name in ANSWERED else "user")


@pytest.mark.parametrize(
    ("name", "each", "total"),
    [("calibration", 10, 80), ("search", 3, 26), ("heldout", 3, 25)],
)
def test_domain_counts(name, each, total):
    rows = load(name)
    assert all(set(row) == {"domain", "messages"} for row in rows)
    counts = Counter(row["domain"] for row in rows)
    assert set(counts) == DOMAINS
    assert min(counts.values()) >= each
    assert len(rows) >= total


def test_calibration_is_varied():
    rows = load("calibration")
    lengths = [size(said_by(row, "user")[-1]) for row in rows]
    assert min(lengths) <= 25
    assert max(lengths) >= 120
    assert any(len(said_by(row, "user")) > 1 for row in rows)
    tools = [row for row in rows if row["domain"] == "tools"]
    assert sum(bool(said_by(row, "system")) for row in tools) >= 8


def test_calibration_has_many_scripts():
    scripts = {
        "arabic": r"[\u0600-\u06ff]",
        "bengali": r"[\u0980-\u09ff]",
        "cyrillic": r"[\u0400-\u04ff]",
        "devanagari": r"[\u0900-\u097f]",
        "greek": r"[\u0370-\u03ff]",
        "han": r"[\u4e00-\u9fff]",
        "hangul": r"[\uac00-\ud7af]",
        "hebrew": r"[\u0590-\u05ff]",
        "kana": r"[\u3040-\u30ff]",
        "thai": r"[\u0e00-\u0e7f]",
    }
    rows = [row for row in load("calibration") if row["domain"] == "multilingual"]
    text = " ".join(c for row in rows for c in said_by(row, "user"))
    assert [name for name, pattern in scripts.items() if not re.search(pattern, text)] == []
    assert len(rows) >= 12


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_full(name):
    for row in load(name):
        words = sum(size(answer) for answer in said_by(row, "assistant"))
        assert 120 <= words <= 350, row["messages"][-1]["content"][:60]


@pytest.mark.parametrize("name", ANSWERED)
def test_tool_calls_are_json(name):
    rows = [row for row in load(name) if row["domain"] == "tools"]
    for row in rows:
        call, answer = said_by(row, "assistant")
        assert isinstance(json.loads(call), dict)
        with pytest.raises(json.JSONDecodeError):
            json.loads(answer)


@pytest.mark.parametrize("name", ANSWERED)
def test_python_compiles(name):
    blocks = [
        block
        for row in load(name)
        for answer in said_by(row, "assistant")
        for block in re.findall(r"```python\n(.*?)```", answer, re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        compile(block, name, "exec")


def test_probe_counts():
    rows = load("probes")
    assert all(set(row) == {"kind", "id", "messages", "expect_json"} for row in rows)
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == set(PROBES)
    assert all(counts[kind] >= least for kind, least in PROBES.items())
    assert (
        sum(counts[kind] for kind in ("code", "math", "philosophy", "long_context", "repetition"))
        >= 14
    )
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", i) for i in ids)


def test_probe_kinds_keep_their_promise():
    rows = load("probes")
    for row in rows:
        if row["kind"] == "tools":
            assert row["expect_json"] and "JSON" in said_by(row, "system")[0]
        elif row["kind"] == "short":
            assert row["expect_json"] is ("JSON" in said_by(row, "user")[0])
            assert len(row["messages"]) == 1 and size(said_by(row, "user")[0]) <= 40
        else:
            assert not row["expect_json"]
        if row["kind"] == "long_context":
            assert size(said_by(row, "user")[0]) >= 750
    languages = {row["id"] for row in rows if row["kind"] == "language"}
    assert len(languages) >= 2


def test_no_content_occurs_twice():
    digests = {
        name: [hashlib.sha256(c.encode()).hexdigest() for c in contents(name)] for name in FILES
    }
    for name in FILES:
        assert len(set(digests[name])) == len(digests[name])
    for i, name in enumerate(FILES):
        for other in FILES[i + 1 :]:
            assert set(digests[name]).isdisjoint(digests[other])
