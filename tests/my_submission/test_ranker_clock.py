"""A model that is too slow for the limit: the full valid array comes in time all the same."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from my_submission import mcs_baseline_ranker
from my_submission.mcs_baseline_ranker import MCS_BaseLine_Ranker
from tests.conftest import draw_product, write_csv
from visual_search.common.files import write_json
from visual_search.model.checkpoint import describe_model
from visual_search.model.embedder import Architecture
from visual_search.ranking.rerank_steps import Power

SIDE = 64
PHOTOS = 150


class Slow:
    """Mean colours of the four quarters; takes its seconds a photo, less for smaller photos."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, pixels: Tensor) -> Tensor:
        time.sleep(self.seconds * (pixels.shape[-1] / SIDE) ** 2 * len(pixels))
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixels.float() - 127, 2).flatten(1)
        return torch.nn.functional.normalize(quarters, dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for product in range(10):
        draw_product(product, 0).save(folder / f"{product}.png")
    rows = [[n, f"{n % 10}.png"] for n in range(PHOTOS)]
    write_csv(folder / "gallery.csv", ["seller_img_id", "img_path"], rows)
    header = ["user_img_id", "img_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    write_csv(folder / "queries.csv", header, [[*row, 0, 0, 64, 64] for row in rows])
    return folder


Run = Callable[..., tuple[np.ndarray, dict[str, Any]]]


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The ranker with a model and a limit in seconds, which it keeps: the array, and the log."""
    log = tmp_path / "log.json"
    monkeypatch.setenv("VISUAL_SEARCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("VISUAL_SEARCH_RANKER_LOG", str(log))
    monkeypatch.setenv("VISUAL_SEARCH_EMBEDDING", '{"workers": 2, "batch_size": 4}')
    names = str(folder), str(folder / "gallery.csv"), str(folder / "queries.csv")

    def answer(model: Slow, limit: float, *rerank: dict[str, Any]) -> tuple[np.ndarray, Any]:
        architecture = Architecture("slow", "none", 12, SIDE, (0.5,) * 3, (0.5,) * 3)
        monkeypatch.setattr(mcs_baseline_ranker, "load_exported", lambda *_: (model, architecture))
        described = describe_model(architecture, {"rerank": rerank})
        write_json(tmp_path / "model.json", described)
        started = time.perf_counter()
        ranks = MCS_BaseLine_Ranker(*names, time_limit=limit).predict_product_ranks()
        assert time.perf_counter() - started < limit
        assert ranks.shape == (PHOTOS, 1000)
        assert all(sorted(row) == list(range(1000)) for row in ranks.tolist())
        return ranks, json.loads(log.read_text())

    return answer


def test_time_enough_changes_nothing(run: Run) -> None:
    ranks, log = run(Slow(0.0005), 600)
    assert log["clock"]["photos_by_size"] == {"64": 2 * PHOTOS}
    assert log["clock"]["photos_without_embedding"] == 0
    assert log["problems"] == []
    assert {"loading", "decode", "embedding", "ranking"} <= set(log["seconds"])
    assert log["settings"]["streams"] == 2
    # Equal photos are all at the top, in the order of their index.
    assert ranks[3, :15].tolist() == list(range(3, PHOTOS, 10))


def test_resolution_is_lowered_and_the_limit_kept(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    # At 64 px 2 x 150 x 0.03 / 2 streams = 4.5 s, at 32 px 1.1 s.
    _, log = run(Slow(0.03), 3.5)
    assert len(log["clock"]["photos_by_size"]) > 1
    assert log["clock"]["photos_without_embedding"] == 0
    smaller = 2 * PHOTOS - log["clock"]["photos_by_size"].get("64", 0)
    said = f"to answer in 3.5 s the ranker gave up: images at a lower resolution: {smaller};"
    assert said in capsys.readouterr().out


def test_reranking_that_takes_too_long_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def takes_long(self: Any, queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(5)
        return gallery, queries

    plain, _ = run(Slow(0.0), 600)
    monkeypatch.setattr(Power, "__call__", takes_long)
    ranks, log = run(Slow(0.0), 3.0, {"name": "power"})
    assert log["clock"]["reranking_skipped"]
    assert "re-ranking: all" in capsys.readouterr().out
    np.testing.assert_array_equal(ranks, plain)


@pytest.mark.parametrize(
    "hangs_after", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 30))]
)
def test_a_model_that_hangs_does_not_keep_the_answer(
    run: Run, capsys: pytest.CaptureFixture[str], hangs_after: int
) -> None:
    class Hangs(Slow):
        def __call__(self, pixels: Tensor) -> Tensor:
            if len(seen) >= hangs_after:
                time.sleep(8)
            seen.append(1)
            return super().__call__(pixels)

    seen: list[int] = []
    ranks, log = run(Hangs(0.001), 2.5)
    left_out = log["clock"]["photos_without_embedding"]
    assert left_out > PHOTOS
    assert sum(log["clock"]["photos_by_size"].values()) + left_out == 2 * PHOTOS
    assert f"no time for {left_out} images" in capsys.readouterr().out
    assert ranks[-1].tolist() == list(range(1000))


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan"])
def test_a_limit_that_is_none_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("VISUAL_SEARCH_TIME_LIMIT", value)
    names = str(folder), str(folder / "gallery.csv"), str(folder / "queries.csv")
    with pytest.raises(NameError, match="VISUAL_SEARCH_TIME_LIMIT"):
        MCS_BaseLine_Ranker(*names)
