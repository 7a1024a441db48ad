"""docs/evidence.md and its plot, from the numbers that benchmarks/evidence.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggprune.choosing.search.search import paired
from ggprune.gguf_file import write_text

Row = Mapping[str, Any]
MEASURED = ("auto", "search")
#: Of ggprune; all other one-shot methods are published ones.
OWN = "cover"
PLOTTED = ("random", "reap", "contribution", "gate, maxmin", "cover", "search")
COLOURS = ("#999999", "#d1495b", "#2e86ab", "#3a7d44", "#e0a030", "#6a3d9a")

HEAD = """# Evidence: how to choose experts

Written by `make evidence` (`benchmarks/evidence.py`), which runs on any model:
`python benchmarks/evidence.py MODEL.gguf --texts FOLDER`. Every plan is measured by masking
against the whole model on text that neither calibration nor search saw. All numbers hold for
this model and these texts; what they say of another model is a guess, which is why
`--method auto` measures on yours.

- **KL**: mean KL divergence from the whole model, nats a token, with its standard error over
  tokens. **Against the best**: relative difference to the best one-shot method of that size,
  from pairs of chunks, with its standard error. **PPL ratio**: perplexity over the whole model's.
- `random` is the mean of its seeds; its ± is their standard deviation.
- **N used**: the same experts, but a token uses N of them (`--experts-used`). `search` tries this;
  the rows tell what it gains by that and what by its choice of experts. One-shot methods use the
  model's number.
"""


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write evidence.md and evidence.svg beside the numbers.

    Args:
        results: evidence.json.
        out: folder.
    """
    model = results["model"]
    sizes = [keep for keep in model["keeps"] if str(keep) in results["plans"]]
    tables = {keep: summary(results["plans"][str(keep)]) for keep in sizes}
    parts = [HEAD, _setting(results), "## What it says\n", _verdicts(results, sizes)]
    for keep in sizes:
        share = keep / model["experts"]
        parts += [f"## {keep} of {model['experts']} experts kept ({share:.0%})\n"]
        parts += [_table(tables[keep]), _domains(results["plans"][str(keep)])]
    parts += ["![KL by method and size](evidence.svg)\n"]
    parts += ["## Coverage by blend\n", _coverage(results, sizes)]
    parts += ["## What it costs\n", _costs(results, sizes)]
    write_text(out / "evidence.md", "\n".join(parts))
    write_text(out / "evidence.svg", _plot(tables, model["experts"]))


def one_shot(plans: Mapping[str, Row]) -> dict[str, Row]:
    """Plans that nothing was measured for, without random ones."""
    return {
        name: row
        for name, row in plans.items()
        if name not in MEASURED and not name.startswith("random") and not name.endswith(" used")
    }


