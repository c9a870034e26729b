"""Each fault of a submission is found, and a good one passes."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from my_submission.preflight import main
from tests.commands import inside, refused
from tests.submissions import commit, git, make_submission, ranker
from visual_search.model.checkpoint import describe_model
from visual_search.model.embedder import Architecture
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.preflight import (
    Finding,
    check_aicrowd_json,
    check_changes,
    check_large_files,
    check_names_and_syntax,
    check_remote,
    check_set_up,
    check_size,
    check_tag,
    check_weights,
)


def problems(check: Callable[..., Iterable[Finding]], project: Path, *what: object) -> list[str]:
    """What a check says of the last commit."""
    found = check(SubmissionTree(project), *what)
    return [finding.text for finding in found if finding.state == "problem"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_submission(tmp_path / "project")


@pytest.fixture
def weights(project: Path) -> Path:
    folder = project / "my_submission" / "weights"
    folder.mkdir()
    return folder


def test_changes_are_named_by_kind(project: Path) -> None:
    assert problems(check_changes, project) == []
    (project / "new.py").touch()
    (project / "apt.txt").unlink()
    (project / "requirements.txt").write_text("numpy>=1\n")
    (text,) = problems(check_changes, project)
    for part in ("new.py (new)", "apt.txt (deleted)", "requirements.txt (changed)"):
        assert part in text


@pytest.fixture
def without_lfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git as it is before `git lfs install`, also where the system has activated git-LFS."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.mark.usefixtures("without_lfs")
def test_large_files_belong_into_lfs(project: Path, weights: Path) -> None:
    (project / "table.bin").write_bytes(bytes(5_000_001))
    (project / "small.bin").write_bytes(bytes(4_999_999))
    commit(project)
    (text,) = problems(check_large_files, project)
    assert "table.bin (5.0 MB) is not in git-LFS" in text
    assert 'git lfs track "table.bin"' in text
    git(project, "rm", "--quiet", "table.bin")
    # Committed while the filter was not active: a plain blob where a pointer should be.
    (weights / "model.pt").write_bytes(bytes(5_000_001))
    commit(project)
    text = "; ".join(problems(check_large_files, project))
    assert "model.pt (5.0 MB) was committed past git-LFS" in text


@pytest.mark.usefixtures("without_lfs")
def test_a_pointer_needs_its_file_and_lfs_its_hook(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed (apt install git-lfs)")
    (weights / "model.pt").write_bytes(b"weights")
    git(project, "lfs", "install", "--local")
    commit(project)
    assert problems(check_large_files, project) == []
    (project / ".git" / "hooks" / "pre-push").unlink()
    assert "pre-push hook" in problems(check_large_files, project)[0]
    git(project, "lfs", "uninstall", "--local")
    assert "git-lfs is not active" in problems(check_large_files, project)[0]
    shutil.rmtree(project / ".git" / "lfs" / "objects")
    text = problems(check_large_files, project)[0]
    assert "model.pt is a git-LFS pointer without its file" in text
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "git-lfs" else f"/bin/{name}")
    assert "git-lfs is not installed" in "; ".join(problems(check_large_files, project))


def test_weights_are_missing_ignored_or_not_committed(project: Path, weights: Path) -> None:
    assert [text.split(":")[0] for text in problems(check_weights, project)] == [
        "my_submission/weights/model.pt is missing",
        "my_submission/weights/model.json is missing",
    ]
    (weights / "model.pt").write_bytes(b"x")
    (weights / "model.json").write_text("{}")
    assert all("is not committed" in text for text in problems(check_weights, project))
    (project / ".gitignore").write_text("*.pt\n")
    commit(project)
    (text,) = problems(check_weights, project)
    assert "model.pt is ignored by git" in text
    (project / ".gitignore").unlink()
    commit(project)
    assert problems(check_weights, project) == []


def set_json(project: Path, **values: object) -> None:
    path = project / "aicrowd.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"authors": ["your-aicrowd-username"]}, "authors must list"),
        ({"authors": []}, "authors must list"),
        ({"authors": "me"}, 'authors is "me", it must be a list'),
        ({"gpu": "true"}, 'gpu is "true", it must be a bool'),
        ({"grader_id": None}, "grader_id is null"),
        ({"challenge_id": "another"}, "challenge_id is 'another'"),
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ("", "does not exist"),
    ],
)
def test_faults_of_aicrowd_json(project: Path, content: dict | str, expected: str) -> None:
    assert problems(check_aicrowd_json, project) == []
    if isinstance(content, dict):
        set_json(project, **content)
    elif content:
        (project / "aicrowd.json").write_text(content)
    else:
        (project / "aicrowd.json").unlink()
    (text,) = problems(check_aicrowd_json, project)
    assert expected in text


def test_the_gpu_flag_against_the_model(project: Path, weights: Path) -> None:
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3400000000\n"
    )
    (weights / "model.pt").write_text(pointer)
    commit(project)
    (text,) = problems(check_aicrowd_json, project)
    assert 'gpu is false and the model has 3400 MB: set "gpu": true' in text
    set_json(project, gpu=True)
    assert problems(check_aicrowd_json, project) == []
    (weights / "model.pt").write_bytes(bytes(1000))
    set_json(project, gpu=False)
    commit(project)
    assert problems(check_aicrowd_json, project) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("requirements.txt", b"numpy>=900\n", "numpy>=900 (here is "),
        ("requirements.txt", b"no-such-package-at-all\n", "asks for no-such-package-at-all"),
        ("requirements.txt", b"numpy\n-e .\n", "line 2: '-e .' is a folder of this machine"),
        ("requirements.txt", b"numpy numpy\n", "line 1: 'numpy numpy' is not a requirement"),
        ("requirements.txt", b"numpy  # arrays\n\n# nothing\n--quiet\n", None),
        ("apt.txt", b"libgl1\nlib GL\n", "'lib GL' is not the name"),
        ("apt.txt", b"libgl1\r\n", "Windows line ends"),
        ("apt.txt", b"libgl1\nlibglib2.0-0=2.74\n", None),
    ],
)
def test_requirements_and_packages(
    project: Path, name: str, content: bytes, expected: str | None
) -> None:
    (project / name).write_bytes(content)
    found = problems(check_set_up, project)
    assert expected in found[0] if expected else found == []


def test_the_model_is_built_by_what_the_evaluator_installs(project: Path, weights: Path) -> None:
    architecture = Architecture("open_clip/ViT-B-32/x", "none", 512, 224, (0.5,) * 3, (0.5,) * 3)
    (weights / "model.json").write_text(json.dumps(describe_model(architecture, {})))
    (project / "requirements.txt").write_text("timm\n")
    (text,) = problems(check_set_up, project)
    assert "requirements.txt lacks open_clip_torch, of which the model is" in text
    (project / "requirements.txt").write_text("timm\nopen_clip_torch\n")
    assert problems(check_set_up, project) == []


def test_names_and_syntax(project: Path) -> None:
    (project / "my_submission" / "modern.py").write_text(
        "try:\n    pass\nexcept* ValueError: pass\n"
    )
    commit(project)
    assert problems(check_names_and_syntax, project, (3, 11)) == []
    assert (
        "modern.py line 3: no Python 3.10" in problems(check_names_and_syntax, project, (3, 10))[0]
    )
    (project / "README.md").touch()
    (project / "ReadMe.md").touch()
    commit(project)
    assert problems(check_names_and_syntax, project, (3, 11)) == [
        "README.md and ReadMe.md differ in case alone: rename one"
    ]


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
    assert problems(check_size, project) == []
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
    said = done.stdout
    assert "note     the submission writes left_here.txt at my_submission/user_config.py" in said
    assert "ok       a trial run of the last commit with the packages of requirements.txt" in said
    assert "problems: the submission would fail" in said
    (project / "my_submission" / "user_config.py").write_text(
        ranker("return self.gallery[0]['product_id']")
    )
    commit(project)
    said = inside(main, "--project", project).stdout
    assert "problem  a trial run of the last commit failed: the submission reads the column" in said
