"""Typed queries on the embedded catalogue: `make demo-text`. It runs the README's own commands."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from visual_search.errors import UserError, exit_with_sentence
from visual_search.main_demo import headline, python

CATALOGUE = "dataset/demo"
PAIRS = Path("dataset/demo_text/pairs.parquet")
CHAIN = "config/demo_text/phases.yml"
OUTPUT = Path("runs/demo_text")
FOLDS = 5
SUMMARY = OUTPUT / "summary.json"
CATEGORIES = {
    "Bathroom": "ванна, раковина, унитаз, душ, смеситель, полотенце, зеркало для ванной, "
    "мыло, держатель для полотенец, стиральная машина",
    "Bedroom": "кровать, тумбочка, комод, детская кроватка, платяной шкаф, подушка, одеяло, "
    "матрас, туалетный столик, вешалка",
    "Characters": "человек, мужчина, женщина, ребёнок, фигура человека",
    "Exterior": "садовая скамейка, забор, уличный фонарь, дерево, растение, качели, гараж, "
    "садовая мебель, мусорный бак, дорожный знак",
    "Kitchen": "посуда, плита, холодильник, чайник, кастрюля, сковорода, тарелка, чашка, "
    "нож, кухонный шкаф, микроволновая печь, тостер",
    "Lights": "лампа, люстра, светильник, торшер, настольная лампа, бра, потолочный светильник",
    "Living room": "диван, кресло, журнальный столик, телевизор, ковёр, книжный шкаф, стул, "
    "обеденный стол, полка, камин",
    "Miscellaneous": "игрушка, книга, часы, коробка, музыкальный инструмент, спортивный инвентарь, "
    "инструмент, сумка, картина",
    "Office": "офисное кресло, компьютер, принтер, письменный стол, ноутбук, монитор, папка, доска",
    "Vehicles": "автомобиль, велосипед, мотоцикл, грузовик, самолёт, автобус",
}
"""What a Russian shop would have in the catalogue's categories."""
EXAMPLES = ("красный диван", "настольная лампа", "детская кроватка", "велосипед")


def main() -> None:
    """Measure the ridge, train two stages, classify by names, answer queries, write the summary."""
    argparse.ArgumentParser(
        prog="python -m visual_search.main_demo_text",
        description="Train photos and Russian names into one space on the embedded catalogue, and "
        "measure it beside a ridge between the same frozen features, on five folds; six minutes.",
    ).parse_args()
    if not Path(CHAIN).is_file():
        raise UserError("start it in the project's top folder: make demo-text")
    started = time.perf_counter()

    headline("1. The catalogue as a table of photos and queries")
    catalogue = ("--catalogue", CATALOGUE, "--language", "ru", "en", "--output", str(PAIRS))
    python("dataset/image_text/catalogue_pairs.py", *catalogue)

    headline("2. Training in two stages; the products that are asked for are others")
    python("-m", "visual_search.main_phases", "--config", CHAIN, "--force")
    stages = json.loads((OUTPUT / "phases.json").read_text("utf-8"))["phases"]
    last = stages[-1]["name"]
    run = f"runs/{last}"

    headline("3. Each product asked for once: the same stages on folds, and the plain ridge beside")
    folds = ("--pairs", str(PAIRS), "--folds", str(FOLDS), "--force")
    python("-m", "visual_search.main_text_folds", "--config", CHAIN, *folds)
    compared = json.loads((Path("runs") / f"{OUTPUT.name}_folds" / "ridge.json").read_text("utf-8"))

    headline("4. Zero-shot: the categories of products never trained on, by name alone")
    data = write_categories(OUTPUT / "categories")
    python("-m", "visual_search.main_zero_shot", "--run", run, "--data", str(data))
    found = json.loads(Path(run, "zero_shot/result.json").read_text("utf-8"))["data"][data.name]

    headline("5. A few queries")
    gallery = ("--gallery", str(PAIRS), "--top", "3", "--output", str(OUTPUT / "queries"))
    python("-m", "visual_search.main_query", "--run", run, *gallery, *EXAMPLES)

    summary: dict[str, Any] = {
        "folds": FOLDS,
        "queries": compared["queries"],
        "ridge": compared["ridge"]["scores"],
        "stronger_ridges": {
            name.removeprefix("ridge_with_"): compared[name]["scores"]
            for name in compared
            if name.startswith("ridge_with_")
        },
        "model": compared["runs"][last]["scores"],
        "gain": compared["runs"][last]["gain"],
        "stages": {name: values["scores"] for name, values in compared["runs"].items()},
        "zero_shot_accuracy": found["accuracy"],
        "chance": {"zero_shot": found["chance"], **compared["chance"]},
        "run": run,
        "seconds": round(time.perf_counter() - started, 1),
    }
    from visual_search.files import write_json

    write_json(SUMMARY, summary)
    headline("Result, on products that were never trained on")
    print(table_of(summary))
    print(f"zero-shot accuracy {found['accuracy']:.3f} (chance {found['chance']:.3f})")
    print(f"report  {run}/report.html")
    print(f"summary {SUMMARY}   ({summary['seconds']:.0f} s)")


def write_categories(folder: Path) -> Path:
    """The test photos with their categories, in the challenge's zero-shot layout."""
    from visual_search.files import write_json
    from visual_search.pair_table import TEST, read_pairs

    table = read_pairs(PAIRS, TEST)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "img").mkdir(parents=True)
    keys, labels = list(CATEGORIES), {}
    for path, category in zip(table.paths, table.categories, strict=True):
        shutil.copyfile(path, folder / "img" / path.name)
        labels[path.stem] = keys.index(category)
    names = [kinds.split(", ") for kinds in CATEGORIES.values()]
    write_json(folder / "classes.json", names)
    write_json(folder / "labels.json", labels)
    return folder


def table_of(summary: dict[str, Any]) -> str:
    """Ridges, stages, and the last one's gain over the first ridge, a line for each measure."""
    stages = list(summary["stages"])
    stronger = [f"+ {name.replace('_', ' ')}" for name in summary["stronger_ridges"]]
    head = ["ridge".rjust(8), *(s.rjust(15) for s in stronger), *(s.rjust(24) for s in stages)]
    lines = ["".join(["measure".ljust(24), *head])]
    for direction, scores in summary["ridge"].items():
        for name, value in scores.items():
            row = [summary["stages"][stage][direction][name] for stage in stages]
            gain = summary["gain"][direction].get(name)
            words = f"   gain {gain['low']:+.3f} … {gain['high']:+.3f}" if gain else ""
            beside = [ridge[direction][name] for ridge in summary["stronger_ridges"].values()]
            shown = "".join(f"{number:15.3f}" for number in beside)
            shown += "".join(f"{number:24.3f}" for number in row)
            lines.append(f"{direction + ' ' + name:24}{value:8.3f}{shown}{words}")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_with_sentence(main)
