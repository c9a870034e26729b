from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks import search
from benchmarks.search import Case, rows_of


@pytest.mark.parametrize("slow_peers", [True, False])
def test_usearch_is_timed_in_every_case(slow_peers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("faiss", "usearch"):
        pytest.importorskip(package, reason="needs the extra [bench]")
    monkeypatch.setattr(search, "K", 10)
    options = Namespace(threads=1, repeats=1, quick=True)
    rows, notes = rows_of(Case(3, 200, 8, slow_peers), options)
    timed = [row.peer.split()[0] for row in rows if row.case.endswith(": time")]
    assert sorted(set(timed)) == ["faiss-cpu", "numpy", "torch", "usearch"]
    assert timed.count("usearch") == 1
    weighed = [row.peer.split()[0] for row in rows if "memory" in row.case]
    assert weighed == ["faiss-cpu", *(["usearch"] if slow_peers else [])]
    assert any("usearch was timed once" in note for note in notes) != slow_peers
