"""Norms of expert outputs, computed where the outputs are.

The outputs of the chosen experts are n_embd numbers a token and expert; their norm is one. In host
memory they are read in place. On a device, copying them to the host costs as much as computing
them did, so a graph of two operations reduces them there and only the norms are copied. Over RPC
the same graph runs on the other machine.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import LlamaError
from ggprune.llama.devices import Kind
from ggprune.llama.library import library
from ggprune.llama.runtime import TENSOR_BUFFER, TENSOR_DATA
from ggprune.llama.symbols import InitParams
from ggprune.llama.tensor import F32, TensorView
from ggprune.types import Floats

#: Bytes above which one core is not enough to keep up with the others.
_PARALLEL_BYTES = 8 << 20
_THREADS = min(8, os.cpu_count() or 1)

#: Graphs kept a device: one for full batches, one for the last batch of a context, and a spare.
_PLANS = 3
_TENSORS = 8


class NormReader:
    """Computes norms along the rows of F32 tensors [n_embd, n_used, tokens].

    Args:
        on_device: reduce with a graph on the tensor's own device even if it is the CPU, which is
            how this path is tested without another device.
    """

    def __init__(self, *, on_device: bool = False) -> None:
        self._always = on_device
        self._devices: dict[int, _DeviceNorms | None] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, tensor: TensorView) -> Floats:
        """Norms of a tensor's rows, [tokens, n_used]."""
        # A last layer that computes only the tokens whose logits are wanted may have none, and a
        # device has no memory of 0 bytes.
        if tensor.shape[1] and (self._always or not tensor.on_host):
            reducer = self._reducer(tensor)
            if reducer is not None and tensor.type == F32 and tensor.is_contiguous:
                return reducer(tensor)
        return self.in_place(tensor.array()[0])

    def in_place(self, rows: npt.NDArray[np.float32]) -> Floats:
        """Norms of rows in host memory, [tokens, used, n_embd] -> [tokens, used]."""
        return np.sqrt(self._squares(rows).astype(np.float64))

    def _reducer(self, tensor: TensorView) -> _DeviceNorms | None:
        """Find what reduces on the tensor's device; None if that cannot run graphs of ours."""
        ggml = library().ggml
        device = ggml["ggml_backend_buft_get_device"](
            ggml["ggml_backend_buffer_get_type"](tensor.buffer)
        )
        if not device and self._always:
            # The CPU's buffers do not name their device.
            device = ggml["ggml_backend_dev_by_type"](Kind.CPU)
        if not device or ggml["ggml_backend_dev_type"](device) == Kind.META:
            # Spread over several devices (--split-mode tensor): copied to the host instead.
            return None
        if device not in self._devices:
            backend = ggml["ggml_backend_dev_init"](device, None)
            self._devices[device] = _DeviceNorms(backend) if backend else None
        return self._devices[device]

    def _squares(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Squared norms of [tokens, used, n_embd]."""
        if rows.nbytes < _PARALLEL_BYTES or _THREADS == 1:
            return _dot(rows)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "norms")
        parts = np.array_split(rows, _THREADS)
        return np.concatenate(list(self._pool.map(_dot, parts)))


def _dot(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # As a matrix product this is BLAS's dot product, a third faster than einsum.
    squares: npt.NDArray[np.float32] = np.matmul(rows[..., None, :], rows[..., :, None])
    return squares[..., 0, 0]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A graph for one shape: where its input is put, and its result."""

    context: int
    buffer: int
    graph: int
    rows: int
    sums: int


class _DeviceNorms:
    """Runs sqr and sum_rows on one device.

    Args:
        backend: of the device, ours alone, so that nothing of llama.cpp's own runs is disturbed.
    """

    def __init__(self, backend: int) -> None:
        self._ggml = library().ggml
        self._backend = backend
        self._plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()
        self._finalizer = weakref.finalize(self, _free, self._ggml, backend, self._plans)

    def __call__(self, tensor: TensorView) -> Floats:
        """Norms, [tokens, n_used]."""
        _, tokens, used, width = tensor.shape
        plan = self._plan((width, used, tokens))
        self._point(plan.rows, tensor)
        status = self._ggml["ggml_backend_graph_compute"](self._backend, plan.graph)
        if status != 0:
            raise LlamaError(f"computing norms on the device failed with {status}")
        sums = np.empty((tokens, used), np.float32)
        self._ggml["ggml_backend_tensor_get"](plan.sums, sums.ctypes.data, 0, sums.nbytes)
        return np.sqrt(sums.astype(np.float64))

    def _point(self, rows: int, tensor: TensorView) -> None:
        """Let the graph's input be the tensor's data, where it is.

        The node itself cannot be the input: building a graph from it would compute the model
        again up to there.
        """
        ctypes.c_void_p.from_address(rows + TENSOR_BUFFER).value = None
        ctypes.c_void_p.from_address(rows + TENSOR_DATA).value = None
        allocate = self._ggml["ggml_backend_tensor_alloc"]
        if allocate(tensor.buffer, rows, tensor.data) != 0:
            raise LlamaError(f"{tensor.name}: its buffer cannot be read by a second graph")

    def _plan(self, shape: tuple[int, int, int]) -> _Plan:
        plan = self._plans.get(shape)
        if plan is None:
            while len(self._plans) >= _PLANS:
                _free_plan(self._ggml, self._plans.popitem(last=False)[1])
            plan = self._plans[shape] = self._build(shape)
        self._plans.move_to_end(shape)
        return plan

    def _build(self, shape: tuple[int, int, int]) -> _Plan:
        ggml = self._ggml
        size = _TENSORS * ggml["ggml_tensor_overhead"]() + ggml["ggml_graph_overhead"]()
        context = ggml["ggml_init"](InitParams(size, None, True))
        rows = ggml["ggml_new_tensor_3d"](context, F32, *shape)
        # Not to be given memory below: it gets the node's.
        ctypes.c_void_p.from_address(rows + TENSOR_DATA).value = 1
        sums = ggml["ggml_sum_rows"](context, ggml["ggml_sqr"](context, rows))
        graph = ggml["ggml_new_graph"](context)
        ggml["ggml_build_forward_expand"](graph, sums)
        buffer = ggml["ggml_backend_alloc_ctx_tensors"](context, self._backend)
        if not buffer:
            ggml["ggml_free"](context)
            raise LlamaError(
                "not enough memory on the device to compute norms",
                remedy="Try a smaller `ubatch`, or fewer `gpu_layers`.",
            )
        return _Plan(context, buffer, graph, rows, sums)


def _free_plan(ggml: dict[str, Callable[..., Any]], plan: _Plan) -> None:
    ggml["ggml_backend_buffer_free"](plan.buffer)
    ggml["ggml_free"](plan.context)


def _free(
    ggml: dict[str, Callable[..., Any]], backend: int, plans: OrderedDict[tuple[int, ...], _Plan]
) -> None:
    for plan in plans.values():
        _free_plan(ggml, plan)
    ggml["ggml_backend_free"](backend)
