from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands import refused
from tests.conftest import draw_product, write_csv
from visual_search.data.datasets import read_training_table
from visual_search.data.dev_sets import DevSet, read_dev_table
from visual_search.data.images import ImageItem
from visual_search.evaluation.dev_set import evaluate_on_dev_set
from visual_search.evaluation.metrics import average_precision
from visual_search.ranking.rank import without_own

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos a0.png … f2.png: six products, three photos each."""
    for product in range(6):
        for photo in range(3):
            draw_product(product, photo, 40).save(tmp_path / f"{'abcdef'[product]}{photo}.png")
    return tmp_path


def table(folder: Path, columns: str, text: str) -> Path:
    """Rows as words `name label …`."""
    rows = [line.split() for line in text.strip().splitlines()]
    rows = [[f"{row[0]}.png", *("" if cell == "-" else cell for cell in row[1:])] for row in rows]
    return write_csv(folder / "table.csv", ["file_name", "label", *columns.split(",")], rows)


def names(items: list[ImageItem]) -> str:
    return " ".join(item.path.stem for item in items)


def naive_scores(
    similarity: np.ndarray, labels: list[str], queries: Iterable[int] | None = None
) -> dict[int, float]:
    """Leave-one-out average precision by the definition: loops, nothing shared with the code.

    Queries without another photo of their class are left out.
    """
    answers = {}
    for query in range(len(labels)) if queries is None else queries:
        label = labels[query]
        others = [row for row in range(len(labels)) if row != query]
        wanted = sum(labels[row] == label for row in others)
        if not wanted:
            continue
        others.sort(key=lambda row: (-similarity[query, row], row))
        hits, total = 0, 0.0
        for place, row in enumerate(others[:1000], 1):
            if labels[row] == label:
                hits += 1
                total += hits / place
        answers[query] = total / wanted
    return answers


FOLDS = "a0 x -1\na1 x -1\nb0 y -2\nb1 y -2\nc0 z 0\nc1 z 0\nd0 w 1\nd1 w 1"
PROTOCOL = """
a0 x train 0
a1 x train 0
b0 y query -2
b1 y gallery -2
c0 z gallery -2
d0 w query -2
e0 v train 1
e1 v train 1
f0 u test -2
f1 u test -2
"""
# Columns beside path and label, rows, the fold, and what trains, is ranked, and asks.
KINDS = {
    # c0 is alone in its class: it is in the way of the others, but has nothing to find.
    "is_test": (
        "is_test",
        "a0 x 0\nb0 y 1\nb1 y 1\nc0 z 1\nb2 y 1\nd0 w 1\nd1 w 1",
        *(-1, "a0", "b0 b1 c0 b2 d0 d1", "b0 b1 b2 d0 d1"),
    ),
    "what always tests": ("fold", FOLDS, -1, "a0 a1 c0 c1 d0 d1", "b0 b1", "b0 b1"),
    "a fold": ("fold", FOLDS, 1, "a0 a1 c0 c1", "b0 b1 d0 d1", "b0 b1 d0 d1"),
    "a fold and is_test": (
        "fold,is_test",
        "a0 x -1 0\na1 x 0 0\nb0 y 0 1\nb1 y 1 1\nc0 z 1 0\nc1 z -2 0\nd0 w 2.0 False",
        *(1, "a0 a1 d0", "b0 b1 c0 c1", "b0 b1 c0 c1"),
    ),
    # Queries and gallery of a protocol are not pooled; d0 has nothing to find.
    "protocol": ("evaluation_status,fold", PROTOCOL, -1, "a0 a1 e0 e1", "b1 c0", "b0"),
    # A fold is leave-one-out, and the protocol's photos are no part of it.
    "a fold beside a protocol": (
        *("evaluation_status,fold", PROTOCOL, 1, "a0 a1", "e0 e1 f0 f1", "e0 e1 f0 f1"),
    ),
    "queries alone": (
        "evaluation_status",
        "a0 x train\nb0 y train\nb1 y query\nc0 z query\na1 x query",
        *(-1, "a0 b0", "a0 b0", "b1 a1"),
    ),
    "one photo with two boxes": (
        *("is_test,bbox", "b0 y 0 -\na0 x 1 0,0,20,20\na0 x 1 20,20,20,20", -1),
        *("b0", "a0 a0", "a0 a0"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_what_is_ranked_and_what_asks(folder: Path, kind: str) -> None:
    columns, text, fold, trained, gallery, queries = KINDS[kind]
    file = table(folder, columns, text)
    dev_set = read_dev_table(file, fold=fold)
    assert (names(dev_set.gallery), names(dev_set.queries)) == (gallery, queries)
    assert " ".join(path.stem for path in read_training_table(file, fold=fold).paths) == trained
    label = dict(line.split()[:2] for line in text.split("\n") if line)
    assert dev_set.gallery_products.tolist() == [label[name] for name in gallery.split()]
    assert dev_set.query_products.tolist() == [label[name] for name in queries.split()]
    if queries.split()[0] in gallery.split():
        assert dev_set.own is not None
        assert [dev_set.gallery[row] for row in dev_set.own] == dev_set.queries
        for query, own in enumerate(dev_set.own.tolist()):
            right = np.flatnonzero(dev_set.gallery_products == dev_set.query_products[query])
            assert dev_set.right_rows(query).tolist() == [row for row in right if row != own]
    else:
        assert dev_set.own is None


def test_more_photos_than_columns_and_a_query_that_is_not_among_them() -> None:
    labels = ["p"] * 1102
    labels[5] = "q"
    ranks = np.stack([np.arange(1001)] * 2)
    own = np.array([1100, 3])
    kept = without_own(ranks, own)
    assert kept[0].tolist() == list(range(1000))
    assert kept[1].tolist() == [row for row in range(1001) if row != 3]
    scores = average_precision(kept, np.array(labels), np.array(["p", "p"]), own)
    expected = naive_scores(np.zeros((1102, 1102)), labels, own.tolist())
    assert scores.tolist() == pytest.approx([expected[1100], expected[3]])


def test_one_photo_leaves_an_empty_ranking() -> None:
    assert without_own(np.array([[0]]), np.array([0])).shape == (1, 0)
    with pytest.raises(ValueError, match="ranked for itself"):
        average_precision(np.array([[0, 1]]), np.array(["a", "a"]), np.array(["a"]), np.array([1]))


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcde"), min_size=2, max_size=40),
    kinds=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_classes_and_any_ties_score_as_the_loop_says(
    labels: list[str], kinds: int, seed: int
) -> None:
    """Few kinds of embedding: most similarities tie."""
    rng = np.random.default_rng(seed)
    vectors = torch.eye(4)[torch.from_numpy(rng.integers(0, kinds, len(labels)))]
    expected = naive_scores((vectors @ vectors.T).numpy(), labels)
    if not expected:
        return
    own = np.array(list(expected))
    items = [ImageItem(Path(f"{row}.png")) for row in range(len(labels))]
    products = np.array(labels)
    dev_set = DevSet(items, [items[row] for row in own], products, products[own], own)

    def numbered(item: ImageItem, views: list[tuple[str, int]]) -> tuple[list[np.ndarray], None]:
        """Pixels that say which image they are of: images may be read in any order."""
        return [np.full((3, size, size), int(item.path.stem), "u1") for _, size in views], None

    def model(pixels: torch.Tensor) -> torch.Tensor:
        return vectors[pixels[:, 0, 0, 0].long()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visual_search.ranking.embed.load_views", numbered)
        answer = evaluate_on_dev_set(model, dev_set, 1, device=CPU)
    assert answer.average_precisions.tolist() == list(expected.values())


@pytest.mark.parametrize(
    ("columns", "text", "words"),
    [
        ("is_test", "a0 x 0\na1 x 0", "table.csv has no held-out row .* or name a fold"),
        ("is_test", "a0 x 0\na1 x 1\nb0 y 1", "no two held-out images of .* are of the same class"),
        ("evaluation_status", "a0 x query\na1 y gallery", "no query of .* image of its class"),
        ("is_test", "a0 x 1\na1 x 1\na0 x 1", "line 4 holds out .*a0.png .* of line 2 again"),
        ("is_test", "nix x 1\nnul x 1", "none of the images of"),
    ],
)
def test_bad_tables_are_named(folder: Path, columns: str, text: str, words: str) -> None:
    refused(words, read_dev_table, table(folder, columns, text))


def test_paths_are_relative_to_the_root(folder: Path, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "elsewhere" / "t.csv",
        ["image_path", "label", "is_test"],
        [["a0.png", "x", 1], ["a1.png", "x", 1]],
    )
    assert [item.path for item in read_dev_table(file, folder).gallery] == [
        folder / "a0.png",
        folder / "a1.png",
    ]
