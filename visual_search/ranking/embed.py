"""A list of images to a matrix of embeddings.

Several threads, each reading a batch of images and running the model on it: on a CPU every core
is busy with one or the other and none waits; on a GPU they read while it works for one of them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from visual_search.common.errors import UserError, first_line
from visual_search.common.model_config import EmbedSettings, Fit
from visual_search.common.progress import progress_bar
from visual_search.data.image_files import hanging
from visual_search.data.images import ImageItem, ImageProblem, load_views
from visual_search.ranking.deadline import Deadline, Effort
from visual_search.ranking.inference_plan import EmbedFn, InferencePlan, call_on, plan_inference


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a list of images, and what happened on the way."""

    matrix: Tensor
    """`(n, dimension)`, float32 on the CPU, rows of length 1, or 0 where nothing could be had."""
    problems: tuple[ImageProblem, ...]
    """Of damaged images, in their order."""
    problem_rows: tuple[int, ...] = ()
    """Which images these are: a file may be there twice, with another box."""
    decode_seconds: float = 0.0
    """Of all threads together."""
    model_seconds: float = 0.0
    """Of all threads together; on a GPU they wait for each other."""


NOT_FINITE = "the model gave no finite embedding; 0 is used"
FAILED = "the model failed on its batch"


# Crops are cut from a square of this share of the side, as the usual 256 for 224 pixels.
CROP_MARGIN = 8 / 7
LOOK_SECONDS = 0.5
"""Between two looks for threads that hang in a file."""


