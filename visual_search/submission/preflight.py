"""What git would push, and what in it makes submissions fail, checked before a push."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from visual_search.common.errors import UserError, without_credentials
from visual_search.common.files import read_json
from visual_search.model.checkpoint import read_description
from visual_search.submission.dry_run import draw_data, staged
from visual_search.submission.git_tree import SubmissionTree
from visual_search.submission.requirements import (
    installed_for,
    read_requirements,
    sets_up_itself,
)
from visual_search.submission.runtime_estimate import ImageCounts
from visual_search.submission.sandbox import Limits, writes_elsewhere

# The challenge's rule: whatever is larger travels by git-LFS.
LARGE_FILE = 5_000_000
# Plain git beyond this makes every push and every build of the evaluator slow.
LARGE_REPOSITORY = 1_000_000_000

# Exported weights from which a CPU is too slow for the hidden test, in bytes: 4 cores embed
# 40,000 images in ten minutes at 15 ms of one core each, about 0.5 GFLOP of fp32.
HEAVY_WEIGHTS = 100_000_000

WEIGHTS = ("my_submission/weights/model.pt", "my_submission/weights/model.json")
CHALLENGE = "visual-product-recognition-challenge-2023"
PLACEHOLDER_AUTHOR = "your-aicrowd-username"
# What the client (aicrowd-cli 0.1.18, submission/helpers.py) insists on.
CLIENT_FIELDS = {
    "challenge_id": str,
    "grader_id": str,
    "authors": list,
    "gpu": bool,
    "description": str,
}
REMOTE_SECONDS = 15.0  # that the remote may take to answer

# The client splits the remote's address at this host, and fails after the push without it.
CLIENT_HOST = "gitlab.aicrowd.com"


# Images of the trial run, and the seconds that it may take.
TRIAL_COUNTS, TRIAL_SECONDS = ImageCounts(queries=8, gallery=12), 180.0


class Finding(NamedTuple):
    """One line of the preflight."""

    state: str
    """`ok`, `note` or `problem`: only the last would make a submission fail."""
    text: str


ok, note, problem = (partial(Finding, state) for state in ("ok", "note", "problem"))


def findings(project: Path, tag: str, python: str) -> Iterator[Finding]:
    """Every check of a repository, cheapest first.

    Args:
        project: anywhere in it.
        tag: what is going to be submitted.
        python: the evaluator's version, such as 3.11.

    Raises:
        UserError: when there is no commit to check, or `python` is no version.
    """
    try:
        major, minor = map(int, python.split("."))
    except ValueError:
        raise UserError(f"--python {python} is no version such as 3.11") from None
    tree = SubmissionTree(project)
    for check, right in (
        (check_changes(tree), "everything is committed"),
        (check_large_files(tree), "no large file outside git-LFS; those in it are all here"),
        (check_lfs(tree), "git-LFS is installed and active"),
        (check_weights(tree), "the weights are committed"),
        (check_aicrowd_json(tree), "aicrowd.json has what is asked for, and gpu suits the model"),
        (check_requirements(tree), "requirements.txt is satisfied by what is installed here"),
        (check_apt(tree), "apt.txt lists names of packages alone"),
        (
            check_names_and_syntax(tree, (major, minor)),
            f"file names and syntax are fit for Python {python}",
        ),
        (check_size(tree), "the repository is small enough to be pushed"),
        (check_remote(tree), "`git push aicrowd` would go through"),
        (check_tag(tree, tag), f"the tag {tag} is free"),
    ):
        found = list(check)
        yield from found or [ok(right)]
    if shutil.which("aicrowd") is None:
        yield note("the client is not on the PATH: pip install -e '.[submit]'")


def check_changes(tree: SubmissionTree) -> Iterator[Finding]:
    """Whether what is on disk is what was committed."""
    if changes := tree.described_changes():
        yield problem(
            f"not committed: {changes}; commit or remove them: `aicrowd submission create` "
            "would commit and submit them unrehearsed, and a push would leave them out"
        )


def check_large_files(tree: SubmissionTree) -> Iterator[Finding]:
    """Large files outside git-LFS, and pointers without their file."""
    large = {file.name: file.size for file in tree.files if not file.oid and file.size > LARGE_FILE}
    to_lfs = tree.given_to_lfs(list(large))
    for name, size in large.items():
        fault = f'is not in git-LFS: `git lfs track "{name}"`, then add it again'
        if name in to_lfs:
            fault = (
                "was committed past git-LFS: `git lfs install`, then "
                f"`git add --renormalize {name}` and commit"
            )
        yield problem(f"{name} ({size / 1e6:.1f} MB) {fault}")
    for name in tree.missing_files():
        yield problem(
            f"{name} is a git-LFS pointer without its file: `git lfs pull`, or add it again"
        )


def check_lfs(tree: SubmissionTree) -> Iterator[Finding]:
    """Whether git-LFS would send large files along with a push."""
    clean = tree.ask("config", "filter.lfs.clean") or tree.ask("config", "filter.lfs.process")
    hook = tree.root / tree.git("rev-parse", "--git-path", "hooks/pre-push").strip()
    if shutil.which("git-lfs") is None:
        fault = "git-lfs is not installed: `apt install git-lfs`, then `git lfs install`"
    elif "git-lfs" not in (clean or ""):
        fault = "git-lfs is not active here: `git lfs install`, then add large files again"
    elif not hook.is_file() or "git lfs" not in hook.read_text("utf-8", "replace"):
        fault = "no pre-push hook of git-lfs: a push sends pointers only; `git lfs install`"
    else:
        return
    if tree.given_to_lfs([file.name for file in tree.files]):
        yield problem(fault)
    else:
        yield note(f"{fault} (before the first large file)")


def check_weights(tree: SubmissionTree) -> Iterator[Finding]:
    """Whether the ranker's weights would be pushed."""
    for name in sorted(set(WEIGHTS) - {file.name for file in tree.files}):
        if not (tree.root / name).is_file():
            yield problem(
                f"{name} is missing: `python my_submission/to_torchscript.py runs/<name>` writes it"
            )
        elif tree.ask("check-ignore", "--quiet", name) is not None:
            yield problem(f"{name} is ignored by git: take it out of .gitignore and commit it")
        else:
            yield problem(f"{name} is not committed: `git add my_submission/weights` and commit")


