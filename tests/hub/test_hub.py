"""The Hub, against a local server that speaks its API: tests/support/hub_server.py."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ggprune.cli.values import MODEL
from ggprune.errors import GgpruneError, HubError
from ggprune.hub.addresses import parse
from ggprune.hub.client import output_folder
from ggprune.hub.download import resolve_model, resolve_text, with_tag
from ggprune.hub.errors import redacted
from ggprune.hub.files import LocalFile, Repo
from ggprune.publish import upload
from tests.support.gguf_builder import Gguf, string
from tests.support.hub_server import TOKEN, Fault, HubServer

MODEL_BYTES = bytes(range(256)) * 4096


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
        ("hf://o/r/m.gguf", Repo("o/r"), "m.gguf", None),
        ("hf://o/r/Q4/m.gguf@v1", Repo("o/r", revision="v1"), "Q4/m.gguf", None),
        ("hf://o/r@v1/m.gguf", Repo("o/r", revision="v1"), "m.gguf", None),
        ("hf://o/r/m.gguf@refs/pr/1", Repo("o/r", revision="refs/pr/1"), "m.gguf", None),
        ("hf://datasets/o/r/a/b.jsonl", Repo("o/r", "dataset"), "a/b.jsonl", None),
        ("o/r-GGUF:Q4_K_M", Repo("o/r-GGUF"), None, "Q4_K_M"),
        ("hf://o/r.1:UD-Q4_K_XL", Repo("o/r.1"), None, "UD-Q4_K_XL"),
        ("o/r:Q8_0@abc", Repo("o/r", revision="abc"), None, "Q8_0"),
    ],
)
def test_references(reference: str, repo: Repo, file: str | None, tag: str | None) -> None:
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


def test_download_by_file_and_from_the_cache(hub: HubServer) -> None:
    hub.add("o/r", {"a/m-Q8_0.gguf": MODEL_BYTES})
    path = resolve_model("hf://o/r/a/m-Q8_0.gguf")
    assert path.read_bytes() == MODEL_BYTES
    assert path.name == "m-Q8_0.gguf"
    gets = hub.count("GET", "/resolve/")
    assert resolve_model("hf://o/r/a/m-Q8_0.gguf") == path
    assert hub.count("GET", "/resolve/") == gets == 1


def test_download_a_tag_with_all_its_shards(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    shards = {f"m-Q4_K_M-{n:05d}-of-00003.gguf": bytes([n]) * 100 for n in (1, 2, 3)}
    hub.add("o/r", {**shards, "m-Q8_0.gguf": b"other", "README.md": b"card"})
    caplog.set_level("INFO", "ggprune")
    path = resolve_model("o/r:Q4_K_M")
    assert path.name == "m-Q4_K_M-00001-of-00003.gguf"
    for name, data in shards.items():
        assert (path.parent / name).read_bytes() == data
    assert not (path.parent / "m-Q8_0.gguf").exists()
    assert caplog.messages == ["o/r:Q4_K_M is o/r/m-Q4_K_M-00001-of-00003.gguf and 2 more shards"]


def test_any_shard_brings_the_others(hub: HubServer) -> None:
    names = [f"m-{n:05d}-of-00002.gguf" for n in (1, 2)]
    hub.add("o/r", {name: name.encode() for name in names})
    path = resolve_model(f"hf://o/r/{names[1]}")
    assert path.name == names[0]
    assert (path.parent / names[1]).read_bytes() == names[1].encode()


def test_a_missing_shard_is_named(hub: HubServer) -> None:
    hub.add("o/r", {"m-Q8_0-00001-of-00002.gguf": b"x"})
    with pytest.raises(HubError, match="m-Q8_0-00002-of-00002"):
        resolve_model("o/r:Q8_0")


def test_a_revision(hub: HubServer) -> None:
    hub.add("o/r", {"m.gguf": b"new"})
    hub.add("o/r", {"m.gguf": b"old"}, branch="v1")
    assert resolve_model("hf://o/r/m.gguf@v1").read_bytes() == b"old"
    with pytest.raises(HubError, match="no such revision"):
        resolve_model("hf://o/r/m.gguf@v2")


def test_what_is_there_is_listed(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": b"x", "mmproj.gguf": b"y"})
    with caplog.at_level("INFO", "ggprune"):
        resolve_model("o/r:Q8_0")
    assert "o/r has mmproj.gguf too, for images" in caplog.text
    with pytest.raises(HubError, match="no quantization Q2_K") as caught:
        resolve_model("o/r:Q2_K")
    assert caught.value.remedy == "It has: m-Q8_0.gguf."
    with pytest.raises(HubError, match=r"no file other\.gguf"):
        resolve_model("hf://o/r/other.gguf")


def test_a_repository_that_is_not_there(hub: HubServer) -> None:
    with pytest.raises(HubError, match="no such repository") as caught:
        resolve_model("o/none:Q8_0")
    assert "hf auth login" in caught.value.remedy


def test_a_private_repository_without_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": b"x"}, private=True)
    assert resolve_model("o/r:Q8_0").read_bytes() == b"x"
    monkeypatch.delenv("HF_TOKEN")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="private") as caught:
        resolve_model("o/r:Q8_0")
    assert caught.value.remedy.startswith("hf auth login")


def test_a_broken_download_resumes(hub: HubServer, waits: list[float]) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": MODEL_BYTES})
    broken = Fault("GET", "/resolve/", drop_after=300_000)
    hub.faults.append(broken)
    assert resolve_model("o/r:Q8_0").read_bytes() == MODEL_BYTES
    assert broken.seen == 1
    assert hub.count("GET", "/resolve/") == 2


def test_downloads_wait_as_long_as_the_hub_says(hub: HubServer, waits: list[float]) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": b"x"})
    hub.faults.append(Fault("GET", "/tree/", status=429, headers={"Retry-After": "7"}))
    assert resolve_model("o/r:Q8_0").read_bytes() == b"x"
    assert any(7 <= wait <= 8 for wait in waits)


def test_without_connection_the_cache_is_used(
    hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/r", {"m.gguf": b"x"})
    path = resolve_model("hf://o/r/m.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("hf://o/r/m.gguf") == path
    with pytest.raises(HubError, match="connection broke or could not be made") as caught:
        resolve_model("hf://o/r/other.gguf")
    assert "Check the network" in caught.value.remedy


def test_text_of_a_dataset(hub: HubServer, tmp_path: Path) -> None:
    hub.add("o/d", {"a/t.jsonl": b'{"text": "hello"}\n'}, kind="dataset")
    assert resolve_text("hf://datasets/o/d/a/t.jsonl").read_bytes() == b'{"text": "hello"}\n'
    assert resolve_text(str(tmp_path / "x.txt")) == tmp_path / "x.txt"


def test_the_model_argument(hub: HubServer, tmp_path: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": b"x"})

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


# Pushing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "m-Q8_0.gguf").write_bytes(MODEL_BYTES)
    (folder / "m-Q4_K_M.gguf").write_bytes(MODEL_BYTES[:500_000])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# m\n")
    (folder / "m.expert_drop_metadata.json").write_text("{}")
    (folder / "Modelfile").write_text("FROM ./m-Q8_0.gguf\n")
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "notes.docx").write_text("private")
    return folder


@pytest.fixture(autouse=True)
def _small_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggprune.publish.upload._OWN_COMMIT", 100_000)


def run_push(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``ggprune push``, as a user sees them."""
    from ggprune.cli.main import cli

    result = CliRunner().invoke(cli, ["push", *arguments], standalone_mode=False)
    error = result.exception
    if isinstance(error, GgpruneError):
        return error.exit_code, result.stdout, f"{result.stderr}{error.message}\n{error.remedy}"
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return result.exit_code, result.stdout, result.stderr


