"""How much memory llama.cpp takes to run a model: weights, KV cache, compute buffers.

The KV cache by formula, for a layer with attention (src/llama-kv-cache.cpp, -iswa.cpp):

    bytes = cells · streams · (row(type_k, n_k) + row(type_v, n_v))

- n_k = heads_kv · key_length, n_v = heads_kv · value_length; layers with a sliding window have
  lengths of their own (``key_length_swa``).
- MLA keeps one compressed row and no V: n_k = kv_lora_rank + rope dimensions, which is what
  ``attention.key_length`` says then.
- cells = context, or in layers with a sliding window min(context, window + ubatch); both rounded
  up to 256. Every parallel sequence has a stream of its own.
- row(type, n) = n / block · bytes of a block: f16 2n, q8_0 34n/32, q4_0 18n/32.
- Gemma 4's last ``shared_kv_layers`` use other layers' caches.

Compute buffers depend on the graph, so llama.cpp itself is asked: it plans them without
allocating anything and without reading weights (``no_alloc``). The same run says what it takes
for the cache, which also covers recurrent states and indexers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggprune.errors import InputError, LlamaError
from ggprune.gguf_file import TENSOR_TYPES
from ggprune.llama.library import library
from ggprune.model import MoeModel

#: Number in ``enum ggml_type`` by the name that llama.cpp's --cache-type-k takes.
KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}
_PAD = 256
_MIB = 1 << 20
_READ_NOTHING = 0
_CACHE = re.compile(r"(?:kv_cache|memory)\w*: size = +([\d.]+) MiB")
_COMPUTE = re.compile(r"(\S+) +compute buffer size = +([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size = +([\d.]+) MiB")

#: Layers with a sliding window where the file has no array: every n-th layer attends to all
#: (the last of n, or the first), and the window where the file does not say.
_PATTERNS: Mapping[str, tuple[int, bool]] = {
    "afmoe": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "smallthinker": (4, True),
}
_WINDOWS: Mapping[str, int] = {"llama4": 8192, "smallthinker": 4096}
#: Architectures whose cache the formula does not describe: recurrent layers, indexers, several
#: streams, attention that is no cache.
_OTHERS = ("ssm.conv_kernel", "kda.head_dim", "attention.indexer.top_k", "shortconv.l_cache")
_WITHOUT = frozenset({"deepseek4", "minimax-01", "nomic-bert-moe", "llada-moe", "rnd1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How the model is to be run.

    Attributes:
        context: tokens of one sequence.
        kv_type: of keys and values in the cache, see KV_TYPES.
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


def cache_bytes(model: MoeModel, use: Use) -> int | None:
    """The KV cache by the formula above; None where the architecture has another kind of cache.

    Raises:
        InputError: an unknown type, or rows that are no multiple of its block.
    """
    keys = model.metadata
    name = model.architecture.name if model.architecture else ""
    if name in _WITHOUT or any(key in keys for key in _OTHERS):
        return None
    layers = model.layers - len(model.mtp_layers)
    shared = keys.get("attention.shared_kv_layers", 0)
    sliding = _sliding(name, keys, layers)
    cells = _padded(use.context)
    windowed = min(cells, _padded(_window(name, keys) + use.ubatch))
    total = 0
    for layer in range(model.layers - shared if shared else layers):
        swa = layer < len(sliding) and sliding[layer]
        rows = _row(model, layer, swa, use.kv_type)
        total += (windowed if swa else cells) * use.parallel * rows
    return total


def planned(model: MoeModel, use: Use) -> Memory:
    """What llama.cpp itself plans for the model as it is; nothing is allocated or read.

    Raises:
        LlamaError: it cannot load the model or make such a context.
    """
    with library().listening() as lines:
        _dry_run(model, use)
    text = "".join(lines)
    cache = sum(float(size) for size in _CACHE.findall(text))
    compute = sum(float(size) for _, size in _COMPUTE.findall(text))
    compute += sum(float(size) for size in _OUTPUT.findall(text))
    return Memory(weight_bytes(model, model.experts), round(cache * _MIB), round(compute * _MIB))


def _dry_run(model: MoeModel, use: Use) -> None:
    api: Any = library().api
    parameters = api.llama_model_default_params()
    parameters.no_alloc, parameters.use_extra_bufts = True, False
    parameters.load_mode = _READ_NOTHING
    handle = api.llama_model_load_from_file(os.fsencode(model.gguf.path), parameters)
    if not handle:
        raise LlamaError(
            f"{model.gguf.path}: llama.cpp cannot plan its memory: {library().last_error}",
            remedy="Give --target-size instead of --fit-vram.",
        )
    try:
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = use.context * use.parallel, use.parallel
        wanted.type_k = wanted.type_v = _type_number(use.kv_type)
        wanted.n_ubatch = use.ubatch
        # As llama-server and llama-cli do; the library's own default keeps all of it.
        wanted.swa_full = False
        context = api.llama_init_from_model(handle, wanted)
        if not context:
            raise LlamaError(
                f"{model.gguf.path}: llama.cpp refuses a context of {use.context} tokens with "
                f"{use.kv_type}: {library().last_error}",
                remedy="Give another --context or --kv-type.",
            )
        api.llama_free(context)
    finally:
        api.llama_model_free(handle)


def _type_number(name: str) -> int:
    if name not in KV_TYPES:
        raise InputError(f"--kv-type {name}: unknown", remedy=f"One of: {', '.join(KV_TYPES)}.")
    return KV_TYPES[name]


def _row(model: MoeModel, layer: int, swa: bool, kind: str) -> int:
    """Bytes of keys and values of one token in one layer."""
    keys = model.metadata
    heads = _of_layer(keys, "attention.head_count_kv", layer) or _of_layer(
        keys, "attention.head_count", layer
    )
    default = _number(keys, "embedding_length") // max(
        _of_layer(keys, "attention.head_count", layer), 1
    )
    lengths = []
    for part in ("key", "value"):
        whole = _number(keys, f"attention.{part}_length") or default
        lengths.append((_number(keys, f"attention.{part}_length_swa") if swa else 0) or whole)
    if _number(keys, "attention.key_length_mla"):
        return _bytes(kind, heads * lengths[0])
    return sum(_bytes(kind, heads * length) for length in lengths)


def _bytes(kind: str, values: int) -> int:
    found = TENSOR_TYPES[_type_number(kind)]
    return -(-values // found.block) * found.size


def _sliding(name: str, keys: Mapping[str, Any], layers: int) -> Sequence[bool]:
    """Which layers attend to a window only."""
    if not _window(name, keys):
        return []
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return [bool(each) for each in pattern]
    if name not in _PATTERNS:
        return []
    period, first = _PATTERNS[name]
    period = pattern if isinstance(pattern, int) and pattern else period
    full = 0 if first else period - 1
    return [layer % period != full for layer in range(layers)]


def _window(name: str, keys: Mapping[str, Any]) -> int:
    window = _number(keys, "attention.sliding_window")
    return _WINDOWS.get(name, window) if window or name == "llama4" else 0


def _of_layer(keys: Mapping[str, Any], key: str, layer: int) -> int:
    value = keys.get(key, 0)
    if isinstance(value, list):
        return int(value[layer]) if layer < len(value) else 0
    return int(value)


def _number(keys: Mapping[str, Any], key: str) -> int:
    value = keys.get(key, 0)
    return value if isinstance(value, int) else 0


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD
