"""A rehearsal: a submission measured under the evaluator's limits, scored, and what comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from visual_search.common.errors import UserError
from visual_search.common.files import write_json
from visual_search.data.dev_sets import read_dev_set
from visual_search.evaluation.dev_set import Evaluation, evaluate_answer, unmatched_sentence
from visual_search.evaluation.report import write_report
from visual_search.ranking.deadline import LIGHTER, degradations, listed
from visual_search.submission.dry_run import Answer, DrawnImages, RealImages, Stage, staged
from visual_search.submission.runtime_estimate import (
    DRY_SECONDS,
    DRY_SIZE,
    HIDDEN_TEST,
    USED_SHARE,
    ImageCounts,
    LargestSize,
    Run,
    dry_counts,
    find_largest_size,
    fits,
    predict,
)
from visual_search.submission.sandbox import GB, Limits, Sandbox


@dataclass(frozen=True)
class Request:
    """What a rehearsal was asked for."""

    project: Path
    """The folder of the submission, in its git repository."""
    data: Path
    """A development set, with products."""
    output: Path
    limits: Limits
    working_tree: bool = False
    weights: Path | None = None
    sample: int = 200
    """Images of the runs that look for the largest input size."""
    largest_size: bool = True
    hidden_test: ImageCounts = HIDDEN_TEST
    report_queries: int = 100
    allow_fallback: bool = False
    """Pass a ranker that says that something runs the slow way."""


def rehearse(request: Request) -> None:
    """Run the submission as the evaluator would, and say what would happen there.

    Raises:
        UserError: one sentence, when the submission would fail. It is in result.json as well.
    """
    images = RealImages(request.data, read_dev_set(request.data))
    what = "the working tree" if request.working_tree else "the last commit"
    print(f"{request.data}: {images.counts}; rehearsing {what}")
    try:
        with staged(
            request.project,
            request.limits,
            request.output / "rehearsal_log.txt",
            working_tree=request.working_tree,
            weights=request.weights,
        ) as stage:
            stage.allow_fallback = request.allow_fallback
            rehearsed = _measure(request, stage, images)
    except UserError as refused:
        result = {"rehearsal": {"passed": False, "failure": str(refused)}}
        write_json(request.output / "result.json", result)
        raise
    _print_tables(rehearsed)
    _write_result(rehearsed)
    print({"mAP": rehearsed.evaluation.mean_average_precision})
    print(f"report: {request.output / 'report.html'}")
    if rehearsed.failure:
        raise UserError(rehearsed.failure)
    print("the rehearsal passed; next: python -m my_submission.preflight")


@dataclass(frozen=True)
class Rehearsed:
    """Everything that a rehearsal measured and concluded."""

    request: Request
    images: RealImages
    sandbox: Sandbox
    answer: Answer
    """Of the submission as it is, on the whole development set."""
    evaluation: Evaluation
    scaled_from: ImageCounts
    """Whose ranking time and memory were scaled to the hidden test."""
    prediction: Run
    largest: LargestSize
    notes: list[str]
    failure: str | None
    """Why the hidden test would go past the limits."""


def _measure(request: Request, stage: Stage, images: RealImages) -> Rehearsed:
    sandbox, limits = stage.sandbox, stage.sandbox.limits
    _announce("the whole development set")
    answer = stage.answer(images)
    evaluation = evaluate_answer(images.dev_set, answer.ranks, answer.log)
    if sentence := unmatched_sentence(images.dev_set):
        stage.notes.append(sentence)
    sampled, sample = images, answer.run
    if images.counts.total >= 2 * request.sample:
        sampled = replace(images, sample=request.sample)
        _announce(f"a sample of {request.sample} images", sample.input_size)
        sample = stage.answer(sampled).run
    dry = _dry_run(request, stage, answer.run)
    prediction = predict(answer.run, request.hidden_test, sandbox.core_share, sample, dry)
    found = LargestSize(None, reason="not looked for (--no-largest-size)")
    if request.largest_size:
        found = find_largest_size(partial(_run_at, stage, sampled), prediction, sample, limits)
        found = _scored(found, stage, images, answer, evaluation.mean_average_precision)
    failure = None if fits(prediction, limits) else _too_large(limits, prediction, found)
    # A ranker that watches the time gives up what it must, and answers.
    watches = (answer.log.get("clock") or {}).get("limit_seconds")
    if failure and watches and prediction.peak_memory <= limits.memory:
        stage.notes.append(
            f"{failure}; as it stands, the ranker would lower the resolution on the way"
        )
        failure = None
    return Rehearsed(
        *(request, images, sandbox, answer, evaluation, (dry or answer.run).counts),
        *(prediction, found, stage.notes, failure),
    )


def _run_at(stage: Stage, sampled: RealImages, size: int) -> Run:
    _announce("a sample", size)
    return stage.answer(sampled, size).run


def _scored(
    found: LargestSize, stage: Stage, images: RealImages, answer: Answer, own_map: float
) -> LargestSize:
    """The largest size with its mAP, by a run over the whole development set."""
    if found.input_size is None:
        return found
    if found.input_size == answer.run.input_size:
        return replace(found, score=own_map)
    _announce("the whole development set, for its mAP,", found.input_size)
    try:
        larger = stage.answer(images, found.input_size)
        evaluation = evaluate_answer(images.dev_set, larger.ranks, larger.log)
    except UserError as refused:
        reason = f"{found.input_size} px failed on the whole development set: {refused}"
        return LargestSize(None, found.trials, reason)
    return replace(found, score=evaluation.mean_average_precision)


def _announce(step: str, size: int | None = None) -> None:
    """Tell what is being run, at once."""
    print(f"running: {step}{f' at {size} px' if size else ''}", flush=True)


def _dry_run(request: Request, stage: Stage, run: Run) -> Run | None:
    """A run with the rows of the hidden test, for what its ranking and memory really take."""
    # Far below the limit that ends it, as a tiny image may cost more than is taken for granted.
    seconds = min(DRY_SECONDS, stage.sandbox.allowed_seconds / 5)
    counts = dry_counts(run, request.hidden_test, seconds)
    _announce(f"{counts}, drawn and tiny, for ranking time and memory", DRY_SIZE)
    try:
        return stage.answer(DrawnImages(counts), DRY_SIZE).run
    except UserError as refused:
        stage.notes.append(
            f"ranking and memory are scaled from the development set, a run at {DRY_SIZE} px "
            f"with {counts} failed: {refused}"
        )
        return None


def _too_large(limits: Limits, prediction: Run, found: LargestSize) -> str:
    """Why the hidden test would go past the limits, and the way out."""
    way_out = found.reason or f"take {LIGHTER}"
    if found.input_size:
        way_out = (
            f"{found.input_size} px fits: export it again with `python my_submission/"
            f"to_torchscript.py runs/<name> --input_size {found.input_size}`, or take {LIGHTER}"
        )
    return (
        f"the hidden test would take {prediction.seconds:.0f} s and "
        f"{prediction.peak_memory / GB:.2f} GB; the limits are {limits.seconds:g} s and "
        f"{limits.memory / GB:g} GB: {way_out}"
    )


def _tables(rehearsed: Rehearsed) -> dict[str, dict[str, str]]:
    """Titles, and names and values under each, as they are printed."""
    sandbox, expected = rehearsed.sandbox, rehearsed.prediction
    limits, share = sandbox.limits, sandbox.core_share
    stretched, scaling = "", "none: as many cores here as there"
    if share < 1:
        stretched = f" there, {sandbox.allowed_seconds:g} s on the cores of this machine"
        cores = f"{limits.cores} cores there, {len(sandbox.cores)} here"
        scaling = f"embedding and ranking x {share:.2f}: {cores}"
    return {
        "Limits": {"time": f"{limits.seconds:g} s{stretched}", **sandbox.described()},
        f"Measured on {rehearsed.images.counts}": _measured_rows(rehearsed.answer),
        f"Expected on {rehearsed.request.hidden_test}": {
            "scaling": scaling,
            "ranking and memory from": str(rehearsed.scaled_from),
            "model loading": _seconds(expected.loading),
            "embedding": _seconds(expected.embedding),
            "ranking, or kept for it": _seconds(expected.ranking),
            "re-ranking, or kept for it": _seconds(expected.reranking),
            "in all": f"{expected.seconds:.0f} s of {limits.seconds:g} s",
            "memory": f"{expected.peak_memory / GB:.2f} GB of {limits.memory / GB:g} GB",
        },
        "Largest input size that fits": _size_rows(rehearsed.largest, limits),
    }


def _measured_rows(answer: Answer) -> dict[str, str]:
    run, rate = answer.run, 1 / answer.run.embedding_per_image
    rows = {
        "input size": f"{run.input_size} px" if run.input_size else "not said by the ranker",
        "model loading": _seconds(run.loading),
        "decode": _seconds(run.decode),
        "embedding, decode included": f"{_seconds(run.embedding)} ({rate:.1f} images/s)",
        "ranking": _seconds(run.ranking),
        "re-ranking": _seconds(run.reranking),
        "timed call": _seconds(answer.outcome.times["rank"]),
        "import, before the timed call": _seconds(answer.outcome.times["import"]),
        "peak memory": f"{run.peak_memory / GB:.2f} GB",
    }
    if given_up := degradations(answer.log.get("clock") or {}, run.input_size):
        rows["given up to be in time"] = listed(given_up)
    if answer.outcome.peak_gpu_memory is not None:
        rows["peak GPU memory"] = f"{answer.outcome.peak_gpu_memory / GB:.2f} GB"
    return rows


def _size_rows(found: LargestSize, limits: Limits) -> dict[str, str]:
    rows = {
        f"{trial.input_size} px": f"{1 / trial.embedding_per_image:.1f} images/s, "
        f"{trial.seconds:.0f} s and {trial.peak_memory / GB:.2f} GB there: "
        + ("fits" if fits(trial, limits, USED_SHARE) else "does not fit")
        for trial in found.trials
    }
    if found.input_size is None:
        return {**rows, "largest": f"none: {found.reason}"}
    scored = "" if found.score is None else f", mAP {found.score:.4f} on the development set"
    reason = f" ({found.reason})" if found.reason else ""
    kept = f"{1 - USED_SHARE:.0%} of the time and of the memory"
    largest = f"{found.input_size} px{scored}{reason}"
    return {**rows, "largest": largest, "kept in reserve": kept}


def _seconds(value: float | None) -> str:
    return "not said by the ranker" if value is None else f"{value:.2f} s"


def _print_tables(rehearsed: Rehearsed) -> None:
    tables = _tables(rehearsed)
    width = max(len(name) for rows in tables.values() for name in rows)
    for title, rows in tables.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")
    for note in rehearsed.notes:
        print(f"\nnote: {note}")
    print()


def _stages(run: Run, digits: int) -> dict[str, float]:
    names = ("loading", "embedding", "ranking", "reranking")
    return {name: round(getattr(run, name), digits) for name in names}


def _expected_json(run: Run) -> dict[str, float]:
    return {**_stages(run, 1), "memory": run.peak_memory, "seconds": round(run.seconds)}


def _write_result(rehearsed: Rehearsed) -> None:
    """Write result.json and report.html."""
    answer, score = rehearsed.answer, rehearsed.evaluation.mean_average_precision
    run, total, problems = answer.run, answer.outcome.times["rank"], answer.log.get("problems", [])
    found, sandbox, output = rehearsed.largest, rehearsed.sandbox, rehearsed.request.output
    trials = [
        {
            "input_size": trial.input_size,
            "images_per_second": round(1 / trial.embedding_per_image, 2),
            "fits": fits(trial, sandbox.limits, USED_SHARE),
            **_expected_json(trial),
        }
        for trial in found.trials
    ]
    result: dict[str, Any] = {
        "mAP": score,
        "seconds": round(total, 2),
        "images_per_second": round(run.counts.total / total, 1),
        "queries": run.counts.queries,
        "queries_without_match": rehearsed.images.dev_set.unmatched,
        "gallery": run.counts.gallery,
        "data_folder": str(rehearsed.images.folder),
        "problems": problems,
        "rehearsal": {
            "passed": rehearsed.failure is None,
            "failure": rehearsed.failure,
            "limits": {**asdict(sandbox.limits), "kept_by": sandbox.described()},
            "input_size": run.input_size,
            "seconds": {"total": round(total, 3), **_stages(run, 3), "decode": run.decode},
            "peak_memory": run.peak_memory,
            "peak_gpu_memory": answer.outcome.peak_gpu_memory,
            "hidden_test": _expected_json(rehearsed.prediction),
            "largest_size": {
                "input_size": found.input_size,
                "reason": found.reason,
                "trials": trials,
                "mAP": found.score,
            },
            "clock": answer.log.get("clock"),
            "notes": rehearsed.notes,
        },
    }
    write_json(output / "result.json", result)
    notes = {f"note {number}": note for number, note in enumerate(rehearsed.notes, start=1)}
    write_report(
        output / "report.html",
        f"{rehearsed.images.folder.resolve().name}, rehearsed: mAP {score:.4f}",
        {"mAP": f"{score:.4f}", **notes},
        rehearsed.images.dev_set,
        rehearsed.evaluation,
        rehearsed.request.report_queries,
        sections=_tables(rehearsed),
    )
