"""Export a trained run, or several as one: `python my_submission/to_torchscript.py runs/<name>`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

# `python my_submission/to_torchscript.py` puts my_submission/ on the path, not the project.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from visual_search.common.errors import UserError, print_next, run_command
from visual_search.common.model_config import Fit
from visual_search.common.ranges import real_number, whole_number

DEFAULT_OUTPUT = Path("my_submission/weights")
PLAIN = (".yml", ".yaml")
"""How a file ends that describes a backbone, which is exported as it comes."""


def main() -> None:
    """Export a run's best model, a pretrained backbone as it comes, or several as an ensemble."""
    arguments = _arguments()

    from visual_search.ranking.export import export_torchscript
    from visual_search.ranking.rerank import describe_steps, format_steps, named_steps

    embedder, architecture, facts = _found(arguments)
    architecture = _refitted(arguments, embedder, architecture, facts)
    steps = named_steps(arguments.rerank, facts.get("rerank", []), "--rerank")
    facts["rerank"] = describe_steps(steps)
    path = export_torchscript(embedder, architecture, facts, arguments.output)
    score = f", mAP {facts['mAP']:.4f}" if isinstance(facts.get("mAP"), float) else ""
    size = f"{architecture.input_size} px, {architecture.dimension}-d"
    print(
        f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), model.safetensors and model.json: "
        f"{architecture.backbone}, {size}{score}; "
        f"ranks by {format_steps(steps)}"
    )
    elsewhere = () if arguments.output == DEFAULT_OUTPUT else ("--weights", arguments.output)
    print_next("local_evaluation.py", *elsewhere)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write model.pt (TorchScript), model.safetensors and model.json, which the "
        "ranker finds by itself."
    )
    parser.add_argument(
        "models",
        metavar="model",
        type=Path,
        nargs="+",
        help="runs/<name> (its best checkpoint is taken), a checkpoint in it, or a file such as "
        "config/backbone/efficientnet_lite0.yml for that backbone as it comes, not trained here. "
        "Several are one ensemble: their embeddings side by side",
    )
    parser.add_argument(
        "--weights",
        type=real_number(0, 1000, above=True),
        nargs="+",
        metavar="WEIGHT",
        help="of each of several models, its share in the similarity; default: all alike",
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    parser.add_argument(
        "--input_size",
        type=whole_number(1, 4096),
        help="pixels, such as 272; default: those that the run was validated at, 224 of a plain "
        "backbone. Position embeddings are resampled",
    )
    parser.add_argument(
        "--rerank",
        nargs="+",
        default=["tuned"],
        metavar="STEP",
        help="none, swapped_dba or other steps in their order, or a list as JSON; default: tuned, "
        "which is what the run's model.json has",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read an export that has model.pt alone; TorchScript can run code of its author",
    )
    parser.add_argument(
        "--views",
        nargs="+",
        choices=get_args(Fit),
        metavar="VIEW",
        help="in place of the run's embedding.views: squash, letterbox or both; an embedding is "
        "their mean",
    )
    fit = parser.add_argument_group(
        "whitening",
        "behind the model, in place of the run's own if it has one (train.whitening), fitted to "
        "images without regard to their labels",
    )
    fit.add_argument(
        "--fit-on",
        type=Path,
        nargs="+",
        default=[],
        metavar="CSV",
        help="a gallery.csv, past queries, or tables to train on; their images are embedded",
    )
    fit.add_argument(
        "--power", type=real_number(0, 1), default=0.5, help="0 none, 1 full (%(default)s)"
    )
    fit.add_argument(
        "--dimension", type=whole_number(0), default=256, help="0 keeps the width (%(default)s)"
    )
    fit.add_argument(
        "--shrinkage", type=real_number(0, 1), default=0.0, help="of the variances (%(default)s)"
    )
    return parser.parse_args()


def _refitted(
    arguments: argparse.Namespace, embedder: Any, architecture: Any, facts: dict[str, Any]
) -> Any:
    """The architecture with what `--views` and `--fit-on` change; `facts` tell of it."""
    import dataclasses

    from visual_search.config import EmbedSettings
    from visual_search.ranking.fit import whiten

    sources = " + ".join(map(str, arguments.models))
    settings = EmbedSettings.parsed(facts.get("embedding") or {}, sources)
    if arguments.views:
        wanted = dataclasses.replace(settings, views=tuple(arguments.views), view_sizes=())
        facts["mAP"] = facts.get("mAP") if wanted == settings else None  # of what was seen before
        settings, facts["embedding"] = wanted, dataclasses.asdict(wanted)
    if not arguments.fit_on:
        return architecture
    wish = (arguments.power, arguments.dimension, arguments.shrinkage)
    architecture = whiten(embedder, architecture, settings, arguments.fit_on, *wish)
    facts["whitening"] = dict(zip(("power", "dimension", "shrinkage"), wish, strict=True))
    facts["whitening"]["fitted_on"] = [path.name for path in arguments.fit_on]
    facts["mAP"] = None  # of the model as it was
    return architecture


def _found(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    from visual_search.evaluation.identity import averaged
    from visual_search.ranking.ensemble import ensemble_of

    found = {str(source): _one(source, arguments) for source in arguments.models}
    if len(found) < len(arguments.models):
        raise UserError("a model is named twice: name each once, and give it more by --weights")
    weights = arguments.weights or [1.0] * len(found)
    if len(found) == len(weights) == 1:
        return next(iter(found.values()))
    chosen = {"views"} if arguments.views else set()
    if arguments.rerank != ["tuned"]:
        chosen.add("rerank")
    embedder, architecture, facts = ensemble_of(found, weights, chosen)
    runs = [source for source in arguments.models if source.suffix not in PLAIN]
    trained_on = averaged(runs) if runs else None
    facts["data"] = trained_on and trained_on.of_a_model()
    shares = (f"{weight / sum(weights):.0%} {name}" for name, weight in facts["ensemble"].items())
    print(f"of the similarity: {', '.join(shares)}", flush=True)
    return embedder, architecture, facts


def _one(source: Path, arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    from visual_search.config import BackboneConfig
    from visual_search.config_reader import read_part
    from visual_search.model.checkpoint import knows_texts, load_checkpoint
    from visual_search.model.embedder import build_embedder
    from visual_search.ranking.export import trained_embedder

    if source.suffix in PLAIN:
        backbone = read_part(source, BackboneConfig)
        print(f"exporting {backbone.name} with weights {backbone.weights}, untrained", flush=True)
        embedder, architecture = build_embedder(backbone, arguments.input_size or 224)
        return embedder, architecture, {"run": None, "phase": "pretrained", "mAP": None}
    checkpoint = load_checkpoint(source, trust=arguments.trust)
    if knows_texts(checkpoint):
        raise UserError(
            f"{checkpoint.path} is an image-text model, and the ranker takes models of images "
            "alone: export a run of visual_search.main_arcface"
        )
    print(f"exporting {checkpoint.path}", flush=True)
    return trained_embedder(checkpoint, arguments.input_size)


if __name__ == "__main__":
    run_command(main)
