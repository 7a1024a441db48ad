"""Loading a model, tokenizing, decoding batches: what ggprune asks of llama.cpp."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import LlamaError
from ggprune.gguf_file import GgufModel
from ggprune.interrupts import interrupts
from ggprune.llama import devices
from ggprune.llama.callback import Dispatcher, Observer
from ggprune.llama.library import kv_overrides, library
from ggprune.llama.options import CACHE_TYPES, FLASH_ATTENTION, RunOptions
from ggprune.llama.rpc import add_servers
from ggprune.llama.runtime import without_mmap
from ggprune.llama.safety import extra_buffers_work
from ggprune.llama.symbols import KEEP_ROWS
from ggprune.types import Ints32
from ggprune.util import Closing

#: ``LLAMA_POOLING_TYPE_MEAN``.
_POOLING_MEAN = 1


class LlamaModel(Closing):
    """A loaded model.

    Args:
        path: the GGUF file, or the first shard.
        vocab_only: load only what tokenizing needs.
        overrides: whole numbers that metadata keys, which the file has, are read as.

    Raises:
        LlamaError: llama.cpp cannot load it, with its own reason.
    """

    def __init__(
        self,
        path: Path,
        options: RunOptions,
        *,
        vocab_only: bool = False,
        overrides: Mapping[str, int] | None = None,
    ) -> None:
        self._api = library().api
        self.path = path
        self.options = options
        library().verbose(options.verbose)
        params = self._api.llama_model_default_params()
        params.vocab_only = vocab_only
        if not options.mmap:
            without_mmap(params)
        params.use_extra_bufts = options.repack and (vocab_only or extra_buffers_work())
        # Kept: llama.cpp's parameters point to them.
        self._placement = [] if vocab_only else _place(path, options, params)
        self._overrides = kv_overrides(self._api, overrides or {})
        if self._overrides is not None:
            params.kv_overrides = self._overrides
        # Kept, as the placement is. False ends loading.
        self._progress = self._api.llama_progress_callback(lambda *_: not interrupts.arrived)
        params.progress_callback = self._progress
        library().begin()
        with interrupts:
            self._handle = self._api.llama_model_load_from_file(os.fsencode(path), params)
            if not self._handle:
                interrupts.check()
        if not self._handle:
            raise library().failure(f"{path}: llama.cpp cannot load this model")
        self.vocab = self._api.llama_model_get_vocab(self._handle)

    def close(self) -> None:
        """Free the model; contexts of it must be closed before."""
        with interrupts:
            if self._handle:
                self._api.llama_model_free(self._handle)
                self._handle = None

    @property
    def handle(self) -> Any:
        """The pointer llama.cpp's functions take."""
        return self._handle

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return int(self._api.llama_vocab_n_tokens(self.vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether this vocabulary starts a text with BOS."""
        return bool(self._api.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> int:
        """Token id of the beginning of a text, or -1."""
        return int(self._api.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        """Token id of the end of a text, or -1."""
        return int(self._api.llama_vocab_eos(self.vocab))

    def ends_generation(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return bool(self._api.llama_vocab_is_eog(self.vocab, token))

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the token ids of a text.

        Args:
            add_special: add BOS (and EOS) as the vocabulary wants it.
            parse_special: read ``<|turn>`` and the like as the tokens they name.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._api.llama_tokenize(
                self.vocab, data, len(data), buffer, room, add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            if -count <= room:
                raise LlamaError(f"{self.path}: its vocabulary cannot tokenize the text")
            room = -count

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """Return the bytes a token stands for."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._api.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def text(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Return the text of tokens; U+FFFD for bytes that are not UTF-8."""
        joined = b"".join(self.piece(token, special=special) for token in tokens)
        return joined.decode("utf-8", "replace")


def can_keep_rows() -> bool:
    """Whether contexts can be asked to keep rows; what an architecture makes of it is its own."""
    return KEEP_ROWS in library().ggml


def _place(path: Path, options: RunOptions, params: Any) -> list[Any]:
    """Decide where tensors go; returns memory that must live as long as the model."""
    add_servers(options.rpc)
    with GgufModel(path) as gguf:
        if options.is_placed_automatically:
            options = devices.fit(gguf, devices.offload_devices(), options)
        return devices.apply(options, gguf, params)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Part of a batch: consecutive tokens of one sequence.

    Attributes:
        sequence: which sequence they continue.
        start: position of the first one in it.
        logits: which of them need logits: "all", "last" or "none".
    """

    sequence: int
    start: int
    ids: Sequence[int] | Ints32
    logits: str = "all"


class LlamaContext(Closing):
    """A context: a KV cache for sequences of tokens, and the graph that observers watch.

    Args:
        model: the loaded model; must outlive the context.
        n_ctx: tokens of all sequences together that the cache holds.
        n_batch: most tokens in one decode.
        n_sequences: sequences at the same time.
        observers: see Observer; none leaves llama.cpp's graph uninterrupted.
        keep_rows: let all tokens reach the end of the last layer without asking for their logits,
            which would be copied; only where ``can_keep_rows``.

    Raises:
        LlamaError: not enough memory, or a context llama.cpp refuses.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_batch: int | None = None,
        n_sequences: int = 1,
        observers: Sequence[Observer] = (),
        keep_rows: bool = False,
    ) -> None:
        self._api = library().api
        self.model = model
        self.keeps_rows = keep_rows
        options = model.options
        self.n_batch = min(n_batch or options.ubatch, n_ctx)
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n_ctx, self.n_batch, n_sequences
        params.n_ubatch = min(options.ubatch, self.n_batch)
        params.n_threads = params.n_threads_batch = options.n_threads
        params.kv_unified = True
        params.no_perf = True
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.type_k = CACHE_TYPES[options.cache_type_k]
        params.type_v = CACHE_TYPES[options.cache_type_v]
        if keep_rows:
            params.n_outputs_max = n_sequences
            # Rows that are asked for with pooling are not copied from the device.
            params.pooling_type = _POOLING_MEAN
        self._dispatcher = Dispatcher(observers)
        # Kept: ctypes frees a callback that only C still points to.
        self._callback = self._api.ggml_backend_sched_eval_callback(self._dispatcher)
        if observers:
            params.cb_eval = self._callback
        # Asked before every node, which also lets Python notice a signal. True ends the decode.
        self._abort = self._api.ggml_abort_callback(lambda _: interrupts.arrived)
        params.abort_callback = self._abort
        library().begin()
        with interrupts:
            self._handle = self._api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise library().failure(
                f"{model.path}: llama.cpp cannot make a context of {n_ctx} tokens"
            )
        self._batch = self._api.llama_batch_init(self.n_batch, 0, 1)
        self._tokens, self._positions, self._wanted, counts = (
            np.ctypeslib.as_array(column, shape=(self.n_batch,))
            for column in (
                *(self._batch.token, self._batch.pos),
                *(self._batch.logits, self._batch.n_seq_id),
            )
        )
        counts[:] = 1
        if keep_rows:
            library().ggml[KEEP_ROWS](self._handle, True, False)

    def close(self) -> None:
        """Free the context; closing twice is harmless."""
        with interrupts:
            if self._handle:
                self._api.llama_batch_free(self._batch)
                self._api.llama_free(self._handle)
                self._handle = None

    def clear(self) -> None:
        """Forget all sequences."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)

    def forget(self, sequence: int) -> None:
        """Forget one sequence."""
        memory = self._api.llama_get_memory(self._handle)
        self._api.llama_memory_seq_rm(memory, sequence, -1, -1)

    def decode(self, parts: Sequence[Tokens]) -> None:
        """Compute one batch.

        Args:
            parts: at most ``n_batch`` tokens together.

        Raises:
            LlamaError: the cache is full, or computing failed.
            KeyboardInterrupt: a signal came, now or while it was held back.
            BaseException: whatever an observer raised.
        """
        self._fill(parts)
        self._dispatcher.begin()
        library().begin()
        with interrupts:
            interrupts.check()
            status = self._api.llama_decode(self._handle, self._batch)
            interrupts.check()
        self._dispatcher.raise_pending()
        if status != 0:
            raise library().failure(
                f"{self.model.path}: llama.cpp stopped with {status} while computing "
                f"{self._batch.n_tokens} tokens"
            )

    def logits(self, index: int) -> npt.NDArray[np.float32]:
        """Logits of token ``index`` of the last batch, in llama.cpp's memory: copy to keep."""
        pointer = self._api.llama_get_logits_ith(self._handle, index)
        if not pointer:
            raise LlamaError(f"{self.model.path}: no logits for token {index} of the batch")
        return np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab,))

    def all_logits(self, count: int) -> npt.NDArray[np.float32]:
        """Logits of the first ``count`` outputs of the last batch, one row each."""
        pointer = self._api.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(count, self.model.n_vocab))

    def _fill(self, parts: Sequence[Tokens]) -> None:
        if sum(len(part.ids) for part in parts) > self.n_batch:
            raise ValueError(f"more than {self.n_batch} tokens in a batch")
        batch, at = self._batch, 0
        for part in parts:
            count = len(part.ids)
            here = slice(at, at + count)
            self._tokens[here] = part.ids
            self._positions[here] = range(part.start, part.start + count)
            self._wanted[here] = part.logits == "all"
            if count and part.logits == "last":
                self._wanted[at + count - 1] = True
            for index in range(at, at + count):
                batch.seq_id[index][0] = part.sequence
            at += count
        batch.n_tokens = at
