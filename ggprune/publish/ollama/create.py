"""Making a model in Ollama of its Modelfile."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from ggprune.errors import InputError, OutputError

_NAME = re.compile(r"(?:[\w-][\w.:-]*/){0,2}\w[\w.-]*(?::\w[\w.-]*)?", re.ASCII)


def create_commands(name: str, modelfile: Path) -> list[str]:
    """Return the two shell commands that make the model in Ollama and run it; see ``create``."""
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
