"""Whatever stands where a file of the user's should: every reader says so, and none waits."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataset.archives import unpack
from dataset.dataset_creation_steps.snapshots import row_count
from dataset.image_text.query_lines import read_images
from dataset.sources.base import split_lines
from dataset.sources.json_lists import read_json
from dataset.unpack import unpack_parts
from tests.commands import inside
from visual_search.common.files import read_lines, read_yaml
from visual_search.config import BackboneConfig
from visual_search.config_reader import read_part
from visual_search.data.tables import read_table
from visual_search.evaluation.leaderboard import read_submissions
from visual_search.evaluation.tasks import read_task
from visual_search.model.checkpoint import load_checkpoint, read_description
from visual_search.phase_chain import read_chain
from visual_search.serve.gallery import read_products
from visual_search.submission.requirements import read_requirements
from visual_search.text.pairs import open_pairs
from visual_search.text.pretrained_towers import byte_pairs
from visual_search.tuning import read_search_space

READERS: dict[str, Callable[[Path], object]] = {
    "config.yml": lambda path: read_yaml(path, "the config"),
    "backbone.yml": lambda path: read_part(path, BackboneConfig),
    "chain.yml": read_chain,
    "space.yml": read_search_space,
    "task.yml": read_task,
    "model.json": read_description,
    "model.safetensors": load_checkpoint,
    "annotations.json": lambda path: read_json(path, dict),
    "lines.txt": lambda path: list(split_lines(path, 2)),
    "table.csv": lambda path: read_table(path, ["a"]),
    "submissions.csv": lambda path: read_submissions(path, path.parent),
    "products.csv": read_products,
    "products.jsonl": read_products,
    "pairs.parquet": open_pairs,
    "rows.parquet": lambda path: row_count(path, []),
    "images.jsonl": lambda path: read_images(path, Counter()),
    "archive.tar": lambda path: unpack(path, path.parent / "out"),
    "archive.partaa": lambda path: unpack_parts(path, path.parent / "out"),
    "names.txt": read_lines,
    "bpe.model": byte_pairs,
    "requirements.txt": read_requirements,
}


FIELDS = ("lines.txt", "no date")


INSTEAD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a circle": lambda path: path.symlink_to(path),
    "noise": lambda path: path.write_bytes(bytes(range(255, 127, -1)) * 9),
    "depths": lambda path: path.write_text("[" * 1_000),
    "no date": lambda path: path.write_text("a: 2020-13-45"),
    "secret": lambda path: path.touch(0o000),
}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Where root runs the tests, whom no permission keeps from reading: as somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def waited(*_: object) -> None:
    raise AssertionError("it waits for the file")


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_readable_file_is_one_sentence(name: str, instead: str, tmp_path: Path) -> None:
    if (name == "names.txt" and instead in ("depths", "no date")) or (name, instead) == FIELDS:
        pytest.skip("that is what it reads")
    path = tmp_path / name
    INSTEAD[instead](path)

    def main() -> None:
        READERS[name](path)

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(5)
    try:
        if instead == "secret":
            with as_nobody():
                done = inside(main)
        else:
            done = inside(main)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = [line for line in done.stderr.splitlines() if line and "%|" not in line]
    assert done.returncode == 2, said
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert str(tmp_path) in said[0] or name.partition(".")[0] in said[0]
