"""Work that is killed again and again, at any moment, ends as the same work left alone.

The review pairs, whose engine wants a server, have theirs in `test_five_commands.py`.
"""

import hashlib
import importlib
import json
import random
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import draw_product
from tests.warm import PythonProcess

# The processes that are forked from this one have them then.
for name in ("dataset.folder_info", "dataset.unpack", "visual_search.data.duplicates", "imagehash"):
    importlib.import_module(name)

Facts = dict[str, object]
"""What a job leaves: of each file its digest, or what of it is the same in every run."""


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder, and goes on where it was when it is called again."""

    words: Callable[[Path], tuple[object, ...]]
    """The command line that writes into so-and-so."""
    trains: bool = False

    def start(self, folder: Path) -> PythonProcess:
        folder.mkdir(exist_ok=True)
        environment = {"OMP_NUM_THREADS": "1"}
        return PythonProcess(
            *self.words(folder),
            out=folder.with_suffix(".log"),
            environment=environment,
            from_here=not self.trains,
        )

    def result(self, folder: Path) -> Facts:
        status, said = self.start(folder).wait(), folder.with_suffix(".log").read_text()
        assert status == 0 or "already holds a finished run" in said, said
        return {
            str(path.relative_to(folder)): same_in_every_run(path, folder)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix != ".lock"
        }


CHANGING = {"environment.json", "training.png", "phases.md", "phases.json", "report.html"}
"""Files that tell of seconds and dates: they have to be there."""


def same_in_every_run(path: Path, folder: Path) -> object:
    if path.name in CHANGING:
        return "there"
    if path.name == "metrics.jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return [line for line in lines if line["kind"] != "epoch"]
    if path.name in ("result.json", "model.json"):
        return json.loads(path.read_text()).get("mAP")
    named_alike = path.read_bytes().replace(bytes(folder), b"runs")
    return hashlib.sha256(named_alike).hexdigest()


def class_folders(root: Path) -> Path:
    """Sixty images of three classes, one of them broken."""
    for number in range(60):
        path = root / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_product(number, 0).save(path)
    path.write_bytes(b"broken")
    return root


def table(tmp_path: Path, _: dict[str, Any]) -> Job:
    images = class_folders(tmp_path / "images")
    command = ("dataset/generate_dataset_info.py", "--hashes", "--workers", 1)
    words = (*command, "--dataset_path", images, "--save_path")
    return Job(lambda folder: (*words, folder))


def unpacking(tmp_path: Path, _: dict[str, Any]) -> Job:
    images = class_folders(tmp_path / "images")
    with tarfile.open(tmp_path / "a.partaa", "w") as archive:
        for copy in range(8):
            archive.add(images, f"images/{copy}")
    words = ("dataset/unpack.py", tmp_path / "a", "--output")
    return Job(lambda folder: (*words, folder))


def training(tmp_path: Path, small_phase: dict[str, Any]) -> Job:
    small_phase["train"] = {"epochs": 3, "save_steps": 1, "log_steps": 1, "soup_last": 2}
    config = tmp_path / "phase.yml"
    config.write_text(yaml.safe_dump(small_phase))
    words = ("-m", "visual_search.main_arcface", "--config", config, "--name", "a", "--runs")
    return Job(lambda folder: (*words, folder), trains=True)


def chain(tmp_path: Path, small_phase: dict[str, Any]) -> Job:
    training(tmp_path, small_phase)
    phases = [{"name": name, "config": "phase.yml"} for name in ("one", "two")]
    config = tmp_path / "chain.yml"
    config.write_text(yaml.safe_dump({"name": "x", "phases": phases}))
    words = ("-m", "visual_search.main_phases", "--config", config, "--runs")
    return Job(lambda folder: (*words, folder), trains=True)


def soak(job: Job, tmp_path: Path, kills: int) -> None:
    """Do the work anew until it was killed so often, and compare each end with an undisturbed one.

    A kill comes within the time that the whole work takes: in the start, the work, or at the end.
    """
    chance = random.Random(kills)
    for calm in ("first", "second")[: 1 + job.trains]:  # the first waits for a server to start
        began = time.monotonic()
        expected = job.result(tmp_path / calm)
        whole = time.monotonic() - began
    killed = rounds = 0
    while killed < kills:
        folder, rounds = tmp_path / f"killed_{rounds}", rounds + 1
        for _ in range(min(kills, 5)):
            process = job.start(folder)
            time.sleep(chance.uniform(0.2, 1) * whole)
            process.kill()
            if process.wait() == -signal.SIGKILL:
                killed += 1
            else:  # the machine was busier when the whole was timed
                whole *= 0.8
        assert job.result(folder) == expected
        assert rounds <= kills, "the work ends before it can be killed"


@pytest.mark.slow
@pytest.mark.parametrize("work", [table, unpacking, training, chain])
def test_killed_again_and_again(
    work: Callable[[Path, dict[str, Any]], Job], tmp_path: Path, small_phase: dict[str, Any]
) -> None:
    soak(work(tmp_path, small_phase), tmp_path, 20)
