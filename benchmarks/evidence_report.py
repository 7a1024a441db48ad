"""docs/evidence.md, from the numbers that benchmarks/evidence.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ggprune.choosing.request import MEASURED
from ggprune.choosing.search.search import paired
from ggprune.gguf_file import write_text

Row = Mapping[str, Any]
Plans = Mapping[str, Row]
SEARCHES = (MEASURED, "search")
#: Shown in the table of regrets, if they were measured.
REGRETTED = (MEASURED, "cover", "consensus", "contribution", "gate", "reap", "search", "random")

HEAD = f"""# Evidence: how to choose experts

Written by `make evidence` (`benchmarks/evidence.py`), on the models in `fixtures/`; `make evidence
MODEL=model.gguf TEXTS=folder` writes the same of any model. Every plan is measured by masking
against the whole model, on text that neither calibration nor search saw.

## Regret

Mean KL divergence from the whole model over that of the best one-shot method of that model and size
(below 1: better than all of them). `{MEASURED}` is the default where there is text to measure on.
The last column: the domain in which `{MEASURED}` comes nearest to `random`, KL over `random`'s.
"""

COLUMNS = """**KL**: nats a token, with its standard error over tokens. **Against the best**:
relative difference to the best one-shot method, from pairs of chunks, with its standard error.
**PPL**: perplexity over the whole model's. `random` is the mean of its seeds, ± their standard
deviation. **N used**: the same experts, but a token uses N of them (`--experts-used`), as `search`
tries.
"""


def write_report(models: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write evidence.md beside the numbers; ``models`` is what evidence.json holds, by name."""
    parts = [HEAD, _regrets(models), COLUMNS]
    for name, results in models.items():
        parts += [f"## {name}\n", _setting(results)]
        for keep in _sizes(results):
            parts.append(_table(keep, results))
    write_text(out / "evidence.md", "\n".join(parts))


def one_shot(plans: Plans) -> dict[str, Row]:
    """Plans that nothing was measured for, without random ones."""
    return {
        name: row
        for name, row in plans.items()
        if name not in SEARCHES and not name.startswith("random") and not name.endswith(" used")
    }


def _sizes(results: Mapping[str, Any]) -> list[int]:
    return sorted(map(int, results["plans"]), reverse=True)


def _best(plans: Plans) -> str:
    known = one_shot(plans)
    return min(known, key=lambda name: float(known[name]["kld_mean"]))


def _joined(plans: Plans) -> dict[str, Row]:
    """Join the seeds of random to one row; best first."""
    seeds = [row for name, row in plans.items() if name.startswith("random")]
    rows = {name: row for name, row in plans.items() if not name.startswith("random")}
    if seeds:
        numbers = ("kld_mean", "ppl_ratio", "top1_agreement")
        mean: dict[str, Any] = {n: float(np.mean([s[n] for s in seeds])) for n in numbers}
        mean["kld_se"] = float(np.std([s["kld_mean"] for s in seeds]))
        mean["chunks"] = np.mean([s["chunks"] for s in seeds], axis=0).tolist()
        mean["domains"] = {
            d: {"kld_mean": float(np.mean([s["domains"][d]["kld_mean"] for s in seeds]))}
            for d in seeds[0]["domains"]
        }
        rows["random"] = mean
    return dict(sorted(rows.items(), key=lambda item: float(item[1]["kld_mean"])))


def _regrets(models: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| model | kept | best one-shot | KL | " + " | ".join(REGRETTED) + " | domain |",
        "|---" * (len(REGRETTED) + 5) + "|",
    ]
    worst: dict[str, float] = {}
    for model, results in models.items():
        for keep in _sizes(results):
            plans = results["plans"][str(keep)]
            rows, best = _joined(plans), _best(plans)
            least = float(plans[best]["kld_mean"])
            cells = []
            for name in REGRETTED:
                regret = float(rows[name]["kld_mean"]) / least if name in rows else None
                worst[name] = max(worst.get(name, 0.0), regret or 0.0)
                cells.append("" if regret is None else f"{regret:.2f}")
            experts = results["model"]["experts"]
            cells.append(_nearest_to_random(rows))
            head = f"| {model} | {keep} of {experts} | {best} | {least:.4f} | "
            lines.append(head + " | ".join(cells) + " |")
    cells = [f"**{worst[name]:.2f}**" if worst[name] else "" for name in REGRETTED]
    return "\n".join([*lines, "| worst | | | | " + " | ".join(cells) + " | |"]) + "\n"


def _nearest_to_random(rows: Plans) -> str:
    if MEASURED not in rows or "random" not in rows:
        return ""
    mine, control = (rows[name]["domains"] for name in (MEASURED, "random"))
    ratios = {d: mine[d]["kld_mean"] / control[d]["kld_mean"] for d in mine}
    nearest = max(ratios, key=ratios.__getitem__)
    return f"{nearest} {ratios[nearest]:.2f}"


def _setting(results: Mapping[str, Any]) -> str:
    model, held = results["model"], results["heldout"]
    tokens = ", ".join(f"{name} {count:,}" for name, count in model["tokens"].items())
    wall, cpu = (results["seconds"][name] / 60 for name in ("wall", "cpu"))
    return (
        f"{model['layers']} layers of {model['experts']} experts, {model['used']} used. "
        f"Calibration tokens: {tokens}. Measured on {held['tokens']:,} tokens in "
        f"{held['chunks']} chunks. All of it took {wall:.0f} minutes, {cpu:.0f} of CPU time.\n"
    )


def _table(keep: int, results: Mapping[str, Any]) -> str:
    plans = results["plans"][str(keep)]
    best, domains = _best(plans), sorted(plans[_best(plans)]["domains"])
    experts = results["model"]["experts"]
    lines = [
        f"### {keep} of {experts} kept\n\n{_took(plans)}\n",
        "| method | KL | against the best | PPL | top-1 | " + " | ".join(domains) + " |",
        "|---" * (len(domains) + 5) + "|",
    ]
    for name, row in _joined(plans).items():
        change, error = paired(np.array(plans[best]["chunks"]), np.array(row["chunks"]))
        cells = [f"{row['domains'][domain]['kld_mean']:.4f}" for domain in domains]
        lines.append(
            f"| {name} | {row['kld_mean']:.4f} ± {row['kld_se']:.4f} | {change:+.1%} ± {error:.1%} "
            f"| {row['ppl_ratio']:.4f} | {row['top1_agreement']:.1%} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


def _took(plans: Plans) -> str:
    """Say what methods that measure plans took, and what that cost."""
    said = []
    for name in SEARCHES:
        if name in plans:
            told = plans[name]["settings"]
            taken = told.get("search_base") or plans[name]["method"]
            won = ", and found a better plan" if told.get("search_won") else ""
            said.append(
                f"`{name}` ran {told.get('search_tokens', 0):,} tokens and took {taken}{won}."
            )
    return " ".join(said)
