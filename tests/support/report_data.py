"""A made-up run, as large and as uneven as real ones, for the tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from ggprune.calibration.statistics import Domain, ExpertSums, Statistics
from ggprune.model import Identity
from ggprune.report import ReportInput
from tests.support.plans import planned

DOMAINS = ("chat", "code", "math", "multilingual", "reasoning", "writing")


def statistics_of(
    layers: int = 30, experts: int = 128, used: int = 8, domains: tuple[str, ...] = DOMAINS
) -> Statistics:
    """As a trained router leaves them: few experts do much, more so in some layers."""
    draw = np.random.default_rng(7)
    common = draw.normal(0, 1, (layers, experts)) * draw.uniform(0.5, 1.3, (layers, 1))
    parts = []
    for name in domains:
        tokens = int(draw.integers(9_000, 30_000))
        weight = np.exp(common + draw.normal(0, 0.5, (layers, experts)))
        count = np.round(weight / weight.sum(1, keepdims=True) * tokens * used).astype(np.int64)
        norm = draw.lognormal(0, 0.35, (layers, experts)) * np.linspace(1, 9, layers)[:, None]
        gate = draw.uniform(0.08, 0.2, (layers, experts))
        sums = ExpertSums(
            np.full(layers, tokens),
            count,
            count * gate,
            count * norm,
            count * norm**2,
            count * gate * norm,
            norm * 3 * (count > 0),
        )
        parts.append(Domain(name, tokens, f"{len(parts):064x}", sums))
    identity = Identity("qwen3moe", layers, experts, used, "a" * 64, "b" * 64, "Example-MoE-30B")
    settings = {"context": 2048, "generated": 128, "ggprune": "0.1.0"}
    return Statistics(identity, tuple(range(layers)), tuple(parts), settings)


def scores(kld: float, tokens: int = 5_000) -> dict[str, Any]:
    ratio = 1 + kld * 0.8
    return {
        "tokens": tokens,
        "base": {"ppl": 7.412, "ppl_se": 0.061},
        "candidate": {"ppl": 7.412 * ratio, "ppl_se": 0.066},
        "ppl_ratio": ratio,
        "ppl_ratio_se": 0.002 + kld / 30,
        "kld_mean": kld,
        "kld_se": kld / 20,
        "kld_median": kld / 6,
        "kld_p95": kld * 4,
        "kld_p99": kld * 11,
        "kld_max": kld * 60,
        "top1_agreement": max(0.1, 1 - kld * 0.5),
        "overlap": max(0.1, 1 - kld * 0.6),
    }


def evaluation() -> dict[str, Any]:
    klds = dict(zip(DOMAINS, (0.031, 0.024, 0.042, 0.066, 0.036, 0.029), strict=True))
    return {**scores(0.037, 30_000), "domains": {name: scores(k) for name, k in klds.items()}}


def sweep() -> dict[str, Any]:
    points = [
        {"method": method, "keep": keep, "size_bytes": 16_796_000_000 - (128 - keep) * 112_000_000,
         **scores(factor * ((128 - keep) / 128) ** power)}
        for method, factor, power in (
            ("reap", 1.4, 1.9), ("contribution", 1.1, 1.8), ("random", 4.0, 1.2)
        )
        for keep in (120, 112, 109, 104, 96, 80, 64)
    ]  # fmt: skip
    return {
        "format": "ggprune-sweep", "version": 1, "model": "Example.gguf", "experts": 128,
        "settings": {}, "points": points, "tolerance": {"max_kld": 0.05, "max_ppl_ratio": None},
        "cliff": {"reap": 96, "contribution": 80, "random": None},
        "smallest": {"reap": 109, "contribution": 104, "random": None},
    }  # fmt: skip


def probe() -> dict[str, Any]:
    def answer(words: int, loop: bool = False, json: bool | None = None) -> dict[str, Any]:
        text = "The dog barks. " * 12 if loop else "A short answer, <b>not</b> bold."
        return {"text": text, "tokens": words, "words": words, "distinct4": 0.31 if loop else 0.97,
                "loop": loop, "collapse": False, "ended": not loop, "json": json}  # fmt: skip

    def summary(words: float, loops: float) -> dict[str, Any]:
        return {"probes": 3, "mean_words": words, "mean_tokens": words * 1.3,
                "distinct4": 0.97 - loops, "loop_rate": loops, "collapse_rate": 0.0,
                "ended_rate": 1 - loops, "json_rate": 1.0}  # fmt: skip

    def mode(sampling: dict[str, Any], loops: bool) -> dict[str, Any]:
        prompts = (("code-toposort", "code"), ("tool-weather", "tools"), ("loop-dog", "repetition"))
        texts = [
            {"id": name, "kind": kind, "prompt": f"Prompt of {name}", "base": answer(180),
             "candidate": answer(150, loop=loops and kind == "repetition",
                                 json=True if kind == "tools" else None)}
            for name, kind in prompts
        ]  # fmt: skip
        return {"sampling": sampling, "base": summary(182, 0), "kinds": {},
                "candidate": summary(171, loops / 3), "probes": texts,
                "gate": {"verdict": "undecided", "checks": checks(loops / 3)}}  # fmt: skip

    def checks(loops: float) -> dict[str, Any]:
        rate = {"base": 0.0, "candidate": loops, "value": loops, "low": loops - 0.4,
                "high": loops + 0.4, "pairs": 3, "verdict": "undecided"}  # fmt: skip
        length = {"base": 180.0, "candidate": 150.0, "value": 0.83, "low": 0.0, "high": None}
        return dict.fromkeys(("loops", "endless", "format"), rate) | {
            "length": {**length, "pairs": 3, "verdict": "undecided"}
        }

    return {
        "format": "ggprune-probe", "version": 2, "base": "a.gguf", "candidate": "b.gguf",
        "settings": {}, "modes": {
            "greedy": mode({"temperature": 0.0}, True),
            "sampled": mode({"temperature": 0.7}, False),
        },
    }  # fmt: skip


def frontier() -> dict[str, Any]:
    points = [
        {"keep": keep, "types": types, "size_bytes": size - (128 - keep) * 90_000_000,
         "kld_mean": kld * 128 / keep, "kld_p99": 9 * kld, "worst_domain": "code",
         "worst_kld": 2 * kld, "on_frontier": keep == 128}
        for keep in (128, 109)
        for types, size, kld in (("Q8_0", 27 * 10**9, 0.002), ("Q4_K_M", 17 * 10**9, 0.03))
    ]  # fmt: skip
    return {"points": points, "experts": 128}


def tasks() -> dict[str, Any]:
    def row(task: str, base: float, candidate: float, error: float) -> dict[str, Any]:
        sides = {
            name: {"score": score, "score_se": error, "metric": "m", "samples": 198, "file": "f"}
            for name, score in (("base", base), ("candidate", candidate))
        }
        change = {"difference": candidate - base, "difference_se": error * 2**0.5}
        return {"task": task, **sides, **change}

    # The seed card's own numbers for GPQA Diamond.
    gpqa = row("gpqa_diamond_cot_zeroshot", 0.7525, 0.7172, 0.0314)
    only_base = {**row("mmlu_law", 0.5, 0.4, 0.05), "candidate": None, "difference": None,
                 "difference_se": None}  # fmt: skip
    rows = [gpqa, row("gsm8k", 0.92, 0.91, 0.02), only_base]
    return {"format": "ggprune-tasks", "version": 1, "tasks": rows}


def realistic(layers: int = 30, experts: int = 128, keep: int = 109) -> ReportInput:
    statistics = statistics_of(layers, experts)
    plan = planned(statistics, keep, "contribution")
    metadata = {
        "source": {
            "name": "Example-Q4_K_M.gguf",
            "size_bytes": 16_796_000_000,
            "fingerprint": "c" * 64,
        },
        "result": {"name": "Example-109e-Q4_K_M.gguf", "size_bytes": 14_420_000_000},
    }
    return ReportInput(
        statistics,
        plan,
        metadata,
        evaluation(),
        sweep(),
        probe(),
        command="ggprune Example-Q4_K_M.gguf --keep 109 --method contribution",
        tasks=tasks(),
        frontier=frontier(),
    )
