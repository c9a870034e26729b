"""What requirements.txt brings: as pip would resolve it."""

import shutil
import sys
from pathlib import Path

from tests.commands import ran, refused
from tests.conftest import PROJECT
from visual_search.submission.requirements import (
    installed_for,
    packages_to_hide,
    read_requirements,
    sets_up_itself,
)


def test_the_closure_is_what_pip_would_resolve(tmp_path: Path) -> None:
    """pip, told to install nothing, knows the same packages (those it would call satisfied)."""
    wanted = ["pandas>=2", "hypothesis"]
    done = ran(sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", *wanted)
    satisfied = {
        line.split("Requirement already satisfied: ")[1].split(" in ")[0]
        for line in done.stdout.splitlines()
        if line.startswith("Requirement already satisfied")
    }
    names = {text.split("<")[0].split(">")[0].split("=")[0].split("!")[0] for text in satisfied}
    found, missing = installed_for(wanted)
    assert found == {name.strip().lower().replace("_", "-") for name in names}
    assert missing == []


def test_a_file_is_read_as_pip_reads_it(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("hypothesis\n")
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# as pip-compile writes it\n--extra-index-url https://example.org/cpu\n"
        "numpy==2.3.5 \\\n    --hash=sha256:abcd \\\n    --hash=sha256:ef01\n-r more/base.txt\n"
        "clip @ git+https://example.org/clip.git  # CLIP\npandas>=2 --no-binary=pandas\n"
    )
    wanted = ["numpy==2.3.5", "hypothesis", "clip @ git+https://example.org/clip.git", "pandas>=2"]
    assert read_requirements(file) == wanted
    file.write_text("numpy\ngit+https://example.org/clip.git\n")
    refused("line 2: .* write its name in front, `<name> @ git.https", read_requirements, file)
    file.write_text("-r gone.txt\n")
    refused("gone.txt does not exist", read_requirements, file)
    file.write_text("-r more/base.txt\n")
    (tmp_path / "more" / "base.txt").write_text("-r ../requirements.txt\n")
    refused("leads to itself", read_requirements, file)


def test_what_is_wanted_is_not_hidden() -> None:
    hidden = packages_to_hide(["pandas"])
    assert hidden["hypothesis"] == "hypothesis"
    assert hidden["torch"] == "torch"
    assert not {"pandas", "numpy", "dateutil", "visual_search", "my_submission"} & hidden.keys()


def test_the_kits_dockerfile_brings_requirements_txt(tmp_path: Path) -> None:
    """So the rehearsal goes on to hide what that does not list; with another it cannot tell."""
    assert not sets_up_itself(tmp_path)
    shutil.copy(PROJECT / "Dockerfile", tmp_path)
    assert not sets_up_itself(tmp_path)
    (tmp_path / "Dockerfile").write_text("FROM python:3.12\nRUN pip install torch\n")
    assert sets_up_itself(tmp_path)