def check_aicrowd_json(tree: SubmissionTree) -> Iterator[Finding]:
    """The fields that the client and the evaluator read, and the GPU against the model."""
    path = tree.root / "aicrowd.json"
    try:
        values = read_json(path)
    except FileNotFoundError:
        yield problem("aicrowd.json does not exist: the client refuses a submission without it")
        return
    except ValueError as error:
        yield problem(f"aicrowd.json is not valid JSON ({error}): mend it")
        return
    if not isinstance(values, dict):
        yield problem("aicrowd.json is not an object of names and values")
        return
    yield from _wrong_fields(values)
    size = sum(file.size for file in tree.files if file.name == WEIGHTS[0])
    if size > HEAVY_WEIGHTS and values.get("gpu") is False:
        yield problem(
            f'aicrowd.json: gpu is false and the model has {size / 1e6:.0f} MB: set "gpu": true, '
            "a CPU would not finish in ten minutes"
        )


def _wrong_fields(values: dict[str, Any]) -> Iterator[Finding]:
    for name, kind in CLIENT_FIELDS.items():
        if name not in values:
            yield problem(f"aicrowd.json has no {name}: add it ({kind.__name__})")
        elif not isinstance(values[name], kind):
            yield problem(
                f"aicrowd.json: {name} is {json.dumps(values[name])}, it must be a {kind.__name__}"
            )
    authors = values.get("authors")
    if isinstance(authors, list) and (
        not authors
        or not all(isinstance(name, str) and name.strip() for name in authors)
        or PLACEHOLDER_AUTHOR in authors
    ):
        yield problem("aicrowd.json: authors must list your AIcrowd user name")
    for name in ("challenge_id", "grader_id"):
        if isinstance(values.get(name), str) and values[name] != CHALLENGE:
            yield problem(f"aicrowd.json: {name} is {values[name]!r}, the challenge is {CHALLENGE}")


