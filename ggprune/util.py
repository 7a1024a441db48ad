"""Small helpers without a subject of their own: JSON files, sizes for people, closing."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ggprune.errors import InputError

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
        raise InputError(f"{path}: is not JSON: {error}", remedy=f"Give {what}.") from error


def human_size(size: float) -> str:
    """14.2 GB, in powers of 1000 as the Hub and disks count."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
