"""Tasks: conversations to answer, and how to tell whether an answer is right.

A row is a conversation in one of the layouts of ``layouts``; what it says the assistant answers at
its end is not asked but compared with. ``answer``, ``pattern`` (a regular expression that the
answer must match) or ``schema`` (of JSON) say it by a key of their own.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.system import end_group
from ggprune.text.answers import calls_of, json_of
from ggprune.text.documents import Document, Message
from ggprune.text.layouts import READ, json_or_none, read_row
from ggprune.text.load import rows_of

log = logging.getLogger(__name__)

_SCHEMA, _PATTERN, _ANSWER = ("schema", "json_schema"), ("pattern", "regex"), "answer"
_CHOICES = ("choices", "options")
#: Keys of a row that name its class.
_CLASS = ("class", "domain")
_USED = {*READ, *_SCHEMA, *_PATTERN, *_CLASS}
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARKED = re.compile(r"####[ \t]*(\S[^\n]*)")
_SAID = re.compile(r"(?:answer is|answer:)\**[ \t]*:?(.*)", re.IGNORECASE)
#: What may stand around an answer and says nothing.
_AROUND = " \t\n*_`$\"'()[]."

#: Whether an answer, without its thinking, is right; raises TimeoutError if that takes too long.
Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Task:
    """A row: the name of its class, its conversation up to the answer, and the check of that."""

    row: Mapping[str, Any]
    domain: str
    document: Document
    check: Check


@dataclass(frozen=True, slots=True)
class Command:
    """A program that checks answers: it reads one, and exits with 0 if it is right.

    The answer is its standard input; ``GGPRUNE_TASK`` names a JSON file, the task's row. It is
    started without a shell, and ended with all that it started after ``seconds``.

    Raises:
        InputError: there is no such program.
    """

    words: Sequence[str]
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if shutil.which(self.words[0]) is None:
            raise InputError(
                f"check={self.words[0]}: there is no such program",
                remedy="Give its path, or one that is on the PATH.",
            )

    def passes(self, row: Mapping[str, Any], answer: str) -> bool:
        """Run it.

        Raises:
            InputError: it cannot be started.
            TimeoutError: it ran too long.
        """
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder, "task.json")
            task.write_text(json.dumps(row, ensure_ascii=False, default=str), encoding="utf-8")
            try:
                process = subprocess.Popen(
                    self.words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "GGPRUNE_TASK": str(task)},
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise InputError(f"check={self.words[0]}: cannot be started: {error}") from error
            try:
                process.communicate(answer.encode("utf-8", "replace"), self.seconds)
            except subprocess.TimeoutExpired:
                end_group(process)
                raise TimeoutError from None
            return process.returncode == 0


def read_tasks(path: str, command: Command | None = None) -> list[Task]:
    """Read the tasks of a file: JSON Lines, a JSON array, Parquet, or a table.

    Args:
        path: of the file, or on the Hub: ``hf://datasets/owner/repo/file``.
        command: checks all answers, in place of what rows say.

    Raises:
        InputError: a row is no conversation, or says nothing that an answer can be checked by.
    """
    stem, found, unused = Path(path).stem, [], dict[str, None]()
    for place, row in rows_of(path):
        where = f"{path} {place}"
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: is not an object")
        unused.update(dict.fromkeys(key for key in row if key not in _USED))
        document, reference = _conversation(row, where)
        check = _by_command(command, row) if command else _check(row, reference, where)
        named = (row[key] for key in _CLASS if isinstance(row.get(key), str) and row[key].strip())
        found.append(Task(row, next(named, stem), document, check))
    if unused:
        log.info("%s: not used for questions: %s", path, ", ".join(map(repr, unused)))
    return found


def _conversation(row: Mapping[str, Any], where: str) -> tuple[Document, str]:
    """Split a row's conversation before the answer that is compared with."""
    for key in _CHOICES:
        if row.get(key):
            raise InputError(
                f"{where}: has {key!r}, which no layout puts into the question",
                remedy="Write the choices into the question, and the letter as answer.",
            )
    given = row.get(_ANSWER)
    plain = isinstance(given, str | int | float)
    read = {key: value for key, value in row.items() if key in READ}
    if plain:
        del read[_ANSWER]
    document = read_row(read or row, where) or Document()
    messages = document.messages
    if document.text:
        messages = (Message("user", document.text),)
    said = [at for at, message in enumerate(messages) if message.role == "assistant"]
    # Of a conversation with tools, the last call: what is said after it depends on its result.
    calling = [at for at in said if calls_of(messages[at].content)]
    reference = str(given) if plain else ""
    if said and (calling or messages[-1].role == "assistant"):
        at = (calling or said)[-1]
        messages, reference = messages[:at], reference or messages[at].content
    if not messages:
        raise InputError(f"{where}: has no question")
    return replace(document, text="", messages=messages), reference


