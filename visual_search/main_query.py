"""Ask a gallery in words: `python -m visual_search.main_query --run … --gallery … "red chair"`."""

from __future__ import annotations

import argparse
from pathlib import Path

from visual_search.common.errors import UserError, run_command
from visual_search.common.files import read_lines, write_json
from visual_search.common.ranges import whole_number


def main() -> None:
    """Parse the arguments, search, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m visual_search.main_query",
        description="Rank the images of a gallery for queries typed as text, or name images.",
    )
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        required=True,
        help="run of visual_search.main_clip, or a CLIP as others trained it: its folder, or "
        "open_clip/<architecture>/<tag>",
    )
    add("--gallery", type=Path, help="a folder of images, a gallery.csv or a pairs.parquet")
    add("queries", nargs="*", metavar="QUERY", help="as typed; several are allowed")
    add("--queries_file", type=Path, help="more queries, one a line")
    add("--photos", type=Path, nargs="+", help="name these images instead")
    add("--names", type=Path, help="with --photos: the candidates, one a line")
    add("--top", type=whole_number(1), default=10, help="answers each (%(default)s)")
    add("--output", type=Path, help="folder for results.json and a picture of the answers")
    add(
        "--cache",
        type=Path,
        default=Path("runs/features"),
        help="folder where the gallery's embeddings are kept (%(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.photos:
        _name_images(arguments)
    else:
        _find_images(arguments)


def _find_images(arguments: argparse.Namespace) -> None:
    if not arguments.queries and not arguments.queries_file:
        raise UserError("there is no query: type one in quotes, or name --queries_file")
    if arguments.gallery is None:
        raise UserError("--gallery is missing: a folder of images, gallery.csv or pairs.parquet")

    from visual_search.common.page import Section, Tile, TileRow, write_page
    from visual_search.data.images import ImageItem
    from visual_search.evaluation.report import thumbnails
    from visual_search.text.search import TextSearch, gallery_images, load_text_model

    queries = list(arguments.queries)
    if arguments.queries_file:
        queries += read_lines(arguments.queries_file)
    if not queries:
        raise UserError(f"{arguments.queries_file} holds no query: write some, one a line")
    images = gallery_images(arguments.gallery)
    search = TextSearch(load_text_model(arguments.run), images, arguments.cache)
    print(f"{arguments.gallery}: {len(images)} images, {len(queries)} queries")
    if search.problems:
        first = search.problems[0]
        print(f"{len(search.problems)} damaged images, for example {first.path}: {first.reason}")
    found = search.images_for(queries, arguments.top)
    results, rows = [], []
    for query, hits in zip(queries, found, strict=True):
        print(f"\n{query}")
        for hit in hits:
            print(f"  {hit.score:6.3f}  {hit.label}")
        photos = [{"path": hit.label, "score": hit.score} for hit in hits]
        results.append({"query": query, "photos": photos})
        tiles = [Tile(ImageItem(Path(hit.label)), hit.label, "image") for hit in hits]
        rows.append(TileRow(query, ", ".join(f"{hit.score:.3f}" for hit in hits), tiles))
    if arguments.output:
        write_json(arguments.output / "results.json", results)
        page = arguments.output / "results.html"
        write_page(page, "Images for queries", [Section(rows=rows)], thumbnails)
        print(f"\nwritten: {arguments.output / 'results.json'}, {page}")


def _name_images(arguments: argparse.Namespace) -> None:
    if arguments.names is None:
        raise UserError("--photos needs --names: a file with the candidate names, one a line")
    missing = [path for path in arguments.photos if not path.is_file()]
    if missing:
        raise UserError(f"the image {missing[0]} does not exist ({len(missing)} of --photos)")

    from visual_search.data.images import ImageItem
    from visual_search.text.search import load_text_model
    from visual_search.text.zero_shot import name_images

    names = read_lines(arguments.names)
    if not names:
        raise UserError(f"{arguments.names} holds no name: write some, one a line")
    items = [ImageItem(path) for path in arguments.photos]
    found = name_images(load_text_model(arguments.run), items, names, arguments.top)
    print(f"{len(items)} images, {len(names)} names")
    rows = []
    for path, hits in zip(arguments.photos, found, strict=True):
        print(f"{path}: " + ", ".join(f"{hit.label} {hit.score:.3f}" for hit in hits))
        names_of = [{"name": hit.label, "score": hit.score} for hit in hits]
        rows.append({"photo": str(path), "names": names_of})
    if arguments.output:
        write_json(arguments.output / "results.json", rows)


if __name__ == "__main__":
    run_command(main)
