"""Run the README's commands on the demo catalogue: `make demo`, `make demo-text`, `make serve`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from visual_search.common.errors import UserError, run_command
from visual_search.common.files import write_json, write_text
from visual_search.common.processes import run_python

CATALOGUE = Path("dataset/demo")
WEIGHTS = "my_submission/weights"
BACKBONE = "config/backbone/efficientnet_lite0.yml"
INPUT_SIZE = "160"  # as the trained model's, so that only the training differs
PAIRS = Path("dataset/demo_text/pairs.parquet")
QUERIES = ("красный диван", "настольная лампа", "детская кроватка", "велосипед")


def main() -> None:
    """Run one of the two demos and say what it measured."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_demo",
        description="Train, export, rank and score on the embedded catalogue; 5 to 8 minutes.",
    )
    words = "train images and Russian names into one space, and search by text; three minutes"
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--text", action="store_true", help=words)
    words = "search the catalogue in the browser, by the model of the first demo; until Ctrl-C"
    way.add_argument("--serve", action="store_true", help=words)
    arguments = parser.parse_args()
    if not Path(BACKBONE).is_file():
        raise UserError("start it in the project's top folder: make demo, make demo-text")
    if arguments.serve:
        serve()
        return
    started = time.perf_counter()
    summary = search_by_text() if arguments.text else search_by_image()
    summary["seconds"] = round(time.perf_counter() - started, 1)
    path = Path("runs", "demo_text" if arguments.text else "demo", "summary.json")
    following = summary.pop("next")
    write_json(path, summary)
    print(f"\nopen    {summary['report']}\nnext    {following}")
    print(f"summary {path}   ({summary['seconds']:.0f} s)")


def search_by_image() -> dict[str, Any]:
    """Score the untrained backbone, train, export, rank through the organiser's interface."""
    headline("1. The backbone as it comes, never trained on a product")
    plain = ("--output", "runs/demo/zero_shot", "--input_size", INPUT_SIZE)
    python("my_submission/to_torchscript.py", BACKBONE, *plain)
    zero_shot = evaluate("runs/demo/zero_shot", "--weights", "runs/demo/zero_shot")

    print(
        f"untrained: mAP {zero_shot['mAP']:.4f}; open runs/demo/zero_shot/report.html while the "
        "five phases train",
        flush=True,
    )

    headline("2. Training, in five phases, on other products than those it will be asked for")
    phases = train_chain("demo")

    headline("3. Export and submission, through the organiser's interface")
    best = max(phases, key=lambda phase: phase["mAP"])
    python("my_submission/to_torchscript.py", f"runs/{best['name']}")
    trained = evaluate("runs/local_evaluation")

    headline("Result, on products that were never trained on")
    print(f"zero-shot mAP  {zero_shot['mAP']:.4f}")
    for phase in phases:
        print(f"  after {phase['name']:<18} {phase['mAP']:.4f}   ({phase['seconds']:.0f} s)")
    print(f"trained mAP    {trained['mAP']:.4f}   ({best['name']}, as submitted)")
    return {
        "zero_shot_map": zero_shot["mAP"],
        "trained_map": trained["mAP"],
        "phases": phases,
        "images_per_second": trained["images_per_second"],
        "report": "runs/local_evaluation/report.html",
        "next": "your own images: docs/own_images.md; search by text: make demo-text",
    }


def search_by_text() -> dict[str, Any]:
    """Train two stages, score both ways, classify by names, answer a few queries."""
    headline("1. The catalogue as a table of images and queries")
    catalogue = ("--catalogue", str(CATALOGUE), "--language", "ru", "en", "--output", str(PAIRS))
    python("dataset/image_text/catalogue_pairs.py", *catalogue)

    headline("2. Training in two stages; the products that are asked for are others")
    stages = train_chain("demo_text")
    run = f"runs/{stages[-1]['name']}"

    headline("3. Zero-shot: the categories of products never trained on, by name alone")
    data = write_categories(Path("runs/demo_text/categories"))
    python("-m", "visual_search.main_zero_shot", "--run", run, "--data", str(data))
    found = json.loads(Path(run, "zero_shot/result.json").read_text("utf-8"))["data"][data.name]

    headline("4. A few queries")
    options = ("--gallery", str(PAIRS), "--top", "3", "--output", "runs/demo_text/queries")
    python("-m", "visual_search.main_query", "--run", run, *options, *QUERIES)

    headline("Result, on products that were never trained on")
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in (stage["name"] for stage in stages):
        lines = map(json.loads, Path("runs", name, "metrics.jsonl").read_text("utf-8").splitlines())
        last = [line for line in lines if line["kind"] == "retrieval"][-1]
        scores[name] = {key: last[key] for key in ("text_to_photo", "photo_to_text")}
        for direction, values in scores[name].items():
            shown = "   ".join(f"{key} {value:.3f}" for key, value in values.items())
            print(f"{name:<21} {direction.replace('_', ' '):<14} {shown}")
    print(f"zero-shot accuracy {found['accuracy']:.3f} (chance {found['chance']:.3f})")
    return {
        "stages": scores,
        "zero_shot_accuracy": found["accuracy"],
        "zero_shot_chance": found["chance"],
        "report": f"{run}/report.html",
        "next": f"ask it: .venv/bin/python -m visual_search.main_query --run {run} "
        f"--gallery {PAIRS} 'белый шкаф'",
    }


