"""A rehearsal from end to end: its runs, and what is printed, written and shown of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from visual_search.capacity import (
    DRY_SECONDS,
    DRY_SIZE,
    TEST_WORKLOAD,
    Prediction,
    Run,
    Workload,
    dry_workload,
    predict,
)
from visual_search.errors import UserError
from visual_search.evaluate import read_dev_set
from visual_search.files import write_json
from visual_search.largest_size import Bounds, LargestSize, OtherSizeFailed, find_largest_size
from visual_search.metrics import average_precision
from visual_search.rehearsal import Answer, Refused, Stage, staged
from visual_search.rehearsal_data import DrawnPhotos, RealPhotos
from visual_search.rehearsal_report import Rehearsed, print_tables, write_result
from visual_search.sandbox import GB, Limits


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
    photos = RealPhotos(request.data, read_dev_set(request.data))
    what = "the working tree" if request.working_tree else "the last commit"
    print(
        f"{request.data}: {photos.workload.queries} queries, {photos.workload.gallery} gallery "
        f"photos; rehearsing {what}"
    )
    try:
        with staged(
            request.project,
            request.limits,
            working_tree=request.working_tree,
            weights=request.weights,
            log_copy=request.output / "rehearsal_log.txt",
            data=[request.data],
        ) as stage:
            rehearsed = _measure(request, stage, photos)
    except Refused as failure:
        write_json(
            request.output / "result.json",
            {"rehearsal": {"passed": False, "failure": str(failure)}},
        )
        raise
    print_tables(rehearsed)
    write_result(rehearsed, request.output, request.report_queries)
    print({"mAP": rehearsed.mean_average_precision})
    print(f"report: {request.output / 'report.html'}")
    if rehearsed.failure:
        raise UserError(rehearsed.failure)
    print("the rehearsal passed; next: python -m my_submission.preflight")


def _measure(request: Request, stage: Stage, photos: RealPhotos) -> Rehearsed:
    announce(f"the whole development set{_at(stage.input_size)}")
    answer = stage.answer(photos)
    dev_set = photos.dev_set
    scores = average_precision(answer.ranks, dev_set.gallery_products, dev_set.query_products)
    sampled = photos
    sample = answer.run
    if photos.workload.images >= 2 * request.sample:
        sampled = replace(photos, sample=request.sample)
        announce(f"a sample of {request.sample} photos{_at(answer.run.input_size)}")
        sample = stage.answer(sampled).run
    dry = _dry(request, stage, answer)
    prediction = predict(
        answer.run,
        request.hidden_test,
        stage.isolation.core_share,
        None if sampled is photos else sample,
        dry,
    )
    found = LargestSize(None, (), "not looked for (--no-largest-size)")
    if request.largest_size:
        found = _largest(request, stage, sampled, sample, prediction)
    found, largest_map = _scored(stage, photos, answer, found, float(scores.mean()))
    failure = too_large(stage.limits, prediction, found)
    if failure and answer.keeps_time and prediction.seconds > stage.limits.seconds:
        stage.notes.append(
            f"{failure}; as it stands, the ranker's clock would lower the resolution on the way"
        )
        failure = None
    return Rehearsed(
        photos,
        request.hidden_test,
        stage.limits,
        stage.isolation,
        answer,
        scores,
        dry,
        prediction,
        found,
        largest_map,
        tuple(stage.notes),
        failure,
    )


def announce(step: str) -> None:
    """Tell what is being run, at once."""
    print(f"running: {step}", flush=True)


def _at(size: int | None) -> str:
    return f" at {size} px" if size else ""


def _dry(request: Request, stage: Stage, answer: Answer) -> Run | None:
    """A run with the rows of the hidden test, for what its ranking and memory really take."""
    # Far below the limit that ends it, as a tiny photo may cost more than is taken for granted.
    seconds = min(DRY_SECONDS, stage.allowed_seconds / 5)
    workload = dry_workload(answer.run, request.hidden_test, seconds)
    announce(f"{workload.described}, drawn and tiny, for ranking time and memory")
    try:
        return stage.answer(DrawnPhotos(workload), DRY_SIZE).run
    except Refused as failure:
        stage.notes.append(
            f"ranking and memory are scaled from the development set, a run at {DRY_SIZE} px "
            f"with {workload.described} failed: {failure}"
        )
        return None


def _largest(
    request: Request, stage: Stage, sampled: RealPhotos, sample: Run, prediction: Prediction
) -> LargestSize:
    def run_sample(size: int) -> Run:
        try:
            return stage.answer(sampled, size).run
        except Refused as failure:
            raise OtherSizeFailed(str(failure)) from failure

    limits = stage.limits
    bounds = Bounds(request.hidden_test, limits.seconds, limits.memory, stage.isolation.core_share)
    return find_largest_size(run_sample, prediction, sample, bounds, announce)


def _scored(
    stage: Stage, photos: RealPhotos, answer: Answer, found: LargestSize, own_map: float
) -> tuple[LargestSize, float | None]:
    """The mAP of the largest size, by a run over the whole development set."""
    if found.input_size is None:
        return found, None
    if found.input_size == answer.run.input_size:
        return found, own_map
    announce(f"the whole development set at {found.input_size} px, for its mAP")
    try:
        ranks = stage.answer(photos, found.input_size).ranks
    except Refused as failure:
        reason = f"{found.input_size} px failed on the whole development set: {failure}"
        return LargestSize(None, found.trials, reason), None
    dev_set = photos.dev_set
    scores = average_precision(ranks, dev_set.gallery_products, dev_set.query_products)
    return found, float(scores.mean())


def too_large(limits: Limits, prediction: Prediction, found: LargestSize) -> str | None:
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
