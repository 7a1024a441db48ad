"""The model card of a tiny pruned model: every number from an independent source."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import yaml
from click.testing import CliRunner

from ggprune.cli.main import cli
from ggprune.errors import GgpruneError
from ggprune.gguf_file import GgufModel, write_files
from ggprune.model import describe, open_model
from ggprune.plan import LayerPlan, Plan
from ggprune.publish import card_sources
from ggprune.publish.card import clean, gather, render, table
from ggprune.report.data import ReportInput, build
from ggprune.report.page import render as render_page
from ggprune.report.summary import summary_lines
from ggprune.rewrite import drop_metadata, plan_rewrite
from tests.support.gguf_builder import Gguf, string, u32
from tests.support.tiny import write_tiny

EXPERTS, KEEP = 16, 11
SHARES = (0.9902, 0.75)

EVALUATION: dict[str, Any] = {
    "tokens": 4096,
    "base": {"ppl": 8.125, "ppl_se": 0.25},
    "candidate": {"ppl": 8.5, "ppl_se": 0.375},
    "ppl_ratio": 1.0462,
    "ppl_ratio_se": 0.0031,
    "kld_mean": 0.0512,
    "kld_se": 0.0007,
    "kld_median": 0.02,
    "kld_p95": 0.2,
    "kld_p99": 0.4321,
    "kld_max": 2.0,
    "top1_agreement": 0.9123,
    "overlap": 0.93,
}
EVALUATION["domains"] = {
    "code": {**EVALUATION, "tokens": 1096, "kld_mean": 0.0411},
    "german": {**EVALUATION, "tokens": 3000, "kld_mean": 0.0549},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return write_tiny(folder / "Big-F32.gguf", "olmoe", experts=EXPERTS, used=4)


@pytest.fixture
def release(source: Path, tmp_path: Path) -> Path:
    """A folder with a pruned model and its drop metadata."""
    folder = tmp_path / "release"
    folder.mkdir()
    with GgufModel(source) as opened:
        model = describe(opened)
        layers = {
            layer: LayerPlan(tuple(range(KEEP)), share)
            for layer, share in zip(model.moe_layers, SHARES, strict=True)
        }
        plan = Plan(KEEP, layers, "contribution", settings={"seed": 7})
        result = folder / "Big-11e-F32.gguf"
        rewrite = plan_rewrite(model, plan, result)
        write_files(rewrite.files, opened)
        with GgufModel(result) as written:
            metadata = drop_metadata.drop_metadata(model, written, rewrite.plan, None)
    metadata["calibration"] = {
        "domains": {"code": {"tokens": 12345, "sha256": "a"}, "prose": {"tokens": 678}},
        "settings": {"ctx": 2048},
    }
    drop_metadata.save(folder / "Big-11e.expert_drop_metadata.json", metadata)
    return folder


def model_of(release: Path) -> Path:
    return release / "Big-11e-F32.gguf"


def block(text: str) -> dict[str, Any]:
    """The metadata block, by PyYAML."""
    assert text.startswith("---\n")
    data = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(data, dict)
    return data


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def cells(text: str) -> list[list[str]]:
    """All tables' rows."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["card", *map(str, arguments)], standalone_mode=False)
    error = result.exception
    if isinstance(error, GgpruneError):
        return error.exit_code, result.stdout, f"{error.message}\n{error.remedy}"
    if error is not None:
        raise error
    return result.exit_code, result.stdout, result.stderr


def test_what_was_pruned(release: Path, source: Path) -> None:
    text = render(gather([model_of(release)]))
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["Experts a layer"] == ["16", "11 (-31.2%)"]
    assert rows["Experts used for a token"] == ["4", "4"]

    def parameters(path: Path) -> int:
        return sum(math.prod(map(int, t.shape)) for t in gguf.GGUFReader(path).tensors)

    before, now = parameters(source), parameters(model_of(release))
    less = f"(-{1 - now / before:.1%})"
    assert rows["Parameters"] == [f"{before / 1e6:.1f} M", f"{now / 1e6:.1f} M {less}"]
    size, least = os.path.getsize(source), os.path.getsize(model_of(release))
    found = rows["Size as pruned (`Big-F32.gguf`)"]
    assert found[1].endswith(f"(-{1 - least / size:.1%})")
    pruned = section(text, "How it was pruned")
    assert "In every layer 5 of 16 experts were dropped" in pruned
    assert "`contribution`: Σ g‖f‖" in pruned
    assert ["code", "12,345"] in cells(pruned) and ["prose", "678"] in cells(pruned)
    assert "`seed` 7" in pruned and "`ctx` 2048" in pruned


