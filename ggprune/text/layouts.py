"""Rows of data sets as documents: the layouts in which people publish texts and conversations.

A row is recognised by its keys alone. One that is not is refused with the keys it has: text that
is left out, or read as something else, would spoil a calibration without a word.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ggprune.errors import InputError
from ggprune.text.documents import Document, Message
from ggprune.util import first_few

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

LAYOUTS = (
    '"text"; "messages" or "conversations" (turns with "role" and "content", or "from" and '
    '"value"); "prompt" with "completion" or "response"; "instruction" with "input" and "output"; '
    '"question" with "answer"; "problem" with "solution"; "query" with "response"; "input" with '
    '"output"'
)

_KNOWN = f"Known layouts: {LAYOUTS}. Plain text goes into a file that ends in .txt."

_TURNS = ("messages", "conversations", "conversation")
#: A question's key and those of its answer. The first match counts; a row with two of a line's
#: answers is refused.
_PAIRS = (
    ("prompt", ("completion", "response", "answer", "output")),
    ("instruction", ("output", "response", "completion", "answer")),
    ("question", ("answer", "response", "completion", "output")),
    ("problem", ("solution", "answer")),
    ("query", ("response", "answer", "answers", "completion", "output")),
)
#: Keys that are read as a pair only if both are there, and no other question.
_ONLY_TOGETHER = ("input", ("output",))
_SYSTEM = ("system", "system_prompt")
_CONTEXT = ("input", "context")
#: The tools that the assistant of a conversation may call.
_TOOLS = "tools"
_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool", "developer")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
}
_KEYS = ("text", *_TURNS, *(question for question, _ in _PAIRS))
#: All keys that a layout of a row may read.
READ = frozenset(
    (
        *_KEYS,
        *_SYSTEM,
        *_CONTEXT,
        _TOOLS,
        *_ONLY_TOGETHER[1],
        *(key for _, keys in _PAIRS for key in keys),
    )
)
_SAID = ("content", "value", "tool_calls", "function_call")
_MEDIA = re.compile("image|audio|video|sound|picture|file", re.IGNORECASE)
#: Keys of a row or turn that say something about it and are no part of its text.
_ABOUT = re.compile(
    r"(?:.*_)?(?:id|ids|idx|index|uuid|hash|sha\d*|url|link|path|file|name|source|dataset|subset|"
    r"split|domain|category|subject|topic|task|type|kind|tag|tags|lang|language|license|"
    r"licence|difficulty|level|score|rating|date|time|timestamp|author|version|title|model|status|"
    r"format|group|metadata|meta|weight)",
    re.IGNORECASE,
)


def json_or_none(text: str) -> Any:
    """Parse JSON; None for what is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_rows(text: str, name: object) -> Iterator[tuple[str, Any]]:
    """Yield the rows of JSON Lines, of a JSON array, or the one JSON object, and where each is.

    Raises:
        InputError: a line is not JSON, or the array is empty.
    """
    whole = json_or_none(text)  # None: lines of JSON, or a mistake whose line is named below.
    if isinstance(whole, list):
        if not whole:
            raise InputError(f"{name}: is an empty JSON array", remedy=_KNOWN)
        yield from ((f"row {number}", row) for number, row in enumerate(whole, start=1))
        return
    if isinstance(whole, dict):
        yield "line 1", whole
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name} line {number}: invalid JSON: {error}") from error


def read_rows(rows: Iterable[tuple[str, Any]], name: object) -> list[Document]:
    """Read all rows of a file; note which were empty and which of their keys were not used.

    Raises:
        InputError: a row has no known layout, or none has any text.
    """
    documents, empty = [], []
    unused: dict[str, None] = {}
    for where, row in rows:
        document = read_row(row, f"{name} {where}", unused)
        if document is None:
            empty.append(where)
        else:
            documents.append(document)
    if not documents:
        raise InputError(f"{name}: is empty" + (": no row has any text" if empty else ""))
    if empty:
        log.info("%s: %d empty rows skipped (%s)", name, len(empty), first_few(empty, 5))
    if unused:
        log.info("%s: not used: %s", name, ", ".join(map(repr, unused)))
    return documents


