"""The Modelfile that runs a GGUF model in Ollama, from the model's own metadata."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ggprune import util
from ggprune.errors import InputError, OutputError
from ggprune.gguf_file import GgufModel, split_shard_name, write_text
from ggprune.model import describe
from ggprune.publish.ollama.detect import beyond_go, detect
from ggprune.publish.ollama.families import renderer_for
from ggprune.publish.ollama.metadata import Facts, context, default_system, licence, sampling, stops
from ggprune.publish.ollama.templates import Family, family_of
from ggprune.publish.ollama.text import is_unknown, printable, quote, relative, unprintable

log = logging.getLogger(__name__)

TemplateMode = Literal["auto", "go", "none"]

#: Large, and nothing a Modelfile could say depends on them.
_NOT_NEEDED = ("tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says; paths are as written, relative to the file's folder.

    ``from_paths`` are the model (all shards, in order) and then its projector. ``parameters`` are
    (name, value) pairs with values as text, ``stop`` repeated. ``comments`` lack their ``#``;
    ``warnings`` are those among them that nobody should miss.
    """

    from_paths: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...] = ()
    template: str | None = None
    system: str | None = None
    license: tuple[str, ...] = ()
    renderer: str | None = None
    parser: str | None = None
    adapters: tuple[str, ...] = ()
    comments: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the file's text, to be written as UTF-8 with ``newline="\\n"``; ends in a newline.

        Raises:
            InputError: a value that the format cannot hold (see text.quote).
        """

        def instruction(keyword: str, *values: str | None) -> list[str]:
            return [f"{keyword} {quote(text, keyword)}" for text in values if text is not None]

        lines = [f"# {' '.join(comment.split())}" for comment in self.comments]
        lines += instruction("FROM", *self.from_paths)
        lines += instruction("ADAPTER", *self.adapters)
        lines += instruction("RENDERER", self.renderer)
        lines += instruction("PARSER", self.parser)
        for name, value in self.parameters:
            keyword = f"PARAMETER {name}"
            lines += instruction(keyword, value) if name == "stop" else [f"{keyword} {value}"]
        lines += instruction("TEMPLATE", self.template)
        lines += instruction("SYSTEM", self.system)
        lines += instruction("LICENSE", *self.license)
        return "\n".join(lines) + "\n"


def make_modelfile(
    metadata: Mapping[str, object],
    *,
    model_paths: Sequence[Path],
    modelfile_path: Path,
    mtp: bool = False,
    mmproj: Sequence[Path] = (),
    adapters: Sequence[Path] = (),
    num_ctx: int | None = None,
    parameters: Mapping[str, float | int | str] | None = None,
    system: str | None = None,
    template: TemplateMode = "auto",
) -> Modelfile:
    """Decide what the Modelfile of a model says.

    Args:
        metadata: the GGUF's keys and decoded values.
        model_paths: all shards.
        modelfile_path: where the Modelfile will lie; paths are written relative to its folder.
        mtp: the model has layers that predict further tokens.
        mmproj, adapters: files of a projector and a LoRA adapter; one of each at most.
        num_ctx: context length in tokens; 0 leaves it to Ollama, None takes the model's own up
            to :data:`ggprune.publish.ollama.metadata.DEFAULT_NUM_CTX`.
        parameters: more of Ollama's parameters, stronger than those found in the metadata; a
            ``stop`` is added to the model's own.
        system: the system message; None takes the chat template's default one if it has one.
        template: ``auto`` writes a Go template where Ollama would not show the model its own
            format: without a chat template, or if Ollama takes it for another one; ``go``
            wherever the family's is known, ``none`` never.

    Raises:
        InputError: shards missing, more than one projector or adapter, an unknown or ill-typed
            parameter, or ``go`` for a family whose template is not known.
    """
    _check_files(model_paths, mmproj, adapters)
    facts = Facts.of(metadata)
    asked = dict(parameters or {})
    if num_ctx is not None:
        asked["num_ctx"] = num_ctx
    known = (facts.architecture, facts.name, facts.jinja)
    rule = None if template == "go" else renderer_for(*known, experts=facts.experts > 0)
    family = None if rule else _family(facts, template)
    window, window_note = context(facts, asked.pop("num_ctx", None))
    turn_ends = stops(facts, rule, family, str(asked.pop("stop", "")))
    settings, settings_notes = sampling(metadata, asked)
    message = system if system is not None else default_system(facts.jinja)
    terms = licence(metadata)
    folder = modelfile_path.parent
    comments, warnings = _comments(
        model_paths=model_paths,
        merge_command=" ".join(printable(_merge_command(model_paths[0])).split()),
        adapters=adapters,
        rule=rule,
        family=family,
        jinja=facts.jinja,
        detected=detect(facts.jinja),
        more=beyond_go(facts.jinja),
        mtp=mtp,
    )
    return Modelfile(
        from_paths=tuple(relative(path, folder) for path in (*model_paths, *mmproj)),
        parameters=(*(("stop", token) for token in turn_ends), *window, *settings),
        template=family.template if family else None,
        system=printable(message) if message else None,
        license=tuple(printable(text) for text in terms),
        renderer=rule.renderer if rule else None,
        parser=rule.parser if rule else None,
        adapters=tuple(relative(path, folder) for path in adapters),
        comments=(
            *comments,
            *window_note,
            *settings_notes,
            *_text_notes(("SYSTEM", message), *(("LICENSE", text) for text in terms)),
        ),
        warnings=tuple(warnings),
    )


def write_modelfile(model: Path, output: Path, *, force: bool = False, **choices: Any) -> Path:
    """Write the Modelfile of a model; what Ollama will do unexpectedly is logged as a warning.

    ``model`` may be any shard; paths are relative to the folder of ``output``, which is returned;
    for ``choices`` see make_modelfile.

    Raises:
        OutputError: it exists, or cannot be written.
        InputError: something that a Modelfile cannot say.
    """
    if output.exists() and not force:
        raise OutputError(f"{output}: exists", remedy="Pass force=True to replace it.")
    with GgufModel(model) as gguf:
        metadata = {key: gguf.get(key) for key in gguf.keys if key not in _NOT_NEEDED}
        paths = [file.path for file in gguf.files]
        mtp = bool(describe(gguf).mtp_layers)
    made = make_modelfile(metadata, model_paths=paths, modelfile_path=output, mtp=mtp, **choices)
    write_text(output, made.render())
    for warning in made.warnings:
        log.warning("%s: %s", output, warning)
    return output


def _check_files(
    model_paths: Sequence[Path], mmproj: Sequence[Path], adapters: Sequence[Path]
) -> None:
    """Refuse what Ollama would refuse, before it has copied many gigabytes."""
    if not model_paths:
        raise InputError("no model file to write a Modelfile for")
    for what, paths in (("projector", mmproj), ("adapter", adapters)):
        if len(paths) > 1:
            raise InputError(f"{len(paths)} {what}s given: a model in Ollama has one at most")
    start = model_paths[0]
    first = split_shard_name(start.name)
    if [path.name for path in model_paths] != (first.all if first else [start.name]):
        raise InputError(
            f"{start}: {len(model_paths)} files given; Ollama needs every shard of a model, in "
            "order and named ...-00001-of-00002.gguf and so on",
            remedy=f"Give all shards, or merge them: {_merge_command(start)}",
        )


def _merge_command(first: Path) -> str:
    shard = split_shard_name(first.name)
    merged = first.with_name(f"{shard.prefix if shard else first.stem + '-merged'}.gguf")
    return shlex.join(["llama-gguf-split", "--merge", str(first), str(merged)])


def _family(facts: Facts, template: TemplateMode) -> Family | None:
    """Choose the family whose Go template is written; None where none is."""
    if template == "none" or (template == "auto" and facts.jinja and not detect(facts.jinja)):
        return None
    family = family_of(facts.jinja, facts.known)
    if family is None and template == "go":
        raise InputError(
            f"no Go template is known for this model ({facts.architecture or 'no architecture'})",
            remedy="Leave TEMPLATE out: Ollama renders the chat template in the GGUF itself.",
        )
    return family


def _comments(**known: Any) -> tuple[list[str], list[str]]:
    """Write what a reader should know, and those of it that are warnings."""
    page = util.template("ggprune.publish.ollama", "comments.txt.j2")
    lines = page.render(**known).splitlines()
    warnings = [line.removeprefix("! ") for line in lines if line.startswith("! ")]
    return [line.removeprefix("! ") for line in lines], warnings


def _text_notes(*texts: tuple[str, str | None]) -> list[str]:
    """Which characters of a text could not be kept, so that nobody loses them unknowingly."""
    notes = []
    for keyword, text in texts:
        lost = ", ".join(f"U+{ord(c):04X}" for c in unprintable(text or ""))
        if lost:
            notes.append(f"{keyword} without {lost}: Ollama drops them when it reads this file.")
        new = ", ".join(f"U+{ord(c):04X}" for c in dict.fromkeys(text or "") if is_unknown(c))
        if new:
            notes.append(f"{keyword} with {new}: an Ollama too old to know them drops them.")
    return notes
