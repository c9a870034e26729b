"""The ranker behind the organiser's interface: the exported model, exact cosine ranking."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from visual_search.embed import default_device
from visual_search.errors import UserError
from visual_search.evaluate import Ranking, rank_gallery
from visual_search.export import load_exported
from visual_search.files import write_json
from visual_search.metrics import MAX_PREDICTIONS
from visual_search.tables import image_items, read_gallery, read_queries

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"


class MCS_BaseLine_Ranker:
    """Ranks the gallery for every query; a broken photo costs its own row and no other."""

    def __init__(self, dataset_path: str, gallery_csv_path: str, queries_csv_path: str) -> None:
        """Read the tables and load the model.

        Args:
            dataset_path: folder that the image paths of both tables are relative to.
            gallery_csv_path: `seller_img_id, img_path`.
            queries_csv_path: `user_img_id, img_path, bbox_x, bbox_y, bbox_w, bbox_h`.

        Raises:
            NameError: what the evaluator shows in its log: a missing model, file or column.
        """
        self.max_predictions = MAX_PREDICTIONS
        self.device = default_device()
        # The environment variable lets an export be rehearsed without moving files.
        weights = Path(os.getenv("VISUAL_SEARCH_WEIGHTS", str(WEIGHTS_FOLDER)))
        try:
            folder = Path(dataset_path)
            self.gallery = image_items(read_gallery(Path(gallery_csv_path)), folder)
            self.queries = image_items(read_queries(Path(queries_csv_path)), folder)
            self.model, architecture = load_exported(weights, self.device)
            # The rehearsal looks for the largest size that the time limit allows.
            size = int(os.getenv("VISUAL_SEARCH_INPUT_SIZE", str(architecture.input_size)))
            self.architecture = replace(architecture, input_size=size)
        except UserError as error:
            self.raise_aicrowd_error(str(error))

    def raise_aicrowd_error(self, msg: str) -> None:
        """Show `msg` in the evaluator's log."""
        raise NameError(msg)

    def predict_product_ranks(self) -> np.ndarray:
        """Rank the gallery for each query.

        Returns:
            `(n_queries, 1000)`, int64, unique gallery row indexes, best first. Behind a gallery
            of fewer photos follow indexes that name none, see
            :func:`visual_search.evaluate.fill_to_width`.
        """
        ranking = rank_gallery(
            self.model,
            self.gallery,
            self.queries,
            self.architecture.input_size,
            device=self.device,
        )
        report_problems(ranking, self.architecture.input_size)
        return ranking.ranks


def report_problems(ranking: Ranking, input_size: int) -> None:
    """Print a count and examples; all of them go to $VISUAL_SEARCH_RANKER_LOG where it is set."""
    problems = ranking.problems
    if problems:
        print(f"{len(problems)} photos were damaged or had a wrong box, for example:")
        for problem in problems[:5]:
            print(f"  {problem.path}: {problem.reason}")
    log = os.getenv("VISUAL_SEARCH_RANKER_LOG")
    if log:
        times = {
            "embedding_seconds": round(ranking.embedding_seconds, 3),
            "ranking_seconds": round(ranking.ranking_seconds, 3),
        }
        listed = [{"path": problem.path, "reason": problem.reason} for problem in problems]
        write_json(Path(log), {"input_size": input_size, **times, "problems": listed})
