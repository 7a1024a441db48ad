"""What the measured cost of pruning means: gates for damage, each with what to try, and a scale.

Measurements decide. The share of Σ g‖f‖ that the layers retain predicts a cost, so it counts only
where divergence was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggprune.evaluation.probe_gate import FAIL

#: Above this perplexity ratio users notice without looking for it.
MAX_PPL_RATIO = 1.2
#: Nats a token. Where no sweep has found the cliff, this much is past any: the base's own choice
#: has lost more than a third of its probability on average.
MAX_KLD = 0.5
#: Of the 99 % quantile: one token in a hundred keeps less than a twentieth of what the base gave.
MAX_KLD_P99 = 3.0
#: Below this share of Σ g‖f‖ a layer has lost experts that it uses.
MIN_RETAINED = 0.95
#: A domain may lose this many nats a token more than the rest (a perplexity ratio of 1.25 to it).
MAX_DOMAIN_LOSS = math.log(1.25)
#: Standard errors that a difference between domains must exceed.
_SIGNIFICANT = 3.0
#: Mean KL divergence of Llama 3 8B quantized without an importance matrix, from its F16 file
#: (llama.cpp, tools/perplexity/README.md, "LLaMA 3 8b Scoreboard", revision f364eb6f).
SCALE = {
    "Q8_0": 0.001355,
    "Q6_K": 0.005452,
    "Q5_K_M": 0.010762,
    "Q4_K_M": 0.031273,
    "Q3_K_M": 0.101913,
    "Q2_K": 0.445132,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something bad.

    Attributes:
        gate: which one tripped: "perplexity", "cliff", "tail", "domain", "answers" or "layers".
    """

    gate: str
    text: str
    remedy: str


