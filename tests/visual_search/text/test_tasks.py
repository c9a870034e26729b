"""Tasks between texts and images: what their files may not say; test_main_clip runs them."""

from pathlib import Path

import pytest

from tests.commands import refused
from visual_search.evaluation.tasks import read_task


@pytest.mark.parametrize("line", ["distractors: true", "select: x", "query_domain: (x)"])
def test_what_is_of_images_alone_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "task.yml"
    path.write_text(f"texts: {{pairs: a.parquet}}\n{line}\n")
    refused(r"task\.yml: \w+ is of images' tables", read_task, path)
