"""Generation side by side: the measures by hand, and the command on a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner

import ggprune
from ggprune.calibration.generate import Sampling
from ggprune.cli import cli
from ggprune.errors import UnsupportedModelError
from ggprune.evaluation import probe, probing
from ggprune.evaluation.candidate import Candidate
from ggprune.evaluation.probe import (
    builtin_probes,
    decode,
    distinct_ratio,
    ends_in_repetition,
    is_json,
    measure,
    own_sampling,
    without_texts,
)
from ggprune.evaluation.probing import short_probe
from ggprune.evaluation.verdict import verdict
from ggprune.gguf_file import GgufModel
from ggprune.llama.session import LlamaModel
from ggprune.model import open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.publish.card import gather, render
from tests.support.evaluating import OPTIONS, TEXT, random_plan
from tests.support.tiny import write_tiny

STORY = [*range(100), 5, 9, 4, 5, 9, 7, *range(100, 180)]


def test_distinct_ratio() -> None:
    assert distinct_ratio(STORY) == 1.0
    assert distinct_ratio([1, 2, 3, 4, 5] * 2) == 1.0, "too short to say"
    assert distinct_ratio([1, 2, 3, 4] * 10) == pytest.approx(4 / 37)
    # 60 tokens, then the last 30 of them again: 57 different 4-grams, 3 over the seam, 27 old.
    assert distinct_ratio([*range(60), *range(30, 60)]) == pytest.approx(60 / 87)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        (STORY, False),
        ([*STORY, *[7] * 24], True),
        ([*STORY, *[7] * 23], False),
        ([*STORY, *[1, 2, 3, 4, 5, 6] * 4], True),
        ([*STORY, *[1, 2, 3, 4, 5, 6] * 3], False),
        ([*STORY, *[*range(50)] * 4], True),
        ([*STORY, *[1, 2, 3] * 8, 1], True),
        ([*[1, 2, 3] * 20, *STORY], False),
        ([], False),
        ([1], False),
    ],
)
def test_repeated_suffix(ids: list[int], loops: bool) -> None:
    assert ends_in_repetition(ids) == loops


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "f", "arguments": {}}', True),
        ('\n```json\n{"a": 1}\n```\n', True),
        ('<think>It is {this}.</think>{"a": 1}', True),
        ('<|channel>thought\nWhich?<channel|>{"a": 1}', True),
        ('Here it is: {"a": 1}', False),
        ('{"a": 1', False),
        ("[1, 2]", False),
        ("", False),
    ],
)
def test_json(text: str, valid: bool) -> None:
    assert is_json(text) == valid


def test_decode() -> None:
    assert decode("né".encode(), cut=False) == ("né", True)
    assert decode("né".encode()[:-1], cut=True) == ("n", True)
    assert decode("né".encode()[:-1], cut=False)[1] is False
    assert decode(b"a\xffb", cut=True)[1] is False


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "m.gguf", "qwen3moe")


@pytest.mark.llama
def test_measure(path: Path) -> None:
    with LlamaModel(path, OPTIONS, vocab_only=True) as model:
        ids = model.tokenize("the rain, and the sun", add_special=False)
        good = measure(model, [*ids, model.eos])
        cut = measure(model, ids)
        euro = model.tokenize("\u20ac", add_special=False)
        broken = measure(model, [*ids, *euro[:-1], model.eos])
        assert measure(model, [model.eos]).collapse and measure(model, []).collapse
        assert measure(model, [ids[0]] * 40).collapse and measure(model, [ids[0]] * 40).loop
    assert good.text.strip() == "the rain, and the sun" and good.words == 5
    assert good.ended and not (good.loop or good.collapse) and good.json is None
    assert not cut.ended
    assert broken.collapse, "bytes that are not UTF-8"


def test_builtin_probes() -> None:
    probes = builtin_probes()
    kinds = {probe.kind for probe in probes}
    assert len(probes) >= 14
    assert kinds == {
        "code", "math", "philosophy", "long_context", "repetition", "tools", "language",
        "short",
    }  # fmt: skip
    assert {probe.kind for probe in probes if probe.expect_json} == {"tools", "short"}


def test_own_sampling(path: Path, tmp_path: Path) -> None:
    with GgufModel(path) as model:
        assert own_sampling(model) == Sampling(temperature=0.7, top_p=0.9)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen3moe")
    writer.add_float32("general.sampling.temp", 1.0)
    writer.add_float32("general.sampling.top_p", 0.95)
    writer.add_int32("general.sampling.top_k", 20)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufModel(tmp_path / "x.gguf") as model:
        found = own_sampling(model)
    assert (found.temperature, found.top_k) == (1.0, 20) and found.top_p == pytest.approx(0.95)


@pytest.mark.llama
def test_command(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [p for p in builtin_probes() if len(p.messages[-1].content) < 250]
    assert len(short) > 5
    monkeypatch.setattr("ggprune.evaluation.probe.builtin_probes", lambda: short)
    model = open_model(path)
    identity = Plan(16, {layer: LayerPlan(tuple(range(16))) for layer in model.moe_layers})
    identity.save(tmp_path / "identity.json")
    random_plan(model, 4).save(tmp_path / "random.json")
    # All experts, but fewer of them for each token.
    replace(identity, experts_used=1).save(tmp_path / "fewer.json")
    options = ["--max-tokens", "4", "-t", "1", "--mode", "greedy", "-np", "4"]
    results = {}
    for name in ("identity", "random", "fewer"):
        out = tmp_path / f"{name}.probe.json"
        arguments = ["probe", str(path), str(tmp_path / f"{name}.json"), "-o", str(out), *options]
        run = CliRunner().invoke(cli, arguments)
        assert run.exit_code == 0, run.output
        assert "greedy" in run.stdout and "math" in run.stdout
        assert len(run.stdout.splitlines()) < 25
        results[name] = json.loads(out.read_text())
    for pair in results["identity"]["modes"]["greedy"]["probes"]:
        assert pair["base"] == pair["candidate"]
    for name in ("random", "fewer"):
        pairs = results[name]["modes"]["greedy"]["probes"]
        assert any(pair["base"] != pair["candidate"] for pair in pairs)
    assert not verdict(probe=results["identity"])
    run = CliRunner().invoke(
        cli, ["probe", str(path), str(tmp_path / "random.json"), "-o", str(out)]
    )
    assert run.exit_code != 0, "the output exists"


def chatting(
    folder: Path, template: str = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
) -> Path:
    """A model with a chat template."""
    return write_tiny(folder / "chat.gguf", "qwen3moe", keys={"tokenizer.chat_template": template})


@pytest.mark.llama
def test_a_planted_bad_generator_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base writes stories that end; the candidate, known by its mask, goes round in circles."""
    path = chatting(tmp_path)
    model = open_model(path)
    plan = random_plan(model, 8)

    def planted(llama: LlamaModel, prompts: list, *, observers: list, **_: object) -> list:
        story = [*STORY, llama.eos]
        return [[5, 6, 7, 8] * 90 if observers and n % 2 else story for n, _ in enumerate(prompts)]

    monkeypatch.setattr(probe, "generate", planted)
    found = short_probe(model, Candidate.of(plan), OPTIONS)
    (mode,) = found["modes"].values()
    assert mode["base"]["probes"] == 96
    checks = mode["gate"]["checks"]
    assert [checks[name]["verdict"] for name in ("loops", "endless")] == ["fail", "fail"]
    assert (checks["loops"]["base"], checks["loops"]["candidate"]) == (0.0, 0.5)
    assert [finding.gate for finding in verdict(probe=found)] == ["answers"]
    # The same as what it is compared with: nothing is lost.
    same = short_probe(model, Candidate.of(plan), OPTIONS, base=plan)
    assert not verdict(probe=same)
    assert "texts" not in without_texts(found)["modes"]["sampled"]
    assert without_texts(found)["modes"]["sampled"]["gate"] == mode["gate"]


