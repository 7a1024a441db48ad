"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggprune.llama.runtime import NEWEST
from tests.support.hub_server import TOKEN, HubServer
from tests.support.quick import Quick

FIXTURE = Path(__file__).parent.parent / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"
#: What an older llama.cpp says of models that it does not know, or not in this form.
_NOT_LOADED = (
    "unknown model architecture: '[^']+'|missing tensor '[^']+'|wrong number of tensors|"
    r"key not found in model: \S+|key \S+ has wrong type"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="only what neither starts a process nor loads llama.cpp",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        config.pluginmanager.register(Quick())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Leave out the models that an older release of llama.cpp says it cannot load."""
    try:
        return (yield)
    except Exception as error:
        reason = re.search(_NOT_LOADED, str(error))
        if reason and importlib.metadata.version("llama-cpp-python") != NEWEST:
            pytest.skip(f"not loaded: {item.name}: {reason[0]}")
        raise


@pytest.fixture(scope="session")
def trained() -> Path:
    """The trained model in fixtures/."""
    if not FIXTURE.exists():
        pytest.skip("the trained fixture is not here")
    return FIXTURE


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the user's cache alone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hugging Face Hub on this machine, with a token and a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
