"""The Hub, against a local server that speaks its API: tests/hub_server.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hub_server import TOKEN, Fault, HubServer

from ggprune.cli.model_argument import MODEL, output_folder
from ggprune.errors import HubError
from ggprune.hub_download import parse, resolve_model, resolve_text, with_tag
from ggprune.hub_errors import redacted
from ggprune.hub_files import Repo

MODEL_BYTES = bytes(range(256)) * 4096


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds somebody wanted to wait; nobody does."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


# References


@pytest.mark.parametrize(
    ("reference", "repo", "file", "tag"),
    [
        ("hf://o/r/m.gguf", Repo("o/r"), "m.gguf", ""),
        ("hf://o/r/Q4/m.gguf@v1", Repo("o/r", revision="v1"), "Q4/m.gguf", ""),
        ("hf://o/r@v1/m.gguf", Repo("o/r", revision="v1"), "m.gguf", ""),
        ("hf://o/r/m.gguf@refs/pr/1", Repo("o/r", revision="refs/pr/1"), "m.gguf", ""),
        ("hf://datasets/o/r/a/b.jsonl", Repo("o/r", "dataset"), "a/b.jsonl", ""),
        ("o/r-GGUF:Q4_K_M", Repo("o/r-GGUF"), "", "Q4_K_M"),
        ("hf://o/r.1:UD-Q4_K_XL", Repo("o/r.1"), "", "UD-Q4_K_XL"),
        ("o/r:Q8_0@abc", Repo("o/r", revision="abc"), "", "Q8_0"),
    ],
)
def test_references(reference: str, repo: Repo, file: str, tag: str) -> None:
    found = parse(reference)
    assert found is not None
    assert (found.repo, found.file, found.tag) == (repo, file, tag)


@pytest.mark.parametrize("text", ["model.gguf", "a/b.gguf", "C:\\m.gguf", "a/b/c:Q4", "@x", "o/r"])
def test_paths_are_not_references(text: str) -> None:
    assert parse(text) is None
    assert resolve_model(text) == Path(text)


def test_a_malformed_address_is_explained() -> None:
    with pytest.raises(HubError, match="not an address") as caught:
        parse("hf://only-owner")
    assert "hf://OWNER/REPO/FILE.gguf" in caught.value.remedy


def test_tags_as_llama_cpp_reads_them() -> None:
    files = [
        "mmproj-Q4_K_M.gguf",
        "m-IQ4_K_M.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0-00002-of-00002.gguf",
        "m-Q8_0-00001-of-00002.gguf",
        "BF16/m-00001-of-00001.gguf",
        "README-Q6_K.md",
    ]
    assert with_tag(files, "q4_k_m") == "m-Q4_K_M.gguf"
    assert with_tag(files, "Q8_0") == "m-Q8_0-00001-of-00002.gguf"
    assert with_tag(files, "Q6_K") is None
    assert with_tag(["m-IQ4_K_M.gguf"], "Q4_K_M") == "m-IQ4_K_M.gguf"


# Downloads


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "r:Q4_K_M").write_bytes(b"x")
    assert resolve_model("o/r:Q4_K_M") == Path("o/r:Q4_K_M")


def test_download_by_file_and_from_the_cache(server: HubServer) -> None:
    server.add("o/r", {"a/m-Q8_0.gguf": MODEL_BYTES})
    path = resolve_model("hf://o/r/a/m-Q8_0.gguf")
    assert path.read_bytes() == MODEL_BYTES
    assert path.name == "m-Q8_0.gguf"
    gets = server.count("GET", "/resolve/")
    assert resolve_model("hf://o/r/a/m-Q8_0.gguf") == path
    assert server.count("GET", "/resolve/") == gets == 1


def test_download_a_tag_with_all_its_shards(server: HubServer) -> None:
    shards = {f"m-Q4_K_M-{n:05d}-of-00003.gguf": bytes([n]) * 100 for n in (1, 2, 3)}
    server.add("o/r", {**shards, "m-Q8_0.gguf": b"other", "README.md": b"card"})
    said: list[str] = []
    path = resolve_model("o/r:Q4_K_M", say=said.append)
    assert path.name == "m-Q4_K_M-00001-of-00003.gguf"
    for name, data in shards.items():
        assert (path.parent / name).read_bytes() == data
    assert not (path.parent / "m-Q8_0.gguf").exists()
    assert said == ["o/r:Q4_K_M is o/r/m-Q4_K_M-00001-of-00003.gguf and 2 more shards"]


def test_any_shard_brings_the_others(server: HubServer) -> None:
    names = [f"m-{n:05d}-of-00002.gguf" for n in (1, 2)]
    server.add("o/r", {name: name.encode() for name in names})
    path = resolve_model(f"hf://o/r/{names[1]}")
    assert path.name == names[0]
    assert (path.parent / names[1]).read_bytes() == names[1].encode()


def test_a_missing_shard_is_named(server: HubServer) -> None:
    server.add("o/r", {"m-Q8_0-00001-of-00002.gguf": b"x"})
    with pytest.raises(HubError, match="m-Q8_0-00002-of-00002"):
        resolve_model("o/r:Q8_0")


def test_a_revision(server: HubServer) -> None:
    server.add("o/r", {"m.gguf": b"new"})
    server.add("o/r", {"m.gguf": b"old"}, branch="v1")
    assert resolve_model("hf://o/r/m.gguf@v1").read_bytes() == b"old"
    with pytest.raises(HubError, match="no such revision"):
        resolve_model("hf://o/r/m.gguf@v2")


def test_what_is_there_is_listed(server: HubServer) -> None:
    server.add("o/r", {"m-Q8_0.gguf": b"x", "mmproj.gguf": b"y"})
    with pytest.raises(HubError, match="no quantization Q2_K") as caught:
        resolve_model("o/r:Q2_K")
    assert caught.value.remedy == "It has: m-Q8_0.gguf."
    with pytest.raises(HubError, match=r"no file other\.gguf"):
        resolve_model("hf://o/r/other.gguf")


def test_a_repository_that_is_not_there(server: HubServer) -> None:
    with pytest.raises(HubError, match="no such repository") as caught:
        resolve_model("o/none:Q8_0")
    assert "hf auth login" in caught.value.remedy


def test_a_private_repository_without_token(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.add("o/r", {"m-Q8_0.gguf": b"x"}, private=True)
    assert resolve_model("o/r:Q8_0").read_bytes() == b"x"
    monkeypatch.delenv("HF_TOKEN")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="private") as caught:
        resolve_model("o/r:Q8_0")
    assert caught.value.remedy.startswith("hf auth login")


def test_a_broken_download_resumes(server: HubServer, waits: list[float]) -> None:
    server.add("o/r", {"m-Q8_0.gguf": MODEL_BYTES})
    broken = Fault("GET", "/resolve/", drop_after=300_000)
    server.faults.append(broken)
    assert resolve_model("o/r:Q8_0").read_bytes() == MODEL_BYTES
    assert broken.seen == 1
    assert server.count("GET", "/resolve/") == 2


def test_downloads_wait_as_long_as_the_hub_says(server: HubServer, waits: list[float]) -> None:
    server.add("o/r", {"m-Q8_0.gguf": b"x"})
    server.faults.append(Fault("GET", "/tree/", status=429, headers={"Retry-After": "7"}))
    assert resolve_model("o/r:Q8_0").read_bytes() == b"x"
    assert any(7 <= wait <= 8 for wait in waits)


def test_without_connection_the_cache_is_used(
    server: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("o/r", {"m.gguf": b"x"})
    path = resolve_model("hf://o/r/m.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("hf://o/r/m.gguf") == path
    with pytest.raises(HubError, match="connection broke or could not be made") as caught:
        resolve_model("hf://o/r/other.gguf")
    assert "Check the network" in caught.value.remedy


def test_text_of_a_dataset(server: HubServer, tmp_path: Path) -> None:
    server.add("o/d", {"a/t.jsonl": b'{"text": "hello"}\n'}, kind="dataset")
    assert resolve_text("hf://datasets/o/d/a/t.jsonl").read_bytes() == b'{"text": "hello"}\n'
    assert resolve_text(str(tmp_path / "x.txt")) == tmp_path / "x.txt"


def test_the_model_argument(server: HubServer, tmp_path: Path) -> None:
    server.add("o/r", {"m-Q8_0.gguf": b"x"})

    @click.command()
    @click.argument("model", type=MODEL)
    def show(model: Path) -> None:
        click.echo(f"{model.exists()} {model.name} {output_folder(model) == Path.cwd()}")

    local = tmp_path / "local.gguf"
    local.write_bytes(b"y")
    assert CliRunner().invoke(show, ["o/r:Q8_0"]).stdout == "True m-Q8_0.gguf True\n"
    assert CliRunner().invoke(show, [str(local)]).stdout == "True local.gguf False\n"
    assert CliRunner().invoke(show, ["missing.gguf"]).stdout == "False missing.gguf True\n"


# Secrets


def test_redacted() -> None:
    text = (
        "Bearer abc.def https://s3/x?X-Amz-Signature=1&b=2 hf_abcdefghijk "
        "http://me:pass@proxy/ other-token!"
    )
    clean = redacted(text, "other-token!")
    for secret in ("abc.def", "Signature", "hf_abcdefghijk", "pass", "other-token!"):
        assert secret not in clean
    assert "https://s3/x?***" in clean