@pytest.mark.llama
def test_a_short_probe_takes_no_longer_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = chatting(tmp_path)
    model = open_model(path)
    candidate = Candidate.of(random_plan(model, 8))
    monkeypatch.setattr(probing, "_speed", lambda *_: 64.0)  # Tokens a second: one answer.
    found = short_probe(model, candidate, OPTIONS, seconds=9)
    assert [p["id"] for p in found["modes"]["sampled"]["probes"]] == [
        f"short-0{n}" for n in range(1, 10)
    ]
    caplog.set_level("INFO", "ggprune")
    assert not short_probe(model, candidate, OPTIONS, seconds=7)
    assert "writes too slowly" in caplog.text
    mute = write_tiny(tmp_path / "mute.gguf", "qwen3moe")
    assert not short_probe(open_model(mute), candidate, OPTIONS), "it has no chat template"


@pytest.mark.llama
def test_prune_counts_what_the_result_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chatting(tmp_path)
    save = tmp_path / "plan.json"
    random_plan(open_model(path), 8).save(save)
    written = [STORY, [5, 6, 7, 8] * 90]

    def planted(llama: LlamaModel, prompts: list, **_: object) -> list:
        return [written["-8e" in llama.path.name]] * len(prompts)

    monkeypatch.setattr(probe, "generate", planted)
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    arguments = ["prune", str(path), "--plan", str(save), "--eval-text", f"x={text}", "-t", "1"]
    arguments += ["--ctx", "64", "-o", str(tmp_path / "m-8e.gguf"), "--force"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0, run.output
    assert "BAD: What it writes is worse than the base model's (sampled): loops 0% -> 100%" in (
        run.stdout
    )
    card = render(gather([tmp_path / "m-8e.gguf"]))
    assert "loops 0% -> 100%" in card and "generated text side by side" not in card
    report = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert report["probe"]["modes"]["sampled"]["gate"]["verdict"] == "fail"
    without = json.loads(CliRunner().invoke(cli, [*arguments, "--json", "--no-probe"]).stdout)
    assert without["probe"] is None


@pytest.mark.llama
def test_a_chat_template_that_fails_costs_no_measurement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = chatting(tmp_path, "{{ raise_exception('only on Sundays') }}")
    (tmp_path / "text.txt").write_text(TEXT * 3)
    caplog.set_level("INFO", "ggprune")
    pruned = ggprune.prune(
        model,
        tmp_path / "o.gguf",
        plan=random_plan(open_model(model), 8),
        eval_text={"x": tmp_path / "text.txt"},
        settings=ggprune.Settings(ctx=64),
        options=OPTIONS,
    )
    assert pruned.evaluation is not None and pruned.probe is None
    assert "answers are not compared" in caplog.text and "only on Sundays" in caplog.text


@pytest.mark.llama
def test_an_embedding_model_has_no_answers(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "nomic-bert-moe")
    result = CliRunner().invoke(cli, ["probe", str(path), str(path), "--max-tokens", "4"])
    assert isinstance(result.exception, UnsupportedModelError) and not result.stdout
    assert "embedding model" in result.exception.message
