"""A rehearsal from end to end, as the command runs it, with a ranker of known speed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import local_evaluation
from tests.commands import ran, refused, stopped
from tests.conftest import PROJECT
from tests.submissions import make_submission, ranker
from visual_search.evaluation.metrics import average_precision
from visual_search.ranking.rank import UNUSED
from visual_search.submission.rehearse import Request
from visual_search.submission.rehearse import rehearse as run_rehearsal
from visual_search.submission.runtime_estimate import ImageCounts
from visual_search.submission.sandbox import Limits

# Sleeps 1 ms and 1 µs a squared pixel for each photo. At 256 px it answers another order than at
# any other size, so that a score tells which one was run.
PACED = ranker(
    """
import json, time
size = int(os.getenv("VISUAL_SEARCH_INPUT_SIZE", "192"))
started = time.perf_counter()
time.sleep((len(self.gallery) + len(self.queries)) * (0.001 + 1e-6 * size**2))
seconds = {"embedding": time.perf_counter() - started, "ranking": 0.01, "loading": 0.0}
with open(os.environ["VISUAL_SEARCH_RANKER_LOG"], "w") as handle:
    json.dump({"seconds": seconds, "settings": {"input_size": size}, "problems": []}, handle)
order = np.arange(1000)

if size == 256:
    order[:2] = order[1::-1]
return np.tile(order, (len(self.queries), 1))
"""
)


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path, dev_folder: Path) -> None:
    project = make_submission(tmp_path / "project", PACED)
    done = ran(
        *(sys.executable, PROJECT / "local_evaluation.py", "--rehearse"),
        *("--data-folder", dev_folder, "--output", tmp_path / "out", "--cores", "1"),
        *("--test-queries", "60", "--test-gallery", "40", "--time-limit", "8.5", "--sample", "8"),
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rehearsed = result["rehearsal"]
    assert rehearsed["passed"]
    products = np.repeat(np.arange(5), 2)
    order = np.tile(np.arange(1000), (10, 1))
    assert result["mAP"] == average_precision(order, products, products).mean()
    # 100 photos of 1 + 36.9 ms each.
    assert rehearsed["hidden_test"]["embedding"] == pytest.approx(3.8, abs=0.4)
    assert rehearsed["hidden_test"]["memory"] > 0
    # 7.65 s for 100 photos, less what loading takes: 256 px take 6.7 s, 288 px 8.4 s.
    largest = rehearsed["largest_size"]
    assert largest["input_size"] == 256
    order[:, :2] = order[:, 1::-1]
    assert largest["mAP"] == average_precision(order, products, products).mean()
    assert {trial["input_size"]: trial["fits"] for trial in largest["trials"]} == {
        192: True,
        256: True,
        288: False,
    }
    assert "256 px, mAP" in done.stdout
    assert "next: python -m my_submission.preflight" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Largest input size that fits" in page
    assert "Expected on 60 queries and 40 gallery images" in page


def failure(project: Path, data: Path, limits: Limits) -> tuple[str, dict]:
    output = project.parent / "out"
    hidden = ImageCounts(60, 40)
    request = Request(project, data, output, limits, sample=8, hidden_test=hidden)
    sentence = refused(".", run_rehearsal, request)
    assert "\n" not in sentence
    return sentence, json.loads((output / "result.json").read_text())


def test_a_submission_too_slow_for_the_hidden_test_fails(tmp_path: Path, dev_folder: Path) -> None:
    project = make_submission(tmp_path / "project", PACED)
    sentence, result = failure(project, dev_folder, Limits(3.2, 1))
    assert sentence.startswith("the hidden test would take 4 s and ")
    # 2.88 s for 100 photos: 160 px take 2.7 s, 192 px 3.8 s.
    assert "160 px fits: export it again with `python my_submission/to_torchscript.py" in sentence
    assert "--input_size 160`" in sentence
    assert not result["rehearsal"]["passed"]
    assert result["rehearsal"]["failure"] == sentence
    assert result["rehearsal"]["largest_size"]["input_size"] == 160
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_ranker_with_a_clock_is_warned_only(tmp_path: Path, dev_folder: Path) -> None:
    clock = {"limit_seconds": 3.2, "photos_by_size": {"192": 13, "160": 7}}
    clocked = PACED.replace('"problems": []', f'"problems": [], "clock": {clock}')
    table = (dev_folder / "queries.csv").read_text()
    (dev_folder / "queries.csv").write_text(table.replace("58,58,104", "58,58,999", 1))
    project = make_submission(tmp_path / "project", clocked)
    request = Request(
        *(project, dev_folder, tmp_path / "out", Limits(3.2, 1)),
        largest_size=False,
        hidden_test=ImageCounts(60, 40),
    )
    run_rehearsal(request)
    result = json.loads((tmp_path / "out" / "result.json").read_text())["rehearsal"]
    assert result["passed"]
    assert "images at a lower resolution: 7" in (tmp_path / "out" / "report.html").read_text()
    assert "the ranker would lower the resolution" in " ".join(result["notes"])
    # As in a plain evaluation, a query without a match counts as 0, and is told.
    assert "1 of 10 queries have no match in the gallery" in " ".join(result["notes"])


def test_images_of_which_many_are_unreadable_are_not_scored(
    tmp_path: Path, dev_folder: Path
) -> None:
    problems = [{"path": f"{n}.png", "reason": f"damaged: {UNUSED[0]}"} for n in range(5)]
    broken = PACED.replace('"problems": []', f'"problems": {problems}')
    project = make_submission(tmp_path / "project", broken)
    sentence, result = failure(project, dev_folder, Limits(20, 1))
    assert sentence.startswith("5 of 20 images could not be read, for example 0.png: damaged")
    assert result["rehearsal"] == {"passed": False, "failure": sentence}


def test_a_failure_is_one_sentence_and_stands_in_the_result(
    tmp_path: Path, dev_folder: Path
) -> None:
    project = make_submission(tmp_path / "project", ranker("return 1 / 0"))
    sentence, result = failure(project, dev_folder, Limits(20, 1))
    assert "the submission raised ZeroDivisionError: division by zero at" in sentence
    assert result["rehearsal"] == {"passed": False, "failure": sentence}
    assert "Traceback" in (tmp_path / "out" / "rehearsal_log.txt").read_text()


@pytest.mark.parametrize(
    ("option", "value"), [("--cores", "0"), ("--time-limit", "-1"), ("--sample", "1")]
)
def test_senseless_limits_are_refused(option: str, value: str) -> None:
    said = stopped(local_evaluation.main, "--rehearse", option, value)
    assert f"argument {option}: '{value}' is no " in said
