"""A tensor of a running graph, as the callback sees it."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.llama.library import library
from ggprune.llama.runtime import (
    TENSOR_BUFFER,
    TENSOR_DATA,
    TENSOR_NAME,
    TENSOR_NB,
    TENSOR_NE,
    TENSOR_OP,
    TENSOR_SRC,
    TENSOR_TYPE,
    TENSOR_VIEW_SRC,
)

#: Numbers of tensor types.
F32 = 0

_DTYPES: dict[int, npt.DTypeLike] = {F32: np.float32, 1: np.float16, 26: np.int32, 27: np.int64}
_Shape4 = ctypes.c_int64 * 4
_Stride4 = ctypes.c_size_t * 4


def tensor_name(address: int) -> bytes:
    """Read the raw name of the tensor at an address: all that the asking side reads."""
    return ctypes.string_at(address + TENSOR_NAME)


@functools.cache
def node_name(raw: bytes) -> str:
    """Return the node's name without what the scheduler adds to copies on another backend.

    ``CUDA0#ffn_moe_topk-3#0`` is a copy of ``ffn_moe_topk-3``.
    """
    parts = raw.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) == 3 else parts[0]


class TensorView:
    """Reads and writes the data of a tensor while its graph is paused at it.

    Valid only inside the callback that received it. Arrays are in NumPy's order: the reverse of
    ``ne``, so [n_embd, n_used, tokens] becomes (tokens, n_used, n_embd).
    """

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    @property
    def name(self) -> str:
        """Node name, see node_name."""
        return node_name(tensor_name(self.address))

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions in NumPy's order, four of them."""
        return tuple(reversed(_Shape4.from_address(self.address + TENSOR_NE)))

    @property
    def type(self) -> int:
        """Number of the tensor type, as in gguf_file.TENSOR_TYPES."""
        return ctypes.c_int32.from_address(self.address + TENSOR_TYPE).value

    @property
    def op(self) -> int:
        """Number of the operation that makes this tensor, such as runtime.OP_MUL_MAT."""
        return ctypes.c_int32.from_address(self.address + TENSOR_OP).value

    def source(self, index: int) -> TensorView:
        """Operand ``index`` of the operation that makes this tensor."""
        return TensorView(self._pointer(TENSOR_SRC + 8 * index))

    @property
    def buffer(self) -> int:
        """Address of the buffer that holds the data; 0 for none."""
        view = self._pointer(TENSOR_VIEW_SRC)
        owner = TensorView(view) if view else self
        return owner._pointer(TENSOR_BUFFER)

    @property
    def data(self) -> int:
        """Address of the data: in host memory only if ``on_host``."""
        return self._pointer(TENSOR_DATA)

    @property
    def on_host(self) -> bool:
        """Whether the data can be read in place."""
        buffer = self.buffer
        return bool(buffer) and bool(library().ggml["ggml_backend_buffer_is_host"](buffer))

    @property
    def is_contiguous(self) -> bool:
        """Whether 4-byte elements follow each other without gaps."""
        expected = 4
        strides = _Stride4.from_address(self.address + TENSOR_NB)
        for size, stride in zip(self.shape[::-1], strides, strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def array(self) -> Any:
        """Return the data with its strides: in place on the host, a copy from a device.

        ``ffn_moe_topk`` is a strided view of a larger tensor; reading it as if it were contiguous
        gives plausible nonsense, so strides are always followed.
        """
        dtype = np.dtype(_DTYPES[self.type])
        strides = tuple(reversed(_Stride4.from_address(self.address + TENSOR_NB)))
        size = library().ggml["ggml_nbytes"](self.address)
        if self.on_host:
            memory: Any = (ctypes.c_char * size).from_address(self.data)
        else:
            memory = ctypes.create_string_buffer(size)
            get = library().ggml["ggml_backend_tensor_get"]
            get(self.address, ctypes.addressof(memory), 0, size)
        return np.ndarray(self.shape, dtype, memory, strides=strides)

    def write(self, data: npt.NDArray[Any]) -> None:
        """Replace the data of a contiguous tensor; the rest of the graph uses it."""
        contiguous = np.ascontiguousarray(data)
        put = library().ggml["ggml_backend_tensor_set"]
        put(self.address, contiguous.ctypes.data, 0, contiguous.nbytes)

    def _pointer(self, offset: int) -> int:
        return ctypes.c_void_p.from_address(self.address + offset).value or 0
