"""Where a model's tensors go: devices, their memory and buffer types, and what fits.

Names and meanings of the options are llama.cpp's (``common/arg.cpp``).
"""

from __future__ import annotations

import ctypes
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggprune.errors import InputError
from ggprune.gguf_file import GgufModel
from ggprune.llama.library import library
from ggprune.llama.options import SPLIT_MODES, RunOptions
from ggprune.llama.symbols import BufferOverride

#: Weights of experts, as ``--cpu-moe`` matches them (common/common.h).
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"

#: Left free on every device, for what is not weights: llama.cpp's own --fit leaves the same.
_MARGIN = 1 << 30

#: Cache that is reckoned with: tokens of a context, and bytes of a value (F16).
_CACHE_TOKENS = 4096
_CACHE_BYTES = 2


class Kind(enum.IntEnum):
    """``enum ggml_backend_dev_type``."""

    CPU = 0
    GPU = 1
    INTEGRATED = 2
    ACCELERATOR = 3
    META = 4


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes.

    Attributes:
        handle: address of the ``ggml_backend_dev_t``.
        name: ``CUDA0``, ``RPC0[10.0.0.2:50052]``, ``CPU``.
        description: of the hardware.
        kind: see Kind.
        free, total: bytes of memory; both 0 where it does not say.
    """

    handle: int
    name: str
    description: str
    kind: Kind
    free: int
    total: int


def devices() -> list[Device]:
    """All devices that llama.cpp knows, RPC servers that were added included."""
    ggml = library().ggml
    found = []
    for index in range(ggml["ggml_backend_dev_count"]()):
        handle = ggml["ggml_backend_dev_get"](index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml["ggml_backend_dev_memory"](handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                handle,
                ggml["ggml_backend_dev_name"](handle).decode(),
                ggml["ggml_backend_dev_description"](handle).decode(),
                Kind(ggml["ggml_backend_dev_type"](handle)),
                free.value,
                total.value,
            )
        )
    return found


def backends() -> list[str]:
    """Names of the backends that this llama.cpp was built with: CPU, CUDA, Vulkan."""
    ggml = library().ggml
    registries = map(ggml["ggml_backend_reg_get"], range(ggml["ggml_backend_reg_count"]()))
    return [ggml["ggml_backend_reg_name"](registry).decode() for registry in registries]


def physical_memory() -> int:
    """Bytes of this machine's memory; 0 where the system does not say."""
    return next((device.total for device in devices() if device.kind is Kind.CPU), 0)


def offload_devices() -> list[Device]:
    """Devices that layers are put on by default, in llama.cpp's order: RPC servers first."""
    found = devices()
    gpus = [device for device in found if device.kind is Kind.GPU]
    gpus = gpus or [device for device in found if device.kind is Kind.INTEGRATED][:1]
    return sorted(gpus, key=lambda device: not device.name.startswith("RPC"))


def buffer_types() -> dict[str, int]:
    """Return buffer types by name, for ``override_tensor``."""
    ggml = library().ggml
    found = (ggml["ggml_backend_dev_buffer_type"](device.handle) for device in devices())
    return {ggml["ggml_backend_buft_name"](each).decode(): each for each in found if each}


def apply(options: RunOptions, gguf: GgufModel, params: Any) -> list[Any]:
    """Put the placement into ``llama_model_params``.

    Returns:
        Memory that must live as long as the model.

    Raises:
        InputError: a pattern, a buffer or a split that cannot be.
    """
    params.n_gpu_layers = -1 if options.gpu_layers is None else options.gpu_layers
    params.split_mode = SPLIT_MODES.index(options.split_mode)
    params.main_gpu = options.main_gpu
    kept: list[Any] = []
    if options.tensor_split:
        kept.append(_split(options.tensor_split))
        params.tensor_split = ctypes.cast(kept[-1], ctypes.POINTER(ctypes.c_float))
    overrides = _overrides(options, gguf)
    if overrides:
        array = (BufferOverride * (len(overrides) + 1))(*overrides)
        kept.append(array)
        params.tensor_buft_overrides = ctypes.cast(array, ctypes.c_void_p)
    return kept


def _split(shares: Sequence[float]) -> Any:
    most = int(library().api.llama_max_devices())
    if len(shares) > most or min(shares) < 0 or sum(shares) <= 0:
        raise InputError(
            f"tensor_split={','.join(f'{share:g}' for share in shares)}: needs at most {most} "
            "shares, none below 0 and one above"
        )
    return (ctypes.c_float * most)(*shares)


def _overrides(options: RunOptions, gguf: GgufModel) -> list[BufferOverride]:
    cpu = library().ggml["ggml_backend_cpu_buffer_type"]()
    found = [_override(text, gguf) for text in options.override_tensor]
    if options.cpu_moe:
        found.append(BufferOverride(EXPERTS.encode(), cpu))
    for layer in range(options.n_cpu_moe):
        found.append(BufferOverride(rf"blk\.{layer}{EXPERTS}".encode(), cpu))
    return found


