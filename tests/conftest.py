"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURE = Path(__file__).parent.parent / "fixtures" / "gemma4-moe-tiny-Q8_0.gguf"


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
