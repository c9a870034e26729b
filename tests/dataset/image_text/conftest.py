"""The environment of the commands."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def environment(project: Path) -> dict[str, str]:
    """The project's own root, and one thread, so that they share two cores well."""
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{known}", "OMP_NUM_THREADS": "1"}
