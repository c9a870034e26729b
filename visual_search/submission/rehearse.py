"""A rehearsal: a submission measured under the evaluator's limits, and what comes of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from visual_search.common.errors import UserError
from visual_search.data.dev_sets import DevSet
from visual_search.evaluation.dev_set import Evaluation, evaluate_answer
from visual_search.ranking.deadline import LIGHTER
from visual_search.submission.dry_run import Answer, Stage, draw_data
from visual_search.submission.runtime_estimate import (
    DRY_SECONDS,
    DRY_SIZE,
    USED_SHARE,
    ImageCounts,
    LargestSize,
    Run,
    dry_counts,
    find_largest_size,
    fits,
    predict,
)
from visual_search.submission.sandbox import GB, Limits


class Rehearsal(NamedTuple):
    """What a rehearsal measured and concluded."""

    answer: Answer
    """Of the submission as it is, on the whole development set."""
    evaluation: Evaluation
    facts: dict[str, Any]
    """All of it for result.json; `failure` says why the hidden test would go past the limits."""
    tables: dict[str, dict[str, str]]
    """The same for people: titles, and names and values under each."""


def rehearse(
    stage: Stage,
    data: Path,
    dev_set: DevSet,
    hidden_test: ImageCounts,
    sample: int,
    look_for_size: bool,
) -> Rehearsal:
    """Run the submission as the evaluator would, and say what would happen there.

    Args:
        stage: the submission.
        data: folder of a development set, with products.
        dev_set: the same, as it was read.
        hidden_test: how much there is to rank there.
        sample: images of the runs that look for the largest input size.
        look_for_size: whether to do so.

    Raises:
        UserError: one sentence, when the submission would fail.
    """
    limits = stage.limits
    _announce("the whole development set")
    answer = stage.answer(data)
    evaluation = evaluate_answer(dev_set, answer.ranks, answer.log)
    sampled, few = answer.run, None
    if answer.run.counts.total >= 2 * sample:
        few = sample
        _announce(f"a sample of {sample} images", answer.run.input_size)
        sampled = stage.answer(data, sample=few).run
    dry = _dry_run(stage, answer.run, hidden_test)
    expected = predict(answer.run, hidden_test, limits.core_share, sampled, dry)

    def measure(size: int) -> Run:
        _announce("a sample", size)
        return stage.answer(data, size, few).run

    found, score = LargestSize(None, reason="not looked for (--no-largest-size)"), None
    if look_for_size:
        found = find_largest_size(measure, expected, sampled, limits)
    if found.input_size and found.input_size == answer.run.input_size:
        score = evaluation.mean_average_precision
    elif found.input_size:
        _announce("the whole development set, for its mAP,", found.input_size)
        try:
            larger = stage.answer(data, found.input_size)
            larger_evaluation = evaluate_answer(dev_set, larger.ranks, larger.log)
            score = larger_evaluation.mean_average_precision
        except UserError as refused:
            reason = f"{found.input_size} px failed on the whole development set: {refused}"
            found = LargestSize(None, found.trials, reason)
    failure = None if fits(expected, limits) else _too_large(limits, expected, found)
    # A ranker that watches the time gives up what it must, and answers.
    watches = (answer.log.get("clock") or {}).get("limit_seconds")
    if failure and watches and expected.peak_memory <= limits.memory:
        stage.notes.append(
            f"{failure}; as it stands, the ranker would lower the resolution on the way"
        )
        failure = None
    facts = {
        "passed": failure is None,
        "failure": failure,
        "limits": {**asdict(limits), "kept_by": limits.described()},
        "measured": _facts(answer.run),
        "peak_gpu_memory": answer.outcome.peak_gpu_memory,
        "hidden_test": _facts(expected),
        "largest_size": {
            "input_size": found.input_size,
            "reason": found.reason,
            "trials": [
                {**_facts(trial), "fits": fits(trial, limits, USED_SHARE)} for trial in found.trials
            ],
            "mAP": score,
        },
        "notes": stage.notes,
    }
    scaling = "none: as many cores here as there"
    if limits.core_share < 1:
        cores = f"{limits.cores} cores there, {len(limits.cores_here)} here"
        scaling = f"embedding and ranking x {limits.core_share:.2f}: {cores}"
    tables = {
        "Limits": limits.described(),
        f"Measured on {answer.run.counts}": _measured_rows(answer),
        f"Expected on {hidden_test}": {
            "scaling": scaling,
            "ranking and memory from": str((dry or answer.run).counts),
            **_rows(expected),
        },
        "Largest input size that fits": _size_rows(found, score, limits),
        "Notes": {f"note {number}": note for number, note in enumerate(stage.notes, start=1)},
    }
    return Rehearsal(
        answer, evaluation, facts, {title: rows for title, rows in tables.items() if rows}
    )


def _announce(step: str, size: int | None = None) -> None:
    """Tell what is being run, at once."""
    print(f"running: {step}{f' at {size} px' if size else ''}", flush=True)


def _dry_run(stage: Stage, run: Run, hidden_test: ImageCounts) -> Run | None:
    """A run with the rows of the hidden test, for what its ranking and memory really take."""
    # Far below the limit that ends it, as a tiny image may cost more than is taken for granted.
    seconds = min(DRY_SECONDS, stage.limits.allowed_seconds / 5)
    counts = dry_counts(run, hidden_test, seconds)
    _announce(f"{counts}, drawn and tiny, for ranking time and memory", DRY_SIZE)
    try:
        drawn = draw_data(stage.folder / "drawn", counts)
        # An ONNX network is of one size: at this one PyTorch runs in its place.
        return stage.answer(drawn, DRY_SIZE, allow_fallback=True).run
    except UserError as refused:
        stage.notes.append(
            f"ranking and memory are scaled from the development set, a run at {DRY_SIZE} px "
            f"with {counts} failed: {refused}"
        )
        return None


def _too_large(limits: Limits, expected: Run, found: LargestSize) -> str:
    """Why the hidden test would go past the limits, and the way out."""
    way_out = found.reason or f"take {LIGHTER}"
    if found.input_size:
        way_out = (
            f"{found.input_size} px fits: export it again with `python my_submission/"
            f"to_torchscript.py runs/<name> --input_size {found.input_size}`, or take {LIGHTER}"
        )
    return (
        f"the hidden test would take {expected.seconds:.0f} s and "
        f"{expected.peak_memory / GB:.2f} GB; the limits are {limits.seconds:g} s and "
        f"{limits.memory / GB:g} GB: {way_out}"
    )


def _facts(run: Run) -> dict[str, Any]:
    return {**asdict(run), "seconds": run.seconds, "images_per_second": 1 / run.embedding_per_image}


def _rows(run: Run) -> dict[str, str]:
    return {
        "model loading": f"{run.loading:.2f} s",
        "embedding, decode included": f"{run.embedding:.2f} s "
        f"({1 / run.embedding_per_image:.1f} images/s)",
        "ranking": f"{run.ranking:.2f} s",
        "re-ranking": f"{run.reranking:.2f} s",
        "in all": f"{run.seconds:.2f} s",
        "peak memory": f"{run.peak_memory / GB:.2f} GB",
    }


def _measured_rows(answer: Answer) -> dict[str, str]:
    run, on_gpu, unsaid = answer.run, answer.outcome.peak_gpu_memory, "not said by the ranker"
    return {
        "input size": f"{run.input_size} px" if run.input_size else unsaid,
        "import, before the timed call": f"{answer.outcome.times['import']:.2f} s",
        **_rows(run),
        "decode": unsaid if run.decode is None else f"{run.decode:.2f} s",
        **({} if on_gpu is None else {"peak GPU memory": f"{on_gpu / GB:.2f} GB"}),
    }


def _size_rows(found: LargestSize, score: float | None, limits: Limits) -> dict[str, str]:
    rows = {
        f"{trial.input_size} px": f"{1 / trial.embedding_per_image:.1f} images/s, "
        f"{trial.seconds:.0f} s and {trial.peak_memory / GB:.2f} GB there: "
        + ("fits" if fits(trial, limits, USED_SHARE) else "does not fit")
        for trial in found.trials
    }
    if found.input_size is None:
        return {**rows, "largest": f"none: {found.reason}"}
    scored = "" if score is None else f", mAP {score:.4f} on the development set"
    reason = f" ({found.reason})" if found.reason else ""
    kept = f"{1 - USED_SHARE:.0%} of the time and of the memory"
    return {**rows, "largest": f"{found.input_size} px{scored}{reason}", "kept in reserve": kept}
