"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def mebibytes() -> float:
    """The most memory this process has held at once.

    Not ``ru_maxrss`` on Linux: there a child starts with its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
