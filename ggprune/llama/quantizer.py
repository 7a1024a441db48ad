"""llama.cpp's quantizer, in a child process: it may abort, and must not take the user's run along.

``python -m ggprune.llama.quantizer`` is the child: a job as JSON on the first line of its input,
then the values of the importance matrix; the quantizer's log on stderr. The input stays open; when
it ends, the parent is gone, and so goes the child, even out of the quantizer.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from ggprune.errors import InputError, LlamaError
from ggprune.gguf_file import TYPE_NUMBERS
from ggprune.llama.options import QuantizeOptions
from ggprune.system import was_killed
from ggprune.types import Floats32

# In the order of ``enum llama_ftype`` (llama.cpp 0c1e57098), under llama-quantize's names.
_NAMES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M "
    "Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M "
    "BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE - Q1_0 Q2_0"
)
#: Numbers of ``enum llama_ftype`` by name.
FILE_TYPES = {name: n for n, name in enumerate(_NAMES.split()) if name != "-"} | {"COPY": 0}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_TAIL = 20
#: Options that the child knows nothing of.
_OURS = ("imatrix", "split_max_size")


def tensor_type(name: str) -> int:
    """Look up the number of a tensor type: q8_0, f16.

    Raises:
        InputError: there is none of this name.
    """
    number = TYPE_NUMBERS.get(name.upper())
    if number is None:
        known = ", ".join(TYPE_NUMBERS)
        raise InputError(f"{name}: is not a tensor type", remedy=f"Known: {known}.")
    return number


def quantize(
    source: Path,
    target: Path,
    type_name: str,
    options: QuantizeOptions,
    on_line: Callable[[str], object],
    *,
    imatrix: Mapping[str, Floats32] | None = None,
    notes: Mapping[str, str | int] | None = None,
    dry_run: bool = False,
) -> None:
    """Quantize in a child process.

    Args:
        source: the model, or its first shard.
        target: the file to write; with ``keep_split`` what shard numbers are appended to.
        type_name: a name in FILE_TYPES.
        options: how; its ``imatrix`` is not read here.
        on_line: called with each line of the quantizer's log.
        imatrix: means of x² by the weight's name, [matrices x columns], flat.
        notes: metadata to add: texts and numbers.

    Raises:
        InputError: an unknown tensor type.
        LlamaError: llama.cpp refused, crashed or was killed; with its own last words.
    """
    values = {name: np.ascontiguousarray(each, "<f4") for name, each in (imatrix or {}).items()}
    named = {"output": options.output_type, "embedding": options.token_embedding_type}
    job = {
        **{name: value for name, value in asdict(options).items() if name not in _OURS},
        **{name: kind and tensor_type(kind) for name, kind in named.items()},
        "tensor_types": [(pattern, tensor_type(kind)) for pattern, kind in options.tensor_types],
        "source": str(source),
        "target": str(target),
        "type": FILE_TYPES[type_name],
        "only_copy": type_name == "COPY",
        "dry_run": dry_run,
        "notes": dict(notes or {}),
        "imatrix": [(name, each.size) for name, each in values.items()],
    }
    tail: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "ggprune.llama.quantizer"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Ctrl-C is for us alone; we end the child.
        start_new_session=True,
    ) as child:
        assert child.stdin is not None and child.stderr is not None
        try:
            _send(
                child.stdin,
                json.dumps(job).encode() + b"\n",
                *(v.tobytes() for v in values.values()),
            )
            for line in io.TextIOWrapper(child.stderr, "utf-8", errors="replace"):
                on_line(line.rstrip("\n"))
                tail = [*tail[1 - _TAIL :], line.strip()]
        except BaseException:
            child.kill()
            raise
        status = child.wait()
    if status != 0:
        raise _failure(f"{source} -> {type_name}", status, [line for line in tail if line])


def _send(stream: IO[bytes], *parts: bytes) -> None:
    """Write to a child that may be gone already; why, its last words and its status tell."""
    try:
        for part in parts:
            stream.write(part)
        stream.flush()
    except BrokenPipeError:
        # What could not be written would fail again when the stream is closed for good.
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _failure(what: str, status: int, tail: list[str]) -> LlamaError:
    said = [line for line in tail if "failed to quantize" in line or "GGML_ASSERT" in line]
    words = (said or tail or ["it said nothing"])[-1].rpartition("failed to quantize: ")[2]
    remedy = "Run with -v to see all that llama.cpp says."
    if was_killed(status):
        how, remedy = "was killed", "Was memory short? Try fewer threads."
    elif status < 0:
        how = f"died of signal {-status}"
    else:
        how = "refused"
        if "imatrix" in words or "importance matrix" in words:
            remedy = "Types this small need an importance matrix; make one with `ggprune imatrix`."
        elif "requantizing" in words:
            remedy = "Quantize from F16, BF16 or F32, or pass allow_requantize=True."
    return LlamaError(f"{what}: llama.cpp {how}: {words}", remedy=remedy)


def child_main() -> None:
    """Read the job, quantize, exit with 0 or 1: the child."""
    job = json.loads(sys.stdin.buffer.readline())
    imatrix = {name: _array(sys.stdin.buffer, size) for name, size in job["imatrix"]}
    threading.Thread(target=_die_with_parent, daemon=True).start()
    status = _quantize(job, imatrix)
    sys.stderr.flush()
    os._exit(1 if status else 0)


def _array(stream: IO[bytes], size: int) -> Floats32:
    data = stream.read(4 * size)
    if len(data) < 4 * size:
        os._exit(1)  # The parent is gone.
    return np.frombuffer(data, "<f4")


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _quantize(job: Mapping[str, Any], imatrix: Mapping[str, Floats32]) -> int:
    from ggprune.llama.library import library

    loaded = library()
    loaded.verbose(True)
    api = loaded.api
    params = api.llama_model_quantize_default_params()
    params.ftype = job["type"]
    params.nthread = job["threads"] or 0
    for name in ("only_copy", "allow_requantize", "pure", "keep_split", "dry_run"):
        setattr(params, name, job[name])
    if job["output"] is not None:
        params.output_tensor_type = job["output"]
    if job["embedding"] is not None:
        params.token_embedding_type = job["embedding"]
    kept = [_add_imatrix(api, params, imatrix), _add_overrides(api, params, job)]
    status = api.llama_model_quantize(
        os.fsencode(job["source"]), os.fsencode(job["target"]), ctypes.byref(params)
    )
    del kept  # Until here: the structures hold only pointers to it.
    return int(status)


def _add_imatrix(api: Any, params: Any, imatrix: Mapping[str, Floats32]) -> Any:
    """Hand over the importance matrix as an array that ends with an entry without a name."""
    if not imatrix:
        return None
    table = (api.llama_model_imatrix_data * (len(imatrix) + 1))()
    for row, (name, values) in zip(table, imatrix.items(), strict=False):
        row.name = name.encode()
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        row.size = values.size
    params.imatrix = table
    return table


def _add_overrides(api: Any, params: Any, job: Mapping[str, Any]) -> Any:
    """Metadata to add, and types by name: arrays that end with an empty one."""
    from ggprune.llama.library import kv_overrides

    notes = kv_overrides(api, job["notes"])
    if notes is not None:
        params.kv_overrides = notes
    types = (api.llama_model_tensor_override * (len(job["tensor_types"]) + 1))()
    for row, (pattern, number) in zip(types, job["tensor_types"], strict=False):
        row.pattern, row.type = pattern.encode(), number
    if job["tensor_types"]:
        params.tt_overrides = types
    return notes, types


if __name__ == "__main__":
    child_main()
