"""What quantizing would give, read from what llama.cpp's quantizer says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggprune.gguf_file import Tensor, tensor_type_name

Log = Callable[[str], object]

#: A line of the quantizer's log: which tensor it has come to, and (dry runs) what it becomes.
_TENSOR_LINE = re.compile(r"\[ *\d+/ *\d+\] (?P<name>\S+) +- \[")
_NEW_TYPE = re.compile(r"MiB -> +[\d.]+ MiB \((?P<type>\w+)\)$")
_FALLBACKS = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What quantizing would give.

    Attributes:
        type: asked for.
        paths: the files.
        size: bytes of all, to within the metadata.
        tensor_types: bytes by tensor type, largest first.
        fallbacks: tensors that get another type, since their rows do not divide into blocks.
        needs_imatrix: whether it cannot be done without an importance matrix.
        types: of every tensor, by its name.
    """

    type: str
    paths: tuple[Path, ...]
    size: int
    tensor_types: dict[str, int]
    fallbacks: int
    needs_imatrix: bool
    types: Mapping[str, str]

    @property
    def cautions(self) -> list[str]:
        """What a user should know of it."""
        found = []
        if self.needs_imatrix:
            found.append(f"{self.type} needs an importance matrix (imatrix=FILE).")
        if self.fallbacks:
            found.append(
                f"{self.type}: {self.fallbacks} tensors have rows that its blocks do not divide; "
                "llama.cpp gives them a larger type."
            )
        return found


class Reading:
    """Reads the quantizer's log, line by line.

    Args:
        on_tensor: called with the name of each tensor that the quantizer comes to.

    Attributes:
        types: of every tensor, by its name; what a dry run says it becomes.
        fallbacks, needs_imatrix: see Forecast.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        log: Log,
        on_tensor: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.types = {tensor.name: tensor_type_name(tensor.type) for tensor in tensors}
        self.fallbacks = 0
        self.needs_imatrix = False
        self._log, self._on_tensor = log, on_tensor
        self._name = ""

    def __call__(self, line: str) -> None:
        """Take a line in."""
        self._log(line)
        if found := _TENSOR_LINE.match(line):
            self._name = found["name"]
            self._on_tensor(self._name)
        if (found := _NEW_TYPE.search(line)) and self._name in self.types:
            self.types[self._name] = found["type"].upper()
        if found := _FALLBACKS.search(line):
            self.fallbacks = int(found[1])
        self.needs_imatrix = self.needs_imatrix or "will require an imatrix" in line
