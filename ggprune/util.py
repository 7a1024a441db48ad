"""Small helpers without a subject of their own: JSON files, sizes for people, closing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from ggprune.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template

_T = TypeVar("_T", bound="Closing")


class Closing:
    """A context manager that closes itself at the end."""

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; closing twice is harmless."""
        raise NotImplementedError


def read_json(path: Path, what: str = "a JSON file") -> Any:
    """Read a JSON file that a user named.

    Args:
        path: the file, in UTF-8 with or without a byte order mark.
        what: what it should be, with its article, for messages: "a plan".

    Raises:
        InputError: it is missing, unreadable, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
        raise InputError(f"{path}: is not JSON: {problem}", remedy=f"Give {what}.") from error
    except (ValueError, RecursionError) as error:
        problem = "a Git LFS pointer, not the file itself" if _is_pointer(path) else str(error)
        raise InputError(f"{path}: is not JSON: {problem}", remedy=f"Give {what}.") from error


def check_shape(value: Any, shape: Any, where: str, key: str = "") -> None:
    """Check that a value from a JSON or TOML file is made as it should be.

    Args:
        value: as the file's reader gave it.
        shape: a type or union of types (``int | str``; a bool is no number, an int is a float),
            ``[shape]`` for a list of such items, ``{str: shape}`` for an object of such values,
            or ``{"key": shape, "key?": shape}`` for an object with these keys, those with ``?``
            only if they are there and not null. Other keys may hold anything.
        where: names the file or part in messages.
        key: names the value within it.

    Raises:
        InputError: it is something else; names the key, what is there and what is expected.
    """
    if isinstance(shape, dict) and isinstance(value, Mapping):
        for name, part in shape.items():
            for each in list(value) if name is str else [name.removesuffix("?")]:
                path = f"{key}.{each}" if key else str(each)
                if name is str or value.get(each) is not None:
                    check_shape(value[each], part, where, path)
                elif name == each and (each not in value or not _is_a(None, part)):
                    raise _wrong(None, part, where, path)
    elif isinstance(shape, list) and isinstance(value, list):
        plain = not isinstance(shape[0], dict | list)
        if plain and not all(_is_a(item, shape[0]) for item in value):
            raise _wrong(value, shape, where, key)
        for number, item in enumerate([] if plain else value):
            check_shape(item, shape[0], where, f"{key}[{number}]")
    elif not _is_a(value, shape):
        raise _wrong(value, shape, where, key)


def _is_a(value: Any, shape: Any) -> bool:
    kinds = get_args(shape) or (shape,)
    return type(value) in kinds or Any in kinds or (float in kinds and type(value) is int)


def _wrong(value: Any, shape: Any, where: str, key: str) -> InputError:
    if isinstance(shape, list):
        expected = "a list of " + ("objects" if shape[0].__class__ is dict else _named(shape[0]))
    else:
        expected = "an object" if isinstance(shape, dict) else _named(shape)
    found = "is missing" if value is None else f"is {value!r:.100}"
    return InputError(f"{where}: {key or 'its content'} {found}, expected {expected}")


def _named(shape: Any) -> str:
    return " or ".join(getattr(kind, "__name__", str(kind)) for kind in get_args(shape) or (shape,))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean NAME?`` for the most similar name; nothing if none is."""
    import difflib

    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), names, 1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def counted(number: int, what: str) -> str:
    """Name a number of things, with a plural s unless it is one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_few(names: Sequence[str], most: int) -> str:
    """List names, with … for those that are too many."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def template(
    package: str, name: str, filters: Mapping[str, Any] | None = None, **options: Any
) -> Template:
    """Load a Jinja template that lies in a package; what is undefined in it is empty.

    Args:
        package, name: where it lies.
        options: of the Jinja environment.
    """
    from importlib.resources import files

    from jinja2 import ChainableUndefined, Environment

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined, **options
    )
    environment.filters.update(filters or {})
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def cache_folder() -> Path:
    """Return where ggprune remembers things that can be found out again."""
    from platformdirs import user_cache_path

    return user_cache_path("ggprune", appauthor=False)


def _is_pointer(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(40).startswith(b"version https://git-lfs.github.com/")


#: What steers a terminal instead of showing: control characters, changes of direction, line
#: separators, halves of surrogates. New letters and emoji are none of them, whatever Unicode
#: version Python has.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, keep: str = "") -> str:
    """Escape what would steer a terminal: texts out of files are anyone's.

    Args:
        keep: characters to let through, such as a line feed.
    """

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}"

    return _STEERING.sub(escaped, text)


def human_size(size: float) -> str:
    """14.2 GB, in powers of 1000 as the Hub and disks count."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
