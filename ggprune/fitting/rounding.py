"""What rounding each tensor to a type costs, estimated from a sample and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ggprune.fitting.requantize import Requantizer
from ggprune.gguf_file import Tensor, tensor_type_name, write_text
from ggprune.types import Progress

#: Weights of a tensor from which its error in a type is estimated.
SAMPLE = 1 << 15


class Errors:
    """Importance-weighted errors of tensors in types, estimated when asked for, kept in a file."""

    def __init__(self, requantizer: Requantizer, path: Path, of: str) -> None:
        self._requantizer, self._path, self._of = requantizer, path, of
        self._known: dict[str, dict[str, float]] = {}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            self._known = record["errors"] if record["of"] == of else {}
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def estimate(self, tensors: Mapping[Tensor, set[str]], progress: Progress) -> None:
        """Estimate what is not known of many tensors at once."""
        missing = {
            tensor: tuple(sorted(wanted - self._known.get(tensor.name, {}).keys()))
            for tensor, wanted in tensors.items()
        }
        total = sum(map(len, missing.values()))
        if not total:
            return
        with progress(total, "rounding samples", "tensor") as advance:
            for tensor, wanted in missing.items():
                found = self._requantizer.errors(tensor, wanted, SAMPLE) if wanted else {}
                self._known.setdefault(tensor.name, {}).update(found)
                advance(len(wanted))
        write_text(self._path, json.dumps({"of": self._of, "errors": self._known}))

    def of(self, tensor: Tensor, kind: str) -> float:
        """Measure the error of one tensor."""
        if kind == tensor_type_name(tensor.type):
            return 0.0
        known = self._known.setdefault(tensor.name, {})
        if kind not in known:
            known.update(self._requantizer.errors(tensor, (kind,), SAMPLE))
        return known[kind]
