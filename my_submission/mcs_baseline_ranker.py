"""The ranker behind the organiser's interface: the exported model, exact ranking."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import numpy as np

from visual_search.common.errors import UserError, first_line, unfailing_output
from visual_search.common.files import write_json
from visual_search.common.model_config import EmbedSettings
from visual_search.data.tables import image_items, read_gallery, read_queries
from visual_search.ranking.deadline import LIGHTER, NOT_EMBEDDED, Deadline, degradations, listed
from visual_search.ranking.embed import default_device
from visual_search.ranking.export import (
    embedding_settings,
    exported_runtime,
    exported_steps,
    load_exported,
)
from visual_search.ranking.rank import (
    MAX_PREDICTIONS,
    Ranking,
    rank_gallery,
    too_many_unreadable,
)
from visual_search.ranking.rerank import format_steps

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"


class MCS_BaseLine_Ranker:
    """Ranks the gallery for every query; a broken image costs its own row and no other.

    These environment variables let a submission be rehearsed without moving files or editing:
    VISUAL_SEARCH_WEIGHTS (folder of an export), VISUAL_SEARCH_TIME_LIMIT (seconds),
    VISUAL_SEARCH_INPUT_SIZE (pixels), VISUAL_SEARCH_EMBEDDING (a JSON object in place of
    `embedding` in model.json), VISUAL_SEARCH_RANKER_LOG (a file to write).
    """

    time_limit = 600.0
    """Seconds for everything; a subclass in user_config.py may set another."""

    @unfailing_output()
    def __init__(
        self,
        dataset_path: str,
        gallery_csv_path: str,
        queries_csv_path: str,
        time_limit: float | None = None,
    ) -> None:
        """Read the tables and load the model. The time limit counts from here.

        Args:
            dataset_path: folder that the image paths of both tables are relative to.
            gallery_csv_path: `seller_img_id, img_path`.
            queries_csv_path: `user_img_id, img_path, bbox_x, bbox_y, bbox_w, bbox_h`.
            time_limit: seconds; by default of the environment or the class.

        Raises:
            NameError: what the evaluator shows in its log: a missing model, file or column.
        """
        self.max_predictions = MAX_PREDICTIONS
        self.fallbacks: list[str] = []
        try:
            # A ranker that is late loses everything, so the time comes first.
            named = _number("VISUAL_SEARCH_TIME_LIMIT", self.time_limit)
            self.deadline = Deadline(named if time_limit is None else time_limit)
            self.device = default_device()
            weights = Path(os.getenv("VISUAL_SEARCH_WEIGHTS", str(WEIGHTS_FOLDER)))
            folder = Path(dataset_path)
            # A bad row costs itself alone: see `read_table`.
            gallery = read_gallery(Path(gallery_csv_path), forgiving=True)
            queries = read_queries(Path(queries_csv_path), forgiving=True)
            self.gallery = image_items(gallery, folder)
            self.queries = image_items(queries, folder)
            named = int(_number("VISUAL_SEARCH_INPUT_SIZE", 0))
            self.model, architecture = load_exported(weights, self.device, self._shout, named)
            size = named or architecture.input_size
            self.architecture = replace(architecture, input_size=size)
            self.settings = _embedding_settings(weights, size)
            self.steps = exported_steps(weights)
            self.runtime = exported_runtime(weights, self.settings, size, self._shout)
        except UserError as error:
            self.raise_aicrowd_error(str(error))
        if find_spec("simplejpeg") is None:
            self._shout("PIL reads the JPEGs, in twice the time: requirements.txt lacks simplejpeg")
        print(f"ranks at {size} px, by {format_steps(self.steps)}", flush=True)
        self.loading_seconds = self.deadline.spent()

    def _shout(self, fallback: str) -> None:
        """Say what runs the slow way, and keep it for the rehearsal."""
        self.fallbacks.append(fallback)
        print(f"WARNING: {fallback}", flush=True)

    def raise_aicrowd_error(self, msg: str) -> NoReturn:
        """Show `msg` in the evaluator's log."""
        raise NameError(msg)

    @unfailing_output()
    def predict_product_ranks(self) -> np.ndarray:
        """Rank the gallery for each query.

        Returns:
            `(n_queries, 1000)`, int64, unique gallery row indexes, best first. Behind a gallery
            of fewer images follow indexes that name none, see
            :func:`visual_search.ranking.rank.fill_to_width`.

        Raises:
            NameError: what the evaluator shows in its log: a backend set by hand that fails.
        """
        try:
            ranking = rank_gallery(
                self.model,
                self.gallery,
                self.queries,
                self.architecture.input_size,
                device=self.device,
                steps=self.steps,
                settings=self.settings,
                deadline=self.deadline,
                runtime=self.runtime,
            )
        except UserError as error:
            self.raise_aicrowd_error(str(error))
        ranking.log["fallbacks"] = self.fallbacks
        report(ranking, len(self.gallery) + len(self.queries), self.loading_seconds)
        return ranking.ranks


def _number(variable: str, otherwise: float) -> float:
    text = os.getenv(variable)
    if not text:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"${variable} is {text!r}, it must be a number above 0")
    return value


def _embedding_settings(weights: Path, input_size: int) -> EmbedSettings:
    text = os.getenv("VISUAL_SEARCH_EMBEDDING")
    if not text:
        return embedding_settings(weights, input_size)
    try:
        return EmbedSettings.parsed(json.loads(text), "$VISUAL_SEARCH_EMBEDDING")
    except ValueError as error:
        raise UserError(f"$VISUAL_SEARCH_EMBEDDING is no JSON: {error}") from error


def report(ranking: Ranking, images: int, loading_seconds: float) -> None:
    """Print what the user has to know; all of it goes to $VISUAL_SEARCH_RANKER_LOG where set.

    Args:
        ranking: what was answered.
        images: how many there are on both sides.
        loading_seconds: from the start of the clock to the end of the constructor.
    """
    problems = ranking.problems
    if warning := too_many_unreadable(problems, images):
        print(f"WARNING: {warning}. The ranking is worth little")
    if problems:
        print(f"{len(problems)} images were damaged or had a wrong box, for example:")
        for problem in problems[:5]:
            print(f"  {problem.path}: {problem.reason}")
    clock, size = ranking.log["clock"], ranking.log["settings"]["input_size"]
    given_up = degradations(clock, size)
    if NOT_EMBEDDED in given_up:
        count = given_up.pop(NOT_EMBEDDED)
        print(f"there was no time for {count} images: they are ranked last, or at random")
    if given_up:
        print(
            f"to answer in {clock['limit_seconds']:g} s the ranker gave up: {listed(given_up)}; "
            f"take a smaller input, {LIGHTER}"
        )
    if log := os.getenv("VISUAL_SEARCH_RANKER_LOG"):
        said = {
            **ranking.log,
            "input_size": size,
            "seconds": {"loading": round(loading_seconds, 3), **ranking.log["seconds"]},
            "problems": [{"path": each.path, "reason": each.reason} for each in problems],
        }
        try:
            write_json(Path(log), said)
        except OSError as error:
            print(f"$VISUAL_SEARCH_RANKER_LOG cannot be written: {first_line(error)}")
