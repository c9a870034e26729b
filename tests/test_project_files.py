"""What the evaluator, git and pip read of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import ran

# Each command in a process of its own, forked from one that has loaded what reads their options.
HELP = """
import contextlib, io, os, runpy, sys
import jsonargparse, yaml

heavy, *entries = sys.argv[1:]
for entry in entries:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    out, status = io.StringIO(), None
    sys.argv, sys.path[0] = [entry, "--help"], os.path.dirname(entry)
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(entry, run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
    loaded = sys.modules.keys() & set(heavy.split())
    if status != 0 or loaded or "usage" not in out.getvalue().lower():
        print(entry, status, loaded)
    sys.stdout.flush()
    os._exit(0)
"""


def test_aicrowd_json_suits_the_kit_and_the_client(project: Path) -> None:
    values = json.loads((project / "aicrowd.json").read_text())
    assert values["challenge_id"] == "visual-product-recognition-challenge-2023"
    assert {"grader_id", "authors", "gpu", "description"} <= values.keys()
    assert isinstance(values["gpu"], bool)
    assert isinstance(values["authors"], list)


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


def test_the_evaluators_list_is_part_of_the_package(project: Path) -> None:
    package = tomllib.loads((project / "pyproject.toml").read_text())
    assert package["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
    lines = (project / "requirements.txt").read_text().splitlines()
    names = {re.split(r"[<>=~\[]", line)[0] for line in lines if line and line[0] != "#"}
    assert {"torch", "torchvision", "timm", "pandas", "pillow"} <= names
    assert "torch==" not in "".join(lines)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ran("make", *arguments, cwd=folder, timeout=60)


SET_UP_FILES = ("Makefile", "pyproject.toml", "requirements.txt", "constraints.txt")


def test_set_up_runs_once_and_again_when_the_requirements_change(
    project: Path, tmp_path: Path
) -> None:
    for name in SET_UP_FILES:
        shutil.copy(project / name, tmp_path)
    for target in ("demo", "demo-text", "test"):
        assert "--constraint constraints.txt" in make(tmp_path, "--dry-run", target).stdout
    (tmp_path / ".venv").mkdir()
    for stamp in (".made", ".demo", ".text", ".test"):
        (tmp_path / ".venv" / stamp).touch()
    for target in ("demo", "demo-text", "test"):
        assert "--constraint" not in make(tmp_path, "--dry-run", target).stdout
    os.utime(tmp_path / "constraints.txt", (2**32, 2**32))
    assert "--constraint" in make(tmp_path, "--dry-run", "demo").stdout


def test_each_target_installs_what_it_runs(project: Path, tmp_path: Path) -> None:
    for name in SET_UP_FILES:
        shutil.copy(project / name, tmp_path)
    assert "'.[train,demo]'" in make(tmp_path, "--dry-run", "demo").stdout
    assert "'.[train,demo,text]'" in make(tmp_path, "--dry-run", "demo-text").stdout


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


def test_an_old_python_is_refused_with_what_to_do(project: Path, tmp_path: Path) -> None:
    for name in SET_UP_FILES:
        shutil.copy(project / name, tmp_path)
    done = make(tmp_path, "demo", "PYTHON=false")
    assert done.returncode != 0
    assert "PYTHON=python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_missing_optional_package_names_its_extra(project: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['jsonargparse'] = None\n"
        "sys.argv = ['main_arcface', '--name', 'x']\n"
        "from visual_search.common.errors import run_command\n"
        "from visual_search.main_arcface import main\n"
        "run_command(main)\n"
    )
    done = ran(sys.executable, "-c", code)
    assert done.returncode == 2
    assert "pip install -e '.[train]'" in done.stderr


def test_help_answers_without_the_heavy_libraries(project: Path) -> None:
    places = ("*.py", "visual_search/main_*.py", "dataset/**/*.py", "my_submission/*.py")
    files = [path for place in places for path in project.glob(place)]
    commands = [str(path) for path in files if '__name__ == "__main__"' in path.read_text("utf-8")]
    assert len(commands) >= 36
    heavy = "torch pandas timm PIL numpy accelerate"
    said = run_alone(project, "-c", HELP, heavy, *commands)
    assert said == ""


def run_alone(project: Path, *arguments: str) -> str:
    """What another interpreter prints, when it ends well."""
    done = ran(sys.executable, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tools_for_tables_start_without_torch(project: Path) -> None:
    kit = ("data.dataset_info", "data.leaks", "data.leak_record", "text.pairs", "data.tables")
    modules = [*(f"visual_search.{name}" for name in kit), "dataset.sources.base"]
    modules += ["dataset.folder_info", "dataset.image_text.text_normalization"]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    run_alone(project, "-c", code)


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
