"""The form of a statistics file: values and arrays in a GGUF file, which any reader can open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import GgpruneError, InputError
from ggprune.gguf_file import GgufFile, instead_of_a_model, replacing, write_arrays

FILE_TYPE = "ggprune-stats"
_MAKE = "Make one: ggprune calibrate MODEL -o STATS.gguf"

Arrays = Mapping[str, npt.NDArray[Any]]


def write(path: Path, architecture: str, values: Mapping[str, Any], arrays: Arrays) -> None:
    """Write the file, whole or not at all; see gguf_file.write_arrays.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as part:
        write_arrays(part, FILE_TYPE, values, arrays, architecture=architecture)


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read values and arrays; the gguf package's writer has left empty texts out.

    Raises:
        InputError: it is missing, not a statistics file, or damaged.
        FormatError: it is not a GGUF file.
    """
    import gguf

    # Our own reader first: it has the clear messages for what is not a GGUF file.
    with instead_of_a_model(_MAKE), GgufFile(path) as file:
        kind = file.get("general.type")
    if kind != FILE_TYPE:
        raise InputError(
            f"{path}: is not a statistics file (general.type is {kind!r})",
            remedy=_MAKE,
        )
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        return values, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> GgpruneError:
    """Return what to raise for a file that does not hold what it should."""
    return InputError(f"{path}: damaged statistics file: {error}", remedy="Calibrate again.")
