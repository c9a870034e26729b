"""The real client against a server of ours on the loopback, and a bare repository with git-LFS."""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.commands import ran
from tests.submissions import AICROWD_JSON, commit, git, make_submission, ranker
from visual_search.model.checkpoint import describe_model
from visual_search.model.embedder import Architecture
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.preflight import findings
from visual_search.submission.preflight import trial as run_trial

CLIENT = Path(sys.executable).with_name("aicrowd")
KEY = "a-key-of-the-test"
HOST = "gitlab.localhost"

RANKER_WITH_WEIGHTS = ranker(
    """
path = os.path.join(os.path.dirname(__file__), "weights", "model.pt")
if os.path.getsize(path) != 6_000_000:
    self.raise_aicrowd_error(f"{path} is no model")
return self.answer()
"""
)


class Handler(BaseHTTPRequestHandler):
    """The four requests that the client makes for a submission by git."""

    asked: list[str]
    registered = True

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        type(self).asked.append(address.path)
        right_key = self.headers.get("Authorization") == f"Token {KEY}"
        answer: dict[str, object] | None = None
        if address.path == "/api/v1/api_user" and right_key:
            answer = {"id": 7, "name": "somebody"}
        elif address.path == "/challenges/1074/participant" and right_key:
            assert parse_qs(address.query) == {"participant_id": ["7"]}
            answer = {"registered": type(self).registered}
        body = json.dumps(answer or {"message": "no"}).encode()
        self.send_response(200 if answer else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@dataclass
class Desk:
    """A participant's machine: repository, remote, client and server."""

    project: Path
    bare: Path
    environment: dict[str, str]

    def aicrowd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return ran(CLIENT, *arguments, cwd=self.project, env=self.environment)

    def problems(self, trial: bool = False) -> list[str]:
        found = [*findings(self.project, "v1", "3.11"), *(run_trial(self.project) if trial else ())]
        return [finding.text for finding in found if finding.state == "problem"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    Handler.asked, Handler.registered = [], True
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"localhost:{http.server_address[1]}", tmp_path / "authority.pem"
    http.shutdown()
    thread.join()


@pytest.fixture
def desk(tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Desk:
    if shutil.which("git-lfs") is None:
        pytest.skip("git-lfs is not installed (apt install git-lfs)")
    if not CLIENT.is_file():
        pytest.skip("aicrowd-cli is not installed (pip install -e '.[submit]')")
    address, authority = server
    home = tmp_path / "home"
    settings = home / ".config" / "aicrowd-cli"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("disable_update_check = true\n")
    (home / ".gitconfig").write_text("[user]\nname = Test\nemail = test@example.org\n")
    ours = {
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",  # Debian activates git-lfs for the whole system
        "RAILS_HOST": address,
        "AICROWD_API_ENDPOINT": f"https://{address}",
        "AICROWD_GITLAB_HOST": HOST,
        "GITLAB_HOST": address,
        "REQUESTS_CA_BUNDLE": str(authority),
        "PATH": f"{CLIENT.parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    project = make_submission(tmp_path / "project", RANKER_WITH_WEIGHTS)
    git(project, "lfs", "install", "--local")
    weights = project / "my_submission" / "weights"
    weights.mkdir()
    (weights / "model.pt").write_bytes(np.random.default_rng(0).bytes(6_000_000))
    architecture = Architecture("timm/test_vit", "none", 64, 32, (0.5,) * 3, (0.5,) * 3)
    described = describe_model(architecture, {"packages": ["numpy"]})
    (weights / "model.json").write_text(json.dumps(described))
    bare = tmp_path / HOST / "somebody" / "kit.git"
    bare.mkdir(parents=True)
    git(bare, "init", "--quiet", "--bare", "--initial-branch=main")
    git(project, "remote", "add", "aicrowd", f"file://{bare}")
    git(project, "config", "push.autoSetupRemote", "true")
    git(project, "config", "aicrowd-cli.challenge-id", "1074")
    git(project, "config", "aicrowd-cli.challenge-slug", str(AICROWD_JSON["challenge_id"]))
    return Desk(project, bare, {**os.environ, "LC_ALL": "C.UTF-8"})


def test_the_real_client_submits_tag_and_weights(desk: Desk, tmp_path: Path) -> None:
    assert any("weights/model.pt is not committed" in text for text in desk.problems())
    commit(desk.project)
    assert desk.problems(trial=True) == []

    logged_in = desk.aicrowd("login", "--api-key", KEY)
    assert logged_in.returncode == 0, logged_in.stdout + logged_in.stderr
    done = desk.aicrowd("submission", "create", "-t", "v1", "-d", "first try")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"https://{HOST}/somebody/kit/-/issues" in done.stdout.replace("\n", "")
    assert "/challenges/1074/participant" in Handler.asked

    # The tag arrived, with a pointer in the commit and the weights in the remote's LFS store.
    pushed = git(desk.bare, "rev-parse", "refs/tags/submission-v1").strip()
    assert pushed == git(desk.project, "rev-parse", "HEAD").strip()
    weights = (desk.project / "my_submission" / "weights" / "model.pt").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    pointer = git(desk.bare, "show", "submission-v1:my_submission/weights/model.pt")
    assert f"oid sha256:{oid}" in pointer
    stored = desk.bare / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    assert stored.read_bytes() == weights

    # What the evaluator clones is what was rehearsed; without git-LFS it has a pointer.
    git(tmp_path, "clone", "--quiet", "--branch", "submission-v1", f"file://{desk.bare}", "clone")
    assert SubmissionTree(tmp_path / "clone").missing_files() == ["my_submission/weights/model.pt"]
    git(tmp_path / "clone", "lfs", "install", "--local")
    git(tmp_path / "clone", "lfs", "pull")
    assert SubmissionTree(tmp_path / "clone").missing_files() == []
    (tmp_path / "laid_out").mkdir()
    SubmissionTree(tmp_path / "clone").lay_out(tmp_path / "laid_out")
    laid_out = tmp_path / "laid_out" / "my_submission" / "weights" / "model.pt"
    assert laid_out.read_bytes() == weights

    assert any("submission-v1 exists already" in text for text in desk.problems())
    again = desk.aicrowd("submission", "create", "-t", "v1", "-d", "again")
    assert again.returncode != 0
    assert "Couldn't create git tag" in again.stderr


@pytest.mark.slow
def test_the_client_commits_what_is_not_ignored(desk: Desk) -> None:
    """What the preflight says of uncommitted files is what the client does with them."""
    desk.aicrowd("login", "--api-key", KEY)
    (desk.project / "forgotten.py").write_text("VALUE = 1\n")
    assert any("forgotten.py (new)" in text for text in desk.problems())
    done = desk.aicrowd("submission", "create", "-t", "v2", "-d", "with all that lies there")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(desk.bare, "show", "submission-v2:forgotten.py") == "VALUE = 1\n"


def without_grader(desk: Desk) -> None:
    values = {key: value for key, value in AICROWD_JSON.items() if key != "grader_id"}
    (desk.project / "aicrowd.json").write_text(json.dumps(values))


def elsewhere(desk: Desk) -> None:
    desk.environment["AICROWD_GITLAB_HOST"] = os.environ["AICROWD_GITLAB_HOST"] = "elsewhere.org"


def in_git(*words: str) -> Callable[[Desk], object]:
    return lambda desk: git(desk.project, *words)


@pytest.mark.slow  # the preflight alone: tests/visual_search/submission/test_preflight.py
@pytest.mark.parametrize(
    ("spoil", "client", "preflight"),
    [
        (without_grader, "Expected key grader_id", "no grader_id"),
        (in_git("remote", "remove", "aicrowd"), "No git remote found", "no git remote named"),
        (
            in_git("config", "--unset", "aicrowd-cli.challenge-slug"),
            "Not in a valid challenge git directory",
            "no aicrowd-cli.challenge-slug",
        ),
        (
            in_git("config", "--unset", "push.autoSetupRemote"),
            "has no upstream branch",
            "the branch main has no upstream",
        ),
        (
            in_git("checkout", "--quiet", "--detach"),
            "not currently on a branch",
            "no branch is checked out",
        ),
        (elsewhere, "list index out of range", "fails on an address without elsewhere.org"),
        (lambda _: setattr(Handler, "registered", False), "You haven't registered", None),
    ],
)
def test_what_the_client_refuses_the_preflight_finds(
    desk: Desk, spoil: Callable[[Desk], object], client: str, preflight: str | None
) -> None:
    spoil(desk)
    commit(desk.project)
    problems = desk.problems()
    assert any(preflight in text for text in problems) if preflight else problems == []
    desk.aicrowd("login", "--api-key", KEY)
    done = desk.aicrowd("-vvvv", "submission", "create", "-t", "v1", "-d", "x")
    assert done.returncode != 0
    assert client in " ".join((done.stdout + done.stderr).split())
