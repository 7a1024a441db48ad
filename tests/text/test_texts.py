"""Text: files, conversations, templates, and their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.text import load as texts
from ggprune.text.chat import ChatTemplate
from ggprune.text.load import Message

GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<|turn>{{ 'model' if m.role == 'assistant' else m.role }}"
    "\n{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def test_builtin_domains() -> None:
    sources = {source.domain: source for source in texts.builtin()}
    wanted = {"math", "logic", "code", "science", "creative", "tools", "multilingual", "knowledge"}
    assert set(sources) == wanted
    assert all(len(source.documents) >= 8 for source in sources.values())
    assert all(d.awaits_answer for source in sources.values() for d in source.documents)
    held = texts.builtin(texts.HELD_OUT)
    assert not any(d.awaits_answer for source in held for d in source.documents)


def test_loads_each_form(tmp_path: Path) -> None:
    lines = [
        {"text": "plain"},
        {"prompt": "question", "response": "answer"},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "b.py").write_text("print('hi')\n")
    (source,) = texts.load([("mine", str(path)), ("mine", str(tmp_path / "b.py"))])
    plain, pair, chat, code = source.documents
    assert plain.text == "plain" and not plain.awaits_answer
    assert [m.role for m in pair.messages] == ["user", "assistant"] and not pair.awaits_answer
    assert chat.awaits_answer
    assert code.text == "print('hi')\n"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "z.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\0")
    (source,) = texts.load([("mine", str(tmp_path))])
    assert [document.text for document in source.documents] == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"   \n", "is empty"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl line 2: invalid JSON"),
        ("a.jsonl", b"[1]", "line 1: expected an object"),
        ("a.jsonl", b'{"txt": "x"}', "line 1: has none of"),
        ("a.jsonl", b'{"messages": []}', "is empty"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', '"role" and "content"'),
        ("a.jsonl", b'{"messages": [{"role": "king", "content": "x"}]}', '"role" and "content"'),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, name: str, content: bytes, message) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        texts.load([("mine", str(path))])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        texts.load([("mine", str(tmp_path / "none.txt"))])


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "c.txt").write_text("other")
    one, two, three = (texts.load([("x", str(tmp_path / f"{n}.txt"))])[0] for n in "abc")
    assert one.sha256 == two.sha256 != three.sha256


def test_template() -> None:
    template = ChatTemplate(GEMMA, bos="<bos>", eos="<eos>", name="m")
    assert template.render([Message("user", "Hi")]) == (
        "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"
    )
    both = [Message("user", "Hi"), Message("assistant", "Yes")]
    assert template.render(both).endswith("<|turn>model\nYes<turn|>\n")


def test_template_without_system_role() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    template = ChatTemplate(source, bos="", eos="", name="m")
    messages = [Message("system", "Be brief."), Message("user", "Hi")]
    assert template.render(messages) == "Be brief.\n\nHi"


@pytest.mark.parametrize("source", ["{% if %}", "{{ raise_exception('never') }}", "{{ x.y.z }}"])
def test_failing_template_is_a_clear_error(source: str) -> None:
    with pytest.raises(InputError, match="m: its chat template fails"):
        ChatTemplate(source, bos="", eos="", name="m").render([Message("user", "Hi")])


def test_template_is_sandboxed() -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="fails"):
        ChatTemplate(source, bos="", eos="", name="m").render([Message("user", "Hi")])
