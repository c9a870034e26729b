"""Each fault of a submission is found, and a good one passes."""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from my_submission.preflight import main
from tests.commands import inside, refused
from tests.submissions import AICROWD_JSON, commit, git, make_submission, ranker
from visual_search.model.checkpoint import describe_model
from visual_search.model.embedder import Architecture
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.preflight import (
    Finding,
    check_aicrowd_json,
    check_apt,
    check_changes,
    check_large_files,
    check_lfs,
    check_names_and_syntax,
    check_remote,
    check_requirements,
    check_size,
    check_tag,
    check_weights,
)

Check = Callable[..., Iterable[Finding]]
MODEL, DESCRIPTION = (f"my_submission/weights/model.{end}" for end in ("pt", "json"))


def problems(check: Check, project: Path, *what: object) -> list[str]:
    """What a check says of the last commit."""
    found = check(SubmissionTree(project), *what)
    return [finding.text for finding in found if finding.state == "problem"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good submission; git is as it is before `git lfs install`, whatever the system has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return make_submission(tmp_path / "project")


def fill(project: Path, files: dict[str, str | bytes | None]) -> None:
    """Write files, or delete those of None."""
    for name, content in files.items():
        path = project / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def aicrowd(**values: object) -> str:
    return json.dumps({**AICROWD_JSON, **values})


def pointer(size: int) -> str:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n"


def built_by(backbone: str) -> str:
    architecture = Architecture(backbone, "none", 512, 224, (0.5,) * 3, (0.5,) * 3)
    return json.dumps(describe_model(architecture, {}))


def for_python(minor: int) -> Check:
    return partial(check_names_and_syntax, python=(3, minor))


CLIP = built_by("open_clip/ViT-B-32/x")
MODERN = "try:\n    pass\nexcept* ValueError: pass\n"
JSON, WANTED, SYNTAX = "aicrowd.json", "requirements.txt", "my_submission/modern.py"


@pytest.mark.parametrize(
    ("check", "files", "expected"),
    [
        (check_large_files, {"small.bin": bytes(4_999_999)}, None),
        (
            check_large_files,
            {"table.bin": bytes(5_000_001)},
            'table.bin (5.0 MB) is not in git-LFS: `git lfs track "table.bin"`',
        ),
        # Committed while the filter was not active: a plain blob where a pointer should be.
        (
            check_large_files,
            {MODEL: bytes(5_000_001)},
            "model.pt (5.0 MB) was committed past git-LFS",
        ),
        (check_large_files, {MODEL: pointer(7)}, "model.pt is a git-LFS pointer without its file"),
        (check_weights, {MODEL: b"x", DESCRIPTION: "{}"}, None),
        (check_weights, {MODEL: b"x"}, "my_submission/weights/model.json is missing"),
        (
            check_weights,
            {MODEL: b"x", DESCRIPTION: "{}", ".gitignore": "*.pt\n"},
            "model.pt is ignored by git",
        ),
        (check_aicrowd_json, {}, None),
        (check_aicrowd_json, {JSON: aicrowd(authors=["your-aicrowd-username"])}, "authors must"),
        (check_aicrowd_json, {JSON: aicrowd(authors=[])}, "authors must list"),
        (check_aicrowd_json, {JSON: aicrowd(authors="me")}, 'authors is "me", it must be a list'),
        (check_aicrowd_json, {JSON: aicrowd(gpu="true")}, 'gpu is "true", it must be a bool'),
        (check_aicrowd_json, {JSON: aicrowd(grader_id=None)}, "grader_id is null"),
        (check_aicrowd_json, {JSON: aicrowd(challenge_id="other")}, "challenge_id is 'other'"),
        (check_aicrowd_json, {JSON: "{"}, "not valid JSON"),
        (check_aicrowd_json, {JSON: "[]"}, "not an object"),
        (check_aicrowd_json, {JSON: None}, "does not exist"),
        (
            check_aicrowd_json,
            {MODEL: pointer(3_400_000_000)},
            'gpu is false and the model has 3400 MB: set "gpu": true',
        ),
        (check_aicrowd_json, {MODEL: pointer(3_400_000_000), JSON: aicrowd(gpu=True)}, None),
        (check_aicrowd_json, {MODEL: bytes(1000)}, None),
        (check_requirements, {WANTED: "numpy>=900\n"}, "numpy>=900 (here is "),
        (
            check_requirements,
            {WANTED: "no-such-package-at-all\n"},
            "asks for no-such-package-at-all",
        ),
        (
            check_requirements,
            {WANTED: "numpy\n-e .\n"},
            "line 2: '-e .' is a folder of this machine",
        ),
        (
            check_requirements,
            {WANTED: "./a.whl\n"},
            "line 1: './a.whl' is a folder of this machine",
        ),
        (check_requirements, {WANTED: None}, "requirements.txt does not exist"),
        (
            check_requirements,
            {WANTED: "numpy numpy\n"},
            "line 1: 'numpy numpy' is not a requirement",
        ),
        (
            check_requirements,
            {WANTED: "numpy>1  # 2\n\n# none\n--quiet\npandas[excel]; os_name>'3'\n"},
            None,
        ),
        (check_apt, {"apt.txt": "libgl1\nlib GL\n"}, "'lib GL' is not the name"),
        (check_apt, {"apt.txt": "libgl1\r\n"}, "Windows line ends"),
        (check_apt, {"apt.txt": "libgl1\nlibglib2.0-0=2.74\n"}, None),
        (
            check_requirements,
            {DESCRIPTION: CLIP, WANTED: "timm\n"},
            "requirements.txt lacks open_clip_torch, of which the model is",
        ),
        (check_requirements, {DESCRIPTION: CLIP, WANTED: "timm\nopen_clip_torch\n"}, None),
        (
            for_python(11),
            {"README.md": "", "ReadMe.md": ""},
            "README.md and ReadMe.md differ in case alone: rename one",
        ),
        (for_python(11), {SYNTAX: MODERN}, None),
        (for_python(10), {SYNTAX: MODERN}, "modern.py line 3: no Python 3.10"),
        (check_size, {}, None),
    ],
)
def test_each_fault_is_found_and_no_other(
    project: Path, check: Check, files: dict[str, str | bytes | None], expected: str | None
) -> None:
    fill(project, files)
    commit(project)
    found = problems(check, project)
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_changes_are_named_by_kind(project: Path) -> None:
    assert problems(check_changes, project) == []
    fill(project, {"new.py": "", "apt.txt": None, WANTED: "numpy>=1\n", MODEL: "", DESCRIPTION: ""})
    (text,) = problems(check_changes, project)
    for part in ("new.py (new)", "apt.txt (deleted)", "requirements.txt (changed)"):
        assert part in text
    for name, text in zip((DESCRIPTION, MODEL), problems(check_weights, project), strict=True):
        assert f"{name} is not committed" in text


def test_a_pointer_needs_its_file_and_lfs_its_hook(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed (apt install git-lfs)")
    fill(project, {MODEL: "weights"})
    git(project, "lfs", "install", "--local")
    commit(project)
    assert problems(check_large_files, project) == problems(check_lfs, project) == []
    (project / ".git" / "hooks" / "pre-push").unlink()
    assert "pre-push hook" in problems(check_lfs, project)[0]
    git(project, "lfs", "uninstall", "--local")
    assert "git-lfs is not active" in problems(check_lfs, project)[0]
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "git-lfs" else f"/bin/{name}")
    assert "git-lfs is not installed" in problems(check_lfs, project)[0]


def test_tags(project: Path, tmp_path: Path) -> None:
    assert problems(check_tag, project, "v1") == []
    for name in ("v 1", "v1..2", "v1.lock", "v~1"):
        assert "cannot be a tag" in problems(check_tag, project, name)[0]
    git(project, "tag", "submission-v1")
    for name in ("v1", "submission-v1"):
        assert "submission-v1 exists already:" in problems(check_tag, project, name)[0]
    bare = tmp_path / "bare.git"
    git(tmp_path, "init", "--quiet", "--bare", str(bare))
    git(project, "remote", "add", "aicrowd", str(bare))
    git(project, "push", "--quiet", "--no-verify", "aicrowd", "submission-v1")
    git(project, "tag", "--delete", "submission-v1")
    assert "exists already on the remote" in problems(check_tag, project, "v1")[0]


def test_the_remote(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AICROWD_GITLAB_HOST", "gitlab.localhost")
    found = problems(check_remote, project)
    assert [part in text for part, text in zip(("remote", "-id", "-slug"), found, strict=True)]
    git(project, "config", "aicrowd-cli.challenge-id", "1")
    git(project, "config", "aicrowd-cli.challenge-slug", "x")
    bare = tmp_path / "gitlab.localhost" / "kit.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(project, "remote", "add", "aicrowd", str(bare))
    assert "the branch main has no upstream" in problems(check_remote, project)[0]
    git(project, "push", "--quiet", "--no-verify", "--set-upstream", "aicrowd", "main")
    assert problems(check_remote, project) == []
    git(tmp_path, "clone", "--quiet", str(bare), "other")
    (tmp_path / "other" / "elsewhere.py").touch()
    commit(tmp_path / "other")
    git(tmp_path / "other", "push", "--quiet", "--no-verify")
    commit(project)
    assert "has commits that are not here" in problems(check_remote, project)[0]
    git(project, "remote", "set-url", "aicrowd", "https://gitlab.localhost:1/kit.git")
    said = check_remote(SubmissionTree(project))
    assert [f.state for f in said if "could not be asked" in f.text] == ["note"]


def test_the_size_of_the_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visual_search.submission.preflight.LARGE_REPOSITORY", 1000)
    assert "clean history" in problems(check_size, project)[0]


def test_no_repository_and_no_commit_are_sentences(tmp_path: Path) -> None:
    refused("git init", SubmissionTree, tmp_path)
    git(tmp_path, "init", "--quiet")
    refused("nothing is committed", SubmissionTree, tmp_path)


def test_the_trial_run_names_the_fault(tmp_path: Path) -> None:
    body = "open('left_here.txt', 'w')\nreturn self.answer()"
    project = make_submission(tmp_path / "project", ranker(body))
    done = inside(main, "--project", project)
    assert done.returncode == 1
    for part in (
        "note     the submission writes left_here.txt at my_submission/user_config.py",
        "ok       a trial run of the last commit with the packages of requirements.txt",
        "problems: the submission would fail",
    ):
        assert part in done.stdout
    code = ranker("return self.gallery[0]['product_id']")
    fill(project, {"my_submission/user_config.py": code})
    commit(project)
    said = inside(main, "--project", project).stdout
    assert "problem  a trial run of the last commit failed: the submission reads the column" in said
