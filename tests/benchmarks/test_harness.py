import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import (
    Row,
    alternating_medians,
    extra_memory,
    higher_is_better,
    lower_is_better,
    peer_module,
    record,
    text_table,
)
from tests.commands import refused, told

ROWS = [
    lower_is_better("step", 0.5, "peer 1.0", 2.0, "s"),
    higher_is_better("rate", 30.0, "peer 1.0", 20.0, "images/s"),
    lower_is_better("alone", 7.0, "none", None, "MB"),
]


def test_a_ratio_above_1_is_always_ours_being_better() -> None:
    assert [row.ratio for row in ROWS] == [4.0, 1.5, None]
    assert text_table(ROWS).splitlines()[2:] == [
        "| step | 0.5 | peer 1.0 | 2 | s | 4.00 |",
        "| rate | 30 | peer 1.0 | 20 | images/s | 1.50 |",
        "| alone | 7 | none | - | MB | - |",
    ]


def test_record_rewrites_its_own_section_only(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Measured\n\nBy hand.\n")
    record("first", ROWS, ["two threads"], tmp_path)
    record("second", ROWS[:1], [], tmp_path)
    before = results.read_text()
    record("second", ROWS[:1], [], tmp_path)
    assert results.read_text() == before
    record("first", [Row("new", 1.0, "peer", 3.0, "s", 3.0)], ["four threads"], tmp_path)
    after = results.read_text()
    assert after.startswith("# Measured\n\nBy hand.\n")
    assert "two threads" in before
    assert "two threads" not in after
    assert "| new | 1 | peer | 3 | s | 3.00 |" in after
    assert "- four threads" in after
    assert before[before.index("<!-- second") :] == after[after.index("<!-- second") :]
    assert after.index("## first") < after.index("## second")
    read = json.loads((tmp_path / "results" / "first.json").read_text())
    assert read == [
        {"case": "new", "ours": 1.0, "peer": "peer", "peer_value": 3.0, "unit": "s", "ratio": 3.0}
    ]


def test_calls_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    medians = alternating_medians(
        [lambda: order.append("a"), lambda: order.append("b")], repeats=3, warm_up=1
    )
    assert {frozenset(order[start : start + 2]) for start in range(0, 8, 2)} == {frozenset("ab")}
    assert len(order) == 8
    assert order != order[:2] * 4  # none always follows the same
    assert len(medians) == 2


def filling(megabytes: int, held: int) -> Callable[[], None]:
    """A step that fills so much memory and lets go of it, beside what was held before."""
    before = np.ones(held * 1_000_000 // 8)

    def step() -> None:
        assert np.ones(megabytes * 1_000_000 // 8).sum() + before[0] > 0

    return step


@pytest.mark.slow
def test_extra_memory_is_the_steps_own() -> None:
    measured = extra_memory(filling, 100, 60) / 1e6
    assert measured == pytest.approx(100, abs=10)


def test_a_missing_peer_names_the_extra() -> None:
    refused(r"no_such_package.*\[bench\]", peer_module, "no_such_package.part")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("losses", "pytorch_metric_learning"),
        ("search", "faiss"),
        *(pytest.param(name, "torch", marks=pytest.mark.slow) for name in ("ranker", "training")),
    ],
)
def test_a_quick_run_prints_a_table_and_records_nothing(
    project: Path, name: str, package: str
) -> None:
    pytest.importorskip(package, reason="needs the extra [bench]")
    import torch  # here, and not where the processes that measure memory load it too

    main = importlib.import_module(f"benchmarks.{name}").main
    results = project / "benchmarks" / "RESULTS.md"
    before = results.read_bytes() if results.exists() else None
    said = told(main, "--quick", "--repeats", 1, "--threads", torch.get_num_threads())
    table = said[said.index("| case | ours | peer |") :]
    assert any(words in table for words in ("roofline", "the products alone take"))
    assert before == (results.read_bytes() if results.exists() else None)
