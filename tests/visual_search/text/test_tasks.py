"""Tasks between texts and images: what their files may not say; test_main_clip runs them."""

from pathlib import Path
from unittest.mock import MagicMock

import pyarrow as pa
import pytest

from tests.commands import refused
from visual_search.data.images import ImageProblem
from visual_search.evaluation.tasks import TaskConfig, TextTaskConfig, read_task
from visual_search.text import tasks
from visual_search.text.pairs import write_pairs


@pytest.mark.parametrize("line", ["distractors: true", "select: x", "query_domain: (x)"])
def test_what_is_of_images_alone_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "task.yml"
    path.write_text(f"texts: {{pairs: a.parquet}}\n{line}\n")
    refused(r"task\.yml: \w+ is of images' tables", read_task, path)


def test_damaged_images_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"image_path": "a.jpg", "image": "a", "queries": ["x"], "texts": ["x"]}
    row |= {"language": ["en"], "group": "1", "category": "", "split": "test"}
    write_pairs(tmp_path / "pairs.parquet", pa.Table.from_pylist([row]))
    config = TaskConfig(texts=TextTaskConfig(str(tmp_path / "pairs.parquet")))
    search = MagicMock(problems=[ImageProblem("a.jpg", "cut off")])
    monkeypatch.setattr(tasks, "load_text_model", MagicMock())
    monkeypatch.setattr(tasks, "TextSearch", lambda *_: search)
    tasks.TextTask.load("t", config).embed(tmp_path, 0, tmp_path)
    assert "a.jpg: cut off" in capsys.readouterr().out
