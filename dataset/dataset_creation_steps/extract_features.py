"""Step 2: an embedding of every photo of the shop and of the buyers; no photo is kept.

python dataset/dataset_creation_steps/extract_features.py X.parquet --run runs/arcface_2nd
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.dataset_creation_steps.engine import (
    add_download_options,
    add_runner_options,
    limits,
    start_engine,
)
from visual_search.common.errors import UserError, exit_with_sentence
from visual_search.common.files import write_text

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset.downloads import DownloadLimits

PRODUCTS_A_SNAPSHOT = 1000
COLUMNS = ["asin", "product_images", "user_images"]


@dataclass(frozen=True)
class Extracted:
    """What a call of step 2 found and did."""

    snapshots: int
    """Files that there are now."""
    earlier: int
    """Of these, files that an earlier call had written."""
    embedded: int
    failures: Counter[str]
    """Photos without an embedding, by reason."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="extract_features.py",
        description="Step 2: download and embed every photo of a parquet file of step 1 into "
        "<parquet>_NNNNN.embeddings, one for each thousand products. Killed at any "
        "moment, the same command goes on where it was.",
    )
    parser.add_argument("parquet", type=Path, help="of get_pairs.py")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/arcface_2nd"),
        help="the model: a run, a checkpoint or an export (%(default)s)",
    )
    parser.add_argument(
        "--gpus", type=float, default=0.0, help="of the cluster, for each model (%(default)s)"
    )
    parser.add_argument(
        "--products",
        type=int,
        default=PRODUCTS_A_SNAPSHOT,
        help="of one snapshot (%(default)s)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try again what failed for a passing reason"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete snapshots of another model, input or size and make them anew",
    )
    add_download_options(parser)
    add_runner_options(parser)
    return parser.parse_args(arguments)


def read_photos(parquet: str, products: int, retried: frozenset[int], number: int) -> pa.Table:
    """The photos of so many products, or those to try again: asin, role and url."""
    import pyarrow as pa

    from dataset.dataset_creation_steps.snapshots import (
        PHOTOS,
        may_pass_rows,
        read_rows,
        read_snapshot,
        snapshot_file,
    )

    if number in retried:
        table = read_snapshot(snapshot_file(Path(parquet), number))
        return table.take(pa.array(may_pass_rows(table))).select(["asin", "role", "url"])

    rows: list[tuple[str, str, str]] = []
    start = number * products
    for batch in read_rows(Path(parquet), start, start + products, COLUMNS):
        for row in batch.to_pylist():
            for role, column in (("product", "product_images"), ("user", "user_images")):
                rows += [(row["asin"], role, url) for url in row[column]]
    names = ("asin", "role", "url")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    schema = pa.schema([PHOTOS.field(name) for name in names])
    return pa.table({name: columns.get(name, ()) for name in names}, schema=schema)


