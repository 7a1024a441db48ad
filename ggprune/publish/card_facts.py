"""What is known of a pruned model, gathered from the files it was published with.

Everything in the card comes from a GGUF header, the drop metadata or an evaluation; what none of
them says is said to be not recorded or not measured.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggprune.errors import InputError
from ggprune.gguf_file import Tensor, split_shard_name, stem_of
from ggprune.llama.quantizer import FILE_TYPES
from ggprune.model import MoeModel, open_model
from ggprune.publish import card_sources
from ggprune.publish.kinds import MODEL, PROJECTOR, kind_of
from ggprune.quantization.names import result_stem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One quantization.

    Attributes:
        name: of the (first) file.
        size: bytes of all shards.
        evaluation: against the unpruned base; None if there is none.
        modelfile: name of its Modelfile; None if there is none.
    """

    name: str
    quantization: str
    size: int
    shards: int = 1
    evaluation: Mapping[str, Any] | None = None
    modelfile: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """Everything a card says.

    Attributes:
        title: the model's name without its quantization.
        files: quantizations, largest first.
        metadata: the drop metadata; without it what the file itself records; None for neither.
        architecture, layers, moe_layers, experts, experts_used, context: of the pruned model.
        parameters, expert_parameters: of all tensors, and of those that hold experts.
        base_model, repo: owner/name of the unpruned model and of the card's own repository.
        base_model_from: the metadata key it was taken from; None if it was given.
        licence, licence_name, licence_link: as the Hub's metadata has them.
        pictures: an mmproj file is there.
    """

    title: str
    files: tuple[ModelFile, ...]
    metadata: Mapping[str, Any] | None
    architecture: str
    layers: int
    moe_layers: int
    experts: int
    experts_used: int
    context: int | None
    parameters: int
    expert_parameters: int
    base_model: str | None = None
    base_model_from: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()
    repo: str | None = None
    pictures: bool = False

    @property
    def experts_before(self) -> int | None:
        """Experts a layer of the unpruned model; None if not recorded."""
        return int((self.metadata or {}).get("experts") or 0) or None

    @property
    def experts_used_before(self) -> int:
        """Experts a token used in the unpruned model: as many as now, unless recorded."""
        return int((self.metadata or {}).get("source_experts_used") or self.experts_used)

    @property
    def parameters_before(self) -> int | None:
        """Parameters of the unpruned model; None if not recorded."""
        if not self.experts_before or not self.experts:
            return None
        each = self.expert_parameters // self.experts
        return self.parameters + each * (self.experts_before - self.experts)


def gather(
    models: Sequence[Path],
    *,
    metadata: Path | None = None,
    evaluations: Sequence[Path] = (),
    base_model: str | None = None,
    licence: str | None = None,
    repo: str | None = None,
) -> Card:
    """Read headers, drop metadata and evaluations; note what a person should add or check.

    Args:
        models: GGUF files, or one folder with them.
        metadata: the drop metadata; None finds it beside the models.
        evaluations: what ``ggprune evaluate`` printed as JSON; none finds NAME.evaluation.json.
        base_model, licence: instead of what the GGUF says.

    Raises:
        InputError: no model, models of different expert counts, or a JSON file that is not what
            it should be.
        FormatError: a damaged model.
    """
    paths, pictures = _models(models)
    measured = card_sources.evaluations(evaluations, paths)
    with contextlib.ExitStack() as stack:
        opened = {path: stack.enter_context(open_model(path)) for path in paths}
        opened = dict(sorted(opened.items(), key=lambda item: -item[1].gguf.size))
        paths = list(opened)
        _check_alike(opened)
        model = opened[paths[0]]
        dropped = card_sources.metadata(metadata, paths) or card_sources.recorded(model.gguf)
        files = tuple(_file(path, opened[path], measured.get(path)) for path in paths)
    keep = (dropped or {}).get("keep", model.experts)
    if keep not in (None, model.experts):
        raise InputError(
            f"{paths[0]} has {model.experts} experts a layer, the drop metadata says {keep}",
            remedy="Give the metadata of this model: metadata=FILE.",
        )
    known = model.metadata
    base, base_from = card_sources.base_model(base_model, known)
    terms = card_sources.licence(licence, known)
    context, languages = known.get("context_length"), known.get("general.languages")
    card = Card(
        title=result_stem(stem_of(paths[0])),
        files=files,
        metadata=dropped,
        architecture=str(known.get("general.architecture", "")),
        layers=model.layers,
        moe_layers=len(model.moe_layers),
        experts=model.experts,
        experts_used=model.experts_used,
        context=context if isinstance(context, int) else None,
        parameters=_parameters(model.gguf.tensors),
        expert_parameters=_parameters(found.tensor for found in model.expert_tensors.values()),
        base_model=base,
        base_model_from=base_from,
        licence=terms[0],
        licence_name=terms[1],
        licence_link=terms[2],
        languages=tuple(map(str, languages)) if isinstance(languages, list) else (),
        repo=repo,
        pictures=pictures,
    )
    for note in _missing(card):
        log.info(note)
    return card


def _missing(card: Card) -> Iterator[str]:
    recorded = card.metadata or {}
    if not card.base_model:
        yield "The GGUF names no original on the Hub: give base_model=OWNER/NAME."
    elif card.base_model_from:
        yield (
            f"Base model: {card.base_model}, from {card.base_model_from}; if the pruned model is "
            "not that one, give base_model=OWNER/NAME."
        )
    if not card.licence:
        yield "The GGUF states no licence: give licence=ID."
    if "layers" not in recorded:
        yield "No drop metadata: the card lacks its layers (metadata=FILE)."
    if not recorded.get("evaluation") and not any(file.evaluation for file in card.files):
        yield "No evaluation: the card says that nothing was measured."


def _models(given: Sequence[Path]) -> tuple[list[Path], bool]:
    """List the models' (first) files, and say whether a projector lies among them."""
    models, pictures = [], False
    for path in given:
        if not path.is_dir():
            models.append(path)
            continue
        for inner in sorted(path.rglob("*.gguf")):
            if any(part.startswith(".") for part in inner.relative_to(path).parts):
                continue
            kind, shard = kind_of(inner), split_shard_name(inner.name)
            pictures = pictures or kind == PROJECTOR
            if kind == MODEL and (shard is None or shard.number == 0):
                models.append(inner)
    if not models:
        raise InputError(f"{given[0]}: has no model", remedy="Give a .gguf file or their folder.")
    return list(dict.fromkeys(models)), pictures


def _parameters(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _file(path: Path, model: MoeModel, evaluation: Mapping[str, Any] | None) -> ModelFile:
    # The file's type; the commonest of its tensors' if it does not say.
    number = model.metadata.get("general.file_type")
    named = [name for name, known in FILE_TYPES.items() if known == number]
    quantization = next(iter([*named, *model.quant_types()]), "")
    size, shards = model.gguf.size, len(model.gguf.files)
    modelfile = card_sources.modelfile(path)
    return ModelFile(path.name, quantization, size, shards, evaluation, modelfile)


def _check_alike(opened: Mapping[Path, MoeModel]) -> None:
    """All are quantizations of one pruned model."""
    first, *others = (
        (path, model.experts, model.layers, _parameters(model.gguf.tensors))
        for path, model in opened.items()
    )
    for other in others:
        if first[1:] != other[1:]:
            raise InputError(
                f"{first[0]} and {other[0]} are not quantizations of one model: "
                f"{first[1]} and {other[1]} experts, {first[3]:,} and {other[3]:,} parameters",
                remedy="Make a card for each pruned model, in a folder of its own.",
            )