def summary(plans: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """Numbers by method, best first; random seeds joined."""
    known = one_shot(plans)
    best = min(known, key=lambda name: float(known[name]["kld_mean"]))
    rows: dict[str, dict[str, float]] = {}
    random = [row for name, row in plans.items() if name.startswith("random")]
    for name, row in plans.items():
        if name.startswith("random"):
            continue
        change, error = _against(plans, best, name)
        rows[name] = {
            **{key: row[key] for key in ("kld_mean", "kld_se", "ppl_ratio", "ppl_ratio_se")},
            "top1": row["top1_agreement"],
            "worst": max(d["kld_mean"] for d in row["domains"].values()),
            "change": change,
            "error": error,
        }
    if random:
        kl = [row["kld_mean"] for row in random]
        base = known[best]["kld_mean"]
        rows["random"] = {
            "kld_mean": float(np.mean(kl)),
            "kld_se": float(np.std(kl, ddof=1)) if len(kl) > 1 else 0.0,
            "ppl_ratio": float(np.mean([row["ppl_ratio"] for row in random])),
            "ppl_ratio_se": float(np.std([row["ppl_ratio"] for row in random])),
            "top1": float(np.mean([row["top1_agreement"] for row in random])),
            "worst": float(
                np.mean([max(d["kld_mean"] for d in row["domains"].values()) for row in random])
            ),
            "change": float(np.mean(kl)) / base - 1,
            "error": float(np.std(kl)) / base,
        }
    return dict(sorted(rows.items(), key=lambda item: item[1]["kld_mean"]))


def _setting(results: Mapping[str, Any]) -> str:
    model, held = results["model"], results["heldout"]
    tokens = ", ".join(f"{name} {count:,}" for name, count in model["tokens"].items())
    search = (
        f"`search` draws {results['search_plans']} plans of one chunk (512 tokens) each, and "
        "decides on the validation part of the search text."
        if results["search_plans"]
        else "`search` was left out of this run (`--search-plans 0`)."
    )
    return (
        f"Model: {model['name']}, {model['layers']} layers of {model['experts']} experts, "
        f"{model['used']} used. Calibration tokens: {tokens}. Measured on {held['tokens']:,} "
        f"tokens in {held['chunks']} chunks. {search}\n"
    )


def _verdicts(results: Mapping[str, Any], sizes: Sequence[int]) -> str:
    lines = []
    for keep in sizes:
        plans = results["plans"][str(keep)]
        rows, known = summary(plans), one_shot(plans)
        best = min(known, key=lambda name: float(known[name]["kld_mean"]))
        said = [f"best one-shot is {best} (KL {rows[best]['kld_mean']:.4f})"]
        for name in MEASURED:
            if name in rows:
                row = rows[name]
                said.append(f"{name} {row['change']:+.1%} ± {row['error']:.1%} against it")
        others = min((n for n in known if n != OWN), key=lambda n: float(known[n]["kld_mean"]))
        for name in (OWN, "search"):
            if name in plans:
                change, error = _against(plans, others, name)
                said.append(f"{name} {change:+.1%} ± {error:.1%} against {others}")
        if "reap" in rows:
            said.append(f"reap {rows['reap']['change']:+.1%}")
        if "random" in rows:
            last = list(rows)[-1]
            said.append("random is worst" if last == "random" else f"{last} is worse than random")
        if "contribution, maxmin" in rows and "contribution" in rows:
            pooled, maxmin = rows["contribution"]["worst"], rows["contribution, maxmin"]["worst"]
            said.append(
                f"KL of the worst domain: contribution pooled {pooled:.4f}, max-min {maxmin:.4f}"
            )
        lines.append(f"- **{keep} kept**: " + "; ".join(said) + ".")
    return "\n".join(lines) + "\n"


def _against(plans: Mapping[str, Row], base: str, name: str) -> tuple[float, float]:
    return paired(np.array(plans[base]["chunks"]), np.array(plans[name]["chunks"]))


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        "| method | KL | against the best | PPL ratio | top-1 | KL, worst domain |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['kld_mean']:.4f} ± {row['kld_se']:.4f} "
            f"| {row['change']:+.1%} ± {row['error']:.1%} "
            f"| {row['ppl_ratio']:.4f} ± {row['ppl_ratio_se']:.4f} "
            f"| {row['top1']:.1%} | {row['worst']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def _domains(plans: Mapping[str, Row]) -> str:
    """KL by domain."""
    names = sorted(next(iter(plans.values()))["domains"])
    lines = ["| KL by domain | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for method, row in sorted(plans.items(), key=lambda item: float(item[1]["kld_mean"])):
        if method.startswith("random") and method != "random 0":
            continue
        cells = [f"{row['domains'][name]['kld_mean']:.4f}" for name in names]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _coverage(results: Mapping[str, Any], sizes: Sequence[int]) -> str:
    text = (
        "Share of each domain's Σ g‖f‖ that is kept, of the most that many experts could hold, "
        "on the calibration text.\n\n"
    )
    names = sorted(results["model"]["tokens"])
    text += "| kept, blend | worst | " + " | ".join(names) + " |\n"
    text += "|---" * (len(names) + 2) + "|\n"
    for keep in sizes:
        plans = results["plans"][str(keep)]
        for method in ("contribution", "contribution, uniform", "contribution, maxmin"):
            if method in plans:
                covered = plans[method]["settings"]["coverage"]
                cells = [f"{covered[name]:.3f}" for name in names]
                label = method.partition(", ")[2] or "pooled"
                text += f"| {keep}, {label} | {min(covered.values()):.3f} | "
                text += " | ".join(cells) + " |\n"
    return text


def _costs(results: Mapping[str, Any], sizes: Sequence[int]) -> str:
    lines = [
        "One-shot methods cost one calibration (`weights` none; `easy-ep`, `shape` and every "
        "further round run the text once more); scoring takes well under a second, `cover` some "
        "seconds. `auto` and `search` run the model over the search text, "
        "masked; what counts is the number of tokens:\n",
        "| kept | method | tokens run | took |",
        "|---|---|---|---|",
    ]
    for keep in sizes:
        for name in MEASURED:
            row = results["plans"][str(keep)].get(name)
            if row:
                told = row["settings"]
                tokens = told.get("search_tokens", "")
                taken = row["method"] if name == "auto" else told.get("search_base", "")
                won = "" if name == "auto" else (", won" if told.get("search_won") else ", stayed")
                shown = f"{tokens:,}" if tokens else ""
                lines.append(f"| {keep} | {name} | {shown} | {taken}{won} |")
    return "\n".join(lines) + "\n"


def _plot(tables: Mapping[int, Mapping[str, Mapping[str, float]]], experts: int) -> str:
    """KL over the share kept, on a logarithmic scale, as SVG."""
    width, height, left, bottom = 640, 400, 70, 50
    values = [row["kld_mean"] for rows in tables.values() for row in rows.values()]
    low, high = np.log(min(values) * 0.8), np.log(max(values) * 1.2)
    keeps = sorted(tables)

    def x(keep: int) -> float:
        span = max(keeps[-1] - keeps[0], 1)
        return left + 30 + (keep - keeps[0]) / span * (width - left - 200)

    def y(value: float) -> float:
        return height - bottom - (np.log(value) - low) / (high - low) * (height - bottom - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0):
        if low < np.log(tick) < high:
            parts.append(
                f'<line x1="{left}" x2="{width - 150}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                f'stroke="#ddd"/><text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
                f"{tick:g}</text>"
            )
    for keep in keeps:
        parts.append(
            f'<text x="{x(keep):.1f}" y="{height - 28}" text-anchor="middle">{keep} of {experts}'
            "</text>"
        )
    parts.append(f'<text x="{left}" y="{height - 8}">experts kept; mean KL, log scale</text>')
    for index, (name, colour) in enumerate(zip(PLOTTED, COLOURS, strict=True)):
        points = [(x(k), y(tables[k][name]["kld_mean"])) for k in keeps if name in tables[k]]
        if not points:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for px, py in points:
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>')
        at = 40 + 20 * index
        parts.append(
            f'<rect x="{width - 140}" y="{at - 9}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{width - 122}" y="{at - 2}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
