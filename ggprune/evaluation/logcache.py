"""Where base log-probabilities are kept between runs: files that name the model and the text."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggprune.errors import OutputError
from ggprune.evaluation.logprobs import BaseLog
from ggprune.gguf_file import GgufModel, replacing
from ggprune.llama.library import library
from ggprune.model import Model
from ggprune.model.architectures import VOCABULARY_KEY
from ggprune.util import cache_folder

#: Room for log-probabilities where a command measures by itself: 2 bytes for each token in the
#: vocabulary, for each token of text (4,000 tokens of text for a vocabulary of 262,144).
_LOG_BYTES = 2 << 30
_SUFFIX = ".logprobs"
#: Bytes that may stay behind in the cache folder; the files used longest ago go first.
_LIMIT = 20 << 30
_SAMPLES = 64
_SAMPLE_SIZE = 4096


def tokens_kept(model: Model) -> int:
    """Find of how many tokens of text the log-probabilities have room, see _LOG_BYTES."""
    return int(_LOG_BYTES // (2 * max(model.metadata.get(VOCABULARY_KEY, 1), 1)))


def fingerprint(gguf: GgufModel) -> str:
    """SHA-256 that tells one model file from another, quantizations of one model included.

    Hashes every header and samples of the data, so that a large file is not read as a whole.
    """
    digest = hashlib.sha256()
    for file in gguf.files:
        digest.update(file.size.to_bytes(8, "little"))
        digest.update(file.read(0, file.header_end))
        room = max(file.size - file.data_offset - _SAMPLE_SIZE, 0)
        for sample in range(_SAMPLES):
            at = file.data_offset + room * sample // _SAMPLES
            digest.update(file.read(at, min(_SAMPLE_SIZE, file.size - at)))
    return digest.hexdigest()


class LogCache:
    """A folder of base log-probabilities.

    Args:
        folder: where; None for a temporary one that vanishes with :meth:`close`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="ggprune-")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")

    def close(self) -> None:
        """Remove what is temporary."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def path(self, gguf: GgufModel, header: dict[str, Any]) -> Path:
        """Name the file of a model and a text."""
        names = gguf.stem, header["model"][:12], header["text"][:12]
        return self.folder / ("-".join(names) + _SUFFIX)

    @contextlib.contextmanager
    def writing(
        self, path: Path, header: dict[str, Any], tokens: int, n_vocab: int
    ) -> Iterator[BaseLog]:
        """Open a new file, which appears under its name when the block ends well.

        Raises:
            OutputError: no room, or the folder cannot be written to.
        """
        needed = BaseLog.size(tokens, n_vocab)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._error(needed, error.strerror or str(error)) from error
        if needed > free:
            raise self._error(needed, f"{free / 1e9:.1f} GB are free")
        self._make_room(path, needed)
        try:
            with replacing(path) as part:
                yield BaseLog.create(part, header, tokens, n_vocab)
        except OutputError as error:
            raise self._error(needed, error.message) from error

    def _error(self, needed: int, why: str) -> OutputError:
        return OutputError(
            f"{self.folder}: no room for {needed / 1e9:.1f} GB of base log-probabilities: {why}",
            remedy="Name another folder with cache=FOLDER, or use less text: max_tokens=N.",
        )

    def _make_room(self, path: Path, needed: int) -> None:
        """Delete the files used longest ago beyond the limit; never that of this run."""
        files = [file for file in self.folder.glob("*" + _SUFFIX) if file != path]
        with contextlib.suppress(OSError):
            files.sort(key=lambda file: -file.stat().st_mtime)
            total = needed
            for file in files:
                total += file.stat().st_size
                if total > _LIMIT:
                    file.unlink()


def default_folder() -> Path:
    """Below the user's cache folder."""
    return cache_folder() / "logprobs"


def header_of(gguf: GgufModel, text: str) -> dict[str, Any]:
    """Say in a file's header: model file, text, and the llama.cpp that computed it."""
    return {
        "file": gguf.path.name,
        "model": fingerprint(gguf),
        "text": text,
        "llama_cpp_python": library().version,
    }
