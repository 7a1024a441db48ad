"""Run a tiny model through llama.cpp and look at (or change) the nodes of its graph.

Independent of ggprune: tests compare ggprune with what is seen here.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Visit = Callable[[str, "Node"], None]


class _Llama:
    """The module llama_cpp.llama_cpp, loaded when it is first used and not by collecting tests."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("llama_cpp.llama_cpp"), name)


llama = _Llama()


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` up to the name (ggml/include/ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Node:
    """A computed graph node, valid inside the callback only."""

    def __init__(self, address: int) -> None:
        self._tensor = _Tensor.from_address(address)

    @property
    def name(self) -> str:
        return str(self._tensor.name.decode())

    @property
    def array(self) -> NDArray[Any]:
        """The data as a writable array with NumPy's order of axes; strides are respected."""
        kind = {0: np.float32, 26: np.int32}[self._tensor.type]
        shape = tuple(self._tensor.ne)[::-1]
        strides = tuple(self._tensor.nb)[::-1]
        span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 4
        raw = (ctypes.c_byte * span).from_address(self._tensor.data)
        array: NDArray[Any] = np.ndarray(shape, dtype=kind, buffer=raw, strides=strides)
        return array

    def source(self, index: int) -> Node:
        """The ``index``-th input of the node."""
        return Node(self._tensor.src[index])


log: list[str] = []


@cache
def _collect_log() -> Any:
    """The callback, kept for as long as llama.cpp may call it."""
    return llama.llama_log_callback(
        lambda _level, text, _: log.append(text.decode("utf-8", "replace"))
    )


class Model:
    """A model loaded on the CPU, without repacked weights."""

    def __init__(
        self,
        path: Path | str,
        *,
        embedding: bool = False,
        mtp: bool = False,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        llama.llama_log_set(_collect_log(), ctypes.c_void_p(0))
        log.clear()
        params = llama.llama_model_default_params()
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        params.load_mtp = mtp
        entries = (llama.llama_model_kv_override * (len(overrides or {}) + 1))()
        for entry, (key, value) in zip(entries, (overrides or {}).items(), strict=False):
            entry.tag, entry.key = llama.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode()
            entry.value.val_i64 = value
        if overrides:
            params.kv_overrides = entries
        self._embedding = embedding
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError("".join(log[-12:]))

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def _context(self, tokens: int, callback: object) -> object:
        params = llama.llama_context_default_params()
        params.n_ctx = max(tokens, 256)
        params.n_batch = params.n_ubatch = tokens
        params.n_threads = params.n_threads_batch = 1
        # F16 in the cache, or inside flash attention, would turn the last bit of a sum into a
        # visible difference.
        params.type_k = params.type_v = 0
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.embeddings = self._embedding
        if self._embedding:
            params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        params.cb_eval = callback
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("".join(log[-12:]))
        return context

    def run(
        self,
        tokens: Sequence[int],
        visit: Visit | None = None,
        wanted: Callable[[str], bool] | None = None,
        adapter: Path | None = None,
    ) -> NDArray[np.float32]:
        """Decode tokens in one batch; return logits (or embeddings) of all, [tokens, …].

        ``visit`` is called with the name and the node of every node of which ``wanted`` says yes.
        """
        failure: list[BaseException] = []

        # An exception that left the callback would end the graph without a word.
        def observe(address: int, ask: bool, _user_data: object) -> bool:
            try:
                node = Node(address)
                if wanted is None or not wanted(node.name):
                    return not ask
                if not ask and visit is not None:
                    visit(node.name, node)
            except BaseException as error:
                failure.append(error)
                return False
            return True

        callback = llama.ggml_backend_sched_eval_callback(observe)
        context = self._context(len(tokens), callback)
        if adapter is not None:
            lora = llama.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not lora:
                raise RuntimeError("".join(log[-12:]))
            array = (llama.llama_adapter_lora_p_ctypes * 1)(lora)
            llama.llama_set_adapters_lora(context, array, 1, (ctypes.c_float * 1)(1.0))
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = 1
            status = llama.llama_decode(context, batch)
            if failure:
                raise failure[0]
            if status:
                raise RuntimeError(f"llama_decode: {status}: " + "".join(log[-12:]))
            return self._outputs(context, len(tokens))
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)

    def _outputs(self, context: object, count: int) -> NDArray[np.float32]:
        if self._embedding:
            width = llama.llama_model_n_embd(self._model)
            get = llama.llama_get_embeddings_ith
        else:
            width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
            get = llama.llama_get_logits_ith
        rows = [np.ctypeslib.as_array(get(context, index), (width,)) for index in range(count)]
        return np.array(rows, dtype=np.float32)


@contextmanager
def loaded(
    path: Path | str,
    *,
    embedding: bool = False,
    mtp: bool = False,
    overrides: Mapping[str, int] | None = None,
) -> Iterator[Model]:
    """Load a model for the time of a ``with`` statement."""
    model = Model(path, embedding=embedding, mtp=mtp, overrides=overrides)
    try:
        yield model
    finally:
        model.close()
