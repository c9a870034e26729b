"""A rehearsal from end to end, as the command runs it, with a ranker of known speed."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import local_evaluation
from tests.commands import inside, ran
from tests.conftest import PROJECT
from tests.submissions import make_submission, ranker
from visual_search.evaluation.metrics import average_precision
from visual_search.ranking.rank import UNUSED

# Says that each photo took 1 ms and 1 µs a squared pixel; it does not wait for them, as a busy
# machine would make them longer. At 256 px it answers another order than at any other size, so
# that a score tells which one was run.
PACED = ranker(
    """
import json
size = int(os.getenv("VISUAL_SEARCH_INPUT_SIZE", "192"))
embedding = (len(self.gallery) + len(self.queries)) * (0.001 + 1e-6 * size**2)
seconds = {"embedding": embedding, "ranking": 0.01, "loading": 0.0}
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
    assert rehearsed["hidden_test"]["embedding"] == pytest.approx(3.7864)
    assert rehearsed["hidden_test"]["peak_memory"] > 0
    # 7.65 s for 100 photos, less what loading takes: 256 px take 6.7 s, 288 px 8.4 s. If all grew
    # as the pixels do, 256 px would be the largest.
    largest = rehearsed["largest_size"]
    assert largest["input_size"] == 256
    order[:, :2] = order[:, 1::-1]
    assert largest["mAP"] == average_precision(order, products, products).mean()
    assert {trial["input_size"]: trial["fits"] for trial in largest["trials"]} == {
        192: True,
        256: True,
    }
    assert "256 px, mAP" in done.stdout
    assert "next: python -m my_submission.preflight" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Largest input size that fits" in page
    assert "Expected on 60 queries and 40 gallery images" in page


def rehearsed(folder: Path, code: str, seconds: float, *options: str) -> tuple[int, str, dict]:
    """Exit status and sentence of the command on a submission of `code`, and result.json."""
    project, output = make_submission(folder / "project", code), folder / "out"
    given = ["--rehearse", "--data-folder", folder / "development_test_data", "--output", output]
    given += ["--time-limit", seconds, "--cores", 1, "--sample", 8, "--test-queries", 60]
    with contextlib.chdir(project):
        done = inside(local_evaluation.main, *given, "--test-gallery", 40, *options)
    sentence = done.stderr.rpartition("error: ")[2].rstrip("\n")
    assert done.returncode == 0 or "\n" not in sentence
    return done.returncode, sentence, json.loads((output / "result.json").read_text())


def test_a_submission_too_slow_for_the_hidden_test_fails(tmp_path: Path, dev_folder: Path) -> None:
    status, sentence, result = rehearsed(tmp_path, PACED, 3.2)
    assert status == 2
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
    # As with an ONNX network, which is of one size.
    told = '["not used"] if "VISUAL_SEARCH_INPUT_SIZE" in os.environ else []'
    more = f'"problems": [], "clock": {clock}, "fallbacks": {told}'
    clocked = PACED.replace('"problems": []', more)
    clocked = clocked.replace('{"seconds"', '{"input_size": size, "seconds"')
    status, _, result = rehearsed(tmp_path, clocked, 3.2, "--no-largest-size")
    assert status == 0
    assert result["rehearsal"]["passed"]
    assert result["clock"] == clock
    assert "images at a lower resolution: 7" in (tmp_path / "out" / "report.html").read_text()
    notes = " ".join(result["rehearsal"]["notes"])
    assert "the ranker would lower the resolution" in notes
    assert "scaled from the development set" not in notes


UNREADABLE = [{"path": f"{n}.png", "reason": f"damaged: {UNUSED[0]}"} for n in range(5)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ranker("return 1 / 0"), "the submission raised ZeroDivisionError: division by zero at"),
        (
            PACED.replace('"problems": []', f'"problems": {UNREADABLE}'),
            "5 of 20 images could not be read, for example 0.png: damaged",
        ),
    ],
)
def test_a_failure_is_one_sentence_and_stands_in_the_result(
    tmp_path: Path, dev_folder: Path, code: str, expected: str
) -> None:
    status, sentence, result = rehearsed(tmp_path, code, 20)
    assert status == 2
    assert sentence.startswith(expected)
    assert result == {"rehearsal": {"passed": False, "failure": sentence}}
    said = (tmp_path / "out" / "rehearsal_log.txt").read_text()
    assert ("Traceback" in said) == ("ZeroDivision" in sentence)
