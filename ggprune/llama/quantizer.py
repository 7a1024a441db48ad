"""llama.cpp's quantizer, in a child process: it may abort, and must not take the user's run along.

``python -m ggprune.llama.quantizer`` is the child: a job as JSON on its first line of input, the
quantizer's log on stderr. The input stays open; when it ends, the parent is gone, and so goes the
child, even out of the quantizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ggprune.errors import LlamaError
from ggprune.llama.overrides import kv_overrides
from ggprune.system import was_killed

#: Names of ``enum llama_ftype`` as llama-quantize has them (llama.cpp 0c1e57098).
FILE_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "Q1_0": 40,
    "Q2_0": 41,
    "COPY": 0,
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_TAIL = 20


@dataclass(frozen=True, slots=True)
class QuantizeJob:
    """One call of llama_model_quantize.

    Attributes:
        source: the model, or its first shard.
        target: the file to write; with ``keep_split`` what shard numbers are appended to.
        type: a name in FILE_TYPES.
        threads: 0 for all.
        allow_requantize: from tensors that are quantized already.
        pure: one type for all tensors.
        keep_split: as many shards as the source.
        dry_run: only say what would be done.
        output_type, embedding_type: numbers of tensor types; None leaves it to llama.cpp.
        tensor_types: (regular expression, number of a tensor type), the first that matches.
        imatrix: an importance matrix.
        notes: metadata to add: texts and numbers.
    """

    source: str
    target: str
    type: str
    threads: int = 0
    allow_requantize: bool = False
    pure: bool = False
    keep_split: bool = False
    dry_run: bool = False
    output_type: int | None = None
    embedding_type: int | None = None
    tensor_types: tuple[tuple[str, int], ...] = ()
    imatrix: str | None = None
    notes: Mapping[str, str | int] = field(default_factory=dict)


def run_job(job: QuantizeJob, on_line: Callable[[str], object]) -> None:
    """Quantize in a child process.

    Args:
        job: what to do.
        on_line: called with each line of the quantizer's log.

    Raises:
        LlamaError: it refused, crashed or was killed; with its own last words.
    """
    tail: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "ggprune.llama.quantizer"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C is for us alone; we end the child.
        start_new_session=True,
    ) as child:
        assert child.stdin is not None and child.stderr is not None
        try:
            _send(child.stdin, json.dumps(asdict(job)) + "\n")
            for line in child.stderr:
                on_line(line.rstrip("\n"))
                tail = [*tail[1 - _TAIL :], line.strip()]
        except BaseException:
            child.kill()
            raise
        status = child.wait()
    if status != 0:
        raise _failure(job, status, [line for line in tail if line])


def _send(stream: IO[str], text: str) -> None:
    """Write to a child that may be gone already; why, its last words and its status tell."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # What could not be written would fail again when the stream is closed for good.
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _failure(job: QuantizeJob, status: int, tail: list[str]) -> LlamaError:
    said = [line for line in tail if "failed to quantize" in line or "GGML_ASSERT" in line]
    words = (said or tail or ["it said nothing"])[-1].rpartition("failed to quantize: ")[2]
    remedy = "Run with -v to see all that llama.cpp says."
    if was_killed(status):
        how, remedy = "was killed", "Was memory short? Try fewer --threads."
    elif status < 0:
        how = f"died of signal {-status}"
    else:
        how = "refused"
        if "imatrix" in words or "importance matrix" in words:
            remedy = "Types this small need --imatrix FILE; make one with `ggprune imatrix`."
        elif "requantizing" in words:
            remedy = "Quantize from F16, BF16 or F32, or use --allow-requantize."
    return LlamaError(f"{job.source} -> {job.type}: llama.cpp {how}: {words}", remedy=remedy)


def child_main() -> None:
    """The child: read the job, quantize, exit with 0 or 1."""
    fields = json.loads(sys.stdin.readline())
    fields["tensor_types"] = tuple((p, number) for p, number in fields["tensor_types"])
    threading.Thread(target=_die_with_parent, daemon=True).start()
    status = _quantize(QuantizeJob(**fields))
    sys.stderr.flush()
    os._exit(1 if status else 0)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _quantize(job: QuantizeJob) -> int:
    from ggprune.llama.library import library

    loaded = library()
    loaded.verbose(True)
    api = loaded.api
    params = api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[job.type]
    params.nthread = job.threads
    params.only_copy = job.type == "COPY"
    for name in ("allow_requantize", "pure", "keep_split", "dry_run"):
        setattr(params, name, getattr(job, name))
    if job.output_type is not None:
        params.output_tensor_type = job.output_type
    if job.embedding_type is not None:
        params.token_embedding_type = job.embedding_type
    kept = [_add_imatrix(api, params, job), _add_overrides(api, params, job)]
    status = api.llama_model_quantize(
        os.fsencode(job.source), os.fsencode(job.target), _pointer(params)
    )
    del kept  # Until here: the structures hold only pointers to it.
    return int(status)


def _pointer(params: Any) -> Any:
    import ctypes

    return ctypes.byref(params)


def _add_imatrix(api: Any, params: Any, job: QuantizeJob) -> Any:
    """Hand over the importance matrix as an array that ends with an entry without a name."""
    if job.imatrix is None:
        return None
    import ctypes

    import numpy as np

    from ggprune.quantization.imatrix import Imatrix

    means = [(n, e.means()) for n, e in Imatrix.load(Path(job.imatrix)).entries.items()]
    table = (api.llama_model_imatrix_data * (len(means) + 1))()
    for row, (name, values) in zip(table, means, strict=False):
        assert values.dtype == np.float32 and values.flags.c_contiguous
        row.name = name.encode()
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        row.size = values.size
    params.imatrix = table
    return table, means


def _add_overrides(api: Any, params: Any, job: QuantizeJob) -> Any:
    """Metadata to add, and types by name: arrays that end with an empty one."""
    notes = kv_overrides(api, job.notes)
    if notes is not None:
        params.kv_overrides = notes
    types = (api.llama_model_tensor_override * (len(job.tensor_types) + 1))()
    for row, (pattern, number) in zip(types, job.tensor_types, strict=False):
        row.pattern, row.type = pattern.encode(), number
    if job.tensor_types:
        params.tt_overrides = types
    return notes, types


if __name__ == "__main__":
    child_main()