def test_the_layers(release: Path) -> None:
    text = section(render(gather([model_of(release)])), "Retained output by layer")
    assert cells(text)[-1] == ["L0", "99.02%", "L1", "75.00%"]
    assert "Worst: layer 1 at 75.00%; mean 87.01%." in text


def test_many_layers_fill_three_columns(release: Path) -> None:
    path = release / "Big-11e.expert_drop_metadata.json"
    data = json.loads(path.read_text())
    data["layers"] = {str(n): {"keep": [0], "retained": 0.9 + n / 1000} for n in range(31)}
    data["layers"]["31"] = {"keep": [0], "retained": None, "rule": "highest weights (MTP)"}
    path.write_text(json.dumps(data))
    text = section(render(gather([model_of(release)])), "Retained output by layer")
    rows = cells(text)[2:]
    assert len(rows) == 11
    assert rows[0] == ["L0", "90.00%", "L11", "91.10%", "L22", "92.20%"]
    assert rows[-1] == ["L10", "91.00%", "L21", "92.10%", "", ""]
    assert "Layer 31: highest weights (MTP)." in text


def test_nothing_is_claimed_that_was_not_measured(release: Path) -> None:
    text = render(gather([model_of(release)]))
    assert "**Not measured.**" in section(text, "Evaluation")
    assert "Not measured: task benchmarks" in section(text, "Limits")
    (release / "Big-11e.expert_drop_metadata.json").unlink()
    bare = render(gather([model_of(release)]))
    assert section(bare, "Retained output by layer").strip() == "Not measured."
    # The pruned file itself still says what it was made from.
    assert ["Experts a layer", "16", "11 (-31.2%)"] in cells(bare)
    for word in ("lossless", "indistinguishable", "best"):
        assert word not in text.lower()


def test_a_model_that_ggprune_did_not_make(source: Path) -> None:
    text = render(gather([source]))
    assert ["Experts a layer", "not recorded", "16"] in cells(text)
    assert section(text, "How it was pruned").strip() == "Not recorded."
    assert "- Pruned from: not recorded" in text


@pytest.mark.parametrize(
    ("architecture", "program", "task"),
    [
        ("olmoe", "llama-server -m", "text-generation"),
        ("llama-embed", "llama-embedding -m", "feature-extraction"),
        ("llada-moe", "llama-diffusion-cli -m", "text-generation"),
    ],
)
def test_the_program_and_the_task_go_by_what_the_model_does(
    tmp_path: Path, architecture: str, program: str, task: str
) -> None:
    text = render(gather([write_tiny(tmp_path / "m.gguf", architecture)]))
    assert f"\n{program} m.gguf -c " in section(text, "How to run")
    assert block(text)["pipeline_tag"] == task


def test_the_evaluation_with_its_errors(release: Path) -> None:
    (release / "Big-11e-F32.evaluation.json").write_text(json.dumps(EVALUATION))
    text = section(render(gather([release])), "Evaluation")
    assert cells(text)[2] == [
        "`Big-11e-F32.gguf`",
        "8.125 ± 0.250",
        "8.500 ± 0.375",
        "1.0462 ± 0.0031",
        "0.0512 ± 0.0007",
        "0.4321",
        "91.23%",
    ]
    assert ["german", "3,000", "1.0462 ± 0.0031", "0.0549 ± 0.0007"] in cells(text)
    assert "same tokens with the same settings" in text
    assert "What ggprune calls bad here" not in text, "layer 1 keeps 75 %, but that cost little"
    ruined = json.dumps(EVALUATION | {"kld_p99": 3.5})
    (release / "Big-11e-F32.evaluation.json").write_text(ruined)
    text = section(render(gather([release])), "Evaluation")
    assert "What ggprune calls bad here" in text and "3.5 nats" in text


def test_an_evaluation_in_the_drop_metadata(release: Path) -> None:
    path = release / "Big-11e.expert_drop_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluation": EVALUATION}))
    text = section(render(gather([release])), "Evaluation")
    assert "1.0462 ± 0.0031" in text and "**Not measured.**" not in text


