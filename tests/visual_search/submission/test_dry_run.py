"""A submission run under the evaluator's limits: what it answers, and each fault in a sentence."""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import refused
from tests.conftest import PROJECT
from tests.submissions import BODY_LINE, commit, git, make_submission, ranker
from visual_search.common.errors import UserError
from visual_search.submission.dry_run import Answer, staged
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.runtime_estimate import ImageCounts
from visual_search.submission.sandbox import GB, NAMESPACES, Limits, own_network, writes_elsewhere

SHORT = Limits(seconds=20, cores=1)


def run(project: Path, data: Path, limits: Limits = SHORT, working_tree: bool = False) -> Answer:
    with staged(project, limits, project.parent / "log.txt", working_tree=working_tree) as stage:
        return stage.answer(data)


def refusal(project: Path, data: Path, limits: Limits = SHORT, working_tree: bool = False) -> str:
    sentence = refused(".", run, project, data, limits, working_tree)
    assert "\n" not in sentence
    return sentence


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=["namespace", "guard"])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of keeping the child from the network: by the kernel, and in Python alone."""
    if request.param == "guard":
        monkeypatch.setattr("visual_search.submission.sandbox.NAMESPACES", ())
    elif not own_network():
        pytest.skip(f"none of {NAMESPACES} is allowed on this machine")
    return str(request.param)


def test_a_good_submission_is_answered_and_measured(
    tmp_path: Path, dev_folder: Path, isolation: str
) -> None:
    body = """
print(open(os.environ["AICROWD_DATASET_DIR"] + "/gallery.csv").readline())
assert "product_id" not in self.gallery[0] and "product_id" not in self.queries[0]
assert os.path.getsize(os.path.join(self.folder, self.gallery[-1]["img_path"])) > 0
assert len(os.sched_getaffinity(0)) == 1
assert os.listdir(os.environ["HOME"]) == []
assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
import socket
loopback = socket.create_server(("127.0.0.1", 0))
socket.create_connection(loopback.getsockname()).close()
held = np.ones(30_000_000)
return self.answer()
"""
    project = make_submission(tmp_path / "project", ranker(body))
    with staged(project, SHORT, tmp_path / "log.txt") as stage:
        answer = stage.answer(dev_folder)
        assert (answer.ranks == np.arange(1000)).all()
        assert answer.run.counts == ImageCounts(10, 10)
        assert 0.24 * GB < answer.run.peak_memory < 1 * GB
        assert 0 < answer.run.seconds < answer.outcome.seconds
        assert stage.answer(dev_folder, sample=6).ranks.shape == (3, 1000)
    kept = SHORT.described()["network"]
    assert ("a network namespace" in kept) == (isolation == "namespace")
    assert "product_id" in (dev_folder / "gallery.csv").read_text()


SLOW = "import time\nwhile True: time.sleep(0.01)"
MEMORY = """
held = []
for _ in range(40):
    held.append(np.ones(12_500_000))
return self.answer()
"""
SPREAD = """
import multiprocessing, time
def hold(): held = np.ones(25_000_000); time.sleep(20)
context = multiprocessing.get_context("fork")
started = [context.Process(target=hold) for _ in range(4)]
[process.start() for process in started]
[process.join() for process in started]
"""
NETWORK = """
import urllib.request
try:
    urllib.request.urlopen("http://192.0.2.1:8080/weights", timeout=1)
except OSError:
    pass  # a ranker that goes on without would lose minutes there
return self.answer()
"""
FALLS_BACK = """
import json
with open(os.environ["VISUAL_SEARCH_RANKER_LOG"], "w") as handle:
    json.dump({"seconds": {}, "fallbacks": ["the traced model.pt runs"]}, handle)
