"""Write ONNX beside TorchScript: `main_export --run runs/X --output exports`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.ranges import real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visual_search.data.images import ImageItem
    from visual_search.ranking.onnx import Measured

FORMATS = ("onnx-fp32", "onnx-fp16")


def main() -> None:
    """Write TorchScript and the formats, compare and time them, leave the ranker the fastest."""
    options = build_parser().parse_args()

    import dataclasses
    import shutil
    from functools import partial

    import numpy as np
    import torch

    from visual_search.common.files import write_json, write_text, written_atomically
    from visual_search.common.page import markdown
    from visual_search.common.processes import available_cores
    from visual_search.data.images import load_pixels
    from visual_search.model.checkpoint import load_checkpoint
    from visual_search.ranking.export import ONNX_FILE, export_torchscript, trained_embedder
    from visual_search.ranking.inference_plan import converted, memory_format_of, precision_for
    from visual_search.ranking.onnx import export_onnx, load_onnx, measure
    from visual_search.ranking.rerank import describe_steps, named_steps

    checkpoint, items = load_checkpoint(options.run), _items(options.run, options.table)
    embedder, architecture, facts = trained_embedder(checkpoint, options.input_size)
    embedder, size, output = embedder.eval(), architecture.input_size, options.output
    steps = named_steps(options.rerank, facts.get("rerank", []), "--rerank")
    rows = np.random.default_rng(0).permutation(len(items))[: options.images]
    pixels = [load_pixels(items[row], size)[0] for row in rows]
    images = torch.from_numpy(np.stack(pixels))

    settings = {**(facts.get("embedding") or {}), "min_cosine": options.min_cosine}
    facts |= {"rerank": describe_steps(steps), "embedding": settings}
    file = export_torchscript(embedder, architecture, facts, output)
    compare = partial(measure, embedder=embedder, images=images)
    measured = []
    for precision in dict.fromkeys(["fp32", precision_for(torch.device("cpu"))]):
        layout = memory_format_of(embedder, precision, on_gpu=False)
        embed = converted(embedder, precision, layout, images[:1])
        measured.append(compare(f"torch-{precision}", embed, file=file))
    files = {}
    for name in options.formats:
        precision = name.removeprefix("onnx-")
        files[name] = export_onnx(embedder, size, output / f"model_{precision}.onnx", precision)
        embed = load_onnx(files[name], available_cores(), 1)
        measured.append(compare(name, embed, file=files[name]))
        print(f"{name}: {files[name]}", flush=True)
    best = best_for_ranker(measured, options.min_cosine)
    if best is not None:
        with written_atomically(output / ONNX_FILE) as temporary:
            shutil.copyfile(files[best], temporary)
        print(
            f"the ranker takes {best}: it answers as PyTorch does, and is faster here; for the "
            "evaluator, add onnxruntime to requirements.txt"
        )
    formats = [dataclasses.asdict(row) for row in measured]
    write_json(output / "formats.json", {"ranker": best, "formats": formats})
    table = [["format", "MB", "smallest cosine", "images/s"]]
    for row in measured:
        cosine, speed = f"{row.smallest_cosine:.5f}", f"{row.images_per_second:.0f}"
        table.append([row.name, f"{row.megabytes:.1f}", cosine, speed])
    write_text(output / "formats.md", markdown(table) + "\n")
    print(f"\n{markdown(table)}\n")
    print_next("local_evaluation.py", "--weights", output)


def _items(run: Path, table: Path | None) -> Sequence[ImageItem]:
    """What the formats are compared on: the images of a table, or those of the training."""
    from visual_search.config import EmbedSettings
    from visual_search.config_reader import read_config
    from visual_search.data.factory import training_images
    from visual_search.ranking.fit import images_of

    if table:
        return images_of(table, EmbedSettings())
    if not (run / "config.yml").is_file():
        raise UserError(
            f"{run} has no config.yml, which names images to compare on: name a table by --table"
        )
    listed = training_images(read_config(run).dataset)
    return [listed.item(row) for row in range(len(listed))]


def best_for_ranker(measured: Sequence[Measured], min_cosine: float) -> str | None:
    """The fastest format, where it is ONNX and answers as the model does on every image."""
    fit = [
        row
        for row in measured
        if row.name.startswith("torch-") or row.smallest_cosine >= min_cosine
    ]
    best = max(fit, key=lambda row: row.images_per_second)
    return best.name if best.name.startswith("onnx-") else None


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_export",
        description="Export a run to TorchScript and ONNX, compare each with the model on images, "
        "time it on this CPU, and leave the ranker the ONNX network where that is faster and "
        "answers as the model does. Needs pip install -e '.[export]'.",
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder, or an export")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="a gallery.csv, past queries, or a table to train on, to compare and to time on its "
        "images; default: the run's training set",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder, such as my_submission/weights"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}; default: all",
    )
    parser.add_argument(
        "--input_size", type=whole_number(1, 4096), help="pixels; default: the run's own"
    )
    parser.add_argument(
        "--rerank",
        nargs="+",
        default=["tuned"],
        metavar="STEP",
        help="as of my_submission/to_torchscript.py; default: what the run's model.json has",
    )
    parser.add_argument(
        "--images",
        "--photos",
        type=whole_number(1),
        default=100,
        help="how many to compare and to time on (%(default)s)",
    )
    parser.add_argument(
        "--min_cosine",
        type=real_number(0, 1),
        default=0.9999,
        help="to the model's embeddings, of what the ranker may take (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
