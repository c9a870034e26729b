"""The evaluator's side of the submission. The server replaces this file by its own: leave it."""

from __future__ import annotations

import os

import numpy as np

from my_submission.user_config import My_Ranker


class AIcrowdWrapper:
    """Connects the evaluator to the ranker that `user_config.py` names."""

    def __init__(self, dataset_dir: str = "./public_dataset/") -> None:
        """
        Args:
            dataset_dir: holds gallery.csv, queries.csv and the photos; the environment variable
                AICROWD_DATASET_DIR comes before it.
        """
        self.dataset_dir = os.getenv("AICROWD_DATASET_DIR", dataset_dir)
        assert os.path.exists(self.dataset_dir), f"{self.dataset_dir} - No such directory"
        self.gallery_csv_path = os.path.join(self.dataset_dir, "gallery.csv")
        self.queries_csv_path = os.path.join(self.dataset_dir, "queries.csv")

    def raise_aicrowd_error(self, msg: str) -> None:
        """Show `msg` in the evaluator's log."""
        raise NameError(msg)

    def predict_product_ranks(self) -> np.ndarray:
        """Build the ranker, inside the time limit, and return its `(n_queries, 1000)` indexes."""
        ranker = My_Ranker(self.dataset_dir, self.gallery_csv_path, self.queries_csv_path)
        return ranker.predict_product_ranks()
