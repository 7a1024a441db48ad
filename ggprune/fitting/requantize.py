"""Tensors in other types, byte for byte as llama-quantize makes them, and what rounding them costs.

llama-quantize turns a tensor's rows into float32 and calls ``ggml_quantize_chunk`` on them, each
expert's with its own row of the importance matrix (src/llama-quant.cpp). So does this, a tensor at
a time, which lets a group of tensors be quantized without the rest of the model.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ggprune.errors import LlamaError
from ggprune.fitting import kinds
from ggprune.gguf_file import TYPE_NUMBERS, GgufModel, Tensor, bytes_in, tensor_type_name
from ggprune.llama.library import library
from ggprune.types import Floats32
from ggprune.util import Closing

_Convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
#: ``to_float`` in ``struct ggml_type_traits``, 64-bit.
_TO_FLOAT = 40
#: Weights converted at once, so that a tensor of gigabytes needs no gigabytes of memory.
_SLAB = 1 << 24
#: Rows go to a thread in parts of this many weights.
_PART = 1 << 17


class Requantizer(Closing):
    """Quantizes tensors of one file.

    Args:
        means: mean of x² of every column, by tensor, flat: one row or one an expert.
    """

    def __init__(self, source: GgufModel, means: Mapping[str, Floats32], threads: int) -> None:
        self._source = source
        self._means = means
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def knows_importance(self, tensor: Tensor) -> bool:
        """Whether the importance matrix covers a tensor."""
        means = self._means.get(tensor.name)
        return means is not None and len(means) == tensor.shape[0] * _matrices(tensor)

    def convert(
        self, tensor: Tensor, kind: str, write: Callable[[bytes | memoryview], object]
    ) -> None:
        """Quantize a tensor and hand over its bytes, a part after another.

        Raises:
            LlamaError: the values are not finite.
        """
        if TYPE_NUMBERS[kind] == tensor.type:
            for start in range(0, tensor.nbytes, _SLAB):
                write(self._read(tensor, start, min(_SLAB, tensor.nbytes - start)))
            return
        for first, values in self._slabs(tensor):
            write(self._quantized(tensor, kind, first, values).data)

    def errors(self, tensor: Tensor, wanted: tuple[str, ...], sample: int) -> dict[str, float]:
        """Estimate Σ x²·(w - w')² over a tensor for each type, from a sample of its rows.

        Args:
            wanted: types its rows divide into.
            sample: about how many weights to look at.
        """
        row, rows = tensor.shape[0], math.prod(tensor.shape[1:])
        count = min(rows, max(1, sample // row))
        chosen = np.unique(np.linspace(0, rows - 1, count).astype(np.int64))
        values = np.concatenate([self._floats(tensor, int(index), 1) for index in chosen])
        weights = self._importance(tensor, chosen)
        parts = [(i, 1, None if weights is None else weights[i]) for i in range(len(chosen))]
        totals = {}
        for kind in wanted:
            data = self._in_parts(kind, row, values, parts)
            difference = _floats(TYPE_NUMBERS[kind], data, values.size) - values
            squares = np.square(difference, dtype=np.float64).reshape(len(chosen), row)
            if weights is not None:
                squares *= weights
            totals[kind] = float(squares.sum()) * rows / len(chosen)
        return totals

    def _importance(self, tensor: Tensor, rows: npt.NDArray[np.int64]) -> Floats32 | None:
        if not self.knows_importance(tensor):
            return None
        means = self._means[tensor.name].reshape(_matrices(tensor), tensor.shape[0])
        weights: Floats32 = np.ascontiguousarray(means[rows // tensor.shape[1]])
        return weights

    def _slabs(self, tensor: Tensor) -> Iterator[tuple[int, Floats32]]:
        rows = math.prod(tensor.shape[1:])
        at_once = max(1, _SLAB // tensor.shape[0])
        for first in range(0, rows, at_once):
            yield first, self._floats(tensor, first, min(at_once, rows - first))

    def _floats(self, tensor: Tensor, first: int, rows: int) -> Floats32:
        size = tensor.nbytes // math.prod(tensor.shape[1:])
        data = self._read(tensor, first * size, rows * size)
        values = _floats(tensor.type, np.frombuffer(data, np.uint8), rows * tensor.shape[0])
        if not np.isfinite(values).all():
            raise LlamaError(f"{tensor.name}: its values are not finite")
        return values

    def _read(self, tensor: Tensor, start: int, length: int) -> bytes:
        return self._source.files[tensor.shard].read(tensor.offset + start, length)

    def _quantized(
        self, tensor: Tensor, kind: str, first: int, values: Floats32
    ) -> npt.NDArray[np.uint8]:
        """Quantize consecutive rows; parts never cross from one expert to the next."""
        row, within = tensor.shape[0], tensor.shape[1] if len(tensor.shape) > 1 else 1
        rows = values.size // row
        means = self._means[tensor.name] if self.knows_importance(tensor) else None
        parts, at = [], 0
        while at < rows:
            count = min(rows - at, max(1, _PART // row), within - (first + at) % within)
            start = (first + at) // within * row
            parts.append((at, count, None if means is None else means[start : start + row]))
            at += count
        return self._in_parts(kind, row, values, parts)

    def _in_parts(
        self,
        kind: str,
        row: int,
        values: Floats32,
        parts: Sequence[tuple[int, int, Floats32 | None]],
    ) -> npt.NDArray[np.uint8]:
        """Quantize rows, given as first one, count, and importance of their columns."""
        size = bytes_in(kind, row)
        out = np.empty(values.size // row * size, np.uint8)

        def convert(part: tuple[int, int, Floats32 | None]) -> None:
            start, count, columns = part
            data = out[start * size : (start + count) * size]
            _quantize(kind, values[start * row : (start + count) * row], data, count, row, columns)

        list(self._pool.map(convert, parts))
        return out


def _matrices(tensor: Tensor) -> int:
    return math.prod(tensor.shape[2:])


def _quantize(
    kind: str,
    values: Floats32,
    out: npt.NDArray[np.uint8],
    rows: int,
    row: int,
    columns: Floats32 | None,
) -> None:
    if kind == "F32":
        out[:] = values.view(np.uint8)
        return
    if columns is None and kind in kinds.NEEDS_IMATRIX:  # llama.cpp would abort the process.
        raise LlamaError(f"{kind}: is made only of tensors that the importance matrix covers")
    importance = columns.ctypes.data if columns is not None else None
    library().ggml["ggml_quantize_chunk"](
        TYPE_NUMBERS[kind], values.ctypes.data, out.ctypes.data, 0, rows, row, importance
    )


def _floats(number: int, data: npt.NDArray[np.uint8], count: int) -> Floats32:
    if tensor_type_name(number) == "F32":
        return data.view(np.float32)
    out = np.empty(count, np.float32)
    traits = library().ggml["ggml_get_type_traits"](number)
    address = ctypes.c_void_p.from_address(traits + _TO_FLOAT).value
    if not address:
        raise LlamaError(f"llama.cpp cannot read the tensor type {tensor_type_name(number)}")
    _Convert(address)(data.ctypes.data, out.ctypes.data, count)
    return out
