"""The Modelfile that the command writes, read back by an independent reader."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from ggprune.cli.values import parameter
from ggprune.publish.ollama import write_modelfile
from tests.support.command import ggprune
from tests.support.modelfile_reader import read
from tests.support.tiny import write_tiny


@pytest.mark.process
def test_written_beside_the_model(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "gemma4", keys={"context_length": 4096})
    result = ggprune("modelfile", model, "--parameter", "temperature=0.7", cwd=tmp_path)
    assert "ollama create tiny" in result.stdout
    commands = read((tmp_path / "Modelfile").read_bytes())
    assert ("FROM", "./tiny.gguf") in commands
    text = (tmp_path / "Modelfile").read_text()
    assert "RENDERER gemma4" in text and "PARSER gemma4" in text
    assert "PARAMETER temperature 0.7" in text
    assert "PARAMETER num_ctx 4096" in text
    ggprune("modelfile", model, cwd=tmp_path, code=5)
    ggprune("modelfile", model, "--force", cwd=tmp_path)


def test_parameters() -> None:
    assert [parameter(text) for text in ("a=1", "b=0.5", "stop=<x>", "stop==")] == [
        *(("a", 1), ("b", 0.5), ("stop", "<x>"), ("stop", "="))
    ]
    for text in ("temperature", "=1"):
        with pytest.raises(click.BadParameter, match="NAME=VALUE"):
            parameter(text)


def test_a_model_with_an_mtp_block_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_it = write_tiny(tmp_path / "with.gguf", "glm4moe", mtp=1)
    without = write_tiny(tmp_path / "without.gguf", "glm4moe", mtp=0)
    said = "Ollama cannot load a model with an MTP block"
    assert said in write_modelfile(with_it, tmp_path / "A").read_text()
    assert [record.levelname for record in caplog.records if said in record.message] == ["WARNING"]
    caplog.clear()
    assert said not in write_modelfile(without, tmp_path / "B").read_text()
    assert caplog.messages == []
