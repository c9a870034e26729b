"""Other runtimes: `python -m visual_search.main_export --run runs/X --output exports/X`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.errors import UserError, exit_with_sentence

if TYPE_CHECKING:
    from torch import Tensor

    from visual_search.config import PhaseConfig

FORMATS = (
    "onnx-fp32",
    "onnx-fp16",
    "onnx-int8",
    "openvino-fp32",
    "openvino-fp16",
    "openvino-int8",
)


def main() -> None:
    """Write TorchScript and the formats, compare and time them, leave the ranker the fastest."""
    options = build_parser().parse_args()
    if options.photos < 8:
        raise UserError("--photos must be 8 or more: half calibrates, half compares")

    import dataclasses

    from visual_search.checkpoint import describe_model, load_checkpoint
    from visual_search.export import DESCRIPTION_FILE, export_torchscript
    from visual_search.files import write_json, write_text
    from visual_search.model import rebuild_embedder
    from visual_search.run_embeddings import read_config
    from visual_search.runtimes import best_for_ranker, markdown, place_for_ranker, write_formats

    checkpoint, config = load_checkpoint(options.run), read_config(options.run)
    architecture, facts = checkpoint.architecture, dict(checkpoint.facts)
    embedder = rebuild_embedder(architecture)
    embedder.load_state_dict(dict(checkpoint.state))
    photos = _photos(config, architecture.input_size, options.photos)
    export_torchscript(embedder, architecture, facts, options.output)
    written, measured = write_formats(
        options.formats, embedder.eval(), architecture.input_size, options.output, photos
    )
    best = best_for_ranker(measured, options.min_cosine)
    place_for_ranker(written, best, options.output)
    settings = {**(facts.get("embedding") or {}), "min_cosine": options.min_cosine}
    facts = {"rerank": [], **facts, "embedding": settings}
    write_json(options.output / DESCRIPTION_FILE, describe_model(architecture, facts))
    rows = [dataclasses.asdict(row) for row in measured]
    write_json(options.output / "formats.json", {"ranker": best, "formats": rows})
    write_text(options.output / "formats.md", markdown(measured))
    print(f"\n{markdown(measured)}")
    if best is not None:
        package = "openvino" if best.startswith("openvino") else "onnxruntime"
        print(
            f"the ranker has {best} beside TorchScript, and takes it where it measures faster; for "
            f"the evaluator, add {package} to requirements.txt"
        )
    print(f"next: python local_evaluation.py --weights {options.output}")


def _photos(config: PhaseConfig, size: int, count: int) -> Tensor:
    """Training photos spread over the list, `(count, 3, size, size)`, uint8.

    Raises:
        UserError: when the data of the run's config are not there.
    """
    import numpy as np
    import torch

    from visual_search.images import load_pixels
    from visual_search.phase_data import training_images

    images = training_images(config.dataset)
    # In mixed order, so that both halves show all classes.
    rows = np.random.default_rng(0).permutation(len(images))[:count]
    pixels = [load_pixels(images.item(int(row)), size)[0] for row in rows]
    return torch.from_numpy(np.stack(pixels))


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_export",
        description="Export a run to ONNX and OpenVINO, compare each with the model on photos, "
        "time it on this CPU, and leave the ranker the fastest network that answers as the "
        "model does. Needs pip install -e '.[fast,export]'.",
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder, with its config.yml")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder, such as my_submission/weights"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all"
    )
    parser.add_argument(
        "--photos",
        type=int,
        default=200,
        help="of the run's training set: half calibrates int8, half compares (%(default)s)",
    )
    parser.add_argument(
        "--min_cosine",
        type=float,
        default=0.9999,
        help="to the model's embeddings, of what the ranker may take (%(default)s); int8 needs "
        "a lower one (0.9 for the demo's recipe), and costs mAP",
    )
    return parser


if __name__ == "__main__":
    exit_with_sentence(main)
