"""Repositories and their files, as the Hub names them; knows nothing of HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HASH_CHUNK = 8 << 20
#: The Hub stores what is large as LFS, so git's own hash is needed of small files only.
_SMALL = 16 << 20


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository: ``name`` is owner/repo, ``kind`` "model" or "dataset"."""

    name: str
    kind: str = "model"
    revision: str | None = None

    def __str__(self) -> str:
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return prefix + self.name + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: SHA-256 where it is stored as LFS, else git's SHA-1 of the blob."""

    path: str
    size: int
    sha256: str | None
    blob: str

    def holds(self, local: LocalFile) -> bool:
        """Whether it has the same bytes as a local file."""
        if self.size != local.size:
            return False
        return self.sha256 == local.sha256 if self.sha256 else self.blob == local.blob


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload, with both hashes that the Hub may name it by."""

    path: Path
    name: str
    size: int
    sha256: str
    blob: str | None

    @classmethod
    def of(
        cls, path: Path, name: str, progress: Callable[[int], object] = lambda _: None
    ) -> LocalFile:
        """Hash a file; ``progress`` is called with the number of bytes just read."""
        size = path.stat().st_size
        small = size < _SMALL
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                sha256.update(chunk)
                if small:
                    blob.update(chunk)
                progress(len(chunk))
        return cls(path, name, size, sha256.hexdigest(), blob.hexdigest() if small else None)
