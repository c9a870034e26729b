"""The counts of a table of pairs, against plain counting."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.image_text.text_statistics import (
    TopNgrams,
    count,
    main,
    ngrams,
    quantiles,
    shares,
)
from tests.commands import inside
from visual_search.text.pairs import SCHEMA, write_pairs

WORDS = ["стол", "стул", "кресло", "белый", "новый", "большой", "шкаф", "лампа"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(3000):
        texts = [
            " ".join(rng.choice(WORDS, rng.integers(1, 5))) + (f" {n % 700}а" if n % 3 else "")
            for _ in range(rng.integers(1, 4))
        ]
        rows.append(
            {
                "image_path": f"{n}.jpg",
                "image": str(n),
                "queries": [f"{text}!" for text in texts],
                "texts": texts,
                "language": ["ru" if n % 5 else "en"] * len(texts),
                "group": str(n),
                "category": "",
                "split": "train",
            }
        )
    path = tmp_path / "small.pairs.parquet"
    write_pairs(path, pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def test_counts_are_those_of_plain_counting(pairs: Path) -> None:
    found = count(pairs)
    rows = pq.read_table(pairs).to_pylist()
    queries = [query for row in rows for query in row["queries"]]
    texts = [text for row in rows for text in row["texts"]]
    words = [word for text in texts for word in text.split()]
    assert (found.images, found.queries) == (3000, len(queries))
    assert found.lengths["characters"] == Counter(map(len, queries))
    assert found.lengths["words"] == Counter(len(query.split()) for query in queries)
    assert found.lengths["queries"] == Counter(len(row["queries"]) for row in rows)
    assert dict(found.ngrams[1].most_common()) == Counter(words)
    triples = Counter(
        " ".join(text.split()[k : k + 3]) for text in texts for k in range(len(text.split()) - 2)
    )
    assert dict(found.ngrams[3].most_common()) == triples
    assert found.images_of_text == Counter(Counter(texts).values())
    assert (found.words, found.different_words) == (len(words), len(set(words)))
    assert found.languages == Counter(lang for row in rows for lang in row["language"])


def test_the_page_has_every_figure(pairs: Path) -> None:
    assert inside(main, pairs).returncode == 0
    page = pairs.with_name("small.statistics.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.split("</head>")[1]
    for part in ("Lengths", "Languages", "Duplicates"):
        assert f"<h2>{part}</h2>" in page
    summary = json.loads(pairs.with_name("small.statistics.json").read_text())
    assert summary["photos"] == 3000
    assert summary["ngrams"]["1"]["counted too low by at most"] == 0
    alone, several = summary["texts at one photo only"], summary["texts at several photos"]
    assert alone + several == summary["different texts"]


def test_quantiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).integers(0, 30, 999)
    found = quantiles(Counter(values.tolist()))
    assert found["mean"] == pytest.approx(values.mean())
    shares = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
    for name, share in shares.items():
        assert found[name] == np.quantile(values, share, method="inverted_cdf")


def test_shares_of_duplicates() -> None:
    rows = {name: (texts, queries) for name, texts, queries in shares(Counter({1: 4, 2: 3, 7: 1}))}
    assert rows["1"] == (4, 4)
    assert rows["2"] == (3, 6)
    assert rows["6 to 10"] == (1, 7)
    assert rows["1001…"] == (0, 0)


TEXTS = st.lists(st.lists(st.sampled_from("абвгд"), max_size=6).map(" ".join), max_size=40)


def test_runs_of_words() -> None:
    assert ngrams("а б в г", 3) == ["а б в", "б в г"]
    assert ngrams("а б", 2) == ["а б"]
    assert ngrams("а б", 3) == []
    assert ngrams("а б", 3, shorter=True) == ["а б"]
    assert ngrams("", 3, shorter=True) == []


@given(TEXTS, st.integers(1, 3), st.booleans())
def test_with_room_for_all_counts_are_exact(texts: list[str], n: int, shorter: bool) -> None:
    found = TopNgrams(n, shorter=shorter)
    found.add(texts)
    naive: Counter[str] = Counter()
    for text in texts:
        words = text.split()
        for start in range(len(words)):
            if start + n <= len(words):
                naive[" ".join(words[start : start + n])] += 1
        if shorter and 0 < len(words) < n:
            naive[text] += 1
    assert dict(found.most_common()) == naive
    assert found.error == 0
    counts = [times for _, times in found.most_common(4)]
    assert counts == sorted(naive.values(), reverse=True)[:4]


@given(TEXTS, st.integers(1, 6))
def test_with_little_room_no_count_is_too_high_or_lower_than_said(
    texts: list[str], capacity: int
) -> None:
    exact, found = TopNgrams(2), TopNgrams(2, capacity)
    for text in texts:
        exact.add([text])
        found.add([text])
        assert len(found) <= capacity
    kept = dict(found.most_common())
    for gram, times in exact.most_common():
        assert times - found.error <= kept.get(gram, 0) <= times
