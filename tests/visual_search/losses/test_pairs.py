import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.visual_search.naive_pairs import naive_pair_loss
from visual_search.losses.pairs import (
    PAIR_LOSSES,
    PairLoss,
    Samples,
    contrastive,
    multi_similarity,
    pair_loss,
)


def drawn(
    count: int, seed: int, dimension: int = 5, classes: int = 3, first_id: int = 0
) -> Samples:
    """Unit vectors that lean to one side, so that cosines lie on both sides of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dimension, generator=generator, dtype=torch.float64) + 0.6
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Samples(F.normalize(rows, dim=1), labels, torch.arange(first_id, first_id + count))


def leaf(samples: Samples) -> Samples:
    return Samples(samples.embeddings.clone().requires_grad_(), samples.labels, samples.ids)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_value_and_gradients_equal_the_naive_loops(name: str, seed: int) -> None:
    anchors, references = drawn(6, seed), drawn(9, seed + 1, first_id=4)
    ours, theirs = ((leaf(anchors), leaf(references)) for _ in range(2))
    loss, expected = pair_loss(PAIR_LOSSES[name], *ours), naive_pair_loss(name, *theirs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    loss.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.embeddings.grad, other.embeddings.grad, atol=1e-9, rtol=0)


def gradient_of(loss: PairLoss, anchors: Samples, references: Samples) -> Tensor:
    """Of the references' embeddings."""
    moved = leaf(references)
    return torch.autograd.grad(pair_loss(loss, anchors, moved), moved.embeddings)[0]


def at_angles(degrees: list[float], labels: list[int], ids: list[int]) -> Samples:
    angles = torch.tensor(degrees).double().deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    return Samples(rows, torch.tensor(labels), torch.tensor(ids))


def test_contrastive_by_hand() -> None:
    anchors = at_angles([0, 90], [0, 1], [0, 1])
    references = at_angles([60, 0, 30, 60.001, 90], [0, 0, 1, 1, 1], [7, 8, 9, 10, 1])
    # First anchor, class 0: positives at 60 and 0 degrees cost 1/2 and 0; of the negatives only
    # the one at 30 degrees is nearer than 0.5. Second, class 1: positives at 60 and about 30
    # degrees from it, itself (id 1) not; negatives at 30 and 90 degrees, the first one near.
    root = math.sqrt(3) / 2
    first = 0.5 + root
    second = (1 - 0.5) + (1 - root) + root
    loss = pair_loss(contrastive, anchors, references)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-4)


def test_multi_similarity_by_hand() -> None:
    anchors = at_angles([0], [0], [0])
    # Negatives at 60 and 90 degrees, positives at 0, 30 and 60. Farthest positive .5: only the
    # negative at .5 is above .4. Nearest negative .5: only the positive at .5 is below .6.
    references = at_angles([60, 90, 0, 30, 60], [1, 1, 0, 0, 0], [1, 2, 3, 4, 5])
    loss = pair_loss(multi_similarity, anchors, references)
    assert loss.item() == pytest.approx(math.log(2) / 2 + math.log(2) / 50)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_true_duplicates_are_pairs_and_a_photo_is_none_with_itself(name: str) -> None:
    loss = PAIR_LOSSES[name]
    anchor = at_angles([0], [0], [5])
    for label, is_pair in ((0, "positive"), (1, "negative")):
        twin = at_angles([0, 180], [label, 1 - label], [6, 7])
        itself = at_angles([0, 180], [label, 1 - label], [5, 7])
        of_twin, of_itself = gradient_of(loss, anchor, twin), gradient_of(loss, anchor, itself)
        assert not of_itself[0].any()
        if name == "contrastive" or is_pair == "negative":
            assert of_twin[0].any(), is_pair


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_without_any_pair_the_loss_is_nothing(name: str) -> None:
    alone = drawn(1, 0)
    assert pair_loss(PAIR_LOSSES[name], alone, alone).item() == 0.0
    assert not gradient_of(PAIR_LOSSES[name], alone, alone).any()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_half_precision_is_computed_in_single(name: str) -> None:
    samples = drawn(8, 1)
    halved = Samples(samples.embeddings.bfloat16().requires_grad_(), samples.labels, samples.ids)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pair_loss(PAIR_LOSSES[name], halved, halved)
    loss.backward()
    widened = Samples(halved.embeddings.detach().float(), samples.labels, samples.ids)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        float(pair_loss(PAIR_LOSSES[name], widened, widened)), rel=1e-6
    )
    assert halved.embeddings.grad is not None
    assert halved.embeddings.grad.dtype == torch.bfloat16
