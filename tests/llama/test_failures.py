"""What llama.cpp itself says when it fails, and what is advised then."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggprune.errors import LlamaError
from ggprune.llama.library import library
from ggprune.llama.options import RunOptions
from ggprune.llama.session import LlamaContext, LlamaModel, Tokens
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.llama

OPTIONS = {"threads": 1, "repack": False}
NO_FLASH = {"cache_type_v": "q8_0", "flash_attn": "off"}


@pytest.mark.parametrize(
    ("old", "new", "reason", "remedy"),
    [
        ("blk.0.attn_q.weight", "blk.0.attn_x.weight", "blk.0.attn_q.weight'", "checksum"),
        ("moe.attention.head_count_kv", "moe.attention.head_count_kx", "wrong shape", "checksum"),
        ("moe.embedding_length", "moe.embedding_lengtX", "key not found", "checksum"),
        ("qwen3moe", "qwen9moe", "unknown model architecture: 'qwen9moe'", "newer ggprune"),
    ],
)
def test_a_file_that_cannot_be_loaded(
    tmp_path: Path, old: str, new: str, reason: str, remedy: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(LlamaError) as caught:
        LlamaModel(path, RunOptions(**OPTIONS))
    assert caught.value.message.startswith(f"{path}: llama.cpp cannot load this model: ")
    assert reason in caught.value.message and remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        (NO_FLASH, "V cache .*requires flash_attn", "flash_attn=on"),
        ({"cache_type_k": "q8_0"}, "does not divide", "cache_type_k=f16"),
    ],
)
def test_a_context_that_cannot_be_made(
    tmp_path: Path, options: dict[str, object], reason: str, remedy: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    with (
        LlamaModel(path, RunOptions(**OPTIONS, **options)) as model,
        pytest.raises(LlamaError, match=reason) as caught,
    ):
        LlamaContext(model, n_ctx=64)
    assert remedy in caught.value.remedy


def test_memory() -> None:
    """As backends word it; to run out of memory here would disturb other programs."""
    for said in (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9 MiB failed: out of memory",
        "alloc_tensor_range: failed to allocate CPU buffer of size 99",
        "llama_init_from_model: failed to initialize the context: std::bad_alloc",
    ):
        library().begin()
        library()._log._receive(4, said.encode() + b"\n", None)
        library()._log._receive(4, b"llama_model_load_from_file: failed to load model\n", None)
        error = library().failure("m.gguf: x")
        assert error.message == f"m.gguf: x: {said.partition(': ')[2]}"
        assert "smaller ctx" in error.remedy


def test_only_what_this_call_said_is_quoted(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "qwen3moe")
    options = RunOptions(**OPTIONS, **NO_FLASH)
    with LlamaModel(path, options) as model, pytest.raises(LlamaError):
        LlamaContext(model, n_ctx=64)
    with (
        LlamaModel(path, RunOptions(**OPTIONS)) as model,
        LlamaContext(model, n_ctx=256) as context,
        pytest.raises(LlamaError, match="memory slot") as caught,
    ):
        for start in range(0, 512, 256):
            context.decode([Tokens(0, start, [1] * 256)])
    assert "flash_attn" not in caught.value.message and "larger ctx" in caught.value.remedy
