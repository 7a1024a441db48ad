"""What a model's logits say: log-probabilities, their divergence, and the base's in a file.

The definitions are those of llama.cpp's ``llama-perplexity --kl-divergence``
(``tools/perplexity/perplexity.cpp``): the base's log-probabilities are kept in 16 bits a token of
the vocabulary, over a range of at most 16 below the largest, and tokens whose base probability is
below e^-16 do not count in the divergence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggprune.errors import NonFiniteError
from ggprune.system import reserve
from ggprune.types import Floats, Ints32

Logits = npt.NDArray[np.float32]

_RANGE = np.float32(16)
_STEPS = np.float32(65535)
_MAGIC = b"ggprune-logprob\n"
_ALIGNMENT = 4096
#: Elements worked on at once: what fits into a core's cache with its intermediate results.
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model makes of each scored token, arrays of shape [tokens].

    Attributes:
        nll: -ln of the probability of the text's own token.
        kld: Σ p ln(p/q) over the vocabulary, p the base's and q this model's probabilities.
        same_top: whether the most probable token is the base's.
        overlap: Σ min(p, q).
    """

    nll: Floats
    kld: Floats
    same_top: npt.NDArray[np.bool_]
    overlap: Floats

    @classmethod
    def empty(cls, tokens: int) -> TokenScores:
        """Make room for scores of so many tokens."""
        nll, kld, overlap = (np.zeros(tokens) for _ in range(3))
        return cls(nll, kld, np.zeros(tokens, np.bool_), overlap)

    def part(self, where: Any) -> TokenScores:
        """Select tokens: a slice, or an array of positions."""
        return TokenScores(
            self.nll[where], self.kld[where], self.same_top[where], self.overlap[where]
        )


class BaseLog:
    """Log-probabilities of the base model for each scored token, in a file mapped into memory.

    Args:
        path: the file; use :meth:`create` or :meth:`open`.
        tokens, n_vocab: shape of the codes.
        writable: while it is made.
        start: where the arrays begin.

    Attributes:
        nll: of the text's own token, [tokens] float64.
        top: the most probable token, [tokens].
        scale, least: log-probability = least + scale · code, [tokens] float32.
        codes: [tokens, n_vocab] uint16.
    """

    def __init__(
        self, path: Path, tokens: int, n_vocab: int, start: int, *, writable: bool
    ) -> None:
        def array(kind: npt.DTypeLike, shape: tuple[int, ...], at: int) -> Any:
            mode: Any = "r+" if writable else "r"
            return np.memmap(path, np.dtype(kind), mode, at, shape)

        self.n_vocab = n_vocab
        self.nll: Floats = array(np.float64, (tokens,), start)
        self.top: Ints32 = array(np.int32, (tokens,), start + 8 * tokens)
        self.scale: Logits = array(np.float32, (tokens,), start + 12 * tokens)
        self.least: Logits = array(np.float32, (tokens,), start + 16 * tokens)
        self.codes: npt.NDArray[np.uint16] = array(
            np.uint16, (tokens, n_vocab), start + 20 * tokens
        )

    def flush(self) -> None:
        """Bring everything to the file."""
        for array in (self.nll, self.top, self.scale, self.least, self.codes):
            if isinstance(array, np.memmap):
                array.flush()

    @staticmethod
    def size(tokens: int, n_vocab: int) -> int:
        """Bytes of a file, without its header."""
        return tokens * (20 + 2 * n_vocab)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any], tokens: int, n_vocab: int) -> BaseLog:
        """Start a file: ``header`` says what it is of."""
        text = json.dumps({**header, "tokens": tokens, "n_vocab": n_vocab}).encode()
        start = _start(len(text))
        with open(path, "wb") as stream:
            stream.write(_MAGIC + len(text).to_bytes(8, "little") + text)
            # Reserved, not only announced: a disk that fills under a mapped file kills the process.
            reserve(stream.fileno(), start + cls.size(tokens, n_vocab))
        return cls(path, tokens, n_vocab, start, writable=True)

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any]) -> BaseLog | None:
        """Open a file if it is whole and of what ``header`` says; None otherwise."""
        try:
            with open(path, "rb") as stream:
                if stream.read(len(_MAGIC)) != _MAGIC:
                    return None
                length = int.from_bytes(stream.read(8), "little")
                found = json.loads(stream.read(length))
                size = os.fstat(stream.fileno()).st_size
            tokens, n_vocab = int(found.pop("tokens")), int(found.pop("n_vocab"))
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        if found != header or size != _start(length) + cls.size(tokens, n_vocab):
            return None
        return cls(path, tokens, n_vocab, _start(length), writable=False)


