"""A rehearsal from end to end: its runs, and what is printed, written and shown of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visual_search.capacity import (
    DRY_SIZE,
    MEMORY_SHARE,
    TEST_WORKLOAD,
    TIME_SHARE,
    Prediction,
    Run,
    Workload,
    dry_workload,
    predict,
)
from visual_search.errors import UserError
from visual_search.evaluate import DevSet, Evaluation, Ranking, read_dev_set
from visual_search.files import write_json
from visual_search.images import ImageProblem
from visual_search.largest_size import (
    Bounds,
    LargestSize,
    OtherSizeFailed,
    as_json,
    find_largest_size,
)
from visual_search.metrics import average_precision
from visual_search.rehearsal import Answer, Refused, Stage, staged
from visual_search.rehearsal_data import DrawnPhotos, RealPhotos
from visual_search.report import write_report
from visual_search.sandbox import GB, Limits
from visual_search.sandbox import as_json as limits_as_json


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
    """Photos of the runs that look for the largest input size."""
    largest_size: bool = True
    hidden_test: Workload = TEST_WORKLOAD
    report_queries: int = 100


def rehearse(request: Request) -> None:
    """Run the submission as the evaluator would, and say what would happen there.

    Raises:
        UserError: one sentence, when the submission would fail. It is in result.json as well.
    """
    dev_set = read_dev_set(request.data)
    result_file = request.output / "result.json"
    try:
        with staged(
            request.project,
            request.limits,
            working_tree=request.working_tree,
            weights=request.weights,
            log_copy=request.output / "rehearsal_log.txt",
        ) as stage:
            _rehearse(request, stage, dev_set)
    except Refused as failure:
        write_json(result_file, {"rehearsal": {"passed": False, "failure": str(failure)}})
        raise


def _rehearse(request: Request, stage: Stage, dev_set: DevSet) -> None:
    what = "the working tree" if request.working_tree else "the last commit"
    print(
        f"{request.data}: {len(dev_set.queries)} queries, {len(dev_set.gallery)} gallery photos; "
        f"rehearsing {what}"
    )
    announce(f"the whole development set{_at(stage.input_size)}")
    photos = RealPhotos(request.data, dev_set)
    answer = stage.answer(photos)
    scores = average_precision(answer.ranks, dev_set.gallery_products, dev_set.query_products)
    sample = _sampled(request, stage, answer, photos)
    smaller = sample.run if sample is not answer else None
    share = stage.isolation.core_share
    dry = _dry(request, stage, answer)
    prediction = predict(answer.run, request.hidden_test, share, smaller, dry)
    found, largest_map = _largest(request, stage, answer, sample, photos, prediction)
    if found.input_size == answer.run.input_size:
        largest_map = float(scores.mean())
    notes = stage.notes
    tables = _tables(request, stage, answer, dry, prediction, found, largest_map)
    _print(tables, notes)
    failure = _too_large(stage.limits, prediction, found)
    _write(
        request,
        stage,
        dev_set,
        answer,
        scores,
        prediction,
        found,
        largest_map,
        tables,
        notes,
        failure,
    )
    print({"mAP": float(scores.mean())})
    print(f"report: {request.output / 'report.html'}")
    if failure:
        raise UserError(failure)
    print("the rehearsal passed; next: python -m my_submission.preflight")


def _too_large(limits: Limits, prediction: Prediction, found: LargestSize) -> str | None:
    """Why the hidden test would go past the limits, and the way out; None where it would not."""
    if prediction.fits(limits.seconds, limits.memory, 1.0, 1.0):
        return None
    way_out = found.reason or "take a smaller model"
    if found.input_size:
        way_out = f"export it at {found.input_size} px, which fits"
    return (
        f"the hidden test would take {prediction.seconds:.0f} s and "
        f"{prediction.memory / GB:.2f} GB; the limits are {limits.seconds:g} s and "
        f"{limits.memory / GB:g} GB: {way_out}"
    )


def announce(step: str) -> None:
    """Tell what is being run, at once."""
    print(f"running: {step}", flush=True)


def _at(size: int | None) -> str:
    return f" at {size} px" if size else ""


def _sampled(request: Request, stage: Stage, answer: Answer, photos: RealPhotos) -> Answer:
    """A run over fewer photos, for what is fixed and what grows; the whole run if it is small."""
    if answer.run.workload.images < 2 * request.sample:
        return answer
    announce(f"a sample of {request.sample} photos{_at(answer.run.input_size)}")
    return stage.answer(replace(photos, sample=request.sample))


def _dry(request: Request, stage: Stage, answer: Answer) -> Run | None:
    """A run with the rows of the hidden test, for what its ranking and memory really take."""
    workload = dry_workload(answer.run, request.hidden_test)
    announce(f"{_named(workload)}, drawn and tiny, for ranking time and memory")
    try:
        run = stage.answer(DrawnPhotos(workload), DRY_SIZE).run
    except Refused as failure:
        stage.notes.append(
            f"ranking and memory are scaled from the development set, a run at {DRY_SIZE} px "
            f"with {_named(workload)} failed: {failure}"
        )
        return None
    return run


def _largest(
    request: Request,
    stage: Stage,
    answer: Answer,
    sample: Answer,
    photos: RealPhotos,
    prediction: Prediction,
) -> tuple[LargestSize, float | None]:
    if not request.largest_size:
        return LargestSize(None, (), "not looked for (--no-largest-size)"), None
    sampled = photos if sample is answer else replace(photos, sample=request.sample)

    def run_sample(size: int) -> Run:
        try:
            return stage.answer(sampled, size).run
        except Refused as failure:
            raise OtherSizeFailed(str(failure)) from failure

    limits = stage.limits
    bounds = Bounds(request.hidden_test, limits.seconds, limits.memory, stage.isolation.core_share)
    found = find_largest_size(run_sample, prediction, sample.run, bounds, announce)
    if found.input_size in (None, answer.run.input_size):
        return found, None
    announce(f"the whole development set at {found.input_size} px, for its mAP")
    dev_set = photos.dev_set
    try:
        ranks = stage.answer(photos, found.input_size).ranks
    except Refused as failure:
        reason = f"{found.input_size} px failed on the whole development set: {failure}"
        return LargestSize(None, found.trials, reason), None
    again = average_precision(ranks, dev_set.gallery_products, dev_set.query_products)
    return found, float(again.mean())


def _tables(
    request: Request,
    stage: Stage,
    answer: Answer,
    dry: Run | None,
    prediction: Prediction,
    found: LargestSize,
    largest_map: float | None,
) -> dict[str, dict[str, str]]:
    seconds, limits = answer.run.seconds, stage.limits
    workload = answer.run.workload
    measured = {
        "input size": f"{answer.run.input_size} px" if answer.run.input_size else "not said",
        "model loading": _seconds(seconds.loading),
        "decode": _seconds(seconds.decode),
        "embedding, decode included": _seconds(seconds.embedding)
        + f" ({workload.images / max(seconds.embedding, 1e-9):.1f} images/s)",
        "ranking": _seconds(seconds.ranking),
        "re-ranking": _seconds(seconds.reranking),
        "timed call": _seconds(seconds.total),
        "import, before the timed call": _seconds(answer.outcome.times["import"]),
        "peak memory": f"{answer.run.peak_memory / GB:.2f} GB",
    }
    if answer.outcome.peak_gpu_memory is not None:
        measured["peak GPU memory"] = f"{answer.outcome.peak_gpu_memory / GB:.2f} GB"
    scaling = (
        f"embedding and ranking x {stage.isolation.core_share:.2f}: {limits.cores} cores there, "
        f"{len(stage.isolation.cores)} here"
        if stage.isolation.core_share < 1
        else "none: as many cores here as there"
    )
    hidden = {
        "scaling": scaling,
        "ranking and memory from": _named((dry or answer.run).workload),
        "model loading": _seconds(prediction.loading),
        "embedding": _seconds(prediction.embedding),
        "ranking": _seconds(prediction.ranking),
        "re-ranking": _seconds(prediction.reranking),
        "in all": f"{prediction.seconds:.0f} s of {limits.seconds:g} s",
        "memory": f"{prediction.memory / GB:.2f} GB of {limits.memory / GB:g} GB",
    }
    return {
        "Limits": {
            "time": f"{limits.seconds:g} s" + _stretched(stage),
            **stage.isolation.described(limits),
        },
        f"Measured on {_named(workload)}": measured,
        f"Expected on {_named(request.hidden_test)}": hidden,
        "Largest input size that fits": _size_rows(found, largest_map),
    }


def _stretched(stage: Stage) -> str:
    if stage.isolation.core_share == 1:
        return ""
    return f" there, {stage.allowed_seconds:g} s on the cores of this machine"


def _named(workload: Workload) -> str:
    return f"{workload.queries:,} queries and {workload.gallery:,} gallery photos"


def _seconds(value: float | None) -> str:
    return "not said by the ranker" if value is None else f"{value:.2f} s"


def _size_rows(found: LargestSize, largest_map: float | None) -> dict[str, str]:
    rows = {}
    for trial in sorted(found.trials, key=lambda trial: trial.input_size):
        word = "fits" if trial.fits else "does not fit"
        rows[f"{trial.input_size} px"] = (
            f"{trial.images_per_second:.1f} images/s, {trial.prediction.seconds:.0f} s and "
            f"{trial.prediction.memory / GB:.2f} GB there: {word}"
        )
    if found.input_size is None:
        rows["largest"] = f"none: {found.reason}"
        return rows
    score = "" if largest_map is None else f", mAP {largest_map:.4f} on the development set"
    rows["largest"] = f"{found.input_size} px{score}"
    if found.reason:
        rows["largest"] += f" ({found.reason})"
    rows["kept in reserve"] = f"{1 - TIME_SHARE:.0%} of the time, {1 - MEMORY_SHARE:.0%} of memory"
    return rows


def _print(tables: dict[str, dict[str, str]], notes: list[str]) -> None:
    width = max(len(name) for rows in tables.values() for name in rows)
    for title, rows in tables.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")
    for note in notes:
        print(f"\nnote: {note}")
    print()


def _write(
    request: Request,
    stage: Stage,
    dev_set: DevSet,
    answer: Answer,
    scores: np.ndarray,
    prediction: Prediction,
    found: LargestSize,
    largest_map: float | None,
    tables: dict[str, dict[str, str]],
    notes: list[str],
    failure: str | None,
) -> None:
    seconds, workload = answer.run.seconds, answer.run.workload
    problems = answer.log.get("problems", [])
    score = float(scores.mean())
    result: dict[str, Any] = {
        "mAP": score,
        "seconds": round(seconds.total, 2),
        "images_per_second": round(workload.images / seconds.total, 1),
        "queries": workload.queries,
        "gallery": workload.gallery,
        "data_folder": str(request.data),
        "problems": problems,
        "rehearsal": {
            "passed": failure is None,
            "failure": failure,
            "limits": limits_as_json(stage.isolation, stage.limits),
            "input_size": answer.run.input_size,
            "seconds": {
                name: None if value is None else round(value, 3)
                for name, value in vars(seconds).items()
            },
            "peak_memory": answer.run.peak_memory,
            "peak_gpu_memory": answer.outcome.peak_gpu_memory,
            "hidden_test": prediction.as_json(),
            "largest_size": {**as_json(found), "mAP": largest_map},
            "clock": answer.log.get("clock"),
            "notes": notes,
        },
    }
    write_json(request.output / "result.json", result)
    listed = tuple(ImageProblem(p["path"], p["reason"]) for p in problems)
    write_report(
        request.output / "report.html",
        f"{request.data.resolve().name}, rehearsed: mAP {score:.4f}",
        {"mAP": f"{score:.4f}", **{f"note {n}": note for n, note in enumerate(notes, start=1)}},
        dev_set,
        Evaluation(Ranking(answer.ranks, listed, seconds.embedding, seconds.ranking), scores),
        request.report_queries,
        sections=tables,
    )