def serve() -> None:
    """Index the catalogue with the demo's export, and serve it with its page."""
    if not Path(WEIGHTS, "model.json").is_file():
        raise UserError(f"there is no model in {WEIGHTS} yet: run make demo first")
    headline("1. The catalogue as a shop's table; prices and stock are invented")
    table = write_products(Path("runs/demo_serve/products.jsonl"))
    headline("2. Its index, and how sure its answers are")
    database = ("--database", "runs/demo_serve/index")
    judged = str(CATALOGUE / "development_test_data/queries.csv")
    python(
        *("-m", "visual_search.main_index", "--run", WEIGHTS, "--switch", "--drop-old"),
        *("--gallery", str(table), "--sync", "--judged", judged, *database),
    )
    headline("3. The service")
    # In place of this process: it would not wait for the service to stop cleanly at Ctrl-C.
    command = [sys.executable, "-m", "visual_search.main_serve", *database]
    print(f"$ python {shlex.join(command[1:])}", flush=True)
    os.execv(command[0], command)


def write_products(table: Path) -> Path:
    """The products that were not trained on, as `products.jsonl`."""
    import pandas as pd

    data = CATALOGUE / "development_test_data"
    gallery = pd.read_csv(data / "gallery.csv", dtype=str)
    files = gallery["img_path"].map(lambda path: str((data / path).absolute()))
    images = files.groupby(gallery["product_id"]).agg(list)
    lines = []
    for row in pd.read_csv(CATALOGUE / "products.csv", dtype=str).to_dict("records"):
        if row["product_id"] not in images:
            continue
        number = int(row["product_id"])
        product = {
            "id": row["product_id"],
            "title": row["name_en"],
            "category": row["category"],
            "price": 10 + number * 7919 % 4000 / 10,
            "in_stock": number % 5 > 0,
            "attributes": {key: row[key] for key in ("name_ru", "author", "licence")},
            "images": images[row["product_id"]],
        }
        lines.append(json.dumps(product, ensure_ascii=False) + "\n")
    write_text(table, "".join(lines))
    return table


def headline(text: str) -> None:
    """A line that separates the steps."""
    print(f"\n== {text}", flush=True)


def python(*arguments: str) -> None:
    """Show a command of the README and run it with this interpreter.

    Raises:
        UserError: when it fails; it has said why itself.
    """
    print(f"$ python {shlex.join(arguments)}", flush=True)
    status = run_python(arguments)
    if status != 0:
        raise UserError(f"the demo stopped: `python {shlex.join(arguments)}` ended with {status}")


def train_chain(name: str) -> list[dict[str, Any]]:
    """Train a chain of phases anew; name, mAP, best epoch and seconds of each."""
    python("-m", "visual_search.main_phases", "--config", f"config/{name}/phases.yml", "--force")
    rows = json.loads(Path(f"runs/{name}/phases.json").read_text("utf-8"))["phases"]
    return [{key: row[key] for key in ("name", "mAP", "epoch", "seconds")} for row in rows]


def evaluate(output: str, *options: str) -> dict[str, Any]:
    """Run `local_evaluation.py` on the demo's development set and read its result."""
    data = str(CATALOGUE / "development_test_data")
    python("local_evaluation.py", "--data-folder", data, "--output", output, *options)
    result: dict[str, Any] = json.loads((Path(output) / "result.json").read_text("utf-8"))
    return result


def write_categories(folder: Path) -> Path:
    """The test images with their categories, in the challenge's zero-shot layout."""
    from visual_search.text.pairs import TEST, read_pairs

    names = json.loads((CATALOGUE / "categories.json").read_text("utf-8"))
    table = read_pairs(PAIRS, TEST)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "img").mkdir(parents=True)
    numbers = {category: number for number, category in enumerate(names)}
    labels = {}
    for path, category in zip(table.paths, table.categories, strict=True):
        shutil.copyfile(path, folder / "img" / path.name)
        labels[path.stem] = numbers[category]
    write_json(folder / "classes.json", list(names.values()))
    write_json(folder / "labels.json", labels)
    return folder


if __name__ == "__main__":
    run_command(main)