def has_layout(row: Any) -> bool:
    """Whether a value is a row of a known layout."""
    if not isinstance(row, Mapping):
        return False
    question, answers = _ONLY_TOGETHER
    together = all(isinstance(row.get(key), str | list) for key in (question, *answers))
    return together or any(isinstance(row.get(key), str | list) for key in _KEYS)


def read_row(row: Any, where: str, unused: dict[str, None] | None = None) -> Document | None:
    """Read one row; None if it has no text. ``unused`` takes the keys that are left out.

    Raises:
        InputError: it has no known layout, or a turn is not one.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected an object, found {_short(row)}", remedy=_KNOWN)
    unused = {} if unused is None else unused
    turns, used = _conversation(row, where, unused)
    if used:
        tools = _tools(row.get(_TOOLS))
        document = Document(messages=turns, where=where, tools=tools) if turns else None
        used = (*used, _TOOLS) if tools else used
    elif isinstance(row.get("text"), str) and row["text"].strip():
        document, used = Document(text=row["text"], where=where), ("text",)
    elif _is_empty(row, where):
        return None
    else:
        raise InputError(
            f"{where}: has none of the known layouts; its keys are {', '.join(map(repr, row))}",
            remedy=_KNOWN,
        )
    more = [key for key in row if key not in used and _is_text(key, row[key])]
    if more and turns and turns[-1].role == "user" and used[0] not in _TURNS:
        raise InputError(
            f"{where}: has {used[0]!r} and no answer known to belong to it, beside "
            f"{', '.join(map(repr, more))}",
            remedy=f"Remove what is not needed, or use one of these layouts: {LAYOUTS}.",
        )
    unused.update(dict.fromkeys(more))
    return document


def _tools(given: Any) -> str:
    """Read a list of functions with names, or the same as JSON; nothing of what is none."""
    tools = json_or_none(given) if isinstance(given, str) else given
    functions = [
        tool.get("function", tool) if isinstance(tool, dict) else None
        for tool in (tools if isinstance(tools, list) else [])
    ]
    names = [each.get("name") if isinstance(each, dict) else None for each in functions]
    if not names or not all(isinstance(name, str) for name in names):
        return ""
    wrapped = [{"type": "function", "function": each} for each in functions]
    return json.dumps(wrapped, ensure_ascii=False)


def _is_empty(row: Row, where: str) -> bool:
    """Whether a row has a known layout, or nothing at all, and no text."""
    _check_values(row, _KEYS, where)
    for question, answers in _PAIRS:
        orphan = next((key for key in answers if question in row and _holds_text(row.get(key))), "")
        if orphan and not _holds_text(row[question]):
            raise InputError(f"{where}: has {orphan!r}, but {question!r} is empty")
    known = [row[key] for key in _KEYS if key in row]
    blank = [not value or (isinstance(value, str) and not value.strip()) for value in known]
    numbers = any(isinstance(value, int | float) for value in row.values())
    return all(blank) and (bool(known) or not (numbers or any(map(_holds_text, row.values()))))


def _check_values(row: Row, keys: Iterable[str], where: str) -> None:
    """Refuse numbers (NaN too) and objects where a layout has text or turns."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, int | float) or (isinstance(value, dict) and value):
            expected = "a list of turns" if key in _TURNS else "text"
            raise InputError(
                f"{where}: {key} is {_short(value)}, expected {expected}", remedy=_KNOWN
            )


def read_turns(
    turns: Any, where: str, unused: dict[str, None] | None = None
) -> tuple[Message, ...]:
    """Read the turns of a conversation, a list or the same as JSON; empty ones are left out.

    Tool calls become JSON text; pictures and sounds in a list of parts are left out.

    Raises:
        InputError: one is no turn, or of an unknown role.
    """
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: its turns are text, but not JSON: {error}") from error
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise InputError(f"{where}: its turns are not a list")
    unused = {} if unused is None else unused
    found = (_turn(turn, where, unused) for turn in turns)
    return tuple(message for message in found if message.content.strip())


