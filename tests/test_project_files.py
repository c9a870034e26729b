"""What the evaluator, git and pip read of the project."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ran, stopped
from visual_search import main_arcface


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project as a git checkout; an unpacked archive of it is none."""
    if not (project / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is not a git checkout")
    return project


def lfs_filter(name: str) -> str:
    return ran("git", "check-attr", "filter", "--", name).stdout.strip().rpartition(": ")[2]


def test_weights_go_to_lfs_and_the_demo_does_not(checkout: Path) -> None:
    for name in (
        "my_submission/weights/model.pt",
        "my_submission/weights/head.safetensors",
        "dataset/images_mean_50k_800.partaa",
        "dataset/images_mean_50k_800.tar.partaa",
    ):
        assert lfs_filter(name) == "lfs", name
    for name in ("dataset/demo/development_test_data/gallery/a.jpg", "README.md"):
        assert lfs_filter(name) != "lfs", name


def test_no_committed_file_is_meant_for_lfs_or_too_large(checkout: Path) -> None:
    names = [name for name in ran("git", "ls-files", "-z").stdout.split("\0") if name]
    asked = ran("git", "check-attr", "-z", "--stdin", "filter", input="\0".join(names))
    assert asked.returncode == 0
    assert "\0lfs\0" not in asked.stdout + "\0"
    sizes = {name: (checkout / name).stat().st_size for name in names if (checkout / name).exists()}
    assert max(sizes.values()) < 1_000_000
    assert sum(size for name, size in sizes.items() if name.startswith("dataset/demo")) < 30e6


@pytest.fixture
def make(project: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """What make says where only the files of the set-up are."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "constraints.txt"):
        shutil.copy(project / name, tmp_path)
    return lambda *words: ran("make", *words, cwd=tmp_path, timeout=60)


def test_set_up_runs_once_and_again_when_the_requirements_change(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    targets = {"demo": "'.[train,demo]'", "demo-text": "'.[train,demo,text]'", "test": ""}
    for target, extras in targets.items():
        said = make("--dry-run", target).stdout
        assert "--constraint constraints.txt" in said
        assert extras in said
    (tmp_path / ".venv").mkdir()
    for stamp in (".made", ".demo", ".text", ".test"):
        (tmp_path / ".venv" / stamp).touch()
    for target in targets:
        assert "--constraint" not in make("--dry-run", target).stdout
    os.utime(tmp_path / "constraints.txt", (2**32, 2**32))
    assert "--constraint" in make("--dry-run", "demo").stdout


def test_an_old_python_is_refused_with_what_to_do(
    make: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = make("demo", "PYTHON=false")
    assert done.returncode != 0
    assert "PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_every_installed_package_is_pinned(project: Path) -> None:
    """By constraints.txt, at the version that is installed; `make lock` writes it."""
    lines = (project / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = {
        canonicalize_name(pin.name): str(pin.specifier)
        for pin in wanted
        if pin.marker is None or pin.marker.evaluate()
    }
    package = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for group in package["optional-dependencies"].values():
        for line in group:
            name = canonicalize_name(Requirement(line).name)
            assert name in pins, f"{name} has no pin: make lock"
            try:
                assert pins[name] == f"=={metadata.version(name)}", name
            except metadata.PackageNotFoundError:
                continue


def test_a_missing_optional_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert "pip install -e '.[train]'" in stopped(main_arcface.main, "--name", "x")


def test_the_wheel_holds_what_is_not_python(project: Path) -> None:
    """Pages and migrations beside the modules that read them."""
    tool = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["setuptools"]
    held = {
        path
        for package, patterns in tool["package-data"].items()
        for pattern in patterns
        for path in (project / package.replace(".", "/")).glob(pattern)
    }
    beside = {
        path
        for path in (project / "visual_search").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert beside == held
