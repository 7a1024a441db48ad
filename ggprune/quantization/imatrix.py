"""Importance matrices: llama.cpp's files of mean squared activations, by weight and input column.

For a weight W and its inputs x, quantization weighs the error of each column of W by the mean of
x². A file holds Σ x² and how many x there were; for expert tensors one row and one count an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggprune.errors import FormatError, InputError, MismatchError, UnsupportedModelError
from ggprune.gguf_file import GgufFile, Tensor, replacing, write_arrays
from ggprune.model.tensors import MATRICES, layer_of, role_of
from ggprune.plan import Plan
from ggprune.quantization import imatrix_legacy
from ggprune.types import Floats32

FILE_TYPE = "imatrix"
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one weight's inputs.

    Attributes:
        sums: Σ x², [matrices, columns]; one matrix, or one an expert. In a legacy file the
            mean of x² times the number of chunks, since those have no counts.
        counts: how many x, [matrices].
    """

    sums: Floats32
    counts: Floats32

    def means(self) -> Floats32:
        """Mean of x² as llama-quantize uses it, flat: 1 for an expert that was never chosen."""
        counts = self.counts.reshape(-1, 1)
        known = np.broadcast_to(counts > 0, self.sums.shape)
        ones = np.ones_like(self.sums)
        return np.divide(self.sums, counts, out=ones, where=known).reshape(-1)


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: by the weight's name.
        datasets: names of the texts it was gathered on.
        chunks: of text.
        chunk_size: tokens in a chunk; 0 in a legacy file, which does not say.
        legacy: whether it is in the format of before 2025, without counts for each expert.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    legacy: bool = False

    @classmethod
    def load(cls, path: Path) -> Imatrix:
        """Read an importance matrix, GGUF or legacy.

        Raises:
            InputError: it is missing or something else.
            FormatError: it is damaged.
        """
        try:
            with open(path, "rb") as stream:
                magic = stream.read(4)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if magic == b"GGUF":
            return _read_gguf(path)
        return _read_legacy(path)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; in the format it was read in.

        Raises:
            OutputError: it cannot be written.
        """
        with replacing(path) as part:
            if self.legacy:
                _write_legacy(self, part)
            else:
                _write_gguf(self, part)

    def sliced(self, plan: Plan, name: str = "the importance matrix") -> Imatrix:
        """Cut the matrix to the model that the plan leaves: rows of dropped experts go.

        MTP layers that the plan leaves out, which come after all others, are cut by the rule
        that writing the model applies to them; see Plan.with_mtp.

        Args:
            plan: what stays; of the model that the matrix was made for.
            name: what to call the matrix in messages.

        Raises:
            MismatchError: it is of a model with other layers, another number of experts, or
                without experts.
        """
        found = {weight: _expert_layer(weight) for weight in self.entries}
        layers = {layer for layer in found.values() if layer is not None}
        if not layers.intersection(plan.layers):
            raise MismatchError(
                f"{name}: has no expert tensors of the plan's layers",
                remedy="Gather one on the model that the plan is for with `ggprune imatrix`.",
            )
        plan = plan.with_mtp({layer for layer in layers if layer > max(plan.layers)})
        entries = {}
        for weight, entry in self.entries.items():
            layer = found[weight]
            if layer is None:
                entries[weight] = entry
            elif layer in plan.layers:
                entries[weight] = self._slice(entry, plan, layer, f"{name}: {weight}")
            else:
                raise MismatchError(
                    f"{name}: has experts of layer {layer}, the plan has no such layer"
                )
        return replace(self, entries=entries)

    def _slice(self, entry: Entry, plan: Plan, layer: int, where: str) -> Entry:
        keep = plan.layers[layer].keep
        if self.legacy:
            rows = _legacy_rows(entry, plan, where)
            return Entry(rows[list(keep)].reshape(1, -1), entry.counts)
        found = len(entry.counts)
        if (plan.experts and found != plan.experts) or keep[-1] >= found:
            expected = plan.experts or f"more than {keep[-1]}"
            raise MismatchError(
                f"{where} has {found} experts, the plan's model has {expected}",
                remedy="Use the importance matrix of the model that the plan is for.",
            )
        return Entry(entry.sums[list(keep)], entry.counts[list(keep)])

    def check(self, tensors: tuple[Tensor, ...], name: str, model: str) -> tuple[str, ...]:
        """Compare sizes with a model's tensors before they are quantized.

        Returns:
            Names of matrices in layers that have no entry, so are quantized without.

        Raises:
            MismatchError: an entry is of another size, with the reason.
        """
        missing = []
        for tensor in tensors:
            entry = self.entries.get(tensor.name)
            if entry is None:
                if _is_layer_matrix(tensor):
                    missing.append(tensor.name)
                continue
            matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            if entry.sums.size != tensor.shape[0] * matrices:
                raise MismatchError(
                    f"{name}: {tensor.name} has {entry.sums.size:,} columns, "
                    f"{model} needs {tensor.shape[0]:,} x {matrices}",
                    remedy="For a pruned model, cut it first with `ggprune slice-imatrix`.",
                )
        return tuple(missing)


def _expert_layer(weight: str) -> int | None:
    """Find the layer, if this weight is a stack of experts."""
    try:
        return layer_of(weight) if role_of(weight) in MATRICES else None
    except UnsupportedModelError:
        return None


def _legacy_rows(entry: Entry, plan: Plan, where: str) -> Floats32:
    """Split a legacy entry by expert: it holds one flat row for all."""
    if not plan.experts:
        raise InputError(
            f"{where}: a legacy file does not say how many experts there are, and the plan neither",
            remedy='Add "experts" (of the model before pruning) to the plan.',
        )
    if entry.sums.size % plan.experts:
        raise MismatchError(
            f"{where} has {entry.sums.size} values, which {plan.experts} experts do not divide",
            remedy="Use the importance matrix of the model that the plan is for.",
        )
    return entry.sums.reshape(plan.experts, -1)


def _is_layer_matrix(tensor: Tensor) -> bool:
    name = tensor.name
    plain = name.endswith(".weight") and not name.endswith(("_norm.weight", "_inp.weight"))
    return name.startswith("blk.") and plain and len(tensor.shape) > 1


def _read_gguf(path: Path) -> Imatrix:
    with GgufFile(path) as file:
        kind = file.get("general.type")
        tensors = {tensor.name: tensor for tensor in file.tensors}
        weights = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
        if not weights or kind not in (None, FILE_TYPE):
            raise InputError(
                f"{path}: is not an importance matrix (general.type is {kind!r})",
                remedy="Make one with `ggprune imatrix`.",
            )
        entries = {name: _entry(file, tensors, name) for name in weights}
        return Imatrix(
            entries,
            tuple(str(each) for each in file.get("imatrix.datasets", [])),
            int(file.get("imatrix.chunk_count", 0)),
            int(file.get("imatrix.chunk_size", 0)),
        )


def _entry(file: GgufFile, tensors: Mapping[str, Tensor], name: str) -> Entry:
    sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
    if counts is None or sums.type != 0 or counts.type != 0:
        raise _damaged(file.path, f"{name}: no sums and counts in F32")
    data = np.frombuffer(file.read(sums.offset, sums.nbytes), "<f4")
    number = np.frombuffer(file.read(counts.offset, counts.nbytes), "<f4")
    if not number.size or not data.size or data.size % number.size:
        raise _damaged(file.path, f"{name}: {data.size} sums for {number.size} counts")
    if not np.isfinite(data).all() or not np.isfinite(number).all():
        raise _damaged(file.path, f"{name}: values that are not finite")
    return Entry(data.reshape(number.size, -1), number)


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path}: damaged importance matrix: {what}", remedy="Gather or download it again."
    )


def _write_gguf(imatrix: Imatrix, path: Path) -> None:
    values = {
        # llama-quantize wants the key; the writer has no empty arrays.
        "imatrix.datasets": list(imatrix.datasets) or ["unknown"],
        "imatrix.chunk_count": imatrix.chunks,
        "imatrix.chunk_size": imatrix.chunk_size,
    }
    arrays: dict[str, Floats32] = {}
    for name, entry in sorted(imatrix.entries.items()):
        arrays[name + _SUMS] = np.ascontiguousarray(entry.sums, np.float32)
        arrays[name + _COUNTS] = np.float32(entry.counts).reshape(-1, 1)
    write_arrays(path, FILE_TYPE, values, arrays)


def _read_legacy(path: Path) -> Imatrix:
    found = imatrix_legacy.read(path)
    entries = {
        name: Entry(values.reshape(1, -1), np.array([max(calls, 1)], np.float32))
        for name, (calls, values) in found.entries.items()
    }
    datasets = (found.dataset,) if found.dataset else ()
    return Imatrix(entries, datasets, found.chunks, legacy=True)


def _write_legacy(imatrix: Imatrix, path: Path) -> None:
    entries = {
        name: (int(entry.counts[0]), entry.sums.reshape(-1))
        for name, entry in imatrix.entries.items()
    }
    dataset = imatrix.datasets[0] if imatrix.datasets else ""
    imatrix_legacy.write(path, imatrix_legacy.LegacyFile(entries, imatrix.chunks, dataset))
