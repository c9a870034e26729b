from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ranker import OTHERS, Case, Result, notes_of, roofline, rows_of, shortened, summary
from benchmarks.ranker_child import WAYS, Job
from visual_search.data.dev_sets import DevSet, read_dev_set
from visual_search.data.images import ImageItem


def test_the_roofline_of_shared_cores_and_of_two_devices() -> None:
    assert roofline(400, 100, separate=False) == pytest.approx(80)
    assert roofline(400, 100, separate=True) == 100


def test_each_of_the_others_can_be_run() -> None:
    assert OTHERS.keys() | {"ours"} == WAYS.keys()


def test_the_median_run_is_shown_whole() -> None:
    runs = [{"embedding": 4.0, "model": 1.0}, {"embedding": 2.0, "model": 0.5}]
    result = summary([*runs, {"embedding": 9.0, "model": 2.0}], 100, 0.25)
    assert (result.rate, result.mean_average_precision) == (25.0, 0.25)
    assert result.stages["model"] == 1.0


def test_rows_and_notes_name_the_bottleneck() -> None:
    stages = {
        "embedding": 10.0,
        "model": 8.0,
        "ranking": 0.5,
        "plan": 0.2,
        "settings": "fp32",
        "decode_alone": 400.0,
        "model_alone": 100.0,
    }
    results = {
        "ours": Result(60.0, 0.19, stages),
        "seed": Result(20.0, 0.19, {"embedding": 30.0, "model": 25.0, "ranking": 1.0}),
        "oml": Result(30.0, 0.19, {"embedding": 20.0, "model": 15.0}),
    }
    case = Case("timm/convnext_atto", "none", 224)
    rows = {(row.case, row.peer): row for row in rows_of(case, results, on_gpu=False)}
    assert (
        rows["convnext_atto, 224 px: files to embeddings", "PIL, DataLoader, fp32, full sort"].ratio
        == 3
    )
    oml = rows["convnext_atto, 224 px: files to embeddings", "open-metric-learning 4.0.0"]
    assert oml.ratio == 2
    assert rows["convnext_atto, 224 px: ranking", "full sort"].ratio == 2
    assert rows["convnext_atto, 224 px: of the roofline", "the bound"].ratio == pytest.approx(0.75)
    assert "the bottleneck is the model" in notes_of(case, results)[0]


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    photos = [ImageItem(tmp_path / "a.jpg"), ImageItem(tmp_path / "b.jpg", (1, 2, 3, 4))]
    path, folder = tmp_path / "job.json", tmp_path / "photos"
    written = Job(tmp_path, 64, photos, 1, folder, batch=8, cores=2, device=torch.device("cpu"))
    written.write(path)
    job = Job.read(path)
    assert job == written
    assert (job.folder / "000001.jpg").readlink() == tmp_path / "b.jpg"


def test_a_share_of_the_photos_keeps_the_products(dev_folder: Path) -> None:
    dev_set = read_dev_set(dev_folder)
    assert shortened(dev_set, 0) is dev_set
    fewer: DevSet = shortened(dev_set, 10)
    assert (len(fewer.gallery), len(fewer.queries)) == (5, 5)
    np.testing.assert_array_equal(fewer.gallery_products, dev_set.gallery_products[:5])
