"""Fill the search service's index: `python -m visual_search.main_index --run … --gallery …`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from visual_search.common.errors import UserError, print_next, run_command, without_credentials

if TYPE_CHECKING:
    from visual_search.serve.store import Store

DEFAULT_DATABASE = "runs/index"


def main() -> None:
    """Bring the index up to a gallery, embed it with another model, or change over to that."""
    options = build_parser().parse_args()
    if not (options.run or options.drop_old or options.export_clicks):
        raise UserError("there is nothing to do: name --run, --export-clicks or --drop-old")
    if options.run is None and (options.gallery or options.judged or options.switch):
        raise UserError("--run is missing: the run or export that embeds the images")
    if options.sync and not options.gallery:
        raise UserError("--sync needs --gallery: what is not in it is removed from the index")
    if options.diagram and not options.judged:
        raise UserError("--diagram needs --judged: it draws how often was right what was said")

    from visual_search.serve.store import Store

    store = Store(options.database)
    try:
        if options.export_clicks:
            from visual_search.serve.judged import export_clicks

            print(export_clicks(store, options.export_clicks))
            words = ("compare", "RUN_A", "RUN_B", "--tasks", options.export_clicks / "clicks.yml")
            print_next("-m", "visual_search.main_evaluate", *words)
        if options.run:
            _index(store, options)
        if options.drop_old:
            print(f"dropped: {', '.join(store.drop_others()) or 'nothing: there is one model'}")
    finally:
        store.close()


def _index(store: Store, options: argparse.Namespace) -> None:
    from visual_search.serve.calibration import draw_reliability
    from visual_search.serve.gallery import read_products
    from visual_search.serve.indexing import Indexer, measured_recall
    from visual_search.serve.judged import calibrate, compare_with_current, read_judged
    from visual_search.serve.query_model import QueryModel

    products = read_products(options.gallery) if options.gallery else []
    model = QueryModel(options.run)
    indexer = Indexer(store, model)
    indexed = indexer.indexed
    if options.drop_old and not (indexed.current or options.switch):
        raise UserError(
            f"--drop-old would remove {indexed.name}, which does not answer: add --switch"
        )
    if options.gallery and not options.switch:
        indexer.check_answers()
    if not indexed.current:
        indexer.fill()
        if options.judged:
            judged = read_judged(options.judged, store)
            print(compare_with_current(store, indexed, model, judged))
        if options.switch:
            while missing := store.switch(indexed):
                print(f"{missing} images came meanwhile", flush=True)
                indexer.fill()
            print(f"{indexed.name} answers from now on; --drop-old removes the model before it")
    if options.gallery:
        indexer.index(products, sync=options.sync)
    indexer.fill()
    print(indexer.report)
    if options.approximate is not None:
        store.make_approximate(indexed, options.approximate)
        if options.approximate:
            print(measured_recall(store, store.model(indexed.id)))
    if options.judged:
        calibration = calibrate(store, indexed, model, read_judged(options.judged, store))
        print(
            f"calibrated on {calibration.queries} answers, with the products asked for and without "
            f"them: expected error {calibration.error:.3f} on products that were not fitted on"
        )
        if options.diagram:
            draw_reliability(calibration, options.diagram)
    if store.model(indexed.id).current:
        place = without_credentials(options.database)
        print_next("-m", "visual_search.main_serve", "--database", place)
    else:
        print(f"{indexed.name} is complete beside the model that answers; --switch changes over")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_index",
        description="Fill an index that visual_search.main_serve answers from. Only what is new or "
        "changed is embedded; a killed command goes on where it was. Needs pip install -e "
        "'.[serve]'.",
    )
    parser.add_argument(
        "--database",
        default=DEFAULT_DATABASE,
        help="a folder, in which a server starts by itself, or postgresql://… (%(default)s)",
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="run or export folder; another than the one that answers is embedded beside it",
    )
    parser.add_argument(
        "--gallery", type=Path, help="products.jsonl, gallery.csv or dataset_info.csv"
    )
    parser.add_argument(
        "--sync", action="store_true", help="remove products that --gallery does not list"
    )
    parser.add_argument(
        "--judged",
        type=Path,
        help="queries.csv with product_id: calibrates probabilities of being right, and compares "
        "with the model that answers; clicks that were logged with their images are added",
    )
    parser.add_argument(
        "--diagram", type=Path, help="with --judged: png of how often was right what was said"
    )
    parser.add_argument(
        "--approximate",
        action=argparse.BooleanOptionalAction,
        help="search through an HNSW index, and say its recall; --no-approximate: exactly again",
    )
    parser.add_argument(
        "--switch", action="store_true", help="let the model of --run answer from now on"
    )
    parser.add_argument(
        "--drop-old", action="store_true", help="remove the models that do not answer"
    )
    parser.add_argument(
        "--export-clicks",
        type=Path,
        metavar="FOLDER",
        help="write queries that led to a click as a task of main_evaluate",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