def _turn(turn: Any, where: str, unused: dict[str, None]) -> Message:
    named = turn if isinstance(turn, Mapping) else {}
    role = named.get("role", named.get("from"))
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    said = named.get("content", named.get("value"))
    calls = named.get("tool_calls") or named.get("function_call") or []
    given = any(key in named for key in _SAID)
    if known is None or not given or not isinstance(said, str | list | type(None)):
        raise InputError(
            f'{where}: a turn needs "role" and "content" (or "from" and "value"), '
            f"found {_short(turn)}",
            remedy=f"Roles: {', '.join(_ROLES)}.",
        )
    parts = [said] if isinstance(said, str) else [_part(part, where, unused) for part in said or ()]
    parts += [_call(call) for call in (calls if isinstance(calls, list) else [calls]) if call]
    more = (key for key in named if key not in ("role", "from", *_SAID))
    unused.update((f"{key} of turns", None) for key in more if _is_text(key, named[key]))
    return Message(known, "\n".join(part for part in parts if part))


def _part(part: Any, where: str, unused: dict[str, None]) -> str:
    named = part if isinstance(part, Mapping) else {"text": part}
    text = named.get("text")
    if isinstance(text, str):
        return text
    kind = str(named.get("type", ""))
    if text is not None or not _MEDIA.search(kind):
        raise InputError(f"{where}: {_short(part)} is no part of a turn's content")
    unused[f"{kind} of turns"] = None
    return ""


def _call(call: Any) -> str:
    called = call.get("function", call) if isinstance(call, Mapping) else call
    return called if isinstance(called, str) else json.dumps(called, ensure_ascii=False)


def _conversation(
    row: Row, where: str, unused: dict[str, None]
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Read the turns of a row, and name the keys they are of; none if it is no conversation."""
    system = next((key for key in _SYSTEM if isinstance(row.get(key), str)), "")
    start = (Message("system", row[system]),) if system and row[system].strip() else ()
    for key in _TURNS:
        if isinstance(row.get(key), list | str) and row[key]:
            turns = read_turns(row[key], where, unused)
            if turns and turns[0].role == "system":
                start = ()
            return (*start, *turns) if turns else (), (key, system)
    for with_answer in (True, False):
        for question, answers in _pairs(row):
            given = [key for key in answers if _holds_text(row.get(key))]
            if not _holds_text(row.get(question)) or bool(given) is not with_answer:
                continue
            if len(given) > 1:
                raise InputError(f"{where}: has {' and '.join(map(repr, given))}: which answers?")
            if not given:
                _check_values(row, answers, where)
            more = (key for key in _CONTEXT if key != question)
            context = next((key for key in more if isinstance(row.get(key), str)), "")
            turns = _pair(row, question, context, given, where)
            return (*start, *turns), (question, system, context, *answers)
    return (), ()


def _pairs(row: Row) -> Sequence[tuple[str, tuple[str, ...]]]:
    answers = _ONLY_TOGETHER[1]
    alone = not any(key in row for key, _ in _PAIRS)
    return (_ONLY_TOGETHER,) if alone and any(_holds_text(row.get(a)) for a in answers) else _PAIRS


def _pair(
    row: Row, question: str, context: str, given: Sequence[str], where: str
) -> tuple[Message, ...]:
    """Read a question with its context, and its answer; each may be a list of turns itself."""
    asked = _as_turns(row[question], "user", where)
    more = row.get(context) or ""
    if asked and more.strip():
        parts = [more, asked[-1].content]
        if question == "instruction":
            parts.reverse()
        asked = (*asked[:-1], Message(asked[-1].role, "\n\n".join(parts)))
    answer = _as_turns(row[given[0]], "assistant", where) if given else ()
    return (*asked, *answer)


def _as_turns(value: Any, role: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str) or value is None:
        return (Message(role, value),) if value and value.strip() else ()
    return read_turns(value, where)


def _holds_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, list | dict) and bool(value)


def _is_text(key: str, value: Any) -> bool:
    return _holds_text(value) and not _ABOUT.fullmatch(key)


def _short(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]
