"""Single tensors quantized here are those that llama.cpp's quantizer writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggprune.errors import LlamaError
from ggprune.fitting import kinds
from ggprune.fitting.requantize import Requantizer
from ggprune.gguf_file import GgufModel, Tensor, tensor_type_name
from ggprune.llama.options import QuantizeOptions
from ggprune.llama.quantizer import quantize
from ggprune.quantization.imatrix import Entry, Imatrix

pytestmark = pytest.mark.llama

#: Rows of 256, of 64 (so they get another type) and of 256 without importance.
TENSORS = ("blk.1.ffn_gate_up_exps.weight", "blk.4.ffn_down_exps.weight", "token_embd.weight")


@pytest.fixture(scope="module")
def imatrix(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(5)
    entries = {}
    with GgufModel(trained) as model:
        for tensor in model.tensors:
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
                matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
                sums = random.lognormal(0, 2, (matrices, tensor.shape[0])).astype(np.float32)
                entries[tensor.name] = Entry(sums, np.ones(matrices, np.float32))
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    Imatrix(entries, ("text",), 1, 512).save(path)
    return path


def converted(requantizer: Requantizer, tensor: Tensor, kind: str) -> bytes:
    parts: list[bytes] = []
    requantizer.convert(tensor, kind, lambda part: parts.append(bytes(part)))
    return b"".join(parts)


@pytest.mark.parametrize("file_type", ["Q3_K_M", "IQ3_S"])
def test_bytes_equal_llama_quantize(
    trained: Path, imatrix: Path, tmp_path: Path, file_type: str
) -> None:
    means = {name: entry.means() for name, entry in Imatrix.load(imatrix).entries.items()}
    options = QuantizeOptions(pure=True, allow_requantize=True)
    quantize(trained, tmp_path / "whole.gguf", file_type, options, print, imatrix=means)
    asked = {"Q3_K_M": "Q3_K", "IQ3_S": "IQ3_S"}[file_type]
    with (
        GgufModel(trained) as source,
        GgufModel(tmp_path / "whole.gguf") as whole,
        Requantizer(source, means, 2) as requantizer,
    ):
        originals = {tensor.name: tensor for tensor in source.tensors}
        made = {tensor.name: tensor for tensor in whole.tensors}
        for name in TENSORS:
            kind = kinds.resolved(originals[name].shape[0], asked)
            assert kind == tensor_type_name(made[name].type)
            assert converted(requantizer, originals[name], kind) == whole.read(made[name]), name


def test_the_error_is_that_of_the_values(trained: Path) -> None:
    with GgufModel(trained) as source, Requantizer(source, {}, 2) as requantizer:
        tensor = next(t for t in source.tensors if t.name == "blk.0.attn_q.weight")
        found = requantizer.errors(tensor, ("Q8_0", "Q4_K", "Q2_K"), 1 << 30)
        import gguf

        def values(kind: str, data: bytes) -> np.ndarray:
            return gguf.dequantize(
                np.frombuffer(data, np.uint8).reshape(256, -1), gguf.GGMLQuantizationType[kind]
            )

        data = converted(requantizer, tensor, "Q4_K")
        difference = values("Q4_K", data) - values("Q8_0", source.read(tensor))
    assert found["Q4_K"] == pytest.approx(float(np.square(difference).sum()), rel=1e-4)
    assert found["Q8_0"] == 0 < found["Q4_K"] < found["Q2_K"]


def test_types_that_need_an_importance_matrix(trained: Path) -> None:
    with GgufModel(trained) as source, Requantizer(source, {}, 1) as requantizer:
        tensor = next(t for t in source.tensors if t.name == "blk.0.attn_q.weight")
        with pytest.raises(LlamaError, match="IQ2_XXS"):
            requantizer.convert(tensor, "IQ2_XXS", lambda _: None)
