"""Text: files, conversations, templates, and their mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggprune.errors import InputError
from ggprune.text.builtin import HELD_OUT, builtin_texts
from ggprune.text.chat import ChatTemplate
from ggprune.text.documents import Document, Message, Source
from ggprune.text.load import load_texts

GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<|turn>{{ 'model' if m.role == 'assistant' else m.role }}"
    "\n{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def test_builtin_domains() -> None:
    sources = {source.domain: source for source in builtin_texts()}
    wanted = {"math", "logic", "code", "science", "creative", "tools", "multilingual", "knowledge"}
    assert set(sources) == wanted
    assert all(len(source.documents) >= 8 for source in sources.values())
    assert all(d.awaits_answer for source in sources.values() for d in source.documents)
    held = builtin_texts(HELD_OUT)
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
    (source,) = load_texts([("mine", str(path)), ("mine", str(tmp_path / "b.py"))])
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
    (source,) = load_texts([("mine", str(tmp_path))])
    assert [document.text for document in source.documents] == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"   \n", "is empty"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl line 2: invalid JSON"),
        ("a.jsonl", b"[1]", "row 1: expected an object"),
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
        load_texts([("mine", str(path))])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_texts([("mine", str(tmp_path / "none.txt"))])


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    (tmp_path / "c.txt").write_text("other")
    one, two, three = (load_texts([("x", str(tmp_path / f"{n}.txt"))])[0] for n in "abc")
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


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[99].content.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x'.encode('utf-16').decode('ascii') }}",
        "{{ strftime_now(1) }}",
        "{{ [] | first | int(base='x') }}",
        "{% generation %}{{ messages[0].content }}",
        "{{ '%d' % 'x' }}",
        "{% include 'x' %}",
        "{{ {}['a'].b }}",
        "{{ messages | tojson(indent='x', separators=3) }}",
        "{% set ns = namespace() %}{{ ns.x.y }}",
        "{% if " + "(" * 500 + "1" + ")" * 500 + " %}{% endif %}{{ x.y.z }}",
    ],
)
def test_nothing_a_template_does_is_a_traceback(source: str) -> None:
    with pytest.raises(InputError, match=r"m: its chat template fails: ."):
        ChatTemplate(source, bos="", eos="", name="m").render([Message("user", "Hi")])


def test_marks_for_training_are_passed_over() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}\n"
        "{% generation %}\n{{ m.content }}<end>{% endgeneration %}\n"
        "{% else %}<user>{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = [Message("user", "Hi"), Message("assistant", "Yes")]
    template = ChatTemplate(source, bos="", eos="", name="m")
    assert template.render(messages) == "<user>HiYes<end>"


def test_json_as_transformers_writes_it() -> None:
    source = (
        "{{ messages | tojson(ensure_ascii=False) }}{{ ['<é>'] | tojson }}"
        "{{ ['é'] | tojson(ensure_ascii=true, indent=1) }}"
    )
    text = ChatTemplate(source, bos="", eos="", name="m").render([Message("user", "é")])
    assert text == '[{"role": "user", "content": "é"}]["<é>"][\n "\\u00e9"\n]'


STRICT = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('roles') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
DEAF = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}"
    "<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
TOOLS = [
    Message("system", "Be brief."),
    Message("user", "Weather?"),
    Message("assistant", "call"),
    Message("tool", 'sun "7"'),
    Message("assistant", "Sunny."),
]


@pytest.mark.parametrize("source", [STRICT, DEAF])
def test_what_a_template_does_not_know_is_said_by_the_user(source: str) -> None:
    text = ChatTemplate(source, bos="", eos="", name="m").render(TOOLS)
    assert text == ('<user>Be brief.\n\nWeather?<assistant>call<user>sun "7"<assistant>Sunny.')


def test_tools_a_template_knows_stay_tools() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}{% endfor %}"
    text = ChatTemplate(source, bos="", eos="", name="m").render(TOOLS)
    assert '<tool>"sun \\"7\\""' in text


WEATHER = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (
            "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "[weather]Hi",
        ),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
         f"system: {WEATHER} user: Hi "),
        ("{% if tools %}{{ raise_exception('none') }}{% endif %}{{ messages[0].content }}",
         WEATHER),
    ],
)  # fmt: skip
def test_which_tools_there_are_is_said(source: str, wanted: str) -> None:
    template = ChatTemplate(source, bos="", eos="", name="m")
    assert template.render([Message("user", "Hi")], WEATHER) == wanted


def test_tools_belong_to_a_text() -> None:
    messages = (Message("user", "Hi"),)
    hashes = {Source("a", (Document(messages=messages, tools=t),)).sha256 for t in ("", WEATHER)}
    assert len(hashes) == 2 and Source("a", (Document(messages=messages),)).sha256 in hashes