def test_several_quantizations(release: Path, source: Path) -> None:
    half = release / "Big-11e-F16.gguf"
    half.write_bytes(model_of(release).read_bytes())
    (release / "Big-11e-F16.evaluation.json").write_text(json.dumps(EVALUATION))
    (release / "Big.imatrix.gguf").write_bytes(b"GGUF")
    (release / "mmproj-Big.gguf").write_bytes(b"GGUF")
    (release / "._Big-11e-F32.gguf").write_bytes(b"hidden")
    for name, kind in {"stats": "ggprune-stats", "matrix": "imatrix", "lora": "adapter"}.items():
        Gguf(keys=[("general.type", string(kind))]).write(release / f"{name}.gguf")
    card = gather([release])
    assert [file.name for file in card.files] == ["Big-11e-F16.gguf", "Big-11e-F32.gguf"]
    text = render(card)
    assert "Not measured: `Big-11e-F32.gguf`." in text
    assert block(text)["pipeline_tag"] == "image-text-to-text"
    code, _, err = run(release, "--quant", source)
    assert code == 2 and "not quantizations of one model" in err and "16" in err


def test_the_metadata_block(release: Path) -> None:
    facts = {"base_model": "google/gemma", "licence": "apache-2.0", "repo": "me/x"}
    data = block(render(gather([release], **facts)))
    assert data["base_model"] == "google/gemma"
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "gguf"
    assert data["pipeline_tag"] == "text-generation"
    assert {"gguf", "expert-pruning", "ggprune"} <= set(data["tags"])
    # Unknown: left out rather than guessed.
    assert {"base_model", "license"}.isdisjoint(block(render(gather([release]))))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"general.license": "apache-2.0"}, ("apache-2.0", None, None)),
        (
            {
                "general.license": "other",
                "general.license.name": "x-1",
                "general.license.link": "h",
            },
            ("other", "x-1", "h"),
        ),
        ({"general.license": "My Own: Terms"}, ("other", "My Own: Terms", None)),
        ({}, (None, None, None)),
    ],
)
def test_licences(known: dict[str, str], expected: tuple[str | None, ...]) -> None:
    assert card_sources.licence(None, known) == expected


def test_base_models() -> None:
    def found(**keys: str) -> tuple[str | None, str | None]:
        named = {f"general.{name.replace('__', '.')}": value for name, value in keys.items()}
        return card_sources.base_model(None, named)

    page = "https://huggingface.co/"
    assert found(repo_url=f"{page}a/b", base_model__0__repo_url=f"{page}c/d")[0] == "a/b"
    assert found(source__huggingface__repository="a/b")[0] == "a/b"
    assert found(base_model__0__repo_url=f"{page}c/d") == ("c/d", "general.base_model.0.repo_url")
    # An owner's page is not a model.
    assert found(repo_url=f"{page}unsloth", base_model__0__repo_url=f"{page}c/d")[0] == "c/d"
    assert found(url="https://example.org/a/b") == (None, None)


def test_hostile_names_stay_text(release: Path) -> None:
    path = release / "Big-11e.expert_drop_metadata.json"
    data = json.loads(path.read_text())
    data["source"]["name"] = "<script>x</script>\n# `Evil`"
    data["calibration"]["domains"] = {"a|b\n---": {"tokens": 1}}
    path.write_text(json.dumps(data))
    text = render(gather([release], licence="x: [y]\n---"))
    assert "<script>" not in text and "\n# `Evil`" not in text
    assert ["a\\|b ---", "1"] in cells(text)
    assert block(text)["license_name"] == "x: [y]\n---"


def test_markdown_pieces() -> None:
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"
    assert clean(None) == "" and clean(" a\n b ") == "a b"


def test_how_to_run(release: Path) -> None:
    (release / "Modelfile-F32").write_text("FROM ./Big-11e-F32.gguf\n")
    text = section(render(gather([release], repo="me/x")), "How to run")
    assert "llama-server -hf me/x:F32" in text
    assert "ollama create big-11e -f Modelfile-F32" in text
    assert "ollama run hf.co/me/x:F32" in text
    local = section(render(gather([release])), "How to run")
    assert "llama-server -m Big-11e-F32.gguf" in local


# The command


def test_the_command_writes_beside_the_model(release: Path) -> None:
    code, out, err = run(model_of(release))
    assert (code, out) == (0, f"{release / 'README.md'}\n")
    assert block((release / "README.md").read_text())
    assert "--base-model" in err and "--license" in err and "No evaluation" in err
    code, _, err = run(model_of(release))
    assert code == 5 and "exists" in err
    code, _, err = run(release, "--force", "-q")
    assert (code, err) == (0, "")
    code, out, _ = run(release, "-o", "-")
    assert out == (release / "README.md").read_text()


