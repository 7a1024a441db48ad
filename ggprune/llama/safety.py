"""Finding out, in a child process, whether llama.cpp's CPU optimisations crash on this machine.

Built by GCC 12 on a Xeon with AMX, llama.cpp dies of SIGSEGV at the first quantized matrix
product. A user must not meet that, so a tiny quantized model is run in a child first, once for
each library and CPU; where it dies, weights are not repacked for this CPU.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from ggprune.errors import LlamaError
from ggprune.interrupts import interrupts
from ggprune.llama.library import library
from ggprune.llama.options import SPLIT_MODES
from ggprune.llama.runtime import NEWEST
from ggprune.util import cache_folder

_SECONDS = 120


@functools.cache
def extra_buffers_work() -> bool:
    """Whether llama.cpp may repack weights for this CPU.

    Raises:
        LlamaError: quantized models crash with and without: this build cannot run here.
    """
    remembered = _remembered()
    key = _machine_key()
    if key in remembered:
        return bool(remembered[key])
    works = _survives(repack=True)
    if not works and not _survives(repack=False):
        raise LlamaError(
            "the installed llama-cpp-python crashes on this CPU as soon as it computes",
            remedy=(
                "Build it without CPU-specific code: CMAKE_ARGS=-DGGML_NATIVE=OFF "
                f"pip install --force-reinstall --no-cache-dir llama-cpp-python=={NEWEST}"
            ),
        )
    _remember({**remembered, key: works})
    return works


def _survives(*, repack: bool) -> bool:
    """Run the tiny model in a child process; False if it is killed by a signal."""
    with tempfile.TemporaryDirectory(prefix="ggprune-") as folder:
        path = Path(folder) / "probe.gguf"
        _write_probe(path)
        code = (
            "import sys; from pathlib import Path; from ggprune.llama.safety import run_probe; "
            "run_probe(Path(sys.argv[1]), repack=sys.argv[2] == '1')"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(path), str(int(repack))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    # Ctrl-C ends the child too, which says nothing about the CPU.
    interrupts.check()
    return result.returncode == 0


def run_probe(path: Path, *, repack: bool) -> None:
    """Load the probe and compute 64 tokens: the child's whole work."""
    api = library().api
    params = api.llama_model_default_params()
    # No devices at all: large products of tensors in memory would be computed by a GPU.
    params.split_mode, params.main_gpu = SPLIT_MODES.index("none"), -1
    params.use_extra_bufts = repack
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        sys.exit(1)
    context = api.llama_init_from_model(model, api.llama_context_default_params())
    tokens = (api.llama_token * 64)(*range(64))
    sys.exit(api.llama_decode(context, api.llama_batch_get_one(tokens, 64)))


def _write_probe(path: Path) -> None:
    """Write a one-layer Llama of zeros, Q8_0 and Q4_K: every CPU kernel is entered."""
    import gguf
    import numpy as np

    size = 256
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, size),
        (writer.add_feed_forward_length, size),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 4),
        (writer.add_vocab_size, size),
    ):
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("none")
    for name in ("token_embd", "output", *(f"blk.0.{part}" for part in _PARTS)):
        kind = gguf.GGMLQuantizationType.Q4_K if "ffn" in name else gguf.GGMLQuantizationType.Q8_0
        row = gguf.quant_shape_to_byte_shape((size, size), kind)
        writer.add_tensor(f"{name}.weight", np.zeros(row, np.uint8), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def _machine_key() -> str:
    """Hash this library and this CPU."""
    library_file = Path(library().path)
    stamp = library_file.stat() if library_file.exists() else None
    facts = [
        library().version,
        str(library_file),
        str((stamp.st_size, stamp.st_mtime_ns) if stamp else ""),
        platform.machine(),
        platform.processor(),
        _cpu_flags(),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _cpu_flags() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        lines = stream.read().splitlines()
        return "\n".join(line for line in lines[:40] if line.startswith(("model name", "flags")))
    return ""


def _remembered() -> dict[str, bool]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((cache_folder() / "cpu.json").read_text())
        if isinstance(found, dict):
            return found
    return {}


def _remember(verdicts: dict[str, bool]) -> None:
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / "cpu.json").write_text(json.dumps(verdicts))
