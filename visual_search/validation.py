"""Validation inside training: score the development set, keep the last and the best model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visual_search.checkpoint import save_checkpoint
from visual_search.embed import embed_images
from visual_search.evaluate import Evaluation, evaluate_on_dev_set
from visual_search.imprinting import Head
from visual_search.keeper import Keeper
from visual_search.phase import Phase
from visual_search.report import write_report
from visual_search.sampled_classes import SampledMarginHead
from visual_search.whitening import fit_whitening


class Validator(Keeper[Evaluation]):
    """Scores an image embedder on a development set."""

    phase: Phase

    def _facts(self, epoch: int, step: int, score: float) -> dict[str, Any]:
        return {
            "run": self.run.name,
            "losses": losses_of(self.phase),
            "epoch": epoch,
            "step": step,
            "mAP": score,
            "trained_on_test": self.phase.config.dataset.train_on_test,
            "embedding": dataclasses.asdict(self.phase.config.embedding),
        }

    def _whiten(self, epoch: int, step: int, head: Mapping[str, Tensor]) -> Evaluation | None:
        """Fit a whitening behind the best model; None where there is none or it does not help."""
        shrinkage, phase = self.phase.config.train.whitening, self.phase
        if not shrinkage:
            return None
        embedder, images = phase.learner.embedder.eval(), phase.images.images
        embedded = embed_images(
            embedder,
            [images.item(i) for i in range(len(images))],
            phase.architecture.input_size,
            device=self.device,
            settings=self.phase.config.embedding.unmeasured(self.device.type == "cuda"),
            label="whitening",
        )
        labels = torch.from_numpy(images.labels)
        fitted = fit_whitening(embedded.matrix, labels, shrinkage, images.weights())
        before, embedder.neck = embedder.neck, fitted.to(self.device)
        evaluation = self._evaluate()
        score = evaluation.mean_average_precision
        self.run.log(kind="whitening", epoch=epoch, step=step, mAP=score)
        helps = score > self.best["mAP"]
        print(f"whitened: mAP {score:.4f}{' (best so far)' if helps else ', left out'}", flush=True)
        if not helps:
            embedder.neck = before
            return None
        self.best = {**self.best, "mAP": score}
        architecture = dataclasses.replace(phase.architecture, neck="whitening")
        facts = self._facts(self.best["epoch"], self.best["step"], score)
        save_checkpoint(self.run.best, architecture, embedder.state_dict(), head, facts)
        return evaluation

    def _evaluate(self) -> Evaluation:
        embedder, frozen = self.phase.learner.embedder, self.phase.frozen
        training = embedder.training
        if frozen is not None:
            found = frozen.evaluate(embedder.neck.eval(), self.phase.dev_set, self.device)
            embedder.train(training)
            return found
        evaluation = evaluate_on_dev_set(
            embedder.eval(),
            self.phase.dev_set,
            self.phase.architecture.input_size,
            device=self.device,
            settings=self.phase.config.embedding.unmeasured(self.device.type == "cuda"),
        )
        embedder.train(training)
        return evaluation

    def _report(self, evaluation: Evaluation) -> None:
        phase = self.phase
        score = evaluation.mean_average_precision
        write_report(
            self.run.path / "report.html",
            f"{self.run.name}: mAP {score:.4f}",
            {
                "mAP": f"{score:.4f}",
                "best epoch": str(self.best["epoch"]),
                "losses": losses_of(phase),
                "backbone": phase.architecture.backbone,
                "input size": f"{phase.architecture.input_size} px",
                "training photos": str(len(phase.images)),
                "trained on Product10K's test photos": str(phase.config.dataset.train_on_test),
                "photos shared with training": phase.leak_warning() or "looked for, see leaks.csv",
            },
            phase.dev_set,
            evaluation,
        )


def losses_of(phase: Phase) -> str:
    """What a phase is trained by, in words."""
    config = phase.config
    words: list[str] = []
    if config.margin.weight:
        words.append(config.margin.name)
    if config.pairs.name != "none":
        words.append(config.pairs.name + (" with memory" if config.pairs.memory else ""))
    if config.distillation.run:
        words.append(f"distillation from {config.distillation.run}")
    return " + ".join(words)


def head_state(head: Head | None) -> Mapping[str, Tensor]:
    """The head's tensors for a checkpoint; all processes call it, for a sharded one is gathered."""
    if head is None:
        return {}
    return head.full_state() if isinstance(head, SampledMarginHead) else head.state_dict()
