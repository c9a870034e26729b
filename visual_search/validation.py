"""Validation inside training: score the development set, keep the last and the best model."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visual_search.common.environment import environment_in_words, environment_of
from visual_search.common.run_folder import RunFolder
from visual_search.evaluation.dev_set import Evaluation, evaluate_on_dev_set, see_dev_set
from visual_search.evaluation.report import write_report
from visual_search.model.averaging import WeightSoup
from visual_search.model.checkpoint import load_checkpoint, plain_state, save_checkpoint
from visual_search.model.projections import Whitening, fit_unlabelled, fit_whitening
from visual_search.model.weights import read_state_dict
from visual_search.ranking.embed import embed_images, mean_of_units
from visual_search.ranking.rerank import Step, describe_steps, named_steps

if TYPE_CHECKING:
    from visual_search.common.model_config import EmbedSettings
    from visual_search.config import PhaseConfig, TrainConfig
    from visual_search.data.datasets import LabelledImages
    from visual_search.model.averaging import ExponentialAverage
    from visual_search.model.embedder import Embedder
    from visual_search.phase import ImagePhase, Phase


class BestCheckpoint(ABC):
    """Scores the model now and then, whatever it is scored by; keeps the last and the best."""

    def __init__(
        self, phase: Phase, run: RunFolder, average: ExponentialAverage | None = None
    ) -> None:
        """
        Args:
            phase: what is trained.
            run: where checkpoints and scores go.
            average: of the weights; where there is one, it is what is scored and kept.
        """
        self.phase, self.run, self.device, self.average = phase, run, phase.device, average
        last = phase.config.train.soup_last
        self.soup = WeightSoup(last, run.path / "soup") if last else None
        """Of the last validations' weights; tried at the end."""
        self.best: dict[str, Any] = {"mAP": -1.0, "epoch": 0, "step": 0}
        self.stale = 0
        """Validations since the best one."""
        self.best_evaluation: Any = None
        """Of the best model, unless it was found before the run was killed and continued."""

    def validate_before_training(self) -> None:  # noqa: B027 - of image–text phases
        """Score a new run before its first step, where that says something."""

    def validate(self, epoch: int, step: int, head: Mapping[str, Tensor]) -> float:
        """Score, save `last/`, and `best/` if it is; returns the mAP, 0..1.

        Args:
            epoch: 1-based.
            step: optimiser steps so far.
            head: the head's tensors, kept beside the embedder's.
        """
        embedder = self.phase.learner.embedder
        with self.average.swapped() if self.average else nullcontext():
            score = self._keep(epoch, step, head)
            if self.soup is not None:
                self.soup.add(embedder.state_dict())
        return score

    def finish(self, epoch: int, step: int, head: Mapping[str, Tensor]) -> Any:
        """Try the soup, and evaluate the best model for the report."""
        embedder = self.phase.learner.embedder
        if self.soup is not None and len(self.soup) > 1:
            embedder.load_state_dict(self.soup.average())
            print(f"average of the last {len(self.soup)} validated models:", flush=True)
            self._keep(epoch, step, head, soup=True)
        embedder.load_state_dict(plain_state(load_checkpoint(self.run.best)))
        whitened = self._whiten(epoch, step)
        evaluation = whitened or self.best_evaluation or self._evaluate()
        self._report(evaluation)
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """What a continued run has to know."""
        soup = self.soup.state_dict() if self.soup is not None else {}
        return {"best": dict(self.best), "stale": self.stale, "soup": soup}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.best, self.stale = dict(state["best"]), int(state["stale"])
        if self.soup is not None:
            self.soup.load_state_dict(state["soup"])

    def _keep(self, epoch: int, step: int, head: Mapping[str, Tensor], soup: bool = False) -> float:
        evaluation = self._evaluate()
        score = evaluation.mean_average_precision
        self._log(evaluation)
        self.run.log(kind="soup" if soup else "validation", epoch=epoch, step=step, mAP=score)
        averaged = "soup" if soup else "ema" if self.average else "no"
        facts = {**self._all_facts(epoch, step, score), "averaged": averaged}
        states = self.phase.learner.embedder.state_dict(), head
        if not soup:
            self._save(self.run.last, *states, facts)
        better = score > self.best["mAP"]
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best = {"mAP": score, "epoch": epoch, "step": step}
            self.best_evaluation = evaluation
            self._save(self.run.best, *states, facts)
        note = " (best so far)" if better else ""
        print(f"epoch {epoch}, step {step}: mAP {score:.4f}{note}", flush=True)
        return score

    def _save(
        self,
        folder: Path,
        embedder: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        save_checkpoint(folder, self.phase.architecture, embedder, head, facts)

    def _whiten(self, epoch: int, step: int) -> Any:
        """Try a last improvement on the best model; None where there is none."""
        return None

    def _log(self, evaluation: Any) -> None:  # noqa: B027 - of image–text phases
        """Keep more of a validation than its score."""

    def _all_facts(self, epoch: int, step: int, score: float) -> dict[str, Any]:
        """What `model.json` says of a checkpoint."""
        return {
            "run": self.run.name,
            "epoch": epoch,
            "step": step,
            "mAP": score,
            "embedding": dataclasses.asdict(self.phase.config.embedding),
            "data": self.phase.data.of_a_model(),
            "environment": environment_of(self.run.path),
            **self._facts(),
        }

    @abstractmethod
    def _evaluate(self) -> Any:
        """Score the model as it is, by a `mean_average_precision`, 0..1; its mode is kept."""

    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What `model.json` says of this kind of phase alone: its losses, at the least."""

    @abstractmethod
    def _report(self, evaluation: Any) -> None:
        """Write down what the best model answers."""


def fit_whitenings(
    embedder: Embedder,
    images: LabelledImages,
    input_size: int,
    train: TrainConfig,
    *,
    settings: EmbedSettings,
    device: torch.device,
) -> dict[str, Whitening]:
    """The whitenings that `train.whitening` and `train.whitening_power` ask for, by their names.

    Args:
        embedder: without a neck, in evaluation mode, on `device`.
        images: those of the training, with their classes.
        input_size: pixels.
        train: the settings.
        settings: how images are embedded.
        device: where the model is.
    """
    labels, weights = torch.from_numpy(images.labels), images.weights()
    found = embed_images(
        embedder,
        [images.item(i) for i in range(len(images))],
        input_size,
        device=device,
        settings=settings,
        label="whitening",
        each_view=True,
    )
    views = found.matrix.chunk(len(settings.fits), dim=1)
    fitted: dict[str, Whitening] = {}
    if train.whitening:
        fitted["whitened"] = fit_whitening(mean_of_units(views), labels, train.whitening, weights)
    if train.whitening_power:
        weights = None if weights is None else weights.repeat(len(views))
        fitted["whitened without classes"] = fit_unlabelled(
            torch.cat(views), train.whitening_dimension, train.whitening_power, weights=weights
        )
    return fitted


def validation_steps(config: PhaseConfig) -> tuple[Step, ...]:
    """Those that validation ranks by."""
    return named_steps(config.rerank if config.train.validate_reranked else (), [], "rerank")


class Validator(BestCheckpoint):
    """Scores an image embedder on a development set."""

    phase: ImagePhase

    def _facts(self) -> dict[str, Any]:
        steps = named_steps(self.phase.config.rerank, [], "rerank")
        return {
            "losses": losses_of(self.phase),
            "trained_on_test": self.phase.config.dataset.train_on_test,
            **({"rerank": describe_steps(steps)} if steps else {}),
        }

    def _whiten(self, epoch: int, step: int) -> Evaluation | None:
        """Fit whitenings behind the best model; None where there is none or none helps."""
        train, phase = self.phase.config.train, self.phase
        if not train.whitening and not train.whitening_power:
            return None
        embedder = phase.learner.embedder.eval()
        fitted = fit_whitenings(
            embedder,
            phase.images.images,
            phase.architecture.input_size,
            train,
            settings=phase.config.embedding.unmeasured(self.device.type == "cuda"),
            device=self.device,
        )
        kept, best, steps = embedder.neck, None, validation_steps(phase.config)
        # None with mirrors or crops, and where the run was killed after its best validation.
        seen = self.best_evaluation.seen if self.best_evaluation else None
        for name, whitening in fitted.items():
            embedder.neck = whitening.to(self.device)
            if seen is None:
                evaluation = self._evaluate()
            else:
                evaluation = seen.evaluate(whitening, self.device, steps)
            score = evaluation.mean_average_precision
            self.run.log(kind="whitening", epoch=epoch, step=step, mAP=score)
            helps = score > self.best["mAP"]
            note = " (best so far)" if helps else ", left out"
            print(f"{name}: mAP {score:.4f}{note}", flush=True)
            if helps:
                kept, best = embedder.neck, evaluation
                self.best = {**self.best, "mAP": score}
                architecture = phase.architecture.whitened(whitening)
                facts = {**load_checkpoint(self.run.best).facts, "mAP": score}
                head = read_state_dict(self.run.best / "head.safetensors")  # not the last one
                save_checkpoint(self.run.best, architecture, embedder.state_dict(), head, facts)
        embedder.neck = kept
        return best

    def _evaluate(self) -> Evaluation:
        phase, steps = self.phase, validation_steps(self.phase.config)
        embedder, train = phase.learner.embedder, phase.config.train
        settings = phase.config.embedding.unmeasured(self.device.type == "cuda")
        training = embedder.training
        embedder.eval()
        if phase.seen is not None:
            found = phase.seen.evaluate(embedder.neck, self.device, steps)
        else:
            where = phase.dev_set, phase.architecture.input_size
            if (train.whitening or train.whitening_power) and settings.copies == 1:
                # Kept, so that a whitening is judged without looking at the images again.
                seen = see_dev_set(embedder, *where, device=self.device, settings=settings)
                found = seen.evaluate(nn.Identity(), self.device, steps)
            else:
                found = evaluate_on_dev_set(
                    embedder, *where, device=self.device, settings=settings, steps=steps
                )
        embedder.train(training)
        return found

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
                "training images": str(len(phase.images)),
                "trained on Product10K's test images": str(phase.config.dataset.train_on_test),
                "images shared with training": phase.data.leak_words()
                or "looked for, see leaks.csv",
                "trained with": environment_in_words(environment_of(self.run.path)),
            },
            phase.dev_set,
            evaluation,
        )


def losses_of(phase: ImagePhase) -> str:
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