def _start(header: int) -> int:
    return -(-(len(_MAGIC) + 8 + header) // _ALIGNMENT) * _ALIGNMENT


def record(
    logits: Logits, targets: Ints32, base: BaseLog, first: int, pool: Executor | None = None
) -> None:
    """Write the base model's log-probabilities.

    Args:
        logits: [tokens, n_vocab], not changed.
        targets: the text's own tokens, [tokens].
        first: row of the first of these tokens.

    Raises:
        NonFiniteError: logits are not finite.
    """

    def block(part: slice) -> None:
        x = logits[part]
        rows = slice(first + part.start, first + part.stop)
        top = x.max(axis=1)
        total = _log_sum(x - top[:, None])
        _check_finite(top, total)
        low = np.maximum(x.min(axis=1), top - _RANGE)
        scale = (top - low) / _STEPS
        steps = (x - low[:, None]) * _inverse(scale)[:, None]
        base.codes[rows] = np.rint(np.maximum(steps, 0, out=steps), out=steps)
        base.scale[rows] = scale
        base.least[rows] = low - top - total
        base.top[rows] = x.argmax(axis=1)
        base.nll[rows] = _nll(x, targets[part], top, total)

    _for_blocks(block, len(targets), logits.shape[1], pool)


def compare(
    logits: Logits,
    targets: Ints32,
    base: BaseLog,
    rows: npt.NDArray[np.intp],
    out: TokenScores,
    pool: Executor | None = None,
) -> None:
    """Score a model's logits against the base's.

    Args:
        logits: [tokens, n_vocab], not changed.
        targets: the text's own tokens, [tokens].
        base: log-probabilities of the base model.
        rows: where these tokens are in ``base``, [tokens].

    Raises:
        NonFiniteError: logits are not finite.
    """

    def block(part: slice) -> None:
        x, where = logits[part], rows[part]
        top = x.max(axis=1)
        out.same_top[part] = x.argmax(axis=1) == base.top[where]
        shifted = x - top[:, None]
        q = np.exp(shifted)
        sums = q.sum(axis=1)
        total = np.log(sums)
        _check_finite(top, total)
        out.nll[part] = _nll(x, targets[part], top, total)
        log_p = base.codes[where].astype(np.float32)
        log_p *= base.scale[where, None]
        log_p += base.least[where, None]
        p = np.exp(log_p)
        q /= sums[:, None]
        out.overlap[part] = np.minimum(p, q, out=q).sum(axis=1)
        p *= log_p > -_RANGE
        shifted -= total[:, None]
        # Where a model forbids a token its logit is -inf, and 0 · inf would be NaN.
        np.maximum(shifted, -1e4, out=shifted)
        log_p -= shifted
        log_p *= p
        out.kld[part] = log_p.sum(axis=1)

    _for_blocks(block, len(targets), logits.shape[1], pool)


def _log_sum(shifted: Logits) -> Logits:
    total: Logits = np.log(np.exp(shifted, out=shifted).sum(axis=1))
    return total


def _nll(x: Logits, targets: Ints32, top: Logits, total: Logits) -> Floats:
    chosen = x[np.arange(len(targets)), targets].astype(np.float64)
    nll: Floats = top.astype(np.float64) + total - chosen
    return nll


def _inverse(scale: Logits) -> Logits:
    return np.divide(1, scale, where=scale > 0, out=np.zeros_like(scale))


def _check_finite(top: Logits, total: Logits) -> None:
    if not (np.isfinite(top).all() and np.isfinite(total).all()):
        raise NonFiniteError("the model computes logits that are not finite (NaN or infinite)")


def _for_blocks(
    work: Callable[[slice], None], tokens: int, n_vocab: int, pool: Executor | None
) -> None:
    parts = list(_parts(tokens, max(1, _BLOCK // n_vocab)))
    if pool is None or len(parts) == 1:
        for part in parts:
            work(part)
    else:
        for _ in pool.map(work, parts):
            pass


def _parts(tokens: int, rows: int) -> Iterator[slice]:
    for start in range(0, tokens, rows):
        yield slice(start, min(start + rows, tokens))