PUSHED = [
    "Modelfile",
    "README.md",
    "SHA256SUMS",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m.expert_drop_metadata.json",
]


@pytest.mark.process
def test_push_and_again(hub: HubServer, folder: Path) -> None:
    code, out, err = run_push(str(folder), "o/r-GGUF", "--private")
    assert code == 0, err
    repository = hub.repositories["model", "o/r-GGUF"]
    assert repository.private
    files = repository.branches["main"]
    assert sorted(files) == PUSHED
    for name in PUSHED:
        assert files[name] == (folder / name).read_bytes()
    assert repository.commits[:2] == ["Upload m-Q4_K_M.gguf", "Upload m-Q8_0.gguf"]
    assert len(repository.commits) == 3
    assert f"{hub.url}/o/r-GGUF" in out
    assert "Left out: .env, notes.docx" in err
    sums = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert sums.stdout == "m-Q4_K_M.gguf: OK\nm-Q8_0.gguf: OK\n"

    sent = len(hub.uploaded)
    code, out, _ = run_push(str(folder), "o/r-GGUF", "--json")
    assert json.loads(out)["upload"] == []
    assert [file["name"] for file in json.loads(out)["present"]] == sorted(
        PUSHED, key=lambda name: (name == "SHA256SUMS", name)
    )
    assert (len(hub.uploaded), len(repository.commits)) == (sent, 3)


