"""Writes ggprune/publish/ollama/detected.txt: ollama_fingerprints.py OLLAMA/template/index.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ggprune.publish.ollama import detect

if __name__ == "__main__":
    entries = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines = (f"{entry['name']} {detect.classes_of(entry['template'])}\n" for entry in entries)
    target = Path(detect.__file__).with_name("detected.txt")
    target.write_text("".join(lines), encoding="ascii", newline="\n")
