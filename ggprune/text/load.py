"""Text to run a model over: the built-in prompts, or the user's own files, by domain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.text.documents import Document, Message, Source

CALIBRATION = "calibration.jsonl"
SEARCH = "search.jsonl"
HELD_OUT = "heldout.jsonl"
PROBES = "probes.jsonl"

_ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})


def builtin(name: str = CALIBRATION) -> tuple[Source, ...]:
    """The prompts that ship with ggprune, by domain.

    Args:
        name: CALIBRATION, or one of the disjoint SEARCH and HELD_OUT (conversations with
            answers).
    """
    data = resources.files("ggprune.text.builtin").joinpath(name).read_text(encoding="utf-8")
    domains: dict[str, list[Document]] = {}
    for number, record in _records(data, name):
        document = _document(record, f"{name} line {number}")
        domains.setdefault(str(record["domain"]), []).append(document)
    return tuple(Source(domain, tuple(documents)) for domain, documents in domains.items())


def load(
    named: Iterable[tuple[str, str]],
    *,
    quiet: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Source, ...]:
    """The user's texts.

    Args:
        named: (domain, path) pairs; several paths of one domain are joined. A path is a .jsonl
            file with one object a line (``text``, ``prompt`` and ``response``, or ``messages``),
            a .parquet file with such rows, a folder (all text files in it), any text file, one
            of these on the Hub (``hf://datasets/owner/repo/file``), or a recipe (``@name``,
            with its own domains if it is its own domain's name).
        quiet: no progress bars for downloads.
        say: called with notes for the user, about recipes and downloads.

    Raises:
        InputError: a file is missing, empty, not text, or a line of it is not what it should be.
        HubError: a file cannot be downloaded.
    """
    domains: dict[str, list[Document]] = {}
    for domain, path in named:
        if path.startswith("@"):
            from ggprune.text import recipes

            for source in recipes.load(path, quiet=quiet, say=say):
                name = source.domain if domain == path else domain
                domains.setdefault(name, []).extend(source.documents)
        else:
            domains.setdefault(domain, []).extend(_read(_local(path, quiet)))
    return tuple(Source(domain, tuple(documents)) for domain, documents in domains.items())


def _local(path: str, quiet: bool) -> Path:
    if not path.startswith("hf://"):
        return Path(path).expanduser()
    from ggprune.hub.download import resolve_text

    return resolve_text(path, quiet=quiet)


def _read(path: Path) -> list[Document]:
    if path.suffix.lower() == ".parquet":
        from ggprune.text import parquet

        rows = enumerate(parquet.rows(path))
        return [_document(row, f"{path} row {number}") for number, row in rows]
    if path.is_dir():
        documents = list(_read_folder(path))
        if not documents:
            raise InputError(f"{path}: no text files in this folder")
        return documents
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start})",
            remedy="Convert it, for instance: iconv -f latin1 -t utf-8 FILE",
        ) from error
    if not text.strip():
        raise InputError(f"{path}: is empty")
    if path.suffix.lower() != ".jsonl":
        return [Document(text=text, where=str(path))]
    return [_document(record, f"{path} line {number}") for number, record in _records(text, path)]


def _read_folder(folder: Path) -> Iterator[Document]:
    """All text files below a folder in a fixed order; binary ones are passed over."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if text.strip() and "\0" not in text:
                yield Document(text=text, where=str(path))


def _records(text: str, name: object) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name} line {number}: invalid JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{name} line {number}: expected an object, found {line[:40]!r}")
        yield number, record


def _document(record: dict[str, Any], where: str) -> Document:
    if isinstance(record.get("messages"), list):
        return Document(messages=_messages(record["messages"], where), where=where)
    if isinstance(record.get("prompt"), str):
        turns = [Message("user", record["prompt"])]
        if isinstance(record.get("response"), str):
            turns.append(Message("assistant", record["response"]))
        return Document(messages=tuple(turns), where=where)
    if isinstance(record.get("text"), str) and record["text"].strip():
        return Document(text=record["text"], where=where)
    raise InputError(
        f'{where}: has none of "text", "prompt" (and "response") or "messages" as expected',
        remedy="One JSON object a line with one of these.",
    )


def _messages(turns: Sequence[Any], where: str) -> tuple[Message, ...]:
    messages = []
    for turn in turns:
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if role not in _ROLES or not isinstance(content, str):
            raise InputError(f'{where}: a message needs "role" and "content", found {turn!r:.60}')
        messages.append(Message(str(role), content))
    if not messages:
        raise InputError(f'{where}: "messages" is empty')
    return tuple(messages)
