"""What rounding each tensor to a type costs, estimated from a sample and kept in a file."""

from __future__ import annotations

from collections.abc import Mapping

from ggprune.evaluation.journal import Journal
from ggprune.fitting.requantize import Requantizer
from ggprune.gguf_file import Tensor, tensor_type_name
from ggprune.types import Progress

#: Weights of a tensor from which its error in a type is estimated.
SAMPLE = 1 << 15


class Errors:
    """Importance-weighted errors of tensors in types, estimated when asked for, kept in a file."""

    def __init__(self, requantizer: Requantizer, journal: Journal) -> None:
        self._requantizer, self._journal = requantizer, journal

    def estimate(self, tensors: Mapping[Tensor, set[str]], progress: Progress) -> None:
        """Estimate what is not known of many tensors at once."""
        missing = {
            tensor: tuple(k for k in sorted(wanted) if _key(tensor, k) not in self._journal.known)
            for tensor, wanted in tensors.items()
        }
        if total := sum(map(len, missing.values())):
            with progress(total, "rounding samples", "tensor") as advance:
                for tensor, wanted in missing.items():
                    self._estimate(tensor, wanted)
                    advance(len(wanted))

    def of(self, tensor: Tensor, kind: str) -> float:
        """Measure the error of one tensor."""
        if kind == tensor_type_name(tensor.type):
            return 0.0
        if _key(tensor, kind) not in self._journal.known:
            self._estimate(tensor, (kind,))
        return float(self._journal.known[_key(tensor, kind)])

    def _estimate(self, tensor: Tensor, wanted: tuple[str, ...]) -> None:
        found = self._requantizer.errors(tensor, wanted, SAMPLE) if wanted else {}
        for kind, error in found.items():
            self._journal.put(_key(tensor, kind), error)


def _key(tensor: Tensor, kind: str) -> str:
    return f"{tensor.name} {kind}"