def _check(row: Mapping[str, Any], reference: str, where: str) -> Check:
    schema = next((row[key] for key in _SCHEMA if row.get(key)), None)
    pattern = next((row[key] for key in _PATTERN if row.get(key)), None)
    if schema is not None:
        return _by_schema(schema, where)
    if isinstance(pattern, str):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InputError(f"{where}: {pattern!r} is no regular expression: {error}") from error
        return lambda answer: expression.search(answer) is not None
    if calls := calls_of(reference):
        return lambda answer: calls_of(answer) == calls
    if reference.strip():
        return lambda answer: is_same(answer, reference)
    raise InputError(
        f"{where}: has nothing to check an answer by",
        remedy='Add "answer", "pattern" or "schema" to the rows, or give `check`.',
    )


def _by_command(command: Command, row: Mapping[str, Any]) -> Check:
    return lambda answer: command.passes(row, answer)


def _by_schema(schema: Any, where: str) -> Check:
    try:
        validators: Any = importlib.import_module("jsonschema.validators")
        registry = importlib.import_module("referencing").Registry()
    except ImportError as error:
        raise InputError(
            f"{where}: checking by a schema needs jsonschema, which is not installed",
            remedy="pip install 'ggprune[schema]'",
        ) from error
    schema = json_or_none(schema) if isinstance(schema, str) else schema

    with _refused(where):
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
        validator = kind(schema, registry=registry)  # One of its own: nothing is fetched.

    def check(answer: str) -> bool:
        value = json_of(answer)
        with _refused(where):
            return value is not None and bool(validator.is_valid(value))

    return check


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """Say that a schema is none; its library's classes of errors are many."""
    try:
        yield
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"{where}: its JSON schema cannot be used: {first:.200}") from error


def is_same(answer: str, reference: str) -> bool:
    """Whether an answer ends in what a reference does: the same number, or the same words.

    What counts stands after ``####`` or in ``\\boxed{}``, of the answer also after "answer is" or
    "answer:"; else it is the last number of the answer, its last line, or all of it.
    """
    wanted = _marked(reference) or reference
    number = _number(wanted)
    said = _SAID.findall(answer)
    marked = _marked(answer)
    if number is not None:
        after = _NUMBER.findall(_signed(marked or (said[-1] if said else "")))
        found = after[:1] or _NUMBER.findall(_signed(answer))[-1:]
        return bool(found) and _number(found[0]) == number
    lines = answer.strip().split("\n")
    parts = [marked] if marked else [answer, lines[-1], *said[-1:]]
    return _bare(wanted) in map(_bare, parts)


def _marked(text: str) -> str:
    found = _MARKED.findall(text) or _BOXED.findall(text)
    return str(found[-1]) if found else ""


def _number(text: str) -> Decimal | None:
    """Read 1,000, $42., 42.0 or 30%."""
    bare = _signed(text).strip(_AROUND + "%")
    return Decimal(bare.replace(",", "")) if _NUMBER.fullmatch(bare) else None


def _signed(text: str) -> str:
    return text.replace("\u2212", "-").replace("-$", "-")


def _bare(text: str) -> str:
    return " ".join(text.strip(_AROUND).casefold().split())
