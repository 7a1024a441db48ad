"""ggprune in a child process that halts in the middle of its work, to be killed there.

The child writes a checkpoint after every step, and a line to standard output when it halts.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any


def halting(node: str, after: int, then: str) -> list[str]:
    """Give the command that halts when a node of the graph is seen for the ``after``-th time.

    Then it ``pause``s until its standard input is closed, goes on ``slowly``, or lets llama.cpp
    ``abort``.
    """
    # As a module: beside this file there is a statistics.py, which is not Python's own.
    return [sys.executable, "-m", __name__, node, str(after), then]


def _abort() -> None:
    """A failed assertion of ggml, as a lost RPC server makes one."""
    from ggprune.llama.library import library

    library().ggml["ggml_backend_tensor_alloc"](None, None, None)


def _main(node: str, count: str, then: str, *arguments: str) -> None:
    from ggprune.api import stages
    from ggprune.calibration import observers
    from ggprune.cli import main

    stages.Run = functools.partial(stages.Run, checkpoint_seconds=0.0)  # type: ignore[assignment,misc]
    receive = observers.RoutingObserver.receive
    seen, after = 0, int(count)

    def watched(self: Any, name: str, tensor: Any) -> bool:
        nonlocal seen
        seen += name == node
        if name == node and seen == after:
            print("running", flush=True)
            if then == "pause":
                sys.stdin.read()
            elif then == "abort":
                _abort()
        if then == "slowly" and seen >= after:
            time.sleep(0.2)
        return receive(self, name, tensor)

    observers.RoutingObserver.receive = watched  # type: ignore[method-assign]
    sys.argv = ["ggprune", *arguments]
    main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
