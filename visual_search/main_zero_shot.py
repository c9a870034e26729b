"""Classify images by names alone: `python -m visual_search.main_zero_shot --run … --data DIR…`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from visual_search.common.errors import run_command


def main() -> None:
    """Parse the arguments, classify each data set, and say how right it was."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_zero_shot",
        description="Give each image the nearest of a list of names. A data set is a folder with "
        "classes.json (a list of names; a class of many kinds of things may be a list itself), "
        "img/ and, to be scored, labels.json (image to class), or a folder of such folders.",
    )
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        required=True,
        help="run of visual_search.main_clip; or a CLIP as others trained it: its folder (Hugging "
        "Face's or ru-CLIP's layout), or open_clip/<architecture>/<tag>",
    )
    add("--data", type=Path, nargs="+", required=True, help="folders")
    add("--labels", type=Path, help="one file of the classes of all sets: set to image to class")
    add("--templates", type=Path, help="file of prompts, one a line, {} for a name")
    add(
        "--output",
        type=Path,
        help="folder of the answers (the run's own folder zero_shot; "
        "runs/zero_shot/<its name> of a CLIP of others)",
    )
    arguments = parser.parse_args()

    from visual_search.common.files import write_json
    from visual_search.evaluation.run_tasks import name_of_run
    from visual_search.text.search import load_text_model
    from visual_search.text.zero_shot import (
        classify,
        draw_confusion,
        mean_accuracy,
        read_zero_shot_sets,
    )

    sets = read_zero_shot_sets(arguments.data, arguments.labels)
    model = load_text_model(arguments.run)
    ours = any((arguments.run / name).is_file() for name in ("metrics.jsonl", "model.json"))
    own = (
        arguments.run / "zero_shot" if ours else Path("runs/zero_shot") / name_of_run(arguments.run)
    )
    output = arguments.output or own
    answers = [classify(model, data, arguments.templates) for data in sets]
    rows: dict[str, Any] = {}
    for answer in answers:
        data, chance = answer.data, 1 / len(answer.data.classes)
        rows[data.name] = {
            "photos": len(data.images),
            "damaged": answer.damaged,
            "classes": len(data.classes),
            "chance": chance,
            "accuracy": answer.accuracy,
        }
        words = "no labels, not scored"
        if answer.accuracy is not None:
            words = f"accuracy {answer.accuracy:.3f} (chance {chance:.3f})"
            draw_confusion(output / f"confusion_{data.name}.png", answer)
        images = f"{len(data.images)} images ({answer.damaged} damaged)"
        print(f"{data.name}: {images}, {len(data.classes)} classes: {words}")
    score = mean_accuracy(answers)
    predictions = {answer.data.name: answer.as_dict() for answer in answers}
    write_json(output / "predictions.json", predictions)
    write_json(output / "result.json", {"score": score, "data": rows})
    if score is not None:
        print(f"score {score:.2f} (mean accuracy × 100)")
    print(f"answers: {output}")


if __name__ == "__main__":
    run_command(main)
