"""Validation inside image–text training: retrieval both ways on photos never trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_search.checkpoint import save_checkpoint
from visual_search.clip_phase import ClipPhase
from visual_search.embed import embed_images
from visual_search.keeper import Keeper
from visual_search.text_report import write_text_report
from visual_search.text_retrieval import BothWays, evaluate_retrieval
from visual_search.typed_model import photo_items


class PairValidator(Keeper[BothWays]):
    """Scores both encoders; the score is the mean of text → photo and photo → text mAP."""

    phase: ClipPhase

    def look_before(self) -> None:
        """What the start is worth, before anything is learnt."""
        found = self._evaluate(kind="start")
        print(f"before training: mAP {found.mean_average_precision:.4f}", flush=True)

    def _evaluate(self, kind: str = "retrieval") -> BothWays:
        phase, encoder = self.phase, self.phase.learner.embedder
        was_training = encoder.training
        encoder.eval()
        photos = self._photo_vectors()
        texts = encoder.embed_texts(phase.relevance.texts)
        encoder.train(was_training)
        found = evaluate_retrieval(photos, texts, phase.relevance)
        self.run.log(kind=kind, **found.as_dict())
        return found

    @torch.no_grad()
    def _photo_vectors(self) -> Tensor:
        phase, encoder = self.phase, self.phase.learner.embedder
        if phase.test_vectors is not None:
            return encoder(phase.test_vectors.to(self.device)).cpu()
        return embed_images(
            encoder.image_embedder(),
            photo_items(phase.test),
            phase.architecture.input_size,
            device=self.device,
            settings=phase.config.embedding.unmeasured(self.device.type == "cuda"),
            label="validation",
        ).matrix

    def _save(
        self,
        folder: Path,
        embedder: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        self.phase.learner.embedder.text.save_files(folder)
        save_checkpoint(folder, self.phase.architecture, embedder, head, facts)

    def _facts(self, epoch: int, step: int, score: float) -> dict[str, Any]:
        config = self.phase.config
        return {
            "run": self.run.name,
            "losses": config.loss.name,
            "epoch": epoch,
            "step": step,
            "mAP": score,
            "text": dataclasses.asdict(self.phase.text_architecture),
            "embedding": dataclasses.asdict(config.embedding),
        }

    def _report(self, evaluation: BothWays) -> None:
        phase = self.phase
        facts = {
            "best epoch": str(self.best["epoch"]),
            "visual tower": phase.architecture.backbone,
            "text towers": " + ".join(phase.config.text.towers),
            "loss": phase.config.loss.name,
            "training photos": str(len(phase.images)),
            "texts shuffled": str(phase.config.dataset.shuffle_texts),
        }
        write_text_report(
            self.run.path / "report.html",
            self.run.name,
            facts,
            phase.test,
            phase.relevance,
            evaluation,
        )
