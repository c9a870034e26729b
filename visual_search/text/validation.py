"""Validation inside image–text training: retrieval both ways on images never trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from visual_search.common.environment import environment_in_words, environment_of
from visual_search.common.page import Section, TileRow, write_page
from visual_search.evaluation.report import thumbnails, worst_and_others
from visual_search.model.checkpoint import save_checkpoint
from visual_search.ranking.embed import embed_images, refuse_broken_model
from visual_search.text.encoder import network_facts
from visual_search.text.pairs import PairTable
from visual_search.text.retrieval import BothWays, Relevance, evaluate_retrieval
from visual_search.text.tasks import tile
from visual_search.validation import BestCheckpoint

if TYPE_CHECKING:
    from visual_search.text.phase import ClipPhase

RESULTS_SHOWN = 8
WORST_SHOWN, OTHERS_SHOWN = 30, 30


class PairValidator(BestCheckpoint):
    """Scores both encoders; the score is the mean of text → image and image → text mAP."""

    phase: ClipPhase

    def validate_before_training(self) -> None:
        """What the start is worth, before anything is learnt."""
        found = self._evaluate()
        self.run.log(kind="start", **found.as_dict())
        print(f"before training: mAP {found.mean_average_precision:.4f}", flush=True)

    def _log(self, evaluation: BothWays) -> None:
        self.run.log(kind="retrieval", **evaluation.as_dict())

    def _evaluate(self) -> BothWays:
        phase, encoder = self.phase, self.phase.learner.embedder
        was_training = encoder.training
        encoder.eval()
        images = self._image_vectors()
        texts = encoder.embed_texts(phase.relevance.texts)
        encoder.train(was_training)
        return evaluate_retrieval(images, texts, phase.relevance)

    @torch.no_grad()
    def _image_vectors(self) -> Tensor:
        phase, encoder = self.phase, self.phase.learner.embedder
        if phase.test_vectors is not None:
            return encoder(phase.test_vectors.to(self.device)).cpu()
        found = embed_images(
            encoder.image_embedder(),
            phase.test.items(),
            phase.architecture.input_size,
            device=self.device,
            settings=phase.config.embedding.unmeasured(self.device.type == "cuda"),
            label="validation",
        )
        refuse_broken_model(found.problems, len(found.matrix))
        return found.matrix

    def _save(
        self,
        folder: Path,
        embedder: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        self.phase.learner.embedder.text.save_files(folder)
        save_checkpoint(folder, self.phase.architecture, embedder, head, facts)

    def _facts(self) -> dict[str, Any]:
        config = self.phase.config
        return {
            "losses": config.loss.name,
            "text": network_facts(config.text, config.projection),
        }

    def _report(self, evaluation: BothWays) -> None:
        """The page: scores both ways, the worst queries, and others spread over the rest."""
        phase = self.phase
        facts = {
            "best epoch": str(self.best["epoch"]),
            "visual tower": phase.architecture.backbone,
            "text towers": " + ".join(phase.config.text.towers),
            "loss": phase.config.loss.name,
            "training images": str(len(phase.images)),
            "trained with": environment_in_words(environment_of(self.run.path)),
        }
        directions = {k.replace("_to_", " → "): v for k, v in evaluation.as_dict().items()}
        columns = list(next(iter(directions.values())))
        scores = [
            ["", *columns],
            *([way, *(f"{one[k]:.3f}" for k in columns)] for way, one in directions.items()),
        ]
        worst_first = np.argsort(evaluation.scores["text_to_photo"]["mAP"], kind="stable")
        worst, others = worst_and_others(worst_first, WORST_SHOWN, OTHERS_SHOWN)
        note = "Green: an image of a product of that name. Hover over an image for its queries."
        sections = [Section(facts=facts, tables={"": scores})]
        for title, queries in (("Spread over all queries", others), ("The worst queries", worst)):
            if queries:
                rows = [_row(query, phase.test, phase.relevance, evaluation) for query in queries]
                sections.append(Section(title, [note], rows=rows))
        title = f"{self.run.name}: text search"
        write_page(self.run.path / "report.html", title, sections, thumbnails)


def _row(query: int, table: PairTable, relevance: Relevance, evaluation: BothWays) -> TileRow:
    ranks, right = evaluation.image_ranks[query].tolist(), relevance.images_of[query].tolist()
    first = next((place for place, row in enumerate(ranks, 1) if row in right), "none")
    tiles = [tile(table, row, "right" if row in right else "") for row in ranks[:RESULTS_SHOWN]]
    return TileRow(relevance.texts[query], f"first relevant image: {first}", tiles)
