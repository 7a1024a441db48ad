"""Write the model that a plan describes, byte for byte, and check it."""

from ggprune.rewrite.adapter import plan_adapter
from ggprune.rewrite.metadata import PROVENANCE, restate
from ggprune.rewrite.slices import Rewrite, plan_rewrite, result_files, result_size
from ggprune.rewrite.verify import check_result, verify_bytes, write_result

__all__ = [
    "PROVENANCE",
    "Rewrite",
    "check_result",
    "plan_adapter",
    "plan_rewrite",
    "restate",
    "result_files",
    "result_size",
    "verify_bytes",
    "write_result",
]