def refuse_broken_model(problems: Sequence[ImageProblem], images: int) -> None:
    """Raise a UserError where the model embeds none or few of the images: there is no score then.

    The ranker never asks: it has to answer whatever is broken.

    Args:
        problems: that were found while the images were embedded.
        images: how many there were.
    """
    broken = sum(problem.reason == NOT_FINITE for problem in problems)
    if 2 * broken > images:
        raise UserError(
            f"the model is broken: its embeddings of {broken} of {images} images are not finite "
            "numbers; take an earlier checkpoint, or train anew with a lower optim.head_lr"
        )


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def embed_images(
    model: EmbedFn | InferencePlan,
    items: Sequence[ImageItem],
    input_size: int,
    *,
    device: torch.device,
    settings: EmbedSettings | None = None,
    deadline: Deadline | None = None,
    label: str = "embedding",
    progress: bool = True,
    each_view: bool = False,
) -> Embeddings:
    """Embed images in the order given. Never fails for an image: see `problems` of the answer.

    A batch on which the model fails is tried once more in fp32; where that fails too, its images
    keep the zero vector and are listed. A model that fails on its first batches, one more than
    there are streams, or on all, is broken: what it raised is raised.

    Args:
        model: uint8 pixels `(N, 3, input_size, input_size)` to unit vectors, on `device` and in
            evaluation mode; or a plan for it.
        items: the images.
        input_size: side of the model's input in pixels.
        device: where the model is.
        settings: precision, views and their like.
        deadline: of a time limit, begun; images for which it leaves no time keep the zero vector.
        label: what the progress bar says.
        progress: whether there is a progress bar.
        each_view: the views' unit vectors side by side, `(n, views * dimension)`, the smallest
            view first, in place of their mean; not for a deadline, which may leave views out.
    """
    if not items:
        raise ValueError("embed_images needs at least one image")
    settings = settings or EmbedSettings()
    if not isinstance(model, InferencePlan):
        model = plan_inference(model, items, input_size, device=device, settings=settings)
    if deadline is None:
        deadline = Deadline()
        sides = settings.sides(input_size)
        deadline.begin(len(items), input_size, settings.copies, sides=sides)
    # Few images are spread over all threads.
    step = min(model.batch_size, -(-len(items) // model.streams))
    batches = [slice(first, min(first + step, len(items))) for first in range(0, len(items), step)]
    embedder = _Embedder(model, items, input_size, settings, deadline, step, each_view)
    matrix: Tensor | None = None
    done: list[_Batch] = []
    with progress_bar(label, "img", total=len(items), shown=progress) as bar:
        for batch in _as_completed(embedder.embed, batches, model, deadline):
            if batch.vectors is not None:
                if matrix is None:
                    matrix = torch.zeros(len(items), batch.vectors.shape[1])
                matrix[batch.rows] = batch.vectors
                batch.vectors = None
            done.append(batch)
            deadline.count(batch.effort, batch.count)
            bar.update(batch.count)
            # Other streams may be at work on their first batches.
            if batch.error and _is_broken(done, model.streams):
                break
    if _is_broken(done, 0):
        raise next(batch.error for batch in done if batch.error)
    deadline.count(None, len(items) - sum(batch.count for batch in done))
    problems = dict(sorted(pair for batch in done for pair in batch.problems.items()))
    return Embeddings(
        # Not one batch in time: any width will do.
        torch.zeros(len(items), 1) if matrix is None else matrix,
        tuple(problems.values()),
        tuple(problems),
        sum(batch.decode_seconds for batch in done),
        sum(batch.model_seconds for batch in done),
    )


@dataclass
class _Batch:
    """What became of some images."""

    rows: slice
    effort: Effort | None = None
    """None where there was no time."""
    vectors: Tensor | None = None
    """`(n, dimension)`, float32 on the CPU; None keeps zeros."""
    problems: dict[int, ImageProblem] = field(default_factory=dict)
    """By row of the whole matrix."""
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    error: BaseException | None = None
    """What the model raised, in fp32 too."""

    @property
    def count(self) -> int:
        """Images."""
        return self.rows.stop - self.rows.start


def _is_broken(done: Sequence[_Batch], others: int) -> bool:
    """Whether the model failed on more batches than there are `others`, and on every one."""
    tried = [batch for batch in done if batch.effort is not None]
    return len(tried) > others and all(batch.error for batch in tried)


def _as_completed(
    embed: Callable[[slice], _Batch],
    batches: Sequence[slice],
    plan: InferencePlan,
    deadline: Deadline,
) -> Iterator[_Batch]:
    """Batches as they come from the plan's threads, as long as there is time.

    The threads are daemons, which an executor's are not: one that hangs in a model must not keep
    the process from its end. One that hangs in a file is given up, too, and its batch is done
    again by another, which leaves out the file.
    """
    waiting: queue.SimpleQueue[slice] = queue.SimpleQueue()
    done: queue.SimpleQueue[_Batch | BaseException] = queue.SimpleQueue()
    at_work: dict[int, slice] = {}
    for rows in batches:
        waiting.put(rows)

    def work() -> None:
        torch.set_num_threads(plan.threads)
        thread = threading.get_ident()
        with torch.inference_mode():
            while (rows := _taken(waiting)) is not None:
                at_work[thread] = rows
                result: _Batch | BaseException
                try:
                    result = embed(rows)
                except BaseException as error:
                    result = error
                if at_work.pop(thread, None) is None:
                    return  # it was given up for a file, and another one has the batch
                done.put(result)

    threads_before = torch.get_num_threads()
    for _ in range(plan.streams):
        threading.Thread(target=work, daemon=True).start()
    left = len(batches)
    try:
        while left:
            seconds = min(max(deadline.left_to_embed(), 0.0), LOOK_SECONDS)
            try:
                batch = done.get(timeout=seconds)
            except queue.Empty:
                if deadline.left_to_embed() <= 0:
                    return
                for rows in filter(None, (at_work.pop(thread, None) for thread in hanging())):
                    deadline.skip(rows.start - rows.stop)  # they are asked about again
                    waiting.put(rows)
                    threading.Thread(target=work, daemon=True).start()
                continue
            if isinstance(batch, BaseException):
                raise batch
            left -= 1
            yield batch
    finally:
        while (never := _taken(waiting)) is not None:  # the threads find nothing more to do
            deadline.skip(never.stop - never.start)
        torch.set_num_threads(threads_before)


def _taken(waiting: queue.SimpleQueue[slice]) -> slice | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


@dataclass(frozen=True)
class _Embedder:
    """One call of :func:`embed_images`, as its threads see it."""

    plan: InferencePlan
    items: Sequence[ImageItem]
    input_size: int
    settings: EmbedSettings
    deadline: Deadline
    batch_size: int
    each_view: bool

    def embed(self, rows: slice) -> _Batch:
        """Embed a batch in the way that the deadline allows; never raises."""
        count, streams = rows.stop - rows.start, self.plan.streams
        effort = self.deadline.next_effort(count, streams)
        while effort is not None:
            try:
                return self._embed(rows, effort)
            except Exception as error:
                if effort.size == self.input_size:
                    return self._embed_again(rows, effort, error)
                effort = self.deadline.refused(effort, count, streams)
        return _Batch(rows)

    def _embed_again(self, rows: slice, effort: Effort, first: Exception) -> _Batch:
        """Try a batch that failed once more in fp32; if in vain, leave it."""
        try:
            return self._embed(rows, effort, careful=True)
        except Exception:
            reason = f"{FAILED} ({first_line(first)}); 0 is used"
            numbers = range(rows.start, rows.stop)
            problems = {n: ImageProblem(str(self.items[n].path), reason) for n in numbers}
            return _Batch(rows, effort, None, problems, error=first)

    def _embed(self, rows: slice, effort: Effort, careful: bool = False) -> _Batch:
        begun = time.perf_counter()
        items = self.items[rows]
        views = self._views(effort)
        crops, flip = (effort.copies and wish for wish in (self.settings.crops, self.settings.flip))
        pixels, found = self._load(
            items, [(fit, larger_side(side) if crops else side) for fit, side in views]
        )
        loaded = time.perf_counter()

        def run(chosen: list[Tensor], careful: bool) -> Tensor:
            """The views side by side, or their mean."""
            vectors = []
            for view, (_, side) in zip(chosen, views, strict=True):
                fits = self.plan.only_size in (0, side) and not careful
                embed = self.plan.embed if fits else self.plan.exact
                vectors.append(self._run(embed, view, side, flip))
            return torch.cat(vectors, dim=1) if self.each_view else mean_of_units(vectors)

        vectors = run(pixels, careful)[: len(items)]
        wrong = (~vectors.isfinite().all(dim=1)).nonzero().flatten()
        if len(wrong):
            again = run([view[wrong] for view in pixels], careful=True)
            broken = ~again.isfinite().all(dim=1)
            vectors[wrong] = again.masked_fill(broken[:, None], 0.0)
            for k in wrong[broken].tolist():
                found[k] = ImageProblem(str(items[k].path), NOT_FINITE)
        done = time.perf_counter()
        problems = {rows.start + k: problem for k, problem in enumerate(found) if problem}
        self.deadline.record(effort, len(items), loaded - begun, done - loaded)
        return _Batch(rows, effort, vectors, problems, loaded - begun, done - loaded)

    def _views(self, effort: Effort) -> list[tuple[Fit, int]]:
        """Fit and side of each view to be seen: the cheapest, the first of equal ones."""
        sides = [
            effort.side_of(side, self.input_size) for side in self.settings.sides(self.input_size)
        ]
        views = list(zip(self.settings.fits, sides, strict=True))
        return sorted(views, key=lambda view: view[1])[: effort.views]

    def _load(
        self, items: Sequence[ImageItem], views: Sequence[tuple[str, int]]
    ) -> tuple[list[Tensor], list[ImageProblem | None]]:
        """Pixels of each view as the model reads them, channels last, where a GPU fetches them."""
        on_gpu = self.plan.device.type == "cuda"
        # A batch of another shape would have to wait for a GPU's plans and kernels of its own.
        count = self.batch_size if on_gpu else len(items)
        batches = [
            torch.zeros((count, side, side, 3), dtype=torch.uint8, pin_memory=on_gpu)
            for _, side in views
        ]
        problems: list[ImageProblem | None] = []
        for row, item in enumerate(items):
            pixels, problem = load_views(item, views)
            for batch, view in zip(batches, pixels, strict=True):
                batch.numpy()[row] = view.transpose(1, 2, 0)
            problems.append(problem)
        return [batch.permute(0, 3, 1, 2) for batch in batches], problems

    def _run(self, embed: EmbedFn, pixels: Tensor, size: int, flip: bool) -> Tensor:
        """Embeddings on the CPU; the batch is halved where the device's memory is short."""
        device = self.plan.device

        def forward() -> Tensor:
            return mean_of_copies(embed, pixels.to(device, non_blocking=True), size, flip)

        try:
            return call_on(device, forward).cpu()
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            halves = pixels.chunk(2)
            return torch.cat([self._run(embed, half, size, flip) for half in halves])


def larger_side(size: int) -> int:
    """Side of the square that crops of `size` are cut from, even, in pixels."""
    return 2 * round(size * CROP_MARGIN / 2)


def mean_of_copies(
    embed: Callable[[Tensor], Tensor], pixels: Tensor, size: int, flip: bool
) -> Tensor:
    """Test-time augmentation of a view: the mean of its copies' unit vectors, at length 1, float32.

    Args:
        embed: gives the unit vectors.
        pixels: `(N, 3, side, side)`; four corners and the middle are cut out of a `side` above
            `size`, as in Krizhevsky et al. 2012, section 4.1.
        size: of each copy, pixels.
        flip: whether each is also mirrored.
    """
    rest = pixels.shape[-1] - size
    corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
    copies = [pixels[..., y : y + size, x : x + size] for y, x in (corners if rest else [(0, 0)])]
    copies += [copy.flip(-1) for copy in copies] if flip else []
    return mean_of_units([embed(copy).float() for copy in copies])


def mean_of_units(vectors: Sequence[Tensor]) -> Tensor:
    """The mean of unit vectors `(N, dimension)`, at length 1; one alone stays as it is."""
    if len(vectors) == 1:
        return vectors[0]
    return F.normalize(torch.stack(list(vectors)).mean(dim=0), dim=1)
