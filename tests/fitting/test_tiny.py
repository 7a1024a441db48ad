"""Fitting whole on small random models: other architectures, another reference, low bits."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggprune.api.fit import fit
from ggprune.calibration.settings import Settings
from ggprune.cli.prune import command as prune
from ggprune.errors import MismatchError, UnsupportedModelError
from ggprune.fitting.job import Job
from ggprune.fitting.options import FitOptions
from ggprune.gguf_file import GgufModel
from ggprune.llama.options import QuantizeOptions, RunOptions
from ggprune.model import open_model
from ggprune.quantization.quantize import Quantizer
from tests.support.evaluating import TEXT
from tests.support.tiny import write_tiny


def job_of(model: Path, folder: Path) -> Job:
    pairs = []
    for kind in ("calibration", "search", "held-out"):
        path = folder / f"{kind}.txt"
        path.write_text(f"{kind} " + TEXT * 12, encoding="utf-8")
        pairs.append((("words", str(path)),))
    return Job(
        model=model,
        work=folder / "work",
        text=pairs[0],
        search_text=pairs[1],
        eval_text=pairs[2],
        options=FitOptions(
            types=("Q8_0", "Q5_0"), groups=6, search_tokens=512, held_out_tokens=512
        ),
        settings=Settings(ctx=128, max_tokens=512),
        run=RunOptions(threads=1),
    )


@pytest.mark.llama
@pytest.mark.parametrize(
    ("architecture", "share"), [("qwen3moe", 0.5), ("glm4moe", 0.3), ("llama", 0.25)]
)
def test_the_result_fits_and_loads(architecture: str, share: float, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", architecture, seed=1, dtype="F16")
    limit = int(source.stat().st_size * share)
    fitted = fit(job_of(source, tmp_path), tmp_path / "result.gguf", target_size=limit)
    assert fitted.path is not None and fitted.written is not None
    size = fitted.path.stat().st_size
    assert size == fitted.numbers["size_bytes"] <= limit
    assert fitted.written.compared > 0 and fitted.written.speed > 0
    with open_model(fitted.path) as model:
        assert model.experts == fitted.numbers["keep"]


def quantized(source: Path, folder: Path, kind: str) -> Path:
    with GgufModel(source) as model:
        options = QuantizeOptions(allow_requantize=True)
        return Quantizer(model, options, folder, stem="Other").run(kind).paths[0]


@pytest.mark.process
def test_another_quantization_is_run_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)
    job = replace(job_of(source, tmp_path), reference=quantized(source, tmp_path, "Q8_0"))
    fitted = fit(job, target_size=source.stat().st_size // 4, dry_run=True)
    assert "Other-Q8_0.gguf" in caplog.text
    assert "Tiny.gguf" in caplog.text and "only quantized" in caplog.text
    assert fitted.numbers["kld_mean"] > 0
    other = write_tiny(tmp_path / "Stranger.gguf", "qwen3moe", seed=2)
    with pytest.raises(MismatchError):
        fit(replace(job, reference=other), target_size=100_000, dry_run=True)


@pytest.mark.process
def test_few_bits_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1)
    source = quantized(whole, tmp_path, "Q5_0")
    job = job_of(source, tmp_path)
    fitted = fit(job, target_size=int(source.stat().st_size * 0.95), dry_run=True)
    assert "fewer than 7 bits" in caplog.text
    assert fitted.numbers["size_bytes"] <= source.stat().st_size


@pytest.mark.llama
def test_what_predicts_no_token_is_refused(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", "llada-moe", seed=1)
    with pytest.raises(UnsupportedModelError, match="no next token"):
        fit(job_of(source, tmp_path), target_size=100_000)


@pytest.mark.llama
def test_prune_chooses_types_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny(tmp_path / "Tiny.gguf", "qwen3moe", seed=1, dtype="F16")
    job = job_of(source, tmp_path)
    texts = [
        word
        for option, pairs in (("text", job.text), ("search-text", job.search_text))
        for word in (f"--{option}", "=".join(pairs[0]))
    ]
    limit = int(source.stat().st_size * 0.4)
    words = [str(source), "--target-size", str(limit), "--types", "auto", *texts]
    words += ["--eval-text", "=".join(job.eval_text[0]), "--threads", "1", "--json", "--quiet"]
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(prune, [*words, "--output", "made.gguf"])
    assert run.exit_code == 0, run.output
    numbers = json.loads(run.stdout)
    assert numbers["size_bytes"] == (tmp_path / "made.gguf").stat().st_size <= limit
