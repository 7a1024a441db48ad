"""How much memory llama.cpp takes to run a model: weights, KV cache, compute buffers.

llama.cpp itself is asked: it plans cache and buffers without allocating anything and without
reading weights (``no_alloc``), which also covers recurrent states, indexers and windows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.llama.library import library
from ggprune.llama.options import CACHE_TYPES
from ggprune.llama.runtime import without_mmap
from ggprune.model import MoeModel

_MIB = 1 << 20
_CACHE = re.compile(r"(?:kv_cache|memory)\w*: size = +([\d.]+) MiB")
_COMPUTE = re.compile(r"(\S+) +compute buffer size = +([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How the model is to be run.

    Attributes:
        context: tokens of one sequence.
        kv_type: of keys and values in the cache, see options.CACHE_TYPES.
        parallel: sequences at the same time, each with that context.
        ubatch: tokens computed at once.
    """

    context: int
    kv_type: str = "f16"
    parallel: int = 1
    ubatch: int = 512


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that running a model takes."""

    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.compute


def weight_bytes(model: MoeModel, keep: int) -> int:
    """Bytes of tensors that decoding loads, with ``keep`` experts; MTP layers stay on disk."""
    tensors = [t for t in model.gguf.tensors if t.name not in model.mtp_tensors]
    total = sum(t.nbytes for t in tensors)
    experts = sum(t.nbytes for t in tensors if t.name in model.expert_tensors)
    return total - experts * (model.experts - keep) // max(model.experts, 1)


def planned(model: MoeModel, use: Use) -> Memory:
    """Ask llama.cpp what it plans for the model as it is; nothing is allocated or read.

    Raises:
        InputError: an unknown type of the cache.
        LlamaError: it cannot load the model or make such a context.
    """
    if use.kv_type not in CACHE_TYPES:
        raise InputError(
            f"kv_type={use.kv_type}: unknown", remedy=f"One of: {', '.join(CACHE_TYPES)}."
        )
    with library().listening() as lines:
        _dry_run(model, use)
    text = "".join(lines)
    cache = sum(float(size) for size in _CACHE.findall(text))
    compute = sum(float(size) for _, size in _COMPUTE.findall(text))
    compute += sum(float(size) for size in _OUTPUT.findall(text))
    return Memory(weight_bytes(model, model.experts), round(cache * _MIB), round(compute * _MIB))


def check_loads(path: Path) -> None:
    """See that llama.cpp takes a model: its metadata and all shapes; no weights are read.

    Raises:
        LlamaError: it does not, with its reason.
    """
    library().api.llama_model_free(_load_empty(path, "llama.cpp cannot load this model"))


def _load_empty(path: Path, complaint: str) -> Any:
    api: Any = library().api
    library().begin()
    parameters = api.llama_model_default_params()
    parameters.no_alloc, parameters.use_extra_bufts = True, False
    without_mmap(parameters)
    handle = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        raise library().failure(f"{path}: {complaint}")
    return handle


def _dry_run(model: MoeModel, use: Use) -> None:
    api: Any = library().api
    handle = _load_empty(model.gguf.path, "llama.cpp cannot plan its memory")
    try:
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = use.context * use.parallel, use.parallel
        wanted.type_k = wanted.type_v = CACHE_TYPES[use.kv_type]
        wanted.n_ubatch = use.ubatch
        # As llama-server and llama-cli do; the library's own default keeps all of it.
        wanted.swa_full = False
        context = api.llama_init_from_model(handle, wanted)
        if not context:
            raise library().failure(
                f"{model.gguf.path}: llama.cpp refuses a context of {use.context} tokens with "
                f"{use.kv_type}",
                "Give another context or kv_type.",
            )
        api.llama_free(context)
    finally:
        api.llama_model_free(handle)
