"""One way of embedding a list of photos, in a process of its own: see :mod:`benchmarks.ranker`.

    python -m benchmarks.ranker_child oml job.json

It runs in the environment of its package, reads the job, and writes the embeddings (`.npy`) and
what they took beside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visual_search.data.images import Box, ImageItem, load_pixels
from visual_search.ranking.embed import embed_images
from visual_search.ranking.export import load_exported
from visual_search.ranking.inference_plan import InferencePlan, call_on, plan_inference


@dataclass(frozen=True)
class Job:
    """What a way is given."""

    weights: Path
    """Folder of an export."""
    size: int
    """Pixels."""
    photos: list[ImageItem]
    n_gallery: int
    """The first so many photos are the gallery, the rest are queries."""
    folder: Path
    """The same photos as links, named by their position."""
    batch: int
    cores: int
    device: torch.device

    def write(self, path: Path) -> None:
        """Write what :meth:`read` reads, and the folder of links."""
        self.folder.mkdir()
        for number, item in enumerate(self.photos):
            (self.folder / f"{number:06d}.jpg").symlink_to(item.path.resolve())
        path.write_text(json.dumps(asdict(self), default=str), "utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """What was written."""
        values = json.loads(path.read_text("utf-8"))
        photos = [
            ImageItem(Path(item["path"]), item["box"] and tuple(item["box"]), item["trim"])
            for item in values["photos"]
        ]
        paths = {name: Path(values[name]) for name in ("weights", "folder")}
        device = torch.device(values["device"])
        return cls(**values | paths | {"photos": photos, "device": device})


class TimedModel(nn.Module):
    """The exported model in fp32, contiguous, as it comes to every package; counts its seconds."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        model, architecture = load_exported(job.weights, job.device)
        assert isinstance(model, nn.Module)
        self.model = model.to(memory_format=torch.contiguous_format)
        self.device, self.dimension = job.device, architecture.dimension
        self.seconds = 0.0

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 `(N, 3, H, W)` to unit vectors."""
        started = time.perf_counter()
        vectors = self.model(pixels)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - started
        return vectors


def square(image: Image.Image, size: int, box: Box | None) -> Tensor:
    """Any photo, or its box, as a square, uint8 `(3, size, size)`: PIL, bicubic, as all do."""
    image = image.convert("RGB")
    if box is not None:
        x, y, w, h = box
        image = image.crop((x, y, x + w, y + h))
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class Squares:
    """:func:`square` for packages that know no boxes: they are found by the file's name."""

    def __init__(self, size: int, boxes: dict[str, Box]) -> None:
        self.size, self.boxes = size, boxes

    def __call__(self, image: Image.Image) -> Tensor:
        stem = Path(str(getattr(image, "filename", ""))).stem
        return square(image, self.size, self.boxes.get(stem))


class PilPhotos(torch.utils.data.Dataset[Tensor]):
    """By PIL, as most submissions read."""

    def __init__(self, job: Job) -> None:
        self.photos, self.size = job.photos, job.size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        item = self.photos[index]
        return square(Image.open(item.path), self.size, item.box)


Embedded = tuple[np.ndarray, dict[str, Any]]
"""`(n, dimension)` and the seconds of the stages."""


def seeds_way(job: Job) -> Embedded:
    """PIL in a DataLoader with as many workers as cores, fp32, contiguous, and a full sort."""
    model = TimedModel(job)
    loader = torch.utils.data.DataLoader(
        PilPhotos(job), batch_size=job.batch, num_workers=job.cores
    )
    started = time.perf_counter()
    with torch.inference_mode():
        rows = [model(batch.to(job.device)).cpu() for batch in loader]
    vectors = torch.cat(rows).numpy()
    embedded = time.perf_counter()
    gallery, queries = vectors[: job.n_gallery], vectors[job.n_gallery :]
    np.argsort(-(queries @ gallery.T), axis=1)
    ranked = time.perf_counter()
    return vectors, {
        "embedding": embedded - started,
        "ranking": ranked - embedded,
        "model": model.seconds,
    }


def our_way(job: Job) -> Embedded:
    """:func:`visual_search.ranking.embed.embed_images`, with the making of its plan in the time."""
    model, _ = load_exported(job.weights, job.device)
    started = time.perf_counter()
    plan = plan_inference(model, job.photos, job.size, device=job.device)
    answer = embed_images(plan, job.photos, job.size, device=job.device, progress=False)
    embedded = time.perf_counter()
    from visual_search.ranking.search import top_k

    top_k(answer.matrix[job.n_gallery :], answer.matrix[: job.n_gallery], 1000)
    return answer.matrix.numpy(), {
        "embedding": embedded - started,
        "ranking": time.perf_counter() - embedded,
        "model": answer.model_seconds / plan.streams,
        "plan": plan.seconds,
        "settings": f"{plan.precision}, {plan.memory_format}, batch {plan.batch_size}, "
        f"{plan.streams} streams",
        **_rooflines(plan, job),
    }