return self.answer()
"""


LINE = f"at my_submission/user_config.py line {BODY_LINE}"
AN_IMAGE = "os.path.join(self.folder, self.gallery[0]['img_path'])"
# A command of its own is no Python, so that no guard sees it; the comparison does.
PAST_PYTHON = """
import subprocess
subprocess.run(["touch", os.path.join(self.folder, "gallery", "left_behind")], check=False)
return self.answer()
"""


LATE = "import time; time.sleep(1.2)"
NEXT_LINE = f"at my_submission/user_config.py line {BODY_LINE + 1}"


@pytest.mark.parametrize(
    ("code", "limits", "expected"),
    [
        (
            ranker("import nowhere_to_be_found"),
            SHORT,
            [f"importing failed {LINE}", "'nowhere_to_be_found'"],
        ),
        (ranker(top="import hypothesis"), SHORT, ["add hypothesis to requirements.txt"]),
        (ranker(top="def broken(:"), SHORT, ["SyntaxError", "user_config.py"]),
        (ranker("return self.answer().astype(float)"), SHORT, ["dtype float64"]),
        (ranker("return self.answer().astype(object)"), SHORT, ["ndarray of object"]),
        (
            ranker("return [][3]"),
            SHORT,
            [f"raised IndexError: list index out of range {LINE}, while it ranked"],
        ),
        (
            ranker("return self.gallery[0]['product_id']"),
            SHORT,
            [f"reads the column product_id {LINE}"],
        ),
        (ranker("self.raise_aicrowd_error('no weights')"), SHORT, ["gave up: no weights"]),
        (ranker("return undefined_name"), SHORT, ["raised NameError", "undefined_name"]),
        (ranker("os.kill(os.getpid(), 11)"), SHORT, ["by the signal SIGSEGV while it ranked"]),
        (ranker("os._exit(3)"), SHORT, ["with exit status 3 while it ranked", "/log.txt"]),
        (
            ranker("open(os.path.join(self.folder, 'cache.npy'), 'wb')"),
            SHORT,
            ["tried to write", "/development_test_data/cache.npy", LINE],
        ),
        (ranker(f"os.remove({AN_IMAGE})"), SHORT, ["tried to write", LINE]),
        (ranker(f"open({AN_IMAGE}, 'r+b')"), SHORT, ["tried to write", LINE]),
        (ranker(PAST_PYTHON), SHORT, ["tried to write", "left_behind"]),
        (ranker(FALLS_BACK), SHORT, ["the traced model.pt runs", "--allow-fallback"]),
        (
            ranker(SLOW),
            Limits(1, 1),
            ["time limit was exceeded: after 1 s", NEXT_LINE, "while it ranked"],
        ),
        # The time of ranking begins behind the imports.
        (ranker(SLOW, LATE), Limits(0.8, 1), ["exceeded: after 0.8 s", "while it ranked"]),
        (ranker(MEMORY), Limits(20, 1, int(1 * GB)), ["more than the 1 GB of memory"]),
        (ranker(SPREAD), Limits(20, 1, int(0.7 * GB)), ["more than the 0.7 GB of memory"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_each_fault_is_one_sentence(
    tmp_path: Path, dev_folder: Path, code: str, limits: Limits, expected: list[str]
) -> None:
    before = state_of(dev_folder)
    sentence = refusal(make_submission(tmp_path / "project", code), dev_folder, limits)
    for part in expected:
        assert part in sentence
    (dev_folder / "gallery" / "left_behind").unlink(missing_ok=True)
    assert state_of(dev_folder) == before


def test_what_never_comes_to_rank_is_stopped(
    tmp_path: Path, dev_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visual_search.submission.sandbox.PREPARATION_SECONDS", 2.0)
    project = make_submission(tmp_path / "project", ranker(top="import time; time.sleep(60)"))
    sentence = refusal(project, dev_folder, Limits(20, 1))
    assert "stopped after 2 s at my_submission/user_config.py line 5" in sentence
    assert "while it was imported" in sentence


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (NETWORK, f"192.0.2.1:8080 at my_submission/user_config.py line {BODY_LINE + 2}"),
        ("import socket\nsocket.getaddrinfo('models.example.org', 443)", "models.example.org:443"),
    ],
)
def test_the_network_is_refused_and_named(
    tmp_path: Path, dev_folder: Path, isolation: str, body: str, expected: str
) -> None:
    project = make_submission(tmp_path / "project", ranker(body))
    assert f"tried to reach {expected}" in refusal(project, dev_folder)


def test_what_is_not_committed_is_named(tmp_path: Path, dev_folder: Path) -> None:
    project = make_submission(tmp_path / "project")
    (project / "my_submission" / "helper.py").write_text("VALUE = 1\n")
    config = project / "my_submission" / "user_config.py"
    config.write_text(ranker(top="from my_submission.helper import VALUE"))
    with staged(project, SHORT, tmp_path / "log.txt") as stage:
        stage.answer(dev_folder)  # of the commit, which needs no helper
        for part in ("user_config.py (changed)", "helper.py (new)", "--working-tree"):
            assert part in stage.notes[0]
    # The helper alone forgotten, the classic case.
    (project / ".gitignore").write_text("helper.py\n")
    commit(project)
    assert "helper" in refusal(project, dev_folder)
    (project / ".gitignore").unlink()
    assert "helper.py is on this disk and not committed" in refusal(project, dev_folder)
    run(project, dev_folder, working_tree=True)


def test_images_may_lie_above_the_tables(tmp_path: Path, dev_folder: Path) -> None:
    """And what the ranker says of an image names the user's path, not a temporary one."""
    data = shutil.copytree(dev_folder, tmp_path / "set" / "data")
    for name in ("gallery.csv", "queries.csv"):
        text = (data / name).read_text()
        (data / name).write_text(text.replace("gallery/", "../gallery/"))
    shutil.move(data / "gallery", tmp_path / "set")
    body = """
import json
paths = [os.path.join(self.folder, row["img_path"]) for row in self.gallery + self.queries]
assert all(map(os.path.isfile, paths)), paths
problems = [{"path": path, "reason": "grey"} for path in paths]
json.dump({"problems": problems}, open(os.environ["VISUAL_SEARCH_RANKER_LOG"], "w"))
return self.answer()
"""
    answer = run(make_submission(tmp_path / "project", ranker(body)), data)
    assert all(item["path"].startswith(str(data)) for item in answer.log["problems"])


