import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_product
from visual_search.data.augment import AUGMENTATIONS, Mixer, build_augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_set_gives_a_square_and_repeats_with_its_seed(name: str) -> None:
    augment = build_augmentation(name, 48, random_erasing=0.5)
    spawned = pickle.loads(pickle.dumps(augment))  # as it reaches a worker
    image = draw_product(3, 1, 90)
    squares = []
    for seed in (1, 1, 2, 3, 4, 5):
        torch.manual_seed(seed)
        squares.append(augment(image))
        torch.manual_seed(seed)
        assert torch.equal(spawned(image), squares[-1])
    assert all(square.shape == (3, 48, 48) for square in squares)
    assert all(square.dtype == torch.uint8 for square in squares)
    assert torch.equal(squares[0], squares[1])
    assert any(not torch.equal(squares[0], square) for square in squares[2:])


def test_none_is_what_validation_does() -> None:
    image = draw_product(3, 1, 90)
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(build_augmentation("none", 48)(image).numpy(), expected)


def test_several_views_are_drawn_from_evenly() -> None:
    image = draw_product(3, 1, 90).crop((0, 0, 90, 30))
    views = ("squash", "letterbox")
    only = [build_augmentation("none", 48, views=(view,))(image) for view in views]
    assert (only[1][:, :15] == 255).all()
    assert not (only[0][:, :15] == 255).all()
    torch.manual_seed(0)
    both = build_augmentation("none", 48, views=views)
    drawn = [torch.equal(both(image), only[1]) for _ in range(100)]
    assert 30 < sum(drawn) < 70


def test_random_erasing_greys_one_rectangle_of_its_share_of_photos() -> None:
    image = Image.fromarray(np.full((60, 90, 3), 200, dtype=np.uint8))
    augment = build_augmentation("none", 40, random_erasing=0.3)
    torch.manual_seed(0)
    erased = 0
    for _ in range(300):
        pixels = augment(image)
        assert pixels.dtype == torch.uint8
        grey = (pixels != 200).all(dim=0).numpy()
        assert (pixels.numpy()[:, grey] == 127).all()
        assert (pixels.numpy()[:, ~grey] == 200).all()
        if grey.any():
            erased += 1
            assert grey.sum() == grey.any(0).sum() * grey.any(1).sum()
            assert 0.015 < grey.mean() < 0.36
    assert 65 < erased < 115


def test_plain_crops_without_changing_the_aspect_of_the_square() -> None:
    # Columns of a ramp stay a ramp: a crop of 40 of 46 columns, mirrored half of the time.
    ramp = np.tile(np.linspace(0, 255, 92).astype(np.uint8)[None, :, None], (92, 1, 3))
    augment = build_augmentation("plain", 40)
    directions = set()
    for seed in range(30):
        torch.manual_seed(seed)
        row = augment(Image.fromarray(ramp)).float().mean(dim=(0, 1))
        slope = float(row[30] - row[10])
        assert 60 < abs(slope) < 170
        directions.add(slope > 0)
    assert directions == {True, False}


def batch(dtype: torch.dtype = torch.uint8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (6, 3, 10, 14), generator=generator, dtype=torch.uint8)
    return pixels.to(dtype), torch.arange(40, 46)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_mixup_is_the_weighted_sum_of_two_photos(dtype: torch.dtype) -> None:
    pixels, labels = batch(dtype)
    before = pixels.clone()
    mixed = Mixer("mixup", 1.0)(pixels, labels, torch.Generator().manual_seed(1))
    assert torch.equal(pixels, before)
    assert mixed.pixels.dtype == dtype
    assert sorted(mixed.labels_b.tolist()) == labels.tolist()
    share = mixed.weight_of_a[0].item()
    assert 0 < share < 1
    assert mixed.weight_of_a.tolist() == [share] * 6
    for n, partner in enumerate((mixed.labels_b - 40).tolist()):
        first, second = pixels[n].double().numpy(), pixels[partner].double().numpy()
        expected = share * first + (1 - share) * second
        tolerance = {torch.uint8: 0.5, torch.float32: 1e-3, torch.bfloat16: 2.0}[dtype]
        assert np.abs(mixed.pixels[n].double().numpy() - expected).max() <= tolerance + 1e-4


