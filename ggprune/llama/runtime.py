"""What ggprune takes for granted about llama.cpp, checked when the library is loaded.

The callback reads ``struct ggml_tensor`` in memory, and parameters go to C by value: where a
release lays them out in another way, nothing fails, the numbers are only wrong. So the library is
asked, before a model is.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ggprune.errors import LlamaError
from ggprune.gguf_file import TENSOR_TYPES
from ggprune.llama.symbols import InitParams

#: Releases of llama-cpp-python that passed the tests (docs/runtimes.md), and the ggml in them.
RELEASES = {"0.3.35": "0.20.0", "0.3.36": "0.25.3"}
NEWEST = list(RELEASES)[-1]
#: Folder of the llama.cpp that llama-cpp-python is to load instead of its own.
EXTERNAL = "LLAMA_CPP_LIB_PATH"
#: Remedy where that one does not fit.
OTHER_LIBRARY = f"Unset {EXTERNAL}, or let it name a llama.cpp with ggml {RELEASES[NEWEST]}."
#: Set to go on with a release that is not among them.
UNCHECKED = "GGPRUNE_UNCHECKED_RUNTIME"

#: Byte offsets within ``struct ggml_tensor`` on 64-bit machines.
TENSOR_TYPE = 0
TENSOR_BUFFER = 8
TENSOR_NE = 16
TENSOR_NB = 48
TENSOR_OP = 80
TENSOR_SRC = 152
TENSOR_VIEW_SRC = 232
TENSOR_DATA = 248
TENSOR_NAME = 256
_TENSOR_SIZE = 336
_OBJECT_HEADER = 32

#: Numbers of the matrix products in ``enum ggml_op``.
OP_MUL_MAT = 29
OP_MUL_MAT_ID = 30
_OPERATIONS = {OP_MUL_MAT: b"MUL_MAT", OP_MUL_MAT_ID: b"MUL_MAT_ID"}

#: The fields that ggprune sets, by ``struct …_params``, with llama.cpp's defaults (None: null).
_DEFAULTS: dict[str, dict[str, int | None]] = {
    "llama_model": {
        **{"tensor_buft_overrides": None, "n_gpu_layers": -1, "split_mode": 1, "main_gpu": 0},
        **{"tensor_split": None, "progress_callback": None, "kv_overrides": None},
        **{"vocab_only": 0, "use_extra_bufts": 1, "no_alloc": 0},
    },
    "llama_context": {
        **{"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max": 0},
        **{"n_threads": 4, "n_threads_batch": 4, "flash_attn_type": -1, "cb_eval": None},
        **{"type_k": 1, "type_v": 1, "abort_callback": None, "no_perf": 1, "swa_full": 1},
        **{"kv_unified": 0, "pooling_type": -1},
    },
    "llama_model_quantize": {
        **{"nthread": 0, "ftype": 7, "allow_requantize": 0, "quantize_output_tensor": 1},
        **{"only_copy": 0, "pure": 0, "keep_split": 0, "dry_run": 0, "imatrix": None},
        **{"kv_overrides": None, "tt_overrides": None},
    },
}
#: ``LLAMA_LOAD_MODE_NONE``.
_READ = 0
#: More bytes than any structure that llama.cpp returns has.
_ROOM = 1024


def check(
    api: Any, ggml: Mapping[str, Callable[..., Any]], version: str, *, is_external: bool
) -> None:
    """Refuse a llama.cpp that is not what ggprune was made for.

    Args:
        api: llama_cpp.
        ggml: see symbols.
        version: of llama-cpp-python.
        is_external: whether its library is another than its own (EXTERNAL).

    Raises:
        LlamaError: something is laid out in another way, or the release was not tested and
            nobody asked to go on with it.
    """
    what = f"llama-cpp-python {version}"
    if is_external:
        what += f" with {api._lib._name}"
    faults = [*_tensor_faults(ggml), *_number_faults(api, ggml), *_parameter_faults(api)]
    if faults:
        raise LlamaError(
            f"{what} does not fit this ggprune: {'; '.join(faults)}",
            remedy=OTHER_LIBRARY
            if is_external
            else f"pip install 'llama-cpp-python=={NEWEST}', or a newer ggprune.",
        )
    # Builds for CUDA may add what they were built for: 0.3.36+cu124.
    expected = RELEASES.get(version.partition("+")[0])
    ggml_version = ggml["ggml_version"]().decode()
    if os.environ.get(UNCHECKED) or expected == ggml_version:
        return
    known = ", ".join(RELEASES)
    reason = f"it is none of the releases that ggprune was tested with ({known})"
    if expected:
        reason = f"the library is of ggml {ggml_version}, this release's own of {expected}"
    fitting = OTHER_LIBRARY if is_external else f"pip install 'llama-cpp-python=={NEWEST}'."
    raise LlamaError(
        f"{what}: {reason}",
        remedy=f"{fitting} What ggprune reads is where it should "
        f"be, so it may work: go on with `unchecked_runtime` ({UNCHECKED}=1).",
    )


def without_mmap(params: Any) -> None:
    """Let a model be read instead of mapped; releases up to 0.3.34 have a switch for it."""
    if hasattr(params, "load_mode"):
        params.load_mode = _READ
    else:
        params.use_mmap = False


def _tensor_faults(ggml: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Make a tensor and a view of it, and look where their fields are."""
    size, expected = ggml["ggml_tensor_overhead"](), _OBJECT_HEADER + _TENSOR_SIZE
    if size != expected or ctypes.sizeof(ctypes.c_void_p) != 8:
        yield f"a tensor takes {size} bytes instead of {expected}"
        return
    context = ggml["ggml_init"](InitParams(4 * size, None, True))
    rows = ggml["ggml_new_tensor_3d"](context, 1, 2, 3, 5)
    node = ggml["ggml_sqr_inplace"](context, rows)
    ggml["ggml_set_name"](node, b"probe")
    cpu = ggml["ggml_backend_cpu_buffer_type"]()
    buffer = ggml["ggml_backend_alloc_ctx_tensors_from_buft"](context, cpu)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    found = {
        "type": (number.from_address(node + TENSOR_TYPE).value, 1),
        "buffer": (pointer.from_address(rows + TENSOR_BUFFER).value, buffer),
        "ne": ([*(ctypes.c_int64 * 4).from_address(node + TENSOR_NE)], [2, 3, 5, 1]),
        "nb": ([*(ctypes.c_size_t * 4).from_address(node + TENSOR_NB)], [2, 4, 12, 60]),
        "op": (ggml["ggml_op_name"](number.from_address(node + TENSOR_OP).value % 64), b"SQR"),
        "src": (pointer.from_address(node + TENSOR_SRC).value, rows),
        "view_src": (pointer.from_address(node + TENSOR_VIEW_SRC).value, rows),
        "data": (pointer.from_address(node + TENSOR_DATA).value, ggml["ggml_get_data"](node)),
        "name": (ctypes.string_at(node + TENSOR_NAME, 6), b"probe\0"),
    }
    ggml["ggml_backend_buffer_free"](buffer)
    ggml["ggml_free"](context)
    yield from (f"{name} of a tensor is elsewhere" for name, (a, b) in found.items() if a != b)


