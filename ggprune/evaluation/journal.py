"""Measurements kept in a file, one line each, so that what was interrupted goes on from there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ggprune.gguf_file import write_text


class Journal:
    """What was measured of one thing, by name.

    Args:
        path: the file; None keeps nothing.
        of: what the measurements are of, as JSON; a file about anything else is begun anew.

    Attributes:
        of: as text.
        known: values by name, as JSON has them.
    """

    def __init__(self, path: Path | None, of: Any) -> None:
        self._path = path
        self.of = json.dumps(of, sort_keys=True)
        self.known: dict[str, Any] = {}
        if path is None:
            return
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for line in lines[1:] if lines[:1] == [self.of] else ():
            with contextlib.suppress(ValueError, TypeError):  # The last one of a killed run.
                key, value = json.loads(line)
                self.known[key] = value
        whole = [self.of, *map(json.dumps, self.known.items())]
        if lines != whole:
            # The next line would be joined to what is left of a damaged one.
            write_text(path, "\n".join(whole) + "\n")

    def put(self, key: str, value: Any) -> None:
        """Keep a measurement."""
        self.known[key] = value
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps([key, value]) + "\n")
