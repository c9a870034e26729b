"""What README and docs tell people to type exists, with these options; links lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import inside
from tests.conftest import PROJECT
from visual_search.main_arcface import main as main_arcface
from visual_search.main_clip import main as main_clip

PAGES = sorted(
    page.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "dataset/**/*.md", "benchmarks/*.md")
    for page in PROJECT.glob(pattern)
)
# Pages that tell what was, not what to type.
HISTORY = {"CHANGELOG.md", "benchmarks/RESULTS.md", "dataset/demo/ATTRIBUTION.md"}


def commands(page: str) -> list[list[str]]:
    """The words of each `python …` line in the fenced blocks of a page."""
    text = (PROJECT / page).read_text("utf-8")
    found = []
    for block in re.findall(r"^ *```(?:bash|sh)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            typed = re.match(r"\s*(?:[A-Z_]+=\S* )*python (?!-c)(.*)", line)
            if typed:
                found.append(shlex.split(typed[1].replace("…", "X"), comments=True))
    return found


CASES = [
    pytest.param(page, words, id=f"{page}: {' '.join(words)[:90]}")
    for page in PAGES
    if page not in HISTORY
    for words in commands(page)
]

TRAINED = {command.__module__: command for command in (main_arcface, main_clip)}


@functools.cache
def help_of(entry: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, *entry, "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"python {' '.join(entry)} --help: {done.stderr[-500:]}"
    return done.stdout


@pytest.mark.parametrize(("page", "words"), CASES)
def test_a_command_of_the_docs_exists_with_its_options(page: str, words: list[str]) -> None:
    folder = Path()
    if words[0].endswith(".py") and not (PROJECT / words[0]).exists():
        folder = Path("dataset/dataset_creation_steps")  # where some of them are typed
    entry = ("-m", words[1]) if words[0] == "-m" else ((folder / words[0]).as_posix(),)
    rest = words[len(entry) :]
    if entry == ("-m", "pytest"):
        return
    text = help_of(entry)
    named = rf"(^    |[{{,]){re.escape(rest[0])}([ ,}}]|$)" if rest else "$^"
    if re.search(named, text, re.MULTILINE):  # a sub-command
        text, rest = help_of((*entry, rest[0])), rest[1:]
    for word in rest:
        if word.startswith("--") and word != "--":
            name = word.partition("=")[0]
            assert re.search(rf"{re.escape(name)}(?![\w.-])", text), f"{name} is no option"
        elif re.fullmatch(r"config/[\w/.-]+\.ya?ml", word):
            assert (PROJECT / word).is_file(), f"{word} does not exist"
    if entry[-1] in TRAINED and rest:  # their values are read, too
        done = inside(TRAINED[entry[-1]], *rest, "--print_config")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PROJECT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{page} links to {target}"
        if anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", place.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page} links to {target}"
