from argparse import Namespace

import pytest

from benchmarks import search
from benchmarks.search import Case, rows_of


def test_each_peer_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs the extra [bench]")
    monkeypatch.setattr(search, "K", 10)
    options = Namespace(threads=1, repeats=1, quick=True)
    rows, _ = rows_of(Case(3, 200, 8), options)
    timed = [row.peer.split()[0] for row in rows if row.case.endswith(": time")]
    assert sorted(timed) == ["faiss-cpu", "torch"]
    assert [row.peer.split()[0] for row in rows if "memory" in row.case] == ["faiss-cpu"]