def _override(text: str, gguf: GgufModel) -> BufferOverride:
    pattern, _, buffer = text.rpartition("=")
    there = buffer_types()
    if not pattern or buffer not in there:
        raise InputError(
            f"override_tensor={text}: there is no buffer {buffer!r}",
            remedy=f"Write PATTERN=BUFFER with one of these buffers: {', '.join(there)}",
        )
    try:
        matching = any(re.search(pattern, tensor.name) for tensor in gguf.tensors)
    except re.error as error:
        raise InputError(f"override_tensor={text}: not a regular expression: {error}") from error
    if not matching:
        raise InputError(
            f"override_tensor={text}: no tensor of {gguf.path} matches {pattern!r}",
            remedy=rf"For instance 'blk\.(0|1|2)\.ffn_.*_exps={next(iter(there))}'.",
        )
    return BufferOverride(pattern.encode(), there[buffer])


def fit(gguf: GgufModel, available: Sequence[Device], options: RunOptions) -> RunOptions:
    """Decide what goes on devices: all layers; as few layers' experts as need be stay on the CPU.

    Experts are most of a mixture-of-experts model, and of each only a few work on a token, so
    they cost least on the CPU. If even the rest of all layers does not fit, the last layers go.

    Args:
        available: devices in llama.cpp's order.
        options: that leave it open; the logits of a ubatch have to fit too.
    """
    if not available:
        return replace(options, gpu_layers=0)
    room = [_room(device, gguf, options.ubatch) for device in available]
    layers = _layer_bytes(gguf)
    for count in range(len(layers) + 1):
        sizes = [each.all if number >= count else each.dense for number, each in enumerate(layers)]
        split = _assigned([*sizes, _output_bytes(gguf)], room)
        if split is not None:
            return _placed(replace(options, n_cpu_moe=count), split)
    for first in range(1, len(layers) + 1):
        sizes = [each.dense for each in layers[first:]]
        split = _assigned([*sizes, _output_bytes(gguf)], room)
        if split is not None:
            on_device = replace(options, gpu_layers=len(sizes) + 1, n_cpu_moe=len(layers))
            return _placed(on_device, split)
    return replace(options, gpu_layers=0)


def _placed(options: RunOptions, split: Sequence[int]) -> RunOptions:
    return replace(options, tensor_split=tuple(map(float, split))) if len(split) > 1 else options


@dataclass(slots=True)
class _Layer:
    """Bytes of a layer on a device, its part of the cache included."""

    dense: int
    experts: int = 0

    @property
    def all(self) -> int:
        return self.dense + self.experts


def _layer_bytes(gguf: GgufModel) -> list[_Layer]:
    count = int(_key(gguf, "block_count", 0))
    layers = [_Layer(_cache_bytes(gguf, number)) for number in range(count)]
    for tensor in gguf.tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match is None or int(match[1]) >= len(layers):
            continue
        layer = layers[int(match[1])]
        if re.search(EXPERTS, tensor.name):
            layer.experts += tensor.nbytes
        else:
            layer.dense += tensor.nbytes
    return layers


def _output_bytes(gguf: GgufModel) -> int:
    """Add up what follows the last layer; a tied embedding is copied there."""
    sizes = {tensor.name: tensor.nbytes for tensor in gguf.tensors}
    head = "output.weight" if "output.weight" in sizes else "token_embd.weight"
    others = sum(size for name, size in sizes.items() if name.startswith("output") and name != head)
    return sizes.get(head, 0) + others


def _room(device: Device, gguf: GgufModel, ubatch: int) -> int:
    """Bytes for weights and cache on a device; one that does not say has room for all."""
    if not device.total:
        return 1 << 62
    embedding = next((t for t in gguf.tensors if t.name == "token_embd.weight"), None)
    logits = embedding.shape[1] * ubatch * 4 if embedding else 0
    return max(device.free - _MARGIN - logits, 0)


def _assigned(sizes: Sequence[int], room: Sequence[int]) -> list[int] | None:
    """Fill devices one after the other with consecutive layers; layers on each, or None."""
    counts, left, at = [0] * len(room), list(room), 0
    for size in sizes:
        while at < len(room) and size > left[at]:
            at += 1
        if at == len(room):
            return None
        left[at] -= size
        counts[at] += 1
    return counts


def _cache_bytes(gguf: GgufModel, layer: int) -> int:
    """Bytes of a layer's keys and values; an upper bound for windows and latent attention."""

    def of_layer(key: str, default: int) -> int:
        value = _key(gguf, key, default)
        return value if isinstance(value, int) else value[layer] if layer < len(value) else 0

    heads = max(of_layer("attention.head_count", 1), 1)
    cached = of_layer("attention.head_count_kv", of_layer("attention.head_count", 0))
    default = int(_key(gguf, "embedding_length", 0)) // heads
    width = sum(int(_key(gguf, f"attention.{each}_length", default)) for each in ("key", "value"))
    return cached * width * _CACHE_TOKENS * _CACHE_BYTES


def _key(gguf: GgufModel, key: str, default: Any) -> Any:
    return gguf.get(f"{gguf.get('general.architecture', '')}.{key}", default)
