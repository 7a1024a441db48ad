"""How llama.cpp runs and quantizes a model, as records; light, since help is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggprune.fields import check_fields
from ggprune.system import cores
from ggprune.types import option

#: Values of ``enum llama_flash_attn_type``.
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

#: Types of a KV cache, by ``enum ggml_type``.
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "iq4_nl": 20,
    "q4_1": 3,
    "q4_0": 2,
}

#: By ``enum llama_split_mode``.
SPLIT_MODES = ("none", "layer", "row", "tensor")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a model; names and meanings are llama.cpp's.

    The fields are described where they are declared, as ``--help`` shows them. ``threads`` is
    None for one a core, ``gpu_layers`` None for all that fit.
    """

    threads: int | None = option(None, "Default: one a core.", minimum=1)
    gpu_layers: int | None = option(None, "Layers on the GPU; default: all that fits.", minimum=0)
    cpu_moe: bool = option(False, "Keep all experts on the CPU.")
    n_cpu_moe: int = option(
        0, "Keep the experts of the first N layers on the CPU.", minimum=0, metavar="N"
    )
    override_tensor: tuple[str, ...] = option(
        (), "Put tensors into a buffer of your choice; repeatable.", metavar="PATTERN=BUFFER"
    )
    split_mode: str = option("layer", "How to split over several GPUs.", choices=SPLIT_MODES)
    tensor_split: tuple[float, ...] = option(
        (), "Share of each GPU, such as 3,1.", metavar="N0,N1,…"
    )
    main_gpu: int = option(0, "The GPU to use where the split mode is none or row.", minimum=-1)
    flash_attn: str = option("auto", "Flash attention.", choices=("on", "off", "auto"))
    cache_type_k: str = option("f16", "Type of cached keys.", choices=tuple(CACHE_TYPES))
    cache_type_v: str = option("f16", "Type of cached values.", choices=tuple(CACHE_TYPES))
    ubatch: int = option(512, "Tokens computed at once.", minimum=1)
    mmap: bool = option(True, "Read the model into memory.")
    repack: bool = option(True, "Do not rearrange weights for this CPU.")
    rpc: tuple[str, ...] = option(
        (),
        "Use these servers' devices too; see `ggprune rpc-server`.",
        metavar="HOST:PORT,…",
    )
    verbose: bool = option(False, "Show llama.cpp's log too.")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_placed_automatically(self) -> bool:
        """Whether the user left it to what fits where layers and tensors go."""
        return all(getattr(self, name) == getattr(_DEFAULTS, name) for name in _PLACEMENT)

    @property
    def n_threads(self) -> int:
        """Threads to use, at least one."""
        return self.threads or cores()


_DEFAULTS = RunOptions()
#: Fields that say where layers and tensors go.
_PLACEMENT = (
    *("gpu_layers", "cpu_moe", "n_cpu_moe", "override_tensor"),
    *("split_mode", "tensor_split", "main_gpu"),
)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How to quantize; names and meanings are llama-quantize's, fields described as options.

    ``tensor_types`` are pairs of a regular expression and the name of a tensor type, of which the
    first that matches counts; ``threads`` is None for one a core.
    """

    imatrix: Path | None = option(None, "Importance matrix, GGUF or .dat.")
    tensor_types: tuple[tuple[str, str], ...] = option(
        (),
        "Type of tensors whose name has PATTERN (a regular expression); repeatable.",
        metavar="PATTERN=TYPE",
    )
    output_type: str | None = option(None, "Type of output.weight.", metavar="TYPE")
    token_embedding_type: str | None = option(None, "Type of token_embd.weight.", metavar="TYPE")
    pure: bool = option(False, "One type for all tensors, no mixtures.")
    keep_split: bool = option(False, "As many shards as the source has.")
    split_max_size: int | None = option(
        None, "Write shards of at most this size: 50G.", minimum=1, metavar="SIZE"
    )
    allow_requantize: bool = option(False, "From a file that is quantized already.")
    threads: int | None = option(None, "Default: one a core.", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
