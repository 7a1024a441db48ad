"""Numbers as people read them."""

from __future__ import annotations


def human_size(size: float) -> str:
    """14.2 GB, in powers of 1000 as the Hub and disks count."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
