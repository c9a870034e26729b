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

from dataset.image_text.text_statistics import QUANTILES, TOP, TopNgrams, count, main
from tests.commands import told
from tests.visual_search.drawn_pairs import pair_row
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
        typed, language = [f"{text}!" for text in texts], ["ru" if n % 5 else "en"] * len(texts)
        rows.append(pair_row(f"{n}.jpg", typed, texts=texts, language=language))
    path = tmp_path / "small.pairs.parquet"
    write_pairs(path, pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def test_counts_are_those_of_plain_counting(pairs: Path) -> None:
    summary, counted = count(pairs)
    rows = pq.read_table(pairs).to_pylist()
    queries = [query for row in rows for query in row["queries"]]
    texts = [text for row in rows for text in row["texts"]]
    words = [word for text in texts for word in text.split()]
    assert (summary["photos"], summary["queries"]) == (3000, len(queries))
    for name, lengths in (
        ("characters", list(map(len, queries))),
        ("words", [len(query.split()) for query in queries]),
        ("queries", [len(row["queries"]) for row in rows]),
    ):
        assert counted[name] == Counter(lengths)
        assert summary["lengths"][name] == {"mean": pytest.approx(np.mean(lengths))} | {
            key: np.quantile(lengths, share, method="inverted_cdf")
            for key, share in QUANTILES.items()
        }
    runs = [" ".join(text.split()[k : k + 3]) for text in texts for k in range(len(text.split()))]
    triples = Counter(run for run in runs if run.count(" ") == 2)
    for order, expected in (("1", Counter(words)), ("3", triples)):
        assert [times for _, times in summary["ngrams"][order]["top"]] == [
            times for _, times in expected.most_common(TOP)
        ]
        assert all(expected[gram] == times for gram, times in summary["ngrams"][order]["top"])
    assert (summary["words"], summary["different words"]) == (len(words), len(set(words)))
    assert summary["languages"] == Counter(lang for row in rows for lang in row["language"])
    images = np.array(list(Counter(texts).values()))
    for name, different, times in summary["duplicates"]:
        low, _, high = name.removesuffix("…").partition(" to ")
        top = np.inf if name.endswith("…") else int(high or low)
        inside = images[(int(low) <= images) & (images <= top)]
        assert (different, times) == (len(inside), inside.sum())


def test_the_page_has_every_figure(pairs: Path) -> None:
    told(main, pairs)
    page = pairs.with_name("small.statistics.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page.split("</head>")[1]
    for part in ("Lengths", "Languages", "Duplicates"):
        assert f"<h2>{part}</h2>" in page
    summary = json.loads(pairs.with_name("small.statistics.json").read_text())
    assert summary["photos"] == 3000
    assert summary["ngrams"]["1"]["counted too low by at most"] == 0
    for gram, times in summary["ngrams"]["3"]["top"]:
        assert gram in page
        assert f">{times:,}<" in page
    alone, several = summary["texts at one photo only"], summary["texts at several photos"]
    assert alone + several == summary["different texts"]


def test_shorter_texts_count_as_a_whole_where_that_is_asked() -> None:
    found = [TopNgrams(3), TopNgrams(3, shorter=True)]
    for top in found:
        top.add(["а б в г", "а б в", "а б", "", "а б"])
    runs = [("а б в", 2), ("б в г", 1)]
    assert found[0].most_common() == runs
    assert found[1].most_common() == [("а б", 2), *runs]
    assert found[1].most_common(1) == [("а б", 2)]


@given(
    st.lists(st.lists(st.sampled_from("абвгд"), max_size=6).map(" ".join), max_size=40),
    st.integers(1, 6),
)
def test_with_little_room_no_count_is_too_high_or_lower_than_said(
    texts: list[str], capacity: int
) -> None:
    exact, found = TopNgrams(2), TopNgrams(2, capacity)
    for text in texts:
        exact.add([text])
        found.add([text])
        assert len(found.most_common()) <= capacity
    kept = dict(found.most_common())
    for gram, times in exact.most_common():
        assert times - found.error <= kept.get(gram, 0) <= times
