"""The ranker as it is submitted, and small submissions in git repositories of their own."""

import json
import shutil
from pathlib import Path

from my_submission.user_config import My_Ranker
from tests.commands import ran
from tests.conftest import PROJECT

AICROWD_JSON: dict[str, object] = {
    "challenge_id": "visual-product-recognition-challenge-2023",
    "grader_id": "visual-product-recognition-challenge-2023",
    "authors": ["somebody"],
    "gpu": False,
    "description": "a test",
}

# A ranker that needs numpy alone; `{body}` stands where it would rank.
RANKER = """
import csv
import os
import numpy as np
{top}

class My_Ranker:
    def __init__(self, dataset_path, gallery_csv_path, queries_csv_path):
        self.max_predictions = 1000
        self.folder = dataset_path
        self.gallery = list(csv.DictReader(open(gallery_csv_path)))
        self.queries = list(csv.DictReader(open(queries_csv_path)))

    def raise_aicrowd_error(self, msg):
        raise NameError(msg)

    def answer(self):
        return np.tile(np.arange(1000), (len(self.queries), 1))

    def predict_product_ranks(self):
        {body}
"""

# The line of user_config.py on which the body begins.
BODY_LINE = RANKER.replace("{top}", "").partition("{body}")[0].count("\n") + 1


def my_ranker(folder: Path) -> My_Ranker:
    """The kit's ranker, built as the evaluator does, on the data in `folder`."""
    return My_Ranker(str(folder), str(folder / "gallery.csv"), str(folder / "queries.csv"))


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = ran("git", *named, *arguments, cwd=folder)
    done.check_returncode()
    return done.stdout


def ranker(body: str = "return self.answer()", top: str = "") -> str:
    indented = body.strip().replace("\n", "\n        ")
    return RANKER.replace("{body}", indented).replace("{top}", top)


def make_submission(folder: Path, code: str | None = None) -> Path:
    """A committed submission whose ranker is `code`."""
    (folder / "my_submission").mkdir(parents=True)
    shutil.copy(PROJECT / "my_submission" / "aicrowd_wrapper.py", folder / "my_submission")
    (folder / "my_submission" / "__init__.py").touch()
    (folder / "my_submission" / "user_config.py").write_text(code or ranker())
    (folder / "requirements.txt").write_text("numpy\n")
    (folder / "apt.txt").touch()
    shutil.copy(PROJECT / ".gitattributes", folder)
    (folder / "aicrowd.json").write_text(json.dumps(AICROWD_JSON))
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "--allow-empty", "-m", "A submission")
