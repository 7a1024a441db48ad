"""GGUF files that are no models: values and arrays, which any reader can open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


def write_arrays(
    path: Path,
    kind: str,
    values: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    *,
    architecture: str | None = None,
) -> None:
    """Write a file under this very name.

    Args:
        kind: its ``general.type``.
        values: texts, whole numbers and lists of one of them, by key.
        architecture: of the model that it is of; None writes none.
    """
    import gguf

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def add_architecture(self) -> None:
            if architecture is not None:
                super().add_architecture()

    writer = Writer(path, architecture or "")
    writer.add_type(kind)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