def _number_faults(api: Any, ggml: Mapping[str, Callable[..., Any]]) -> Iterator[str]:
    """Compare numbers of operations and tensor types by the names the library has for them."""
    for number, name in _OPERATIONS.items():
        if (told := ggml["ggml_op_name"](number)) != name:
            yield f"operation {number} is {told!r} instead of {name!r}"
    # An older release may have fewer types; asking for the name of others is not safe.
    count = api.llama_model_quantize_default_params().output_tensor_type
    for number, known in TENSOR_TYPES.items():
        told = ggml["ggml_type_name"](number) if number < count else None
        if told and told.decode().upper() != known.name.upper():
            yield f"tensor type {number} is {told.decode()} instead of {known.name}"


def _parameter_faults(api: Any) -> Iterator[str]:
    """Look for the parameters' defaults where the bindings have the fields, and at their sizes.

    Python would take a field that the bindings do not have, and set it nowhere.
    """
    for name, defaults in _DEFAULTS.items():
        function = getattr(api, f"{name}_default_params")
        params = function()
        for field, default in defaults.items():
            if not hasattr(params, field):
                yield f"{name}_params has no {field}"
            elif (found := getattr(params, field) or None) != (default or None):
                yield f"{name}_params.{field} is {found} instead of {default}"
        yield from _size_faults(api, f"{name}_default_params", params)
    yield from _size_faults(api, "llama_batch_init", api.llama_batch(), 1, 0, 1)


def _size_faults(api: Any, function: str, structure: Any, *arguments: int) -> Iterator[str]:
    """Count the bytes of the structure that a function returns.

    Where C returns it through a pointer to memory of the caller (on x86-64 the first argument;
    elsewhere a register that ctypes cannot set), what is written there differs from what is not.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return
    address = ctypes.cast(getattr(api._lib, function), ctypes.c_void_p).value or 0
    kinds = [ctypes.c_void_p, *(ctypes.c_int32 for _ in arguments)]
    call = ctypes.CFUNCTYPE(ctypes.c_void_p, *kinds)(address)
    zeros, ones = (ctypes.create_string_buffer(bytes([b]) * _ROOM, _ROOM) for b in (0, 255))
    for room in (zeros, ones):
        call(room, *arguments)
    written = max((i + 1 for i in range(_ROOM) if zeros[i] == ones[i]), default=0)
    size = -(-written // 8) * 8
    if size != ctypes.sizeof(structure):
        yield f"{type(structure).__name__} takes {size} bytes, not {ctypes.sizeof(structure)}"