def test_bad_input(release: Path, source: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for content, expected in (
        ("{", "is not JSON"),
        ("[]", "is [], expected an object"),
        ("{}", "is not an evaluation: tokens is missing"),
    ):
        bad.write_text(content)
        code, _, err = run(release, "--evaluation", bad)
        assert code == 2 and expected in err
    code, _, err = run(release, "--metadata", bad)
    assert code == 2 and "is not drop metadata" in err
    code, _, err = run(source, "--metadata", release / "Big-11e.expert_drop_metadata.json")
    assert code == 2 and "16 experts a layer, the drop metadata says 11" in err
    code, _, err = run(release, "--base-model", "no-owner")
    assert code == 2 and "OWNER/NAME" in err
    code, _, err = run(tmp_path / "missing.gguf")
    assert code == 2 and "missing.gguf" in err
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run(empty)
    assert code == 2 and "has no model" in err


def test_the_fixture(trained: Path) -> None:
    with open_model(trained).gguf:
        pass
    assert "gemma4" in render(gather([trained]))


def test_the_method_is_explained(release: Path) -> None:
    path = release / "Big-11e.expert_drop_metadata.json"
    data = json.loads(path.read_text())
    for method, said in {
        "cover": "token by token",
        "random": "drawn at random",
        "contribution": "`contribution`: Σ g‖f‖",
        "mine": "were chosen by `mine`. In every layer",
    }.items():
        path.write_text(json.dumps(data | {"method": method}))
        text = section(render(gather([release])), "How it was pruned")
        assert said in text


def test_text_that_only_the_plan_records(release: Path) -> None:
    """As after calibrate, plan, apply: the plan's settings hold each domain's hash."""
    path = release / "Big-11e.expert_drop_metadata.json"
    data = json.loads(path.read_text())
    hashes = {"code": "c0de" * 16, "prose|": "9e" * 32}
    data |= {"calibration": None, "settings": {"seed": 7, "calibration": hashes}}
    path.write_text(json.dumps(data))
    text = render(gather([release]))
    pruned = section(text, "How it was pruned")
    assert "not recorded" not in pruned
    assert cells(pruned)[0] == ["Calibration text", "SHA-256"]
    assert ["code", f"`{'c0de' * 16}`"] in cells(pruned)
    assert "Settings: `seed` 7." in pruned
    assert "on text of these kinds: code, prose|." in section(text, "Limits")


def test_the_example_asks_for_no_more_context_than_there_is(release: Path) -> None:
    with GgufModel(model_of(release)) as opened:
        length = opened.get("olmoe.context_length")
    assert length < 8192
    assert f" -c {length}\n" in section(render(gather([release])), "How to run")


@pytest.mark.parametrize(
    ("template", "beside", "said"),
    [
        ("{{ messages[0].content }}", (), ""),
        ("{% if c.type == 'image' %}<image>{% endif %}", (), "projector (mmproj) works"),
        ("", ("mmproj-F16.gguf",), "projector (mmproj-F16.gguf) works"),
        ("", ("mmproj-of-another.gguf",), ""),
    ],
)
def test_models_that_take_images(
    template: str, beside: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """A projector is the model's by the width of what it gives."""
    keys = {"tokenizer.chat_template": template} if template else {}
    path = write_tiny(tmp_path / "m.gguf", "olmoe", keys=keys)
    (tmp_path / "mmproj-damaged.gguf").write_bytes(b"GGUF")
    with GgufModel(path) as opened:
        model = describe(opened)
        width = model.metadata["embedding_length"]
        for name in beside:
            facts = [("clip.vision.projection_dim", u32(width + ("another" in name)))]
            Gguf(keys=facts).write(tmp_path / name)
        layers = {layer: LayerPlan(tuple(range(8))) for layer in model.moe_layers}
        metadata = drop_metadata.drop_metadata(model, None, Plan(8, layers), None)
    report = build(ReportInput(metadata=metadata))
    drop_metadata.save(tmp_path / "m.expert_drop_metadata.json", {**metadata, "keep": 16})
    texts = render_page(report), "\n".join(summary_lines(report)), render(gather([path]))
    for text in texts:
        assert ("none were in the text" in text) == bool(said) and said in text