def verdict(
    *,
    evaluation: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    keep: int | None = None,
    retained: Mapping[int, float | None] | None = None,
    probe: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """List everything bad that the numbers show. All parts may be missing.

    Args:
        evaluation: as ``ggprune evaluate --json`` prints it.
        sweep: as ``ggprune sweep --json`` prints it; its cliff is known then.
        retained: share of Σ g‖f‖ by layer; counts only without a measured divergence.
        probe: as ``ggprune probe --json`` prints it.
    """
    measured = evaluation or {}
    return [
        *_perplexity(measured),
        *_divergence(measured, sweep or {}, keep),
        *_domains(measured),
        *_answers(probe or {}),
        *_layers({} if measured.get("kld_mean") is not None else retained or {}),
    ]


def scale(kld: float | None) -> str:
    """Say which quantizations cost about as much as a mean KL divergence; "" without one."""
    if kld is None:
        return ""
    costs = list(SCALE.items())
    above = next((index for index, (_, cost) in enumerate(costs) if cost >= kld), len(costs))
    near = " and ".join(f"{cost:#.2g} to {name}" for name, cost in costs[max(above - 1, 0) :][:2])
    return f"Llama 3 8B loses {near}, by llama.cpp's own table"


def _perplexity(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    ratio = evaluation.get("ppl_ratio")
    if ratio is not None and ratio > MAX_PPL_RATIO:
        yield Finding(
            "perplexity",
            f"Perplexity is {ratio:.2f} times the base model's (more than {MAX_PPL_RATIO}).",
            "Keep more experts; `ggprune sweep` shows how many it takes.",
        )


def _divergence(
    evaluation: Mapping[str, Any], sweep: Mapping[str, Any], keep: int | None
) -> Iterator[Finding]:
    cliff = cliff_of(sweep)
    if cliff and keep and keep < cliff:
        yield Finding(
            "cliff",
            f"{keep} experts are past the cliff at {cliff}: divergence rises steeply below it.",
            f"Keep {cliff} experts or more.",
        )
    elif (evaluation.get("kld_mean") or 0) > MAX_KLD:
        yield Finding(
            "cliff",
            f"Mean KL divergence is {evaluation['kld_mean']:.2f} nats a token, past any cliff.",
            "Keep more experts; `ggprune sweep` shows where the curve breaks.",
        )
    elif (evaluation.get("kld_p99") or 0) > MAX_KLD_P99:
        yield Finding(
            "tail",
            f"One token in a hundred diverges by more than {evaluation['kld_p99']:.1f} nats: there "
            "the pruned model expects something else altogether.",
            "Keep more experts, or calibrate with more text of the kinds that are used.",
        )


def cliff_of(sweep: Mapping[str, Any], method: str | None = None) -> int | None:
    """Find the smallest count before the curve breaks, of one method or of all; None: unknown."""
    cliff = sweep.get("cliff")
    if isinstance(cliff, Mapping):
        known = [value for name, value in cliff.items() if value and method in (None, name)]
        cliff = min(known, default=None)
    return cliff if isinstance(cliff, int) else None


def _domains(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare each domain's loss, ln(ppl ratio), with the loss over all other text."""
    domains = evaluation.get("domains") or {}
    tokens = evaluation.get("tokens") or 0
    ruined = (evaluation.get("kld_mean") or 0) > MAX_KLD
    for name, part in domains.items():
        others = tokens - part["tokens"]
        if len(domains) < 2 or others <= 0:
            continue
        own, total = math.log(part["ppl_ratio"]), math.log(evaluation["ppl_ratio"])
        rest = (total * tokens - own * part["tokens"]) / others
        error = part["ppl_ratio_se"] / part["ppl_ratio"]
        if own - rest > max(MAX_DOMAIN_LOSS, _SIGNIFICANT * error):
            text = (
                f"{name} suffers far more than the rest: perplexity ratio "
                f"{part['ppl_ratio']:.2f} against {math.exp(rest):.2f}."
            )
        elif (part.get("kld_mean") or 0) > MAX_KLD and not ruined:
            text = (
                f"{name} is ruined: its mean KL divergence is {part['kld_mean']:.2f} nats a token."
            )
        else:
            continue
        yield Finding(
            "domain",
            text,
            f"Calibrate with more text of this kind, or protect the domain {name}.",
        )


def _answers(probe: Mapping[str, Any]) -> Iterator[Finding]:
    for name, mode in (probe.get("modes") or {}).items():
        gate = mode.get("gate") or {}
        worse = [
            _check(check, found)
            for check, found in gate.get("checks", {}).items()
            if found["verdict"] == FAIL
        ]
        if worse:
            yield Finding(
                "answers",
                f"What it writes is worse than the base model's ({name}): {'; '.join(worse)}.",
                "Keep more experts, or calibrate with text like these prompts.",
            )


def answers_in_a_line(mode: Mapping[str, Any]) -> str:
    """Say what a probe's gate found in a mode, with 95 % intervals."""
    gate = mode.get("gate")
    if not gate:
        return "not compared"  # By an older version.
    checks = "; ".join(_check(name, found) for name, found in gate["checks"].items())
    return f"{mode['base']['probes']} answers, {gate['verdict']}: {checks}"


def _check(name: str, found: Mapping[str, Any]) -> str:
    low, high = found["low"], found["high"]
    if name == "length":
        upto = "…" if high is None else f"{high:.2f}"
        return f"length {found['value']:.2f} times ({low:.2f} to {upto})"
    what = {"loops": "loops", "endless": "no end", "format": "format broken"}[name]
    rates = f"{found['base']:.0%} -> {found['candidate']:.0%}"
    return f"{what} {rates} ({100 * low:+.0f} to {100 * high:+.0f} points)"


def _layers(retained: Mapping[int, float | None]) -> Iterator[Finding]:
    low = [
        (share, layer)
        for layer, share in retained.items()
        if share is not None and share < MIN_RETAINED
    ]
    if low:
        share, layer = min(low)
        some, worst = f"{len(low)} layers keep", f"worst, layer {layer}"
        if len(low) == 1:
            some, worst = "A layer keeps", f"layer {layer}"
        yield Finding(
            "layers",
            f"{some} less than {MIN_RETAINED:.0%} of Σ g‖f‖ ({worst}: {share:.1%}), and what that "
            "costs was not measured.",
            "Measure it with `ggprune evaluate`, or keep more experts.",
        )
