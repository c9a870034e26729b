"""The plan of the house: short folders, short files, and packages where they are declared.

Who may import whom is checked by import-linter (`make lint`).
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import inside

MOST_MODULES = 25
MOST_LINES = 450

# Extras that README tells users to install, and what must start with them alone; the package's own
# requirements (requirements.txt) are always there.
NEEDS = {
    (): ("my_submission.user_config", "visual_search.ranking.export"),
    ("train",): ("visual_search.train",),
    ("train", "text"): ("visual_search.text.search",),
    ("train", "serve"): ("visual_search.serve.api",),
    ("data",): (
        "dataset.check_table",
        "dataset.find_leaks",
        "dataset.filter_dataset_info",
        "dataset.generate_dataset_info",
        "dataset.prepare_dataset",
        "dataset.dataset_creation_steps.get_pairs",
        "dataset.dataset_creation_steps.extract_features",
    ),
}


@cache
def imports_of(file: Path) -> list[str]:
    return [*imported(ast.parse(file.read_text("utf-8")).body)]


def imported(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """What a module needs to be imported; what its functions import comes later."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported(node.orelse)
        elif isinstance(node, ast.Try) and "ImportError" in ast.unparse(node):
            continue  # it does without
        elif not isinstance(node, ast.FunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from imported(getattr(node, part, ()))


def packages_behind(modules: Iterable[str], project: Path) -> set[str]:
    """The packages of others that importing these modules of ours takes."""
    found: set[str] = set()
    queue, seen = [*modules], set[str]()
    while queue:
        name = queue.pop()
        path = project / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in seen and file.is_file():
            seen.add(name)
            queue += imports_of(file)
        elif not (project / name.partition(".")[0]).is_dir():
            found.add(name.partition(".")[0])
    return found - sys.stdlib_module_names


def commands(project: Path) -> list[str]:
    """The modules that are run by `python FILE` or `python -m MODULE`."""
    places = ("*.py", "visual_search/main_*.py", "dataset/**/*.py", "my_submission/*.py")
    files = [path for place in places for path in project.glob(place)]
    run = [path for path in files if '__name__ == "__main__"' in path.read_text("utf-8")]
    return [".".join(path.relative_to(project).with_suffix("").parts) for path in run]


def folders(project: Path) -> list[Path]:
    return [p for p in (project / "visual_search").rglob("*") if (p / "__init__.py").exists()]


def test_no_folder_is_longer_than_a_screen(project: Path) -> None:
    for folder in [project / "visual_search", *folders(project)]:
        modules = [p for p in folder.glob("*.py") if not p.name.startswith("__")]
        assert len(modules) <= MOST_MODULES, folder


def test_no_file_is_longer_than_one_idea(project: Path) -> None:
    kept = ("visual_search", "my_submission", "dataset", "benchmarks", "tests")
    files = [p for name in kept for p in (project / name).rglob("*.py")]
    long = {str(p.relative_to(project)): len(p.read_text().splitlines()) for p in files}
    assert {name: n for name, n in long.items() if n > MOST_LINES} == {}


def test_every_package_says_what_it_is_for(project: Path) -> None:
    for folder in folders(project):
        text = (folder / "__init__.py").read_text()
        assert text.startswith('"""'), folder
        assert "import" not in text, f"{folder}: an import here makes every --help slow"


def brought_by(requirements: Iterable[str]) -> set[str]:
    """The names of the distributions that these requirements bring, themselves included."""
    found: set[str] = set()
    queue = list(requirements)
    while queue:
        name = canonicalize_name(Requirement(queue.pop()).name)
        if name not in found:
            found.add(name)
            with suppress(metadata.PackageNotFoundError):
                queue += [line for line in metadata.requires(name) or [] if "extra ==" not in line]
    return found


@pytest.mark.parametrize("extras", NEEDS)
def test_modules_import_with_what_their_extras_bring(
    extras: tuple[str, ...], project: Path
) -> None:
    package = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    lines = (project / "requirements.txt").read_text().splitlines()
    declared = [line for line in lines if line and not line.startswith("#")]
    brought = brought_by(
        [*declared, *(one for name in extras for one in package["optional-dependencies"][name])]
    )
    installed = metadata.packages_distributions().items()
    allowed = {top for top, names in installed if brought & {*map(canonicalize_name, names)}}
    needed = packages_behind(NEEDS[extras], project)
    assert "torch" in needed or extras == ("data",)
    assert needed <= allowed


def test_commands_and_tools_for_tables_start_without_the_heavy_libraries(project: Path) -> None:
    for name in commands(project):
        heavy = {"torch", "pandas", "timm", "PIL", "numpy", "accelerate"}
        assert not heavy & packages_behind([name], project), name
    tools = [f"visual_search.data.{name}" for name in ("dataset_info", "leaks", "tables")]
    tools += ["visual_search.data.leak_record", "visual_search.text.pairs", "dataset.folder_info"]
    tools += ["dataset.sources.base", "dataset.image_text.text_normalization"]
    assert "torch" not in packages_behind(tools, project)


def test_every_number_on_a_command_line_has_a_range(project: Path) -> None:
    """`type=int` takes 10**18, which hangs what counts to it; ranges.py has what does not."""
    commands = [project / "local_evaluation.py"]
    for folder in ("visual_search", "dataset", "my_submission"):
        commands += (project / folder).rglob("*.py")
    found = {p.name for p in commands if re.search(r"\btype=(int|float)[,)]", p.read_text("utf-8"))}
    assert not found


def test_every_command_has_help(project: Path) -> None:
    names = commands(project)
    assert len(names) >= 36
    for name in names:
        done = inside(import_module(name).main, "--help")
        assert done.returncode == 0, name
        assert "usage" in done.stdout.lower(), name