def check_requirements(tree: SubmissionTree) -> Iterator[Finding]:
    """What requirements.txt asks for is here, and brings what the exported model is built by."""
    if sets_up_itself(tree.root):
        yield note("a Dockerfile sets up the evaluator: requirements.txt and apt.txt may be unread")
    packages: Sequence[str] = ()
    try:
        brought, missing = installed_for(read_requirements(tree.root / "requirements.txt"))
        if (tree.root / WEIGHTS[1]).is_file():
            architecture, facts = read_description(tree.root / WEIGHTS[1])
            packages = facts.get("packages") or architecture.packages
    except UserError as error:
        yield problem(str(error).replace(f"{tree.root}/", ""))
        return
    for package in packages:
        if package.lower().replace("_", "-") not in brought:
            yield problem(
                f"requirements.txt lacks {package}, of which the model is: add it, or the slow "
                "traced module runs in its place"
            )
    if missing:
        yield problem(
            f"requirements.txt asks for {', '.join(missing)}, which is not what is installed "
            "here: install it, or what runs there was never tried"
        )


def check_apt(tree: SubmissionTree) -> Iterator[Finding]:
    """Whether apt.txt, where there is one, names packages of Debian."""
    path = tree.root / "apt.txt"
    if not path.is_file():
        return
    text = path.read_bytes().decode("utf-8", "replace")
    if "\r" in text:
        yield problem("apt.txt has Windows line ends, which become part of the names: save with LF")
        return
    for name in [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]:
        # Debian policy, section 5.6.1, with an architecture or a version behind it.
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=\S+)?", name):
            yield problem(f"apt.txt: {name!r} is not the name of a Debian package, one a line")


def check_names_and_syntax(tree: SubmissionTree, python: tuple[int, int]) -> Iterator[Finding]:
    """File names that differ in case alone, and Python that an older Python cannot read."""
    by_folded = defaultdict(list)
    for file in tree.files:
        by_folded[file.name.casefold()].append(file.name)
    for names in by_folded.values():
        if len(names) > 1:
            yield problem(f"{' and '.join(names)} differ in case alone: rename one")
    for file in tree.files:
        if not file.name.endswith(".py") or not (tree.root / file.name).is_file():
            continue
        try:
            ast.parse((tree.root / file.name).read_bytes(), feature_version=python)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            yield problem(
                f"{file.name}{f' line {line}' if line else ''}: no Python "
                f"{python[0]}.{python[1]} ({getattr(error, 'msg', error)})"
            )


def check_remote(tree: SubmissionTree) -> Iterator[Finding]:
    """The remote that the client pushes to, and what it reads from git's configuration."""
    host = os.getenv("AICROWD_GITLAB_HOST", CLIENT_HOST)
    remotes = (tree.ask("remote") or "").split()
    if "aicrowd" not in remotes:
        yield problem(
            f"there is no git remote named aicrowd: `git remote add aicrowd "
            f"git@{host}:<user>/<repository>.git`"
        )
    else:
        address = without_credentials(tree.ask("remote", "get-url", "aicrowd") or "")
        if host not in address:
            yield problem(
                f"the remote aicrowd is {address}: the client fails on an address without {host}"
            )
        yield from _check_push(tree)
    for key in ("challenge-id", "challenge-slug"):
        if tree.ask("config", f"aicrowd-cli.{key}") is None:
            example = CHALLENGE if key == "challenge-slug" else "<number>"
            yield problem(
                f"git's configuration has no aicrowd-cli.{key}, without which the client does not "
                f"know the challenge: `git config aicrowd-cli.{key} {example}`, or copy what "
                "`aicrowd challenge init` writes into a folder of its own"
            )


