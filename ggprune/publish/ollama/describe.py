"""The Modelfile that runs a GGUF model in Ollama, from the model's own metadata.

``describe`` decides what the file says, ``Modelfile.render`` writes it, ``create`` hands it to
Ollama. Nothing here opens the model: the caller passes its metadata and paths.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggprune.errors import InputError, OutputError
from ggprune.publish.ollama.families import Renderer
from ggprune.publish.ollama.metadata import (
    Facts,
    context,
    default_system,
    licence,
    renderer,
    sampling,
    stops,
)
from ggprune.publish.ollama.templates import Family, family_of
from ggprune.publish.ollama.text import printable, quote, relative, unprintable

TemplateMode = Literal["auto", "go", "none"]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NAME = re.compile(r"(?:[\w-][\w.:-]*/){0,2}\w[\w.-]*(?::\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says; paths are as written, relative to the file's folder.

    ``from_paths`` are the model (all shards, in order) and then its projector. ``parameters`` are
    (name, value) pairs with values as text, ``stop`` repeated. ``comments`` lack their ``#``.
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

    def render(self) -> str:
        """The file's text, to be written as UTF-8 with ``newline="\\n"``; ends in a newline.

        Raises:
            InputError: a value that the format cannot hold (see text.quote).
        """
        lines = [f"# {' '.join(comment.split())}" for comment in self.comments]
        lines += [f"FROM {quote(path, 'FROM')}" for path in self.from_paths]
        lines += [f"ADAPTER {quote(path, 'ADAPTER')}" for path in self.adapters]
        for keyword, value in (("RENDERER", self.renderer), ("PARSER", self.parser)):
            if value is not None:
                lines.append(f"{keyword} {quote(value, keyword)}")
        for name, value in self.parameters:
            text = quote(value, f"PARAMETER {name}") if name == "stop" else value
            lines.append(f"PARAMETER {name} {text}")
        for keyword, value in (("TEMPLATE", self.template), ("SYSTEM", self.system)):
            if value is not None:
                lines.append(f"{keyword} {quote(value, keyword)}")
        lines += [f"LICENSE {quote(text, 'LICENSE')}" for text in self.license]
        return "\n".join(lines) + "\n"


def describe(
    metadata: Mapping[str, object],
    *,
    model_paths: Sequence[Path],
    modelfile_path: Path,
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
        model_paths: the model's file, or all its shards.
        modelfile_path: where the Modelfile will lie; paths are written relative to its folder.
        mmproj: the projector's file, for models that see or hear.
        adapters: a LoRA adapter.
        num_ctx: context length in tokens; 0 leaves it to Ollama, None takes the model's own up
            to :data:`ggprune.publish.ollama.metadata.DEFAULT_NUM_CTX`.
        parameters: more of Ollama's parameters, stronger than those found in the metadata; a
            ``stop`` is added to the model's own.
        system: the system message; None takes the chat template's default one if it has one.
        template: ``auto`` writes a Go template only for a model without a chat template, ``go``
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
    rule = renderer(facts) if template != "go" else None
    family = None if rule else _family(facts, template)
    window, window_note = context(facts, asked.pop("num_ctx", None))
    turn_ends = stops(facts, rule, family, str(asked.pop("stop", "")))
    settings, settings_notes = sampling(metadata, asked)
    message = system if system is not None else default_system(facts.jinja)
    terms = licence(metadata)
    folder = modelfile_path.parent
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
            "Written by ggprune from the model's metadata.",
            *_file_notes(model_paths, adapters),
            _template_note(facts, family, rule),
            *window_note,
            *settings_notes,
            *_text_notes(("SYSTEM", message), *(("LICENSE", text) for text in terms)),
        ),
    )


def create_commands(name: str, modelfile: Path) -> list[str]:
    """The two shell commands that make the model in Ollama and run it.

    Raises:
        InputError: Ollama would not take the name.
    """
    return [shlex.join(_create_command(name, modelfile)), shlex.join(["ollama", "run", name])]


def create(
    name: str,
    modelfile: Path,
    *,
    runner: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run,
) -> bool:
    """Run ``ollama create`` if Ollama is installed; False if it is not and nothing was done.

    Raises:
        InputError: Ollama would not take the name.
        OutputError: Ollama could not be started, or reported a failure.
    """
    command = _create_command(name, modelfile)
    program = shutil.which("ollama")
    if program is None:
        return False
    try:
        code = runner([program, *command[1:]], check=False).returncode
    except OSError as error:
        raise OutputError(f"{program} cannot be started: {error}") from error
    if code:
        raise OutputError(
            f"ollama create {name} ended with code {code}",
            remedy=f"See its message above; is the server running? Then: {shlex.join(command)}",
        )
    return True


def _create_command(name: str, modelfile: Path) -> list[str]:
    if not _NAME.fullmatch(name) or name.startswith("-"):
        raise InputError(
            f"{name!r} is not a name Ollama takes",
            remedy="Use letters, digits, '.', '_', '-': NAME, NAME:TAG or USER/NAME:TAG.",
        )
    return ["ollama", "create", name, "-f", str(modelfile)]


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
    first = _SHARD.fullmatch(start.name)
    count = int(first[3]) if first else 1
    stem = first[1] if first else ""
    expected = [f"{stem}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    if [path.name for path in model_paths] != (expected if first else [start.name]):
        raise InputError(
            f"{start}: {len(model_paths)} files given; Ollama needs every shard of a model, in "
            "order and named ...-00001-of-00002.gguf and so on",
            remedy=f"Give all shards, or merge them: {_merge_command(start)}",
        )


def _merge_command(first: Path) -> str:
    match = _SHARD.fullmatch(first.name)
    merged = first.with_name(f"{match[1] if match else first.stem + '-merged'}.gguf")
    return shlex.join(["llama-gguf-split", "--merge", str(first), str(merged)])


def _family(facts: Facts, template: TemplateMode) -> Family | None:
    """The family whose Go template is written, None where none is."""
    if template == "none" or (template == "auto" and facts.jinja):
        return None
    family = family_of(facts.jinja, facts.known)
    if family is None and template == "go":
        raise InputError(
            f"no Go template is known for this model ({facts.architecture or 'no architecture'})",
            remedy="Leave TEMPLATE out: Ollama renders the chat template in the GGUF itself.",
        )
    return family


def _template_note(facts: Facts, family: Family | None, rule: Renderer | None) -> str:
    if rule:
        return f"No TEMPLATE: Ollama's built-in renderer {rule.renderer} writes conversations."
    if family and facts.jinja:
        return f"TEMPLATE: the model's chat template ({family.name}) in Go, without tool calls."
    if family:
        return (
            f"TEMPLATE: the model has no chat template; its vocabulary is that of {family.name}. "
            "For a base model, which takes plain text, delete it."
        )
    if facts.jinja:
        return "No TEMPLATE: Ollama uses the chat template inside the GGUF."
    return "No TEMPLATE: the model has no chat template and its family is not known."


def _file_notes(model_paths: Sequence[Path], adapters: Sequence[Path]) -> list[str]:
    notes = []
    if len(model_paths) > 1:
        notes.append(
            "Ollama before split models refuses several FROM lines; merge the shards for it: "
            + printable(_merge_command(model_paths[0]))
        )
    if adapters:
        notes.append(
            "Newer Ollama refuses ADAPTER: merge the adapter into the model with "
            "llama-export-lora for it."
        )
    return notes


def _text_notes(*texts: tuple[str, str | None]) -> list[str]:
    """Which characters of a text could not be kept, so that nobody loses them unknowingly."""
    notes = []
    for keyword, text in texts:
        lost = ", ".join(f"U+{ord(c):04X}" for c in unprintable(text or ""))
        if lost:
            notes.append(f"{keyword} without {lost}: Ollama drops them when it reads this file.")
    return notes
