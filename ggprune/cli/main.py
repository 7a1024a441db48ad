"""The group of all commands, and what every command does the same: errors, exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NamedTuple, NoReturn

import click

from ggprune.errors import GgpruneError, OutputError
from ggprune.interrupts import interrupts


class Entry(NamedTuple):
    """A command: where it lives, and its line in the overview (kept here so that help is fast)."""

    module: str
    summary: str


#: In the order of the data flow; ``ggprune --help`` lists them like this.
COMMANDS: dict[str, Entry] = {
    "prune": Entry("prune", "Calibrate, choose, rewrite and verify: the whole job."),
    "fit": Entry("fit", "Write the best file of a size: experts and types together."),
    "frontier": Entry("frontier", "Measure quality against size for counts and types."),
    "inspect": Entry("inspect", "Show architecture, experts and sizes of a model."),
    "calibrate": Entry("calibrate", "Run a model over text and gather expert statistics."),
    "traces": Entry("traces", "Let a model answer tasks; keep what is right to calibrate on."),
    "merge": Entry("merge", "Put statistics gathered in parts together."),
    "stats": Entry("stats", "Show a statistics file."),
    "plan": Entry("plan", "Choose which experts stay."),
    "lists": Entry("lists", "Turn lists of experts by layer into a plan, or a plan into lists."),
    "apply": Entry("apply", "Write the model that a plan describes."),
    "imatrix": Entry("imatrix", "Gather an importance matrix for quantizing."),
    "slice-imatrix": Entry("slice_imatrix", "Cut an importance matrix to the kept experts."),
    "quantize": Entry("quantize", "Quantize a model, or prune and quantize in one go."),
    "evaluate": Entry("evaluate", "Measure a plan or a pruned model against the original."),
    "sweep": Entry("sweep", "Measure how the damage grows the fewer experts stay."),
    "probe": Entry("probe", "Compare what a plan or a pruned model writes with the original."),
    "bench-tasks": Entry("bench_tasks", "Write benchmark commands; read their results."),
    "report": Entry("report", "Show what pruning cost: one HTML page, and JSON."),
    "modelfile": Entry("modelfile", "Write the Ollama Modelfile."),
    "card": Entry("card", "Write a model card for the Hub."),
    "batch": Entry("batch", "Prune, quantize and measure all that a file names."),
    "doctor": Entry("doctor", "Show what is installed, what is idle, and what to do."),
    "rpc-server": Entry("rpc_server", "Lend this machine's devices to calibrate elsewhere."),
    "push": Entry("push", "Publish a folder of models on the Hugging Face Hub."),
}

DEFAULT = "prune"
_UNCHECKED = "--unchecked-runtime"


class LazyGroup(click.Group):
    """Imports a command's module only when that command is named.

    ``ggprune MODEL --keep N`` is short for ``ggprune prune MODEL --keep N``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(f"ggprune.cli.{entry.module}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with its notes on stderr; an error of ours speaks of its options."""
        from ggprune.cli.terminal import in_options, show_notes

        show_notes()
        try:
            return super().invoke(ctx)
        except GgpruneError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            for each in (command, self):
                error.message = in_options(error.message, each)
                error.remedy = in_options(error.remedy, each)
            raise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of a model's path, and our own switch before that."""
        own = {"--help", "-h", "--version"}
        unchecked = [arg for arg in args if arg == _UNCHECKED]
        args = [arg for arg in args if arg != _UNCHECKED]
        if args and args[0] not in COMMANDS and args[0] not in own:
            _check_model_or_command(args[0])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, [*unchecked, *args])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _check_model_or_command(word: str) -> None:
    """Refuse a mistyped command, which would be taken for a model.

    Raises:
        click.UsageError: it is neither an option, nor a file, nor a name that a model could have.
    """
    if word.startswith("-") or os.path.lexists(word) or not word.replace("-", "").isalpha():
        return
    from ggprune.util import did_you_mean

    raise click.UsageError(
        f"There is no command {word!r}, and no such file.{did_you_mean(word, COMMANDS)}"
    )


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ggprune.version import VERSION

        click.echo(f"ggprune {VERSION}")
        ctx.exit()


def _go_on_unchecked(_ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:  # Child processes are to go on too.
        os.environ["GGPRUNE_UNCHECKED_RUNTIME"] = "1"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
@click.option(
    _UNCHECKED,
    is_flag=True,
    expose_value=False,
    callback=_go_on_unchecked,
    help="Use a llama.cpp that ggprune was not tested with; may stand anywhere.",
)
def cli() -> None:
    """Prune the experts of mixture-of-experts GGUF models.

    \b
    ggprune MODEL.gguf --keep 109

    reads a GGUF file, measures with llama.cpp what each expert contributes, and writes a smaller
    GGUF with the experts that matter, still quantized. It is short for `ggprune prune`.
    """


def main() -> NoReturn:
    """Run the command line and exit: 0, or the exit code of the error's class."""
    # A killed run should end like an interrupted one, so that temporary files are removed.
    interrupts.listen()
    try:
        code = cli.main(standalone_mode=False)
    except GgpruneError as error:
        fail(error)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        interrupts.ignore()
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: not an error of ours.
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is not None:
            raise
        # What is still in the buffer of our output would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fail(OutputError(f"the output cannot be written: {error.strerror}"))
    sys.exit(code if isinstance(code, int) else 0)


def fail(error: GgpruneError, command: click.Command | None = None) -> NoReturn:
    """Print an error as a user of the command reads it, and exit."""
    from ggprune.cli.terminal import in_options
    from ggprune.util import printable

    lines = [f"Error: {error.message}", *([f"  -> {error.remedy}"] if error.remedy else [])]
    for line in lines:
        click.echo(printable(in_options(line, command), keep="\n"), err=True)
    sys.exit(error.exit_code)
