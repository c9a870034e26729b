from __future__ import annotations

import torch

from visual_search.losses.margin_head import generator_of


def test_same_numbers_same_draws_and_no_others() -> None:
    def draws(*numbers: int) -> float:
        return float(torch.rand((), generator=generator_of(*numbers), dtype=torch.float64))

    asked = [(seed, step) for seed in (0, 1, 1 << 32, -1) for step in range(50)]
    assert draws(3, 4) == draws(3, 4)
    assert len({draws(*numbers) for numbers in asked}) == len(asked)
    assert draws(1, 2) != draws(2, 1)
