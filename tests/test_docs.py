"""What README and docs tell people to type is understood, and run; links lead somewhere.

Every `python …` line is read by its command's own parser. What small made data are enough for is
then run, page by page in the order of its lines (:data:`STORIES`); other tests run the others.
"""

import argparse
import glob
import importlib
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jsonargparse
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.commands import inside, told
from tests.conftest import PROJECT, export_tiny, write_dev_folder
from tests.dataset import layouts
from visual_search.data import image_files, images
from visual_search.serve import guard

PAGES = sorted(
    page.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "dataset/**/*.md", "benchmarks/*.md")
    for page in PROJECT.glob(pattern)
)
# Pages that tell what was, not what to type.
HISTORY = {"CHANGELOG.md", "benchmarks/RESULTS.md", "dataset/demo/ATTRIBUTION.md"}
STEPS = "dataset/dataset_creation_steps"  # where some scripts are typed

TINY = (
    "--backbone.name timm/test_efficientnet --backbone.weights none --backbone.frozen_stages 0 "
    "--backbone.head_conv true --dataset.input_size 32 --dataset.input_size_valid 32 "
    "--dataset.batch_size 6 --dataset.num_workers 0 --train.epochs 1"
)
# Page, command, and the options behind those of the page that make it small.
STORIES: dict[str, dict[str, str]] = {
    "docs/own_images.md": {
        "dataset/generate_dataset_info.py": "",
        "dataset/filter_dataset_info.py": "",
        "dataset/get_train_test_split.py": "",
        "dataset/find_leaks.py": "",
        "-m visual_search.main_arcface": TINY,
        "-m visual_search.main_evaluate": "",
    },
    "dataset/README.md": {
        "dataset/check_table.py": "",
        "dataset/prepare_dataset.py": "",
        "dataset/unpack.py": "",
        "dataset/generate_dataset_info.py": "",
        "dataset/filter_dataset_info.py": "",
        "dataset/find_leaks.py": "",
    },
    "docs/evaluation.md": {"dataset/prepare_real_photos.py": "", "local_evaluation.py": ""},
    "docs/universal.md": {
        "dataset/prepare_dataset.py": "",
        "dataset/downsample_classes.py": "--threshold 0 0",
    },
    "docs/submission.md": {"my_submission/to_torchscript.py": "--output weights --input_size 32"},
}


def lines(page: str) -> list[str]:
    """The lines of the fenced blocks of a page that are typed; continued ones as one."""
    text = (PROJECT / page).read_text("utf-8")
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    typed = "".join(block for kind, block in blocks if kind in ("", "bash", "sh"))
    joined = re.sub(r"\\\n\s*", " ", typed)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def commands(page: str) -> list[list[str]]:
    """The words of each `python …` line of a page."""
    typed = [re.match(r"(?:[A-Z_]+=\S* )*python (?!-c)(.*)", line) for line in lines(page)]
    return [shlex.split(found[1].replace("…", "X"), comments=True) for found in typed if found]


def entry_of(words: list[str]) -> str:
    """The command of some words: a script, or `-m module`."""
    if words[0] == "-m":
        return f"-m {words[1]}"
    return words[0] if (PROJECT / words[0]).exists() else f"{STEPS}/{words[0]}"


def main_of(entry: str) -> Callable[[], None]:
    name = entry.removeprefix("-m ").removesuffix(".py").replace("/", ".")
    return importlib.import_module(name).main


def rest_of(words: list[str]) -> list[str]:
    return words[2:] if words[0] == "-m" else words[1:]


TYPED = {page: commands(page) for page in PAGES if page not in HISTORY}
# Once, wherever it is told again.
CASES = {
    " ".join(words): pytest.param(words, id=f"{page}: {' '.join(words)[:90]}")
    for page, found in TYPED.items()
    for words in found
    if words[:2] != ["-m", "pytest"]
}


class UnderstoodError(Exception):
    """A parser has read what was typed; nothing is to be run."""


