"""What can go wrong, as classes: one base, an exit code and a remedy each.

A message names the file, what was found and what was expected; ``remedy`` says what to do next.
The command line prints both and never a traceback for these.
"""

from __future__ import annotations


class GgpruneError(Exception):
    """Base of every error that ggprune raises on purpose.

    Args:
        message: the file, what was found, what was expected.
        remedy: what the user can do next, a sentence or a command; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class InputError(GgpruneError):
    """An option, a text, a plan or a statistics file that cannot be used as given."""

    exit_code = 2


class FormatError(GgpruneError):
    """A GGUF file (or a shard of one) that is damaged, truncated or not a GGUF file."""

    exit_code = 3


class UnsupportedModelError(GgpruneError):
    """A sound model that ggprune does not prune, with the reason."""

    exit_code = 4


class OutputError(GgpruneError):
    """The result cannot be written: it exists, the disk is full, the folder is read-only."""

    exit_code = 5


class MismatchError(GgpruneError):
    """Two things that must belong to one model (or one run) do not."""

    exit_code = 6


class LlamaError(GgpruneError):
    """llama.cpp refused a model, ran out of memory, or computed something that is not finite."""

    exit_code = 7


class NonFiniteError(LlamaError):
    """llama.cpp computed values that are not finite: running the model again gives the same."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            remedy="The model file is damaged, or its quantization is; try another one.",
        )


class VerificationError(GgpruneError):
    """The written file does not hold what it should."""

    exit_code = 8


class HubError(GgpruneError):
    """The Hugging Face Hub (or the network on the way to it) said no."""

    exit_code = 9


class Interrupted(GgpruneError):
    """Ctrl-C, after what was gathered so far was saved."""

    exit_code = 130
