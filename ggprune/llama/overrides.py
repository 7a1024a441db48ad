"""Metadata values that llama.cpp is to read or write instead of the file's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kv_overrides(api: Any, values: Mapping[str, str | int]) -> Any:
    """llama.cpp's form of them: an array that ends with an empty entry.

    Args:
        values: by key; llama.cpp has 128 bytes for a text, its final zero included.

    Returns:
        The array, which must live as long as what points to it; None for no values.
    """
    if not values:
        return None
    entries = (api.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(entries, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag = api.LLAMA_KV_OVERRIDE_TYPE_STR
            # A character cut in two is left out.
            entry.value.val_str = value.encode()[:127].decode("utf-8", "ignore").encode()
        else:
            entry.tag = api.LLAMA_KV_OVERRIDE_TYPE_INT
            entry.value.val_i64 = value
    return entries