@pytest.mark.parametrize("words", CASES.values())
def test_a_command_of_the_docs_is_understood(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        read = parser.parse_args

        def stop(self: object, *given: object, read: object = read, **more: object) -> NoReturn:
            assert callable(read)
            read(self, *given, **more)
            raise UnderstoodError

        monkeypatch.setattr(parser, "parse_args", stop)
    monkeypatch.chdir(PROJECT)
    with pytest.raises(UnderstoodError):
        inside(main_of(entry_of(words)), *rest_of(words))
    for word in words:
        if re.fullmatch(r"config/[\w/.-]+\.ya?ml", word):
            assert Path(word).is_file(), f"{word} does not exist"


def test_every_command_of_the_docs_is_run_by_some_test() -> None:
    files = [path for path in PROJECT.glob("tests/**/*.py") if path != Path(__file__)]
    tests = "".join(path.read_text("utf-8") for path in files)
    run = {entry for commands in STORIES.values() for entry in commands} | {"-m pytest"}
    for page, typed in TYPED.items():
        for entry in {entry_of(words) for words in typed} - run:
            name = entry.removesuffix(".py").replace("/", ".").rpartition(".")[2]
            assert re.search(rf"\b{name}\b", tests), f"{page}: no test runs {entry}"
        for line in lines(page):
            if target := re.match(r"make ([\w-]+)", line):
                made = re.search(rf"^{target[1]}:", (PROJECT / "Makefile").read_text(), re.M)
                assert made, f"{page}: {line}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of, small: images, tables, downloads, a model."""
    tmp_path = tmp_path_factory.mktemp("world")
    dev_folder = write_dev_folder(tmp_path)
    shutil.copytree(PROJECT / "config", tmp_path / "config")
    tiny = "name: timm/test_efficientnet\nweights: none\n"
    (tmp_path / "config/backbone/efficientnet_lite0.yml").write_text(tiny)
    rng = np.random.default_rng(0)
    for number in range(32):
        place = tmp_path / "photos" / f"class {number // 4}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        noise.resize((48, 48), Image.Resampling.BICUBIC).save(place)
    (tmp_path / "TABLE.csv").write_text("file_name,label\nphotos/class 0/0.png,a\n")
    (tmp_path / "dataset").mkdir()
    layouts.grocery_store(tmp_path / "data")
    shutil.copytree(dev_folder, tmp_path / "data/development_test_data")
    for name, folder in (
        ("development_test_data", dev_folder),
        ("gallery", dev_folder / "gallery"),
        ("queries", dev_folder / "queries"),
    ):
        place = tmp_path / ("dataset" if name == dev_folder.name else "") / name
        place.symlink_to(folder)
    for name, table in (("gallery.csv", "gallery.csv"), ("past_queries.csv", "queries.csv")):
        shutil.copy(dev_folder / table, tmp_path / name)
    layouts.cub(tmp_path / "Downloads")
    with tarfile.open(tmp_path / "Downloads/CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "Downloads/CUB_200_2011", "CUB_200_2011")
    with tarfile.open(tmp_path / "dataset/images_mean_50k_800.partaa", "w") as archive:
        archive.add(tmp_path / "photos", "images_mean_50k")
    layouts.inshop(tmp_path / "In-shop")
    layouts.glr_train(tmp_path / "GLDv2", cleaned=False)
    (tmp_path / "dataset/products10k").mkdir()
    shutil.copy(tmp_path / "TABLE.csv", tmp_path / "dataset/products10k/dataset_info.csv")
    export_tiny(tmp_path / "runs/arcface_1st", seed=0)
    for run in ("xbm_3st", "a", "b", "plain", "plain_288"):
        shutil.copytree(tmp_path / "runs/arcface_1st", tmp_path / "runs" / run)
    return tmp_path


@pytest.mark.parametrize("page", STORIES)
def test_the_commands_of_a_page_run_one_after_another(
    world: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("HOME", str(world))
    monkeypatch.setenv("VPR_REAL_DATA", str(world / "data"))
    done = 0
    for words in TYPED[page]:
        entry = entry_of(words)
        if entry not in STORIES[page]:
            continue
        typed = [os.path.expandvars(os.path.expanduser(word)) for word in rest_of(words)]
        typed = [found for word in typed for found in sorted(glob.glob(word)) or [word]]
        told(main_of(entry), *typed, *shlex.split(STORIES[page][entry]))
        done += 1
    assert done >= len(STORIES[page])


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


SERVICE = guard.Limits()


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("bytes of a file", f"{image_files.MAX_FILE_BYTES >> 20} MiB"),
        ("a side", f"{image_files.MAX_SIDE:,} pixels"),
        ("pixels decoded", f"{image_files.MAX_DECODED_PIXELS / 1e6:g} million"),
        ("pixels of a progressive JPEG", f"{image_files.MAX_PROGRESSIVE_PIXELS / 1e6:g} million"),
        ("scans of a progressive JPEG", f"{images.MAX_SCANS}"),
        ("pixels a byte of a JPEG", f"{image_files.MAX_PIXELS_A_BYTE}"),
        ("colour profile or text of a PNG", f"{PngImagePlugin.MAX_TEXT_CHUNK >> 20} MiB"),
        ("seconds of a request", f"{SERVICE.seconds:g}, its upload included"),
        ("requests at a time, queries that wait", f"{SERVICE.at_once} each"),
        ("searches a second of a client", f"{SERVICE.rate:g}, {SERVICE.burst} at once"),
    ],
)
def test_the_limits_that_security_tells_are_those_of_the_code(limit: str, value: str) -> None:
    rows = (PROJECT / "docs/SECURITY.md").read_text("utf-8").splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {limit} |")]
    assert row.split(" | ")[1].startswith(value)