def _check_push(tree: SubmissionTree) -> Iterator[Finding]:
    """Whether a bare `git push aicrowd` works: the client runs it after it made the tag."""
    command = ("push", "--dry-run", "--porcelain", "--no-verify", "--", "aicrowd")
    try:
        tree.git(*command, timeout=REMOTE_SECONDS)
    except subprocess.TimeoutExpired:
        yield note("the remote aicrowd did not answer in time")
        return
    except subprocess.CalledProcessError as error:
        said = without_credentials(str(error.stdout + error.stderr).strip())
    else:
        return
    if "has no upstream branch" in said:
        branch = tree.ask("symbolic-ref", "--short", "HEAD")
        yield problem(
            f"the branch {branch} has no upstream, and the client fails on it after it made the "
            f"tag: `git push --set-upstream aicrowd {branch}`, or "
            "`git config push.autoSetupRemote true`"
        )
    elif "not currently on a branch" in said:
        yield problem("no branch is checked out, and the client pushes one: `git switch <branch>`")
    elif "[rejected]" in said:
        yield problem("the remote has commits that are not here: `git pull --rebase aicrowd` first")
    else:
        yield note(f"the remote aicrowd could not be asked ({said.splitlines()[-1]})")


def check_tag(tree: SubmissionTree, tag: str) -> Iterator[Finding]:
    """Whether the tag that `aicrowd submission create -t TAG` makes can be made and pushed."""
    name = tag if tag.startswith("submission-") else f"submission-{tag}"
    if tree.ask("check-ref-format", f"refs/tags/{name}") is None:
        yield problem(f"{tag!r} cannot be a tag: take letters, digits, dots and dashes, such as v1")
        return
    if tree.ask("rev-parse", "--verify", "--quiet", f"refs/tags/{name}") is not None:
        yield problem(f"the tag {name} exists already: take another than {tag!r}")
        return
    listed = tree.ask("ls-remote", "--tags", "aicrowd", f"refs/tags/{name}", timeout=REMOTE_SECONDS)
    if listed:
        yield problem(f"the tag {name} exists already on the remote: take another than {tag!r}")
    elif listed is None:
        yield note(f"the tag {name} is free here; the remote could not be asked")


def check_size(tree: SubmissionTree) -> Iterator[Finding]:
    """How much a push carries."""
    counted = tree.git("count-objects", "-v")
    kilobytes = sum(int(n) for n in re.findall(r"^size(?:-pack)?: (\d+)$", counted, re.MULTILINE))
    large = sum(file.size for file in tree.files if file.oid)
    text = f"the repository has {kilobytes / 1e3:.1f} MB in git, {large / 1e6:.1f} MB in git-LFS"
    if kilobytes * 1e3 > LARGE_REPOSITORY:
        yield problem(f"{text}: large files were committed once; start from a clean history")


def trial(project: Path, *, clean: bool = False, allow_fallback: bool = False) -> Iterator[Finding]:
    """Run the last commit as the evaluator would, on a few drawn images.

    Args:
        project: anywhere in the repository.
        clean: in a new environment with requirements.txt alone, which takes minutes.
        allow_fallback: pass a ranker that says that something runs the slow way.
    """
    # Not in the repository: the client commits whatever lies there.
    handle, name = tempfile.mkstemp(prefix="preflight_", suffix=".txt")
    os.close(handle)
    log, limits = Path(name), Limits(TRIAL_SECONDS)
    try:
        with staged(project, limits, log, allow_fallback=allow_fallback) as stage:
            if clean:
                stage.python = _make_environment(stage.checkout, stage.folder / "environment")
                stage.hidden = {}
            outcome = stage.answer(draw_data(stage.folder / "drawn", TRIAL_COUNTS)).outcome
    except UserError as failure:
        yield problem(f"a trial run of the last commit failed: {failure} (what it printed: {log})")
        return
    log.unlink()
    if written := writes_elsewhere(outcome):
        yield note(written)
    where = "in a clean environment" if clean else "with the packages of requirements.txt alone"
    yield ok(
        f"a trial run of the last commit {where}: {TRIAL_COUNTS.total} images in "
        f"{outcome.seconds:.1f} s, no network, no write into the data folder"
    )


def _make_environment(checkout: Path, folder: Path) -> str:
    """A virtual environment with requirements.txt alone; returns its Python."""
    python, wanted = str(folder / "bin" / "python"), str(checkout / "requirements.txt")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "-r", wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise UserError(f"the clean environment could not be made: {said[-1]}")
    return python
