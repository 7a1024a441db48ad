"""What a GGUF file in a folder is: not all of them are models."""

from __future__ import annotations

from pathlib import Path

from ggprune.errors import GgpruneError
from ggprune.gguf_file import GgufFile

MODEL = "model"
STATISTICS = "ggprune-stats"
IMATRIX = "imatrix"
PROJECTOR = "mmproj"


def kind_of(path: Path) -> str:
    """Return MODEL, STATISTICS, IMATRIX, PROJECTOR or another ``general.type``.

    The header decides; the name does where there is none to read, or an old one that does not say.
    """
    try:
        with GgufFile(path) as file:
            kind = file.get("general.type")
            architecture = file.get("general.architecture")
    except GgpruneError:
        kind = architecture = None
    if isinstance(kind, str) and kind and kind != MODEL:
        return kind
    if architecture == "clip" or "mmproj" in path.name:
        return PROJECTOR
    if ".stats." in path.name and not architecture:
        return STATISTICS
    return IMATRIX if "imatrix" in path.name and not architecture else MODEL
