"""Write the model that a plan describes, byte for byte, and check it."""

from ggprune.rewrite.rewrite import (
    LAST_LAYER_RULE,
    PROVENANCE,
    Rewrite,
    check_result,
    plan_rewrite,
    restate,
    result_files,
    result_size,
    verify_bytes,
)

__all__ = [
    "LAST_LAYER_RULE",
    "PROVENANCE",
    "Rewrite",
    "check_result",
    "plan_rewrite",
    "restate",
    "result_files",
    "result_size",
    "verify_bytes",
]
