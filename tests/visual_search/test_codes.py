from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.codes import CODES, Rescored, encode, search_codes
from visual_search.errors import UserError
from visual_search.search import top_k


def unit(rows: int, dimension: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dimension, generator=generator) + 0.2, dim=1)


@pytest.mark.parametrize(
    ("kind", "bytes_per_row", "least"),
    [("float16", 48, 0.999999), ("int8", 24, 0.999), ("binary", 3, 0.7)],
)
def test_codes_take_their_bytes_and_come_back_close(
    kind: str, bytes_per_row: float, least: float
) -> None:
    vectors = unit(500)
    codes = encode(kind, vectors, unit(400, seed=1))
    assert codes.bytes_per_row == bytes_per_row
    assert codes.shape == (500, 24)
    cosines = (torch.from_numpy(codes[:]) * vectors).sum(dim=1)
    assert float(cosines.mean()) > least


def test_int8_by_hand() -> None:
    sample = torch.tensor([[0.0, -1.0], [2.0, 3.0]])  # means 1 and 1, farthest 1 and 2
    codes = encode("int8", torch.tensor([[2.0, 2.0], [1.0, 9.0]]), sample)
    np.testing.assert_array_equal(codes.stored, [[127, 64], [0, 127]])  # 63.5 to even; held
    decoded = np.array([[2.0, 1.0 + 64 * 2 / 127], [1.0, 3.0]])
    expected = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    np.testing.assert_allclose(codes[0:2], expected, rtol=1e-6)


def test_binary_by_hand() -> None:
    sample = torch.tensor([[0.0, -1.0], [2.0, 3.0]])  # means 1 and 1, mean distances 1 and 2
    codes = encode("binary", torch.tensor([[0.5, 5.0], [1.5, 0.0]]), sample)
    np.testing.assert_array_equal(codes.stored, [[0b01000000], [0b10000000]])
    decoded = np.array([[0.0, 3.0], [2.0, -1.0]])
    expected = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    np.testing.assert_allclose(codes[0:2], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", list(CODES))
@pytest.mark.parametrize("k", [1, 7, 300])
def test_the_search_is_that_of_the_decoded_matrix(kind: str, k: int) -> None:
    queries, gallery = unit(9, seed=2), unit(3000)
    codes = encode(kind, gallery)
    scores, rows = search_codes(codes)(queries, gallery, k)
    expected = queries @ torch.from_numpy(codes[:]).T
    order = expected.numpy().argsort(axis=1, kind="stable")[:, ::-1]
    np.testing.assert_allclose(
        scores, np.take_along_axis(expected.numpy(), order[:, :k], axis=1), atol=1e-6
    )
    torch.testing.assert_close(expected.gather(1, rows), scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("candidates", "k"), [(40, 100), (100, 10)])
def test_the_first_hits_are_ordered_anew_and_the_rest_stays(candidates: int, k: int) -> None:
    queries, gallery = unit(6, seed=3), unit(800)
    short, long = encode("binary", gallery), encode("int8", gallery)
    _, rows = Rescored(short, long, candidates)(queries, gallery, k)
    _, plain = top_k(queries, short, max(k, candidates))
    exact = queries @ torch.from_numpy(long[:]).T
    for row, before, scores in zip(rows, plain, exact, strict=True):
        first = sorted(before[:candidates].tolist(), key=lambda index: -float(scores[index]))
        assert row.tolist() == [*first, *before[candidates:].tolist()][:k]


def test_rescoring_finds_more_than_bits_alone() -> None:
    queries, gallery = unit(50, seed=4), unit(2000)
    wanted = top_k(queries, gallery, 10)[1]
    short, long = encode("binary", gallery), encode("int8", gallery)

    def recall(rows: Tensor) -> float:
        return float((rows[:, :, None] == wanted[:, None, :]).any(dim=1).float().mean())

    alone = recall(top_k(queries, short, 10)[1])
    rescored = recall(Rescored(short, long, 200)(queries, gallery, 10)[1])
    assert rescored > 0.9 > alone


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(UserError, match="there are no 'int4' codes; known: float16, int8, binary"):
        encode("int4", unit(3))
