"""ggml's C functions that ggprune calls and llama_cpp's bindings leave out, with their types."""

from __future__ import annotations

import ctypes
from typing import Any


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class BufferOverride(ctypes.Structure):
    """``struct llama_model_tensor_buft_override``: tensors that match go to a buffer type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_TEXT = ctypes.c_char_p

#: Name -> (arguments, result).
SYMBOLS: dict[str, tuple[list[Any], Any]] = {
    "ggml_tensor_overhead": ([], _SIZE),
    "ggml_version": ([], _TEXT),
    "ggml_op_name": ([ctypes.c_int], _TEXT),
    "ggml_type_name": ([ctypes.c_int], _TEXT),
    "ggml_set_abort_callback": ([_POINTER], _POINTER),
    "ggml_nbytes": ([_POINTER], _SIZE),
    "ggml_backend_tensor_get": ([_POINTER, _POINTER, _SIZE, _SIZE], None),
    "ggml_backend_tensor_set": ([_POINTER, _POINTER, _SIZE, _SIZE], None),
    # Quantizing
    "ggml_quantize_chunk": (
        [ctypes.c_int, _POINTER, _POINTER, *[ctypes.c_int64] * 3, _POINTER],
        _SIZE,
    ),
    "ggml_get_type_traits": ([ctypes.c_int], _POINTER),
    # Buffers and devices
    "ggml_backend_buffer_is_host": ([_POINTER], ctypes.c_bool),
    "ggml_backend_buffer_get_type": ([_POINTER], _POINTER),
    "ggml_backend_buffer_free": ([_POINTER], None),
    "ggml_backend_buft_name": ([_POINTER], _TEXT),
    "ggml_backend_buft_get_device": ([_POINTER], _POINTER),
    "ggml_backend_cpu_buffer_type": ([], _POINTER),
    "ggml_backend_dev_count": ([], _SIZE),
    "ggml_backend_dev_get": ([_SIZE], _POINTER),
    "ggml_backend_dev_by_type": ([ctypes.c_int], _POINTER),
    "ggml_backend_dev_name": ([_POINTER], _TEXT),
    "ggml_backend_dev_description": ([_POINTER], _TEXT),
    "ggml_backend_dev_type": ([_POINTER], ctypes.c_int),
    "ggml_backend_dev_memory": ([_POINTER, _POINTER, _POINTER], None),
    "ggml_backend_dev_buffer_type": ([_POINTER], _POINTER),
    "ggml_backend_dev_init": ([_POINTER, _TEXT], _POINTER),
    "ggml_backend_load_all_from_path": ([_TEXT], None),
    "ggml_backend_reg_count": ([], _SIZE),
    "ggml_backend_reg_get": ([_SIZE], _POINTER),
    "ggml_backend_reg_name": ([_POINTER], _TEXT),
    "ggml_backend_reg_by_name": ([_TEXT], _POINTER),
    "ggml_backend_reg_get_proc_address": ([_POINTER, _TEXT], _POINTER),
    "ggml_backend_register": ([_POINTER], None),
    "ggml_backend_free": ([_POINTER], None),
    # A graph of our own
    "ggml_init": ([InitParams], _POINTER),
    "ggml_free": ([_POINTER], None),
    "ggml_new_tensor_3d": ([_POINTER, ctypes.c_int, *[ctypes.c_int64] * 3], _POINTER),
    "ggml_sqr": ([_POINTER, _POINTER], _POINTER),
    "ggml_sum_rows": ([_POINTER, _POINTER], _POINTER),
    "ggml_graph_overhead": ([], _SIZE),
    "ggml_new_graph": ([_POINTER], _POINTER),
    "ggml_build_forward_expand": ([_POINTER, _POINTER], None),
    "ggml_sqr_inplace": ([_POINTER, _POINTER], _POINTER),
    "ggml_set_name": ([_POINTER, _TEXT], _POINTER),
    "ggml_get_data": ([_POINTER], _POINTER),
    "ggml_backend_alloc_ctx_tensors_from_buft": ([_POINTER, _POINTER], _POINTER),
    "ggml_backend_alloc_ctx_tensors": ([_POINTER, _POINTER], _POINTER),
    "ggml_backend_tensor_alloc": ([_POINTER, _POINTER, _POINTER], ctypes.c_int),
    "ggml_backend_graph_compute": ([_POINTER, _POINTER], ctypes.c_int),
}

#: In ``llama-ext.h``, which is C++: without it there is another, slower way.
KEEP_ROWS = "_Z26llama_set_embeddings_nextnP13llama_contextbb"
OPTIONAL: dict[str, tuple[list[Any], Any]] = {
    KEEP_ROWS: ([_POINTER, ctypes.c_bool, ctypes.c_bool], None),
}