def extract(
    parquet: Path,
    run: Path,
    download: DownloadLimits,
    *,
    size_hint: int = 500,
    products: int = PRODUCTS_A_SNAPSHOT,
    gpus: float = 0.0,
    distributed: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
) -> Extracted:
    """Write the snapshots that are missing.

    Args:
        parquet: of step 1.
        run: of the model, as :func:`visual_search.model.checkpoint.load_checkpoint` takes it.
        download: limits.
        size_hint: longest side to ask Amazon's servers for, pixels; 0 is as uploaded.
        products: of one snapshot.
        gpus: of a cluster, for each of its workers' models.
        distributed: whether each snapshot may be made on another machine.
        retry_failed: try photos again that failed for a reason that may have passed.
        overwrite: delete snapshots that were made of something else, and make these, too. Those of
            this model, table and size stay, so that a killed call can be repeated as it was.

    Raises:
        UserError: when file or model is missing, or the snapshots are of another model.
    """
    from dataset.dataset_creation_steps.snapshots import (
        check_source,
        file_fingerprint,
        fingerprint,
        keep_of_source,
        may_pass_rows,
        read_snapshot,
        remove_leftovers,
        row_count,
        snapshot_file,
        snapshot_files,
        write_pieces,
    )
    from visual_search.common.progress import progress_bar
    from visual_search.model import checkpoint

    remove_leftovers(parquet)
    count = -(-row_count(parquet, COLUMNS) // products)
    source = fingerprint(
        file_fingerprint(parquet), checkpoint.fingerprint(run), f"{size_hint} {products}"
    )
    if overwrite:
        keep_of_source(parquet, source, count)
    done = snapshot_files(parquet)
    for path in done.values():
        advice = "start with --overwrite, or name the same --run, --size-hint and --products"
        check_source(path, source, advice)
    retried = frozenset(
        number
        for number, path in (done if retry_failed else {}).items()
        if len(may_pass_rows(read_snapshot(path)))
    )
    missing = [n for n in range(count) if n in retried or n not in done]
    initial = count - len(missing)
    title = f"embedding {parquet.name}"
    with progress_bar(title, "snapshot", total=count, initial=initial) as bar:
        frames = _photos(parquet, products, retried, missing, distributed)
        embedded_pieces = _embedded(frames, str(run.resolve()), download, size_hint, gpus)
        write_pieces(
            embedded_pieces,
            bool(done),
            retried,
            file_of=functools.partial(snapshot_file, parquet),
            columns=["asin", "role", "url", "vector", "reason"],
            source=source,
            advance=bar.update,
        )
    embedded, failures = _summed(parquet, count)
    return Extracted(count, count - len(missing), embedded, failures)


def _photos(
    parquet: Path,
    products: int,
    retried: frozenset[int],
    numbers: Sequence[int],
    distributed: bool,
) -> Iterator[Any]:
    """The addresses of all photos of some pieces, as frames of the engine's."""
    from dataset.dataset_creation_steps.snapshots import PHOTOS, PieceReader, Pieces, waves

    columns = tuple((name, PHOTOS.field(name).type) for name in ("asin", "role", "url"))
    read = functools.partial(read_photos, str(parquet.resolve()), products, retried)
    for some, tasks in waves(numbers, distributed) if numbers else ():
        yield Pieces(PieceReader(columns, read), some, tasks).read()


def _embedded(
    frames: Iterator[Any],
    run: str,
    download: DownloadLimits,
    size_hint: int,
    gpus: float,
) -> Generator[tuple[int, pa.Table], None, None]:
    """Embedded photos, a piece at a time."""
    from daft import col

    from dataset.dataset_creation_steps.embedding import embed_stage
    from dataset.dataset_creation_steps.photos import FetchStage, stoppable
    from dataset.dataset_creation_steps.snapshots import whole_pieces

    fetch: Any = FetchStage(download, size_hint).fetch
    embed = embed_stage(gpus)(run).embed
    for frame in frames:
        frame = frame.with_column("got", fetch(col("url")))
        frame = frame.with_column("made", embed(col("got")["data"]))
        reason = col("got")["reason"].fill_null(col("made")["reason"])
        frame = frame.with_columns({"vector": col("made")["vector"], "reason": reason})
        batches = frame.exclude("got", "made").to_arrow_iter(results_buffer_size=None)
        yield from whole_pieces(stoppable(batches))


def _summed(parquet: Path, count: int) -> tuple[int, Counter[str]]:
    """Photos with an embedding, and reasons of those without; the list of them is written."""
    from dataset.dataset_creation_steps.snapshots import read_snapshot, snapshot_file

    embedded, failures, lines = 0, Counter[str](), ["asin,role,url,reason"]
    for number in range(count):
        table = read_snapshot(snapshot_file(parquet, number)).drop_columns("vector")
        for row in table.to_pylist():
            if row["reason"] is None:
                embedded += 1
                continue
            failures[row["reason"]] += 1
            lines.append(",".join(_cell(row[name]) for name in ("asin", "role", "url", "reason")))
    write_text(failures_file(parquet), "\n".join(lines) + "\n")
    return embedded, failures


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def failures_file(parquet: Path) -> Path:
    """The photos without an embedding, each with its reason."""
    return parquet.with_name(f"{parquet.name}.failures.csv")


def main() -> None:
    """Write the snapshots and say what came of the photos."""
    arguments = parse_arguments()
    start_engine(arguments.runner, arguments.ray_address)
    parquet: Path = arguments.parquet
    found = extract(
        parquet,
        arguments.run,
        limits(arguments),
        size_hint=arguments.size_hint,
        products=arguments.products,
        gpus=arguments.gpus,
        distributed=arguments.runner == "ray",
        retry_failed=arguments.retry_failed,
        overwrite=arguments.overwrite,
    )
    for reason, count in found.failures.most_common(10):
        print(f"{count:8d} without an embedding: {reason}")
    print(
        f"{found.embedded} photos embedded, {found.failures.total()} not "
        f"({failures_file(parquet)}); {found.snapshots} snapshots, {found.earlier} of them from "
        "an earlier call"
    )
    if not found.embedded:
        raise UserError("no photo could be embedded; the reasons are above")
    print(
        "next: python dataset/dataset_creation_steps/analyse_pairs.py "
        f'{parquet} "{parquet}_*.embeddings"'
    )


if __name__ == "__main__":
    exit_with_sentence(main)
