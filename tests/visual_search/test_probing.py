from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from visual_search import probing
from visual_search.embed_settings import EmbedSettings
from visual_search.probing import prepare, side_by_side

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)


def vectors(pixels: Tensor) -> Tensor:
    return torch.nn.functional.normalize(pixels.flatten(1).float(), dim=1)


def fast_for_four(pixels: Tensor) -> Tensor:
    """Contiguous batches of four photos take 2 ms a photo, all others 6."""
    layout = pixels.is_contiguous() and len(pixels) == 4
    time.sleep((0.002 if layout else 0.006) * len(pixels))
    return vectors(pixels)


def test_the_fastest_is_chosen_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "bf16_is_native", lambda: False)
    chosen = prepare(fast_for_four, PIXELS, 2000, device=CPU, cores=2)
    assert (chosen.precision, chosen.memory_format, chosen.batch_size) == ("fp32", "contiguous", 4)
    assert chosen.streams == 2
    # Two streams of 500 photos a second each, less what waking costs.
    assert 300 < max(chosen.rates.values()) < 1001
    torch.testing.assert_close(chosen.answer(PIXELS), vectors(PIXELS))


def test_what_is_set_by_hand_is_not_measured() -> None:
    settings = EmbedSettings(
        precision="fp32", memory_format="channels_last", batch_size=3, workers=5
    )
    chosen = prepare(fast_for_four, PIXELS, 2000, device=CPU, cores=2, settings=settings)
    assert (chosen.memory_format, chosen.batch_size, chosen.streams) == ("channels_last", 3, 5)
    assert not any("contiguous" in name for name in chosen.rates)


def test_few_photos_and_no_time_are_not_measured() -> None:
    assert prepare(fast_for_four, PIXELS, 20, device=CPU, cores=2).rates == {}
    started = time.perf_counter()

    def slow(pixels: Tensor) -> Tensor:
        time.sleep(3)
        return vectors(pixels)

    chosen = prepare(slow, PIXELS, 10_000, device=CPU, cores=2, seconds=0.1)
    assert chosen.rates == {}
    assert time.perf_counter() - started < 2


def test_a_precision_that_answers_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "bf16_is_native", lambda: True)

    def coarse(pixels: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return vectors(pixels).roll(1, dims=1)
        time.sleep(0.002 * len(pixels))
        return vectors(pixels)

    assert prepare(coarse, PIXELS, 2000, device=CPU, cores=1).precision == "fp32"

    def alike(pixels: Tensor) -> Tensor:
        time.sleep((0.001 if torch.is_autocast_enabled("cpu") else 0.004) * len(pixels))
        return vectors(pixels)

    assert prepare(alike, PIXELS, 2000, device=CPU, cores=1).precision == "bf16"


def test_a_failure_in_a_thread_is_raised() -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        side_by_side(broken, 2, 1, CPU)
