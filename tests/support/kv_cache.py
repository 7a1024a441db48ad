"""The KV cache by formula, as an oracle for what llama.cpp plans.

For a layer with attention (src/llama-kv-cache.cpp, -iswa.cpp):

    bytes = cells · streams · (row(type_k, n_k) + row(type_v, n_v))

- n_k = heads_kv · key_length, n_v = heads_kv · value_length; layers with a sliding window have
  lengths of their own (``key_length_swa``).
- MLA keeps one compressed row and no V: n_k = kv_lora_rank + rope dimensions, which is what
  ``attention.key_length`` says then.
- cells = context, or in layers with a sliding window min(context, window + ubatch); both rounded
  up to 256. Every parallel sequence has a stream of its own.
- row(type, n) = n / block · bytes of a block: f16 2n, q8_0 34n/32, q4_0 18n/32.
- Gemma 4's last ``shared_kv_layers`` use other layers' caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ggprune.gguf_file import TENSOR_TYPES
from ggprune.llama.memory import Use
from ggprune.llama.options import CACHE_TYPES
from ggprune.model import MoeModel

_PAD = 256

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


def cache_bytes(model: MoeModel, use: Use) -> int | None:
    """The KV cache by the formula; None where the architecture has another kind of cache."""
    keys = model.metadata
    name = model.architecture.name
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
    found = TENSOR_TYPES[CACHE_TYPES[kind]]
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
