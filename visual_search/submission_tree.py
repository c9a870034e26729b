"""What git would push: the files of a commit, or of the working tree, laid out in a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visual_search.errors import UserError
from visual_search.files import LFS_POINTER

# Git-LFS's own bound: a longer file is never a pointer.
POINTER_BYTES = 1024

# A hook or an alias names its repository in these to the commands it runs.
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


@dataclass(frozen=True)
class Pointer:
    """A git-LFS pointer: what stands in the commit in place of a large file."""

    oid: str
    """SHA-256 of the large file, as hex digits."""
    size: int
    """Bytes of the large file."""


@dataclass(frozen=True)
class TreeFile:
    """One file that would be pushed."""

    name: str
    """Relative to the repository's root, with `/`."""
    size: int
    """Bytes as git stores it: those of the pointer where it is one."""
    pointer: Pointer | None


@dataclass(frozen=True)
class Change:
    """A file whose state on disk is not that of the last commit."""

    name: str
    kind: str
    """`changed`, `new` or `deleted`."""


def read_pointer(data: bytes) -> Pointer | None:
    """The pointer that `data` is, or None. The format is git-LFS's `spec/v1`."""
    if len(data) >= POINTER_BYTES or not data.startswith(LFS_POINTER):
        return None
    text = data.decode("utf-8", "replace")
    oid = re.search(r"^oid sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    size = re.search(r"^size (\d+)$", text, re.MULTILINE)
    return Pointer(oid[1], int(size[1])) if oid and size else None


class SubmissionTree:
    """A repository, seen as what a push of it would carry."""

    def __init__(self, folder: Path, working_tree: bool = False) -> None:
        """
        Args:
            folder: anywhere in the repository.
            working_tree: take the files on disk that git does not ignore, which is what
                `aicrowd submission create` commits, in place of the last commit.

        Raises:
            UserError: when git is not installed, `folder` is in no repository, or nothing was
                committed yet.
        """
        if shutil.which("git") is None:
            raise UserError("git is not installed, and a submission is pushed by git: install it")
        try:
            self.root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        except subprocess.CalledProcessError as error:
            if "dubious ownership" in error.stderr:
                raise UserError(f"git: {error.stderr.strip().splitlines()[0]}") from None
            raise UserError(
                f"{folder.resolve()} is in no git repository, and a submission is pushed by git: "
                "run `git init` and commit your files"
            ) from None
        self.working_tree = working_tree
        if not working_tree and self.ask("rev-parse", "--verify", "--quiet", "HEAD") is None:
            raise UserError(f"nothing is committed in {self.root} yet: run `git commit`")

    def git(self, *arguments: str, stdin: str | None = None) -> str:
        """What a git command prints.

        Raises:
            subprocess.CalledProcessError: when it fails.
        """
        return _git(self.root, *arguments, stdin=stdin)

    def ask(self, *arguments: str, timeout: float | None = None) -> str | None:
        """What a git command prints, None where it fails or takes longer than `timeout` seconds."""
        try:
            return _git(self.root, *arguments, timeout=timeout).strip()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None

    def refusal(self, *arguments: str, timeout: float) -> str | None:
        """What a git command says when it fails, None where it does not.

        Raises:
            subprocess.TimeoutExpired: when it takes longer than `timeout` seconds.
        """
        try:
            _git(self.root, *arguments, timeout=timeout)
        except subprocess.CalledProcessError as error:
            return str(error.stdout + error.stderr).strip()
        return None

    def files(self) -> list[TreeFile]:
        """Every file that would be pushed, by name."""
        return self._files_on_disk() if self.working_tree else self._files_of_head()

    def _files_on_disk(self) -> list[TreeFile]:
        listed = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        found = []
        for name in sorted(set(filter(None, listed.split("\0")))):
            path = self.root / name
            if path.is_symlink():
                found.append(TreeFile(name, len(os.readlink(path)), None))
            elif path.is_file():
                found.append(TreeFile(name, path.stat().st_size, _pointer_in(path)))
        return found

    def _files_of_head(self) -> list[TreeFile]:
        sizes: dict[str, int] = {}
        for entry in filter(None, self.git("ls-tree", "-r", "-l", "-z", "HEAD").split("\0")):
            facts, name = entry.split("\t", 1)
            _, kind, _, size = facts.split()
            if kind == "blob":
                sizes[name] = int(size)
        # Only a small file that .gitattributes gives to LFS can be a pointer.
        small = [name for name in self.given_to_lfs(list(sizes)) if sizes[name] < POINTER_BYTES]
        pointers = {
            name: read_pointer(self.git("cat-file", "blob", f"HEAD:{name}").encode())
            for name in small
        }
        return [TreeFile(name, size, pointers.get(name)) for name, size in sorted(sizes.items())]

    def given_to_lfs(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that .gitattributes sends through git-LFS."""
        if not names:
            return []
        asked = self.git("check-attr", "-z", "--stdin", "filter", stdin="\0".join(names) + "\0")
        fields = asked.split("\0")
        return [
            name for name, value in zip(fields[::3], fields[2::3], strict=False) if value == "lfs"
        ]

    def object_path(self, pointer: Pointer) -> Path:
        """Where git-LFS keeps the large file on this machine, whether it is there or not."""
        common = Path(self.git("rev-parse", "--git-common-dir").strip())
        storage = self.root / common / (self.ask("config", "lfs.storage") or "lfs")
        return storage / "objects" / pointer.oid[:2] / pointer.oid[2:4] / pointer.oid

    def has_object(self, pointer: Pointer) -> bool:
        """Whether the large file is here, in full, so that a push can carry it."""
        path = self.object_path(pointer)
        return path.is_file() and path.stat().st_size == pointer.size

    def missing_objects(self) -> list[str]:
        """Files that are pointers to a large file which is not on this machine."""
        return [
            file.name
            for file in self.files()
            if file.pointer is not None and not self.has_object(file.pointer)
        ]

    def changes(self) -> list[Change]:
        """What is on disk and not in the last commit; ignored files are not counted."""
        listed = self.git(
            *("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
        )
        found = []
        for entry in filter(None, listed.split("\0")):
            state, name = entry[:2], entry[3:]
            kind = "new" if state == "??" or "A" in state else "changed"
            found.append(Change(name, "deleted" if "D" in state else kind))
        return found

    def lay_out(self, folder: Path) -> None:
        """Write the files that would be pushed into the empty folder `folder`.

        Large files come out of git-LFS's store on this machine, and never from a server; a
        pointer whose large file is not there stays a pointer. Git's own LFS filter is left out,
        so the outcome does not depend on whether it is installed.

        Raises:
            UserError: when the disk is full or a file cannot be read.
        """
        try:
            if self.working_tree:
                self._copy_from_disk(folder)
            else:
                self._check_out_head(folder)
            for file in self.files():
                if file.pointer is not None and self.has_object(file.pointer):
                    shutil.copyfile(self.object_path(file.pointer), folder / file.name)
        except OSError as error:
            raise UserError(f"the submission could not be laid out in {folder}: {error}") from error

    def _copy_from_disk(self, folder: Path) -> None:
        for file in self.files():
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / file.name, target, follow_symlinks=False)

    def _check_out_head(self, folder: Path) -> None:
        index = folder.with_name(f"{folder.name}.index")
        environment = {"GIT_INDEX_FILE": str(index)}
        no_filter = ("filter.lfs.smudge=", "filter.lfs.process=", "filter.lfs.required=false")
        options = [part for setting in no_filter for part in ("-c", setting)]
        for arguments in (
            ["read-tree", "HEAD"],
            [*options, "checkout-index", "--all", "--quiet", f"--prefix={folder}/"],
        ):
            _git(self.root, *arguments, environment=environment)
        index.unlink()


def _pointer_in(path: Path) -> Pointer | None:
    if path.stat().st_size >= POINTER_BYTES:
        return None
    return read_pointer(path.read_bytes())


def _git(
    folder: Path,
    *arguments: str,
    stdin: str | None = None,
    timeout: float | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    # A push or ls-remote that would ask for a password fails instead; messages are in English.
    fixed = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=True,
        timeout=timeout,
        env={**inherited, **fixed, **(environment or {})},
    ).stdout
