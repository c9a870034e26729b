"""`python -m visual_search`: every command is listed with its purpose."""

import sys
import tomllib
from pathlib import Path

from tests.commands import ran
from visual_search import __version__
from visual_search.__main__ import epilog


def test_every_command_is_listed_with_its_purpose(project: Path) -> None:
    lines = [line.split(maxsplit=1) for line in epilog().splitlines() if line.startswith("  ")]
    listed = {words[0].rpartition(".")[2]: words[1] for words in lines}
    assert set(listed) == {path.stem for path in (project / "visual_search").glob("main_*.py")}
    assert all(purpose[0].isupper() and "`" not in purpose for purpose in listed.values())


def test_the_version_is_that_of_the_distribution(project: Path) -> None:
    printed = ran(sys.executable, "-m", "visual_search", "--version").stdout
    assert printed == f"visual_search {__version__}\n"
    cff = (project / "CITATION.cff").read_text("utf-8")
    assert f"version: {__version__}\n" in cff
    tool = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["tool"]
    attribute = tool["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "visual_search.__version__"
