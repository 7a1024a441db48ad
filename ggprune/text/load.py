"""Text to run a model over: the user's own files, data sets on the Hub, recipes; by domain."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.text.builtin import builtin_texts
from ggprune.text.documents import Document, Source
from ggprune.text.layouts import has_layout, json_or_none, json_rows, read_rows
from ggprune.util import first_few

log = logging.getLogger(__name__)

#: Files whose lines (or array items) are rows.
_LINES = (".jsonl", ".ndjson")
#: How gzip, zip, zstd, bzip2 and xz files begin.
_PACKED = (b"\x1f\x8b", b"PK", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7z")
#: Tables; read as rows if their header is that of a known layout, as text otherwise.
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def load_or_builtin(named: Sequence[tuple[str, str]], name: str) -> tuple[Source, ...]:
    """Load the user's texts, or the built-in ones of a name if there are none."""
    return load_texts(named) if named else builtin_texts(name)


def load_texts(named: Iterable[tuple[str, str]]) -> tuple[Source, ...]:
    """Load texts by domain, as (domain, path) pairs; several paths of one domain are joined.

    A path is a .jsonl, .json or .parquet file whose rows have one of the known layouts, a folder
    (all such files and all text files in it), any text file, one of these on the Hub
    (``hf://datasets/owner/repo/file``), or a recipe (``@name``, with its own domains if it is its
    own domain's name).

    Raises:
        InputError: a file is missing, empty, not text, or a row of it is not what it should be.
        HubError: a file cannot be downloaded.
    """
    domains: dict[str, list[Document]] = {}
    for domain, path in named:
        if path.startswith("@"):
            from ggprune.text import recipes

            for source in recipes.load_recipe(path):
                name = source.domain if domain == path else domain
                domains.setdefault(name, []).extend(source.documents)
        elif path.startswith("hf://"):
            from ggprune.hub.download import resolve_text

            domains.setdefault(domain, []).extend(_read(resolve_text(path)))
        else:
            domains.setdefault(domain, []).extend(_read(Path(path).expanduser()))
    return tuple(Source(domain, tuple(documents)) for domain, documents in domains.items())


def rows_of(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file, here or on the Hub, and where each is.

    Raises:
        InputError: it cannot be read, or is no file of rows.
        HubError: it cannot be downloaded.
    """
    if path.startswith("hf://"):
        from ggprune.hub.download import resolve_text

        found = resolve_text(path)
    else:
        found = Path(path).expanduser()
    rows = _rows(found, _content(found))
    if rows is None:
        raise InputError(
            f"{path}: is no file of rows",
            remedy="Give JSON Lines (.jsonl), a JSON array (.json), Parquet, or a table (.csv).",
        )
    yield from rows


def _read(path: Path) -> list[Document]:
    if path.is_dir():
        documents = list(_read_folder(path))
        if not documents:
            raise InputError(f"{path}: no text files in this folder")
        return documents
    return _read_file(path, _content(path))


def _content(path: Path) -> str:
    if path.suffix.lower() == ".parquet":
        return ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        packed = error.object.startswith(_PACKED)
        known = "utf-16" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
        convert = f"Convert it, for instance: iconv -f {known} -t utf-8 FILE"
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start})",
            remedy="Unpack it: it is compressed." if packed else convert,
        ) from error
    if not text.strip():
        raise InputError(f"{path}: is empty")
    return text


def _read_folder(folder: Path) -> Iterator[Document]:
    """Read all text files below a folder in a fixed order; binary ones are passed over."""
    passed_over = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or hidden:
            continue
        if path.suffix.lower() == ".parquet":
            yield from _read_file(path, "")
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError):
            text = "\0"
        if "\0" in text:
            passed_over.append(path.relative_to(folder).as_posix())
        elif text.strip():
            yield from _read_file(path, text, of_folder=True)
    if passed_over:
        left_out, listed = len(passed_over), first_few(passed_over, 5)
        log.info("%s: %d files are not UTF-8 text and left out: %s", folder, left_out, listed)


def _read_file(path: Path, text: str, *, of_folder: bool = False) -> list[Document]:
    """Read a file's rows if its name says that it has any, else its text."""
    rows = _rows(path, text, of_folder=of_folder)
    return [Document(text=text, where=str(path))] if rows is None else read_rows(rows, path)


def _rows(path: Path, text: str, *, of_folder: bool = False) -> Iterable[tuple[str, Any]] | None:
    suffix = path.suffix.lower()
    rows: Iterable[tuple[str, Any]] | None = None
    if suffix == ".parquet":
        from ggprune.text import parquet

        rows = ((f"row {number}", row) for number, row in enumerate(parquet.rows(path)))
    elif suffix in _LINES or (suffix == ".json" and (not of_folder or _has_rows(text))):
        rows = json_rows(text, path)
    elif suffix in _DELIMITERS:
        table = csv.DictReader(io.StringIO(text), delimiter=_DELIMITERS[suffix])
        if has_layout(dict.fromkeys(table.fieldnames or (), "")):
            rows = _table_rows(table, path)
    return rows


def _table_rows(table: csv.DictReader[str], path: Path) -> Iterator[tuple[str, Any]]:
    try:
        for number, row in enumerate(table, start=1):
            if None in row:
                raise InputError(
                    f"{path} row {number}: has more cells than the header",
                    remedy="Put texts with commas or line breaks in double quotes.",
                )
            yield f"row {number}", row
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from error


def _has_rows(text: str) -> bool:
    """Whether JSON in a folder is data, and not a source file such as settings."""
    value = json_or_none(text)
    if value is None:
        value = [json_or_none(text.lstrip().split("\n", 1)[0])]
    if isinstance(value, dict):
        parts = (part for part in value.values() if isinstance(part, list))
        return has_layout(value) or any(has_layout(part[0]) for part in parts if part)
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)
