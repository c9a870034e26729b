"""Drawn examples: fewer than usual, and none is refused for the time that it takes."""

import pytest
from hypothesis import settings

settings.register_profile("data tools", max_examples=60, deadline=None)
settings.load_profile("data tools")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt at a download begins at once."""
    monkeypatch.setattr("dataset.downloads.BACKOFF", 0.01)
