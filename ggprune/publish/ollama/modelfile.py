"""Writing a Modelfile beside a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggprune.errors import InputError, OutputError
from ggprune.gguf_file import GgufModel, write_text
from ggprune.publish.ollama import describe as ollama

#: Large, and nothing a Modelfile could say depends on them.
_NOT_NEEDED = ("tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


def write(model: Path, output: Path, *, force: bool = False, **choices: Any) -> Path:
    """Write the Modelfile of a model.

    Args:
        model: the GGUF file, or any shard of it.
        output: name of the Modelfile; paths in it are relative to its folder.
        force: replace an existing file.
        choices: see ollama.describe.

    Returns:
        ``output``.

    Raises:
        OutputError: it exists, or cannot be written.
        InputError: something that a Modelfile cannot say.
    """
    if output.exists() and not force:
        raise OutputError(f"{output}: exists", remedy="Use --force to replace it, or -o.")
    with GgufModel(model) as gguf:
        metadata = {key: gguf.get(key) for key in gguf.keys if key not in _NOT_NEEDED}
        paths = [file.path for file in gguf.files]
    described = ollama.describe(metadata, model_paths=paths, modelfile_path=output, **choices)
    write_text(output, described.render())
    return output


def parse_parameters(given: Iterable[str]) -> dict[str, float | int | str]:
    """Read NAME=VALUE pairs, numbers as numbers.

    Raises:
        InputError: one is not such a pair.
    """
    found: dict[str, float | int | str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--parameter {pair}: expected NAME=VALUE")
        found[name] = _number(value)
    return found


def _number(value: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