WEIGHTS = """
path = os.path.join(os.path.dirname(__file__), "weights", "model.pt")
if not os.path.exists(path):
    self.raise_aicrowd_error(f"there is no model in {os.path.dirname(path)}")
assert open(path, "rb").read() == b"weights"
return self.answer()
"""


def test_weights_are_committed_and_in_the_store_of_lfs(tmp_path: Path, dev_folder: Path) -> None:
    project = make_submission(tmp_path / "project", ranker(WEIGHTS))
    model = project / "my_submission" / "weights" / "model.pt"
    model.parent.mkdir()
    model.write_bytes(b"weights")
    sentence = refusal(project, dev_folder)
    assert "gave up: there is no model in my_submission/weights" in sentence
    assert "my_submission/weights/model.pt is on this disk and would not be pushed" in sentence
    run(project, dev_folder, working_tree=True)
    # Committed as a pointer, as git-LFS does it; the store is missing, cut short, right.
    oid = hashlib.sha256(b"weights").hexdigest()
    model.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 7\n")
    commit(project)
    for working_tree in (False, True):
        sentence = refusal(project, dev_folder, working_tree=working_tree)
        assert "my_submission/weights/model.pt is a git-LFS pointer" in sentence
        assert "git lfs pull" in sentence
    stored = project / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"weight")
    assert "git-LFS pointer" in refusal(project, dev_folder)
    stored.write_bytes(b"weights")
    run(project, dev_folder)


@pytest.mark.parametrize("body", ["return self.answer()", "return 1 / 0"])
@pytest.mark.parametrize("working_tree", [False, True])
def test_a_run_changes_nothing_of_the_repository(
    tmp_path: Path, dev_folder: Path, body: str, working_tree: bool
) -> None:
    project = make_submission(tmp_path / "project", ranker(body))
    hook = project / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\ntouch hook_ran\n")
    hook.chmod(0o755)
    (project / "apt.txt").touch()  # a time that git's index does not know
    (project / "left_over.py").touch()
    before = state_of(project)
    with suppress(UserError):
        run(project, dev_folder, SHORT, working_tree)
    assert state_of(project) == before
    assert git(project, "worktree", "list").count("\n") == 1


def test_a_gpu_that_is_not_here_is_noted(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    project = make_submission(tmp_path / "project")
    path = project / "aicrowd.json"
    path.write_text(path.read_text().replace("false", "true"))
    commit(project)
    with staged(project, SHORT, tmp_path / "log.txt") as stage:
        assert any("asks for a GPU and this machine has none" in text for text in stage.notes)
        assert stage.limits.address_space == SHORT.memory


@pytest.mark.slow
def test_the_kit_itself_runs_with_its_requirements_alone(
    tmp_path: Path, dev_folder: Path, tiny_export: Path
) -> None:
    """The real ranker and an export, from a commit; git-LFS holds the weights where it is here."""
    project = tmp_path / "project"
    for name in ("my_submission", "visual_search"):
        shutil.copytree(
            PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "weights")
        )
    for name in ("Dockerfile", "requirements.txt", "aicrowd.json", ".gitattributes"):
        shutil.copy(PROJECT / name, project)
    shutil.copytree(tiny_export, project / "my_submission" / "weights")
    git(project, "init", "--quiet")
    with_lfs = shutil.which("git-lfs") is not None
    if with_lfs:
        git(project, "lfs", "install", "--local")
    commit(project)
    with staged(project, Limits(60, 2), tmp_path / "log.txt") as stage:
        larger = stage.answer(dev_folder, 64)
        assert larger.run.input_size == 64
        assert writes_elsewhere(larger.outcome) is None
        assert larger.run.embedding > 0
    pointers = [file.name for file in SubmissionTree(project).files if file.oid]
    models = [f"my_submission/weights/model.{kind}" for kind in ("pt", "safetensors")]
    assert pointers == (models if with_lfs else [])