def _rooflines(plan: InferencePlan, job: Job) -> dict[str, float]:
    """Photos a second of decoding alone and of the model alone, each as the whole runs it."""
    on_gpu = job.device.type == "cuda"
    photos = job.photos[:: max(len(job.photos) // (2400 if on_gpu else 240), 1)]
    started = time.perf_counter()
    with _one_thread_each(job.cores) as pool:
        pixels = list(pool.map(lambda item: load_pixels(item, job.size)[0], photos))
    decode = len(photos) / (time.perf_counter() - started)
    rows = [pixels[k % len(pixels)] for k in range(plan.batch_size)]
    batch = torch.from_numpy(np.stack(rows)).to(job.device)
    streams = 1 if on_gpu else plan.streams
    rounds = max(len(photos) // (plan.batch_size * streams), 1)

    def pass_on(_: int) -> None:
        with torch.inference_mode():
            for _ in range(rounds):
                last = call_on(job.device, lambda: plan.embed(batch))
            last.cpu()

    started = time.perf_counter()
    with _one_thread_each(streams) as pool:
        list(pool.map(pass_on, range(streams)))
    seconds = time.perf_counter() - started
    return {"decode_alone": decode, "model_alone": rounds * streams * plan.batch_size / seconds}


def _one_thread_each(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def clip_retrievals_way(job: Job) -> Embedded:
    """`clip_inference` over a folder; its `load_clip` hands out our model and its square.

    Its reader knows no boxes: they are found by the file's name.
    """
    from clip_retrieval.clip_inference import clip_inference, mapper, worker

    model = TimedModel(job)
    boxes = {f"{n:06d}": item.box for n, item in enumerate(job.photos) if item.box is not None}
    encoder = nn.Module()
    encoder.encode_image = encoder.encode_text = model

    def load_clip(**_: Any) -> tuple[nn.Module, Squares, None]:
        return encoder, Squares(job.size, boxes), None

    mapper.load_clip = worker.load_clip = load_clip
    output = job.folder.parent / "clip_retrieval_output"
    started = time.perf_counter()
    clip_inference(
        input_dataset=str(job.folder),
        output_folder=str(output),
        enable_text=False,
        batch_size=job.batch,
        num_prepro_workers=job.cores,
        output_partition_count=1,
    )
    seconds = time.perf_counter() - started
    import pandas as pd

    names = pd.read_parquet(next((output / "metadata").glob("*.parquet")))["image_path"]
    vectors = np.load(next((output / "img_emb").glob("*.npy"))).astype(np.float32)
    order = np.argsort([int(Path(name).stem) for name in names])
    return vectors[order], {"embedding": seconds, "model": model.seconds}


def omls_way(job: Job) -> Embedded:
    """OML's `inference` over its dataset of images with boxes."""
    from oml.datasets.images import ImageBaseDataset
    from oml.inference import inference
    from torchvision.transforms import Compose

    boxes = (item.box for item in job.photos)
    corners = [box and (box[0], box[1], box[0] + box[2], box[1] + box[3]) for box in boxes]
    dataset = ImageBaseDataset(
        paths=[item.path for item in job.photos],
        bboxes=corners,
        transform=Compose([Squares(job.size, {})]),
    )
    model = TimedModel(job)
    started = time.perf_counter()
    rows = inference(model, dataset, batch_size=job.batch, num_workers=job.cores)
    seconds = time.perf_counter() - started
    return rows.cpu().float().numpy(), {"embedding": seconds, "model": model.seconds}


WAYS: dict[str, Callable[[Job], Embedded]] = {
    "ours": our_way,
    "seed": seeds_way,
    "clip-retrieval": clip_retrievals_way,
    "oml": omls_way,
}


def main() -> None:
    """Embed, and write `<job>.<way>.npy` and `<job>.<way>.json`."""
    way, path = sys.argv[1], Path(sys.argv[2])
    job = Job.read(path)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cores])
    torch.set_num_threads(job.cores)
    vectors, seconds = WAYS[way](job)
    np.save(path.with_suffix(f".{way}.npy"), vectors)
    path.with_suffix(f".{way}.json").write_text(json.dumps(seconds), "utf-8")


if __name__ == "__main__":
    main()