def test_only_what_changed_is_sent(hub: HubServer, folder: Path) -> None:
    run_push(str(folder), "o/r")
    (folder / "m-Q4_K_M.gguf").write_bytes(b"new" * 100_000)
    code, out, _ = run_push(str(folder), "o/r", "--json")
    assert code == 0
    changed = [file["name"] for file in json.loads(out)["upload"]]
    assert changed == ["m-Q4_K_M.gguf", "SHA256SUMS"]
    files = hub.repositories["model", "o/r"].branches["main"]
    assert files["m-Q4_K_M.gguf"] == b"new" * 100_000


def test_dry_run_sends_nothing(hub: HubServer, folder: Path) -> None:
    code, out, _ = run_push(str(folder), "o/r", "--dry-run", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["creates"] and result["dry_run"]
    assert sorted(file["name"] for file in result["upload"]) == PUSHED
    assert hub.repositories == {}
    assert not (folder / "SHA256SUMS").exists()
    assert not any(method in ("POST", "PUT") for method, _ in hub.requests)


def test_a_branch(hub: HubServer, folder: Path) -> None:
    hub.add("o/r", {"m-Q8_0.gguf": MODEL_BYTES})
    code, out, _ = run_push(str(folder), "o/r", "--revision", "v2", "--json")
    assert code == 0
    branches = hub.repositories["model", "o/r"].branches
    assert sorted(branches["v2"]) == PUSHED
    assert sorted(branches["main"]) == ["m-Q8_0.gguf"]
    assert [file["name"] for file in json.loads(out)["present"]] == ["m-Q8_0.gguf"]


def test_multipart_upload(hub: HubServer, folder: Path) -> None:
    hub.chunk_size = 200_000
    code, _, err = run_push(str(folder), "o/r")
    assert code == 0, err
    files = hub.repositories["model", "o/r"].branches["main"]
    assert files["m-Q8_0.gguf"] == MODEL_BYTES


def test_a_dropped_connection_is_tried_again(
    hub: HubServer, folder: Path, waits: list[float]
) -> None:
    dropped = Fault("PUT", "/lfs/", drop_after=100_000)
    hub.faults.append(dropped)
    code, _, err = run_push(str(folder), "o/r")
    assert code == 0, err
    assert dropped.seen == 1
    assert sorted(hub.repositories["model", "o/r"].branches["main"]) == PUSHED


def test_a_connection_that_stays_broken_resumes_next_time(
    hub: HubServer, folder: Path, waits: list[float]
) -> None:
    first = LocalFile.of(folder / "m-Q4_K_M.gguf", "m-Q4_K_M.gguf")
    second = LocalFile.of(folder / "m-Q8_0.gguf", "m-Q8_0.gguf")
    hub.faults.append(Fault("PUT", second.sha256, drop_after=1000, times=10_000))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9
    assert "uploading m-Q8_0.gguf" in err and "connection broke" in err
    assert "it continues where it stopped" in err
    assert sorted(hub.repositories["model", "o/r"].branches["main"]) == ["m-Q4_K_M.gguf"]

    hub.faults.clear()
    code, _, err = run_push(str(folder), "o/r")
    assert code == 0, err
    assert hub.uploaded == [first.sha256, second.sha256]
    assert sorted(hub.repositories["model", "o/r"].branches["main"]) == PUSHED


def test_a_lost_commit_answer_is_harmless(hub: HubServer, folder: Path, waits: list[float]) -> None:
    hub.faults.append(Fault("POST", "/commit/", status=503, times=2))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 0, err
    assert "the Hub has a problem (503); trying again" in err


def test_429_waits_as_long_as_asked(hub: HubServer, folder: Path, waits: list[float]) -> None:
    hub.faults.append(Fault("POST", "/commit/", status=429, headers={"Retry-After": "42"}))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 0, err
    assert 42.0 in waits
    assert "the Hub asks to slow down (429); trying again in 42 s" in err


def test_429_for_hours_is_reported(hub: HubServer, folder: Path, waits: list[float]) -> None:
    slow = Fault("POST", "/commit/", status=429, headers={"Retry-After": "7200"}, times=100)
    hub.faults.append(slow)
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9 and "slow down" in err
    assert slow.seen == 1 and 7200.0 not in waits


def test_401_says_how_to_log_in(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/r", {})
    wrong = "hf_WrongTokenThatMustNotBeSeen"
    monkeypatch.setenv("HF_TOKEN", wrong)
    code, out, err = run_push(str(folder), "o/r")
    assert code == 9
    assert "(401)" in err and "hf auth login" in err
    assert wrong not in out + err


def test_without_token_nothing_is_hashed_or_asked(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9 and "hf auth login" in err
    assert hub.requests == []


def test_403_and_404(hub: HubServer, folder: Path) -> None:
    hub.add("o/r", {})
    hub.faults.append(Fault("POST", "/preupload/", status=403))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9 and "the token does not allow this (403)" in err and "write access" in err
    hub.faults.append(Fault("POST", "/preupload/", status=404))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9 and "no such repository (404)" in err


def test_a_checksum_mismatch_is_seen(hub: HubServer, folder: Path) -> None:
    hub.faults.append(Fault("PUT", "/lfs/", corrupt=True))
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9
    assert "checksum mismatch after the upload of m-Q4_K_M.gguf" in err
    # Nothing after it is sent: neither the card that praises it, nor the checksums.
    assert list(hub.repositories["model", "o/r"].branches["main"]) == ["m-Q4_K_M.gguf"]


def test_too_large_for_the_hub(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "big.gguf").open("wb") as stream:
        stream.truncate(500 * 1000**3 + 1)  # Sparse: takes no room.
    code, _, err = run_push(str(folder), "o/r")
    assert code == 2
    assert "500,000,000,001 bytes" in err
    assert f"llama-gguf-split --split --split-max-size 100G {folder / 'big.gguf'}" in err
    assert hub.requests == []


def test_a_missing_local_shard(hub: HubServer, folder: Path) -> None:
    (folder / "s-00001-of-00002.gguf").write_bytes(b"x")
    code, _, err = run_push(str(folder), "o/r")
    assert code == 2 and "s-00002-of-00002.gguf: shard 2 of 2 is missing" in err


@pytest.mark.parametrize("name", ["name-only", "a/b/c", "o/r:Q4", "../x"])
def test_a_bad_repository_name(hub: HubServer, folder: Path, name: str) -> None:
    code, _, err = run_push(str(folder), name)
    assert code == 2 and "OWNER/NAME" in err


def test_no_token_is_ever_logged(
    hub: HubServer, folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything the library and ggprune say, at the most talkative level, through failures."""
    from huggingface_hub.utils import logging as library

    said = io.StringIO()
    root = logging.getLogger("huggingface_hub")
    library.get_logger("huggingface_hub")
    monkeypatch.setattr(root.handlers[0], "stream", said)
    monkeypatch.setattr(root, "level", logging.DEBUG)
    monkeypatch.setenv("HF_DEBUG", "1")
    hub.faults += [
        Fault("PUT", "/lfs/", status=500, times=3),
        Fault("PUT", "/lfs/", drop_after=10, times=1),
        Fault("POST", "/commit/", status=502),
    ]
    code, out, err = run_push(str(folder), "o/r")
    assert code == 0, err
    hub.faults.append(Fault("PUT", "/lfs/", status=403, times=100))
    (folder / "m-Q8_0.gguf").write_bytes(b"changed" * 100_000)
    code, out, more = run_push(str(folder), "o/r")
    assert code == 9
    everything = said.getvalue() + out + err + more
    assert "500" in said.getvalue()
    assert TOKEN not in everything
    assert "X-Amz-Signature" not in everything


def test_a_hub_without_xet_says_what_helps(
    hub: HubServer, folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    code, _, err = run_push(str(folder), "o/r")
    assert code == 9
    assert "Xet" in err and "HF_HUB_DISABLE_XET=1" in err
    assert waits == []


def test_statistics_are_not_sent(hub: HubServer, folder: Path) -> None:
    statistics = folder / "m.stats.gguf"
    Gguf(keys=[("general.type", string("ggprune-stats"))]).write(statistics)
    Gguf(keys=[("general.type", string("ggprune-stats"))]).write(folder / "other.gguf")
    Gguf(keys=[("general.type", string("imatrix"))]).write(folder / "m.imatrix.gguf")
    code, out, err = run_push(str(folder), "o/r", "--dry-run", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert {"m.stats.gguf", "other.gguf"} <= set(result["left_out"])
    assert "m.imatrix.gguf" in [file["name"] for file in result["upload"]]


def test_large_files_are_noted(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "RECOMMENDED_FILE", len(MODEL_BYTES) - 1)
    code, _, err = run_push(str(folder), "o/r", "--dry-run")
    assert code == 0
    assert err.count("the Hub recommends less than") == 1
    assert "m-Q8_0.gguf: 1.0 MB, the Hub recommends less than 1.0 MB: llama-gguf-split" in err