def test_cutmix_pastes_one_rectangle_and_counts_what_is_left() -> None:
    labels = torch.arange(6)
    pixels = labels.view(6, 1, 1, 1).expand(6, 3, 10, 14).byte()
    seen = set()
    for seed in range(60):
        mixed = Mixer("cutmix", 1.0)(pixels, labels, torch.Generator().manual_seed(seed))
        moved = np.flatnonzero(mixed.labels_b.numpy() != labels.numpy())
        if len(moved) == 0:
            continue
        inside = (mixed.pixels[int(moved[0]), 0] != int(moved[0])).numpy()
        for n in range(6):
            expected = np.where(inside, int(mixed.labels_b[n]), n)
            for channel in range(3):
                assert (mixed.pixels[n, channel].numpy() == expected).all()
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert inside.sum() == len(rows) * len(columns)
        assert len(rows) == 0 or rows[-1] - rows[0] + 1 == len(rows)
        assert len(columns) == 0 or columns[-1] - columns[0] + 1 == len(columns)
        assert mixed.weight_of_a.tolist() == pytest.approx([1 - inside.sum() / 140] * 6)
        seen.add(int(inside.sum()))
    assert len(seen) > 20


def test_shares_follow_the_beta_distribution() -> None:
    pixels, labels = torch.zeros(2, 1, 1, 1), torch.arange(2)
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.4, 2.0):
        mixer = Mixer("mixup", alpha)
        shares = np.array(
            [mixer(pixels, labels, generator).weight_of_a[0].item() for _ in range(1500)]
        )
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_probability_and_both_kinds() -> None:
    pixels, labels = batch()
    torch.manual_seed(0)
    # A blend leaves hardly a pixel as it was; a pasted rectangle leaves a share of them.
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    mixer = Mixer("both", 1.0, probability=0.6)
    for _ in range(600):
        mixed = mixer(pixels, labels)
        if torch.equal(mixed.weight_of_a, torch.ones(6)) and mixed.labels_b is labels:
            kinds["none"] += 1
            assert torch.equal(mixed.pixels, pixels)
            continue
        partner = pixels[mixed.labels_b - 40]
        whole = ((mixed.pixels == pixels) | (mixed.pixels == partner)).all()
        kinds["cutmix" if whole else "mixup"] += 1
    assert 190 < kinds["none"] < 290
    assert 130 < kinds["mixup"] < 230
    assert 130 < kinds["cutmix"] < 230
    for same in (Mixer("none"), Mixer("both", probability=0.0)):
        mixed = same(pixels, labels)
        assert mixed.pixels is pixels
        assert mixed.weight_of_a.tolist() == [1.0] * 6


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize(
    ("device", "layout"),
    [
        ("cpu", torch.channels_last),
        pytest.param("cuda", torch.contiguous_format, marks=GPU),
    ],
)
def test_draws_come_from_torch_wherever_the_pixels_are(
    kind: str, device: str, layout: torch.memory_format
) -> None:
    pixels, labels = batch()
    moved = pixels.to(device).contiguous(memory_format=layout)
    torch.manual_seed(7)
    expected = Mixer(kind, 1.0)(pixels, labels)
    assert not torch.equal(expected.pixels, Mixer(kind, 1.0)(pixels, labels).pixels)
    torch.manual_seed(7)
    mixed = Mixer(kind, 1.0)(moved, labels.to(device))
    assert mixed.pixels.is_contiguous(memory_format=layout)
    assert {mixed.pixels.device.type, mixed.weight_of_a.device.type} == {device}
    assert torch.equal(mixed.labels_b.cpu(), expected.labels_b)
    assert torch.equal(mixed.weight_of_a.cpu(), expected.weight_of_a)
    # A multiplication and an addition may be fused on a GPU: half a grey level decides rounding.
    difference = (mixed.pixels.cpu().int() - expected.pixels.int()).abs()
    assert difference.max() <= (device == "cuda")
