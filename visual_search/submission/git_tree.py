"""What git would push: the files of a commit, or of the working tree, laid out in a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from visual_search.common.errors import UserError
from visual_search.common.files import LFS_POINTER

# Git-LFS's own bound: a longer file is never a pointer.
POINTER_BYTES = 1024
# A hook or an alias names its repository in these to the commands it runs.
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


class TreeFile(NamedTuple):
    """One file that would be pushed."""

    name: str
    """Relative to the repository's root, with `/`."""
    size: int
    """Bytes; those of the large file where git stores a pointer to it."""
    oid: str | None = None
    """SHA-256 of the large file, as hex digits, where git stores a git-LFS pointer."""


def _tree_file(name: str, size: int, text: str) -> TreeFile:
    """A file as git stores it; `text` where it may be a pointer, in the format of `spec/v1`."""
    if text.startswith(LFS_POINTER.decode()):
        oid = re.search(r"^oid sha256:([0-9a-f]{64})$", text, re.MULTILINE)
        large = re.search(r"^size (\d+)$", text, re.MULTILINE)
        if oid and large:
            return TreeFile(name, int(large[1]), oid[1])
    return TreeFile(name, size)


class SubmissionTree:
    """A repository, seen as what a push of it would carry. Nothing in it is ever changed."""

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
        self.root, self.working_tree = folder, working_tree
        try:
            self.root = Path(self.git("rev-parse", "--show-toplevel").strip())
        except subprocess.CalledProcessError as error:
            if "dubious ownership" in error.stderr:
                raise UserError(f"git: {error.stderr.strip().splitlines()[0]}") from None
            raise UserError(
                f"{folder.resolve()} is in no git repository, and a submission is pushed by git: "
                "run `git init` and commit your files"
            ) from None
        if not working_tree and self.ask("rev-parse", "--verify", "--quiet", "HEAD") is None:
            raise UserError(f"nothing is committed in {self.root} yet: run `git commit`")

    def git(
        self, *arguments: str, stdin: str = "", timeout: float | None = None, **environment: str
    ) -> str:
        """What a git command prints.

        Raises:
            subprocess.CalledProcessError: when it fails.
            subprocess.TimeoutExpired: when it takes longer than `timeout` seconds.
        """
        # A push or ls-remote that would ask for a password fails instead; `git status` does not
        # refresh the index; messages are in English.
        fixed = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8"}
        inherited = {k: v for k, v in os.environ.items() if k not in OTHER_REPOSITORY}
        return subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=True,
            timeout=timeout,
            env={**inherited, **fixed, **environment},
        ).stdout

    def ask(self, *arguments: str, timeout: float | None = None) -> str | None:
        """What a git command prints, None where it fails or takes longer than `timeout` seconds."""
        try:
            return self.git(*arguments, timeout=timeout).strip()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None

    @cached_property
    def files(self) -> list[TreeFile]:
        """Every file that would be pushed, by name."""
        found = self._files_on_disk() if self.working_tree else self._files_of_head()
        return sorted(found, key=lambda file: file.name)

    def _files_on_disk(self) -> Iterator[TreeFile]:
        listed = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in set(filter(None, listed.split("\0"))):
            path = self.root / name
            if path.is_symlink():
                yield TreeFile(name, len(os.readlink(path)))
            elif path.is_file():
                size = path.stat().st_size
                text = path.read_text("utf-8", "replace") if size < POINTER_BYTES else ""
                yield _tree_file(name, size, text)

    def _files_of_head(self) -> Iterator[TreeFile]:
        sizes = {}
        for entry in filter(None, self.git("ls-tree", "-r", "-l", "-z", "HEAD").split("\0")):
            facts, name = entry.split("\t", 1)
            _, kind, _, n_bytes = facts.split()
            if kind == "blob":
                sizes[name] = int(n_bytes)
        # Only a small file that .gitattributes gives to LFS can be a pointer.
        small = [name for name in self.given_to_lfs(list(sizes)) if sizes[name] < POINTER_BYTES]
        texts = {name: self.git("cat-file", "blob", f"HEAD:{name}") for name in small}
        for name, size in sizes.items():
            yield _tree_file(name, size, texts.get(name, ""))

    def given_to_lfs(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that .gitattributes sends through git-LFS."""
        asked = self.git("check-attr", "-z", "--stdin", "filter", stdin="\0".join([*names, ""]))
        fields = asked.split("\0")
        return [n for n, value in zip(fields[::3], fields[2::3], strict=False) if value == "lfs"]

    def large_file(self, file: TreeFile) -> Path | None:
        """Where git-LFS keeps the file that a pointer stands for; None where it is not here."""
        if file.oid is None:
            return None
        common = Path(self.git("rev-parse", "--git-common-dir").strip())
        storage = self.root / common / (self.ask("config", "lfs.storage") or "lfs")
        path = storage / "objects" / file.oid[:2] / file.oid[2:4] / file.oid
        return path if path.is_file() and path.stat().st_size == file.size else None

    def missing_files(self) -> list[str]:
        """Pointers to a large file which is not on this machine, so that no push can carry it."""
        return [f.name for f in self.files if f.oid and self.large_file(f) is None]

    def changes(self) -> dict[str, str]:
        """What is on disk and not in the last commit, less what git ignores.

        Returns:
            Names, and of each whether it is `changed`, `new` or `deleted`.
        """
        options = ("--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
        found = {}
        for entry in filter(None, self.git("status", *options).split("\0")):
            state, name = entry[:2], entry[3:]
            kind = "new" if state == "??" or "A" in state else "changed"
            found[name] = "deleted" if "D" in state else kind
        return found

    def described_changes(self) -> str:
        """The first few of :meth:`changes`, in words; empty where there are none."""
        changes = self.changes()
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(changes.items())[:5])
        return shown + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")

    def lay_out(self, folder: Path) -> None:
        """Write the files that would be pushed into the empty folder `folder`.

        Git checks out into an index of its own: unlike a worktree, that leaves no entry in the
        repository, runs no hook, and needs no clearing up. Large files come out of git-LFS's
        store on this machine, and never from a server; a pointer whose file is not there stays a
        pointer. Git's own LFS filter is left out, so git-LFS need not be installed.

        Raises:
            UserError: when the disk is full or a file cannot be read.
        """
        off = ("filter.lfs.smudge=", "filter.lfs.process=", "filter.lfs.required=false")
        options = [part for setting in off for part in ("-c", setting)]
        index = folder.with_name(f"{folder.name}.index")
        try:
            if not self.working_tree:
                self.git("read-tree", "HEAD", GIT_INDEX_FILE=str(index))
                checkout = ("checkout-index", "--all", "--quiet", f"--prefix={folder}/")
                self.git(*options, *checkout, GIT_INDEX_FILE=str(index))
                index.unlink()
            for file in self.files:
                target, source = folder / file.name, self.large_file(file)
                if source is None and self.working_tree:
                    source = self.root / file.name
                if source is not None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target, follow_symlinks=False)
        except OSError as error:
            raise UserError(f"the submission could not be laid out in {folder}: {error}") from error
